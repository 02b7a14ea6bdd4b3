//! Messages between clients and servers, and between clients and the coordinator.
//!
//! ```text
//!   HELLO   ->                 first frame of every connection
//!           <- WELCOME
//!   GET PUT DELETE NOOP VERIFY RESOLVE ->  to a server, any number in flight
//!           <- RESPONSE                      in any order, matched by the request id
//!   MAP     -> <- MAP-RESPONSE               to the coordinator or a server
//!   STATUS  -> <- STATUS-RESPONSE (JSON)     to the coordinator
//!           <- ERROR                       in response to a frame that cannot be served; a close may follow
//! ```

use std::fmt;
use std::ops::{Deref, Range};

use crate::codec::{FixedWriter, Reader, Writer, length_u16};
use crate::error::DecodeError;
use crate::frame::{Checksum, HEADER_BYTES, unchecked_header, write_frame};
use crate::ids::{
    ClientId, ClusterId, GroupId, Member, RequestHash, RequestId, RequestSeq, SequenceNumber,
    ServerId, ShardId, ViewVersion,
};
use crate::limits::{MAX_FIXED_BYTES, MAX_SERVERS, MAX_SHARDS, MAX_VALUE_BYTES};
use crate::map::{Map, bounded};
use crate::placement::Digest;
use crate::view::{read_member, write_member};

/// The number of bytes of a request before the key.
pub const REQUEST_FIXED_BYTES: usize = 8 + 8 + 16 + 8 + 8 + 8 + 8 + 2 + 1 + 1;
/// The number of bytes of a request's frame before the key.
pub const REQUEST_HEAD_BYTES: usize = HEADER_BYTES + REQUEST_FIXED_BYTES;
/// The number of bytes of a response before the value.
pub const RESPONSE_FIXED_BYTES: usize = 8 + 8 + 8 + 1 + 1 + 2;
/// The number of bytes of a response's frame before the value.
pub const RESPONSE_HEAD_BYTES: usize = HEADER_BYTES + RESPONSE_FIXED_BYTES;
/// The number of bytes of a response's frame before a part of a value; see [`Status::Part`].
pub const PART_HEAD_BYTES: usize = RESPONSE_HEAD_BYTES + 4;

const _: () = assert!(REQUEST_FIXED_BYTES <= MAX_FIXED_BYTES);
const _: () = assert!(RESPONSE_FIXED_BYTES + 4 <= MAX_FIXED_BYTES);

/// Opcodes of clients' connections.
pub mod opcode {
    /// The client's first frame.
    pub const HELLO: u8 = 0x01;
    /// The response to HELLO.
    pub const WELCOME: u8 = 0x02;
    /// The rejection of a frame or connection: a status and a reason.
    pub const ERROR: u8 = 0x03;
    /// The request to read a key.
    pub const GET: u8 = 0x10;
    /// The request to set a key.
    pub const PUT: u8 = 0x11;
    /// The request to remove a key.
    pub const DELETE: u8 = 0x12;
    /// The request without effect, which shows that the key's server responds.
    pub const NOOP: u8 = 0x13;
    /// The request to read a key from the named replica.
    pub const VERIFY: u8 = 0x14;
    /// The response to GET, PUT, DELETE, NOOP, VERIFY and RESOLVE.
    pub const RESPONSE: u8 = 0x15;
    /// The request to settle a write that ended in doubt.
    pub const RESOLVE: u8 = 0x16;
    /// The request for the map.
    pub const MAP: u8 = 0x18;
    /// The map, in response to MAP.
    pub const MAP_RESPONSE: u8 = 0x19;
    /// The request for the status.
    pub const STATUS: u8 = 0x1a;
    /// The status as JSON, in response to STATUS.
    pub const STATUS_RESPONSE: u8 = 0x1b;

    /// Returns whether a frame of this opcode is a [`Request`](super::Request).
    #[inline]
    pub fn is_request(opcode: u8) -> bool {
        matches!(opcode, GET..=VERIFY | RESOLVE)
    }
}

