//! An operation of a client that is under way.

use kv_protocol::client_message::{Condition, Operation, Request, WriteHeader};
use kv_protocol::ids::{
    ClientId, GroupId, RequestHash, RequestId, RequestSeq, SequenceNumber, ShardId,
};
use kv_protocol::placement::Digest;
use kv_protocol::view::View;

use crate::network::ConnectionNumber;
use crate::workload::Settling;
use kv_history::{Answered, Asked, Entry};

/// An operation under way.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Its key.
    pub key: Vec<u8>,
    /// The slot of the workload that it belongs to.
    pub slot: usize,
    pub(super) digest: Digest,
    /// Where its key lives.
    pub place: (GroupId, ShardId),
    /// What is asked.
    pub asked: Asked,
    pub(super) condition: Condition,
    /// The whole value.
    pub value: Vec<u8>,
    /// The session that its number is of; a read goes under the client's own name.
    pub(super) client: ClientId,
    pub(super) seq: RequestSeq,
    /// The mark that it carries; of a session that was given up, the one that it was sent with last.
    pub(super) first_incomplete: RequestSeq,
    /// The place in the log at which its session began.
    pub(super) begun: SequenceNumber,
    /// When it began.
    pub start: u64,
    /// The time for which its client has slept since: its deadline is later by as much.
    pub(super) slept: u64,
    /// The newest version of its key that anyone was told of by then.
    pub floor: u64,
    /// How many copies its answer claims.
    pub copies: u8,
    /// When it was sent last, and under which view.
    pub(super) sent: Option<(u64, View)>,
    pub(super) was_sent: bool,
    /// Sendings that may have been executed, or may be yet.
    pub(super) doubtful: u32,
    pub(super) connection: Option<ConnectionNumber>,
    /// When something is to be done about it.
    pub due: u64,
    pub(super) pause: u64,
    pub(super) patience: u64,
    pub(super) settling: Settling,
    pub(super) stage: Stage,
}

/// How far a write in doubt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It is not: it is under way.
    Asked,
    /// Its client has given it up, and has not asked about it.
    GivenUp,
    /// Its client asks about it until this time.
    Asking(u64),
}

impl Flight {
    /// Whether it may have reached a server.
    pub fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// The time at which it ends without a response.
    pub(super) fn deadline(&self) -> u64 {
        match self.stage {
            Stage::Asking(until) => until,
            Stage::Asked | Stage::GivenUp => self.start + self.slept + self.patience,
        }
    }

    /// Returns whether it is a write with a lower number.
    pub(super) fn is_before(&self, seq: RequestSeq) -> bool {
        self.is_write() && self.seq < seq
    }

    /// Returns whether it ended in doubt for its client.
    pub fn was_given_up(&self) -> bool {
        self.stage != Stage::Asked
    }

    /// The time that its first sending takes longer than others.
    pub fn lag(&self) -> u64 {
        if self.stage == Stage::Asked { self.settling.lag } else { 0 }
    }

    /// The connection that it was sent on last.
    pub fn connection(&self) -> Option<ConnectionNumber> {
        self.connection
    }

    /// The name that it uses.
    pub fn name(&self) -> ClientId {
        self.client
    }

    /// Returns whether it is a write.
    pub fn is_write(&self) -> bool {
        self.asked != Asked::Read
    }

    /// Whether it is on its way to a server, or its answer is on its way back.
    pub fn is_waiting(&self) -> bool {
        self.sent.is_some()
    }

    /// Its line of the key's history.
    pub fn entry(&self, process: u32, end: u64, answered: Answered) -> Entry {
        let time = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let end = if answered == Answered::InDoubt { i64::MAX } else { time(end) };
        Entry { client: process, start: time(self.start), end, asked: self.asked, answered }
    }

    /// An end without an answer: only where no sending may have been executed it is a definite one.
    pub(super) fn unless_in_doubt(&self, answered: Answered) -> Answered {
        if self.doubtful > 0 && self.asked != Asked::Read { Answered::InDoubt } else { answered }
    }

    /// The bytes that ask for it.
    pub(super) fn request(&self, id: u64, view: &View) -> Vec<u8> {
        let header = WriteHeader {
            seq: self.seq,
            first_incomplete: self.first_incomplete,
            begun: self.begun,
            condition: self.condition,
        };
        let operation = match self.asked {
            Asked::Read => Operation::Get,
            Asked::Delete => Operation::Delete(header),
            Asked::Write(_) | Asked::Swap { .. } => Operation::Put(header, &self.value),
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
