//! Tests in which one or all servers receive a stop signal. No data is lost, and an exit after complete dumps is not a
//! fault.

use std::fs;

use crate::common::load::{check_all, put_all};
use crate::common::process::{self, Signal};
use crate::common::{Cluster, TIMEOUT, wait_until};

type Pair = (Vec<u8>, Vec<u8>);

/// Returns enough data in one group that its dump takes longer than the failure timeout.
fn large(cluster: &Cluster, group: u16, count: usize) -> Vec<Pair> {
    let key = |n| cluster.key_at(group, 0, &format!("large {n} "));
    (0..count)
        .map(|n| (key(n), vec![u8::try_from(n % 251).expect("it is small"); 1 << 20]))
        .collect()
}

fn small(count: usize) -> Vec<Pair> {
    (0..count)
        .map(|n| (format!("key {n}").into_bytes(), format!("value {n}").into_bytes()))
        .collect()
}

#[track_caller]
fn assert_no_fault(log: &str) {
    for words in ["LOST", "a second fault"] {
        assert!(!log.contains(words), "{words:?} in {log}");
    }
}

#[test]
fn a_server_that_leaves_with_a_large_dump_hands_over_first_and_no_copy_is_lost() {
    let cluster = Cluster::start();
    let pairs = [large(&cluster, 1, 80), small(500)].concat();
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    let pids = cluster.server_pids();
    process::signal(pids[1], Signal::TERM);
    wait_until("the server to exit", TIMEOUT, || !process::is_alive(pids[1]));
    // The other holders of the keys serve them.
    check_all(&mut client, &pairs);
    cluster.await_whole();
    assert_eq!(cluster.server_pid(0), pids[0], "server 0 was replaced");
    assert_eq!(cluster.server_pid(2), pids[2], "server 2 was replaced");
    let log = cluster.coord_log();
    assert!(log.contains("server 1 received a stop signal"), "{log}");
    assert_no_fault(&log);
    check_all(&mut client, &pairs);
}

#[test]
fn servers_that_are_stopped_at_almost_the_same_time_write_dumps_that_restore_all_data() {
    for apart in [false, true] {
        let mut cluster = Cluster::start();
        let pairs = [large(&cluster, 0, 24), small(500)].concat();
        put_all(&mut cluster.open(), &pairs);
        let pids = cluster.server_pids();
        for &pid in &pids {
            process::signal(pid, Signal::TERM);
            if apart {
                // The next server receives the signal while this one is leaving.
                let told =
                    format!("server {}", pids.iter().position(|p| *p == pid).expect("its place"));
                wait_until("the coordinator to receive the request", TIMEOUT, || {
                    cluster.coord_log().contains(&format!("{told} received a stop signal"))
                });
            }
        }
        cluster.await_end(0);
        assert!(!pids.iter().any(|pid| process::is_alive(*pid)));
        assert_no_fault(&cluster.coord_log());
        let restored = Cluster::builder().restore(cluster.into_dir()).start();
        check_all(&mut restored.open(), &pairs);
    }
}

#[test]
fn servers_that_exit_while_their_coordinator_is_paused_can_be_restored() {
    // The coordinator is paused for longer than the orphan timeout.
    let mut cluster = Cluster::builder().flag("--orphan-timeout").flag("1").start();
    let pairs = small(2_000);
    put_all(&mut cluster.open(), &pairs);
    let pids = cluster.server_pids();
    process::signal(cluster.coord_pid(), Signal::STOP);
    let port = cluster.ready.servers_port;
    for &pid in &pids {
        process::cut_connections(pid, port);
    }
    // The servers have ended, but the paused coordinator has not waited for them yet.
    wait_until("every server to exit", TIMEOUT, || pids.iter().all(|pid| process::has_ended(*pid)));
    process::signal(cluster.coord_pid(), Signal::CONT);
    cluster.await_end(0);
    let log = cluster.coord_log();
    assert!(!log.contains("a second fault"), "{log}");
    let restored = Cluster::builder().restore(cluster.into_dir()).start();
    check_all(&mut restored.open(), &pairs);
}

#[test]
fn dumps_of_earlier_runs_are_never_overwritten_and_a_start_names_the_files_it_renames() {
    let mut dir = None;
    for run in 0..3 {
        let builder = Cluster::builder();
        let cluster = match dir.take() {
            Some(dir) => builder.in_dir(dir).start(),
            None => builder.start(),
        };
        put_all(&mut cluster.open(), &[(format!("of run {run}").into_bytes(), b"v".to_vec())]);
        let errors = cluster.coord_log();
        assert_eq!(errors.contains("starts EMPTY"), run > 0, "{errors}");
        dir = Some(cluster.stop_and_keep().1);
    }
    let dir = dir.expect("a run");
    let holds = |suffix: &str, run: usize| {
        let names = (0..3).map(|n| format!("server_{n}.primary{suffix}"));
        let key = format!("\"of run {run}\"");
        let texts = names.map(|name| fs::read_to_string(dir.path().join(name)).expect("a dump"));
        assert_eq!(texts.filter(|text| text.contains(&key)).count(), 1, "{suffix} {run}");
        let state = dir.path().join(format!("coordinator.state{suffix}"));
        assert!(state.exists(), "{}", state.display());
    };
    holds("", 2);
    holds(".old", 1);
    holds(".old.2", 0);
}
