//! Output that waits to be sent, for every connection of a shard.
//!
//! ```text
//!   bytes | head, value in the table, later bytes     | head, value in the table, ...
//!     ^           ^
//!     |           +-- sent by the engine as transmits, piece by piece, in turn with the other readers
//!     +-- sent by the engine, one send a wake-up
//! ```
//!
//! Bytes that arrive on one connection (ACKs on a stream) cause responses on others. So the outputs are in one table,
//! separate from the input state machines of the connections. Appending bytes marks the connection dirty; the engine
//! sends once for each dirty connection at the end of a wake-up.
//!
//! A long value is not copied: the output holds a pin of its entry, and the connection joins the queue of readers
//! ([`Outputs::next_reader`]). If the socket has no room, one page of the value is copied, and the engine sends that
//! page when there is room again. Then the connection rejoins the queue.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use kv_core::mutations::{self, Mutation};
use kv_core::replica::{ConnectionId, Responses};
use kv_protocol::client_message::{Response, ResponseHead, Status};
use kv_protocol::ids::Time;
use kv_protocol::limits::MAX_OUTPUT_BYTES;

use crate::connection_memory::{ConnectionMemory, Tally};
use crate::connection_table::{ConnectionIds, ConnectionTable};

mod single;

use single::{LongResponse, parts};
pub(crate) use single::{Output, PinnedValue};

/// The default length, in bytes, above which a value is sent directly from the table.
pub const LONG_VALUE: usize = 4 << 10;
/// The capacity above which an empty buffer is returned to the allocator. Smaller buffers are kept for reuse,
/// because they have grown to the size that a pipeline of requests needs.
const KEPT_CAPACITY: usize = 1 << 20;
/// The maximum number of empty buffers on the free list.
const KEPT_BUFFERS: usize = 64;
/// The maximum total capacity of the buffers on the free list, in bytes.
const KEPT_BYTES: usize = 4 << 20;

/// The outputs of all connections of a shard, by [`ConnectionId`] (slot and generation).
pub(crate) struct Outputs {
    ids: ConnectionIds,
    connections: ConnectionTable<Output>,
    dirty: VecDeque<ConnectionId>,
    dirty_streams: VecDeque<ConnectionId>,
    /// The readers: connections whose next bytes belong to a long value, in the order in which they are served.
    readers: VecDeque<ConnectionId>,
    /// The connections with further requests after some that take long, in the order in which they are served.
    postponed: VecDeque<ConnectionId>,
    /// Pins that are no longer needed and must be returned to their tables.
    released: Vec<PinnedValue>,
    tally: Tally,
    now: Time,
    /// The free list of buffers; a connection with nothing to send has no buffer.
    free_list: Vec<Vec<u8>>,
    /// The total capacity of all buffers on the free list.
    free_bytes: usize,
    /// The number of writes with the response OUT_OF_SPACE.
    out_of_space: u64,
    /// The number of connections of clients so far.
    clients_so_far: u64,
}

impl Outputs {
    /// Creates an empty set. The memory of its outputs is counted in `memory`.
    pub(crate) fn new(memory: Arc<ConnectionMemory>) -> Outputs {
        Outputs {
            ids: ConnectionIds::default(),
            connections: ConnectionTable::default(),
            dirty: VecDeque::new(),
            dirty_streams: VecDeque::new(),
            readers: VecDeque::new(),
            postponed: VecDeque::new(),
            released: Vec::new(),
            tally: Tally::new(memory),
            now: Time::default(),
            free_list: Vec::new(),
            free_bytes: 0,
            out_of_space: 0,
            clients_so_far: 0,
        }
    }

    /// Creates the output of a connection and returns its id, which is never issued again.
    pub(crate) fn open(&mut self, now: Time) -> ConnectionId {
        let id = self.ids.open();
        self.connections.insert(id, Output { last_progress: now, ..Output::default() });
        id
    }

    /// Creates the output whose bytes the shard itself reads.
    pub(crate) fn open_loopback(&mut self, now: Time) -> ConnectionId {
        let id = self.open(now);
        if let Some(output) = self.get(id) {
            output.is_loopback = true;
        }
        id
    }

    /// Removes a connection's output; unsent bytes are dropped.
    pub(crate) fn close(&mut self, id: ConnectionId) {
        if let Some(output) = self.connections.remove(id) {
            self.ids.close(id);
            self.tally.change(output.counted, 0);
            self.released.extend(output.long.into_iter().map(|long| long.value));
        }
    }

