//! A test of a ring of seven servers.

use crate::common::load::{check_all, put_all};
use crate::common::{Cluster, process};
use kv_protocol::map::ServerState;
use kv_protocol::status::ClusterState;

#[test]
fn a_cluster_of_seven_servers_starts_serves_and_stops() {
    let cluster = Cluster::builder().servers(7).shards(2).start();
    let status = cluster.status();
    assert_eq!(status.state, ClusterState::Serving);
    assert_eq!((status.servers.len(), status.groups.len(), status.shards), (7, 7, 2));
    assert!(status.servers.iter().all(|server| server.state == ServerState::Up));
    assert!(status.groups.iter().all(|group| group.copies == 2));
    let pids = cluster.server_pids();
    assert!(pids.iter().all(|pid| process::is_alive(*pid)));

    let pairs: Vec<_> = (0..7_000)
        .map(|n| (format!("key {n}").into_bytes(), format!("value {n}").into_bytes()))
        .collect();
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    check_all(&mut client, &pairs);
    cluster.assert_serves(&pids);

    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    let entries = dumps.entries();
    assert!(pairs.iter().all(|(key, value)| entries[&key[..]].value == *value));
    assert!(dumps.primary.iter().all(|dump| dump.entries.len() > 700), "keys are spread unevenly");
    assert!(pids.iter().all(|pid| !process::is_alive(*pid)), "a server outlived the stop");
}
