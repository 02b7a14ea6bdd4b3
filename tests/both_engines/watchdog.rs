//! Tests of the watchdog. A server with one hung thread ends itself, and the cluster continues. A server that was
//! paused as a whole continues.

use std::time::{Duration, Instant};

use crate::common::process::Signal;
use crate::common::threads;
use crate::common::{Cluster, TIMEOUT, process, programs, wait_until};
use kv_client::{Client, OpOptions};
use kv_protocol::exit_code::ServerExit;
use kv_protocol::limits::GRACE;
use kv_protocol::status::{AlarmKind, GroupCondition};

/// Time limit, in addition to the grace, for the end of a hung process on a busy machine.
const SLACK: Duration = Duration::from_secs(4);

/// Writes to a key of every group.
#[track_caller]
fn write_everywhere(cluster: &Cluster, client: &mut Client) {
    let options = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
    for group in 0..cluster.placement().servers() {
        client.put(&cluster.key_at(group, 0, "w"), b"v", &options).expect("a put");
    }
}

/// Stops one thread of server 1 and checks that the process ends.
fn a_hung_thread_ends_its_process(thread: &str, named: &str) {
    // The exit status below shows that the server's own watchdog ends the process.
    let cluster = Cluster::builder().servers(4).shards(2).start();
    let mut client = cluster.open();
    write_everywhere(&cluster, &mut client);
    let pid = cluster.server_pid(1);
    let start = Instant::now();
    let Some(standing) = threads::stop(pid, thread) else { return };
    standing.await_end().expect("its end");
    let took = start.elapsed();
    assert!(took > GRACE / 2 && took < GRACE + SLACK, "{took:?}");
    write_everywhere(&cluster, &mut client);
    let exit = ServerExit::Stalled;
    wait_until("the coordinator to log how it ended", TIMEOUT, || {
        cluster.coord_log().contains(&format!("exit status {}: {}", exit.code(), exit.meaning()))
    });
    let log = std::fs::read_to_string(cluster.dir().join("server_1.log")).expect("its log");
    let line = log.lines().find(|line| line.contains("has been hung for")).expect("a report");
    assert!(line.contains(named), "{line}");
    assert!(
        line.contains(", activity: ") && line.contains("stopped, by a signal or a debugger"),
        "{line}"
    );
    cluster.await_whole();
    cluster.assert_serves(&cluster.server_pids());
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_server_with_a_hung_executor_ends_itself_and_is_replaced() {
    a_hung_thread_ends_its_process("shard-1", "the executor of shard 1");
}

#[test]
fn a_server_with_a_hung_coordinator_link_ends_itself_and_is_replaced() {
    a_hung_thread_ends_its_process("control", "the link to the coordinator");
}

#[test]
fn a_server_with_a_hung_orders_port_ends_itself_and_is_replaced() {
    a_hung_thread_ends_its_process("orders", "the port for the coordinator's orders");
}

#[test]
fn a_sole_holder_with_a_hung_thread_keeps_running() {
    let builder = Cluster::builder().flag("--on-double-fault").flag("isolate");
    let binary = builder.dir().join("server");
    programs::copy_server(&binary);
    let cluster = builder.server_binary(binary.clone()).start();
    let mut client = cluster.open();
    write_everywhere(&cluster, &mut client);
    let pids = cluster.server_pids();
    // Server 2 cannot be replaced, so server 1 is the only holder of its group from now on.
    std::fs::rename(&binary, binary.with_extension("away")).expect("move the server away");
    process::signal(pids[2], Signal::KILL);
    wait_until("server 1 to be the sole holder of its group", TIMEOUT, || {
        cluster.status().groups[1].condition == GroupCondition::Degraded
    });
    let options = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
    let key = cluster.key_at(1, 0, "alone");
    client.put(&key, b"here", &options).expect("a put");
    let Some(standing) = threads::stop(pids[1], "shard-0") else { return };
    wait_until("the alarm", TIMEOUT, || {
        let alarms = cluster.status().alarms;
        alarms.iter().any(|alarm| alarm.kind == AlarmKind::Stuck && alarm.text.contains("server 1"))
    });
    drop(standing);
    assert_eq!(client.get(&key, &options).expect("a get").bytes, b"here");
    assert!(process::is_alive(pids[1]));
    wait_until("the end of the alarm", TIMEOUT, || {
        cluster.status().alarms.iter().all(|alarm| alarm.kind != AlarmKind::Stuck)
    });
    let log = std::fs::read_to_string(cluster.dir().join("server_1.log")).expect("its log");
    let line = log.lines().find(|line| line.contains("has been hung for")).expect("a report");
    assert!(line.contains("the only copy of a group, so the process continues"), "{line}");
}

#[test]
fn a_server_that_was_suspended_as_a_whole_is_not_ended_by_its_watchdog() {
    let cluster = Cluster::start();
    let mut client = cluster.open();
    write_everywhere(&cluster, &mut client);
    let pids = cluster.server_pids();
    // The coordinator is killed, so that no other process declares the server dead.
    process::signal(cluster.coord_pid(), Signal::KILL);
    wait_until("the coordinator's end", TIMEOUT, || !process::is_alive(cluster.coord_pid()));
    let key = cluster.key_at(1, 0, "w");
    process::pause(pids[1]);
    let deadline = GRACE * 4;
    let options = OpOptions { deadline: Some(deadline), ..OpOptions::default() };
    client.get(&key, &options).expect_err("its server is suspended");
    process::signal(pids[1], Signal::CONT);
    write_everywhere(&cluster, &mut client);
    // The loop lasts long enough for the watchdog to check the server several times.
    let seen = Instant::now();
    wait_until("some time to pass in which it serves", TIMEOUT, || {
        client.get(&key, &OpOptions::default()).expect("a get");
        seen.elapsed() > 2 * GRACE
    });
    assert!(pids.iter().all(|&pid| process::is_alive(pid)));
    let log = std::fs::read_to_string(cluster.dir().join("server_1.log")).expect("its log");
    assert!(!log.contains("has been hung for"), "{log}");
}
