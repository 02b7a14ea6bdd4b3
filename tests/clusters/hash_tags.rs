//! Tests of clusters with hash tags: keys of one tag share a shard, and can be used in one batch.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::common::cluster::Dumps;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, COORD};
use crate::common::raw::Raw;
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::{Error, OpOptions};
use kv_protocol::client_message::{Hello, Refusal, Status, Welcome, opcode};
use kv_protocol::ids::{ClientId, ClusterId, GroupId, ShardId};
use kv_protocol::placement::Placement;

/// The number of keys with one tag. By chance they would not all be in one of six places.
const KEYS: usize = 40;

fn start() -> Cluster {
    Cluster::builder().shards(2).flag("--hash-tags").start()
}

/// Executes a batch over two keys of the tag `t`, and checks its results. `{t}a` is set, and `{t}c` counts.
#[track_caller]
fn change_both(cluster: &Cluster, count: usize) {
    let ended = cluster.client(&format!("batch put {{t}}a {count}; incr {{t}}c\n")).with_code(0);
    let expected =
        [format!("value[\"{{t}}a\"] <- \"{count}\""), format!("value[\"{{t}}c\"] <- \"{count}\"")];
    // During a recovery the line also gives the number of copies.
    let lines = ended.lines();
    let lines: Vec<&str> = lines.iter().map(|line| line.trim_end_matches(" (1 copy)")).collect();
    assert_eq!(lines, expected);
}

/// Returns the groups and shards whose primary tables have keys of the tag `t`, according to their dumps.
fn places_of_tag(dumps: &Dumps) -> BTreeSet<(GroupId, ShardId)> {
    let mut places = BTreeSet::new();
    let by_tag = Placement::new(3, 2).locate(b"t");
    for (group, dump) in dumps.primary.iter().enumerate() {
        assert!(dump.header.origin.hash_tags, "group {group}");
        for entry in dump.entries.iter().filter(|entry| entry.key.starts_with(b"{t}")) {
            let place = dump.header.origin.placement(3).locate(&entry.key);
            assert_eq!((place, usize::from(place.0.0)), (by_tag, group), "{entry:?}");
            places.insert(place);
        }
    }
    places
}

#[test]
fn keys_of_one_tag_are_changed_together_through_a_kill_a_takeover_and_a_restore() {
    let mut cluster = start();
    assert!(cluster.status().hash_tags);
    let mut input = String::new();
    (0..KEYS).for_each(|n| input += &format!("put {{t}}{n} {n}\n"));
    cluster.client(&input).with_code(0);
    change_both(&cluster, 1);
    let moved = cluster.client("copy {t}a x{t}y\nrename x{t}y {t}d\nget {t}d\n").with_code(0);
    assert_eq!(moved.lines()[2], "value[\"{t}d\"] == \"1\"");
    // A pattern with braces selects keys, and does not place the request.
    let scanned = cluster.client("scan {t}*\n").with_code(0);
    assert_eq!(scanned.lines().iter().filter(|line| line.contains("{t}")).count(), KEYS + 3);

    let (group, _) = cluster.placement().locate(b"{t}a");
    let killed = cluster.server_pid(group.0.into());
    process::signal(killed, Signal::KILL);
    change_both(&cluster, 2);
    wait_until("another process", TIMEOUT, || {
        cluster.status().servers[usize::from(group.0)].pid.is_some_and(|pid| pid != killed)
    });
    cluster.await_whole();
    change_both(&cluster, 3);

    cluster.kill_coordinator();
    cluster.forget_flags();
    cluster.restart();
    assert!(cluster.status().hash_tags, "the next coordinator has forgotten the setting");
    change_both(&cluster, 4);

    let (dumps, dir) = cluster.stop_and_keep();
    dumps.assert_copies_agree();
    assert_eq!(places_of_tag(&dumps).len(), 1);

    let cluster = Cluster::builder().shards(2).in_dir(dir).flag("--resume").start();
    assert!(cluster.status().hash_tags, "the restored cluster has forgotten the setting");
    change_both(&cluster, 5);
    let port = cluster.ready.clients_port.to_string();
    let table = programs::run(COORD, ["status", "-h", "127.0.0.1", "-p", &port], "", TIMEOUT);
    assert!(table.stdout.contains("2 shards a group, hash tags"), "{table:?}");

    let (_, dir) = cluster.stop_and_keep();
    super::restore::lose_state(dir.path());
    let cluster =
        Cluster::builder().shards(2).restore(dir).flag("--without-state").flag("--force").start();
    assert!(cluster.status().hash_tags, "the dumps have not shown the setting");
    change_both(&cluster, 6);
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert_eq!(places_of_tag(&dumps).len(), 1);
    assert_eq!(dumps.entries().len(), KEYS + 3);
}

