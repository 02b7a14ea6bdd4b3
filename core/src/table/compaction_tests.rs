use std::collections::HashMap;

use proptest::prelude::*;

use super::tests::{hash_of, numbered_key, walk_all};
use super::*;
use crate::arena::HeapChunks;

/// A small chunk size, so that a table with few entries has many chunks.
const CHUNK_BYTES: usize = 256 << 10;
/// The memory limit of these small tables, in chunks.
const LIMIT_CHUNKS: usize = 48;
const LIMIT: usize = LIMIT_CHUNKS * CHUNK_BYTES;
/// The maximum length of values in these tests.
const VALUE_BYTES_MOST: usize = LIMIT / 2;

/// A table under a limit, and its expected content.
struct Bounded {
    table: Table,
    entries: HashMap<u64, (u64, usize)>,
    next_key: u64,
    version: u64,
    held_most: usize,
    /// The lowest usage at which an entry was rejected, in percent of the limit and including the rejected entry.
    refused_at: usize,
}

fn value(version: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (version.wrapping_mul(31) ^ at).to_le_bytes()[0]).collect()
}

impl Bounded {
    fn new() -> Bounded {
        let entries = HashMap::new();
        let table = Table::new(Box::new(HeapChunks::new(CHUNK_BYTES)));
        Bounded { table, entries, next_key: 0, version: 0, held_most: 0, refused_at: 100 }
    }

    /// Writes an entry, after compaction if necessary; returns `false` if the table is full.
    fn put(&mut self, key: u64, len: usize) -> bool {
        let bytes = numbered_key(key);
        loop {
            match self.table.room(LIMIT as u64, bytes.len(), len, None) {
                Room::Fits => break,
                Room::Compacting => {
                    self.table.compact_step(Pressure::Short, CompactionBudget::PRESSED);
                    self.held_most = self.held_most.max(self.table.reserved_bytes());
                }
                Room::Full => {
                    let used = self.table.used_bytes() + bytes.len() + len;
                    self.refused_at = self.refused_at.min(used * 100 / LIMIT);
                    return false;
                }
            }
        }
        self.version += 1;
        let value = value(self.version, len);
        let version = SequenceNumber(self.version);
        self.table.put(hash_of(&bytes), &bytes, &value, None, version).expect("memory");
        self.entries.insert(key, (self.version, len));
        self.held_most = self.held_most.max(self.table.reserved_bytes());
        true
    }

    fn put_new(&mut self, len: usize) -> bool {
        self.next_key += 1;
        self.put(self.next_key, len)
    }

    fn remove(&mut self, key: u64) {
        let bytes = numbered_key(key);
        self.table.remove(hash_of(&bytes), &bytes).expect("it is there");
        self.entries.remove(&key);
    }

    fn check(&self) {
        assert_eq!(self.table.len(), self.entries.len());
        assert_eq!(self.table.recount(), self.table.digest());
        for (&key, &(version, len)) in &self.entries {
            let key = numbered_key(key);
            let entry = self.table.get(hash_of(&key), &key).expect("an entry is lost");
            assert_eq!((entry.version.0, entry.value), (version, &value(version, len)[..]));
        }
        let mut walked = 0;
        walk_all(&self.table, 100, |_| walked += 1);
        assert_eq!(walked, self.entries.len());
    }

    /// Compacts until there is nothing to do; returns the bytes moved and the chunks emptied.
    fn come_to_rest(&mut self, pressure: Pressure) -> (u64, u64) {
        let before = self.table.compaction_counts();
        let mut steps = 0;
        while self.table.compact_step(pressure, CompactionBudget::BACKGROUND) {
            steps += 1;
            assert!(steps < 1_000_000, "compaction does not end");
        }
        let after = self.table.compaction_counts();
        (after.moved_bytes - before.moved_bytes, after.emptied_chunks - before.emptied_chunks)
    }
}

/// Generates sizes of entries up to several chunks. With these chunks, size classes end at 4 KiB (32 KiB with chunks
/// of 2 MiB) and runs of pages at 32 KiB (256 KiB). Larger entries are blocks.
fn sizes() -> impl Strategy<Value = Sizes> {
    let range = prop_oneof![
        3 => (0usize..200, 1usize..400).prop_map(|(from, more)| from..from + more),
        2 => (200usize..2_000, 1usize..2_000).prop_map(|(from, more)| from..from + more),
        1 => Just(0..4_000),
        2 => (4_000usize..30_000, 1usize..3_000).prop_map(|(from, more)| from..from + more),
        1 => Just(4_000..32_000),
        2 => (30_000usize..260_000, 1usize..40_000).prop_map(|(from, more)| from..from + more),
        1 => (260_000usize..VALUE_BYTES_MOST, 1usize..10_000).prop_map(|(from, more)| from..from + more),
    ];
    prop_oneof![
        3 => range.clone().prop_map(|range| Sizes(vec![range])),
        2 => prop::collection::vec(range, 2..5).prop_map(Sizes),
    ]
}

