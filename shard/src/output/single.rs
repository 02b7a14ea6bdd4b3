//! The output of one connection, and the progress of its close.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::time::Duration;

use kv_core::table::Pin;
use kv_protocol::client_message::{Request, ResponseHead};
use kv_protocol::ids::{GroupId, Time};
use kv_protocol::limits::{MAX_DEADLINE, STALL_DEADLINE};

/// The number of bytes of a long value that are copied into the output if the socket has no room.
const PAGE: usize = 4 << 10;
/// The maximum number of slices that long responses contribute to one send; each has up to three.
const MOST_PARTS: usize = 192;
/// The minimum number of sent bytes at the front of a buffer before it is compacted.
const COMPACT_BYTES: usize = 128 << 10;
/// The time for which a closing connection waits for the other side to receive the final bytes and to close.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);
/// The time without progress after which a connection is closed if other connections need the memory of its output.
const STALL_UNDER_PRESSURE: Duration = Duration::from_secs(1);

/// The range of a pinned value that a response contains.
#[derive(Debug)]
pub(crate) struct PinnedValue {
    pub(crate) group: GroupId,
    pub(crate) pin: Pin,
    pub(crate) range: Range<usize>,
    /// The key, for the mutation that looks the value up again.
    #[cfg(feature = "mutations")]
    pub(crate) key: Box<[u8]>,
}

impl PinnedValue {
    /// Creates the value of the response to `request`: this range of the pinned entry.
    #[cfg_attr(not(feature = "mutations"), allow(unused_variables))]
    pub(crate) fn new(
        group: GroupId,
        pin: Pin,
        range: Range<usize>,
        request: &Request<'_>,
    ) -> PinnedValue {
        PinnedValue {
            group,
            pin,
            range,
            #[cfg(feature = "mutations")]
            key: request.key.into(),
        }
    }
}

/// A response whose value is sent from the table.
#[derive(Debug)]
pub(super) struct LongResponse {
    pub(super) head: ResponseHead,
    pub(super) value: PinnedValue,
    /// The number of bytes of head and value that were sent.
    pub(super) sent: usize,
    pub(super) pinned_at: Time,
    /// The bytes to send after this response.
    pub(super) behind: Vec<u8>,
}

impl LongResponse {
    pub(super) fn unsent(&self) -> usize {
        self.head.len() + self.value.range.len() - self.sent
    }

    /// Returns the unsent parts of head and value, at most `most` bytes of them.
    pub(super) fn parts<'a>(&'a self, value: &'a [u8], most: usize) -> [&'a [u8]; 2] {
        let head = &self.head[self.sent.min(self.head.len())..];
        let head = &head[..head.len().min(most)];
        let value = &value[self.sent.saturating_sub(self.head.len())..];
        [head, &value[..value.len().min(most - head.len())]]
    }
}

/// The unsent bytes of one connection, and the progress of its close.
#[derive(Default)]
pub(crate) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
    /// The number of bytes that the engine has taken out and has not reported as sent; they precede `bytes`.
    pub(super) taken: usize,
    pub(super) taken_capacity: usize,
    /// Responses with long values, to be sent after `bytes`.
    pub(super) long: VecDeque<LongResponse>,
    /// The number of unsent bytes of `long`, including those behind each response.
    pub(super) long_bytes: usize,
    /// The time at which bytes were last sent, or appended to an empty output.
    pub(super) last_progress: Time,
    pub(super) end: End,
    pub(super) is_dirty: bool,
    /// True for a stream between servers.
    pub(super) is_stream: bool,
    /// True for the output whose bytes the shard itself reads.
    pub(super) is_loopback: bool,
    /// True while the connection is in the queue of readers.
    pub(super) is_in_line: bool,
    /// True after the socket has accepted fewer bytes than offered, until the engine has sent all of `bytes`.
    pub(super) is_blocked: bool,
    /// The number of requests that were passed to a replica and whose responses are not appended yet.
    pub(super) in_flight: u32,
    /// True if the output counts as connection memory, as for a client.
    pub(super) is_counted: bool,
    pub(super) counted: usize,
    /// True if requests are held back until some of the output is sent.
    pub(super) has_kept_back: bool,
    /// True while the connection waits for its turn after it had requests that take long.
    pub(super) is_postponed: bool,
}

/// The progress of the end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    /// The connection does not end yet.
    #[default]
    Open,
    /// The input has ended, so the connection ends when its responses are sent. It waits for outstanding responses
    /// until this time.
    HalfClosed(Time),
    /// The final bytes are in the buffer. The connection ends when they are sent and the other side has closed too, or
    /// at this time.
    LastWords { at: Time, has_other_closed: bool },
    /// The connection ends at once.
    Dead,
}

impl Output {
    /// Returns the bytes that the engine sends next and has not taken out; none on a dead connection.
    pub(crate) fn unsent(&self) -> &[u8] {
        match self.end {
            End::Dead => &[],
            _ => &self.bytes[self.sent..],
        }
    }

    /// Returns the number of bytes not yet reported as sent, taken out or not, including long values; 0 on a dead
    /// connection.
    pub(crate) fn unsent_bytes(&self) -> usize {
        match self.end {
            End::Dead => 0,
            _ => self.taken + self.bytes.len() - self.sent + self.long_bytes,
        }
    }

    /// Takes out all bytes that the engine is to send. Returns the buffer and the offset of the first byte. The bytes
    /// count as unsent until [`super::Outputs::handle_sent`]. Returns `None` if there are none, or if the engine still
    /// has earlier ones.
    pub(crate) fn take(&mut self) -> Option<(Vec<u8>, usize)> {
        if self.taken > 0 || self.unsent().is_empty() {
            return None;
        }
        self.taken = self.unsent().len();
        self.taken_capacity = self.bytes.capacity();
        Some((std::mem::take(&mut self.bytes), std::mem::take(&mut self.sent)))
    }

