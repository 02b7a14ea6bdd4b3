//! A client's operation in flight, and the session that numbers its writes.

use kv_protocol::client_message::{Condition, Operation, Request, WriteHeader};
use kv_protocol::ids::{
    ClientId, GroupId, RequestHash, RequestId, RequestSeq, SequenceNumber, ShardId,
};
use kv_protocol::placement::Digest;
use kv_protocol::view::View;

use crate::clock::wall_millis;
use crate::network::ConnectionNumber;
use crate::object::ObjectAsk;
use crate::workload::{Settling, SlotId};
use kv_history::object::{Answer, ObjectEntry, Span};
use kv_history::{Asked, Entry, Returned};

/// An operation in flight.
#[derive(Clone, Debug)]
pub struct Flight {
    /// The key.
    pub key: Vec<u8>,
    /// The slot of the workload to which the key belongs.
    pub slot: SlotId,
    pub(super) digest: Digest,
    /// The group and shard of the key.
    pub place: (GroupId, ShardId),
    /// The requested operation on a register. For an operation on an object: a read, or any write.
    pub asked: Asked,
    /// The requested operation on an object.
    pub object: Option<Box<ObjectAsk>>,
    /// The content of the definite response to an operation on an object.
    pub(super) answer: Option<Answer>,
    pub(super) condition: Condition,
    /// The bytes of the value to write.
    pub value: Vec<u8>,
    /// The name of the session to which the sequence number belongs; for a read, the client's own name.
    pub(super) client: ClientId,
    pub(super) seq: RequestSeq,
    /// The first incomplete sequence number in the request. It no longer changes once the session is abandoned.
    pub(super) first_incomplete: RequestSeq,
    /// The log position at which the session began.
    pub(super) begun: SequenceNumber,
    /// The time at which the operation began.
    pub start: u64,
    /// The time for which the client's machine has been suspended since the beginning. The deadline is postponed by
    /// this time.
    pub(super) slept: u64,
    /// The newest version of the key in any response before the operation began.
    pub floor: u64,
    /// The number of copies that the response reports.
    pub copies: u8,
    /// The time of the last request, and the view by which it was routed; `None` if no response is expected.
    pub(super) sent: Option<(u64, View)>,
    pub(super) was_sent: bool,
    /// The number of requests that may have been executed or may still be executed.
    pub(super) doubtful: u32,
    pub(super) connection: Option<ConnectionNumber>,
    /// The time of the next action on the operation.
    pub due: u64,
    pub(super) pause: u64,
    pub(super) timeout: u64,
    pub(super) settling: Settling,
    pub(super) stage: Stage,
}

/// The stage of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// In flight, not in doubt.
    Asked,
    /// Given up, and not being settled yet.
    GivenUp,
    /// Being settled; the attempt ends at this time.
    Asking(u64),
}

impl Flight {
    /// Returns whether a request may have reached a server.
    pub fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// Returns the time at which the operation ends if it gets no response.
    pub(super) fn deadline(&self) -> u64 {
        match self.stage {
            Stage::Asking(until) => until,
            Stage::Asked | Stage::GivenUp => self.start + self.slept + self.timeout,
        }
    }

    /// Returns whether this is a write with a sequence number below `seq`.
    pub(super) fn is_before(&self, seq: RequestSeq) -> bool {
        self.is_write() && self.seq < seq
    }

    /// Returns whether the client gave the write up, so that it ended in doubt.
    pub fn was_given_up(&self) -> bool {
        self.stage != Stage::Asked
    }

    /// Returns the extra network delay of the operation's requests; 0 for those that settle a write.
    pub fn lag(&self) -> u64 {
        if self.stage == Stage::Asked { self.settling.lag } else { 0 }
    }

    /// Returns the connection of the last request.
    pub fn connection(&self) -> Option<ConnectionNumber> {
        self.connection
    }

    /// Returns whether the operation waits for a response on this connection.
    pub fn waits_on(&self, number: ConnectionNumber) -> bool {
        self.connection == Some(number) && self.sent.is_some()
    }

    /// Returns the name of the session; for a read, the client's own name.
    pub fn name(&self) -> ClientId {
        self.client
    }

    /// Returns whether the operation is a write.
    pub fn is_write(&self) -> bool {
        self.asked != Asked::Read
    }

