//! The dumps of a stop: two equal copies of exactly what was written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::common::load::run_all;
use crate::common::{Cluster, wait_until};
use kv_client::{Error, Op, OpOptions, Options};
use kv_protocol::ids::SequenceNumber;
use kv_testkit::random::Random;

const WRITERS: usize = 16;
/// The number of keys of each writer: few, so that each key is rewritten often.
const KEYS_OF_A_WRITER: usize = 8;

#[test]
fn after_a_stop_the_dumps_hold_the_last_value_of_every_key_and_no_deleted_key() {
    let cluster = Cluster::builder().shards(2).start();
    let mut random = Random::announced();
    let mut client = cluster.open();
    let mut last: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    // Two writes of one key that are in flight at the same time have no order. So each key occurs at most once in a
    // round, and a round begins after the previous one has ended.
    for round in 0..5u8 {
        let keys: Vec<Vec<u8>> =
            (0..2_000).map(|n| format!("key \0\"{n}\\").into_bytes()).collect();
        let values: Vec<Vec<u8>> =
            keys.iter().map(|_| [vec![round], random.bytes(20)].concat()).collect();
        let deleted: Vec<bool> =
            keys.iter().map(|key| last.contains_key(key) && random.below(5) == 0).collect();
        let operations = keys.iter().zip(&values).zip(&deleted).map(|((key, value), deleted)| {
            if *deleted { Op::Delete { key } } else { Op::Put { key, value } }
        });
        run_all(&mut client, operations, |place, result| {
            let outcome = result.unwrap_or_else(|error| panic!("operation {place}: {error}"));
            assert_eq!(outcome.copies, 2);
        });
        for ((key, value), deleted) in keys.into_iter().zip(values).zip(deleted) {
            if deleted {
                last.remove(&key);
            } else {
                last.insert(key, value);
            }
        }
    }
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    let entries = dumps.entries();
    assert_eq!(entries.len(), last.len());
    for (key, value) in &last {
        assert_eq!(entries.get(&key[..]).map(|entry| &entry.value), Some(value), "{key:?}");
    }
}

/// The state of one key as recorded by its writer when the cluster has stopped.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last write with the response OK: its number (also its value) and its version.
    responded: Option<(u64, SequenceNumber)>,
    /// The last write that was attempted.
    tried: u64,
}

#[test]
fn every_write_acknowledged_before_a_stop_is_in_both_dumps() {
    let cluster = Cluster::builder().shards(2).start();
    let endpoint = cluster.endpoint();
    let coord = cluster.coord_pid();
    let (known, cluster) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let endpoint = &endpoint;
                scope.spawn(move || write_until_refused(endpoint, writer, coord))
            })
            .collect();
        // Every writer is active when the stop begins.
        wait_until("20,000 writes", crate::common::TIMEOUT, || {
            cluster.status().groups.iter().map(|group| group.entries).sum::<u64>()
                == (WRITERS * KEYS_OF_A_WRITER) as u64
                && cluster.status().servers.iter().map(|s| s.requests).sum::<u64>() > 20_000
        });
        let stopped = cluster.stop();
        let known: HashMap<Vec<u8>, Known> =
            writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect();
        (known, stopped)
    });
    cluster.assert_copies_agree();
    let entries = cluster.entries();
    for (key, known) in &known {
        let (responded, version) = known.responded.expect("every key was written");
        let entry = entries.get(&key[..]).unwrap_or_else(|| panic!("{key:?} is not in the dumps"));
        let found = u64::from_le_bytes(entry.value[..].try_into().expect("a writer's value"));
        assert!(
            (responded..=known.tried).contains(&found) && entry.sn >= version,
            "{key:?}: {found} at {} was dumped; {known:?}",
            entry.sn
        );
    }
    assert_eq!(entries.len(), known.len(), "other keys are in the dumps");
}

/// Writes growing numbers to a few keys, one write after the other, until the cluster has stopped.
fn write_until_refused(endpoint: &str, writer: usize, coord: u32) -> Vec<(Vec<u8>, Known)> {
    let options = Options { deadline: Duration::from_secs(2), ..Options::default() };
    let mut client = kv_client::Client::open(endpoint, options).expect("open a client");
    let mut keys: Vec<(Vec<u8>, Known)> = (0..KEYS_OF_A_WRITER)
        .map(|n| (format!("writer {writer} key {n}").into_bytes(), Known::default()))
        .collect();
    let give_up = Instant::now() + 2 * crate::common::TIMEOUT;
    for (number, place) in (1..).zip((0..KEYS_OF_A_WRITER).cycle()) {
        assert!(Instant::now() < give_up, "the cluster never rejected a write");
        let (key, known) = &mut keys[place];
        let tried_before = std::mem::replace(&mut known.tried, number);
        match client.put(key, &u64::to_le_bytes(number), &OpOptions::default()) {
            Ok(written) => known.responded = Some((number, written.version)),
            Err(Error::InDoubt { .. }) => break,
            Err(Error::Unavailable { .. }) => {
                // The library has reported that this write was not done.
                known.tried = tried_before;
                break;
            }
            Err(error) => panic!("writer {writer}, write {number}: {error}"),
        }
    }
    wait_until("the coordinator's end", crate::common::TIMEOUT, || {
        !crate::common::process::is_alive(coord)
    });
    keys
}