    /// Removes the first `count` unsent bytes after they were sent.
    pub(super) fn handle_sent(&mut self, now: Time, count: usize) {
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

    /// Removes the first `count` bytes that are not taken out, including long values, after they were sent. Appends
    /// pins that are no longer needed to `released`.
    pub(super) fn handle_sent_now(
        &mut self,
        now: Time,
        count: usize,
        released: &mut Vec<PinnedValue>,
    ) {
        let first = count.min(self.bytes.len() - self.sent);
        if count > 0 {
            self.handle_sent(now, first);
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

    /// Copies the next page of the first long response for the engine to send, if no bytes precede it.
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

    /// Removes the first long response, which was sent in full. The bytes after it are sent next.
    fn pop_long(&mut self, released: &mut Vec<PinnedValue>) {
        let Some(LongResponse { value, behind, .. }) = self.long.pop_front() else { return };
        released.push(value);
        self.long_bytes -= behind.len();
        if self.sent == self.bytes.len() {
            self.bytes = behind;
            self.sent = 0;
        } else {
            self.bytes.extend_from_slice(&behind);
        }
    }

    /// Returns whether the connection can join the queue of readers.
    pub(super) fn is_ready_reader(&self) -> bool {
        !self.long.is_empty()
            && !self.is_in_line
            && !self.is_blocked
            && self.taken == 0
            && self.end != End::Dead
    }

    /// Returns the memory of the buffers, in bytes.
    pub(super) fn held(&self) -> usize {
        let long = self.long.iter().map(|long| long.behind.capacity() + size_of::<LongResponse>());
        self.bytes.capacity() + self.taken_capacity + long.sum::<usize>()
    }

    /// Returns when to close the connection because of its output; `None` if there is no deadline. The input has a
    /// separate deadline.
    pub(crate) fn deadline(&self) -> Option<Time> {
        // A reader in the queue waits for this server, not for its client.
        let is_stalled = self.unsent_bytes() > 0 && !self.is_in_line;
        let stalled = is_stalled.then(|| self.last_progress + STALL_DEADLINE);
        // Clients do not wait longer than this for a response.
        let pinned = self.long.front().map(|long| long.pinned_at + MAX_DEADLINE);
        let ending = match self.end {
            End::Open | End::Dead => None,
            End::HalfClosed(at) => (self.in_flight > 0).then_some(at),
            End::LastWords { at, .. } => Some(at),
        };
        stalled.into_iter().chain(pinned).chain(ending).min()
    }

    /// Returns whether the output uses memory and has made no progress for [`STALL_UNDER_PRESSURE`]. Then the
    /// connection is closed if others need the memory.
    pub(crate) fn is_stalled_under_pressure(&self, now: Time) -> bool {
        self.counted > 0
            && self.unsent_bytes() > 0
            && !self.is_in_line
            && self.last_progress + STALL_UNDER_PRESSURE <= now
    }

    /// Returns whether the connection is to be closed now.
    pub(crate) fn is_over(&self) -> bool {
        match self.end {
            End::Dead => true,
            End::HalfClosed(_) => {
                self.in_flight == 0 && self.unsent_bytes() == 0 && !self.is_postponed
            }
            End::LastWords { has_other_closed, .. } => has_other_closed && self.unsent_bytes() == 0,
            End::Open => false,
        }
    }

    /// Returns whether the connection is closing, so that further input is discarded.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.end, End::LastWords { .. } | End::Dead)
    }

    /// Returns whether the input has ended.
    pub(crate) fn is_half_closed(&self) -> bool {
        matches!(self.end, End::HalfClosed(_) | End::LastWords { has_other_closed: true, .. })
    }

    /// Returns whether the final bytes are sent, so that the sending direction can be shut down.
    pub(crate) fn has_said_last_words(&self) -> bool {
        matches!(self.end, End::LastWords { .. }) && self.unsent_bytes() == 0
    }

    /// Closes the connection after its buffered bytes are sent.
    pub(crate) fn close_after_last_words(&mut self, now: Time) {
        let has_other_closed = self.is_half_closed();
        if !self.is_closing() {
            self.end = End::LastWords { at: now + LAST_WORDS_DEADLINE, has_other_closed };
        }
    }

    /// Closes the connection after the responses to its requests are sent, because its input has ended.
    pub(crate) fn close_after_responses(&mut self, now: Time) {
        match self.end {
            End::Open => self.end = End::HalfClosed(now + STALL_DEADLINE),
            End::LastWords { at, .. } => self.end = End::LastWords { at, has_other_closed: true },
            End::HalfClosed(_) | End::Dead => {}
        }
    }

    /// Returns the time since which the connection is idle: no response is outstanding or unsent. Returns `None` if it
    /// is not idle.
    pub(crate) fn idle_since(&self) -> Option<Time> {
        let is_idle = self.end == End::Open && self.in_flight == 0 && self.unsent_bytes() == 0;
        is_idle.then_some(self.last_progress)
    }

    /// Closes the connection at once.
    pub(crate) fn kill(&mut self) {
        self.end = End::Dead;
    }

    /// Records that a command of a Redis client has its reply.
    pub(crate) fn note_reply(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Records that a request was passed to a replica, which responds now or later.
    pub(crate) fn expect_response(&mut self) {
        self.in_flight += 1;
    }
}

/// Returns the parts to send to a reader next, at most `most` bytes; `None` if a value no longer exists.
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
