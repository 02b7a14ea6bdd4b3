//! The output of one connection, and how the connection is to end.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use kv_core::table::Pin;
use kv_protocol::client_message::AnswerHead;
use kv_protocol::ids::{GroupId, Time};
use kv_protocol::limits::{MAX_DEADLINE, STALL_DEADLINE};

use super::SendNow;

/// What is copied of a long value so that the engine can wait for room in the socket.
const PAGE: usize = 4 << 10;
/// Most parts of one send of long values; each has up to three.
const MOST_PARTS: usize = 192;
/// Sent bytes are cut off the front of a buffer when there are this many of them.
const COMPACT_BYTES: usize = 128 << 10;
/// How long a closing connection waits for the other side to take the last words and close.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);
/// A connection that takes nothing for this long is closed if others need the memory of its output.
const STALL_UNDER_PRESSURE: Duration = Duration::from_secs(1);

/// The bytes of a value in the table of a group that a response has.
#[derive(Debug)]
pub(crate) struct PinnedValue {
    pub(crate) group: GroupId,
    pub(crate) pin: Pin,
    pub(crate) range: Range<usize>,
}

/// A response whose value is sent from the table.
#[derive(Debug)]
pub(super) struct LongAnswer {
    pub(super) head: AnswerHead,
    pub(super) value: PinnedValue,
    /// How many bytes of head and value are gone.
    pub(super) sent: usize,
    pub(super) pinned_at: Time,
    /// What follows it.
    pub(super) behind: Vec<u8>,
}

impl LongAnswer {
    pub(super) fn unsent(&self) -> usize {
        self.head.len() + self.value.range.len() - self.sent
    }

    /// The parts of head and value, at most `most` bytes of them, that are to be sent.
    pub(super) fn parts<'a>(&'a self, value: &'a [u8], most: usize) -> [&'a [u8]; 2] {
        let head = &self.head[self.sent.min(self.head.len())..];
        let head = &head[..head.len().min(most)];
        let value = &value[self.sent.saturating_sub(self.head.len())..];
        [head, &value[..value.len().min(most - head.len())]]
    }
}

