//! What waits to be sent, for every connection of a shard.
//!
//! Answers to one connection's writes come out of the bytes of another (the peer's acks), so the
//! outputs live in one table apart from the connections' input machines. Whoever puts bytes in marks
//! the connection dirty; the engine sends once for each dirty connection at the end of a wake-up. Long values that
//! are read may go to the socket sooner, from where they lie (`service/direct.rs`).

use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;

use kv_core::replica::{Answers, ConnectionId};
use kv_protocol::client_message::Answer;
use kv_protocol::ids::Time;
use kv_protocol::limits::{MAX_OUTPUT_BYTES, STALL_DEADLINE};

/// A value of so many bytes is worth being sent from where it lies.
pub(crate) const LONG_VALUE: usize = 8 << 10;
/// A buffer larger than this is given back to the allocator when it runs empty. Below it, a buffer that has
/// grown to what a pipeline of large values takes need not grow again for the next one.
const KEPT_CAPACITY: usize = 1 << 20;
/// Empty buffers that are kept for whoever has something to send next, and what all of them may hold.
const KEPT_BUFFERS: usize = 64;
const KEPT_BYTES: usize = 4 << 20;
/// Sent bytes are cut off the front of a buffer when there are this many of them.
const COMPACT_BYTES: usize = 1 << 20;
/// How long a closing connection waits for the other side to take the last words and close.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);

/// A socket that takes bytes at once, or not.
pub(crate) trait SendNow {
    /// Sends as much of these parts, in order, as there is room for; how many bytes. An error is none: it comes
    /// again with the next ordinary send.
    fn send_now(&self, parts: &[IoSlice<'_>]) -> usize;
}

/// The bytes that one connection has to send, and how it is to end.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    sent: usize,
    /// Bytes that the engine has taken out and has not reported as sent; they go before `bytes`.
    taken: usize,
    /// When bytes were last taken, or came into an empty buffer.
    last_progress: Time,
    end: End,
    is_dirty: bool,
    /// Whether it is that of a stream between servers.
    is_stream: bool,
    /// Requests given to a replica whose answers have not come.
    in_flight: u32,
    /// For long values, if the engine has given one.
    socket: Option<Rc<dyn SendNow>>,
    /// Whether the last value was long.
    reads_long_values: bool,
    /// How many bytes went to it directly in the wake-up of this time.
    direct: (Time, usize),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    /// Not yet.
    #[default]
    Open,
    /// When its answers are sent: the other side has sent all it will. Answers that have not come
    /// are waited for until this time.
    HalfClosed(Time),
    /// The last words are in the buffer: when they are sent and the other side has closed too, or
    /// at this time.
    LastWords { at: Time, has_other_closed: bool },
    /// At once.
    Dead,
}

impl Output {
    /// The bytes to send that are not taken out; none on a connection that is dead.
    pub(crate) fn unsent(&self) -> &[u8] {
        match self.end {
            End::Dead => &[],
            _ => &self.bytes[self.sent..],
        }
    }

    /// How many bytes are not reported as sent, taken out or not; none on a connection that is dead.
    pub(crate) fn unsent_bytes(&self) -> usize {
        match self.end {
            End::Dead => 0,
            _ => self.taken + self.bytes.len() - self.sent,
        }
    }

    /// Takes out all bytes to send, and where in the buffer they begin; they count as unsent until
    /// [`Output::on_sent`] says otherwise. `None` when there are none, or others are still out.
    pub(crate) fn take(&mut self) -> Option<(Vec<u8>, usize)> {
        if self.taken > 0 || self.unsent().is_empty() {
            return None;
        }
        self.taken = self.unsent().len();
        Some((std::mem::take(&mut self.bytes), std::mem::take(&mut self.sent)))
    }

    /// Whether as much waits as may: nothing more is read from this connection until it is sent.
    pub(crate) fn is_full(&self) -> bool {
        self.unsent_bytes() >= MAX_OUTPUT_BYTES
    }

