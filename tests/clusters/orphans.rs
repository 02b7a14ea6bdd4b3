//! Tests of servers without a coordinator. After --orphan-timeout they dump and exit, unless they hold the only copy of
//! a group.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::common::coordinator::Lone;
use crate::common::load::put_all;
use crate::common::ports::await_map_everywhere;
use crate::common::process::Signal;
use crate::common::{Cluster, TIMEOUT, process, wait_until};
use kv_client::OpOptions;
use kv_protocol::exit_code::ServerExit;

fn kill_coordinator(cluster: &Cluster) {
    process::signal(cluster.coord_pid(), Signal::KILL);
    wait_until("the coordinator's end", TIMEOUT, || !process::is_alive(cluster.coord_pid()));
}

fn log_of(cluster: &Cluster, server: usize) -> String {
    let path = cluster.dir().join(format!("server_{server}.log"));
    std::fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn servers_dump_everything_and_exit_after_the_orphan_timeout() {
    let cluster = Cluster::builder().shards(2).flag("--orphan-timeout").flag("2").start();
    let pairs: Vec<_> = (0..500)
        .map(|n| (format!("key {n}").into_bytes(), format!("value {n}").into_bytes()))
        .collect();
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    kill_coordinator(&cluster);
    wait_until("every server to exit", TIMEOUT, || !pids.iter().any(|&pid| process::is_alive(pid)));
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    let entries = dumps.entries();
    for (key, value) in &pairs {
        assert_eq!(entries[&key[..]].value, *value);
    }
}

#[test]
fn an_orphaned_server_with_the_only_copy_of_a_group_keeps_serving() {
    let cluster = Cluster::builder().servers(4).flag("--orphan-timeout").flag("2").start();
    let keys: Vec<Vec<u8>> = (0..4).map(|group| cluster.key_at(group, 0, "k")).collect();
    let mut client = cluster.open();
    for key in &keys {
        client.put(key, b"v", &OpOptions::default()).expect("a put");
    }
    await_map_everywhere(&cluster);
    let pids = cluster.server_pids();
    process::signal(pids[1], Signal::KILL);
    // Groups 0 and 1 now have one copy each; the coordinator is killed before they have two again.
    for (sole, order) in [(0, "DROP-SECONDARY"), (2, "TAKE-OVER")] {
        wait_until("the groups of the dead server to continue with one copy", TIMEOUT, || {
            log_of(&cluster, sole).contains(order)
        });
    }
    kill_coordinator(&cluster);
    for sole in [0, 2] {
        wait_until("a sole holder to log that it stays", TIMEOUT, || {
            log_of(&cluster, sole).contains("the only copy of a group")
        });
    }
    wait_until("the server that is no sole holder to exit", TIMEOUT, || {
        !process::is_alive(pids[3])
    });
    assert!(process::is_alive(pids[0]) && process::is_alive(pids[2]));
    let names: HashSet<_> = std::fs::read_dir(cluster.dir())
        .expect("read the directory")
        .map(|file| file.expect("a file").file_name().into_string().expect("UTF-8"))
        .collect();
    assert!(names.contains("server_3.primary") && names.contains("server_3.secondary"));
    assert!(!names.contains("server_0.primary") && !names.contains("server_2.primary"));
    // Groups with a sole holder continue to serve, and a server provides the map.
    for key in &keys[..2] {
        assert_eq!(client.get(key, &OpOptions::default()).expect("a get").bytes, b"v");
    }
}

#[test]
fn a_coordinator_that_comes_back_in_time_keeps_its_server() {
    let server = Lone::start(&["--orphan-timeout", "2"]);
    let start = Instant::now();
    wait_until("twice the orphan timeout to pass", TIMEOUT, || {
        // Each time, the coordinator is down for less than the orphan timeout.
        server.admit().heartbeat();
        start.elapsed() > Duration::from_secs(4)
    });
    assert!(!server.log().contains("no coordinator at"), "{}", server.log());
}

#[test]
fn an_orphan_exits_with_its_own_code_and_one_without_an_orphan_timeout_keeps_running() {
    let mut orphan = Lone::start(&["--orphan-timeout", "1"]);
    let patient = Lone::start(&["--orphan-timeout", "0"]);
    for server in [&orphan, &patient] {
        server.admit().heartbeat();
    }
    orphan.vanish();
    assert_eq!(orphan.await_end(), Some(ServerExit::Orphaned.code().into()), "{}", orphan.log());
    assert!(orphan.log().contains("--orphan-timeout"), "{}", orphan.log());
    let start = Instant::now();
    wait_until("the server without an orphan timeout to reconnect", TIMEOUT, || {
        patient.admit().heartbeat();
        start.elapsed() > Duration::from_secs(1)
    });
}