/// The bytes that one connection has to send, and how it is to end.
#[derive(Default)]
pub(crate) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// Bytes that the engine has taken out and has not reported as sent; they go before `bytes`.
    pub(super) taken: usize,
    pub(super) taken_capacity: usize,
    /// What follows `bytes`.
    pub(super) long: VecDeque<LongAnswer>,
    /// Unsent bytes of `long`, with those behind each.
    pub(super) long_bytes: usize,
    /// When bytes were last taken, or came into an empty buffer.
    pub(super) last_progress: Time,
    pub(super) end: End,
    pub(super) is_dirty: bool,
    /// Whether it is that of a stream between servers.
    pub(super) is_stream: bool,
    /// Whether it stands in the line of readers.
    pub(super) is_in_line: bool,
    /// Whether the socket took less than it was offered; until what the engine sends then is gone.
    pub(super) is_blocked: bool,
    /// Requests given to a replica whose answers have not come.
    pub(super) in_flight: u32,
    /// For long values, if the engine has given one.
    pub(super) socket: Option<Rc<dyn SendNow>>,
    /// Whether its memory counts among that of the connections: a client's does.
    pub(super) is_counted: bool,
    pub(super) counted: usize,
    /// Requests are kept back until some of the output is sent.
    pub(super) has_kept_back: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
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
    /// The bytes that the engine is to send next and has not taken out; none on a connection that is dead.
    pub(crate) fn unsent(&self) -> &[u8] {
        match self.end {
            End::Dead => &[],
            _ => &self.bytes[self.sent..],
        }
    }

    /// How many bytes are not reported as sent, taken out or not, long values included; none on a
    /// connection that is dead.
    pub(crate) fn unsent_bytes(&self) -> usize {
        match self.end {
            End::Dead => 0,
            _ => self.taken + self.bytes.len() - self.sent + self.long_bytes,
        }
    }

    /// Takes out all bytes that the engine is to send, and where in the buffer they begin; they count as
    /// unsent until [`Outputs::on_sent`] says otherwise. `None` when there are none, or others are still out.
    pub(crate) fn take(&mut self) -> Option<(Vec<u8>, usize)> {
        if self.taken > 0 || self.unsent().is_empty() {
            return None;
        }
        self.taken = self.unsent().len();
        self.taken_capacity = self.bytes.capacity();
        Some((std::mem::take(&mut self.bytes), std::mem::take(&mut self.sent)))
    }

    /// Notes that the first `count` unsent bytes are gone.
    pub(super) fn on_sent(&mut self, now: Time, count: usize) {
        self.last_progress = now;
        if self.taken > 0 {
            self.taken -= count;
            if self.taken == 0 {
                self.taken_capacity = 0;
            }
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

    /// Notes that the first `count` bytes of what is not taken out are gone, long values included.
    /// Returns the pins that are not needed any more.
    pub(super) fn on_sent_now(&mut self, now: Time, count: usize, released: &mut Vec<PinnedValue>) {
        let first = count.min(self.bytes.len() - self.sent);
        if count > 0 {
            self.on_sent(now, first);
        }
        let mut rest = count - first;
        while let Some(long) = self.long.front_mut() {
            let of_it = rest.min(long.unsent());
            long.sent += of_it;
            self.long_bytes -= of_it;
            rest -= of_it;
            if long.unsent() > 0 {
                return;
            }
            self.pop_long(released);
            let behind = rest.min(self.bytes.len() - self.sent);
            self.sent += behind;
            rest -= behind;
            if self.sent < self.bytes.len() {
                return;
            }
        }
    }

    /// Copies the next page of the first long response for the engine to send, if nothing goes before it.
    pub(super) fn copy_page<'t>(
        &mut self,
        value_of: &impl Fn(&PinnedValue) -> Option<&'t [u8]>,
        released: &mut Vec<PinnedValue>,
    ) {
        let Some(long) = self.long.front_mut().filter(|_| self.sent == self.bytes.len()) else {
            return;
        };
        let Some(value) = value_of(&long.value) else { return };
        let [head, value] = long.parts(value, PAGE);
        let count = head.len() + value.len();
        self.bytes.clear();
        self.sent = 0;
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(value);
        long.sent += count;
        self.long_bytes -= count;
        if long.unsent() == 0 {
            self.pop_long(released);
        }
    }

    /// Takes a long response that is gone off the front; what is behind it goes next.
    fn pop_long(&mut self, released: &mut Vec<PinnedValue>) {
        let Some(LongAnswer { value, behind, .. }) = self.long.pop_front() else { return };
        released.push(value);
        self.long_bytes -= behind.len();
        if self.sent == self.bytes.len() {
            self.bytes = behind;
            self.sent = 0;
        } else {
            self.bytes.extend_from_slice(&behind);
        }
    }

    /// Whether it can join the line of readers.
    pub(super) fn is_ready_reader(&self) -> bool {
        !self.long.is_empty()
            && !self.is_in_line
            && !self.is_blocked
            && self.taken == 0
            && self.end != End::Dead
    }

    /// What its buffers take.
    pub(super) fn held(&self) -> usize {
        let long = self.long.iter().map(|long| long.behind.capacity() + size_of::<LongAnswer>());
        self.bytes.capacity() + self.taken_capacity + long.sum::<usize>()
    }

    /// When the connection is to be closed for what its output (not its input) does.
    pub(crate) fn deadline(&self) -> Option<Time> {
        // A reader in the line waits for this server.
        let is_stalled = self.unsent_bytes() > 0 && !self.is_in_line;
        let stalled = is_stalled.then(|| self.last_progress + STALL_DEADLINE);
        // No caller waits for a response for longer.
        let pinned = self.long.front().map(|long| long.pinned_at + MAX_DEADLINE);
        let ending = match self.end {
            End::Open | End::Dead => None,
            End::HalfClosed(at) => (self.in_flight > 0).then_some(at),
            End::LastWords { at, .. } => Some(at),
        };
        stalled.into_iter().chain(pinned).chain(ending).min()
    }

    /// Whether it holds memory, and has taken nothing for so long that it is closed if others need that.
    pub(crate) fn is_stalled_under_pressure(&self, now: Time) -> bool {
        self.counted > 0
            && self.unsent_bytes() > 0
            && !self.is_in_line
            && self.last_progress + STALL_UNDER_PRESSURE <= now
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

/// What a reader is to be sent next, at most so many bytes; `None` if a value is gone.
pub(super) fn parts<'a, 't: 'a>(
    output: &'a Output,
    most: usize,
    value_of: &impl Fn(&PinnedValue) -> Option<&'t [u8]>,
) -> Option<Vec<IoSlice<'a>>> {
    let mut room = most;
    let mut parts = Vec::new();
    let mut add = |part: &'a [u8]| {
        let part = &part[..part.len().min(room)];
        room -= part.len();
        if !part.is_empty() {
            parts.push(IoSlice::new(part));
        }
        room
    };
    let mut left = add(output.unsent());
    for long in output.long.iter().take(MOST_PARTS / 3) {
        if left == 0 {
            break;
        }
        let [head, value] = long.parts(value_of(&long.value)?, left);
        add(head);
        add(value);
        left = add(&long.behind);
    }
    Some(parts)
}
