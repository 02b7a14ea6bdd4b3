//! The bytes of a response that are kept for retries.

use std::hash::{BuildHasher as _, Hasher as _};
use std::ops::Deref;
use std::sync::Arc;

use foldhash::fast::FixedState;

/// The number of bytes that are stored in place. The response to an ADD is shorter.
const SHORT: usize = 30;

/// The positions of the words of a short string, and their factors in its digest. The last word overlaps the one before.
const WORDS: [(usize, u64); 4] = [
    (0, 0x8f5d_7a3b_c461_e92d),
    (8, 0xb3c2_19d7_5ea4_f06b),
    (16, 0xd94e_63a1_07bf_285d),
    (SHORT - 8, 0xf127_8bc6_9d35_4ae3),
];
const LENGTH_FACTOR: u64 = 0xa5b9_4c1f_62e8_d737;

/// A byte string that is cheap to clone. Short ones use no heap memory.
#[derive(Clone, Debug)]
pub enum RetainedBytes {
    /// A short string: its length and bytes. Those after the length are zero.
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

    /// Returns a digest of the string, zero for the empty one. Its bits are not mixed.
    #[inline]
    pub fn digest(&self) -> u64 {
        match self {
            // Multiplication by an odd factor is injective, so a difference in a single word changes the sum.
            RetainedBytes::Short(length, bytes) => {
                let mut sum = u64::from(*length).wrapping_mul(LENGTH_FACTOR);
                for (at, factor) in WORDS {
                    let word = bytes[at..at + 8].try_into().expect("eight bytes");
                    sum = sum.wrapping_add(u64::from_le_bytes(word).wrapping_mul(factor));
                }
                sum
            }
            RetainedBytes::Long(bytes) => long_digest(bytes),
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

#[cold]
fn long_digest(bytes: &[u8]) -> u64 {
    let mut hasher = FixedState::default().build_hasher();
    hasher.write(bytes);
    hasher.finish()
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
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_byte_and_the_length_count_in_the_digest() {
        let mut seen = HashSet::from([0]);
        assert_eq!(RetainedBytes::default().digest(), 0);
        for length in 1..=2 * SHORT {
            assert!(seen.insert(RetainedBytes::from(&vec![0; length][..]).digest()), "{length}");
            for at in 0..length {
                let mut bytes = vec![0; length];
                bytes[at] = 1;
                let digest = RetainedBytes::from(&bytes[..]).digest();
                assert!(seen.insert(digest), "byte {at} of {length}");
            }
        }
    }

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
