//! Little-endian fields: a reader that never panics and a writer that appends to a buffer.

use crate::error::DecodeError;

/// A reader that takes fields from the front of a message body. It borrows byte strings from the body.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

macro_rules! read_integer {
    ($name:ident, $type:ty) => {
        #[doc = concat!("Takes a little-endian `", stringify!($type), "`.")]
        #[inline]
        pub fn $name(&mut self, field: &'static str) -> Result<$type, DecodeError> {
            let (head, rest) =
                self.rest.split_first_chunk().ok_or(DecodeError::Truncated { field })?;
            self.rest = rest;
            Ok(<$type>::from_le_bytes(*head))
        }
    };
}

impl<'a> Reader<'a> {
    /// Creates a reader at the first byte of `body`.
    pub fn new(body: &'a [u8]) -> Reader<'a> {
        Reader { rest: body }
    }

    read_integer!(u8, u8);
    read_integer!(u16, u16);
    read_integer!(u32, u32);
    read_integer!(u64, u64);
    read_integer!(u128, u128);

    /// Takes the next `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(*head)
    }

    /// Takes the next `N` bytes without copying them.
    #[inline]
    pub(crate) fn array_ref<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<&'a [u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { field })?;
        self.rest = rest;
        Ok(head)
    }

    /// Takes the next `length` bytes without copying them.
    #[inline]
    pub fn bytes(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        if length > self.rest.len() {
            return Err(DecodeError::Truncated { field });
        }
        let (head, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(head)
    }

    /// Takes all remaining bytes.
    #[inline]
    pub fn remainder(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Returns the number of remaining bytes.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Checks that no bytes remain.
    #[inline]
    pub fn finish(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }
}

macro_rules! write_integer {
    ($name:ident, $type:ty) => {
        #[doc = concat!("Appends a little-endian `", stringify!($type), "`.")]
        fn $name(&mut self, value: $type) {
            self.put_bytes(&value.to_le_bytes());
        }
    };
}

/// A sink to which fields are appended.
pub trait Writer {
    /// Appends `bytes` as they are.
    fn put_bytes(&mut self, bytes: &[u8]);

    write_integer!(put_u8, u8);
    write_integer!(put_u16, u16);
    write_integer!(put_u32, u32);
    write_integer!(put_u64, u64);
    write_integer!(put_u128, u128);
}

impl Writer for Vec<u8> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// A writer of fields that fill exactly `N` bytes.
pub(crate) struct FixedWriter<const N: usize> {
    bytes: [u8; N],
    written: usize,
}

impl<const N: usize> FixedWriter<N> {
    pub(crate) fn new() -> FixedWriter<N> {
        FixedWriter { bytes: [0; N], written: 0 }
    }

    /// Returns the bytes; those that were not written are zero.
    pub(crate) fn bytes(self) -> [u8; N] {
        self.bytes
    }

    /// Returns the bytes. Panics unless all `N` were written.
    pub(crate) fn finish(self) -> [u8; N] {
        assert_eq!(self.written, N, "fields fill their bytes");
        self.bytes
    }
}

impl<const N: usize> Writer for FixedWriter<N> {
    fn put_bytes(&mut self, bytes: &[u8]) {
        let end = self.written + bytes.len();
        self.bytes[self.written..end].copy_from_slice(bytes);
        self.written = end;
    }
}

/// Converts a length, which the caller has checked against a limit, to 16 bits. Panics with the name of the field if
/// the length does not fit.
pub(crate) fn length_u16(length: usize, what: &str) -> u16 {
    u16::try_from(length).unwrap_or_else(|_| panic!("{what}: length {length} exceeds its limit"))
}

/// Converts a length to 32 bits, like [`length_u16`].
pub(crate) fn length_u32(length: usize, what: &str) -> u32 {
    u32::try_from(length).unwrap_or_else(|_| panic!("{what}: length {length} exceeds its limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order() {
        let mut buffer = Vec::new();
        buffer.put_u8(1);
        buffer.put_u16(0x0203);
        buffer.put_u32(4);
        buffer.put_u64(5);
        buffer.put_u128(6);
        buffer.put_bytes(b"key");
        let mut reader = Reader::new(&buffer);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u16("b"), Ok(0x0203));
        assert_eq!(reader.u32("c"), Ok(4));
        assert_eq!(reader.u64("d"), Ok(5));
        assert_eq!(reader.u128("e"), Ok(6));
        assert_eq!(reader.bytes(3, "f"), Ok(&b"key"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn a_cut_field_is_named() {
        let mut reader = Reader::new(&[1, 2, 3]);
        assert_eq!(reader.u32("length"), Err(DecodeError::Truncated { field: "length" }));
        assert_eq!(reader.bytes(4, "key"), Err(DecodeError::Truncated { field: "key" }));
        assert_eq!(reader.bytes(usize::MAX, "key"), Err(DecodeError::Truncated { field: "key" }));
    }
}
