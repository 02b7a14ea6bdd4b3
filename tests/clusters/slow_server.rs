//! Tests of servers that are only slow or short of memory: an executor pauses for a moment, or an allocation fails. No
//! process is replaced because of that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::process;
use crate::common::threads;
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::{Client, OpOptions};
use kv_protocol::status::{AlarmKind, ClusterState};

/// A pause that is certainly shorter than the grace after which the watchdog ends a process.
const WELL_BELOW_GRACE: Duration = Duration::from_millis(600);

/// Stops the writer, even if the test fails.
struct StopWriter<'a>(&'a AtomicBool);

impl Drop for StopWriter<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writes growing numbers to one key of each group until `stop` is set. Returns the last acknowledged number.
fn write_on(cluster: &Cluster, stop: &AtomicBool) -> u64 {
    let mut client = cluster.open();
    let options = OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() };
    let groups = cluster.placement().servers();
    for n in 1.. {
        for group in 0..groups {
            let key = cluster.key_at(group, 0, "n");
            client.put(&key, n.to_string().as_bytes(), &options).expect("a put");
        }
        if stop.load(Ordering::Relaxed) {
            return n;
        }
    }
    unreachable!("numbers do not end")
}

#[test]
fn executors_that_pause_in_turn_are_no_second_fault_and_lose_no_write() {
    // By default a second fault stops the cluster.
    let cluster = Cluster::start();
    let stop = AtomicBool::new(false);
    let last = std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_on(&cluster, &stop));
        let until_here = StopWriter(&stop);
        for (server, millis) in [(1, 560), (2, 590), (0, 620), (1, 655), (2, 690)] {
            let pid = cluster.server_pid(server);
            let Some(standing) = threads::stop(pid, "shard-0") else { break };
            let start = Instant::now();
            wait_until("the end of the stall", TIMEOUT, || {
                start.elapsed() >= Duration::from_millis(millis)
            });
            drop(standing);
            let stood = start.elapsed();
            cluster.await_whole();
            if stood < WELL_BELOW_GRACE {
                assert_eq!(cluster.server_pid(server), pid, "it was replaced after {stood:?}");
            }
        }
        drop(until_here);
        writer.join().expect("every write is acknowledged")
    });
    let log = cluster.coord_log();
    assert!(!log.contains("a second fault"), "{log}");
    assert_eq!(cluster.status().state, ClusterState::Serving);
    let mut client = cluster.open();
    for group in 0..cluster.placement().servers() {
        let read =
            client.get(&cluster.key_at(group, 0, "n"), &OpOptions::default()).expect("a get");
        assert_eq!(read.bytes, last.to_string().as_bytes());
    }
    cluster.stop().assert_copies_agree();
}

/// Limits the address space of a process; `None` removes the limit.
fn bound_memory(pid: u32, bytes: Option<u64>) {
    let most = bytes.unwrap_or(libc::RLIM_INFINITY);
    let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    let pid = libc::pid_t::try_from(pid).expect("a pid");
    // SAFETY: prlimit reads one structure, which outlives the call, and writes nothing.
    let done = unsafe { libc::prlimit(pid, libc::RLIMIT_AS, &limit, std::ptr::null_mut()) };
    assert_eq!(done, 0, "limit the memory of {pid}: {}", std::io::Error::last_os_error());
}

/// Returns the mapped memory of a process: the first number of proc_pid_statm(5), in pages.
fn mapped_bytes(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("its statm");
    let pages: u64 = statm.split(' ').next().and_then(|pages| pages.parse().ok()).expect("pages");
    pages * rustix::param::page_size() as u64
}

fn put(cluster: &Cluster, client: &mut Client, n: usize) -> u8 {
    let value = vec![7; 4_000];
    let key = cluster.key_at(0, 0, &format!("m{n}."));
    client.put(&key, &value, &OpOptions::default()).expect("a put").copies
}

#[test]
fn a_secondary_without_memory_is_removed_with_an_alarm_and_writes_continue() {
    let cluster = Cluster::start();
    let mut client = cluster.open();
    assert_eq!(put(&cluster, &mut client, 0), 2);
    // The limit is smaller than the next chunk of a table needs.
    let pid = cluster.server_pid(1);
    bound_memory(pid, Some(mapped_bytes(pid) + (1 << 20)));
    let copies = (1..4_000).map(|n| put(&cluster, &mut client, n));
    assert!(copies.into_iter().any(|copies| copies == 1), "no allocation failed under the limit");
    // The line and the alarm appear a moment after the removal.
    wait_until("a line of the log and an alarm", TIMEOUT, || {
        cluster.coord_log().contains("removed server 1 as secondary of group 0")
            && cluster.status().alarms.iter().any(|alarm| alarm.kind == AlarmKind::CannotFollow)
    });
    bound_memory(pid, None);
    cluster.await_whole();
    assert_eq!(cluster.server_pid(1), pid, "the process was replaced");
    assert!(process::is_alive(pid) && !cluster.coord_log().contains("a second fault"));
    cluster.stop().assert_copies_agree();
}
