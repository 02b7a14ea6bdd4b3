//! A log that cannot be written costs the log and nothing else.

mod common;

use std::os::unix::fs::symlink;

use common::Cluster;

#[test]
fn a_cluster_whose_logs_are_on_a_full_disk_serves_and_stops_in_order() {
    let builder = Cluster::builder();
    for name in ["coord.log", "coord.err", "server_0.log", "server_0.err", "server_1.log"] {
        // Every write to it fails as on a full disk.
        symlink("/dev/full", builder.dir().join(name)).expect("make a link");
    }
    let cluster = builder.start();
    let pids = cluster.server_pids();
    cluster.assert_serves(&pids);
    cluster.stop().assert_copies_agree();
}