/// Sizes drawn from one or more ranges. Each range contributes about the same total number of bytes.
#[derive(Clone, Debug)]
struct Sizes(Vec<std::ops::Range<usize>>);

impl Sizes {
    fn of(&self, number: u64) -> usize {
        let spread = usize::try_from(spread(number, 7)).unwrap();
        let weight =
            |range: &std::ops::Range<usize>| 1_000_000_000 / (range.start + range.end + 50);
        let mut at = spread / 1_000 % self.0.iter().map(weight).sum::<usize>();
        for range in &self.0 {
            match at.checked_sub(weight(range)) {
                Some(rest) => at = rest,
                None => return range.start + spread % range.len(),
            }
        }
        unreachable!("the number is less than the sum of the weights")
    }
}

#[derive(Clone, Debug)]
struct Phase {
    sizes: Sizes,
    /// The number of entries per thousand that are removed afterwards, and a salt that selects them.
    removed: u64,
    salt: u64,
    /// The number per thousand of the remaining entries that are rewritten with other sizes.
    rewritten: u64,
}

fn phase() -> impl Strategy<Value = Phase> {
    let removed = prop_oneof![2 => 0u64..1_001, 1 => 850u64..990];
    (sizes(), removed, any::<u64>(), prop_oneof![2 => Just(0u64), 1 => 0u64..500])
        .prop_map(|(sizes, removed, salt, rewritten)| Phase { sizes, removed, salt, rewritten })
}

fn spread(number: u64, salt: u64) -> u64 {
    hash_of(&numbered_key(number ^ salt)).0 >> 20
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn after_any_history_nearly_the_whole_limit_is_usable_with_few_moves(
        phases in prop::collection::vec(phase(), 1..6),
        last in sizes(),
    ) {
        let mut bounded = Bounded::new();
        for phase in &phases {
            let mut number = 0;
            while bounded.put_new(phase.sizes.of(number)) {
                number += 1;
            }
            let mut keys: Vec<u64> = bounded.entries.keys().copied().collect();
            keys.sort_unstable();
            for key in keys {
                let chance = spread(key, phase.salt);
                if chance % 1_000 < phase.removed {
                    bounded.remove(key);
                } else if chance / 1_000 % 1_000 < phase.rewritten {
                    bounded.put(key, phase.sizes.of(chance));
                }
            }
            bounded.check();
        }
        let mut number = 0;
        while bounded.put_new(last.of(number)) {
            number += 1;
        }
        bounded.check();
        let refused_at = bounded.refused_at;
        prop_assert!(refused_at >= 85, "an entry was rejected at {refused_at} % of the limit");
        let most = LIMIT + LIMIT / 50 + 4 * CHUNK_BYTES;
        prop_assert!(bounded.held_most <= most, "{} chunks", bounded.held_most / CHUNK_BYTES);
        let counts = bounded.table.compaction_counts();
        let freed = bounded.table.arena.freed_bytes();
        prop_assert!(
            counts.moved_bytes <= 8 * freed + (8 * LIMIT) as u64,
            "{} bytes were moved although only {freed} were freed", counts.moved_bytes
        );
        let (moved, _) = bounded.come_to_rest(Pressure::Short);
        prop_assert!(moved <= (8 * LIMIT) as u64);
        let (moved, gained) = bounded.come_to_rest(Pressure::Short);
        prop_assert_eq!((moved, gained), (0, 0), "a table without waste is not compacted again");
        bounded.check();
    }
}

#[test]
fn entries_of_any_one_size_fill_nearly_all_of_the_limit() {
    for eighths in 1..=36 {
        for len in [eighths * CHUNK_BYTES / 8 - 100, eighths * CHUNK_BYTES / 8 + 100] {
            let mut bounded = Bounded::new();
            while bounded.put_new(len) {}
            assert!(bounded.refused_at >= 98, "{len} bytes: at {} %", bounded.refused_at);
        }
    }
}

#[test]
fn removed_small_entries_leave_room_for_larger_ones() {
    let mut bounded = Bounded::new();
    let mut number = 0;
    while bounded.put_new(200 + number * 37 % 800) {
        number += 1;
    }
    for key in 1..=bounded.next_key - 1 {
        if key % 10 != 0 {
            bounded.remove(key);
        }
    }
    while bounded.put_new(1_100 + number * 37 % 1_500) {
        number += 1;
    }
    let used = bounded.table.used_bytes();
    assert!(used * 100 >= LIMIT * 85, "{} % are used", used * 100 / LIMIT);
    bounded.check();
}