const SERVED_BY_SERVERS: &str = "GET, PUT, DELETE, NOOP, VERIFY, RESOLVE, MAP";

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Status {
    /// Success.
    Ok = 0,
    /// The key does not exist.
    NotFound = 1,
    /// The entry's version differs from the required one; nothing was changed.
    Conflict = 2,
    /// This server does not serve the key: fetch the map and retry.
    WrongView = 3,
    /// The group cannot be served at the moment: retry.
    Unavailable = 4,
    /// No holder of the group is left.
    Lost = 5,
    /// The key or the value is longer than allowed.
    TooBig = 6,
    /// The memory limit is reached; the write was not executed.
    OutOfSpace = 7,
    /// Too many connections, sessions or writes in flight; nothing was executed.
    Busy = 8,
    /// The server no longer has a record that shows whether this write was executed.
    SessionExpired = 9,
    /// The fields of the request contradict each other; nothing was executed.
    Invalid = 10,
    /// The opcode or the protocol version is not supported on this connection.
    Unsupported = 11,
    /// Another write of the session already has this number, because two processes use one client id. Nothing
    /// was executed.
    SessionMismatch = 12,
    /// A RESOLVE has settled this write: it was not executed and never will be.
    NotDone = 13,
    /// Success, with the requested part of the value, which may be empty. The length of the whole value precedes
    /// the part.
    Part = 14,
}

impl Status {
    /// Returns the status with this number.
    pub fn from_wire(number: u8) -> Option<Status> {
        Some(match number {
            0 => Status::Ok,
            1 => Status::NotFound,
            2 => Status::Conflict,
            3 => Status::WrongView,
            4 => Status::Unavailable,
            5 => Status::Lost,
            6 => Status::TooBig,
            7 => Status::OutOfSpace,
            8 => Status::Busy,
            9 => Status::SessionExpired,
            10 => Status::Invalid,
            11 => Status::Unsupported,
            12 => Status::SessionMismatch,
            13 => Status::NotDone,
            14 => Status::Part,
            _ => return None,
        })
    }

    fn read(reader: &mut Reader<'_>) -> Result<Status, DecodeError> {
        let number = reader.u8("status")?;
        Status::from_wire(number)
            .ok_or(DecodeError::BadValue { field: "status", value: number.into() })
    }
}

/// Writes the name of the status in docs/protocol.md, such as `WRONG_VIEW`.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "OK",
            Status::NotFound => "NOT_FOUND",
            Status::Conflict => "CONFLICT",
            Status::WrongView => "WRONG_VIEW",
            Status::Unavailable => "UNAVAILABLE",
            Status::Lost => "LOST",
            Status::TooBig => "TOO_BIG",
            Status::OutOfSpace => "OUT_OF_SPACE",
            Status::Busy => "BUSY",
            Status::SessionExpired => "SESSION_EXPIRED",
            Status::Invalid => "INVALID",
            Status::Unsupported => "UNSUPPORTED",
            Status::SessionMismatch => "SESSION_MISMATCH",
            Status::NotDone => "NOT_DONE",
            Status::Part => "PART",
        })
    }
}

/// The first frame of a client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The cluster that the client expects; zero for any cluster.
    pub cluster: ClusterId,
    /// The id of the client.
    pub client: ClientId,
    /// The shard whose executor is to serve the connection; ignored by the coordinator.
    pub shard: ShardId,
}

impl Hello {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Absent, opcode::HELLO, |body| {
            body.put_u128(self.cluster.0);
            body.put_u128(self.client.0);
            body.put_u16(self.shard.0);
        });
    }

    /// Reads a hello from its frame's body.
    pub fn read(body: &[u8]) -> Result<Hello, DecodeError> {
        let mut reader = Reader::new(body);
        let hello = Hello {
            cluster: ClusterId(reader.u128("cluster id")?),
            client: ClientId(reader.u128("client id")?),
            shard: ShardId(reader.u16("shard")?),
        };
        reader.finish()?;
        Ok(hello)
    }
}

