//! Compaction: entries and slots move out of sparsely used chunks, which are given back.
//!
//! Freed entries leave holes that serve entries of about their size only. So a table that had many small
//! entries, and has few, would hold its chunks and refuse larger ones.
//!
//! ```text
//!   idle -- enough waste --> prepare: the arena chooses its sparsest chunks, in steps
//!    ^                          |
//!    |                       staged entries of these chunks move, then slots and entries, in order of hash
//!    +-- chunks given back <----+
//! ```
//!
//! A step is bounded by a [`CompactionBudget`]. A pass turns sparse chunks into fewer, or into dense ones that no
//! pass chooses again. When moves have gained no chunk for a while, compaction rests until so much was freed
//! that it may gain one: so a table that is left alone comes to rest. Slots stay in order of hash, so a walk
//! misses nothing and visits nothing twice. Version and check move with their entry, so the digest stays.
//! Pins and tickets of staged entries follow. A pinned entry that the table has dropped keeps its place.

use super::directory::{Relocated, RelocationEnd};
use super::{HashBits, Table, entry};
use crate::arena::{Evacuated, Preparation};

/// The share of a limit, as a divisor, by which chunks may exceed it.
const HELD_BEYOND_LIMIT: u64 = 50;

/// So many chunks' bytes are moved at most without a chunk gained: seven chunks that are used to seven eighths
/// make six full ones.
const MOVED_IN_VAIN_CHUNKS: usize = 8;

/// The bounds of one step. A step ends when one of them is reached, so it moves one entry more at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionBudget {
    /// Entries that are moved.
    pub entries: usize,
    /// Bytes that are moved.
    pub bytes: usize,
    /// Slots that are looked at, in whole segments.
    pub slots: usize,
    /// Chunks that are considered while a pass is prepared.
    pub chunks: usize,
}

impl CompactionBudget {
    /// About 50 microseconds.
    pub const BACKGROUND: CompactionBudget =
        CompactionBudget { entries: 128, bytes: 32 << 10, slots: 4_096, chunks: 16 };
    /// About 200 microseconds: while a write waits for memory.
    pub const PRESSED: CompactionBudget =
        CompactionBudget { entries: 512, bytes: 128 << 10, slots: 16_384, chunks: 64 };
}

/// How much waste is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// There is memory enough: a third of what is held.
    None,
    /// The limit is near: an eighth.
    Near,
    /// A write found no room: a sixteenth.
    Short,
}

impl Pressure {
    /// The divisor of what is held, and the least number of chunks.
    fn bounds(self) -> (usize, usize) {
        match self {
            Pressure::None => (3, 4),
            Pressure::Near => (8, 3),
            Pressure::Short => (16, 2),
        }
    }
}

/// The answer to whether one more entry fits a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It does.
    Fits,
    /// Not yet; compaction makes room.
    Compacting,
    /// Only if entries are removed.
    Full,
}

/// How much was ever moved and gained by compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionCounts {
    /// Bytes of the allocations that were moved.
    pub moved_bytes: u64,
    /// Chunks that moves have emptied.
    pub emptied_chunks: u64,
    /// Empty chunks that moves have begun to fill.
    pub fresh_chunks: u64,
}

/// A table's compaction.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    stage: Stage,
    counts: CompactionCounts,
    /// Bytes that were moved since a pass emptied more chunks than it took.
    moved_in_vain: usize,
    /// It is at rest until the arena has freed so many bytes in all.
    rest_until: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Preparing,
    /// The place of the next staged record.
    Staged(usize),
    /// The hash of the next slot.
    Slots(HashBits),
}

impl Compaction {
    /// The table was cleared.
    pub(super) fn clear(&mut self) {
        *self = Compaction { counts: self.counts, ..Compaction::default() };
    }
}

/// Limits.
impl Table {
    /// Whether one more entry stays within a limit: the bytes of all entries do, and, within two percent, the
    /// chunks that they are in.
    pub fn room(&self, limit: u64, key_len: usize, value_len: usize) -> Room {
        let used = self.used_bytes() + key_len + value_len;
        if used as u64 > limit {
            return Room::Full;
        }
        let chunks_least = 2 * self.chunk_bytes() as u64;
        let held_most = (limit + limit / HELD_BEYOND_LIMIT).max(chunks_least);
        if self.reserved_bytes_with(key_len, value_len) as u64 <= held_most {
            Room::Fits
        } else if self.wants_compaction(Pressure::Short) {
            Room::Compacting
        } else {
            Room::Full
        }
    }

    /// How much its compaction is wanted under a limit.
    pub fn pressure(&self, limit: Option<u64>) -> Pressure {
        let is_near = |limit: u64| self.reserved_bytes() as u64 >= limit / 4 * 3;
        if limit.is_some_and(is_near) { Pressure::Near } else { Pressure::None }
    }
}

