//! Messages between servers, on one connection per (group, shard). The primary dials, or, in a hand-over, the old
//! primary dials the new one.
//!
//! ```text
//!   primary                                    secondary (or candidate)
//!   CHALLENGE, PROOF: see [`key`](crate::key)
//!   PEER-HELLO (both members, view) ->
//!                                   <-  PEER-WELCOME (last sn)   or PEER-REFUSAL
//!   BATCH [BEACON? PREPARE* FRAGMENT*] ->
//!                                   <-  BATCH [ACK]
//! ```
//!
//! The copy of a shard to a candidate and the hand-over travel on the same stream:
//! [`copy_message`](crate::copy_message).
//!
//! All frames carry a checksum. A batch holds messages of one wake-up, without padding between them.

use std::fmt;

use crate::change::read_deadline;
use crate::client_message::Status;
use crate::codec::{Reader, Writer, length_u16, length_u32};
use crate::copy_message::{
    CopyEnd, CopyEntry, CopyFragment, CopyRecord, CopyStart, Handover, Marked, read_place,
    write_place,
};
use crate::error::DecodeError;
use crate::frame::{Checksum, HEADER_BYTES, begin_frame, end_frame, write_frame};
use crate::ids::{
    ClientId, ClusterId, GroupId, Member, RequestHash, RequestSeq, SequenceNumber, ShardId, Time,
    ViewVersion, WallTime,
};
use crate::key::Seal;
use crate::limits::{
    FRAGMENT_BYTES, MAX_BATCH_MESSAGES, MAX_CHANGES_BYTES, MAX_RETAINED_RESPONSE, MAX_VALUE_BYTES,
};
use crate::placement::Digest;
use crate::view::{View, read_member, read_view, write_member, write_view};

/// Opcodes of connections between servers.
pub mod opcode {
    /// The dialler's first frame after the handshake.
    pub const PEER_HELLO: u8 = 0x40;
    /// The response to PEER-HELLO.
    pub const PEER_WELCOME: u8 = 0x41;
    /// The refusal of a hello or of the stream; a close follows.
    pub const PEER_REFUSAL: u8 = 0x42;
    /// A batch of messages.
    pub const BATCH: u8 = 0x43;
}

/// The first frame of a connection between servers after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHello {
    /// The cluster of both servers.
    pub cluster: ClusterId,
    /// The dialler: the view's primary, or in a hand-over the old primary, which is the view's secondary.
    pub from: Member,
    /// The acceptor: the view's other holder.
    pub to: Member,
    /// The shard of the view's group that this stream carries.
    pub shard: ShardId,
    /// The number of shards of a group, according to the dialler.
    pub shards: u16,
    /// The view under which the dialler opens the stream.
    pub view: View,
}

impl PeerHello {
    /// Appends the frame.
    pub fn write(&self, seal: &Seal, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::PEER_HELLO, |body| {
            let start = body.len();
            body.put_u128(self.cluster.0);
            write_member(body, self.from);
            write_member(body, self.to);
            body.put_u16(self.shard.0);
            body.put_u16(self.shards);
            write_view(body, &self.view);
            seal.close(body, start);
        });
    }

    /// Reads a hello from its frame's body.
    ///
    /// # Errors
    /// If the sender does not have the key of this handshake, or the message is malformed.
    pub fn read(body: &[u8], seal: &Seal) -> Result<PeerHello, DecodeError> {
        let mut reader = Reader::new(seal.open(body)?);
        let hello = PeerHello {
            cluster: ClusterId(reader.u128("cluster id")?),
            from: read_member(&mut reader)?,
            to: read_member(&mut reader)?,
            shard: ShardId(reader.u16("shard")?),
            shards: reader.u16("shard count")?,
            view: read_view(&mut reader)?,
        };
        reader.finish()?;
        Ok(hello)
    }

    /// Returns the group whose shard this stream carries.
    pub fn group(&self) -> GroupId {
        self.view.group
    }
}