/// The number of groups with their home on one server. One connection carries writes to at most this many groups.
pub const GROUPS_OF_A_SERVER: usize = 2;

/// A log position of a group's shard at which a session may begin (consistency.md §8). It is the last committed write
/// at the time of the connection's handshake, or zero if the server is not the group's primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStart {
    /// The group.
    pub group: GroupId,
    /// The last committed write of the connection's shard of that group.
    pub committed: SequenceNumber,
}

/// The response to a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// The responding server; `None` for the coordinator.
    pub server: Option<Member>,
    /// The number of servers in the ring.
    pub servers: u16,
    /// The number of shards of a group.
    pub shards: u16,
    /// The length of the longest value accepted, in bytes.
    pub max_value: u32,
    /// The log position at which a new session of this connection's client may begin, for each group of the server.
    pub starts: [SessionStart; GROUPS_OF_A_SERVER],
}

impl Welcome {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Absent, opcode::WELCOME, |body| {
            body.put_u128(self.cluster.0);
            body.put_u8(self.server.is_some().into());
            let nobody = Member { server: ServerId(0), incarnation: Default::default() };
            write_member(body, self.server.unwrap_or(nobody));
            body.put_u16(self.servers);
            body.put_u16(self.shards);
            body.put_u32(self.max_value);
            for start in self.starts {
                body.put_u16(start.group.0);
                body.put_u64(start.committed.0);
            }
        });
    }

    /// Reads a welcome from its frame's body.
    pub fn read(body: &[u8]) -> Result<Welcome, DecodeError> {
        let mut reader = Reader::new(body);
        let cluster = ClusterId(reader.u128("cluster id")?);
        let is_server = reader.u8("role")?;
        let member = read_member(&mut reader)?;
        let mut welcome = Welcome {
            cluster,
            server: (is_server != 0).then_some(member),
            servers: bounded(reader.u16("server count")?, MAX_SERVERS, "server count")?,
            shards: bounded(reader.u16("shard count")?, MAX_SHARDS, "shard count")?,
            max_value: reader.u32("longest value")?,
            starts: Default::default(),
        };
        for start in &mut welcome.starts {
            start.group = GroupId(reader.u16("group")?);
            start.committed = SequenceNumber(reader.u64("session start")?);
        }
        reader.finish()?;
        Ok(welcome)
    }
}

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
    /// The start of the session: the position in a [`SessionStart`] that the client received before it sent the
    /// session's first write. It never changes.
    pub begun: SequenceNumber,
    /// The condition.
    pub condition: Condition,
}

/// The part of a value that a read requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The offset of the first byte.
    pub from: u32,
    /// The maximum number of bytes to return.
    pub most: u32,
    /// True if the part is empty when the value has more than `most` bytes from offset `from` on. The response then has
    /// only the length of the value.
    pub all_or_nothing: bool,
}

impl Part {
    /// Returns the range of a value of this length that the part covers.
    #[inline]
    pub fn of(&self, length: usize) -> Range<usize> {
        let from = (self.from as usize).min(length);
        match (length - from).min(self.most as usize) {
            bytes if self.all_or_nothing && bytes < length - from => from..from,
            bytes => from..from + bytes,
        }
    }

    /// Encodes the part for the field `if_version` of a GET: `from` in the low 32 bits, `most` + 1 in the high ones.
    /// The field is zero if the whole value is requested.
    fn to_wire(self) -> u64 {
        // `most + 1` must fit in 32 bits. The cap does not change the result, because no value is that long.
        u64::from(self.from) | (u64::from(self.most.min(u32::MAX - 1)) + 1) << 32
    }

