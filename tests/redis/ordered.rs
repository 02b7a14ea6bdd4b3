//! Transactions across shards with `coord --redis-multi ordered`.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::common::process::{self, Signal};
use crate::common::{Cluster, TIMEOUT, wait_until};
use crate::resp::{Connection, Reply, servers};

/// Sends commands as a transaction, and returns the reply to EXEC.
fn execute(connection: &mut Connection, lines: &[&str]) -> Reply {
    let all = [&["MULTI"], lines, &["EXEC"]].concat();
    connection.send(&all);
    assert_eq!(connection.receive(), Some(Reply::ok()));
    for line in lines {
        assert_eq!(connection.receive(), Some(Reply::Simple("QUEUED".into())), "{line}");
    }
    connection.receive().expect("a reply")
}

/// Sets a flag at the end of a scope, also if the scope ends with a panic.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills a server, and waits until another process has taken its place.
pub(crate) fn replace(cluster: &Cluster, server: usize) {
    let killed = cluster.server_pid(server);
    process::signal(killed, Signal::KILL);
    wait_until("another process", TIMEOUT, || {
        cluster.status().servers[server].pid.is_some_and(|pid| pid != killed)
    });
    cluster.await_whole();
}

fn info(connection: &mut Connection) -> String {
    let Reply::Bulk(Some(info)) = connection.ask("INFO server") else { panic!("no text") };
    String::from_utf8(info).expect("a text")
}

#[test]
fn a_transaction_across_shards_is_executed_in_order_at_every_server() {
    let mut cluster = Cluster::builder().shards(2).flag("--redis-multi").flag("ordered").start();
    for server in servers(&cluster) {
        let mut connection = Connection::open(server);
        assert!(info(&mut connection).contains("\r\nredis_multi:ordered\r\n"));
        let sets: Vec<String> = (0..30).map(|n| format!("SET key{n} {n}")).collect();
        let mut lines: Vec<&str> = sets.iter().map(String::as_str).collect();
        lines.extend(["INCR key7", "SETRANGE key8 -1 a", "MGET key7 key8", "DBSIZE", "FLUSHDB"]);
        let Reply::Array(Some(replies)) = execute(&mut connection, &lines) else { panic!() };
        assert!(replies[..30].iter().all(|reply| *reply == Reply::ok()));
        assert_eq!(replies[30], Reply::Integer(8));
        assert_eq!(replies[31], Reply::Error("ERR offset is out of range".into()));
        let values = vec![Reply::bulk("8"), Reply::bulk("8")];
        assert_eq!(replies[32], Reply::Array(Some(values)));
        assert_eq!(replies[33..], [Reply::Integer(30), Reply::ok()]);
    }
    // A watched key of another shard, which another client changes or not.
    let addresses = servers(&cluster);
    let [mut one, mut other] = [0, 1].map(|at| Connection::open(addresses[at]));
    let keys =
        [0, 1, 2].map(|group| String::from_utf8(cluster.key_at(group, 1, "key")).expect("a text"));
    for is_changed in [true, false] {
        assert_eq!(one.ask(&format!("WATCH {} {}", keys[1], keys[2])), Reply::ok());
        if is_changed {
            assert_eq!(other.ask(&format!("SET {} 1", keys[2])), Reply::ok());
        }
        let reply =
            execute(&mut one, &[&format!("SET {} 1", keys[0]), &format!("DEL {}", keys[2])]);
        let done = Reply::Array(Some(vec![Reply::ok(), Reply::Integer(1)]));
        assert_eq!(reply, if is_changed { Reply::Array(None) } else { done });
    }
    // Without the setting, a server refuses them. Running servers keep theirs.
    cluster.forget_flags();
    cluster.kill_coordinator();
    cluster.restart_with(&["--redis-multi", "refuse"]);
    replace(&cluster, 0);
    let mut connection = Connection::open(servers(&cluster)[0]);
    assert!(info(&mut connection).contains("\r\nredis_multi:refuse\r\n"));
    assert_eq!(connection.ask("MULTI"), Reply::ok());
    assert_eq!(connection.ask(&format!("SET {} 1", keys[0])), Reply::Simple("QUEUED".into()));
    let reply = connection.ask(&format!("SET {} 1", keys[1]));
    assert!(matches!(&reply, Reply::Error(text) if text.starts_with("CROSSSLOT")), "{reply:?}");
    cluster.stop();
}

/// A server is killed again and again, and each time its keys move to another server. Every command of a transaction
/// counts once, and has a reply without an error.
#[test]
fn the_commands_of_transactions_across_shards_count_once_through_failovers() {
    let cluster = Cluster::builder().flag("--redis-multi").flag("ordered").start();
    let addresses = servers(&cluster);
    let (is_over, executed) = (AtomicBool::new(false), AtomicI64::new(0));
    std::thread::scope(|scope| {
        let _end = SetAtEnd(&is_over);
        for client in 0..4 {
            // Server 1 is killed, so its clients would lose their connections.
            let address = addresses[[0, 2][client % 2]];
            let (is_over, executed) = (&is_over, &executed);
            scope.spawn(move || {
                let mut connection = Connection::open(address);
                let lines: Vec<String> = (0..6).map(|n| format!("INCR counter{n}")).collect();
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                while !is_over.load(Ordering::Relaxed) {
                    let reply = execute(&mut connection, &lines);
                    let Reply::Array(Some(sums)) = &reply else { panic!("{reply:?}") };
                    let is_sum = |reply: &Reply| matches!(reply, Reply::Integer(_));
                    assert!(sums.len() == 6 && sums.iter().all(is_sum), "{sums:?}");
                    executed.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..2 {
            let done = executed.load(Ordering::Relaxed);
            wait_until("further transactions", TIMEOUT, || {
                executed.load(Ordering::Relaxed) > done + 100
            });
            replace(&cluster, 1);
        }
    });
    let mut connection = Connection::open(addresses[0]);
    let count = Reply::bulk(executed.load(Ordering::Relaxed).to_string());
    for n in 0..6 {
        assert_eq!(connection.ask(&format!("GET counter{n}")), count);
    }
    cluster.stop();
}
