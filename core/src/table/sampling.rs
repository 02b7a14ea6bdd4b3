//! Samples of a table, from which eviction chooses.

use std::ops::ControlFlow;

use super::entry::{self, Entry};
use super::{Table, TableHash};

impl Table {
    /// Returns the entry with the lowest rank among the next `max` entries in hash order, starting at a hash. An entry
    /// of rank 0 ends the search. Because hashes are pseudo-random, entries that are adjacent in hash order are a random
    /// sample. `rank` gets the upper half of the hash of an entry, which the table has without reading the entry.
    pub fn lowest_from(
        &self,
        from: TableHash,
        max: usize,
        mut rank: impl FnMut(u32) -> u8,
    ) -> Option<Entry<'_>> {
        let mut lowest = None;
        self.directory.visit_from(&self.arena, from.bits(), max, |hash, handle| {
            let rank = rank(hash);
            if lowest.is_none_or(|(least, _)| rank < least) {
                lowest = Some((rank, handle));
            }
            if rank == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        // SAFETY: the handle of a linked entry, whose value was complete when it was linked.
        lowest.map(|(_, handle)| unsafe { entry::read(&self.arena, handle) })
    }

    /// Returns the number of bytes that an entry of these lengths occupies, without its slot and rounding.
    pub fn entry_bytes(entry: &Entry<'_>) -> usize {
        entry::entry_bytes(entry.key.len(), entry.value.len(), entry.deadline.is_some())
    }

    /// Returns whether an entry of these lengths would fit within a limit if it were the only one.
    pub fn fits_alone(&self, limit: u64, key_len: usize, value_len: usize) -> bool {
        let bytes = entry::entry_bytes(key_len, value_len, true) as u64;
        // The slots take a part of a chunk.
        bytes <= limit && bytes + self.chunk_bytes() as u64 <= self.held_most(limit)
    }
}

#[cfg(test)]
mod tests {
    use kv_protocol::ids::{SequenceNumber, WallTime};

    use super::*;
    use crate::arena::HeapChunks;
    use crate::hash::mix;

    fn hash(n: u64) -> TableHash {
        TableHash(mix(n))
    }

    /// Creates a table of entries 0 to `count`, which have these deadlines.
    fn table(count: u64, deadline: impl Fn(u64) -> Option<WallTime>) -> Table {
        let mut table = Table::new(Box::new(HeapChunks::default()));
        table.advance_deadlines(WallTime::from_millis(1_000_000), 1);
        for n in 0..count {
            let key = n.to_le_bytes();
            table.put(hash(n), &key, b"value", deadline(n), SequenceNumber(n + 1)).unwrap();
        }
        table
    }

    #[test]
    fn the_lowest_entry_of_a_sample_is_found_also_after_the_highest_hash() {
        let table = table(10_000, |_| None);
        for wanted in 0..1_000 {
            let bits = hash(wanted).bits();
            // Four other entries may precede it, and the search wraps around.
            let from = TableHash(u64::from(bits.wrapping_sub(1_000)) << 32);
            let found = table.lowest_from(from, 16, |hash| u8::from(hash != bits));
            assert_eq!(found.unwrap().key, wanted.to_le_bytes());
        }
        let mut examined = 0;
        table.lowest_from(hash(5), 16, |_| {
            examined += 1;
            1
        });
        assert_eq!(examined, 16);
    }

    #[test]
    fn an_empty_table_has_no_sample_and_a_small_one_is_searched_as_a_whole() {
        assert!(table(0, |_| None).lowest_from(hash(1), 16, |_| 1).is_none());
        let small = table(3, |_| None);
        for from in 0..100 {
            let bits = hash(2).bits();
            let found = small.lowest_from(hash(from), 16, |hash| u8::from(hash != bits));
            assert_eq!(found.unwrap().version, SequenceNumber(3));
        }
    }

    #[test]
    fn deadlines_are_visited_in_order_within_a_second_and_by_slot_beyond() {
        let at = |millis: u64| Some(WallTime::from_millis(1_000_000 + millis));
        let mut table = table(300, |n| match n {
            0..100 => None,
            100..200 => at(1_000 - n),
            _ => at(n * 3_600_000),
        });
        let mut visited = Vec::new();
        table.nearest_deadlines(1_000, |entry| visited.push(entry.deadline));
        assert_eq!(visited.len(), 200);
        assert!(visited[..100].is_sorted() && visited[99] < visited[100]);
        let mut first = Vec::new();
        table.nearest_deadlines(5, |entry| first.push(entry.deadline));
        assert_eq!(first, visited[..5]);
    }

    #[test]
    fn further_calls_visit_other_entries_of_a_slot() {
        let at = WallTime::from_millis(1_000_000 + 3_600_000);
        let mut table = table(100, |_| Some(at));
        let mut visited = std::collections::BTreeSet::new();
        for _ in 0..10 {
            table.nearest_deadlines(10, |entry| {
                visited.insert(entry.key.to_vec());
            });
        }
        assert_eq!(visited.len(), 100);
        // The lists are intact.
        for n in 0..100_u64 {
            assert!(table.remove(hash(n), &n.to_le_bytes()).is_some());
        }
        assert_eq!(table.expiring_len(), 0);
    }
}