    fn from_wire(number: u64, all_or_nothing: bool) -> Option<Part> {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        let from = u32::from_le_bytes([a, b, c, d]);
        let most = u32::from_le_bytes([e, f, g, h]).checked_sub(1)?;
        Some(Part { from, most, all_or_nothing })
    }
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
}

impl Operation<'_> {
    /// Returns the header of a write or RESOLVE, which takes effect through the log; `None` for reads
    /// and NOOP.
    #[inline]
    pub fn write_header(&self) -> Option<&WriteHeader> {
        match self {
            Operation::Put(header, _)
            | Operation::Delete(header)
            | Operation::Resolve(header, _) => Some(header),
            Operation::Get | Operation::GetPart(_) | Operation::Noop | Operation::Verify(_) => None,
        }
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
    /// MD5 of the key.
    pub digest: Digest,
    /// The key, 1 to 65,535 bytes.
    pub key: &'a [u8],
    /// The operation on the key.
    pub operation: Operation<'a>,
}

impl<'a> Request<'a> {
    /// Appends the frame. The caller has checked key and value against the limits.
    pub fn write(&self, output: &mut Vec<u8>) {
        output.put_bytes(&self.head());
        output.put_bytes(self.key);
        if let Operation::Put(_, value) = self.operation {
            output.put_bytes(value);
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
            Operation::GetPart(part) => {
                (opcode::GET, part.to_wire(), part.all_or_nothing.into(), &[])
            }
            Operation::Put(_, value) => (opcode::PUT, condition, 0, value),
            Operation::Delete(_) => (opcode::DELETE, condition, 0, &[]),
            Operation::Noop => (opcode::NOOP, condition, 0, &[]),
            Operation::Verify(ReplicaRole::Primary) => (opcode::VERIFY, condition, 0, &[]),
            Operation::Verify(ReplicaRole::Secondary) => (opcode::VERIFY, condition, 1, &[]),
            Operation::Resolve(_, request) => (opcode::RESOLVE, request.0, 0, &[]),
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
            _ if condition == 0 => Operation::Get,
            _ => {
                let bad = DecodeError::BadValue { field: "limit", value: condition };
                Operation::GetPart(Part::from_wire(condition, replica == 1).ok_or(bad)?)
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

    /// Checks the key, the value and the session fields against their limits. Returns the status and the reason for the
    /// first invalid one.
    pub fn validate(&self) -> Result<(), (Status, &'static str)> {
        if self.key.is_empty() {
            return Err((Status::Invalid, "the key is empty; it needs 1 to 65,535 bytes"));
        }
        let Some(header) = self.operation.write_header() else { return Ok(()) };
        match self.operation {
            Operation::Put(_, value) if value.len() > MAX_VALUE_BYTES => {
                return Err((Status::TooBig, "the value is longer than 16 MiB"));
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

/// A server's response to a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The id of the request.
    pub id: RequestId,
    /// The outcome.
    pub status: Status,
    /// The number of replicas that hold the write, in the response to a logged write (OK, NOT_FOUND, CONFLICT or
    /// NOT_DONE). Zero in any other response.
    pub copies: u8,
    /// The version of the newest view of the key's group at the server; 0 if the server has none.
    pub view: ViewVersion,
    /// OK and PART: the entry's version, or for a DELETE the sequence number of the delete. CONFLICT: the version
    /// found, or 0 if the key does not exist.
    pub version: SequenceNumber,
    /// The value, or the part of it, that was read. If the request was rejected: the reason as text.
    pub value: &'a [u8],
    /// PART: the length of the whole value. Otherwise zero.
    pub whole: u32,
}

/// The frame of a response up to its value.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead {
    bytes: [u8; PART_HEAD_BYTES],
    is_part: bool,
}

impl Deref for ResponseHead {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        if self.is_part { &self.bytes } else { &self.bytes[..RESPONSE_HEAD_BYTES] }
    }
}

impl<'a> Response<'a> {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        output.reserve(PART_HEAD_BYTES + self.value.len());
        output.put_bytes(&self.head());
        output.put_bytes(self.value);
    }

    /// Returns the frame up to its value, for a sender that sends the value from its own buffer.
    #[inline]
    pub fn head(&self) -> ResponseHead {
        let is_part = self.status == Status::Part;
        let fixed = if is_part { RESPONSE_FIXED_BYTES + 4 } else { RESPONSE_FIXED_BYTES };
        let mut head = FixedWriter::<PART_HEAD_BYTES>::new();
        head.put_bytes(&unchecked_header(opcode::RESPONSE, fixed + self.value.len()));
        head.put_u64(self.id.0);
        head.put_u64(self.view.0);
        head.put_u64(self.version.0);
        head.put_u8(self.status as u8);
        head.put_u8(self.copies);
        head.put_u16(0);
        head.put_u32(self.whole);
        ResponseHead { bytes: head.finish(), is_part }
    }

    /// Reads a response from its frame's body.
    #[inline]
    pub fn read(body: &'a [u8]) -> Result<Response<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let id = RequestId(reader.u64("request id")?);
        let view = ViewVersion(reader.u64("view version")?);
        let version = SequenceNumber(reader.u64("version")?);
        let status = Status::read(&mut reader)?;
        let copies = reader.u8("copies")?;
        reader.u16("reserved")?;
        let whole = if status == Status::Part { reader.u32("length of the value")? } else { 0 };
        Ok(Response { id, status, copies, view, version, value: reader.remainder(), whole })
    }
}

/// The rejection of a hello, a frame or the whole connection, rather than of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    /// The reason as a status.
    pub status: Status,
    /// The reason as text (UTF-8).
    pub reason: &'a str,
}

impl<'a> Refusal<'a> {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Absent, opcode::ERROR, |body| {
            body.put_u8(self.status as u8);
            body.put_bytes(self.reason.as_bytes());
        });
    }