/// The response to a [`PeerHello`]. It contains the position at which the stream continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerWelcome {
    /// The version of the view installed at the responding side.
    pub view: ViewVersion,
    /// The last write applied at the responding side. The stream continues with the next write.
    pub last: SequenceNumber,
}

impl PeerWelcome {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::PEER_WELCOME, |body| {
            body.put_u64(self.view.0);
            body.put_u64(self.last.0);
        });
    }

    /// Reads a welcome from its frame's body.
    pub fn read(body: &[u8]) -> Result<PeerWelcome, DecodeError> {
        let mut reader = Reader::new(body);
        let welcome = PeerWelcome {
            view: ViewVersion(reader.u64("view version")?),
            last: SequenceNumber(reader.u64("last sn")?),
        };
        reader.finish()?;
        Ok(welcome)
    }
}

/// The reason for which a server rejects or ends a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum PeerRefusalReason {
    /// The cluster or incarnation differs, or the view does not give the two servers the roles that the
    /// hello claims.
    Stranger = 0,
    /// The stream belongs to an older view; the refusal carries the newer one.
    OldView = 1,
    /// The stream skipped a write, or its messages contradict each other.
    BrokenStream = 2,
    /// There is no room for another connection.
    Busy = 3,
    /// The refusing server is being stopped and accepts no more writes.
    Stopping = 4,
    /// The hand-over for which the stream was opened is complete.
    HandedOver = 5,
    /// The refusing server has no memory for the next write of the stream.
    NoMemory = 6,
}

impl fmt::Display for PeerRefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PeerRefusalReason::Stranger => "the cluster, incarnation or view does not match",
            PeerRefusalReason::OldView => "the view is older than the one installed",
            PeerRefusalReason::BrokenStream => "the stream skipped a write or is inconsistent",
            PeerRefusalReason::Busy => "too many connections",
            PeerRefusalReason::Stopping => "the server is being stopped",
            PeerRefusalReason::HandedOver => "the hand-over is complete",
            PeerRefusalReason::NoMemory => "the server has no memory for the next write",
        })
    }
}

/// The refusal of a new stream, or the end of a current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRefusal {
    /// The reason.
    pub reason: PeerRefusalReason,
    /// The view installed at the refusing side, if there is one.
    pub view: Option<View>,
}

impl PeerRefusal {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        write_frame(output, Checksum::Crc32c, opcode::PEER_REFUSAL, |body| {
            body.put_u8(self.reason as u8);
            body.put_u8(self.view.is_some().into());
            if let Some(view) = &self.view {
                write_view(body, view);
            }
        });
    }

    /// Reads a refusal from its frame's body.
    pub fn read(body: &[u8]) -> Result<PeerRefusal, DecodeError> {
        let mut reader = Reader::new(body);
        let reason = match reader.u8("refusal reason")? {
            0 => PeerRefusalReason::Stranger,
            1 => PeerRefusalReason::OldView,
            2 => PeerRefusalReason::BrokenStream,
            3 => PeerRefusalReason::Busy,
            4 => PeerRefusalReason::Stopping,
            5 => PeerRefusalReason::HandedOver,
            6 => PeerRefusalReason::NoMemory,
            other => {
                return Err(DecodeError::BadValue { field: "refusal reason", value: other.into() });
            }
        };
        let has_view = reader.u8("view present")?;
        let view = if has_view != 0 { Some(read_view(&mut reader)?) } else { None };
        reader.finish()?;
        Ok(PeerRefusal { reason, view })
    }
}

/// The change that a write makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Effect {
    /// No change: a failed compare-and-set, a DELETE of an absent key, or a RESOLVE of a write that was not executed.
    /// Such a write is still logged, because its response depends on the writes before it.
    Nothing = 0,
    /// Sets the key.
    Put = 1,
    /// Removes the key.
    Delete = 2,
    /// Expires every session whose last write is before the sequence number in the record's `version`.
    ForgetSessions = 3,
    /// Makes the [`Change`](crate::change::Change)s in the value.
    Changes = 4,
    /// Makes the changes in the value for the primary itself: entries that expired or were evicted. The write has no
    /// completion record.
    Upkeep = 5,
}