#[test]
fn the_library_changes_keys_of_one_tag_together_and_names_tags_when_it_cannot() {
    use kv_protocol::update::{Action, Update};
    let (tagged, plain) = (start(), Cluster::builder().shards(2).start());
    // By the whole keys, `{t}a` and `{t}c` are of different groups.
    let updates =
        [&b"{t}a"[..], b"{t}c"].map(|key| Update { key: Some(key), ..Update::new(Action::Add(1)) });
    let options = OpOptions::default();
    tagged.open().batch(b"{t}a", &updates, &options).expect("keys of one tag");
    let refused = plain.open().batch(b"{t}a", &updates, &options).unwrap_err();
    assert!(matches!(refused, Error::CrossShard { .. }), "{refused}");
    for words in ["--hash-tags", "{user:1}:name", "nothing was changed"] {
        assert!(refused.to_string().contains(words), "no {words:?} in: {refused}");
    }
    let ended = plain.client("rename {t}a {t}c\n").with_code(1);
    assert!(ended.stderr.contains("--hash-tags"), "{ended:#?}");
    // Keys without a tag are placed by the whole key in both clusters.
    let near = (0..).map(|n| format!("near {n}").into_bytes());
    let place = |key: &[u8]| plain.placement().locate(key);
    let near = near.into_iter().find(|key| place(key) == place(b"k")).expect("a key");
    let updates =
        [&b"k"[..], &near].map(|key| Update { key: Some(key), ..Update::new(Action::Add(1)) });
    for cluster in [&tagged, &plain] {
        cluster.open().batch(b"k", &updates, &options).expect("keys of one shard");
    }
}

/// Sends a HELLO of this version and returns the first frame of the response, with the opcode.
fn greet(address: SocketAddr, version: u16) -> (u8, Vec<u8>) {
    let mut raw = Raw::to_clients_port(address);
    let mut bytes = Vec::new();
    let hello = Hello { version, ..Hello::new(ClusterId(0), ClientId(1), ShardId(0)) };
    hello.write(&mut bytes);
    raw.send(&bytes);
    let frame = raw.frame();
    if frame.opcode == opcode::ERROR {
        assert_eq!(raw.next_frame(), None, "the connection stays open");
    }
    (frame.opcode, frame.body)
}

#[test]
fn a_client_of_version_1_is_rejected_with_the_reason_by_coordinator_and_servers() {
    let (tagged, plain) = (start(), Cluster::start());
    let addresses = |cluster: &Cluster| -> Vec<SocketAddr> {
        let servers = cluster.status().servers.into_iter().map(|server| server.clients);
        let servers = servers.map(|address| address.expect("started").parse().expect("an address"));
        servers.chain([cluster.endpoint().parse().expect("an address")]).collect()
    };
    for address in addresses(&tagged) {
        let (opcode, body) = greet(address, 1);
        assert_eq!(opcode, opcode::ERROR, "{address}");
        let refusal = Refusal::read(&body).expect("a refusal");
        assert_eq!(refusal.status, Status::Unsupported);
        for words in ["hash tags", "version 1", "version 2", "upgrade the client"] {
            assert!(refusal.reason.contains(words), "no {words:?} in: {}", refusal.reason);
        }
        let (_, body) = greet(address, 2);
        assert_eq!(Welcome::read(&body).expect("a welcome").version, 2);
    }
    for address in addresses(&plain) {
        let (_, body) = greet(address, 1);
        assert_eq!(Welcome::read(&body).expect("a welcome").version, 1);
    }
}

#[test]
fn hash_tags_are_never_added_to_a_cluster_that_has_none() {
    let mut cluster = Cluster::builder().shards(2).start();
    let pids = cluster.server_pids();
    cluster.kill_coordinator();
    let refused = cluster.run_coordinator(&["--hash-tags"]).with_code(2);
    for words in ["belongs to a running cluster without hash tags", "omit --hash-tags"] {
        assert!(refused.stderr.contains(words), "no {words:?} in: {}", refused.stderr);
    }
    cluster.restart();
    assert!(!cluster.status().hash_tags);
    cluster.assert_serves(&pids);
    let (_, dir) = cluster.stop_and_keep();
    let mut cluster =
        Cluster::builder().shards(2).in_dir(dir).flag("--resume").flag("--hash-tags").launch();
    cluster.await_end(2);
    let said = cluster.coord_errors();
    assert!(said.contains("had no hash tags") && said.contains("omit --hash-tags"), "{said}");
}