    /// Reads a rejection from its frame's body. If the reason is not valid UTF-8, a fixed text replaces it.
    pub fn read(body: &'a [u8]) -> Result<Refusal<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let status = Status::read(&mut reader)?;
        let reason = std::str::from_utf8(reader.remainder()).unwrap_or("(reason unreadable)");
        Ok(Refusal { status, reason })
    }
}

/// A request without a body. The coordinator serves MAP and STATUS; a server serves only MAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// A request for the [`Map`].
    Map,
    /// A request for the [`crate::status::ClusterStatus`].
    Status,
}

impl Question {
    /// Appends the frame.
    pub fn write(self, output: &mut Vec<u8>) {
        let opcode = match self {
            Question::Map => opcode::MAP,
            Question::Status => opcode::STATUS,
        };
        write_frame(output, Checksum::Absent, opcode, |_| {});
    }

    /// Reads a request without a body from its frame.
    pub fn read(opcode: u8, body: &[u8]) -> Result<Question, DecodeError> {
        let question = match opcode {
            opcode::MAP => Question::Map,
            opcode::STATUS => Question::Status,
            opcode => {
                return Err(DecodeError::UnknownOpcode { opcode, supported: "MAP, STATUS" });
            }
        };
        Reader::new(body).finish()?;
        Ok(question)
    }
}

/// Appends a MAP-RESPONSE.
pub fn write_map_response(output: &mut Vec<u8>, map: &Map) {
    write_frame(output, Checksum::Absent, opcode::MAP_RESPONSE, |body| map.write(body));
}

/// Reads the map from a MAP-RESPONSE's body.
pub fn read_map_response(body: &[u8]) -> Result<Map, DecodeError> {
    Map::read_all(body)
}

/// Appends a STATUS-RESPONSE; `json` is a [`crate::status::ClusterStatus`].
pub fn write_status_response(output: &mut Vec<u8>, json: &str) {
    write_frame(output, Checksum::Absent, opcode::STATUS_RESPONSE, |body| {
        body.put_bytes(json.as_bytes());
    });
}