impl Effect {
    /// Returns whether the write has a completion record.
    pub fn has_record(self) -> bool {
        !matches!(self, Effect::ForgetSessions | Effect::Upkeep)
    }
}

/// The completion record of a write. A retry of the write gets its response from this record
/// (consistency.md §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionRecord {
    /// The client that sent the write.
    pub client: ClientId,
    /// The number of the write in its session; 0 for the primary's own writes.
    pub seq: RequestSeq,
    /// The lowest number of a write that the client has not completed. Records of this session with
    /// lower numbers may be dropped.
    pub first_incomplete: RequestSeq,
    /// The status of the response.
    pub status: Status,
    /// The version in the response.
    pub version: SequenceNumber,
    /// The hash of the request, which distinguishes a retry from another write with the same number.
    pub request: RequestHash,
}

/// A write that the primary replicates to the other member of the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The sender's view.
    pub view: ViewVersion,
    /// The sequence number of the write.
    pub sn: SequenceNumber,
    /// The sender's clock, read before sending; echoed in the ack.
    pub t_send: Time,
    /// The change that the write makes.
    pub effect: Effect,
    /// The completion record of the write.
    pub record: CompletionRecord,
    /// MD5 of the key.
    pub digest: Digest,
    /// The key; empty unless the effect is a PUT or a DELETE.
    pub key: &'a [u8],
    /// The deadline of the entry that a PUT sets.
    pub deadline: Option<WallTime>,
    /// The length of the whole value.
    pub value_length: u32,
    /// The length of the part of the response that retries need besides the record; see
    /// [`RetainedResponse`](crate::change::RetainedResponse).
    pub response_length: u32,
    /// The first bytes of the value; the rest follows in [`Fragment`]s.
    pub value: &'a [u8],
    /// The first bytes of that part of the response, if `value` is complete; the rest follows in [`Fragment`]s.
    pub response: &'a [u8],
}

/// The next bytes of the value or, after the value, of the response of the last [`Prepare`] of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// The sender's view.
    pub view: ViewVersion,
    /// The sequence number of the write.
    pub sn: SequenceNumber,
    /// The position of these bytes in the value followed by the response: directly after those already sent.
    pub offset: u32,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// The confirmation that its sender has applied every write up to `sn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The sender's view.
    pub view: ViewVersion,
    /// The last write applied.
    pub sn: SequenceNumber,
    /// The newest `t_send` received.
    pub echo: Time,
    /// From a candidate: the number of messages of the copy that it has processed. From a secondary: the number of
    /// bytes received so far of the value of write `sn` + 1.
    pub taken: u64,
}

/// A message that renews the lease while there is nothing else to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// The sender's view.
    pub view: ViewVersion,
    /// The sender's clock, read before sending.
    pub t_send: Time,
}

