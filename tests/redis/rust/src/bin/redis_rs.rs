//! redis-rs, blocking and asynchronous, with both versions of the protocol.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncCommands as _, AsyncConnectionConfig, Client, Commands as _, Connection, ConnectionInfo,
    ErrorKind, ExistenceCheck, IntoConnectionInfo as _, ProtocolVersion, RedisResult,
    ServerErrorKind, SetExpiry, SetOptions,
};
use redis_clients::{Task, increments, task};

fn client(server: &str, protocol: ProtocolVersion, database: i64) -> Client {
    let info: ConnectionInfo =
        format!("redis://{server}").into_connection_info().expect("an address");
    let settings = info.redis_settings().clone().set_protocol(protocol).set_db(database);
    Client::open(info.set_redis_settings(settings)).expect("a client")
}

fn strings_and_keys(r: &mut Connection) -> RedisResult<()> {
    let binary: Vec<u8> = (0..=255).collect();
    () = r.set(&binary, &binary)?;
    assert_eq!(r.get::<_, Vec<u8>>(&binary)?, binary);
    let only_new = SetOptions::default()
        .conditional_set(ExistenceCheck::NX)
        .with_expiration(SetExpiry::EX(100));
    assert!(r.set_options::<_, _, bool>("k", "v", only_new.clone())?);
    assert_eq!(r.set_options::<_, _, Option<String>>("k", "w", only_new)?, None);
    assert!((90..=100).contains(&r.ttl::<_, i64>("k")?));
    assert!(r.expire::<_, bool>("k", 50)? && r.persist::<_, bool>("k")?);
    assert_eq!(r.ttl::<_, i64>("k")?, -1);
    assert_eq!(r.get_del::<_, String>("k")?, "v");
    assert_eq!(r.get::<_, Option<String>>("k")?, None);
    assert_eq!(r.incr::<_, _, i64>("n", 1)?, 1);
    assert_eq!(r.decr::<_, _, i64>("n", 11)?, -10);
    assert_eq!(r.incr::<_, _, f64>("f", 0.5)?, 0.5);
    () = r.set("text", "text")?;
    let error = r.incr::<_, _, i64>("text", 1).expect_err("a text is no number");
    assert!(error.to_string().contains("not an integer"), "{error}");
    let error = redis::cmd("NOSUCH").arg("a").exec(r).expect_err("there is no such command");
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError), "{error}");
    let pairs: Vec<(String, usize)> = (0..50).map(|n| (format!("m{n}"), n)).collect();
    () = r.mset(&pairs)?;
    let values: Vec<Option<usize>> = r.mget(&["m0", "m49", "absent"])?;
    assert_eq!(values, [Some(0), Some(49), None]);
    let found: RedisResult<HashSet<String>> = r.scan_match::<_, String>("m*")?.collect();
    assert_eq!(found?, pairs.iter().map(|(key, _)| key.clone()).collect());
    Ok(())
}

fn pipelines(r: &mut Connection) -> RedisResult<()> {
    let mut pipeline = redis::pipe();
    for n in 0..300 {
        pipeline.set(format!("p{n}"), n).ignore().get(format!("p{n}"));
    }
    let values: Vec<i64> = pipeline.query(r)?;
    assert_eq!(values, (0..300).collect::<Vec<i64>>());
    Ok(())
}

fn transactions(r: &mut Connection, other: &mut Connection) -> RedisResult<()> {
    let pair: (i64, i64) = redis::pipe().atomic().incr("{t}a", 1).incr("{t}b", 1).query(r)?;
    assert_eq!(pair, (1, 1));
    // The first attempt fails, because another client changes the watched key.
    let mut attempts = 0;
    let (sum,): (i64,) = redis::transaction(r, &["{t}a"], |r, pipe| {
        attempts += 1;
        let value: i64 = r.get("{t}a")?;
        if attempts == 1 {
            () = other.incr("{t}a", 5)?;
        }
        pipe.set("{t}a", value + 10).ignore().get("{t}a").query(r)
    })?;
    assert_eq!((attempts, sum), (2, 16));
    let mut across = redis::pipe();
    for n in 0..30 {
        across.atomic().incr(format!("x{n}"), 1);
    }
    let error = across.exec(r).expect_err("a transaction of several shards");
    assert!(error.to_string().contains("same slot"), "{error}");
    Ok(())
}

async fn asynchronous(client: &Client) -> RedisResult<()> {
    let r = client.get_multiplexed_async_connection().await?;
    let tasks = (0..50).map(|_| {
        let mut r = r.clone();
        async move { r.incr::<_, _, i64>("async", 1).await }
    });
    let sums: BTreeSet<i64> = futures::future::try_join_all(tasks).await?.into_iter().collect();
    assert_eq!(sums, (1..=50).collect());
    Ok(())
}

async fn all(servers: &[String]) -> RedisResult<()> {
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        for (at, server) in servers.iter().enumerate() {
            let here = client(server, protocol, 0);
            let mut r = here.get_connection()?;
            let mut other =
                client(&servers[(at + 1) % servers.len()], protocol, 0).get_connection()?;
            () = r.flushall()?;
            strings_and_keys(&mut r)?;
            pipelines(&mut r)?;
            transactions(&mut r, &mut other)?;
            asynchronous(&here).await?;
            let mut third = client(server, protocol, 3).get_connection()?;
            assert_eq!(third.get::<_, Option<i64>>("n")?, None);
            assert_eq!(r.get::<_, i64>("n")?, -10);
        }
    }
    Ok(())
}

async fn open(server: &str) -> Option<MultiplexedConnection> {
    // By default, the asynchronous connection waits half a second for a reply.
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
    let client = client(server, ProtocolVersion::RESP3, 0);
    client.get_multiplexed_async_connection_with_config(&config).await.ok()
}

async fn increment(r: &mut MultiplexedConnection, key: &str) -> Option<i64> {
    match r.incr(key, 1).await {
        Ok(value) => Some(value),
        Err(error) if error.is_connection_dropped() => None,
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
