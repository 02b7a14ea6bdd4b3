//! The output queue of a connection, which sends requests from their own memory.
//!
//! ```text
//!   [ hello ][ operation 7 ][ operation 9 ][ operation 12 ] ...     one vectored send
//!                  |  |
//!                  |  +-- its value, if the caller keeps it
//!                  +-- its frame, in the operation
//! ```
//!
//! Several short frames at the front are first copied into one buffer, because the kernel fetches one long piece faster
//! than many short ones. A single frame is sent from its own memory.
//!
//! An operation may end or be rerouted before its request is sent. Its segment then stays in the queue with zero bytes.
//! If a part of the request was sent, the connection has to be closed ([`Output::release`]): the rest could arrive
//! after later writes of the program and overwrite them. A server executes only whole requests, so a truncated request
//! is never executed.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use kv_protocol::ids::RequestId;
use rustix::io::Errno;
use rustix::net::{self, SendAncillaryBuffer, SendFlags};

use crate::operation::{OpId, Operation, Operations};

/// The maximum number of pieces in one send.
const MAX_PIECES: usize = 128;
/// The length below which a piece may be copied. Longer pieces are sent from their own memory.
const SHORT_BYTES: usize = 1 << 10;
/// The number of released segments up to which the queue is not cleaned.
const FEW_RELEASED: usize = 64;
/// The number of copied bytes at which a send stops copying. The last copied piece may exceed it.
const MAX_COPIED_BYTES: usize = 32 << 10;

/// The output queue of one connection; see the module documentation.
#[derive(Debug)]
pub(crate) struct Output {
    /// The id of the connection.
    connection: u64,
    segments: VecDeque<Segment>,
    /// The bytes of the first segment that the kernel has accepted.
    sent: usize,
    /// The total bytes that the kernel has accepted.
    pub(crate) bytes_sent: u64,
    /// The number of operations added since the last flush.
    added: usize,
    /// The number of segments released by their operations.
    released: usize,
    /// The buffer for copied pieces, reused by every send.
    copied: Vec<u8>,
}

#[derive(Debug)]
enum Segment {
    Bytes(Vec<u8>),
    /// A request of an operation, by its id on this connection. Each transmission has its own id.
    Request(OpId, RequestId),
}

impl Segment {
    fn pieces<'a>(&'a self, connection: u64, operations: &'a Operations) -> [&'a [u8]; 2] {
        match *self {
            Segment::Bytes(ref bytes) => [bytes, &[]],
            Segment::Request(id, request) => match operations.get(id) {
                Some(operation) if is_queued(operation, connection, request) => operation.wire(),
                _ => [&[], &[]],
            },
        }
    }
}

fn is_queued(operation: &Operation, connection: u64, request: RequestId) -> bool {
    operation.queued == Some((connection, request))
}

/// The state of a request at its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Released {
    /// Nothing of the request was sent, and nothing will be.
    Unsent,
    /// A part of the request was sent. No other frame can follow it, so the connection has to be closed.
    Cut,
}

impl Output {
    /// Creates an empty queue for the connection with this id.
    pub(crate) fn new(connection: u64) -> Output {
        let (segments, copied) = (VecDeque::new(), Vec::new());
        Output { connection, segments, sent: 0, bytes_sent: 0, added: 0, released: 0, copied }
    }

