//! fred with both versions of the protocol.

use std::collections::BTreeSet;

use fred::prelude::*;
use fred::types::scan::Scanner as _;
use fred::types::{Key, RespVersion};
use futures::TryStreamExt as _;
use redis_clients::{Task, host_and_port, increments, task};

/// Connects to a server, without a policy to connect again.
async fn connect(server: &str, version: RespVersion, database: u8) -> Result<Client, Error> {
    let (host, port) = host_and_port(server);
    let config = Config {
        server: ServerConfig::new_centralized(host, port),
        version,
        database: Some(database),
        ..Config::default()
    };
    // A repeated increment would count twice.
    let connection = ConnectionConfig { max_command_attempts: 1, ..ConnectionConfig::default() };
    let client = Client::new(config, None, Some(connection), None);
    client.init().await?;
    Ok(client)
}

async fn strings_and_keys(r: &Client) -> Result<(), Error> {
    let binary: Vec<u8> = (0..=255).collect();
    () = r.set(binary.as_slice(), binary.as_slice(), None, None, false).await?;
    assert_eq!(r.get::<Vec<u8>, _>(binary.as_slice()).await?, binary);
    let expiry = || Some(Expiration::EX(100));
    let set: Option<String> = r.set("k", "v", expiry(), Some(SetOptions::NX), false).await?;
    assert_eq!(set.as_deref(), Some("OK"));
    let set: Option<String> = r.set("k", "w", expiry(), Some(SetOptions::NX), false).await?;
    assert_eq!(set, None);
    assert!((90..=100).contains(&r.ttl::<i64, _>("k").await?));
    assert!(r.expire::<bool, _>("k", 50, None).await? && r.persist::<bool, _>("k").await?);
    assert_eq!(r.ttl::<i64, _>("k").await?, -1);
    assert_eq!(r.getdel::<String, _>("k").await?, "v");
    assert_eq!(r.get::<Option<String>, _>("k").await?, None);
    assert_eq!(r.incr::<i64, _>("n").await?, 1);
    assert_eq!(r.decr_by::<i64, _>("n", 11).await?, -10);
    assert_eq!(r.incr_by_float::<f64, _>("f", 0.5).await?, 0.5);
    () = r.set("text", "text", None, None, false).await?;
    let error = r.incr::<i64, _>("text").await.expect_err("a text is no number");
    assert!(error.details().contains("not an integer"), "{error}");
    let pairs: Vec<(String, i64)> = (0..50).map(|n| (format!("m{n}"), n)).collect();
    () = r.mset(pairs.clone()).await?;
    let values: Vec<Option<i64>> = r.mget(vec!["m0", "m49", "absent"]).await?;
    assert_eq!(values, [Some(0), Some(49), None]);
    let mut found = BTreeSet::new();
    let mut pages = r.scan("m*", Some(7), None);
    while let Some(mut page) = pages.try_next().await? {
        let keys = page.take_results().unwrap_or_default();
        found.extend(keys.into_iter().filter_map(Key::into_string));
        page.next();
    }
    assert_eq!(found, pairs.into_iter().map(|(key, _)| key).collect());
    Ok(())
}

async fn pipelines(r: &Client) -> Result<(), Error> {
    let pipeline = r.pipeline();
    for n in 0..300 {
        () = pipeline.incr_by(format!("p{n}"), n).await?;
    }
    let values: Vec<i64> = pipeline.all().await?;
    assert_eq!(values, (0..300).collect::<Vec<i64>>());
    // Commands that wait for their replies at the same time share the connection.
    let sums: Vec<i64> = futures::future::try_join_all((0..50).map(|_| r.incr("async"))).await?;
    assert_eq!(sums, (1..=50).collect::<Vec<i64>>());
    Ok(())
}

async fn transactions(r: &Client, other: &Client) -> Result<(), Error> {
    let increments = async || -> Result<Option<(i64, i64)>, Error> {
        let transaction = r.multi();
        () = transaction.incr("{t}a").await?;
        () = transaction.incr("{t}b").await?;
        transaction.exec(true).await
    };
    assert_eq!(increments().await?, Some((1, 1)));
    () = r.watch("{t}a").await?;
    () = other.incr("{t}a").await?;
    assert_eq!(increments().await?, None, "another client has changed a watched key");
    assert_eq!(increments().await?, Some((3, 2)));
    Ok(())
}

async fn all(servers: &[String]) -> Result<(), Error> {
    for version in [RespVersion::RESP2, RespVersion::RESP3] {
        for (at, server) in servers.iter().enumerate() {
            let r = connect(server, version.clone(), 0).await?;
            let other = connect(&servers[(at + 1) % servers.len()], version.clone(), 0).await?;
            () = r.flushall(false).await?;
            strings_and_keys(&r).await?;
            pipelines(&r).await?;
            transactions(&r, &other).await?;
            let third = connect(server, version.clone(), 3).await?;
            assert_eq!(third.get::<Option<i64>, _>("n").await?, None);
            for client in [r, other, third] {
                client.quit().await?;
            }
        }
    }
    Ok(())
}

async fn open(server: &str) -> Option<Client> {
    connect(server, RespVersion::RESP3, 0).await.ok()
}

async fn increment(r: &mut Client, key: &str) -> Option<i64> {
    match r.incr(key).await {
        Ok(value) => Some(value),
        Err(error) if matches!(error.kind(), ErrorKind::IO | ErrorKind::Canceled) => None,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    match task() {
        Task::All(servers) => {
            all(&servers).await.expect("the replies of Redis");
            println!("passed");
        }
        Task::Increments(servers) => increments(&servers, open, increment).await,
    }
}
