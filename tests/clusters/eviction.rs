//! `--eviction`: writes far beyond the memory limit succeed, both copies stay equal, and the policy can be changed while
//! the servers run.

use std::collections::BTreeMap;

use crate::common::load::run_all;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, COORD, Ended};
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::{Error, Op, OpOptions};

/// Three servers with 16 MiB for each primary table.
const LIMIT: &str = "32M";
const VALUE: [u8; 4_000] = [9; 4_000];

/// Runs a command of `coord` for the cluster in this directory.
fn coord(cluster: &Cluster, words: &[&str]) -> Ended {
    let dir = cluster.dir().to_str().expect("a path in UTF-8");
    programs::run(COORD, [words, &["--dir", dir]].concat(), "", TIMEOUT)
}

/// Puts values under keys of a range. Returns the number of writes that were rejected because there was no room.
fn put_range(cluster: &Cluster, keys: std::ops::Range<usize>) -> usize {
    let keys: Vec<Vec<u8>> = keys.map(|n| format!("key {n}").into_bytes()).collect();
    let mut refused = 0;
    let puts = keys.iter().map(|key| Op::Put { key, value: &VALUE });
    run_all(&mut cluster.open(), puts, |place, result| match result {
        Ok(_) => {}
        Err(Error::OutOfSpace { .. }) => refused += 1,
        Err(error) => panic!("put {place}: {error}"),
    });
    refused
}

/// Returns the number of entries that the servers have evicted.
fn evicted(cluster: &Cluster) -> u64 {
    cluster.status().servers.iter().map(|server| server.evicted).sum()
}

fn entries(cluster: &Cluster) -> u64 {
    cluster.status().servers.iter().map(|server| server.primary_entries).sum()
}

#[test]
fn writes_far_beyond_the_limit_succeed_and_both_copies_are_equal() {
    let flags = ["--memory-limit", LIMIT, "--eviction", "lfu"];
    let mut cluster =
        flags.iter().fold(Cluster::builder(), |builder, flag| builder.flag(*flag)).start();
    // 160 MB into tables of 48 MiB.
    assert_eq!(put_range(&cluster, 0..40_000), 0);
    wait_until("the statistics to count every evicted entry", TIMEOUT, || {
        entries(&cluster) + evicted(&cluster) == 40_000
    });
    assert!(entries(&cluster) > 8_000, "only {} entries are left", entries(&cluster));
    assert_eq!(cluster.status().settings["eviction"], "lfu");
    assert!(cluster.status().servers.iter().all(|server| server.out_of_space == 0));
    let value = vec![1; 8 << 20];
    let mut client = cluster.open();
    // Entries that were used once make room for a key that was used more often.
    for _ in 0..5 {
        client.put(b"a long value", b"short", &OpOptions::default()).expect("a put");
    }
    client.put(b"a long value", &value, &OpOptions::default()).expect("it evicts many entries");
    assert_eq!(client.get(b"a long value", &OpOptions::default()).expect("a value").bytes, value);
    // A process that replaces another uses the policy too.
    process::signal(cluster.server_pids()[0], Signal::KILL);
    cluster.await_whole();
    assert_eq!(put_range(&cluster, 40_000..60_000), 0);
    cluster.kill_coordinator();
    cluster.forget_flags();
    cluster.restart();
    cluster.await_whole();
    assert_eq!(cluster.status().settings["eviction"], "lfu");
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
}

#[test]
fn entries_with_deadlines_make_room_for_others() {
    let flags = ["--memory-limit", LIMIT, "--eviction", "ttl"];
    let cluster =
        flags.iter().fold(Cluster::builder(), |builder, flag| builder.flag(*flag)).start();
    // No entry has a deadline, so none is evicted.
    assert!(put_range(&cluster, 0..20_000) > 1_000);
    assert_eq!(evicted(&cluster), 0);
    cluster.stop().assert_copies_agree();
}

#[test]
fn the_policy_can_be_changed_while_the_servers_run() {
    let cluster = Cluster::builder().flag("--memory-limit").flag(LIMIT).start();
    let pids = cluster.server_pids();
    assert!(put_range(&cluster, 0..20_000) > 1_000);
    let refused = coord(&cluster, &["set"]).with_code(2);
    assert!(
        refused.stderr.contains("<--memory-limit <BYTES>|--eviction <POLICY>>"),
        "either setting is enough: {refused:?}"
    );
    coord(&cluster, &["set", "--eviction", "lru"]).with_code(2);
    let set = coord(&cluster, &["set", "--eviction", "lfu"]).with_code(0);
    assert!(set.stdout.contains("--eviction is lfu from now on"), "{set:?}");
    wait_until("every write to succeed", TIMEOUT, || put_range(&cluster, 20_000..25_000) == 0);
    wait_until("evictions in the status", TIMEOUT, || evicted(&cluster) > 0);
    assert_eq!(cluster.server_pids(), pids, "a server was restarted");
    let settings: BTreeMap<_, _> = cluster.status().settings.into_iter().collect();
    assert_eq!((settings["eviction"].as_str(), settings["memory-limit"].as_str()), ("lfu", LIMIT));
    let warning = "WARNING: --eviction lfu has no effect with --memory-limit none";
    assert!(!set.stdout.contains("WARNING"), "{set:?}");
    let set = coord(&cluster, &["set", "--memory-limit", "none"]).with_code(0);
    assert!(set.stdout.contains(warning), "{set:?}");
    cluster.stop().assert_copies_agree();
}