    /// Returns whether a request was sent and its response has not been received yet.
    pub fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }

    /// Returns the operation's entry in the history of its key.
    pub fn entry(&self, process: u32, end: u64, returned: Returned) -> Entry {
        let time = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let end = if returned == Returned::InDoubt { i64::MAX } else { time(end) };
        Entry { client: process, start: time(self.start), end, asked: self.asked, returned }
    }

    /// Returns whether the write changes an entry whenever its response is OK.
    pub fn changes_surely(&self) -> bool {
        self.object.as_ref().map_or(self.is_write(), |ask| ask.changes_surely())
    }

    /// Returns the entry of an operation on an object in its history; `None` if the operation certainly changed and
    /// observed nothing.
    pub fn object_entry(&self, process: u32, end: u64, returned: Returned) -> Option<ObjectEntry> {
        let ask = self.object.as_ref()?;
        let answer = match returned {
            Returned::InDoubt => Answer::InDoubt,
            Returned::Undecided => Answer::Undecided,
            Returned::Refused | Returned::Lost => return None,
            Returned::Value(_) | Returned::Done { .. } => self.answer.clone()?,
        };
        let time = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let is_open = answer == Answer::InDoubt;
        Some(ObjectEntry {
            client: process,
            start: time(self.start),
            end: if is_open { i64::MAX } else { time(end) },
            wall: Span {
                from: wall_millis(self.start),
                to: if is_open { i64::MAX } else { wall_millis(end) },
            },
            is_read: ask.is_read,
            shows_deadline: ask.shows_deadline,
            shows_version: true,
            updates: ask.updates.clone(),
            answer,
        })
    }

    /// Returns `responded`, unless the operation is a write that may have been executed: then it is in doubt.
    pub(super) fn unless_in_doubt(&self, responded: Returned) -> Returned {
        if self.doubtful > 0 && self.asked != Asked::Read { Returned::InDoubt } else { responded }
    }

    /// Encodes the request: the operation itself, or a RESOLVE while the operation is being settled.
    pub(super) fn request(&self, id: u64, view: &View) -> Vec<u8> {
        let header = WriteHeader {
            seq: self.seq,
            first_incomplete: self.first_incomplete,
            begun: self.begun,
            condition: self.condition,
        };
        let operation = match (&self.object, self.asked) {
            (Some(ask), _) => ask.operation(header),
            (None, Asked::Read) => Operation::Get,
            (None, Asked::Delete) => Operation::Delete(header),
            (None, Asked::Write(_) | Asked::Swap { .. }) => Operation::Put(header, &self.value),
        };
        let operation = match (self.stage, RequestHash::of(self.digest, &operation)) {
            (Stage::Asking(_), Some(hash)) => {
                Operation::Resolve(WriteHeader { condition: Condition::Always, ..header }, hash)
            }
            _ => operation,
        };
        let request = Request {
            id: RequestId(id),
            view: view.version,
            digest: self.digest,
            key: &self.key,
            operation,
        };
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        bytes
    }
}

/// A client's session in one shard of one group: the sequence numbers of the client's writes in this shard. When
/// the servers have expired a session, the next one uses a new client id.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The name of the session.
    pub(super) client: ClientId,
    /// The log position of its shard at which the session began, known before its first request.
    pub(super) begun: SequenceNumber,
    last: u64,
    incomplete: Vec<u64>,
}

impl Session {
    pub(super) fn new(client: ClientId, begun: SequenceNumber) -> Session {
        Session { client, begun, last: 0, incomplete: Vec::new() }
    }

    /// Returns the sequence number of a new write.
    pub(super) fn begin(&mut self) -> RequestSeq {
        self.last += 1;
        self.incomplete.push(self.last);
        RequestSeq(self.last)
    }

    /// Records the end of a write, with any result.
    pub(super) fn end(&mut self, seq: RequestSeq) {
        self.incomplete.retain(|incomplete| *incomplete != seq.0);
    }

    /// Returns the lowest sequence number whose write has not ended.
    pub(super) fn first_incomplete(&self) -> RequestSeq {
        RequestSeq(self.incomplete.iter().min().copied().unwrap_or(self.last + 1))
    }
}
