//! Tests of scans of a cluster whose servers fail and whose tables change meanwhile.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::common::process;
use crate::common::{Cluster, TIMEOUT};
use kv_client::update::{Action, Update};
use kv_client::{Client, Error, OpOptions, ScanOptions};

const KEYS: usize = 20_000;

fn anytime() -> OpOptions {
    OpOptions { deadline: Some(TIMEOUT), ..OpOptions::default() }
}

fn name(number: usize) -> Vec<u8> {
    format!("key:{number:05}").into_bytes()
}

fn fill(client: &mut Client) {
    let (mut done, mut completions) = (0, Vec::new());
    let mut next = 0;
    while done < KEYS {
        while next < KEYS && client.in_flight() < 512 {
            let put = [Update::new(Action::Put(b"value"))];
            let key = name(next);
            client
                .submit(kv_client::Op::Update { key: &key, updates: &put }, &anytime(), 0)
                .expect("room in the window");
            next += 1;
        }
        done += client.poll(TIMEOUT, &mut completions).expect("a poll");
        for completion in completions.drain(..) {
            completion.result.expect("a put");
        }
    }
}

/// Scans everything, and calls `at_page` after each page. Returns the keys, with repetitions.
fn scan(
    client: &mut Client,
    options: &ScanOptions<'_>,
    mut at_page: impl FnMut(&mut Client, usize),
) -> Vec<Vec<u8>> {
    let (mut found, mut token) = (Vec::new(), 0);
    for pages in 1.. {
        let page = client.scan(token, options, &anytime()).expect("a page");
        assert!(page.next < 1 << 53, "{}", page.next);
        found.extend(page.entries.into_iter().map(|entry| entry.key));
        token = page.next;
        if token == 0 {
            break;
        }
        at_page(client, pages);
    }
    found
}

#[test]
fn every_key_comes_once_although_servers_are_killed_during_the_scan() {
    let cluster = Cluster::builder().shards(2).start();
    let mut client = cluster.open();
    fill(&mut client);
    let mut kills = [(2, 0), (9, 1), (16, 2)].into_iter().peekable();
    let mut added = 0;
    let found = scan(&mut client, &ScanOptions::default(), |client, pages| {
        if let Some((_, server)) = kills.next_if(|(page, _)| *page == pages) {
            cluster.await_whole();
            process::signal(cluster.server_pid(server), Signal::KILL);
        }
        // The tables grow meanwhile.
        for _ in 0..100 {
            let key = format!("new:{added}").into_bytes();
            client.put(&key, b"v", &anytime()).expect("a put");
            added += 1;
        }
    });
    assert_eq!(kills.next(), None, "the scan had too few pages for all kills");
    let old: Vec<_> = found.into_iter().filter(|key| key.starts_with(b"key:")).collect();
    let unique: BTreeSet<_> = old.iter().cloned().collect();
    assert_eq!(unique.len(), KEYS);
    assert_eq!(old.len(), KEYS, "a key came twice");
    assert_eq!(client.count(&anytime()).expect("a count"), (KEYS + added) as u64);

    let pattern = kv_client::prefix_pattern(b"key:0000");
    let some = ScanOptions { pattern: &pattern, values: true, ..ScanOptions::default() };
    let entries: Result<Vec<_>, _> = client.scan_all(&some, &anytime()).collect();
    let mut entries = entries.expect("a scan");
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let keys: Vec<_> = entries.iter().map(|entry| entry.key.clone()).collect();
    assert_eq!(keys, (0..10).map(name).collect::<Vec<_>>());
    assert!(entries.iter().all(|entry| entry.value.as_deref() == Some(b"value")));
    cluster.await_whole();
    cluster.stop().assert_copies_agree();
}

#[test]
fn a_token_of_another_cluster_is_rejected() {
    let (cluster, other) = (Cluster::start(), Cluster::start());
    let mut client = cluster.open();
    fill(&mut client);
    let token = client.scan(0, &ScanOptions::default(), &anytime()).expect("a page").next;
    let error = other.open().scan(token, &ScanOptions::default(), &anytime()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let ended = cluster.client("count\nscan key:0001? values limit 3\nscan none*\n").with_code(0);
    assert_eq!(ended.lines()[0], "20000 keys");
    assert!(ended.lines()[1..4].iter().all(|line| line.ends_with("\" \"value\"")));
    assert_eq!(ended.lines()[4..], ["no key found"]);
}
