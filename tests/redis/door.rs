//! Any server takes any key of a Redis client, and a failover is latency.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crate::common::process::{self, Signal};
use crate::common::{Cluster, TIMEOUT, wait_until};
use crate::ordered::replace;
use crate::resp::{Connection, Reply, servers};
use kv_client::OpOptions;

#[test]
fn every_server_serves_every_key_and_native_clients_see_the_same_entries() {
    let cluster = Cluster::builder().shards(2).start();
    let mut connections: Vec<Connection> =
        servers(&cluster).into_iter().map(Connection::open).collect();
    let mut native = cluster.open();
    for n in 0..60usize {
        let key = format!("key{n}");
        let at = n % connections.len();
        assert_eq!(connections[at].ask(&format!("SET {key} value{n}")), Reply::ok());
        for connection in &mut connections {
            assert_eq!(connection.ask(&format!("GET {key}")), Reply::bulk(format!("value{n}")));
        }
        let entry = native.get(key.as_bytes(), &OpOptions::default()).expect("the entry");
        assert_eq!(entry.bytes, format!("value{n}").into_bytes());
    }
    native.put(b"native", b"7", &OpOptions::default()).expect("a put");
    for (at, connection) in connections.iter_mut().enumerate() {
        let sum = i64::try_from(at).expect("small") + 8;
        assert_eq!(connection.ask("INCR native"), Reply::Integer(sum));
    }
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
}

#[test]
fn a_pipeline_to_all_servers_keeps_the_order_of_its_replies() {
    let cluster = Cluster::start();
    let mut connection = Connection::open(servers(&cluster)[0]);
    let keys: BTreeSet<String> = (0..200).map(|n| format!("key{n}")).collect();
    let lines: Vec<String> =
        keys.iter().flat_map(|key| [format!("SET {key} {key}"), format!("GET {key}")]).collect();
    connection.send(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    for key in &keys {
        assert_eq!(connection.receive(), Some(Reply::ok()));
        assert_eq!(connection.receive(), Some(Reply::bulk(key)));
    }
    cluster.stop();
}

/// A server is killed again and again, and each time its keys move to another server. The clients of the other servers
/// get no error, and every increment counts once.
#[test]
fn increments_during_failovers_count_once_and_no_client_gets_an_error() {
    const CLIENTS: usize = 6;
    let cluster = Cluster::start();
    let addresses = servers(&cluster);
    let (is_over, acknowledged) = (AtomicBool::new(false), AtomicI64::new(0));
    let longest = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CLIENTS)
            .map(|client| {
                // Server 1 is killed, so its clients would lose their connections.
                let address = addresses[[0, 2][client % 2]];
                let (is_over, acknowledged) = (&is_over, &acknowledged);
                scope.spawn(move || {
                    let mut connection = Connection::open(address);
                    let mut longest = Duration::ZERO;
                    for n in 0.. {
                        if is_over.load(Ordering::Relaxed) {
                            break;
                        }
                        let begin = Instant::now();
                        match connection.ask(&format!("INCR counter{}", n % 30)) {
                            Reply::Integer(_) => acknowledged.fetch_add(1, Ordering::Relaxed),
                            other => panic!("{other:?} after {:?}", begin.elapsed()),
                        };
                        longest = longest.max(begin.elapsed());
                    }
                    longest
                })
            })
            .collect();
        for _ in 0..3 {
            let done = acknowledged.load(Ordering::Relaxed);
            wait_until("further increments", TIMEOUT, || {
                acknowledged.load(Ordering::Relaxed) > done + 500
            });
            replace(&cluster, 1);
        }
        is_over.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("a client")).max()
    });
    let mut connection = Connection::open(addresses[0]);
    let sum: i64 = (0..30)
        .map(|n| match connection.ask(&format!("GET counter{n}")) {
            Reply::Bulk(Some(number)) => {
                str::from_utf8(&number).expect("digits").parse::<i64>().expect("a number")
            }
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(sum, acknowledged.load(Ordering::Relaxed));
    assert!(longest < Some(Duration::from_secs(5)), "{longest:?}");
    cluster.stop();
}

#[test]
fn a_transaction_of_one_hash_tag_is_atomic_for_all_other_clients() {
    let cluster = Cluster::builder().shards(2).flag("--hash-tags").start();
    let addresses = servers(&cluster);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut connection = Connection::open(addresses[1]);
            let mut seen = 0;
            while !is_over.load(Ordering::Relaxed) {
                connection.send(&["MULTI", "GET {t}a", "GET {t}b", "EXEC"]);
                let replies: Vec<Reply> =
                    (0..4).map(|_| connection.receive().expect("a reply")).collect();
                let Reply::Array(Some(values)) = &replies[3] else { panic!("{replies:?}") };
                assert_eq!(values[0], values[1], "half of a transaction");
                seen += 1;
            }
            seen
        });
        let mut connection = Connection::open(addresses[2]);
        for _ in 0..300 {
            connection.send(&["MULTI", "INCR {t}a", "INCR {t}b", "EXEC"]);
            let replies: Vec<Reply> =
                (0..4).map(|_| connection.receive().expect("a reply")).collect();
            assert!(matches!(&replies[3], Reply::Array(Some(sums)) if sums[0] == sums[1]));
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().expect("the reader") > 0);
    });
    // A watched key that another client has changed makes EXEC fail, whichever server they use.
    let [mut one, mut other] = [0, 1].map(|at| Connection::open(addresses[at]));
    assert_eq!(one.ask("WATCH {t}a"), Reply::ok());
    assert_eq!(other.ask("INCR {t}a"), Reply::Integer(301));
    one.send(&["MULTI", "SET {t}b 0", "EXEC"]);
    let replies: Vec<Reply> = (0..3).map(|_| one.receive().expect("a reply")).collect();
    assert_eq!(replies[2], Reply::Array(None));
    assert_eq!(one.ask("GET {t}b"), Reply::bulk("300"));
    cluster.stop();
}

