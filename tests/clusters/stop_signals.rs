//! Tests that repeated stop signals lose no dump.

use crate::common::process::{self, Signal};
use crate::common::{Cluster, TIMEOUT, wait_until};

/// Starts a cluster with some entries.
fn cluster_with_entries() -> Cluster {
    let cluster = Cluster::builder().in_foreground().start();
    let operations: String = (0..2_000).map(|n| format!("P \"key {n}\" \"{n}\"\n")).collect();
    cluster.client(&operations).with_code(0);
    cluster
}

#[track_caller]
fn assert_complete(cluster: &Cluster) {
    let dumps = cluster.dumps();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), 2_000);
    let log = cluster.coord_log();
    assert!(!log.contains("killed"), "{log}");
}

#[test]
fn three_sigterms_in_a_row_still_leave_complete_dumps() {
    let mut cluster = cluster_with_entries();
    for _ in 0..3 {
        process::signal(cluster.coord_pid(), Signal::TERM);
    }
    cluster.await_end(0);
    assert_complete(&cluster);
}

#[test]
fn repeated_sigterms_and_the_end_of_input_do_not_disturb_a_stop() {
    let mut cluster = cluster_with_entries();
    wait_until("the end of coord", TIMEOUT, || {
        process::signal(cluster.coord_pid(), Signal::TERM);
        process::signal(cluster.coord_pid(), Signal::HUP);
        !process::is_alive(cluster.coord_pid())
    });
    cluster.await_end(0);
    assert_complete(&cluster);

    let mut cluster = cluster_with_entries();
    drop(cluster.take_input());
    wait_until("the stop to begin", TIMEOUT, || cluster.coord_log().contains("stopping the"));
    process::signal(cluster.coord_pid(), Signal::TERM);
    cluster.await_end(0);
    assert_complete(&cluster);
}

#[test]
fn two_interrupts_within_a_second_count_as_one() {
    let mut cluster = cluster_with_entries();
    process::signal(cluster.coord_pid(), Signal::INT);
    wait_until("the stop to begin", TIMEOUT, || cluster.coord_log().contains("stopping the"));
    process::signal(cluster.coord_pid(), Signal::INT);
    cluster.await_end(0);
    assert_complete(&cluster);
}

#[test]
fn a_hung_server_is_killed_after_five_seconds_however_many_sigterms_arrive() {
    let mut cluster = cluster_with_entries();
    let hung = cluster.server_pid(1);
    process::signal(hung, Signal::STOP);
    wait_until("the end of coord", TIMEOUT, || {
        process::signal(cluster.coord_pid(), Signal::TERM);
        !process::is_alive(cluster.coord_pid())
    });
    cluster.await_end(0);
    let log = cluster.coord_log();
    assert!(log.contains(&format!("killing server 1 (pid {hung})")), "{log}");
    for (server, role) in [(0, "primary"), (0, "secondary"), (2, "primary"), (2, "secondary")] {
        cluster.dump(server, role);
    }
}
