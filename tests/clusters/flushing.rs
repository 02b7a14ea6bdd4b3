//! `coord flush`: every key of a running cluster is removed, also under load and if a server dies meanwhile.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::load::run_all;
use crate::common::process::{self, Signal};
use crate::common::programs::{self, COORD, Ended};
use crate::common::{Cluster, TIMEOUT, wait_until};
use kv_client::{Error, Op, OpOptions};

/// The longest wait of a client while one server is killed.
const LONGEST_WAIT: Duration = Duration::from_secs(6);

/// Runs `coord flush` for the cluster in this directory.
fn flush(cluster: &Cluster, words: &[&str]) -> Ended {
    let dir = cluster.dir().to_str().expect("a path in UTF-8");
    programs::run(COORD, [&["flush"], words, &["--dir", dir]].concat(), "", TIMEOUT)
}

fn json(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn anytime() -> OpOptions {
    OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() }
}

fn fill(cluster: &Cluster, count: usize) {
    let keys: Vec<Vec<u8>> = (0..count).map(|n| format!("key {n}").into_bytes()).collect();
    let puts = keys.iter().map(|key| Op::Put { key, value: b"old" });
    run_all(&mut cluster.open(), puts, |place, result| {
        result.unwrap_or_else(|error| panic!("put {place}: {error}"));
    });
}

/// Waits until the heartbeats report this number of keys.
fn await_entries(cluster: &Cluster, count: u64) {
    let entries = || cluster.status().groups.iter().map(|group| group.entries).sum::<u64>();
    wait_until("the number of keys in the status", TIMEOUT, || entries() == count);
}

#[test]
fn without_yes_nothing_is_removed_and_the_message_has_the_numbers() {
    let cluster = Cluster::builder().shards(2).start();
    fill(&cluster, 1_000);
    await_entries(&cluster, 1_000);
    let refused = flush(&cluster, &[]).with_code(2);
    let words =
        "every key: about 1000 on 3 servers, as of the servers' last reports; nothing was removed";
    assert!(refused.stderr.contains(words), "{refused:?}");
    assert!(refused.stderr.contains("repeat the command with --yes"), "{refused:?}");
    let refused = json(&flush(&cluster, &["--json"]).with_code(2));
    assert_eq!((&refused["outcome"], &refused["keys"]), (&"refused".into(), &1_000.into()));
    assert_eq!(cluster.open().count(&anytime()).expect("a count"), 1_000);

    let done = flush(&cluster, &["--yes"]).with_code(0);
    let words = "removed 1000 keys from 6 shards on 3 servers in ";
    assert!(done.stdout.starts_with(words), "{done:?}");
    let mut client = cluster.open();
    assert_eq!(client.count(&anytime()).expect("a count"), 0);
    client.put(b"key 1", b"new", &anytime()).expect("a put");
    let summary = json(&flush(&cluster, &["--yes", "--json"]).with_code(0));
    let expected = [
        ("outcome", Value::from("done")),
        ("removed", 1.into()),
        ("removed_is_exact", true.into()),
        ("shards", 6.into()),
        ("shards_done", 6.into()),
        ("servers", 3.into()),
    ];
    for (field, value) in expected {
        assert_eq!(summary[field], value, "{field}: {summary}");
    }
    cluster.stop().assert_copies_agree();
}