/// One message of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerMessage<'a> {
    /// A write.
    Prepare(Prepare<'a>),
    /// The next bytes of a write's value.
    Fragment(Fragment<'a>),
    /// The confirmation of writes.
    Ack(Ack),
    /// A beacon.
    Beacon(Beacon),
    /// The start of a copy.
    CopyStart(CopyStart),
    /// An entry of the copy.
    CopyEntry(CopyEntry<'a>),
    /// The next bytes of an entry's value, or of a record's response.
    CopyFragment(CopyFragment<'a>),
    /// A completion record of the copy.
    CopyRecord(CopyRecord<'a>),
    /// The end of the copy.
    CopyEnd(CopyEnd),
    /// The candidate's response to the end of the copy.
    Marked(Marked),
    /// The end of the old primary's log.
    Handover(Handover),
}

const KIND_PREPARE: u8 = 1;
const KIND_FRAGMENT: u8 = 2;
const KIND_ACK: u8 = 3;
const KIND_BEACON: u8 = 4;
const KIND_COPY_START: u8 = 5;
const KIND_COPY_ENTRY: u8 = 6;
const KIND_COPY_FRAGMENT: u8 = 7;
const KIND_COPY_RECORD: u8 = 8;
const KIND_COPY_END: u8 = 9;
const KIND_MARKED: u8 = 10;
const KIND_HANDOVER: u8 = 11;

impl<'a> PeerMessage<'a> {
    /// Returns the sender's view.
    pub fn view(&self) -> ViewVersion {
        match self {
            PeerMessage::Prepare(message) => message.view,
            PeerMessage::Fragment(message) => message.view,
            PeerMessage::Ack(message) => message.view,
            PeerMessage::Beacon(message) => message.view,
            PeerMessage::CopyStart(message) => message.view,
            PeerMessage::CopyEntry(message) => message.view,
            PeerMessage::CopyFragment(message) => message.view,
            PeerMessage::CopyRecord(message) => message.view,
            PeerMessage::CopyEnd(message) => message.view,
            PeerMessage::Marked(message) => message.view,
            PeerMessage::Handover(message) => message.view,
        }
    }

    fn write(&self, body: &mut Vec<u8>) {
        match self {
            PeerMessage::Prepare(prepare) => {
                body.put_u8(KIND_PREPARE);
                prepare.write(body);
            }
            PeerMessage::Fragment(fragment) => {
                body.put_u8(KIND_FRAGMENT);
                body.put_u64(fragment.view.0);
                body.put_u64(fragment.sn.0);
                body.put_u32(fragment.offset);
                body.put_u32(length_u32(fragment.bytes.len(), "fragment"));
                body.put_bytes(fragment.bytes);
            }
            PeerMessage::Ack(ack) => {
                body.put_u8(KIND_ACK);
                body.put_u64(ack.view.0);
                body.put_u64(ack.sn.0);
                body.put_u64(ack.echo.nanos);
                body.put_u64(ack.taken);
            }
            PeerMessage::Beacon(beacon) => {
                body.put_u8(KIND_BEACON);
                body.put_u64(beacon.view.0);
                body.put_u64(beacon.t_send.nanos);
            }
            PeerMessage::CopyStart(start) => {
                body.put_u8(KIND_COPY_START);
                write_place(body, start.view, start.sn);
                body.put_u64(start.forgotten.0);
            }
            PeerMessage::CopyEntry(entry) => {
                body.put_u8(KIND_COPY_ENTRY);
                entry.write(body);
            }
            PeerMessage::CopyFragment(fragment) => {
                body.put_u8(KIND_COPY_FRAGMENT);
                fragment.write(body);
            }
            PeerMessage::CopyRecord(record) => {
                body.put_u8(KIND_COPY_RECORD);
                record.write(body);
            }
            PeerMessage::CopyEnd(end) => {
                body.put_u8(KIND_COPY_END);
                write_place(body, end.view, end.sn);
            }
            PeerMessage::Marked(marked) => {
                body.put_u8(KIND_MARKED);
                marked.write(body);
            }
            PeerMessage::Handover(handover) => {
                body.put_u8(KIND_HANDOVER);
                write_place(body, handover.view, handover.sn);
            }
        }
    }

    fn read(reader: &mut Reader<'a>) -> Result<PeerMessage<'a>, DecodeError> {
        match reader.u8("message kind")? {
            KIND_PREPARE => Prepare::read(reader).map(PeerMessage::Prepare),
            KIND_FRAGMENT => {
                let view = ViewVersion(reader.u64("view version")?);
                let sn = SequenceNumber(reader.u64("sn")?);
                let offset = reader.u32("fragment offset")?;
                let length = reader.u32("fragment length")?;
                if length == 0 || length as usize > FRAGMENT_BYTES {
                    let field = "fragment length";
                    return Err(DecodeError::BadValue { field, value: length.into() });
                }
                let bytes = reader.bytes(length as usize, "fragment")?;
                Ok(PeerMessage::Fragment(Fragment { view, sn, offset, bytes }))
            }
            KIND_ACK => Ok(PeerMessage::Ack(Ack {
                view: ViewVersion(reader.u64("view version")?),
                sn: SequenceNumber(reader.u64("sn")?),
                echo: Time::from_nanos(reader.u64("echo")?),
                taken: reader.u64("taken")?,
            })),
            KIND_BEACON => Ok(PeerMessage::Beacon(Beacon {
                view: ViewVersion(reader.u64("view version")?),
                t_send: Time::from_nanos(reader.u64("t_send")?),
            })),
            KIND_COPY_START => {
                let (view, sn) = read_place(reader)?;
                let forgotten = SequenceNumber(reader.u64("session horizon")?);
                Ok(PeerMessage::CopyStart(CopyStart { view, sn, forgotten }))
            }
            KIND_COPY_ENTRY => CopyEntry::read(reader).map(PeerMessage::CopyEntry),
            KIND_COPY_FRAGMENT => CopyFragment::read(reader).map(PeerMessage::CopyFragment),
            KIND_COPY_RECORD => CopyRecord::read(reader).map(PeerMessage::CopyRecord),
            KIND_COPY_END => {
                let (view, sn) = read_place(reader)?;
                Ok(PeerMessage::CopyEnd(CopyEnd { view, sn }))
            }
            KIND_MARKED => Marked::read(reader).map(PeerMessage::Marked),
            KIND_HANDOVER => {
                let (view, sn) = read_place(reader)?;
                Ok(PeerMessage::Handover(Handover { view, sn }))
            }
            other => Err(DecodeError::BadValue { field: "message kind", value: other.into() }),
        }
    }
}

/// A flag in the effect of a PREPARE: it has a deadline.
const HAS_DEADLINE: u8 = 0x80;
/// A flag in the effect of a PREPARE: it has a response.
const HAS_RESPONSE: u8 = 0x40;

impl<'a> Prepare<'a> {
    fn write(&self, body: &mut Vec<u8>) {
        body.put_u64(self.view.0);
        body.put_u64(self.sn.0);
        body.put_u64(self.t_send.nanos);
        body.put_u128(self.record.client.0);
        body.put_u64(self.record.seq.0);
        body.put_u64(self.record.first_incomplete.0);
        body.put_u64(self.record.version.0);
        body.put_u64(self.record.request.0);
        body.put_u8(self.record.status as u8);
        let is_plain = self.deadline.is_none() && self.response_length == 0;
        body.put_u8(self.effect as u8 | if is_plain { 0 } else { self.flags() });
        body.put_bytes(&self.digest.0);
        body.put_u16(length_u16(self.key.len(), "key"));
        body.put_u32(self.value_length);
        body.put_u32(length_u32(self.value.len(), "first fragment"));
        if !is_plain {
            return self.write_rest(body);
        }
        body.put_bytes(self.key);
        body.put_bytes(self.value);
    }

    /// Returns the flags for the fields that few writes have.
    fn flags(&self) -> u8 {
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        flag(self.deadline.is_some(), HAS_DEADLINE) | flag(self.response_length > 0, HAS_RESPONSE)
    }

    /// Writes the fields that the flags name, and all after them.
    #[inline(never)] // A write without these fields pays only for the branch.
    fn write_rest(&self, body: &mut Vec<u8>) {
        if let Some(deadline) = self.deadline {
            body.put_u64(deadline.millis());
        }
        if self.response_length > 0 {
            body.put_u32(self.response_length);
            body.put_u32(length_u32(self.response.len(), "first fragment of the response"));
        }
        body.put_bytes(self.key);
        body.put_bytes(self.value);
        body.put_bytes(self.response);
    }

    fn read(reader: &mut Reader<'a>) -> Result<Prepare<'a>, DecodeError> {
        let view = ViewVersion(reader.u64("view version")?);
        let sn = SequenceNumber(reader.u64("sn")?);
        let t_send = Time::from_nanos(reader.u64("t_send")?);
        let client = ClientId(reader.u128("client id")?);
        let seq = RequestSeq(reader.u64("seq")?);
        let first_incomplete = RequestSeq(reader.u64("first incomplete seq")?);
        let version = SequenceNumber(reader.u64("record version")?);
        let request = RequestHash(reader.u64("request hash")?);
        let status = reader.u8("record status")?;
        let status = Status::from_wire(status)
            .ok_or(DecodeError::BadValue { field: "record status", value: status.into() })?;
        let effect = reader.u8("effect")?;
        let flags = effect & (HAS_DEADLINE | HAS_RESPONSE);
        let (effect, has_key, value_most) = match effect ^ flags {
            0 => (Effect::Nothing, false, 0),
            1 => (Effect::Put, true, MAX_VALUE_BYTES),
            2 => (Effect::Delete, true, 0),
            3 => (Effect::ForgetSessions, false, 0),
            4 => (Effect::Changes, false, MAX_CHANGES_BYTES),
            5 => (Effect::Upkeep, false, MAX_CHANGES_BYTES),
            other => return Err(DecodeError::BadValue { field: "effect", value: other.into() }),
        };
        let digest = Digest(reader.array("digest")?);
        let key_length = reader.u16("key length")?;
        let value_length = reader.u32("value length")?;
        let first = reader.u32("first fragment length")?;
        let bad = |field, value: u64| Err(DecodeError::BadValue { field, value });
        if (key_length > 0) != has_key {
            return bad("key length", key_length.into());
        }
        if value_length as usize > value_most {
            return bad("value length", value_length.into());
        }
        if first > value_length || first as usize > FRAGMENT_BYTES {
            return bad("first fragment length", first.into());
        }
        let rare = match flags {
            0 => Rare::default(),
            _ => Rare::read(reader, flags, effect, first == value_length)?,
        };
        let Rare { deadline, response_length, first_response } = rare;
        let key = reader.bytes(usize::from(key_length), "key")?;
        let value = reader.bytes(first as usize, "first fragment")?;
        let mut response = &[][..];
        if first_response > 0 {
            let field = "first fragment of the response";
            response = reader.bytes(first_response as usize, field)?;
        }
        let record = CompletionRecord { client, seq, first_incomplete, status, version, request };
        Ok(Prepare {
            view,
            sn,
            t_send,
            effect,
            record,
            digest,
            key,
            deadline,
            value_length,
            response_length,
            value,
            response,
        })
    }
}

/// The fields of a PREPARE that few writes have.
#[derive(Default)]
struct Rare {
    deadline: Option<WallTime>,
    response_length: u32,
    first_response: u32,
}

impl Rare {
    /// Reads the fields that the flags name. `is_whole` is true if the PREPARE has the whole value.
    #[inline]
    fn read(
        reader: &mut Reader<'_>,
        flags: u8,
        effect: Effect,
        is_whole: bool,
    ) -> Result<Rare, DecodeError> {
        let bad = |field, value: u64| Err(DecodeError::BadValue { field, value });
        let mut rare = Rare::default();
        if flags & HAS_DEADLINE != 0 {
            rare.deadline = read_deadline(reader)?;
            if effect != Effect::Put {
                return bad("deadline", rare.deadline.map_or(0, WallTime::millis));
            }
        }
        if flags & HAS_RESPONSE != 0 {
            rare.response_length = reader.u32("response length")?;
            rare.first_response = reader.u32("length of the first fragment of the response")?;
            if !effect.has_record() || rare.response_length as usize > MAX_RETAINED_RESPONSE {
                return bad("response length", rare.response_length.into());
            }
            let first = rare.first_response;
            let is_beyond = first > rare.response_length || first as usize > FRAGMENT_BYTES;
            if is_beyond || (first > 0 && !is_whole) {
                return bad("length of the first fragment of the response", first.into());
            }
        }
        Ok(rare)
    }
}

/// A writer of one BATCH frame that appends to an output buffer in place.
#[derive(Debug)]
pub struct BatchWriter<'a> {
    output: &'a mut Vec<u8>,
    /// The position at which the frame begins.
    start: usize,
    count: usize,
}

/// The size of a BATCH frame before its first message: the header and the count.
const BATCH_PREFIX_BYTES: usize = HEADER_BYTES + size_of::<u16>();

impl<'a> BatchWriter<'a> {
    /// Creates an empty batch. The output does not change until the first message is added.
    pub fn new(output: &'a mut Vec<u8>) -> BatchWriter<'a> {
        let start = output.len();
        BatchWriter { output, start, count: 0 }
    }

    /// Adds a message.
    pub fn push(&mut self, message: &PeerMessage<'_>) {
        debug_assert!(!self.is_full(), "a batch was filled beyond its limit");
        if self.count == 0 {
            begin_frame(self.output, opcode::BATCH);
            self.output.put_u16(0);
        }
        message.write(self.output);
        self.count += 1;
    }

    /// Returns whether the batch has reached its target size or its maximum number of messages. It must then be sent
    /// before more is added.
    pub fn is_full(&self) -> bool {
        self.count >= MAX_BATCH_MESSAGES || self.len() >= crate::limits::BATCH_TARGET_BYTES
    }

    /// Returns the number of messages.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Returns the size of the messages, in bytes.
    pub fn len(&self) -> usize {
        (self.output.len() - self.start).saturating_sub(BATCH_PREFIX_BYTES)
    }

    /// Returns whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Ends the frame if the batch is not empty.
    pub fn finish(mut self) {
        if self.count == 0 {
            return;
        }
        let count = length_u16(self.count, "batch").to_le_bytes();
        let at = self.start + HEADER_BYTES;
        self.output[at..at + count.len()].copy_from_slice(&count);
        end_frame(self.output, self.start, Checksum::Crc32c);
        self.start = self.output.len();
    }
}

/// Removes an unfinished batch, because an incomplete frame would corrupt all frames after it.
impl Drop for BatchWriter<'_> {
    fn drop(&mut self) {
        self.output.truncate(self.start);
    }
}

/// An iterator over the messages of a BATCH frame. It ends at the first error.
#[derive(Clone, Debug)]
pub struct BatchReader<'a> {
    reader: Reader<'a>,
    left: u16,
}

impl<'a> BatchReader<'a> {
    /// Creates a reader of a BATCH frame's body.
    pub fn new(body: &'a [u8]) -> Result<BatchReader<'a>, DecodeError> {
        let mut reader = Reader::new(body);
        let left = reader.u16("message count")?;
        if left == 0 || usize::from(left) > MAX_BATCH_MESSAGES {
            return Err(DecodeError::BadValue { field: "message count", value: left.into() });
        }
        Ok(BatchReader { reader, left })
    }

    /// Skips the next message if it is a PREPARE, and returns the digest and the key in it. It reads no other fields, so
    /// it takes a fraction of the time of `next`. Returns `None` for any other message, a malformed one, or the end.
    #[inline]
    pub fn skip_prepare(&mut self) -> Option<(Digest, &'a [u8])> {
        /// The bytes between the kind and the effect.
        const BEFORE_EFFECT: usize = 3 * 8 + 16 + 4 * 8 + 1;
        let mut reader = self.reader.clone();
        if self.left == 0 || reader.u8("message kind").ok()? != KIND_PREPARE {
            return None;
        }
        reader.bytes(BEFORE_EFFECT, "PREPARE").ok()?;
        let effect = reader.u8("effect").ok()?;
        let digest = Digest(reader.array("digest").ok()?);
        let key_length = reader.u16("key length").ok()?;
        reader.u32("value length").ok()?;
        let mut rest = reader.u32("first fragment length").ok()? as usize;
        if effect & HAS_DEADLINE != 0 {
            reader.u64("deadline").ok()?;
        }
        if effect & HAS_RESPONSE != 0 {
            reader.u32("response length").ok()?;
            rest += reader.u32("length of the first fragment of the response").ok()? as usize;
        }
        let key = reader.bytes(usize::from(key_length), "key").ok()?;
        reader.bytes(rest, "first fragments").ok()?;
        self.reader = reader;
        self.left -= 1;
        Some((digest, key))
    }
}

impl<'a> Iterator for BatchReader<'a> {
    type Item = Result<PeerMessage<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let mut message = PeerMessage::read(&mut self.reader);
        if self.left == 0
            && message.is_ok()
            && let Err(error) = self.reader.finish()
        {
            message = Err(error);
        }
        if message.is_err() {
            self.left = 0;
        }
        Some(message)
    }
}
