//! The budget for the memory of a process's client connections, shared by all shards.
//!
//! ```text
//!   limit  +- half: partial long frames
//!          |        +- room for one frame of the largest size, for the first in the queue
//!          |        +- the rest, for all others
//!          +- half: everything else (responses, waiting requests, partial short frames);
//!                   a connection that would exceed this half is closed
//! ```
//!
//! The memory for the next bytes of a long frame is reserved before they are received. If there is no memory, the
//! connection is not read and waits in a queue that all shards share. The first connection in the queue gets memory
//! that others release, or the room that is kept for the first. The room fits any frame, so a frame in the room never
//! waits again. So partial frames cannot deadlock.
//!
//! Values that are sent directly from the table take no memory of this budget (`output.rs`).
//!
//! This module also has the memory limit of the tables, because the tables leave room for the memory of connections.
//! This limit and the policy of eviction may change while the process runs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_protocol::Eviction;
use kv_protocol::limits::{CONNECTION_MEMORY_MIN, MAX_CLIENT_BODY};

/// The default budget if the tables have no memory limit.
const DEFAULT_BYTES: u64 = 256 << 20;
/// The divisor of the memory limit that gives the default budget.
const PART_OF_LIMIT: u64 = 4;
/// The minimum change of a shard's tally before the shard updates the shared sum. Updates are kept rare because all
/// shards read the sum often.
const REPORTED_BYTES: usize = 64 << 10;

/// The room for a frame of the maximum length.
const ROOM_BYTES: u64 = MAX_CLIENT_BODY as u64 + (64 << 10);

const _: () = assert!(CONNECTION_MEMORY_MIN / 2 > ROOM_BYTES + (1 << 20));

/// The memory budget of a process's client connections, and the memory limit of its tables.
#[derive(Debug)]
pub struct ConnectionMemory {
    limit: u64,
    /// The memory limit of all tables together; 0 means no limit.
    memory_limit: AtomicU64,
    /// The policy by which full tables make room.
    eviction: AtomicU8,
    /// The number of tables of the process. Each leaves its share of the connections' memory free.
    tables: u64,
    frames: Mutex<Frames>,
    others: AtomicU64,
}

#[derive(Debug, Default)]
struct Frames {
    /// The number of bytes reserved from the part for all frames.
    common: u64,
    /// The number of bytes of the room that its frame has reserved; `None` if no frame is in the room.
    in_room: Option<u64>,
    /// The waiting frames, in the order in which they joined the queue.
    waiting: VecDeque<Ticket>,
    tickets: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticket(u64);

/// The memory of one long frame, and the frame's place in the queue. Both are released on drop.
#[derive(Debug)]
pub(crate) struct FrameMemory {
    memory: Arc<ConnectionMemory>,
    common: u64,
    in_room: Option<u64>,
    ticket: Option<Ticket>,
}

impl ConnectionMemory {
    /// Creates a budget of `asked` bytes, but at least [`CONNECTION_MEMORY_MIN`]. The default is a quarter of the
    /// memory limit, or 256 MiB without a limit. The process has `tables` tables.
    pub fn new(
        asked: Option<u64>,
        memory_limit: Option<u64>,
        tables: u64,
    ) -> Arc<ConnectionMemory> {
        let default = memory_limit.map_or(DEFAULT_BYTES, |limit| limit / PART_OF_LIMIT);
        let limit = asked.unwrap_or(default).max(CONNECTION_MEMORY_MIN);
        let (frames, others) = (Mutex::default(), AtomicU64::new(0));
        let memory_limit = AtomicU64::new(memory_limit.unwrap_or(0));
        let eviction = AtomicU8::new(Eviction::None as u8);
        Arc::new(ConnectionMemory { limit, memory_limit, eviction, tables, frames, others })
    }