    /// Returns a connection's output; `None` after its close.
    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Output> {
        self.connections.get_mut(id)
    }

    /// Returns the number of open connections of clients.
    pub(crate) fn clients(&self) -> usize {
        self.connections.values().filter(|output| output.is_counted).count()
    }

    /// Returns the number of connections of clients so far.
    pub(crate) fn clients_so_far(&self) -> u64 {
        self.clients_so_far
    }

    /// Returns the memory budget of the process.
    pub(crate) fn memory(&self) -> &ConnectionMemory {
        self.tally.memory()
    }

    /// Returns the tally of the memory of this shard's connections, without long frames.
    pub(crate) fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    /// Starts to count the memory of a connection's output.
    pub(crate) fn count_memory(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id)
            && !std::mem::replace(&mut output.is_counted, true)
        {
            self.clients_so_far += 1;
        }
        self.recount(id);
    }

    fn recount(&mut self, id: ConnectionId) {
        let Outputs { connections, tally, .. } = self;
        if let Some(output) = connections.get_mut(id).filter(|output| output.is_counted) {
            let held = output.held();
            let before = std::mem::replace(&mut output.counted, held);
            tally.change(before, held);
            if held > before
                && tally.memory().is_used_up()
                && !mutations::is_open(Mutation::OutputUnbounded)
            {
                self.kill(id);
            }
        }
    }

    /// Returns whether the output has reached its limit, so that the connection is not read until some of it is sent.
    /// While connection memory is tight, any unsent byte counts as full. A closed connection and a postponed one also
    /// count as full.
    pub(crate) fn is_full(&mut self, id: ConnectionId) -> bool {
        let unsent = match self.get(id) {
            Some(output) if !output.is_postponed => output.unsent_bytes(),
            _ => return true,
        };
        let is_full = unsent >= MAX_OUTPUT_BYTES || (unsent > 0 && self.tally.memory().is_tight());
        is_full && !mutations::is_open(Mutation::OutputUnbounded)
    }

    /// Returns whether the connection's next request may be served. If the output is full, [`Outputs::has_room_again`]
    /// returns true once there is room.
    pub(crate) fn may_serve(&mut self, id: ConnectionId) -> bool {
        let is_full = self.is_full(id);
        match self.get(id) {
            Some(output) if !output.is_closing() => {
                output.has_kept_back |= is_full;
                !is_full
            }
            _ => false,
        }
    }

    /// Returns whether a connection whose requests were held back may be served again. Returns true only once.
    pub(crate) fn has_room_again(&mut self, id: ConnectionId) -> bool {
        let is_full = self.is_full(id);
        self.get(id).is_some_and(|output| !is_full && std::mem::take(&mut output.has_kept_back))
    }

    /// Postpones the further requests of a connection until [`Outputs::next_postponed`] returns it.
    pub(crate) fn postpone(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id)
            && !output.is_postponed
        {
            output.is_postponed = true;
            self.postponed.push_back(id);
        }
    }

    /// Takes the connection that has been postponed for longest. It is dirty afterwards, because it may be read again.
    pub(crate) fn next_postponed(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.postponed.pop_front() {
            if let Some(output) = self.get(id) {
                output.is_postponed = false;
                self.mark_dirty(id);
                return Some(id);
            }
        }
        None
    }

    /// Returns the number of postponed connections.
    pub(crate) fn postponed(&self) -> usize {
        self.postponed.len()
    }

    /// Lets `fill` append frames to a connection's output, and marks it dirty if bytes were appended.
    pub(crate) fn append(&mut self, id: ConnectionId, fill: impl FnOnce(&mut Vec<u8>)) {
        let Some(output) = self.connections.get_mut(id) else { return };
        if output.unsent_bytes() == 0 {
            output.last_progress = self.now;
        }
        let bytes = match output.long.back_mut() {
            Some(long) => &mut long.behind,
            None => &mut output.bytes,
        };
        if bytes.capacity() == 0
            && let Some(spare) = self.free_list.pop()
        {
            self.free_bytes -= spare.capacity();
            *bytes = spare;
        }
        let held = bytes.len();
        fill(bytes);
        let added = bytes.len() - held;
        let unused = if bytes.is_empty() { std::mem::take(bytes) } else { Vec::new() };
        if !output.long.is_empty() {
            output.long_bytes += added;
        }
        self.recycle(unused);
        self.recount(id);
        if added > 0 {
            self.mark_dirty(id);
        }
    }

    /// Appends a response whose value is sent from the table.
    pub(crate) fn append_long(&mut self, id: ConnectionId, head: ResponseHead, value: PinnedValue) {
        let now = self.now;
        let Some(output) = self.connections.get_mut(id) else { return self.released.push(value) };
        if output.unsent_bytes() == 0 {
            output.last_progress = now;
        }
        let behind = Vec::new();
        output.long_bytes += head.len() + value.range.len();
        output.long.push_back(LongResponse { head, value, sent: 0, pinned_at: now, behind });
        self.recount(id);
        self.join_line(id);
    }

    fn join_line(&mut self, id: ConnectionId) {
        if let Some(output) = self.connections.get_mut(id)
            && output.is_ready_reader()
        {
            output.is_in_line = true;
            self.readers.push_back(id);
        }
    }

    /// Takes the next reader from the queue.
    pub(crate) fn next_reader(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.readers.pop_front() {
            if let Some(output) = self.connections.get_mut(id) {
                output.is_in_line = false;
                if output.is_ready_reader() {
                    return Some(id);
                }
            }
        }
        None
    }

    /// Returns whether a reader waits for its turn.
    pub(crate) fn has_readers(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Returns whether there are pins to return to their tables.
    pub(crate) fn has_released(&self) -> bool {
        !self.released.is_empty()
    }

    /// Takes the pins to return to their tables.
    pub(crate) fn take_released(&mut self) -> Vec<PinnedValue> {
        std::mem::take(&mut self.released)
    }

    /// Returns the values for which a reader waits.
    pub(crate) fn pinned(&self, id: ConnectionId) -> impl Iterator<Item = &PinnedValue> {
        self.connections
            .get(id)
            .into_iter()
            .flat_map(|output| output.long.iter().map(|long| &long.value))
    }

    /// Returns the next bytes for a reader, at most `most`, as slices of the output and of values in the table. Returns
    /// `None` if the connection is closed, or if `value_of` does not find a value because the replica has lost its
    /// table.
    pub(crate) fn parts<'a, 't: 'a>(
        &'a self,
        id: ConnectionId,
        most: usize,
        value_of: impl Fn(&PinnedValue) -> Option<&'t [u8]>,
    ) -> Option<Vec<IoSlice<'a>>> {
        parts(self.connections.get(id)?, most, &value_of)
    }

    /// Records that the socket of a reader has accepted `sent` of `offered` bytes. If `sent` is less, the engine
    /// continues when the socket has room. Otherwise the reader rejoins the queue if it has more to send.
    pub(crate) fn handle_transmitted<'t>(
        &mut self,
        id: ConnectionId,
        offered: usize,
        sent: usize,
        value_of: impl Fn(&PinnedValue) -> Option<&'t [u8]>,
    ) {
        let now = self.now;
        let Some(output) = self.connections.get_mut(id) else { return };
        output.handle_sent_now(now, sent, &mut self.released);
        if sent < offered {
            output.is_blocked = true;
            output.copy_page(&value_of, &mut self.released);
        }
        self.let_go_of_empty(id);
        self.mark_dirty(id);
        self.join_line(id);
    }

    /// Removes the first `count` unsent bytes of a connection after they were sent.
    pub(crate) fn handle_sent(&mut self, now: Time, id: ConnectionId, count: usize) {
        let Some(output) = self.get(id) else { return };
        output.handle_sent(now, count);
        if output.taken == 0 && output.sent == output.bytes.len() {
            output.is_blocked = false;
        }
        self.let_go_of_empty(id);
        self.join_line(id);
    }

    /// Recycles a connection's buffer once all of its bytes are sent.
    fn let_go_of_empty(&mut self, id: ConnectionId) {
        let Some(output) = self.get(id) else { return };
        if output.sent > 0 && output.sent == output.bytes.len() {
            output.sent = 0;
            let emptied = std::mem::take(&mut output.bytes);
            self.recycle(emptied);
        }
        self.recount(id);
    }

    /// Takes an empty buffer from the free list, or creates one.
    pub(crate) fn take_buffer(&mut self) -> Vec<u8> {
        let buffer = self.free_list.pop().unwrap_or_default();
        self.free_bytes -= buffer.capacity();
        buffer
    }

    /// Puts a buffer on the free list, or frees it if the list is full.
    pub(crate) fn recycle(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if (1..=KEPT_CAPACITY).contains(&capacity)
            && self.free_list.len() < KEPT_BUFFERS
            && self.free_bytes + capacity <= KEPT_BYTES
        {
            buffer.clear();
            self.free_bytes += capacity;
            self.free_list.push(buffer);
        }
    }

    /// Schedules this connection for the engine's check at the end of the wake-up.
    pub(crate) fn mark_dirty(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id)
            && !output.is_dirty
            && !output.is_loopback
        {
            output.is_dirty = true;
            let queue = if output.is_stream { &mut self.dirty_streams } else { &mut self.dirty };
            queue.push_back(id);
        }
    }

    /// Closes a connection without sending its remaining bytes.
    pub(crate) fn kill(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id) {
            output.kill();
            self.mark_dirty(id);
        }
    }

    /// Marks a connection as a stream, so that it is checked before other connections.
    pub(crate) fn set_stream(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id) {
            output.is_stream = true;
        }
    }

    /// Returns whether the connection carries, or carried, the stream of a group.
    pub(crate) fn is_stream(&mut self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|output| output.is_stream)
    }

    /// Takes one dirty connection: a stream if one is dirty, else the connection that has been dirty for longest.
    pub(crate) fn next_dirty(&mut self) -> Option<ConnectionId> {
        self.next_dirty_stream().or_else(|| {
            let id = self.dirty.pop_front()?;
            self.take_dirty(id)
        })
    }

    /// Takes one dirty stream.
    pub(crate) fn next_dirty_stream(&mut self) -> Option<ConnectionId> {
        let id = self.dirty_streams.pop_front()?;
        self.take_dirty(id)
    }

    fn take_dirty(&mut self, id: ConnectionId) -> Option<ConnectionId> {
        if let Some(output) = self.get(id) {
            output.is_dirty = false;
        }
        Some(id)
    }

    /// Returns whether a connection is dirty.
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.dirty_streams.is_empty()
    }

    /// Returns the number of writes with the response OUT_OF_SPACE.
    pub(crate) fn out_of_space(&self) -> u64 {
        self.out_of_space
    }

    /// Sets the time of this wake-up, for all appends in it.
    pub(crate) fn set_now(&mut self, now: Time) {
        self.now = now;
    }
}

