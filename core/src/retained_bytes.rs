//! The bytes of a response that are kept for retries.

use std::ops::Deref;
use std::sync::Arc;

/// The number of bytes that are stored in place. The response to an ADD is shorter.
const SHORT: usize = 30;

/// A byte string that is cheap to clone. Short ones use no heap memory.
#[derive(Clone, Debug)]
pub enum RetainedBytes {
    /// A short string: its length and bytes.
    Short(u8, [u8; SHORT]),
    /// A longer one.
    Long(Arc<[u8]>),
}

impl Default for RetainedBytes {
    fn default() -> RetainedBytes {
        RetainedBytes::Short(0, [0; SHORT])
    }
}

impl RetainedBytes {
    /// Returns the concatenation of two strings.
    #[inline]
    pub fn concat(head: &[u8], tail: &[u8]) -> RetainedBytes {
        let length = head.len() + tail.len();
        match u8::try_from(length) {
            Ok(short) if length <= SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..head.len()].copy_from_slice(head);
                bytes[head.len()..length].copy_from_slice(tail);
                RetainedBytes::Short(short, bytes)
            }
            _ => RetainedBytes::Long([head, tail].concat().into()),
        }
    }

    /// Returns the number of bytes on the heap: zero for a short string.
    #[inline]
    pub fn heap_bytes(&self) -> usize {
        match self {
            RetainedBytes::Short(..) => 0,
            RetainedBytes::Long(bytes) => bytes.len(),
        }
    }
}

impl From<&[u8]> for RetainedBytes {
    fn from(bytes: &[u8]) -> RetainedBytes {
        RetainedBytes::concat(bytes, &[])
    }
}

impl Deref for RetainedBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            RetainedBytes::Short(length, bytes) => &bytes[..usize::from(*length)],
            RetainedBytes::Long(bytes) => bytes,
        }
    }
}

impl PartialEq for RetainedBytes {
    fn eq(&self, other: &RetainedBytes) -> bool {
        **self == **other
    }
}

impl Eq for RetainedBytes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_every_length_are_read_back() {
        let all: Vec<u8> = (0..100).collect();
        for length in 0..=all.len() {
            for head in 0..=length {
                let bytes = RetainedBytes::concat(&all[..head], &all[head..length]);
                assert_eq!(*bytes, all[..length]);
                assert_eq!(matches!(bytes, RetainedBytes::Short(..)), length <= SHORT);
                assert_eq!(bytes.heap_bytes(), if length <= SHORT { 0 } else { length });
            }
        }
        assert!(RetainedBytes::default().is_empty());
        assert!(size_of::<RetainedBytes>() <= 32);
    }
}