    /// Notes that the first `count` unsent bytes are gone.
    fn on_sent(&mut self, now: Time, count: usize) {
        self.last_progress = now;
        if self.taken > 0 {
            self.taken -= count;
            return;
        }
        self.sent += count;
        if self.sent < self.bytes.len()
            && self.sent >= COMPACT_BYTES
            && self.sent * 2 >= self.bytes.len()
        {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// When the connection is to be closed for what its output (not its input) does.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let stalled = (self.unsent_bytes() > 0).then(|| self.last_progress + STALL_DEADLINE);
        let ending = match self.end {
            End::Open | End::Dead => None,
            End::HalfClosed(at) => (self.in_flight > 0).then_some(at),
            End::LastWords { at, .. } => Some(at),
        };
        stalled.into_iter().chain(ending).min()
    }

    /// Whether the connection is to be closed now.
    pub(crate) fn is_over(&self) -> bool {
        match self.end {
            End::Dead => true,
            End::HalfClosed(_) => self.in_flight == 0 && self.unsent_bytes() == 0,
            End::LastWords { has_other_closed, .. } => has_other_closed && self.unsent_bytes() == 0,
            End::Open => false,
        }
    }

    /// Whether the last words are in the buffer: what still comes in is thrown away.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.end, End::LastWords { .. } | End::Dead)
    }

    /// Whether the other side has sent all it will.
    pub(crate) fn is_half_closed(&self) -> bool {
        matches!(self.end, End::HalfClosed(_) | End::LastWords { has_other_closed: true, .. })
    }

    /// Whether the last words are sent, so that our direction can be shut.
    pub(crate) fn has_said_last_words(&self) -> bool {
        matches!(self.end, End::LastWords { .. }) && self.unsent_bytes() == 0
    }

    /// Sends what is in the buffer, then closes.
    pub(crate) fn close_after_last_words(&mut self, now: Time) {
        let has_other_closed = self.is_half_closed();
        if !self.is_closing() {
            self.end = End::LastWords { at: now + LAST_WORDS_DEADLINE, has_other_closed };
        }
    }

    /// The other side has sent all it will: closes when what was asked is answered.
    pub(crate) fn close_after_answers(&mut self, now: Time) {
        match self.end {
            End::Open => self.end = End::HalfClosed(now + STALL_DEADLINE),
            End::LastWords { at, .. } => self.end = End::LastWords { at, has_other_closed: true },
            End::HalfClosed(_) | End::Dead => {}
        }
    }

    /// Since when the connection waits for nothing: no answer is due and none is unsent.
    pub(crate) fn idle_since(&self) -> Option<Time> {
        let is_idle = self.end == End::Open && self.in_flight == 0 && self.unsent_bytes() == 0;
        is_idle.then_some(self.last_progress)
    }

    /// Closes at once.
    pub(crate) fn kill(&mut self) {
        self.end = End::Dead;
    }

