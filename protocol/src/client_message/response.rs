//! A server's response to a request.

use std::ops::Deref;

use super::{Status, opcode};
use crate::codec::{FixedWriter, Reader, Writer};
use crate::error::DecodeError;
use crate::frame::{HEADER_BYTES, unchecked_header};
use crate::ids::{RequestId, SequenceNumber, ViewVersion, WallTime};
use crate::limits::MAX_FIXED_BYTES;

/// The number of bytes of a response before the value.
pub const RESPONSE_FIXED_BYTES: usize = 8 + 8 + 8 + 1 + 1 + 2;
/// The number of bytes of a response's frame before the value, if it has neither a length nor a deadline.
pub const RESPONSE_HEAD_BYTES: usize = HEADER_BYTES + RESPONSE_FIXED_BYTES;
/// The number of bytes of a response's frame before the value, if it has a length and a deadline.
pub const RESPONSE_HEAD_BYTES_MAX: usize = RESPONSE_HEAD_BYTES + 4 + 8;

const _: () = assert!(RESPONSE_FIXED_BYTES + 4 + 8 <= MAX_FIXED_BYTES);

/// A server's response to a [`Request`](super::Request).
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
    /// In the response to an UPDATE: true if `value` is the requested value or the result, and not absent.
    pub has_value: bool,
    /// The deadline of the entry, if it has one and the request asked for it.
    pub deadline: Option<WallTime>,
}

/// The flag of a response with a deadline.
const HAS_DEADLINE: u16 = 1;
/// The flag of a response to an UPDATE with a value.
const HAS_VALUE: u16 = 2;

/// The frame of a response up to its value.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead {
    bytes: [u8; RESPONSE_HEAD_BYTES_MAX],
    length: usize,
}

impl Deref for ResponseHead {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl<'a> Response<'a> {
    /// Appends the frame.
    pub fn write(&self, output: &mut Vec<u8>) {
        output.reserve(RESPONSE_HEAD_BYTES_MAX + self.value.len());
        match self.is_plain() {
            true => output.put_bytes(&self.fixed(0, 0)),
            false => output.put_bytes(&self.head()),
        }
        output.put_bytes(self.value);
    }

    /// Returns the frame up to its value, for a sender that sends the value from its own buffer.
    #[inline]
    pub fn head(&self) -> ResponseHead {
        let is_part = self.status == Status::Part;
        let more = 4 * usize::from(is_part) + 8 * usize::from(self.deadline.is_some());
        let mut head = FixedWriter::<RESPONSE_HEAD_BYTES_MAX>::new();
        head.put_bytes(&self.fixed(more, HAS_DEADLINE * u16::from(self.deadline.is_some())));
        if is_part {
            head.put_u32(self.whole);
        }
        if let Some(deadline) = self.deadline {
            head.put_u64(deadline.millis());
        }
        ResponseHead { bytes: head.bytes(), length: RESPONSE_HEAD_BYTES + more }
    }

    /// Returns whether the value follows the fields that every response has.
    #[inline]
    fn is_plain(&self) -> bool {
        self.status != Status::Part && self.deadline.is_none()
    }

    /// Returns the fields that every response has. `more` is the number of bytes between them and the value, and `flags`
    /// describe these bytes.
    #[inline]
    fn fixed(&self, more: usize, flags: u16) -> [u8; RESPONSE_HEAD_BYTES] {
        let flags = flags | (HAS_VALUE * u16::from(self.has_value));
        let body = RESPONSE_FIXED_BYTES + more + self.value.len();
        let mut head = FixedWriter::<RESPONSE_HEAD_BYTES>::new();
        head.put_bytes(&unchecked_header(opcode::RESPONSE, body));
        head.put_u64(self.id.0);
        head.put_u64(self.view.0);
        head.put_u64(self.version.0);
        head.put_u8(self.status as u8);
        head.put_u8(self.copies);
        head.put_u16(flags);
        head.finish()
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
        // A version 1 server sends zero here.
        let flags = reader.u16("flags")?;
        let whole = if status == Status::Part { reader.u32("length of the value")? } else { 0 };
        let deadline = match flags & HAS_DEADLINE != 0 {
            true => Some(WallTime::from_millis(reader.u64("deadline")?)),
            false => None,
        };
        let (has_value, value) = (flags & HAS_VALUE != 0, reader.remainder());
        Ok(Response { id, status, copies, view, version, value, whole, has_value, deadline })
    }
}
