//! The memory of a replica's table: its limit, and the compaction that keeps it usable.
//!
//! A write that finds no room triggers compaction at once, with a bounded number of steps per wake-up. If these steps
//! do not make room, the write is rejected with BUSY and the client retries it. OUT-OF-SPACE means that compaction
//! cannot make room. All other steps run in the background, one per [`COMPACTION_INTERVAL`]. They run in every role,
//! because a secondary has the same entries but a different fragmentation.

use std::time::Duration;

use kv_protocol::ids::{SequenceNumber, Time};

use super::eviction::Lengths;
use super::{Replica, StreamError};
use crate::table::{CompactionBudget, Pressure, Room};

/// The interval of background steps. A step takes a twentieth of the interval, or a fifth when memory exceeds the
/// limit.
const COMPACTION_INTERVAL: Duration = Duration::from_millis(1);
/// The maximum number of compaction steps per wake-up for writes that find no room.
const PRESSED_STEPS: usize = 4;
/// The fraction of the memory limit (as a divisor) by which a copy may exceed it: two tables with the same entries
/// differ in fragmentation.
const COPY_BEYOND_LIMIT: u64 = 8;

/// The times of the last compaction steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastSteps {
    /// The last background step.
    background: Time,
    /// The last step for a write that found no room.
    pressed: Option<Time>,
}

impl Replica {
    /// Returns the time of the next background step; `None` if there is nothing to compact.
    pub(super) fn next_compaction(&self) -> Option<Time> {
        let wants = self.table.wants_compaction(self.pressure());
        wants.then(|| self.last_steps.background + COMPACTION_INTERVAL)
    }

    /// Runs a background step if one is due.
    pub(super) fn compact(&mut self, now: Time) {
        if self.next_compaction().is_some_and(|due| due <= now) {
            self.last_steps.background = now;
            let pressure = self.pressure();
            let is_beyond =
                self.config.memory_limit.is_some_and(|limit| self.reserved_bytes() > limit);
            let budget = match is_beyond {
                true => CompactionBudget::PRESSED,
                false => CompactionBudget::BACKGROUND,
            };
            self.table.compact_step(pressure, budget);
        }
    }

    fn pressure(&self) -> Pressure {
        match self.evictions.is_fragmented() {
            true => Pressure::Short,
            false => self.table.pressure(self.config.memory_limit),
        }
    }

    /// Returns the memory that entries may use; `None` without a limit.
    pub(super) fn memory_for_entries(&self) -> Option<u64> {
        let retained = self.sessions.retained_bytes() as u64;
        let taken = self.lent.saturating_add(retained).saturating_add(self.evictions.heap_bytes());
        Some(self.config.memory_limit?.saturating_sub(taken))
    }

    /// Changes the memory limit of this table; `None` means no limit. If the limit is lower than the memory in use, no
    /// entry is dropped, but writes that need memory are rejected until enough is free.
    pub fn set_memory_limit(&mut self, limit: Option<u64>) {
        self.config.memory_limit = limit;
    }

    /// Sets the part of the memory limit that is currently lent to other tables. Writes leave this part free. A copy
    /// may use it, because the primary may have used the same part of its own limit.
    pub fn lend_memory(&mut self, bytes: u64) {
        self.lent = bytes;
    }

    /// Returns the number of bytes of long responses that are kept for retries. They count as used memory.
    pub fn retained_bytes(&self) -> usize {
        self.sessions.retained_bytes()
    }

    /// Returns whether there is room for an entry within the limit. Runs compaction steps first if they may make room,
    /// at most once per wake-up.
    pub(super) fn make_room(
        &mut self,
        now: Time,
        Lengths { key: key_len, value: value_len, deadline }: Lengths,
    ) -> Room {
        let Some(limit) = self.memory_for_entries() else { return Room::Fits };
        let mut room = self.table.room(limit, key_len, value_len, deadline);
        if room != Room::Compacting || self.last_steps.pressed == Some(now) {
            return room;
        }
        self.last_steps.pressed = Some(now);
        for _ in 0..PRESSED_STEPS {
            self.table.compact_step(Pressure::Short, CompactionBudget::PRESSED);
            room = self.table.room(limit, key_len, value_len, deadline);
            if room != Room::Compacting {
                break;
            }
        }
        room
    }

    /// Checks that a candidate has room for one more entry of the copy. The primary stays within its limit, so the
    /// candidate lacks room only if its own limit is lower.
    pub(super) fn check_copy_room(
        &self,
        sn: SequenceNumber,
        key_len: usize,
        value_len: usize,
    ) -> Result<(), StreamError> {
        let Some(limit) = self.config.memory_limit else { return Ok(()) };
        let chunks = 2 * self.table.chunk_bytes() as u64;
        let most = limit.saturating_add(limit / COPY_BEYOND_LIMIT).saturating_add(chunks);
        match self.table.reserved_bytes_with(key_len, value_len, None) as u64 <= most {
            true => Ok(()),
            false => Err(StreamError::CopyBeyondLimit { sn, limit }),
        }
    }
}