/// Compaction.
impl Table {
    /// Whether [`Table::compact_step`] has something to do.
    pub fn wants_compaction(&self, pressure: Pressure) -> bool {
        if !matches!(self.compaction.stage, Stage::Idle) {
            return true;
        }
        let (divisor, chunks_min) = pressure.bounds();
        let waste = self.arena.waste_bytes();
        waste >= chunks_min * self.arena.chunk_bytes()
            && waste * divisor >= self.arena.used_bytes() + waste
            && self.arena.freed_bytes() >= self.compaction.rest_until
    }

    /// Moves some entries closer together, within the budget; whether there is more to do.
    pub fn compact_step(&mut self, pressure: Pressure, budget: CompactionBudget) -> bool {
        match self.compaction.stage {
            Stage::Idle => {
                if !self.wants_compaction(pressure) {
                    return false;
                }
                self.arena.begin_evacuation();
                self.compaction.stage = Stage::Preparing;
            }
            Stage::Preparing => match self.arena.prepare_evacuation(budget.chunks) {
                Preparation::Unfinished => {}
                Preparation::Ready => self.compaction.stage = Stage::Staged(0),
                Preparation::Futile => self.end_pass(),
            },
            Stage::Staged(from) => match self.relocate_staged(from, budget) {
                RelocationEnd::NoRoom => self.end_pass(),
                RelocationEnd::Budget(next) => self.compaction.stage = Stage::Staged(next),
                RelocationEnd::Done => self.compaction.stage = Stage::Slots(HashBits::MIN),
            },
            Stage::Slots(from) => match self.relocate_slots(from, budget) {
                RelocationEnd::Budget(next) => self.compaction.stage = Stage::Slots(next),
                RelocationEnd::Done | RelocationEnd::NoRoom => self.end_pass(),
            },
        }
        self.wants_compaction(pressure)
    }

    /// How much was ever moved and gained.
    pub fn compaction_counts(&self) -> CompactionCounts {
        self.compaction.counts
    }

    fn relocate_staged(&mut self, from: usize, budget: CompactionBudget) -> RelocationEnd<usize> {
        let (mut entries, mut bytes) = (0, 0);
        let arena = &mut self.arena;
        for (place, record) in self.staging.records_mut(from) {
            if entries >= budget.entries || bytes >= budget.bytes {
                return RelocationEnd::Budget(place);
            }
            if !arena.is_leaving(record.handle) {
                continue;
            }
            // SAFETY: the handle of a staged entry, of whose value so many bytes were written; the record is
            // all that names it.
            let moved = unsafe { entry::relocate(arena, record.handle, Some(record.filled)) };
            let Some((moved, size)) = moved else { return RelocationEnd::NoRoom };
            record.handle = moved;
            entries += 1;
            bytes += size;
        }
        RelocationEnd::Done
    }

    fn relocate_slots(
        &mut self,
        from: HashBits,
        budget: CompactionBudget,
    ) -> RelocationEnd<HashBits> {
        let Table { arena, directory, pins, .. } = self;
        directory.relocate(arena, from, budget, |arena, handle| {
            // SAFETY: the handle of a linked entry, whose value is complete; only its slot and the record of
            // its pins name it, and both are given the new one.
            let moved = unsafe { entry::relocate(arena, handle, None) };
            let Some((moved, bytes)) = moved else { return Relocated::NoRoom };
            pins.follow(handle, moved);
            Relocated::To(moved, bytes)
        })
    }

    fn end_pass(&mut self) {
        let Evacuated { emptied, fresh, moved_bytes } = self.arena.end_evacuation();
        let compaction = &mut self.compaction;
        compaction.stage = Stage::Idle;
        compaction.counts.moved_bytes += moved_bytes as u64;
        compaction.counts.emptied_chunks += emptied as u64;
        compaction.counts.fresh_chunks += fresh as u64;
        let in_vain = if emptied > fresh { 0 } else { compaction.moved_in_vain };
        compaction.moved_in_vain = if emptied > fresh { 0 } else { in_vain + moved_bytes };
        // A pass that moved nothing will do no more next time. One that found no room for the last entries has left
        // little in many chunks, which the next pass gains: so its own moves do not count yet.
        if moved_bytes == 0 || in_vain > MOVED_IN_VAIN_CHUNKS * self.arena.chunk_bytes() {
            compaction.moved_in_vain = 0;
            let more = (self.arena.waste_bytes() / 4).max(self.arena.chunk_bytes());
            compaction.rest_until = self.arena.freed_bytes() + more as u64;
        }
    }
}