    /// Notes that a request went to a replica, which answers now or later.
    pub(crate) fn expect_answer(&mut self) {
        self.in_flight += 1;
    }
}

/// The outputs of all connections of a shard, by [`ConnectionId`] (slot and generation).
#[derive(Default)]
pub(crate) struct Outputs {
    slots: Vec<Slot>,
    free: Vec<u32>,
    dirty: VecDeque<ConnectionId>,
    dirty_streams: VecDeque<ConnectionId>,
    now: Time,
    /// A connection that has nothing to send has no buffer; this is where it gets one.
    spares: Vec<Vec<u8>>,
    /// What they have room for.
    spare_bytes: usize,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    output: Option<Output>,
}

/// The place of a connection in the tables of its shard.
pub(crate) fn slot_of(id: ConnectionId) -> usize {
    usize::try_from(id.0 & u64::from(u32::MAX)).expect("a slot fits 32 bits")
}

fn generation_of(id: ConnectionId) -> u32 {
    u32::try_from(id.0 >> 32).expect("the upper half has 32 bits")
}

impl Outputs {
    /// Makes room for a connection. Its id is never given again.
    pub(crate) fn open(&mut self, now: Time) -> ConnectionId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("connections are bounded far below")
        });
        let slot = &mut self.slots[index as usize];
        slot.output = Some(Output { last_progress: now, ..Output::default() });
        ConnectionId(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// Takes a connection's room back; what it had not sent is dropped.
    pub(crate) fn close(&mut self, id: ConnectionId) {
        let slot = &mut self.slots[slot_of(id)];
        if slot.generation == generation_of(id) && slot.output.take().is_some() {
            // A slot whose generations are used up is not used again.
            if let Some(next) = slot.generation.checked_add(1) {
                slot.generation = next;
                self.free.push(u32::try_from(slot_of(id)).expect("it was 32 bits wide"));
            }
        }
    }

    /// A connection's output; `None` when it is gone.
    pub(crate) fn get(&mut self, id: ConnectionId) -> Option<&mut Output> {
        find(&mut self.slots, id)
    }

    /// Lets `fill` append frames to a connection's output, and marks it dirty if it did.
    pub(crate) fn append(&mut self, id: ConnectionId, fill: impl FnOnce(&mut Vec<u8>)) {
        let Some(output) = find(&mut self.slots, id) else { return };
        if output.unsent_bytes() == 0 {
            output.last_progress = self.now;
        }
        if output.bytes.capacity() == 0
            && let Some(spare) = self.spares.pop()
        {
            self.spare_bytes -= spare.capacity();
            output.bytes = spare;
        }
        let held = output.bytes.len();
        fill(&mut output.bytes);
        if output.bytes.len() > held {
            self.mark_dirty(id);
        } else if held == 0 {
            let unused = std::mem::take(&mut output.bytes);
            self.recycle(unused);
        }
    }

    /// Lets long values go to this socket directly.
    pub(crate) fn set_socket(&mut self, id: ConnectionId, socket: Rc<dyn SendNow>) {
        if let Some(output) = self.get(id) {
            output.socket = Some(socket);
        }
    }

    /// For a connection whose reads have long values: how many bytes it was sent directly in this wake-up, or has to
    /// be sent before the next ones. `None` if those cannot go directly.
    pub(crate) fn before_direct(&mut self, id: ConnectionId) -> Option<usize> {
        let now = self.now;
        let output = self.get(id)?;
        let is_free = output.taken == 0 && !output.is_closing();
        let (at, sent) = output.direct;
        let sent = if at == now { sent } else { 0 };
        (output.socket.is_some() && output.reads_long_values && is_free)
            .then(|| sent + output.unsent().len())
    }

    /// Sends these parts at once, behind what there is to send; what the socket does not take is appended.
    pub(crate) fn send_directly(&mut self, id: ConnectionId, parts: &[IoSlice<'_>]) {
        let now = self.now;
        let Some(output) = self.get(id) else { return };
        let Some(socket) = output.socket.clone().filter(|_| output.taken == 0) else { return };
        let waiting = output.unsent();
        let all: Vec<_> =
            std::iter::once(IoSlice::new(waiting)).chain(parts.iter().copied()).collect();
        let sent = socket.send_now(&all);
        let first = sent.min(waiting.len());
        let mut later = sent - first;
        let (at, before) = output.direct;
        output.direct = (now, sent + if at == now { before } else { 0 });
        if first > 0 {
            self.on_sent(now, id, first);
        }
        self.append(id, |bytes| {
            for part in parts {
                let gone = later.min(part.len());
                later -= gone;
                bytes.extend_from_slice(&part[gone..]);
            }
        });
    }

    /// Notes that the first `count` unsent bytes of a connection are gone.
    pub(crate) fn on_sent(&mut self, now: Time, id: ConnectionId, count: usize) {
        let Some(output) = self.get(id) else { return };
        output.on_sent(now, count);
        if output.sent > 0 && output.sent == output.bytes.len() {
            output.sent = 0;
            let emptied = std::mem::take(&mut output.bytes);
            self.recycle(emptied);
        }
    }

    /// Takes back a buffer whose bytes are not needed any more.
    pub(crate) fn recycle(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if (1..=KEPT_CAPACITY).contains(&capacity)
            && self.spares.len() < KEPT_BUFFERS
            && self.spare_bytes + capacity <= KEPT_BYTES
        {
            buffer.clear();
            self.spare_bytes += capacity;
            self.spares.push(buffer);
        }
    }

    /// Has the engine look at this connection at the end of the wake-up.
    pub(crate) fn mark_dirty(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id)
            && !output.is_dirty
        {
            output.is_dirty = true;
            let queue = if output.is_stream { &mut self.dirty_streams } else { &mut self.dirty };
            queue.push_back(id);
        }
    }

    /// Closes a connection at once, from whichever machine finds it must end.
    pub(crate) fn kill(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id) {
            output.kill();
            self.mark_dirty(id);
        }
    }

    /// Has this connection looked at before those that carry no stream.
    pub(crate) fn set_stream(&mut self, id: ConnectionId) {
        if let Some(output) = self.get(id) {
            output.is_stream = true;
        }
    }

    /// Whether it carries the stream of a group, or did so last.
    pub(crate) fn is_stream(&mut self, id: ConnectionId) -> bool {
        self.get(id).is_some_and(|output| output.is_stream)
    }

    /// Takes one dirty connection: a stream, else the one that has waited for longest.
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

    /// Whether the engine has something to look at.
    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.dirty_streams.is_empty()
    }

    /// The time of this wake-up, for what is appended in it.
    pub(crate) fn set_now(&mut self, now: Time) {
        self.now = now;
    }
}

