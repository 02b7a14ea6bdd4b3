//! The content of writes between servers: the changes of a write with several of them, and the part of a response that
//! is kept for retries.

use crate::codec::{FixedWriter, Reader, Writer, length_u16, length_u32};
use crate::error::DecodeError;
use crate::ids::WallTime;
use crate::limits::MAX_VALUE_BYTES;
use crate::placement::Digest;

/// The number of bytes of a change besides its key and value.
pub const CHANGE_FIXED_BYTES: usize = 1 + 2 + 16 + 8 + 4;

/// One of the changes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// MD5 of the key.
    pub digest: Digest,
    /// The key.
    pub key: &'a [u8],
    /// The new entry; `None` if the entry of the key is removed.
    pub entry: Option<NewEntry<'a>>,
}

/// The entry that a change stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewEntry<'a> {
    /// The value.
    pub value: &'a [u8],
    /// The deadline; `None` for an entry that does not expire.
    pub deadline: Option<WallTime>,
}

const PUT: u8 = 1;
const DELETE: u8 = 2;

impl<'a> Change<'a> {
    /// The position of the key in an encoded change.
    pub const KEY_OFFSET: usize = CHANGE_FIXED_BYTES;

    /// Appends the change.
    pub fn write(&self, output: &mut Vec<u8>) {
        let (kind, value, deadline) = match self.entry {
            Some(entry) => (PUT, entry.value, entry.deadline),
            None => (DELETE, &[][..], None),
        };
        output.put_u8(kind);
        output.put_u16(length_u16(self.key.len(), "key"));
        output.put_bytes(&self.digest.0);
        output.put_u64(deadline.map_or(0, WallTime::millis));
        output.put_u32(length_u32(value.len(), "value"));
        output.put_bytes(self.key);
        output.put_bytes(value);
    }

    fn read(reader: &mut Reader<'a>) -> Result<Change<'a>, DecodeError> {
        let bad = |field, value: u64| Err(DecodeError::BadValue { field, value });
        let kind = reader.u8("kind of the change")?;
        let key_length = reader.u16("key length")?;
        let digest = Digest(reader.array("digest")?);
        let deadline = read_deadline(reader)?;
        let value_length = reader.u32("value length")?;
        if key_length == 0 {
            return bad("key length", 0);
        }
        if value_length as usize > MAX_VALUE_BYTES || (kind != PUT && value_length > 0) {
            return bad("value length", value_length.into());
        }
        let key = reader.bytes(usize::from(key_length), "key")?;
        let value = reader.bytes(value_length as usize, "value")?;
        let entry = match kind {
            PUT => Some(NewEntry { value, deadline }),
            DELETE => None,
            other => return bad("kind of the change", other.into()),
        };
        Ok(Change { digest, key, entry })
    }

    /// Returns the changes of a write, in order.
    ///
    /// # Errors
    /// If one of them is malformed, or if there is none.
    pub fn read_all(value: &'a [u8]) -> Result<Vec<Change<'a>>, DecodeError> {
        let mut reader = Reader::new(value);
        let mut changes = vec![Change::read(&mut reader)?];
        while reader.left() > 0 {
            changes.push(Change::read(&mut reader)?);
        }
        Ok(changes)
    }
}

/// The part of a response to an UPDATE that its completion record does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetainedResponse<'a> {
    /// The value in the response; `None` if it has none.
    pub value: Option<&'a [u8]>,
    /// The deadline in the response.
    pub deadline: Option<WallTime>,
}

impl<'a> RetainedResponse<'a> {
    /// The number of bytes before the value.
    pub const HEAD_BYTES: usize = 8 + 1;

    /// Appends the response. If it has neither value nor deadline, appends nothing.
    pub fn write(&self, output: &mut Vec<u8>) {
        if let Some(head) = self.head() {
            output.put_bytes(&head);
            output.put_bytes(self.value.unwrap_or(&[]));
        }
    }

    /// Returns the bytes before the value; `None` if the response has neither value nor deadline.
    pub fn head(&self) -> Option<[u8; RetainedResponse::HEAD_BYTES]> {
        if self.value.is_none() && self.deadline.is_none() {
            return None;
        }
        let mut head = FixedWriter::<{ RetainedResponse::HEAD_BYTES }>::new();
        head.put_u64(self.deadline.map_or(0, WallTime::millis));
        head.put_u8(self.value.is_some().into());
        Some(head.finish())
    }

    /// Reads a response that [`RetainedResponse::write`] has appended.
    ///
    /// # Errors
    /// If the bytes are malformed.
    pub fn read(bytes: &'a [u8]) -> Result<RetainedResponse<'a>, DecodeError> {
        if bytes.is_empty() {
            return Ok(RetainedResponse::default());
        }
        let mut reader = Reader::new(bytes);
        let deadline = read_deadline(&mut reader)?;
        let value = match reader.u8("value present")? {
            0 => {
                reader.finish()?;
                None
            }
            1 => Some(reader.remainder()),
            other => {
                let field = "value present";
                return Err(DecodeError::BadValue { field, value: other.into() });
            }
        };
        Ok(RetainedResponse { value, deadline })
    }
}

/// Reads a deadline, which is 0 for an entry without one.
pub(crate) fn read_deadline(reader: &mut Reader<'_>) -> Result<Option<WallTime>, DecodeError> {
    match reader.u64("deadline")? {
        0 => Ok(None),
        millis if millis <= WallTime::MAX.millis() => Ok(Some(WallTime::from_millis(millis))),
        value => Err(DecodeError::BadValue { field: "deadline", value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_they_were_written() {
        let digest = Digest::of(b"k");
        let deadline = Some(WallTime::from_millis(7));
        let changes = [
            Change { digest, key: b"k", entry: None },
            Change { digest, key: b"k", entry: Some(NewEntry { value: b"", deadline: None }) },
            Change { digest, key: b"key", entry: Some(NewEntry { value: b"v", deadline }) },
        ];
        let mut bytes = Vec::new();
        changes.iter().for_each(|change| change.write(&mut bytes));
        assert_eq!(Change::read_all(&bytes).unwrap(), changes);
        assert!(Change::read_all(&bytes[..bytes.len() - 1]).is_err());
        assert!(Change::read_all(&[]).is_err());
    }

    #[test]
    fn a_retained_response_is_read_as_it_was_written() {
        let deadline = Some(WallTime::from_millis(7));
        for (value, deadline) in
            [(None, None), (Some(&b""[..]), None), (Some(b"v"), deadline), (None, deadline)]
        {
            let response = RetainedResponse { value, deadline };
            let mut bytes = Vec::new();
            response.write(&mut bytes);
            assert_eq!(RetainedResponse::read(&bytes), Ok(response));
        }
    }
}
