//! The hash by which a primary distinguishes the retry of a write from another write with the same number
//! (consistency.md §8).
//!
//! ```text
//!   MD5 of the key, operation, condition, length of the value -> seed
//!   value, 64 bytes per step in four lanes, then 16 per step  -> hash, never zero
//! ```
//!
//! The hash is part of the format of completion records, so all versions of the server must compute the same hash. It
//! has no secret key: a client that constructs two writes with the same hash harms only its own session.

use crate::client_message::Operation;
use crate::ids::RequestHash;
use crate::placement::Digest;

/// Odd constants with about half their bits set (from the fractional digits of pi).
const FACTORS: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345, 0xa409_3822_299f_31d1, 0x082e_fa98_ec4e_6c89];
const PUT: u64 = 1;
const DELETE: u64 = 2;
const UPDATE: u64 = 3;
/// The number of bytes that one multiplication processes.
const STEP: usize = 16;
/// The number of bytes that four independent multiplications process.
const STRIDE: usize = 4 * STEP;

impl RequestHash {
    /// Returns the hash of a write, or the hash in a RESOLVE; `None` for other operations.
    pub fn of(digest: Digest, operation: &Operation<'_>) -> Option<RequestHash> {
        let (kind, header, value): (u64, _, &[u8]) = match operation {
            Operation::Put(header, value) => (PUT, header, value),
            Operation::Delete(header) => (DELETE, header, &[]),
            Operation::Update(header, updates) => (UPDATE, header, updates.bytes()),
            Operation::Resolve(_, request) => return Some(*request),
            Operation::Get
            | Operation::GetPart(_)
            | Operation::Noop
            | Operation::Verify(_)
            | Operation::Scan(_) => {
                return None;
            }
        };
        let [a, b, c, d] = FACTORS;
        let key = digest.number();
        #[allow(clippy::cast_possible_truncation)] // Splits the number into its halves.
        let (high, low) = ((key >> 64) as u64, key as u64);
        let seed = fold(low ^ a, high ^ b);
        let seed = fold(seed ^ kind, header.condition.to_wire() ^ c);
        let hash = hash_value(fold(seed ^ value.len() as u64, d), value);
        Some(RequestHash(hash.max(1)))
    }
}

fn hash_value(seed: u64, value: &[u8]) -> u64 {
    let mut hash = seed;
    let mut strides = value.chunks_exact(STRIDE);
    if value.len() >= STRIDE {
        let mut lanes = [seed; 4];
        for stride in &mut strides {
            for ((lane, step), factor) in
                lanes.iter_mut().zip(stride.chunks_exact(STEP)).zip(FACTORS)
            {
                *lane = mix(*lane, step, factor);
            }
        }
        for (lane, factor) in lanes.into_iter().zip(FACTORS) {
            hash = fold(hash ^ lane, factor);
        }
    }
    let mut steps = strides.remainder().chunks_exact(STEP);
    for step in &mut steps {
        hash = mix(hash, step, FACTORS[1]);
    }
    let rest = steps.remainder();
    if !rest.is_empty() {
        let mut last = [0; STEP];
        last[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, &last, FACTORS[2]);
    }
    fold(hash, FACTORS[3])
}

/// Mixes in 16 bytes.
#[inline]
fn mix(hash: u64, step: &[u8], factor: u64) -> u64 {
    let (low, high) = step.split_at(8);
    fold(hash ^ number(low), number(high) ^ factor)
}

#[inline]
fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// Multiplies two numbers to 128 bits and combines the halves of the product with XOR.
#[inline]
#[allow(clippy::cast_possible_truncation)] // Splits the number into its halves.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::client_message::{Condition, WriteHeader};
    use crate::ids::{RequestSeq, SequenceNumber};

    fn header(condition: Condition) -> WriteHeader {
        let (seq, begun) = (RequestSeq(1), SequenceNumber::ZERO);
        WriteHeader { seq, first_incomplete: seq, begun, condition }
    }

    fn put(key: &[u8], value: &[u8], condition: Condition) -> RequestHash {
        let operation = Operation::Put(header(condition), value);
        RequestHash::of(Digest::of(key), &operation).unwrap()
    }

    #[test]
    fn a_retry_has_the_hash_of_the_first_sending() {
        let later = WriteHeader { first_incomplete: RequestSeq(0), ..header(Condition::Always) };
        let retried = RequestHash::of(Digest::of(b"k"), &Operation::Put(later, b"v")).unwrap();
        assert_eq!(retried, put(b"k", b"v", Condition::Always));
    }

    #[test]
    fn key_operation_condition_and_every_byte_of_the_value_count() {
        let mut seen = HashSet::new();
        let always = Condition::Always;
        assert!(seen.insert(put(b"k", b"", always)));
        assert!(seen.insert(put(b"l", b"", always)));
        assert!(seen.insert(put(b"k", b"", Condition::IfAbsent)));
        assert!(seen.insert(put(b"k", b"", Condition::IfVersion(SequenceNumber(1)))));
        let delete = Operation::Delete(header(always));
        assert!(seen.insert(RequestHash::of(Digest::of(b"k"), &delete).unwrap()));
        let length = 2 * STRIDE + STEP + 3;
        for at in 0..length {
            let mut value = vec![0; length];
            value[at] = 1;
            assert!(seen.insert(put(b"k", &value, always)), "byte {at}");
        }
        for length in 1..=length {
            assert!(seen.insert(put(b"k", &vec![0; length], always)), "{length} zeros");
        }
        assert_eq!(RequestHash::of(Digest::of(b"k"), &Operation::Get), None);
        let asked = put(b"k", b"v", always);
        let resolve = Operation::Resolve(header(always), asked);
        assert_eq!(RequestHash::of(Digest::of(b"k"), &resolve), Some(asked));
    }

    /// Checks the hashes against fixed values, because stored records of earlier versions contain
    /// such hashes.
    #[test]
    fn the_hash_never_changes() {
        let value: Vec<u8> = (0..=200).collect();
        assert_eq!(put(b"key", &value, Condition::Always).0, GOLDEN[0]);
        assert_eq!(put(b"key", b"value", Condition::IfAbsent).0, GOLDEN[1]);
    }

    const GOLDEN: [u64; 2] = [0x4d61_cc66_85d0_13ee, 0x02e5_28c0_3c4a_c147];
}
