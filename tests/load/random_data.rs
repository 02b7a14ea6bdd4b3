//! Tests in which random bytes are written and read back through the library, and the dumps hold exactly these entries.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::common::Cluster;
use crate::common::cluster::Dumps;
use crate::common::load::{check_all, put_all};
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_testkit::random::Random;

/// Takes the lock that makes these tests run one at a time. Each fills memory as fast as it can. If the host of a
/// virtual machine does not back that memory yet, the first touch of 2 MiB takes 4.4 ms instead of 0.3 ms on the
/// executor. With both tests at once on two processors, a stream was silent for longer than a lease, and a holder was
/// removed.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Total bytes of the values of all large entries, without the few of maximum length.
const LARGE_VALUE_BYTES: usize = 150 << 20;

/// Returns the pairs with one value for each key, so that reads find what was put.
fn distinct(pairs: impl Iterator<Item = (Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    pairs.collect::<HashMap<_, _>>().into_iter().collect()
}

fn assert_dumped_exactly(dumps: &Dumps, pairs: &[(Vec<u8>, Vec<u8>)]) {
    dumps.assert_copies_agree();
    let entries = dumps.entries();
    assert_eq!(entries.len(), pairs.len());
    for (key, value) in pairs {
        let entry = entries.get(&key[..]).unwrap_or_else(|| panic!("no entry for {key:?}"));
        assert!(entry.value == *value, "another value was dumped for {key:?}");
    }
}

#[test]
fn a_hundred_thousand_random_binary_keys_are_read_back_and_dumped_exactly() {
    let _alone = alone();
    let mut random = Random::announced();
    let pairs = distinct((0..100_000).map(|_| {
        let (key, value) = (random.length(1, 64), random.length(0, 256));
        (random.bytes(key), random.bytes(value))
    }));
    let cluster = Cluster::builder().shards(2).start();
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    check_all(&mut client, &pairs);
    assert_dumped_exactly(&cluster.stop(), &pairs);
}

#[test]
fn two_hundred_keys_with_values_up_to_the_limits_are_read_back_and_dumped_exactly() {
    let _alone = alone();
    let mut random = Random::announced();
    let mut left = LARGE_VALUE_BYTES;
    let pairs = distinct((0..200).map(|n| {
        // The first lengths are the limits themselves. The others are random, with every order of magnitude equally
        // likely.
        let (key, value) = match n {
            0 => (MAX_KEY_BYTES, MAX_VALUE_BYTES),
            1 => (1, MAX_VALUE_BYTES),
            2 => (MAX_KEY_BYTES, 0),
            _ => (random.length(2, MAX_KEY_BYTES), (1 << 24) >> random.length(0, 12)),
        };
        let value = match n {
            0..=2 => value,
            _ => random.length(value / 2, value).min(left / 8),
        };
        left = left.saturating_sub(value);
        (random.bytes(key), random.bytes(value))
    }));
    let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!((100 << 20..1 << 30).contains(&bytes), "{bytes} bytes in all");
    let cluster = Cluster::builder().shards(2).start();
    let mut client = cluster.open();
    put_all(&mut client, &pairs);
    check_all(&mut client, &pairs);
    assert_dumped_exactly(&cluster.stop(), &pairs);
}
