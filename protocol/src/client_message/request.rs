//! A client's request to a server.

use std::ops::Range;

use super::opcode;
use super::{Part, Scan, Status};
use crate::codec::{FixedWriter, Reader, Writer, length_u16};
use crate::error::DecodeError;
use crate::frame::{HEADER_BYTES, unchecked_header};
use crate::ids::{
    GroupId, RequestHash, RequestId, RequestSeq, SequenceNumber, ShardId, ViewVersion,
};
use crate::limits::{MAX_FIXED_BYTES, MAX_VALUE_BYTES};
use crate::placement::{Digest, Placement};
use crate::update::{InvalidUpdate, Updates};

/// The number of bytes of a request before the key.
pub const REQUEST_FIXED_BYTES: usize = 8 + 8 + 16 + 8 + 8 + 8 + 8 + 2 + 1 + 1;
/// The number of bytes of a request's frame before the key.
pub const REQUEST_HEAD_BYTES: usize = HEADER_BYTES + REQUEST_FIXED_BYTES;

const _: () = assert!(REQUEST_FIXED_BYTES <= MAX_FIXED_BYTES);

const SERVED_BY_SERVERS: &str = "GET, PUT, DELETE, NOOP, VERIFY, RESOLVE, UPDATE, SCAN, MAP";

/// The replica that a VERIFY reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaRole {
    /// The primary.
    Primary,
    /// The secondary.
    Secondary,
}

/// The condition of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No condition.
    Always,
    /// Only if the entry has this version.
    IfVersion(SequenceNumber),
    /// Only if the key does not exist.
    IfAbsent,
}

/// The value of `if_version` on the wire if there is no condition.
const IF_ALWAYS: u64 = 0;
/// The value of `if_version` on the wire for "only if the key does not exist".
const IF_ABSENT: u64 = u64::MAX;

impl Condition {
    pub(crate) fn to_wire(self) -> u64 {
        match self {
            Condition::Always => IF_ALWAYS,
            Condition::IfVersion(version) => version.0,
            Condition::IfAbsent => IF_ABSENT,
        }
    }

    /// Returns the condition that an `if_version` field encodes.
    pub fn from_wire(number: u64) -> Condition {
        match number {
            IF_ALWAYS => Condition::Always,
            IF_ABSENT => Condition::IfAbsent,
            version => Condition::IfVersion(SequenceNumber(version)),
        }
    }
}

/// The fields that make a write execute exactly once (consistency.md §8), and the condition of the
/// write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteHeader {
    /// The number of the write in its session; a retry keeps it.
    pub seq: RequestSeq,
    /// The lowest number of a write of this session that the client has not completed.
    pub first_incomplete: RequestSeq,
    /// The start of the session: the position in a [`SessionStart`](super::SessionStart) that the client received before it sent the
    /// session's first write. It never changes.
    pub begun: SequenceNumber,
    /// The condition.
    pub condition: Condition,
}

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Returns the value of the key.
    Get,
    /// Returns a part of the value of the key.
    GetPart(Part),
    /// Sets the key.
    Put(WriteHeader, &'a [u8]),
    /// Removes the key.
    Delete(WriteHeader),
    /// Does nothing; shows that the key's server responds.
    Noop,
    /// Returns the value of the key in the named replica. The value at a secondary may be uncommitted.
    Verify(ReplicaRole),
    /// Settles the write with this number and this hash (consistency.md §8). If the write was executed, the response is
    /// that of the write. Otherwise it is [`Status::NotDone`], and the write is never executed. If the session has
    /// expired, the response is [`Status::SessionExpired`]. The condition is not sent.
    Resolve(WriteHeader, RequestHash),
    /// Executes updates of keys of one shard, all or none. The condition of the header is not sent.
    Update(WriteHeader, Updates<'a>),
    /// Returns a page of the entries of one shard whose keys match the pattern in [`Request::key`]. The digest of the
    /// request only determines the shard ([`Placement::digest_at`](crate::Placement::digest_at)).
    Scan(Scan),
}

impl Operation<'_> {
    /// Returns the header of a write or RESOLVE, which takes effect through the log; `None` for reads
    /// and NOOP.
    #[inline]
    pub fn write_header(&self) -> Option<&WriteHeader> {
        match self {
            Operation::Put(header, _)
            | Operation::Delete(header)
            | Operation::Resolve(header, _)
            | Operation::Update(header, _) => Some(header),
            Operation::Get
            | Operation::GetPart(_)
            | Operation::Noop
            | Operation::Verify(_)
            | Operation::Scan(_) => None,
        }
    }

    /// Returns whether the response has the deadline of the entry.
    #[inline]
    pub fn wants_deadline(&self) -> bool {
        matches!(self, Operation::GetPart(part) if part.with_deadline)
    }

    /// Returns the range of bytes that the operation requests from a value of this length.
    #[inline]
    pub fn range_of(&self, length: usize) -> Range<usize> {
        match self {
            Operation::GetPart(part) => part.of(length),
            _ => 0..length,
        }
    }
}