impl Responses for Outputs {
    fn respond(&mut self, to: ConnectionId, response: &Response<'_>) {
        if let Some(output) = self.get(to) {
            output.in_flight = output.in_flight.saturating_sub(1);
        }
        self.out_of_space += u64::from(response.status == Status::OutOfSpace);
        self.append(to, |bytes| response.write(bytes));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_protocol::limits::STALL_DEADLINE;

    use super::*;

    const NOW: Time = Time::from_nanos(1_000);

    fn outputs() -> Outputs {
        Outputs::new(ConnectionMemory::new(None, None, 2))
    }

    #[test]
    fn output_for_a_closed_connection_reaches_no_other() {
        let mut outputs = outputs();
        let first = outputs.open(NOW);
        outputs.close(first);
        let second = outputs.open(NOW);
        outputs.append(first, |bytes| bytes.push(1));
        assert!(outputs.get(first).is_none());
        assert!(outputs.get(second).unwrap().unsent().is_empty());
    }

    #[test]
    fn a_connection_is_dirty_only_once_however_much_is_appended() {
        let mut outputs = outputs();
        let id = outputs.open(NOW);
        for n in 0..3 {
            outputs.append(id, |bytes| bytes.push(n));
        }
        assert_eq!(outputs.next_dirty(), Some(id));
        assert_eq!(outputs.next_dirty(), None);
        let output = outputs.get(id).unwrap();
        assert_eq!(output.unsent(), [0, 1, 2]);
        outputs.handle_sent(NOW, id, 2);
        assert_eq!(outputs.get(id).unwrap().unsent(), [2]);
    }

    #[test]
    fn dirty_streams_come_first_and_the_others_in_order() {
        let mut outputs = outputs();
        let ids = [(); 4].map(|()| outputs.open(NOW));
        outputs.set_stream(ids[2]);
        ids.iter().for_each(|id| outputs.mark_dirty(*id));
        assert_eq!(outputs.next_dirty(), Some(ids[2]));
        assert_eq!(outputs.next_dirty_stream(), None);
        assert_eq!(outputs.next_dirty(), Some(ids[0]));
        outputs.mark_dirty(ids[0]);
        let rest = [(); 3].map(|()| outputs.next_dirty());
        assert_eq!(rest, [Some(ids[1]), Some(ids[3]), Some(ids[0])]);
        assert!(!outputs.has_dirty());
    }

    #[test]
    fn unsent_bytes_close_the_connection_at_the_stall_deadline() {
        let mut outputs = outputs();
        outputs.set_now(NOW);
        let id = outputs.open(NOW);
        assert_eq!(outputs.get(id).unwrap().deadline(), None);
        outputs.append(id, |bytes| bytes.extend([0; 10]));
        assert_eq!(outputs.get(id).unwrap().deadline(), Some(NOW + STALL_DEADLINE));
        let later = NOW + Duration::from_secs(3);
        outputs.handle_sent(later, id, 5);
        assert_eq!(outputs.get(id).unwrap().deadline(), Some(later + STALL_DEADLINE));
        outputs.handle_sent(later, id, 5);
        assert_eq!(outputs.get(id).unwrap().deadline(), None);
    }

    #[test]
    fn a_killed_connection_is_checked_once_and_has_nothing_to_send() {
        let mut outputs = outputs();
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([0; 10]));
        assert_eq!(outputs.next_dirty(), Some(id));
        // The same happens after a failed send: the engine checks the connection again and closes it, but must not
        // send again.
        outputs.kill(id);
        assert_eq!(outputs.next_dirty(), Some(id));
        assert!(outputs.get(id).unwrap().unsent().is_empty());
        assert!(outputs.get(id).unwrap().is_over());
        assert_eq!(outputs.next_dirty(), None);
    }