#[test]
fn the_memory_of_removed_entries_is_returned_without_any_write() {
    let mut bounded = Bounded::new();
    while bounded.put_new(300) {}
    for key in 1..bounded.next_key {
        if key % 8 != 0 {
            bounded.remove(key);
        }
    }
    let held = bounded.table.reserved_bytes();
    let used = bounded.table.used_bytes();
    assert!(held > 4 * used);
    let (moved, gained) = bounded.come_to_rest(Pressure::None);
    let held = bounded.table.reserved_bytes();
    assert!(held < 2 * used, "{held} bytes are held for {used} bytes in use");
    assert!(moved < used as u64 * 2, "{moved} bytes were moved, but only {used} are in use");
    assert!(gained > (LIMIT_CHUNKS / 2) as u64);
    bounded.check();
}

#[test]
fn a_step_moves_no_more_than_its_budget_and_one_entry() {
    let mut bounded = Bounded::new();
    while bounded.put_new(600) {}
    for key in 1..bounded.next_key {
        if key % 5 != 0 {
            bounded.remove(key);
        }
    }
    let budget = CompactionBudget { entries: 10, bytes: 3_000, slots: 512, chunks: 4 };
    let table = &mut bounded.table;
    let mut most = 0;
    loop {
        let before = table.arena.moved_bytes();
        if !table.compact_step(Pressure::Short, budget) {
            break;
        }
        most = most.max(table.arena.moved_bytes().saturating_sub(before));
    }
    // The largest excess is one entry, or the slots of one segment.
    assert!((1..=3_000 + 4_096 * 8).contains(&most), "{most} bytes in one step");
    bounded.check();
}

#[test]
fn a_step_releases_few_chunks_also_if_each_holds_little() {
    let mut bounded = Bounded::new();
    while bounded.put_new(600) {}
    let each_chunk = bounded.next_key / LIMIT_CHUNKS as u64;
    for key in 1..bounded.next_key {
        if key % each_chunk != 0 {
            bounded.remove(key);
        }
    }
    let (mut most, mut all) = (0, 0);
    loop {
        let before = bounded.table.reserved_bytes();
        let has_more = bounded.table.compact_step(Pressure::Short, CompactionBudget::BACKGROUND);
        let released = before.saturating_sub(bounded.table.reserved_bytes()) / CHUNK_BYTES;
        (most, all) = (most.max(released), all + released);
        if !has_more {
            break;
        }
    }
    // The budget of bytes is that of two chunks, and the last entry may exceed it.
    assert!(most <= 3, "{most} chunks were released in one step");
    assert!(all > LIMIT_CHUNKS / 2, "{all} chunks were released");
    bounded.check();
}

#[test]
fn staged_entries_move_with_their_partial_values() {
    let mut bounded = Bounded::new();
    let mut staged = Vec::new();
    for number in 0..60_000u64 {
        if !bounded.put_new(100) {
            break;
        }
        if number % 97 == 0 {
            let key = numbered_key(1 << 40 | number);
            let mut ticket = bounded.table.stage(hash_of(&key), &key, 120, None).unwrap();
            bounded.table.staged_append(&mut ticket, &value(number, 60));
            staged.push((ticket, key, number));
        }
    }
    for key in 1..bounded.next_key {
        if key % 9 != 0 && bounded.entries.contains_key(&key) {
            bounded.remove(key);
        }
    }
    let (moved, gained) = bounded.come_to_rest(Pressure::Short);
    assert!(moved > 0 && gained > 0);
    for (mut ticket, key, number) in staged {
        assert_eq!(bounded.table.staged_entry(&ticket), (&key[..], &value(number, 60)[..]));
        bounded.table.staged_append(&mut ticket, &value(number, 120)[60..]);
        bounded.table.commit(ticket, SequenceNumber(1 << 30 | number));
        let entry = bounded.table.get(hash_of(&key), &key).unwrap();
        assert_eq!(entry.value, value(number, 120));
        bounded.table.remove(hash_of(&key), &key);
    }
    bounded.check();
}

#[test]
fn a_pinned_value_stays_readable_wherever_its_entry_moves() {
    let mut bounded = Bounded::new();
    while bounded.put_new(300) {}
    let pinned: Vec<_> = (0..bounded.next_key)
        .step_by(100)
        .filter(|key| bounded.entries.contains_key(key))
        .map(|key| {
            let bytes = numbered_key(key);
            (key, bounded.entries[&key], bounded.table.pin(hash_of(&bytes), &bytes).unwrap())
        })
        .collect();
    // Every second pinned entry is removed, and stays readable.
    for key in 1..bounded.next_key {
        if key % 8 != 0 {
            bounded.remove(key);
        }
    }
    let (moved, emptied) = bounded.come_to_rest(Pressure::Short);
    assert!(moved > 0 && emptied > 0);
    bounded.check();
    for (key, (version, len), pin) in pinned {
        assert_eq!(bounded.table.pinned_value(&pin).unwrap(), value(version, len), "{key}");
        bounded.table.unpin(pin);
    }
    bounded.check();
}