/// A request to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The id, chosen by the client; the response repeats it.
    pub id: RequestId,
    /// The version of the view of the key's group by which the client routed the request.
    pub view: ViewVersion,
    /// MD5 of the key. For a SCAN: a digest of the place to read.
    pub digest: Digest,
    /// The key, 1 to 65,535 bytes. For a SCAN: the pattern, which may be empty for all keys.
    pub key: &'a [u8],
    /// The operation on the key.
    pub operation: Operation<'a>,
}

impl<'a> Request<'a> {
    /// Appends the frame. The caller has checked key and value against the limits.
    pub fn write(&self, output: &mut Vec<u8>) {
        output.put_bytes(&self.head());
        output.put_bytes(self.key);
        match self.operation {
            Operation::Put(_, value) => output.put_bytes(value),
            Operation::Update(_, updates) => output.put_bytes(updates.bytes()),
            _ => {}
        }
    }

    /// Returns the frame up to its key, for a sender that sends key and value from their own buffers.
    #[inline]
    pub fn head(&self) -> [u8; REQUEST_HEAD_BYTES] {
        let idle = WriteHeader {
            seq: RequestSeq(0),
            first_incomplete: RequestSeq(0),
            begun: SequenceNumber::ZERO,
            condition: Condition::Always,
        };
        let header = *self.operation.write_header().unwrap_or(&idle);
        let condition = header.condition.to_wire();
        let (opcode, condition, replica, value): (u8, u64, u8, &[u8]) = match self.operation {
            Operation::Get => (opcode::GET, condition, 0, &[]),
            Operation::GetPart(part) => (opcode::GET, part.to_wire(), part.flags(), &[]),
            Operation::Put(_, value) => (opcode::PUT, condition, 0, value),
            Operation::Delete(_) => (opcode::DELETE, condition, 0, &[]),
            Operation::Noop => (opcode::NOOP, condition, 0, &[]),
            Operation::Verify(ReplicaRole::Primary) => (opcode::VERIFY, condition, 0, &[]),
            Operation::Verify(ReplicaRole::Secondary) => (opcode::VERIFY, condition, 1, &[]),
            Operation::Resolve(_, request) => (opcode::RESOLVE, request.0, 0, &[]),
            Operation::Update(_, updates) => (opcode::UPDATE, 0, 0, updates.bytes()),
            Operation::Scan(scan) => (opcode::SCAN, scan.cursor, scan.flags(), &[]),
        };
        let length = REQUEST_FIXED_BYTES + self.key.len() + value.len();
        let mut head = FixedWriter::<REQUEST_HEAD_BYTES>::new();
        head.put_bytes(&unchecked_header(opcode, length));
        head.put_u64(self.id.0);
        head.put_u64(self.view.0);
        head.put_bytes(&self.digest.0);
        head.put_u64(header.seq.0);
        head.put_u64(header.first_incomplete.0);
        head.put_u64(header.begun.0);
        head.put_u64(condition);
        head.put_u16(length_u16(self.key.len(), "key"));
        head.put_u8(replica);
        head.put_u8(0);
        head.finish()
    }