    pub(crate) fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.segments.push_back(Segment::Bytes(bytes));
    }

    /// Adds the request of an operation whose `queued` names this connection and request. The frame must not change
    /// until it is sent or released. Returns whether it is the first request since the last flush.
    pub(crate) fn push_request(&mut self, id: OpId, request: RequestId) -> bool {
        self.segments.push_back(Segment::Request(id, request));
        self.added += 1;
        self.added == 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Returns whether the queue is long enough to flush before the end of the turn.
    pub(crate) fn is_much(&self) -> bool {
        self.added >= MAX_PIECES
    }

    /// Sends as much as the kernel accepts.
    ///
    /// # Errors
    /// The error of the system call. The connection has to be closed.
    pub(crate) fn flush(
        &mut self,
        socket: &OwnedFd,
        operations: &mut Operations,
    ) -> io::Result<()> {
        self.added = 0;
        // Removes released segments at the front.
        self.advance(0, operations);
        while !self.segments.is_empty() {
            match self.send(socket, operations) {
                Ok(count) => self.advance(count, operations),
                Err(Errno::INTR) => {}
                // NOTCONN means that the connect is still in progress. The poller reports its end.
                Err(Errno::AGAIN | Errno::NOTCONN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send(&mut self, socket: &OwnedFd, operations: &Operations) -> Result<usize, Errno> {
        let Output { connection, segments, sent, copied, .. } = self;
        let pieces = |segment| Segment::pieces(segment, *connection, operations);
        if let (Some(only), 1) = (segments.front(), segments.len())
            && let [alone, []] = pieces(only)
        {
            return net::send(socket, &alone[*sent..], SendFlags::NOSIGNAL);
        }
        let mut skip = *sent;
        let mut rests = segments.iter().flat_map(pieces).map(|piece| {
            let rest = &piece[skip.min(piece.len())..];
            skip -= piece.len() - rest.len();
            rest
        });
        copied.clear();
        // The first piece that is not copied; `rests` continues after it.
        let long = rests.find(|rest| {
            let is_short = rest.len() < SHORT_BYTES && copied.len() < MAX_COPIED_BYTES;
            if is_short {
                copied.extend_from_slice(rest);
            }
            !is_short
        });
        let Some(long) = long else { return net::send(socket, copied, SendFlags::NOSIGNAL) };
        let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
        let all = [&copied[..], long].into_iter().chain(rests).filter(|piece| !piece.is_empty());
        let mut count = 0;
        for (place, piece) in pieces.iter_mut().zip(all) {
            *place = IoSlice::new(piece);
            count += 1;
        }
        let mut nothing = SendAncillaryBuffer::default();
        net::sendmsg(socket, &pieces[..count], &mut nothing, SendFlags::NOSIGNAL)
    }

    /// Records that the kernel has accepted `count` more bytes.
    fn advance(&mut self, count: usize, operations: &mut Operations) {
        self.sent += count;
        self.bytes_sent += count as u64;
        while let Some(segment) = self.segments.front() {
            let (operation, length) = match *segment {
                Segment::Bytes(ref bytes) => (None, bytes.len()),
                Segment::Request(id, request) => {
                    let operation = operations
                        .get_mut(id)
                        .filter(|operation| is_queued(operation, self.connection, request));
                    let length = operation.as_ref().map_or(0, |operation| operation.wire_bytes());
                    (operation, length)
                }
            };
            if self.sent < length {
                return;
            }
            self.sent -= length;
            match operation {
                Some(operation) => operation.queued = None,
                None if matches!(segment, Segment::Request(..)) => self.released -= 1,
                None => {}
            }
            self.segments.pop_front();
        }
    }

    /// Records that an operation has withdrawn its request from this queue, because it has ended or is queued
    /// elsewhere.
    pub(crate) fn release(&mut self, id: OpId, operations: &Operations) -> Released {
        if self.sent > 0
            && matches!(self.segments.front(), Some(Segment::Request(first, _)) if *first == id)
        {
            return Released::Cut;
        }
        self.released += 1;
        // Amortised constant cost: each pass removes about half of the segments that it visits.
        if self.released > FEW_RELEASED + self.segments.len() / 2 {
            self.released = 0;
            let connection = self.connection;
            self.segments.retain(|segment| match *segment {
                Segment::Bytes(_) => true,
                Segment::Request(id, request) => operations
                    .get(id)
                    .is_some_and(|operation| is_queued(operation, connection, request)),
            });
        }
        Released::Unsent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::free_list::FreeList;
    use crate::operation::{Notify, Op, Operation};
    use crate::options::OpOptions;
    use kv_protocol::client_message::{Operation as WireOperation, Request};
    use kv_protocol::frame::{FrameRules, split_frame};
    use kv_protocol::ids::RequestId;
    use kv_protocol::limits::MAX_CLIENT_BODY;
    use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
    use std::time::{Duration, Instant};

    const LARGE: usize = 4 << 20;

    /// A test connection with queued requests of several operations, each under its own request id.
    struct Wire {
        output: Output,
        operations: Operations,
        ids: Vec<OpId>,
        here: OwnedFd,
        there: OwnedFd,
        arrived: Vec<u8>,
    }

    impl Wire {
        fn new(ops: &[Op<'_>]) -> Wire {
            let (family, flags) = (AddressFamily::UNIX, SocketFlags::NONBLOCK);
            let (here, there) = net::socketpair(family, SocketType::STREAM, flags, None).unwrap();
            let (mut output, mut operations) = (Output::new(7), Operations::default());
            let mut ids = Vec::new();
            for (number, op) in (1..).zip(ops) {
                let (now, deadline) = (Instant::now(), Duration::from_secs(1));
                let options = OpOptions::default();
                let (notify, mut free_list) = (Notify::Queue(number), FreeList::default());
                let operation =
                    Operation::new(*op, &options, deadline, notify, now, &mut free_list);
                let mut operation = operation.unwrap();
                operation.address(RequestId(number));
                operation.queued = Some((7, RequestId(number)));
                let id = operations.insert(operation);
                output.push_request(id, RequestId(number));
                ids.push(id);
            }
            Wire { output, operations, ids, here, there, arrived: Vec::new() }
        }

        fn flush(&mut self) {
            self.output.flush(&self.here, &mut self.operations).unwrap();
        }

        /// Ends an operation as the engine does.
        fn end(&mut self, number: usize) -> Released {
            let id = self.ids[number - 1];
            let operation = self.operations.get_mut(id).expect("not ended");
            operation.queued = None;
            let released = self.output.release(id, &self.operations);
            self.operations.remove(id);
            released
        }

        /// Reads and flushes until everything has arrived. Returns the ids, keys and value lengths of the requests.
        fn requests(mut self) -> Vec<(u64, Vec<u8>, usize)> {
            let mut room = vec![0; 1 << 20];
            loop {
                match net::recv(&self.there, &mut *room, RecvFlags::DONTWAIT) {
                    Ok((_, count)) => self.arrived.extend_from_slice(&room[..count]),
                    Err(_) if self.output.is_empty() => break,
                    Err(_) => self.flush(),
                }
            }
            let (mut rest, mut requests) = (&self.arrived[..], Vec::new());
            while !rest.is_empty() {
                let rules = FrameRules::unchecked(MAX_CLIENT_BODY);
                let frame = split_frame(rest, &rules).unwrap().expect("whole frames");
                let request = Request::read(frame.opcode, frame.body).unwrap();
                let bytes = match request.operation {
                    WireOperation::Put(_, value) => {
                        assert!(value.iter().all(|&byte| byte == b'v'));
                        value.len()
                    }
                    _ => 0,
                };
                requests.push((request.id.0, request.key.to_vec(), bytes));
                rest = &rest[frame.consumed..];
            }
            requests
        }
    }

    #[test]
    fn requests_are_sent_in_order_from_their_own_memory() {
        let kept: &'static [u8] = vec![b'v'; LARGE].leak();
        let value = vec![b'v'; LARGE];
        let mut wire = Wire::new(&[
            Op::Get { key: b"a" },
            Op::PutKept { key: b"b", value: kept },
            Op::Put { key: b"c", value: &value },
            Op::Get { key: b"d" },
        ]);
        wire.flush();
        let is_queued = [0, 3]
            .map(|place| wire.operations.get(wire.ids[place]).expect("not ended").queued.is_some());
        assert_eq!(is_queued, [false, true]);
        let found = wire.requests();
        let request = |id, key: &[u8], bytes| (id, key.to_vec(), bytes);
        let wanted = [
            request(1, b"a", 0),
            request(2, b"b", LARGE),
            request(3, b"c", LARGE),
            request(4, b"d", 0),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_single_request_is_not_copied() {
        let (alone, value) = (Op::Put { key: b"a", value: b"v" }, vec![b'v'; 100]);
        let mut wire = Wire::new(&[alone]);
        wire.flush();
        assert_eq!(wire.output.copied.capacity(), 0);
        assert_eq!(wire.requests(), [(1, b"a".to_vec(), 1)]);
        let mut wire = Wire::new(&[alone, Op::Put { key: b"b", value: &value }]);
        wire.flush();
        assert!(!wire.output.copied.is_empty());
        assert_eq!(wire.requests(), [(1, b"a".to_vec(), 1), (2, b"b".to_vec(), 100)]);
    }

    #[test]
    fn an_operation_that_ends_before_it_is_sent_leaves_whole_frames() {
        let kept: &'static [u8] = vec![b'v'; LARGE].leak();
        for first in [Op::PutKept { key: b"a", value: kept }, Op::Put { key: b"a", value: kept }] {
            let mut wire = Wire::new(&[first, Op::Get { key: b"b" }, Op::Get { key: b"c" }]);
            wire.flush();
            assert_eq!(wire.end(2), Released::Unsent);
            let found = wire.requests();
            assert_eq!(found, [(1, b"a".to_vec(), LARGE), (3, b"c".to_vec(), 0)]);
        }
    }

    #[test]
    fn an_operation_that_ends_while_it_is_being_sent_ends_its_connection() {
        let kept: &'static [u8] = vec![b'v'; LARGE].leak();
        for first in [Op::PutKept { key: b"a", value: kept }, Op::Put { key: b"a", value: kept }] {
            let mut wire = Wire::new(&[Op::Get { key: b"b" }, first, Op::Get { key: b"c" }]);
            assert_eq!(wire.end(1), Released::Unsent, "before anything was sent");
            wire.flush();
            assert_eq!(wire.end(3), Released::Unsent);
            assert_eq!(wire.end(2), Released::Cut);
        }
    }

    #[test]
    fn an_operation_that_is_queued_again_is_sent_only_under_its_last_request_id() {
        let mut wire = Wire::new(&[Op::Get { key: b"a" }, Op::Get { key: b"b" }]);
        let (id, number) = (wire.ids[0], RequestId(3));
        let operation = wire.operations.get_mut(id).unwrap();
        operation.queued = None;
        assert_eq!(wire.output.release(id, &wire.operations), Released::Unsent);
        let operation = wire.operations.get_mut(id).unwrap();
        operation.address(number);
        operation.queued = Some((7, number));
        wire.output.push_request(id, number);
        assert_eq!(wire.requests(), [(2, b"b".to_vec(), 0), (3, b"a".to_vec(), 0)]);
    }

    #[test]
    fn an_unread_connection_keeps_only_a_few_more_segments_than_operations() {
        let kept: &'static [u8] = vec![b'v'; LARGE].leak();
        let mut ops = vec![Op::PutKept { key: b"a", value: kept }];
        ops.extend(std::iter::repeat_n(Op::Get { key: b"b" }, 10_000));
        let mut wire = Wire::new(&ops);
        wire.flush();
        for number in 2..=10_000 {
            assert_eq!(wire.end(number), Released::Unsent);
            let bound = 2 * (wire.operations.len() + FEW_RELEASED) + 1;
            assert!(wire.output.segments.len() <= bound, "{number} have ended");
        }
        let found = wire.requests();
        assert_eq!(found, [(1, b"a".to_vec(), LARGE), (10_001, b"b".to_vec(), 0)]);
    }

    #[test]
    fn requests_beyond_the_capacity_of_one_send_are_all_sent() {
        let keys: Vec<[u8; 2]> = (0..1_000u16).map(u16::to_be_bytes).collect();
        let ops: Vec<Op<'_>> = keys.iter().map(|key| Op::Get { key }).collect();
        let found = Wire::new(&ops).requests();
        let wanted: Vec<_> = (1..).zip(&keys).map(|(id, key)| (id, key.to_vec(), 0)).collect();
        assert_eq!(found, wanted);
    }
}
