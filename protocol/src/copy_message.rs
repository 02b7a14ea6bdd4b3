//! Messages for the copy of a shard to a candidate and for the hand-over (consistency.md §6 and
//! §7). They travel on the stream that carries the live writes.
//!
//! ```text
//!   primary                                            candidate
//!   COPY-START (sn)             ->  live writes follow from sn + 1; the copy begins
//!   COPY-ENTRY, COPY-FRAGMENT,
//!   COPY-RECORD, interleaved
//!   with the live PREPAREs      ->
//!                               <-  ACK (sn, copied)    paces the copy
//!   COPY-END (sn)               ->  the whole copy and all writes up to sn are sent
//!                               <-  MARKED (sn, digest)
//! ```

use crate::change::read_deadline;
use crate::client_message::Status;
use crate::codec::{Reader, Writer, length_u16, length_u32};
use crate::error::DecodeError;
use crate::ids::{ClientId, RequestHash, RequestSeq, SequenceNumber, ViewVersion, WallTime};
use crate::limits::{FRAGMENT_BYTES, MAX_RETAINED_RESPONSE, MAX_VALUE_BYTES};
use crate::peer_message::CompletionRecord;
use crate::placement::Digest;

/// The digest of a shard's content, as two sums that do not depend on order. Equal digests at the same sequence number
/// mean equal copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContentDigest {
    /// The sum over every entry: key, value and sequence number.
    pub table: u64,
    /// The sum over every completion record.
    pub sessions: u64,
}

/// The start of a copy. The candidate receives every write after `sn` as a PREPARE; the copy contains all writes up to
/// `sn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyStart {
    /// The sender's view.
    pub view: ViewVersion,
    /// The last write assigned when the copy began.
    pub sn: SequenceNumber,
    /// The horizon: sessions whose last write is before this write have expired (consistency.md §8).
    pub forgotten: SequenceNumber,
}

/// An entry of the primary's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyEntry<'a> {
    /// The sender's view.
    pub view: ViewVersion,
    /// The last write committed at the sender. No entry that this or an earlier write deleted follows in this copy.
    pub committed: SequenceNumber,
    /// The sequence number of the entry's last write.
    pub version: SequenceNumber,
    /// MD5 of the key.
    pub digest: Digest,
    /// The key.
    pub key: &'a [u8],
    /// The deadline of the entry.
    pub deadline: Option<WallTime>,
    /// The length of the whole value.
    pub value_length: u32,
    /// The first bytes of the value; the rest follows in [`CopyFragment`]s. If another entry follows before the value
    /// is complete, this entry was overwritten or removed; the newer write arrives as a PREPARE.
    pub value: &'a [u8],
}

/// The next bytes of the value of the last [`CopyEntry`], or of the response of the last [`CopyRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyFragment<'a> {
    /// The sender's view.
    pub view: ViewVersion,
    /// The position of these bytes in the value or response: directly after those already sent.
    pub offset: u32,
    /// The bytes.
    pub bytes: &'a [u8],
}

/// A completion record of the primary. Its write is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRecord<'a> {
    /// The sender's view.
    pub view: ViewVersion,
    /// The sequence number of the record's write.
    pub sn: SequenceNumber,
    /// The completion record.
    pub record: CompletionRecord,
    /// The length of the response that is kept with the record.
    pub response_length: u32,
    /// The first bytes of the response; the rest follows in [`CopyFragment`]s, before any other message of the copy.
    pub response: &'a [u8],
}

/// The end of the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyEnd {
    /// The sender's view.
    pub view: ViewVersion,
    /// The last write assigned and sent.
    pub sn: SequenceNumber,
}

/// The candidate's response to the [`CopyEnd`], with the digest of its content at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// The sender's view.
    pub view: ViewVersion,
    /// The last write applied: the `sn` of the [`CopyEnd`].
    pub sn: SequenceNumber,
    /// The digest of the candidate's content.
    pub content: ContentDigest,
}

/// The end of the old primary's log: it has sent every write up to `sn`. A successor that has applied all of them may
/// serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The sender's view.
    pub view: ViewVersion,
    /// The last write that the old primary has assigned.
    pub sn: SequenceNumber,
}

impl CopyEntry<'_> {
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        body.put_u64(self.view.0);
        body.put_u64(self.committed.0);
        body.put_u64(self.version.0);
        body.put_bytes(&self.digest.0);
        body.put_u16(length_u16(self.key.len(), "key"));
        body.put_u64(self.deadline.map_or(0, WallTime::millis));
        body.put_u32(self.value_length);
        body.put_u32(length_u32(self.value.len(), "first fragment"));
        body.put_bytes(self.key);
        body.put_bytes(self.value);
    }
}

