//! Tests of scans: pages, retries, servers that fail, and tokens of other clusters.

mod common;

use std::collections::BTreeSet;

use common::{Act, Fake, SOON, Seen, anytime, now, open, within};
use kv_client::{
    Client, Endpoints, Error, Expiry, Log, Options, Precondition, PutOptions, ScanEntry,
    ScanOptions, SharedClient, prefix_pattern,
};
use kv_protocol::client_message::{SCAN_VALUE_BYTES_MAX, Status, opcode};
use kv_protocol::ids::ClusterId;

const ALL: ScanOptions<'_> = ScanOptions { pattern: b"", values: false, deadlines: false };

fn fill(client: &mut Client, count: usize) -> BTreeSet<Vec<u8>> {
    let keys: BTreeSet<_> = (0..count).map(|n| format!("key:{n:04}").into_bytes()).collect();
    for key in &keys {
        client.put(key, b"v", &anytime()).unwrap();
    }
    keys
}

fn keys(entries: Vec<ScanEntry>) -> BTreeSet<Vec<u8>> {
    let count = entries.len();
    let keys: BTreeSet<_> = entries.into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys.len(), count, "a key came twice");
    keys
}

fn scanned(client: &mut Client, scan: &ScanOptions<'_>) -> Vec<ScanEntry> {
    client.scan_all(scan, &anytime()).map(Result::unwrap).collect()
}

#[test]
fn a_scan_visits_all_places_page_by_page() {
    let fake = Fake::start(3, 2);
    let mut client = open(&fake);
    let all = fill(&mut client, 200);
    assert_eq!(keys(scanned(&mut client, &ALL)), all);
    assert_eq!(client.count(&anytime()).unwrap(), 200);
    let pattern = prefix_pattern(b"key:01");
    let some = keys(scanned(&mut client, &ScanOptions { pattern: &pattern, ..ALL }));
    assert_eq!(some, (100..200).map(|n| format!("key:{n:04}").into_bytes()).collect());
    let none = ScanOptions { pattern: b"[]", ..ALL };
    assert_eq!(scanned(&mut client, &none), []);

    let (mut token, mut pages, mut done) = (0, 0, 0);
    loop {
        let page = client.scan(token, &ALL, &anytime()).unwrap();
        pages += 1;
        assert!(page.next < 1 << 53 && page.places == 6 && page.places_done >= done);
        (token, done) = (page.next, page.places_done);
        if token == 0 {
            break;
        }
    }
    assert_eq!(done, 6);
    assert!(pages >= 20, "{pages}");
}

#[test]
fn entries_have_values_versions_and_deadlines_if_these_are_requested() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let with = PutOptions { expiry: Expiry::After(60_000), ..PutOptions::default() };
    let put = client.put_with(b"short", b"v", &with, &anytime()).unwrap();
    let long = vec![7; SCAN_VALUE_BYTES_MAX + 1];
    client.put_if(b"long", &long, Precondition::None, &anytime()).unwrap();
    let scan = ScanOptions { values: true, deadlines: true, ..ALL };
    let mut entries = scanned(&mut client, &scan);
    entries.sort_by_key(|entry| entry.length);
    let [short, whole] = &entries[..] else { panic!("{entries:?}") };
    assert_eq!((&short.key[..], short.value.as_deref()), (&b"short"[..], Some(&b"v"[..])));
    assert_eq!(short.version, put.version);
    assert!(short.deadline > Some(now()));
    assert_eq!(whole.value.as_deref(), Some(&long[..]));
    assert_eq!((whole.length, whole.deadline), (long.len(), None));
    let entries = scanned(&mut client, &ALL);
    assert!(entries.iter().all(|entry| entry.value.is_none() && entry.deadline.is_none()));

    // The entry is removed after its page was read.
    fake.script(|seen: &Seen| match seen.opcode {
        opcode::GET => Act::Response(Status::NotFound),
        _ => Act::Serve,
    });
    assert_eq!(keys(scanned(&mut client, &scan)), BTreeSet::from([b"short".to_vec()]));
}

