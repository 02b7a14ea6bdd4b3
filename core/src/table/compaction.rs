//! Compaction: moves entries and slots out of sparsely used chunks and returns these chunks to the source.
//!
//! A gap that a freed entry leaves has room only for an entry of about the same size. Without compaction, a table
//! that once had many small entries and now has few would keep its chunks and reject larger entries.
//!
//! ```text
//!   idle -- enough waste --> prepare: the arena chooses its sparsest chunks, in steps
//!    ^                          |
//!    |                       staged entries of these chunks move, then slots and entries, in hash order
//!    +-- chunks returned <------+
//! ```
//!
//! A step is bounded by a [`CompactionBudget`]. A pass turns sparse chunks into fewer chunks, or into dense ones that
//! no pass chooses again. If recent moves have gained no chunk, compaction rests until enough memory was freed to
//! gain one. So the compaction of an idle table ends. Slots stay in hash order, so a walk still visits every entry
//! once. Version and check move with their entry, so the digest does not change. The records of pins and staged
//! entries are updated, and so are the lists of deadlines. A pinned entry that the table has dropped is not moved.

use kv_protocol::ids::WallTime;

use super::directory::{Relocated, RelocationEnd};
use super::{HashBits, Table, entry};
use crate::arena::{Evacuated, Preparation};

/// The fraction of a memory limit (as a divisor) by which the memory of the chunks may exceed the limit.
const HELD_BEYOND_LIMIT: u64 = 50;

/// The amount of data, in chunks, that may be moved without the gain of a chunk. For example, the content of eight
/// chunks that are seven eighths full fits in seven full ones.
const MOVED_IN_VAIN_CHUNKS: usize = 8;

/// The share of a step's budget of bytes that the release of an emptied chunk takes.
const EMPTIED_CHUNK_BYTES: usize = 16 << 10;

/// The limits of one step. A step ends when one of them is reached, and may exceed it by the entries of one hash or the
/// slots of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionBudget {
    /// The maximum number of entries to move.
    pub entries: usize,
    /// The maximum number of bytes to move.
    pub bytes: usize,
    /// The maximum number of slots to examine, in whole segments.
    pub slots: usize,
    /// The maximum number of chunks to consider while a pass is prepared.
    pub chunks: usize,
}

impl CompactionBudget {
    /// The budget of a background step: about 50 microseconds.
    pub const BACKGROUND: CompactionBudget =
        CompactionBudget { entries: 128, bytes: 32 << 10, slots: 4_096, chunks: 16 };
    /// The budget of a step while a write waits for memory: about 200 microseconds.
    pub const PRESSED: CompactionBudget =
        CompactionBudget { entries: 512, bytes: 128 << 10, slots: 16_384, chunks: 64 };
}

/// The need for compaction, which determines how much waste triggers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// There is enough memory. Compaction begins when a third of the held memory is waste.
    None,
    /// The memory is close to the limit. Compaction begins when an eighth of the held memory is waste.
    Near,
    /// A write found no room. Compaction begins when a sixteenth of the held memory is waste.
    Short,
}

impl Pressure {
    /// Returns the waste that triggers compaction: as a divisor of the held memory, and as a minimum number of chunks.
    fn bounds(self) -> (usize, usize) {
        match self {
            Pressure::None => (3, 4),
            Pressure::Near => (8, 3),
            Pressure::Short => (16, 2),
        }
    }
}

/// The result of checking whether one more entry fits a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// The entry fits.
    Fits,
    /// The entry does not fit yet, but compaction can make room.
    Compacting,
    /// The entry fits only if other entries are removed.
    Full,
}

/// The totals of data moved and chunks gained by compaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionCounts {
    /// The total size of the moved allocations.
    pub moved_bytes: u64,
    /// The number of chunks that were emptied.
    pub emptied_chunks: u64,
    /// The number of empty chunks that moved entries have begun to fill.
    pub fresh_chunks: u64,
}