    #[test]
    fn bytes_taken_out_count_as_unsent_and_precede_later_ones() {
        let mut outputs = outputs();
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([1, 2, 3]));
        outputs.handle_sent(NOW, id, 1);
        let (first, from) = outputs.get(id).unwrap().take().unwrap();
        assert_eq!(first[from..], [2, 3]);
        outputs.append(id, |bytes| bytes.push(4));
        let output = outputs.get(id).unwrap();
        assert_eq!(output.unsent_bytes(), 3);
        assert_eq!(output.take(), None, "a second send began before the first was complete");
        assert!(output.deadline().is_some());
        output.close_after_responses(NOW);
        outputs.handle_sent(NOW, id, 2);
        assert!(!outputs.get(id).unwrap().is_over(), "one byte is not sent yet");
        let (second, from) = outputs.get(id).unwrap().take().unwrap();
        assert_eq!(second[from..], [4]);
        outputs.handle_sent(NOW, id, 1);
        assert!(outputs.get(id).unwrap().is_over());
    }

    #[test]
    fn a_connection_that_has_sent_all_keeps_no_buffer() {
        let mut outputs = outputs();
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([0; 1_000]));
        outputs.handle_sent(NOW, id, 1_000);
        assert_eq!(outputs.get(id).unwrap().bytes.capacity(), 0);
        let other = outputs.open(NOW);
        outputs.append(other, |bytes| bytes.push(1));
        assert!(outputs.get(other).unwrap().bytes.capacity() >= 1_000, "the buffer was not reused");
    }

    #[test]
    fn a_half_closed_connection_has_a_deadline_only_for_unsent_or_outstanding_responses() {
        let mut outputs = outputs();
        outputs.set_now(NOW);
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([0; 10]));
        outputs.get(id).unwrap().close_after_responses(NOW);
        let mut at = NOW;
        for _ in 0..5 {
            at = at + STALL_DEADLINE / 2;
            outputs.handle_sent(at, id, 1);
            let output = outputs.get(id).unwrap();
            assert_eq!(output.deadline(), Some(at + STALL_DEADLINE));
        }
        // A missing response does not keep the connection open for ever.
        outputs.get(id).unwrap().expect_response();
        assert_eq!(outputs.get(id).unwrap().deadline(), Some(NOW + STALL_DEADLINE));
    }

    #[test]
    fn a_half_closed_connection_ends_when_its_responses_are_sent() {
        let mut outputs = outputs();
        let id = outputs.open(NOW);
        let output = outputs.get(id).unwrap();
        output.expect_response();
        output.close_after_responses(NOW);
        assert!(!output.is_over());
        let response = Response {
            id: kv_protocol::RequestId(1),
            status: kv_protocol::client_message::Status::Ok,
            copies: 2,
            view: kv_protocol::ViewVersion(1),
            version: kv_protocol::SequenceNumber(1),
            value: &[],
            whole: 0,
            has_value: false,
            deadline: None,
        };
        outputs.respond(id, &response);
        let output = outputs.get(id).unwrap();
        assert!(!output.is_over());
        let all = output.unsent().len();
        outputs.handle_sent(NOW, id, all);
        assert!(outputs.get(id).unwrap().is_over());
    }
}
