//! Tests on a narrow link, on which the longest values take longer than a lease. No server is removed because of that.
//!
//! ```text
//!   a network namespace of the test: all traffic of the cluster and its clients uses the loopback
//!   device, which carries 50 Mb/s
//! ```
//!
//! Requires root; without it, each test reports that it was skipped.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::process::{self, Signal};
use crate::common::{Cluster, TIMEOUT, skipped, wait_for};
use kv_client::OpOptions;
use kv_protocol::limits::MAX_VALUE_BYTES;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The rate of the link in the syntax of tc(8).
const NARROW: &str = "rate 50mbit burst 128kb latency 50ms";
/// The longest time that a read of a short value may wait for a lease on a busy machine.
const READ_LIMIT: Duration = Duration::from_secs(1);
/// Interval between two reads.
const PACE: Duration = Duration::from_millis(20);

/// Runs a program that configures the network of this thread.
fn run(line: &str) -> Result<(), String> {
    let mut words = line.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| format!("{line}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    output.status.success().then_some(()).ok_or_else(|| format!("{line}: {}", said.trim()))
}

/// Moves this thread, and the processes that it starts, into a new network namespace. The namespace
/// disappears with its last process.
fn enter_network() -> Result<(), String> {
    // SAFETY: no descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(|error| error.to_string())?;
    run("ip link set lo up mtu 1500")?;
    // Checks that the rate can be limited.
    narrow()?;
    run("tc qdisc del dev lo root")
}

fn narrow() -> Result<(), String> {
    run(&format!("tc qdisc replace dev lo root tbf {NARROW}"))
}

/// Starts a cluster in such a namespace. If that is not possible, prints a message and returns `None`.
fn start() -> Option<Cluster> {
    if let Err(reason) = enter_network() {
        skipped(&format!("cannot create a narrow link (requires root): {reason}"));
        return None;
    }
    Some(Cluster::start())
}

fn options(limit: Duration) -> OpOptions {
    OpOptions { deadline: Some(limit), ..OpOptions::default() }
}

/// Writes a value of `bytes` bytes under a key of the first group, and reads it back `reads` times.
#[track_caller]
fn write_and_read(cluster: &Cluster, name: &str, bytes: usize, reads: usize) {
    let mut client = cluster.open();
    let (key, value) = (cluster.key_at(0, 0, name), vec![bytes.to_le_bytes()[2]; bytes]);
    client.put(&key, &value, &options(TIMEOUT)).expect("a put of a long value");
    for _ in 0..reads {
        let read = client.get(&key, &options(TIMEOUT)).expect("a get of a long value");
        assert!(read.bytes == value, "a value of {} bytes was changed", read.bytes.len());
    }
}

/// Reads a short value of the first group repeatedly until `stop` is set. Returns the number of
/// reads.
#[track_caller]
fn read_on(cluster: &Cluster, key: &[u8], stop: &AtomicBool) -> usize {
    let mut client = cluster.open();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let read = client.get(key, &options(READ_LIMIT)).expect("a get of a short value");
        assert_eq!(read.bytes, b"short");
        std::thread::sleep(PACE);
        count += 1;
    }
    count
}

/// Stops the reader, even if the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn long_values_on_a_narrow_link_change_no_view_and_delay_no_reader() {
    let Some(cluster) = start() else { return };
    let short = cluster.key_at(0, 0, "short");
    cluster.open().put(&short, b"short", &OpOptions::default()).expect("a put");
    narrow().expect("make the link narrow");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_on(&cluster, &short, &stop));
        let until_here = Stop(&stop);
        let other = scope.spawn(|| write_and_read(&cluster, "other", MAX_VALUE_BYTES / 4, 8));
        write_and_read(&cluster, "longest", MAX_VALUE_BYTES, 1);
        other.join().expect("the other writer");
        drop(until_here);
        assert!(reader.join().expect("the reader") > 50);
    });
    for group in cluster.status().groups {
        assert_eq!(group.view.0, 1, "the view has changed: {group:?}");
    }
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_copy_of_long_values_over_a_narrow_link_continues_while_another_value_is_written() {
    let Some(cluster) = start() else { return };
    for name in ["one", "two"] {
        write_and_read(&cluster, name, MAX_VALUE_BYTES / 2, 0);
    }
    narrow().expect("make the link narrow");
    process::signal(cluster.server_pid(1), Signal::KILL);
    // On a busy link, too many of the first packets may be lost for the candidate's timeout. Then the copy begins
    // again.
    let view = wait_for("a part of the copy", TIMEOUT, || {
        let group = cluster.status().groups.swap_remove(0);
        group.copy.filter(|copy| copy.bytes >= 1 << 20).map(|_| group.view)
    });
    write_and_read(&cluster, "three", MAX_VALUE_BYTES, 1);
    cluster.await_whole();
    let log = cluster.coord_log();
    assert_eq!(cluster.status().groups[0].view.0, view.0 + 1, "the copy began again: {log}");
    cluster.stop().assert_copies_agree();
}