fn find(slots: &mut [Slot], id: ConnectionId) -> Option<&mut Output> {
    let slot = slots.get_mut(slot_of(id))?;
    if slot.generation != generation_of(id) {
        return None;
    }
    slot.output.as_mut()
}

impl Answers for Outputs {
    fn answer(&mut self, to: ConnectionId, answer: &Answer<'_>) {
        if let Some(output) = self.get(to) {
            output.in_flight = output.in_flight.saturating_sub(1);
            if !answer.value.is_empty() {
                output.reads_long_values = answer.value.len() >= LONG_VALUE;
            }
        }
        self.append(to, |bytes| answer.write(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::from_nanos(1_000);

    #[test]
    fn the_id_of_a_closed_connection_reaches_nobody() {
        let mut outputs = Outputs::default();
        let first = outputs.open(NOW);
        outputs.close(first);
        let second = outputs.open(NOW);
        assert_eq!(slot_of(first), slot_of(second));
        assert_ne!(first, second);
        outputs.append(first, |bytes| bytes.push(1));
        assert!(outputs.get(first).is_none());
        assert!(outputs.get(second).unwrap().unsent().is_empty());
    }

    #[test]
    fn a_connection_is_dirty_once_however_much_is_appended() {
        let mut outputs = Outputs::default();
        let id = outputs.open(NOW);
        for n in 0..3 {
            outputs.append(id, |bytes| bytes.push(n));
        }
        assert_eq!(outputs.next_dirty(), Some(id));
        assert_eq!(outputs.next_dirty(), None);
        let output = outputs.get(id).unwrap();
        assert_eq!(output.unsent(), [0, 1, 2]);
        outputs.on_sent(NOW, id, 2);
        assert_eq!(outputs.get(id).unwrap().unsent(), [2]);
    }

    #[test]
    fn streams_are_looked_at_first_and_the_others_in_their_order() {
        let mut outputs = Outputs::default();
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
    fn bytes_that_nobody_takes_end_the_connection_at_the_stall_deadline() {
        let mut outputs = Outputs::default();
        outputs.set_now(NOW);
        let id = outputs.open(NOW);
        assert_eq!(outputs.get(id).unwrap().deadline(), None);
        outputs.append(id, |bytes| bytes.extend([0; 10]));
        assert_eq!(outputs.get(id).unwrap().deadline(), Some(NOW + STALL_DEADLINE));
        let later = NOW + Duration::from_secs(3);
        outputs.on_sent(later, id, 5);
        assert_eq!(outputs.get(id).unwrap().deadline(), Some(later + STALL_DEADLINE));
        outputs.on_sent(later, id, 5);
        assert_eq!(outputs.get(id).unwrap().deadline(), None);
    }

    #[test]
    fn a_connection_that_is_killed_is_looked_at_once_and_has_nothing_to_send_any_more() {
        let mut outputs = Outputs::default();
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([0; 10]));
        assert_eq!(outputs.next_dirty(), Some(id));
        // As when the send fails: the engine looks again, to close it, and must not send again.
        outputs.kill(id);
        assert_eq!(outputs.next_dirty(), Some(id));
        assert!(outputs.get(id).unwrap().unsent().is_empty());
        assert!(outputs.get(id).unwrap().is_over());
        assert_eq!(outputs.next_dirty(), None);
    }

    #[test]
    fn bytes_that_were_taken_out_count_as_unsent_and_go_before_what_comes_later() {
        let mut outputs = Outputs::default();
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([1, 2, 3]));
        outputs.on_sent(NOW, id, 1);
        let (first, from) = outputs.get(id).unwrap().take().unwrap();
        assert_eq!(first[from..], [2, 3]);
        outputs.append(id, |bytes| bytes.push(4));
        let output = outputs.get(id).unwrap();
        assert_eq!(output.unsent_bytes(), 3);
        assert_eq!(output.take(), None, "there is one send at a time");
        assert!(output.deadline().is_some());
        output.close_after_answers(NOW);
        outputs.on_sent(NOW, id, 2);
        assert!(!outputs.get(id).unwrap().is_over(), "the rest is owed");
        let (second, from) = outputs.get(id).unwrap().take().unwrap();
        assert_eq!(second[from..], [4]);
        outputs.on_sent(NOW, id, 1);
        assert!(outputs.get(id).unwrap().is_over());
    }

    #[test]
    fn a_connection_that_has_sent_all_keeps_no_buffer() {
        let mut outputs = Outputs::default();
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([0; 1_000]));
        outputs.on_sent(NOW, id, 1_000);
        assert_eq!(outputs.get(id).unwrap().bytes.capacity(), 0);
        let other = outputs.open(NOW);
        outputs.append(other, |bytes| bytes.push(1));
        assert!(outputs.get(other).unwrap().bytes.capacity() >= 1_000, "it is used again");
    }

    #[test]
    fn a_half_closed_connection_is_cut_only_while_it_takes_nothing_or_is_owed_an_answer() {
        let mut outputs = Outputs::default();
        outputs.set_now(NOW);
        let id = outputs.open(NOW);
        outputs.append(id, |bytes| bytes.extend([0; 10]));
        outputs.get(id).unwrap().close_after_answers(NOW);
        let mut at = NOW;
        for _ in 0..5 {
            at = at + STALL_DEADLINE / 2;
            outputs.on_sent(at, id, 1);
            let output = outputs.get(id).unwrap();
            assert_eq!(output.deadline(), Some(at + STALL_DEADLINE));
        }
        // An answer that never comes does not keep it for ever.
        outputs.get(id).unwrap().expect_answer();
        assert_eq!(outputs.get(id).unwrap().deadline(), Some(NOW + STALL_DEADLINE));
    }

    #[test]
    fn a_half_closed_connection_ends_when_its_answers_are_sent() {
        let mut outputs = Outputs::default();
        let id = outputs.open(NOW);
        let output = outputs.get(id).unwrap();
        output.expect_answer();
        output.close_after_answers(NOW);
        assert!(!output.is_over());
        let answer = Answer {
            id: kv_protocol::RequestId(1),
            status: kv_protocol::client_message::Status::Ok,
            copies: 2,
            view: kv_protocol::ViewVersion(1),
            version: kv_protocol::SequenceNumber(1),
            value: &[],
        };
        outputs.answer(id, &answer);
        let output = outputs.get(id).unwrap();
        assert!(!output.is_over());
        let all = output.unsent().len();
        outputs.on_sent(NOW, id, all);
        assert!(outputs.get(id).unwrap().is_over());
    }
}