#[test]
fn databases_are_separate_and_native_clients_use_the_first() {
    let cluster = Cluster::start();
    let mut connection = Connection::open(servers(&cluster)[0]);
    assert_eq!(connection.ask("SET key zero"), Reply::ok());
    assert_eq!(connection.ask("SELECT 15"), Reply::ok());
    assert_eq!(connection.ask("GET key"), Reply::Bulk(None));
    assert_eq!(connection.ask("SET key fifteen"), Reply::ok());
    assert_eq!(connection.ask("DBSIZE"), Reply::Integer(1));
    assert_eq!(connection.ask("SELECT 16"), Reply::Error("ERR DB index is out of range".into()));
    assert_eq!(connection.ask("SELECT 0"), Reply::ok());
    assert_eq!(connection.ask("DBSIZE"), Reply::Integer(1));
    let entry = cluster.open().get(b"key", &OpOptions::default()).expect("the entry");
    assert_eq!(entry.bytes, b"zero");
    cluster.stop();
}

#[test]
fn a_port_for_redis_clients_only_waits_for_the_first_command_and_all_shards_take_clients() {
    let cluster = Cluster::builder().shards(2).flag("--redis-port").flag("0").start();
    let log = std::fs::read_to_string(cluster.dir().join("server_0.log")).expect("a log");
    let (_, rest) = log.split_once("Redis clients only on port ").expect("the port");
    let port: u16 = rest.split_whitespace().next().and_then(|port| port.parse().ok()).expect("it");
    let mut connections: Vec<Connection> =
        (0..4).map(|_| Connection::open(([127, 0, 0, 1], port).into())).collect();
    for connection in &mut connections {
        assert_eq!(connection.ask("PING"), Reply::Simple("PONG".to_owned()));
    }
    // INFO counts the connections of the shard that serves it. Those of other shards do not exist yet.
    for connection in &mut connections {
        let Reply::Bulk(Some(info)) = connection.ask("INFO clients") else { panic!("no text") };
        let info = String::from_utf8(info).expect("a text");
        assert!(info.contains("connected_clients:2\r\n"), "{info}");
    }
    for (n, connection) in connections.iter_mut().enumerate() {
        assert_eq!(connection.ask(&format!("SET key{n} {n}")), Reply::ok());
    }
    cluster.stop();
}

#[test]
fn the_deadline_of_commands_is_a_flag_and_a_command_that_was_not_served_can_be_sent_again() {
    let cluster = Cluster::builder().flag("--redis-deadline").flag("0.5").start();
    let addresses = servers(&cluster);
    let mut connection = Connection::open(addresses[0]);
    let lost = String::from_utf8(cluster.key_at(1, 0, "key")).expect("a text");
    assert_eq!(connection.ask(&format!("SET {lost} 1")), Reply::ok());
    // While the coordinator stands still, nobody takes over the keys of a dead server.
    let pid = cluster.server_pid(1);
    process::signal(cluster.coord_pid(), Signal::STOP);
    process::signal(pid, Signal::KILL);
    wait_until("the end of the server", TIMEOUT, || Connection::is_refused(addresses[1]));
    let begin = Instant::now();
    let reply = connection.ask(&format!("GET {lost}"));
    assert!(matches!(&reply, Reply::Error(text) if text.starts_with("TRYAGAIN")), "{reply:?}");
    assert!(begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
    process::signal(cluster.coord_pid(), Signal::CONT);
    wait_until("the other copy to serve", TIMEOUT, || {
        connection.ask(&format!("GET {lost}")) == Reply::bulk("1")
    });
    cluster.await_whole();
    cluster.stop();
}

#[test]
fn keys_of_a_group_without_holders_have_the_error_of_redis_at_once_and_the_others_are_served() {
    let cluster = Cluster::builder().flag("--on-double-fault").flag("isolate").start();
    let addresses = servers(&cluster);
    let mut connection = Connection::open(addresses[0]);
    let [lost, kept] = [1, 0].map(|group| {
        let key = String::from_utf8(cluster.key_at(group, 0, "key")).expect("a text");
        assert_eq!(connection.ask(&format!("SET {key} 1")), Reply::ok());
        key
    });
    for pid in [1, 2].map(|id| cluster.server_pid(id)) {
        process::signal(pid, Signal::KILL);
    }
    let down = Reply::Error("CLUSTERDOWN Hash slot not served".into());
    wait_until("the loss of the group", TIMEOUT, || connection.ask(&format!("GET {lost}")) == down);
    let begin = Instant::now();
    assert_eq!(connection.ask(&format!("SET {lost} 2")), down);
    assert_eq!(connection.ask(&format!("MGET {kept} {lost}")), down);
    assert!(begin.elapsed() < Duration::from_secs(5), "it waited for the deadline");
    assert_eq!(connection.ask(&format!("INCR {kept}")), Reply::Integer(2));
    // The lost group has no dump, so the cluster is not stopped in order.
}