#[test]
fn a_scan_continues_when_connections_break_and_roles_change() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let all = fill(&mut client, 200);
    let mut requests = 0;
    fake.script(move |seen: &Seen| {
        requests += usize::from(seen.opcode == opcode::SCAN);
        match requests % 4 {
            1 => Act::Cut,
            2 => Act::Response(Status::Unavailable),
            3 => Act::Response(Status::Busy),
            _ => Act::Serve,
        }
    });
    let (mut found, mut token) = (Vec::new(), 0);
    for pages in 0.. {
        let page = client.scan(token, &ALL, &anytime()).unwrap();
        token = page.next;
        found.extend(page.entries);
        if pages == 2 {
            fake.promote(0, 1);
        }
        if token == 0 {
            break;
        }
    }
    assert_eq!(keys(found), all);
    fake.script(|_: &Seen| Act::Ignore);
    let error = client.scan(0, &ALL, &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(error.to_string().starts_with("scan \"\": no response"), "{error}");
}

#[test]
fn a_token_of_another_cluster_is_rejected_in_words() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fill(&mut client, 50);
    let token = client.scan(0, &ALL, &anytime()).unwrap().next;
    for other in [token ^ 1, token + (1 << 40), u64::MAX, 1] {
        let error = client.scan(other, &ALL, &anytime()).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains("begin again with 0"), "{error}");
    }
    // Another client of the cluster continues the scan.
    assert!(open(&fake).scan(token, &ALL, &anytime()).is_ok());
    fake.change_map(|map| map.cluster = ClusterId(map.cluster.0 + 1));
    let error = open(&fake).scan(token, &ALL, &anytime()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

#[test]
fn a_key_that_the_server_has_not_compared_is_compared_by_the_client() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    for key in [b"ab".repeat(500), b"ac".repeat(500)] {
        client.put(&key, b"v", &anytime()).unwrap();
    }
    let pattern = [b"*a*b".repeat(9), b"*b".to_vec()].concat();
    let found = keys(scanned(&mut client, &ScanOptions { pattern: &pattern, ..ALL }));
    assert_eq!(found, BTreeSet::from([b"ab".repeat(500)]));
}

#[test]
fn a_server_of_version_1_does_not_support_scans() {
    let fake = Fake::start(3, 1);
    fake.support_version(1);
    let mut client = open(&fake);
    let error = client.scan(0, &ALL, &anytime()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { version: 1, .. }), "{error}");
    assert!(matches!(client.count(&anytime()), Err(Error::Unsupported { .. })));
    let results: Vec<_> = client.scan_all(&ALL, &anytime()).collect();
    assert_eq!(results.len(), 1, "the iterator ends after an error");
}

#[test]
fn a_pattern_that_is_too_long_is_rejected_before_it_is_sent() {
    let fake = Fake::start(3, 1);
    let pattern = vec![b'?'; 65_536];
    let scan = ScanOptions { pattern: &pattern, ..ALL };
    let error = open(&fake).scan(0, &scan, &anytime()).unwrap_err();
    assert!(matches!(error, Error::TooBig { .. }), "{error}");
    assert_eq!(fake.seen(), []);
}

#[test]
fn threads_share_a_client_for_scans() {
    let fake = Fake::start(3, 2);
    let all = fill(&mut open(&fake), 100);
    let endpoints = Endpoints::resolve(&fake.endpoint(), &Log::default()).unwrap();
    let shared = SharedClient::with_endpoints(&endpoints, &Options::default(), 2).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let (mut found, mut token) = (Vec::new(), 0);
                loop {
                    let page = shared.scan(token, &ALL, &anytime()).unwrap();
                    found.extend(page.entries);
                    token = page.next;
                    if token == 0 {
                        break;
                    }
                }
                assert_eq!(keys(found), all);
            });
        }
    });
    assert_eq!(shared.count(&anytime()).unwrap(), 100);
}