    /// Returns the size of the budget in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the limit of all tables together, in bytes; `None` without a limit.
    pub fn memory_limit(&self) -> Option<u64> {
        Some(self.memory_limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Changes the limit of all tables together; `None` removes it. Executors apply it at their next wake-up. The
    /// budget of connections stays the same.
    pub fn set_memory_limit(&self, limit: Option<u64>) {
        self.memory_limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns the policy by which full tables make room; at first [`Eviction::None`].
    pub fn eviction(&self) -> Eviction {
        Eviction::from_wire(self.eviction.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// Changes the policy by which full tables make room. Executors apply it at their next wake-up.
    pub fn set_eviction(&self, policy: Eviction) {
        self.eviction.store(policy as u8, Ordering::Relaxed);
    }

    /// Returns the limit of one table, in bytes; `None` without a limit.
    pub fn table_limit(&self) -> Option<u64> {
        self.memory_limit().map(|limit| (limit / self.tables).max(1))
    }

    /// Returns the number of tables of the process.
    pub fn tables(&self) -> u64 {
        self.tables
    }

    /// Returns the number of bytes that connections hold. Each shard reports only changes of at least 64 KiB.
    pub fn held(&self) -> u64 {
        let frames = lock(&self.frames);
        frames.common + frames.in_room.unwrap_or(0) + self.others.load(Ordering::Relaxed)
    }

    /// Returns whether a frame waits for memory.
    pub(crate) fn is_awaited(&self) -> bool {
        !lock(&self.frames).waiting.is_empty()
    }

    /// Returns whether connections, without long frames, hold at least half of their limit. Then a connection must send
    /// all its output before its next request is served.
    pub(crate) fn is_tight(&self) -> bool {
        self.others.load(Ordering::Relaxed) >= self.limit / 4
    }

    /// Returns whether the memory of connections, without long frames, has reached its limit.
    pub(crate) fn is_used_up(&self) -> bool {
        self.others.load(Ordering::Relaxed) >= self.limit / 2
    }
}

impl FrameMemory {
    /// Creates a reservation of no bytes in this budget.
    pub(crate) fn new(memory: Arc<ConnectionMemory>) -> FrameMemory {
        FrameMemory { memory, common: 0, in_room: None, ticket: None }
    }

    /// Returns the number of reserved bytes.
    pub(crate) fn bytes(&self) -> usize {
        usize::try_from(self.common + self.in_room.unwrap_or(0)).unwrap_or(usize::MAX)
    }

    /// Increases the reservation to a total of `bytes`; returns whether it succeeded. If no memory is available, the
    /// frame takes or keeps its place in the queue, and the caller must retry.
    pub(crate) fn reserve(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes()) as u64;
        let mut frames = lock(&self.memory.frames);
        if let Some(in_room) = &mut self.in_room {
            *in_room += more;
            frames.in_room = Some(*in_room);
            return true;
        }
        let is_first = frames.waiting.front().copied() == self.ticket;
        if is_first && frames.common + more <= self.memory.limit / 2 - ROOM_BYTES {
            frames.common += more;
            self.common += more;
        } else if is_first && frames.in_room.is_none() {
            frames.in_room = Some(more);
            self.in_room = Some(more);
        } else {
            if self.ticket.is_none() {
                let ticket = Ticket(frames.tickets);
                frames.tickets += 1;
                frames.waiting.push_back(ticket);
                self.ticket = Some(ticket);
            }
            return false;
        }
        if self.ticket.take().is_some() {
            frames.waiting.pop_front();
        }
        true
    }
}

impl Drop for FrameMemory {
    fn drop(&mut self) {
        let mut frames = lock(&self.memory.frames);
        frames.common -= self.common;
        if self.in_room.is_some() {
            frames.in_room = None;
        }
        if let Some(ticket) = self.ticket {
            frames.waiting.retain(|waiting| *waiting != ticket);
        }
    }
}

/// Locks the state of the frames' half. Poisoning is ignored, because the counts stay valid if a thread panics.
fn lock(frames: &Mutex<Frames>) -> MutexGuard<'_, Frames> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory of one shard's connections in bytes, without long frames.
#[derive(Debug)]
pub(crate) struct Tally {
    memory: Arc<ConnectionMemory>,
    held: usize,
    reported: usize,
}

impl Tally {
    /// Creates the empty tally of a shard.
    pub(crate) fn new(memory: Arc<ConnectionMemory>) -> Tally {
        Tally { memory, held: 0, reported: 0 }
    }

    /// Returns the budget to which the tally belongs.
    pub(crate) fn memory(&self) -> &Arc<ConnectionMemory> {
        &self.memory
    }

    /// Records that the memory of a connection has changed from `before` to `now` bytes.
    #[inline]
    pub(crate) fn change(&mut self, before: usize, now: usize) {
        self.held = self.held + now - before;
        if self.held.abs_diff(self.reported) >= REPORTED_BYTES {
            self.report();
        }
    }

    /// Returns the memory in bytes.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    fn report(&mut self) {
        let others = &self.memory.others;
        if self.held >= self.reported {
            others.fetch_add((self.held - self.reported) as u64, Ordering::Relaxed);
        } else {
            others.fetch_sub((self.reported - self.held) as u64, Ordering::Relaxed);
        }
        self.reported = self.held;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_quarter_of_the_limit_and_at_least_one_frame_of_maximum_length() {
        assert_eq!(ConnectionMemory::new(None, None, 2).limit(), DEFAULT_BYTES);
        assert_eq!(ConnectionMemory::new(None, Some(4 << 30), 2).limit(), 1 << 30);
        assert_eq!(ConnectionMemory::new(None, Some(1 << 20), 2).limit(), CONNECTION_MEMORY_MIN);
        assert_eq!(ConnectionMemory::new(Some(1 << 31), Some(1 << 20), 2).limit(), 1 << 31);
    }

    fn least() -> Arc<ConnectionMemory> {
        ConnectionMemory::new(Some(CONNECTION_MEMORY_MIN), None, 2)
    }

    /// Creates a frame that has reserved all memory that is shared by all frames.
    fn greedy(memory: &Arc<ConnectionMemory>) -> FrameMemory {
        let mut frame = FrameMemory::new(Arc::clone(memory));
        let all = CONNECTION_MEMORY_MIN / 2 - ROOM_BYTES;
        assert!(frame.reserve(usize::try_from(all).unwrap()) && frame.in_room.is_none());
        frame
    }

    #[test]
    fn the_first_in_the_queue_has_room_for_a_maximum_frame_and_others_wait_in_order() {
        let memory = least();
        let mut frames: Vec<_> = (0..4).map(|_| FrameMemory::new(Arc::clone(&memory))).collect();
        let filled = greedy(&memory);
        assert!(frames[0].reserve(1_000));
        assert!(frames[0].reserve(MAX_CLIENT_BODY), "a frame in the room must never wait again");
        assert!(!frames[1].reserve(1_000) && !frames[2].reserve(1) && !frames[3].reserve(1));
        assert!(memory.is_awaited());
        drop(filled);
        assert!(
            !frames[2].reserve(1),
            "memory is available, but another frame is first in the queue"
        );
        assert!(frames[1].reserve(1_000) && frames[2].reserve(1) && frames[3].reserve(1));
        assert!(!memory.is_awaited());
        assert_eq!(memory.held(), (MAX_CLIENT_BODY + 1_002) as u64);
        drop(frames);
        assert_eq!(memory.held(), 0);
    }

    #[test]
    fn the_room_for_the_first_in_the_queue_passes_to_the_next() {
        let memory = least();
        let _filled = greedy(&memory);
        let mut frames: Vec<_> = (0..9).map(|_| FrameMemory::new(Arc::clone(&memory))).collect();
        for frame in &mut frames {
            frame.reserve(20_000);
        }
        while !frames.is_empty() {
            let mut first = frames.remove(0);
            assert!(first.reserve(20_000) && first.reserve(MAX_CLIENT_BODY));
            assert!(frames.iter_mut().all(|frame| !frame.reserve(20_000)));
        }
    }

    #[test]
    fn a_connection_that_is_closed_while_it_waits_leaves_the_queue() {
        let memory = least();
        let _filled = greedy(&memory);
        let mut frames: Vec<_> = (0..3).map(|_| FrameMemory::new(Arc::clone(&memory))).collect();
        assert!(frames[0].reserve(1) && !frames[1].reserve(1) && !frames[2].reserve(1));
        frames.remove(1);
        frames.remove(0);
        assert!(frames[0].reserve(1));
    }

    #[test]
    fn memory_apart_from_frames_is_counted_over_all_shards() {
        let memory = ConnectionMemory::new(Some(CONNECTION_MEMORY_MIN), None, 2);
        let quarter = usize::try_from(CONNECTION_MEMORY_MIN / 4).unwrap();
        let (mut one, mut other) = (Tally::new(memory.clone()), Tally::new(memory.clone()));
        one.change(0, quarter - 1);
        assert!(!memory.is_tight());
        other.change(0, quarter + 1);
        assert!(memory.is_tight() && memory.is_used_up());
        other.change(quarter + 1, 0);
        one.change(quarter - 1, 1);
        assert!(!memory.is_tight());
        assert_eq!(memory.held(), 1);
    }
}