#[test]
fn clients_are_served_during_a_flush_and_it_survives_the_death_of_a_server() {
    const KEYS: usize = 400_000;
    let cluster = Cluster::builder().shards(2).start();
    fill(&cluster, KEYS);
    await_entries(&cluster, KEYS as u64);
    let is_over = AtomicBool::new(false);
    let (summary, longest) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let (mut client, mut longest, mut n) = (cluster.open(), Duration::ZERO, 0_u64);
            while !is_over.load(Ordering::Relaxed) {
                let (key, value) = (format!("load {}", n % 100), n.to_string());
                let start = Instant::now();
                client.put(key.as_bytes(), value.as_bytes(), &anytime()).expect("a put");
                match client.get(key.as_bytes(), &anytime()) {
                    Ok(got) => assert_eq!(got.bytes, value.as_bytes(), "{key}"),
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => panic!("get {key}: {error}"),
                }
                longest = longest.max(start.elapsed());
                n += 1;
            }
            longest
        });
        let kill = scope.spawn(|| {
            let entries = || cluster.status().groups.iter().map(|g| g.entries).sum::<u64>();
            wait_until("the flush to begin", TIMEOUT, || entries() < KEYS as u64 - 10_000);
            let left = entries();
            process::signal(cluster.server_pid(1), Signal::KILL);
            left
        });
        let summary = json(&flush(&cluster, &["--yes", "--json"]).with_code(0));
        let left = kill.join().expect("no panic");
        assert!(left > 0, "the flush was over before the kill");
        is_over.store(true, Ordering::Relaxed);
        (summary, load.join().expect("no panic"))
    });
    assert_eq!(summary["shards_done"], 6, "{summary}");
    assert!(longest < LONGEST_WAIT, "{longest:?}");
    // Only keys that were written meanwhile may be left, on all copies.
    let mut client = cluster.open();
    let left: Vec<_> = client.scan_all(&Default::default(), &anytime()).collect();
    for entry in left {
        let entry = entry.expect("an entry");
        assert!(entry.key.starts_with(b"load "), "{:?}", String::from_utf8_lossy(&entry.key));
    }
    cluster.await_whole();
    let summary = json(&flush(&cluster, &["--yes", "--json"]).with_code(0));
    assert_eq!(summary["removed_is_exact"], true, "{summary}");
    assert_eq!(client.count(&anytime()).expect("a count"), 0);
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_flush_without_progress_fails_and_names_the_shards_that_are_not_done() {
    let cluster = Cluster::builder().flag("--failure-timeout").flag("30").start();
    fill(&cluster, 1_000);
    await_entries(&cluster, 1_000);
    let pid = cluster.server_pid(1);
    process::signal(pid, Signal::STOP);
    let failed = flush(&cluster, &["--yes", "--timeout", "1"]);
    process::signal(pid, Signal::CONT);
    let failed = failed.with_code(1);
    for words in ["no progress for 1 s", "not done: ", "shard 0 of group 1", "is safe"] {
        assert!(failed.stderr.contains(words), "no {words:?} in {failed:?}");
    }
    let summary = json(&flush(&cluster, &["--yes", "--json"]).with_code(0));
    assert_eq!(summary["outcome"], "done", "{summary}");
    assert_eq!(cluster.open().count(&anytime()).expect("a count"), 0);
    cluster.stop().assert_copies_agree();
}

#[test]
fn an_interrupted_flush_names_the_shards_that_are_not_done() {
    let cluster = Cluster::builder().flag("--failure-timeout").flag("30").start();
    fill(&cluster, 1_000);
    await_entries(&cluster, 1_000);
    let pid = cluster.server_pid(1);
    process::signal(pid, Signal::STOP);
    let mut command = Command::new(COORD);
    command.args(["flush", "--yes", "--json", "--dir"]).arg(cluster.dir());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("coord");
    let has_begun = || cluster.coord_log().contains("flush: removing every key, about 1000");
    wait_until("the flush to begin", TIMEOUT, has_begun);
    process::signal(child.id(), Signal::INT);
    let ended = child.wait_with_output().expect("its output");
    process::signal(pid, Signal::CONT);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    let said = String::from_utf8_lossy(&ended.stderr);
    for words in ["interrupted; ", "not done: ", "shard 0 of group 1", "is safe"] {
        assert!(said.contains(words), "no {words:?} in {said}");
    }
    let summary: Value = serde_json::from_slice(&ended.stdout).expect("a line of JSON");
    assert_eq!(summary["outcome"], "interrupted", "{summary}");
    flush(&cluster, &["--yes"]).with_code(0);
    assert_eq!(cluster.open().count(&anytime()).expect("a count"), 0);
    cluster.stop().assert_copies_agree();
}

#[test]
fn without_a_coordinator_nothing_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a path in UTF-8");
    let failed = programs::run(COORD, ["flush", "--yes", "--dir", path], "", TIMEOUT).with_code(1);
    assert!(failed.stderr.contains("no coordinator runs in"), "{failed:?}");
}