impl<'a> CopyEntry<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<CopyEntry<'a>, DecodeError> {
        let view = ViewVersion(reader.u64("view version")?);
        let committed = SequenceNumber(reader.u64("committed sn")?);
        let version = SequenceNumber(reader.u64("entry version")?);
        let digest = Digest(reader.array("digest")?);
        let key_length = reader.u16("key length")?;
        let deadline = read_deadline(reader)?;
        let value_length = reader.u32("value length")?;
        let first = reader.u32("first fragment length")?;
        let bad = |field, value: u64| Err(DecodeError::BadValue { field, value });
        if key_length == 0 {
            return bad("key length", 0);
        }
        if value_length as usize > MAX_VALUE_BYTES {
            return bad("value length", value_length.into());
        }
        if first > value_length || first as usize > FRAGMENT_BYTES {
            return bad("first fragment length", first.into());
        }
        let key = reader.bytes(usize::from(key_length), "key")?;
        let value = reader.bytes(first as usize, "first fragment")?;
        Ok(CopyEntry { view, committed, version, digest, key, deadline, value_length, value })
    }
}

impl CopyFragment<'_> {
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        body.put_u64(self.view.0);
        body.put_u32(self.offset);
        body.put_u32(length_u32(self.bytes.len(), "fragment"));
        body.put_bytes(self.bytes);
    }
}

impl<'a> CopyFragment<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<CopyFragment<'a>, DecodeError> {
        let view = ViewVersion(reader.u64("view version")?);
        let offset = reader.u32("fragment offset")?;
        let length = reader.u32("fragment length")?;
        if length == 0 || length as usize > FRAGMENT_BYTES {
            return Err(DecodeError::BadValue { field: "fragment length", value: length.into() });
        }
        Ok(CopyFragment { view, offset, bytes: reader.bytes(length as usize, "fragment")? })
    }
}

impl CopyRecord<'_> {
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        body.put_u64(self.view.0);
        body.put_u64(self.sn.0);
        body.put_u128(self.record.client.0);
        body.put_u64(self.record.seq.0);
        body.put_u64(self.record.first_incomplete.0);
        body.put_u64(self.record.version.0);
        body.put_u64(self.record.request.0);
        body.put_u8(self.record.status as u8);
        body.put_u32(self.response_length);
        body.put_u32(length_u32(self.response.len(), "first fragment"));
        body.put_bytes(self.response);
    }
}

impl<'a> CopyRecord<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<CopyRecord<'a>, DecodeError> {
        let view = ViewVersion(reader.u64("view version")?);
        let sn = SequenceNumber(reader.u64("sn")?);
        let client = ClientId(reader.u128("client id")?);
        let seq = RequestSeq(reader.u64("seq")?);
        let first_incomplete = RequestSeq(reader.u64("first incomplete seq")?);
        let version = SequenceNumber(reader.u64("record version")?);
        let request = RequestHash(reader.u64("request hash")?);
        let status = reader.u8("record status")?;
        let status = Status::from_wire(status)
            .ok_or(DecodeError::BadValue { field: "record status", value: status.into() })?;
        let record = CompletionRecord { client, seq, first_incomplete, status, version, request };
        let response_length = reader.u32("response length")?;
        let first = reader.u32("first fragment length")?;
        let bad = |field, value: u32| Err(DecodeError::BadValue { field, value: value.into() });
        if response_length as usize > MAX_RETAINED_RESPONSE {
            return bad("response length", response_length);
        }
        if first > response_length || first as usize > FRAGMENT_BYTES {
            return bad("first fragment length", first);
        }
        let response = reader.bytes(first as usize, "first fragment")?;
        Ok(CopyRecord { view, sn, record, response_length, response })
    }
}

impl Marked {
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        body.put_u64(self.view.0);
        body.put_u64(self.sn.0);
        body.put_u64(self.content.table);
        body.put_u64(self.content.sessions);
    }

    pub(crate) fn read(reader: &mut Reader<'_>) -> Result<Marked, DecodeError> {
        Ok(Marked {
            view: ViewVersion(reader.u64("view version")?),
            sn: SequenceNumber(reader.u64("sn")?),
            content: ContentDigest {
                table: reader.u64("table digest")?,
                sessions: reader.u64("sessions digest")?,
            },
        })
    }
}

/// Writes a view version and a sequence number, the first fields of every message about a log
/// position.
pub(crate) fn write_place(body: &mut Vec<u8>, view: ViewVersion, sn: SequenceNumber) {
    body.put_u64(view.0);
    body.put_u64(sn.0);
}

/// Reads a view version and a sequence number.
pub(crate) fn read_place(
    reader: &mut Reader<'_>,
) -> Result<(ViewVersion, SequenceNumber), DecodeError> {
    Ok((ViewVersion(reader.u64("view version")?), SequenceNumber(reader.u64("sn")?)))
}