    /// Reads a request from its frame. Checks only the layout; [`Request::validate`] checks the key, the value and the
    /// session fields.
    #[inline]
    pub fn read(opcode: u8, body: &'a [u8]) -> Result<Request<'a>, DecodeError> {
        if !opcode::is_request(opcode) {
            return Err(DecodeError::UnknownOpcode { opcode, supported: SERVED_BY_SERVERS });
        }
        let mut reader = Reader::new(body);
        let id = RequestId(reader.u64("request id")?);
        let view = ViewVersion(reader.u64("view version")?);
        let digest = Digest(reader.array("digest")?);
        let unconditional = WriteHeader {
            seq: RequestSeq(reader.u64("seq")?),
            first_incomplete: RequestSeq(reader.u64("first incomplete seq")?),
            begun: SequenceNumber(reader.u64("session start")?),
            condition: Condition::Always,
        };
        let condition = reader.u64("if_version")?;
        let header = WriteHeader { condition: Condition::from_wire(condition), ..unconditional };
        let key_length = usize::from(reader.u16("key length")?);
        let replica = reader.u8("replica")?;
        let reserved = reader.u8("reserved")?;
        let key = reader.bytes(key_length, "key")?;
        let operation = match opcode {
            opcode::PUT => Operation::Put(header, reader.remainder()),
            opcode::DELETE => Operation::Delete(header),
            opcode::NOOP => Operation::Noop,
            opcode::VERIFY if replica == 0 => Operation::Verify(ReplicaRole::Primary),
            opcode::VERIFY if replica == 1 => Operation::Verify(ReplicaRole::Secondary),
            opcode::VERIFY => {
                return Err(DecodeError::BadValue { field: "replica", value: replica.into() });
            }
            opcode::RESOLVE => Operation::Resolve(unconditional, RequestHash(condition)),
            opcode::UPDATE if condition != 0 => {
                return Err(DecodeError::BadValue { field: "if_version", value: condition });
            }
            opcode::UPDATE => Operation::Update(unconditional, Updates::read(reader.remainder())?),
            opcode::SCAN => Operation::Scan(Scan::from_wire(condition, replica)?),
            _ if condition == 0 => Operation::Get,
            _ => {
                let bad = DecodeError::BadValue { field: "limit", value: condition };
                Operation::GetPart(Part::from_wire(condition, replica).ok_or(bad)?)
            }
        };
        reader.finish()?;
        if reserved != 0 {
            return Err(DecodeError::BadValue { field: "reserved", value: reserved.into() });
        }
        Ok(Request { id, view, digest, key, operation })
    }

    /// Reads only the id of a request, so that the server can respond to a malformed request with an error. `None` if
    /// the body ends before the id.
    pub fn read_id(body: &[u8]) -> Option<RequestId> {
        Reader::new(body).u64("request id").ok().map(RequestId)
    }

    /// Returns the group and shard of the request: those of its key, or, for a SCAN, the place that the digest names.
    #[inline]
    pub fn place(&self, placement: &Placement) -> (GroupId, ShardId) {
        match placement.hash_tags() {
            false => placement.place_of(self.digest),
            true => self.place_by_tag(placement),
        }
    }

    #[inline(never)] // A cluster without hash tags pays only for the branch.
    fn place_by_tag(&self, placement: &Placement) -> (GroupId, ShardId) {
        match self.operation {
            Operation::Scan(_) => placement.place_of(self.digest),
            _ => placement.locate_digested(self.digest, self.key),
        }
    }

    /// Checks the key, the value and the session fields against their limits. Returns the status and the reason for the
    /// first invalid one.
    pub fn validate(&self) -> Result<(), (Status, &'static str)> {
        if self.key.is_empty() && !matches!(self.operation, Operation::Scan(_)) {
            return Err((Status::Invalid, "the key is empty; it needs 1 to 65,535 bytes"));
        }
        let Some(header) = self.operation.write_header() else { return Ok(()) };
        match self.operation {
            Operation::Put(_, value) if value.len() > MAX_VALUE_BYTES => {
                return Err((Status::TooBig, "the value is longer than 16 MiB"));
            }
            Operation::Update(_, updates) => {
                if let Err(invalid) = updates.validate() {
                    let status = match invalid {
                        InvalidUpdate::ValueLength => Status::TooBig,
                        _ => Status::Invalid,
                    };
                    return Err((status, invalid.reason()));
                }
            }
            // Zero means that the hash is unknown. A record with it would match every request.
            Operation::Resolve(_, RequestHash(0)) => {
                return Err((
                    Status::Invalid,
                    "RESOLVE needs the hash of the write that it settles",
                ));
            }
            _ => {}
        }
        if header.seq.0 == 0
            || header.first_incomplete.0 == 0
            || header.first_incomplete > header.seq
        {
            return Err((Status::Invalid, "a write needs 1 <= first incomplete seq <= seq"));
        }
        Ok(())
    }
}
