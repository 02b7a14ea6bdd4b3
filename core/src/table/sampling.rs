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
