//! Entries that are inserted in the order of their hashes, as by a copy, or by a client that stores again what a scan
//! has returned.

use super::tests::{hash_of, numbered_key, small_table};
use super::*;

/// Returns keys in ascending order of their hashes.
fn sorted(count: u64) -> Vec<[u8; 16]> {
    let mut keys: Vec<[u8; 16]> = (0..count).map(numbered_key).collect();
    keys.sort_by_key(|key| hash_of(key));
    keys
}

fn filled<'a>(keys: impl Iterator<Item = &'a [u8; 16]>) -> Table {
    let mut table = small_table();
    for key in keys {
        table.put(hash_of(key), key, b"v", None, SequenceNumber(1)).unwrap();
    }
    table
}

#[test]
fn entries_in_the_order_of_their_hashes_need_no_long_segments() {
    let keys = sorted(100_000);
    let orders: [Box<dyn Iterator<Item = &[u8; 16]>>; 2] =
        [Box::new(keys.iter()), Box::new(keys.iter().rev())];
    for order in orders {
        let table = filled(order);
        let longest = table.directory.longest_segment();
        assert!(longest <= 3 * segment::CAPACITY_MAX, "{longest} slots");
        assert!(table.directory.places() <= 4_096, "{} places", table.directory.places());
        let moved = table.directory.moved_slots();
        assert!(moved <= 3_000_000, "{moved} slots moved");
        assert!(keys.iter().all(|key| table.get(hash_of(key), key).is_some()));
    }
}

#[test]
fn removal_in_the_order_of_the_hashes_leaves_a_small_directory() {
    let keys = sorted(50_000);
    let mut table = filled(keys.iter());
    let before = table.directory.moved_slots();
    for key in &keys[..49_000] {
        table.remove(hash_of(key), key).unwrap();
    }
    let moved = table.directory.moved_slots() - before;
    assert!(moved <= 8 * 49_000, "{moved} slots moved");
    assert!(table.directory.places() <= 256, "{} places", table.directory.places());
    assert!(keys[49_000..].iter().all(|key| table.get(hash_of(key), key).is_some()));
}
