//! Self-describing values: the key and a stamp (run and write number) determine the bytes. So a reader can check
//! whether a write of the key can have stored a value.
//!
//! ```text
//!   0       4       8        12
//!   | run   | number| length | a section of fixed noise, whose start depends on key, run and number |
//! ```

use std::ops::RangeInclusive;

/// The number of bytes before the noise. Shorter values cannot be checked.
pub(crate) const STAMP_BYTES: usize = 12;
/// The size of the noise in bytes. It is small enough to stay in the processor's cache. For longer values the noise
/// repeats.
const NOISE_BYTES: usize = 64 << 10;

/// The identity of the write that stored a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The run of the generator that made the write.
    pub(crate) run: u32,
    /// The number of the write among the key's writes in that run, from 1.
    pub(crate) number: u32,
}

/// A writer and checker of values.
#[derive(Debug)]
pub(crate) struct Values {
    noise: Box<[u8]>,
    lengths: RangeInclusive<usize>,
}

/// Applies the finalizer of SplitMix64: every bit of the result depends on every bit of the input.
pub(crate) fn mix(number: u64) -> u64 {
    let bits = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

impl Values {
    /// Creates a writer and checker of values with lengths in this range.
    pub(crate) fn new(lengths: RangeInclusive<usize>) -> Values {
        let words = (0..NOISE_BYTES as u64 / 8).map(|word| mix(word).to_le_bytes());
        Values { noise: words.flatten().collect(), lengths }
    }

    /// Writes the value of this write of the key into `into`, replacing its contents.
    pub(crate) fn write(&self, key: u32, stamp: Stamp, into: &mut Vec<u8>) {
        let place = place(key, stamp);
        let span = (self.lengths.end() - self.lengths.start() + 1) as u64;
        let length = self.lengths.start() + crate::numbers::index((place >> 32) % span);
        into.clear();
        into.extend_from_slice(&stamp.run.to_le_bytes());
        into.extend_from_slice(&stamp.number.to_le_bytes());
        into.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        into.truncate(length);
        let mut from = start(place);
        while into.len() < length {
            let take = (length - into.len()).min(NOISE_BYTES - from);
            into.extend_from_slice(&self.noise[from..from + take]);
            from = 0;
        }
    }

    /// Returns the write of this key that stored a value.
    ///
    /// # Errors
    /// The reason why no write of this key can have stored the value.
    pub(crate) fn read(&self, key: u32, value: &[u8]) -> Result<Stamp, String> {
        let (Some(head), rest) = (value.first_chunk::<STAMP_BYTES>(), value.get(STAMP_BYTES..))
        else {
            return Err(format!(
                "a value of {} bytes, too short for a value of kv-bench",
                value.len()
            ));
        };
        let word =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let stamp = Stamp { run: word(0), number: word(4) };
        if word(8) as usize != value.len() {
            return Err(format!(
                "a value of {} bytes, though its header has the length {}",
                value.len(),
                word(8)
            ));
        }
        let mut rest = rest.unwrap_or_default();
        let mut from = start(place(key, stamp));
        while !rest.is_empty() {
            let take = rest.len().min(NOISE_BYTES - from);
            let (part, left) = rest.split_at(take);
            if part != &self.noise[from..from + take] {
                return Err("bytes that no write of this key produced".to_owned());
            }
            (rest, from) = (left, 0);
        }
        Ok(stamp)
    }
}

fn place(key: u32, stamp: Stamp) -> u64 {
    mix(mix(u64::from(key) << 32 | u64::from(stamp.number)) ^ u64::from(stamp.run))
}

fn start(place: u64) -> usize {
    crate::numbers::index(place % NOISE_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { run: 7, number: 3 };

    #[test]
    fn a_value_identifies_the_write_it_comes_from() {
        let values = Values::new(12..=200_000);
        let mut value = Vec::new();
        for key in 0..200 {
            values.write(key, STAMP, &mut value);
            assert!((12..=200_000).contains(&value.len()));
            assert_eq!(values.read(key, &value), Ok(STAMP));
        }
    }

    #[test]
    fn another_keys_value_a_flipped_bit_and_a_missing_end_are_detected() {
        let values = Values::new(64..=64);
        let mut value = Vec::new();
        values.write(1, STAMP, &mut value);
        assert!(values.read(2, &value).is_err(), "it is of another key");
        assert!(values.read(1, &value[..63]).is_err(), "it was cut");
        assert!(values.read(1, &value[..5]).is_err(), "it was cut");
        for bit in 0..64 * 8 {
            let mut damaged = value.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(values.read(1, &damaged).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn values_shorter_than_a_stamp_are_written_too() {
        let mut value = vec![1; 100];
        Values::new(3..=3).write(1, STAMP, &mut value);
        assert_eq!(value.len(), 3);
        Values::new(0..=0).write(1, STAMP, &mut value);
        assert_eq!(value.len(), 0);
    }
}