/// The compaction state of a table.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    stage: Stage,
    counts: CompactionCounts,
    /// The bytes moved since the last pass that emptied more chunks than it took.
    moved_in_vain: usize,
    /// The value of the arena's total of freed bytes at which compaction resumes.
    rest_until: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Preparing,
    /// The index of the next staged record.
    Staged(usize),
    /// The hash of the next slot.
    Slots(HashBits),
}

impl Compaction {
    /// Resets the state after the table was cleared.
    pub(super) fn clear(&mut self) {
        *self = Compaction { counts: self.counts, ..Compaction::default() };
    }
}

/// Memory limits.
impl Table {
    /// Checks whether one more entry fits within a limit. The bytes of entries and slots must stay within the limit.
    /// The reserved memory may exceed the limit by two percent, and may always be two chunks.
    pub fn room(
        &self,
        limit: u64,
        key_len: usize,
        value_len: usize,
        deadline: Option<WallTime>,
    ) -> Room {
        let trailer_bytes = if deadline.is_some() { entry::TRAILER_BYTES } else { 0 };
        let used = self.used_bytes() + key_len + value_len + trailer_bytes;
        if used as u64 > limit {
            return Room::Full;
        }
        if self.reserved_bytes_with(key_len, value_len, deadline) as u64 <= self.held_most(limit) {
            Room::Fits
        } else if self.wants_compaction(Pressure::Short) {
            Room::Compacting
        } else {
            Room::Full
        }
    }

    /// Returns the maximum of the reserved memory under a limit.
    pub(super) fn held_most(&self, limit: u64) -> u64 {
        limit.saturating_add(limit / HELD_BEYOND_LIMIT).max(2 * self.chunk_bytes() as u64)
    }

    /// Returns the need for compaction under a limit: [`Pressure::Near`] from three quarters of the limit on. Without a
    /// limit there is none.
    pub fn pressure(&self, limit: Option<u64>) -> Pressure {
        let is_near = |limit: u64| self.reserved_bytes() as u64 >= limit / 4 * 3;
        if limit.is_some_and(is_near) { Pressure::Near } else { Pressure::None }
    }
}

/// Steps of compaction.
impl Table {
    /// Returns whether [`Table::compact_step`] has work to do.
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

    /// Runs one step of compaction within the budget, if there is enough waste. Returns whether work is left.
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

    /// Returns the totals of data moved and chunks gained.
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
            // SAFETY: the handle of a staged entry, whose value was written up to `filled`. Only the record refers to
            // it.
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
        let Table { arena, directory, pins, deadlines, .. } = self;
        directory.relocate(arena, from, budget, |arena, handle| {
            let emptied = arena.emptied_chunks();
            // SAFETY: the handle of a linked entry, whose value is complete. Only its slot, the record of its pins and
            // the list of its deadline refer to it, and all of them get the new handle.
            let moved = unsafe { entry::relocate(arena, handle, None) };
            let Some((moved, bytes)) = moved else { return Relocated::NoRoom };
            let bytes = bytes + (arena.emptied_chunks() - emptied) * EMPTIED_CHUNK_BYTES;
            pins.follow(handle, moved);
            // SAFETY: the handle of a linked entry.
            if unsafe { entry::deadline(arena, moved) }.is_some() {
                deadlines.follow(arena, handle, moved);
            }
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
        // After a pass that moved nothing, another pass would move nothing either. A pass that found no room for the
        // last entries leaves little data in many chunks. The next pass gains these chunks, so the moves of this one
        // are not counted as moved in vain yet.
        if moved_bytes == 0 || in_vain > MOVED_IN_VAIN_CHUNKS * self.arena.chunk_bytes() {
            compaction.moved_in_vain = 0;
            let more = (self.arena.waste_bytes() / 4).max(self.arena.chunk_bytes());
            compaction.rest_until = self.arena.freed_bytes() + more as u64;
        }
    }
}
