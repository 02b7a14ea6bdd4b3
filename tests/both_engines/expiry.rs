//! Entries with deadlines while servers are killed.

use std::collections::BTreeSet;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::common::process::Signal;
use crate::common::{Cluster, TIMEOUT, process};
use kv_client::{Client, Error, Expiry, OpOptions, PutOptions};

/// The number of keys with a short lifetime.
const BRIEF: u64 = 150;
/// The shortest of these lifetimes in milliseconds, and the difference of each to the next one.
const LIFETIMES_MS: (u64, u64) = (200, 12);
/// The permitted difference of two readings of the wall clock of this machine, in milliseconds.
const MARGIN_MS: u64 = 10;

fn put(client: &mut Client, key: &[u8], expiry: Expiry) {
    let with = PutOptions { expiry, ..PutOptions::default() };
    client.put_with(key, b"value", &with, &OpOptions::default()).expect("a put");
}

fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    u64::try_from(since.as_millis()).expect("a time before the year 10000")
}

/// Reads all keys once, and records those that are absent. A key that was absent before must be absent.
fn read(client: &mut Client, keys: &[Vec<u8>], absent: &mut BTreeSet<Vec<u8>>) {
    for key in keys {
        let start = wall_ms();
        match client.get_with_deadline(key, &OpOptions::default()) {
            Ok(entry) => {
                let name = String::from_utf8_lossy(key);
                assert!(!absent.contains(key), "{name} came back after it was seen expired");
                let deadline = entry.deadline.expect("a deadline").millis();
                assert!(start < deadline + MARGIN_MS, "{name} outlived its deadline");
            }
            Err(Error::NotFound { .. }) => drop(absent.insert(key.clone())),
            Err(error) => panic!("read {}: {error}", String::from_utf8_lossy(key)),
        }
    }
}

#[test]
fn a_key_seen_expired_is_never_seen_again_without_a_write_although_its_primary_is_killed() {
    let cluster = Cluster::start();
    let mut client = cluster.open();
    let key_of = |name: &str, number: u64| cluster.key_at(1, 0, &format!("{name}-{number}"));
    let brief: Vec<Vec<u8>> = (0..BRIEF).map(|number| key_of("brief", number)).collect();
    let long: Vec<Vec<u8>> = (0..10).map(|number| key_of("long", number)).collect();
    for key in &long {
        put(&mut client, key, Expiry::After(600_000));
    }
    for (key, number) in brief.iter().zip(0..) {
        let (least, step) = LIFETIMES_MS;
        put(&mut client, key, Expiry::After(least + step * number));
    }
    let (start, mut absent, mut was_killed) = (Instant::now(), BTreeSet::new(), false);
    while absent.len() < brief.len() {
        assert!(start.elapsed() < TIMEOUT, "only {} keys have expired", absent.len());
        read(&mut client, &brief, &mut absent);
        if !was_killed && absent.len() >= brief.len() / 3 {
            assert!(absent.len() < brief.len(), "all keys expired before the failover");
            process::signal(cluster.server_pid(1), Signal::KILL);
            was_killed = true;
        }
    }
    cluster.await_whole();
    // The entries that the replacement has received are those of the other holder.
    process::signal(cluster.server_pid(2), Signal::KILL);
    read(&mut client, &brief, &mut absent);
    cluster.await_whole();
    read(&mut client, &brief, &mut absent);
    for key in &long {
        let entry = client.get_with_deadline(key, &OpOptions::default()).expect("a get");
        assert!(entry.deadline.is_some(), "a failover keeps deadlines");
    }
    put(&mut client, &brief[0], Expiry::Never);
    let again = client.get(&brief[0], &OpOptions::default()).expect("only a write brings it back");
    assert_eq!(again.bytes, b"value");
    cluster.stop().assert_copies_agree();
}
