//! A frequency sketch: estimates how often each key was used lately, in two to four bytes a key.
//!
//! ```text
//!   hash of the key --> block of 64 bytes   = one cache line
//!                         row 0   32 counters of 4 bits ─┐
//!                         row 1   32 counters            ├─ one counter of each row; the estimate is
//!                         row 2   32 counters            │  the least of the four
//!                         row 3   32 counters           ─┘
//! ```
//!
//! This is a count-min sketch with conservative update and aging, as TinyLFU uses it (Einziger, Friedman and Manes: A
//! Highly Efficient Cache Admission Policy, ACM Transactions on Storage, 2017). An estimate is never below the number
//! of uses since the last halving, up to 15. It is above that number if all four counters are shared with other keys.
//!
//! After a number of uses that is a multiple of the number of keys, all counters are halved. So a key that is no longer
//! used loses its frequency. Keys that are not in the table have counters too: a key that returns has its frequency
//! again.

use std::fmt;

use crate::hash::mix;

/// The greatest value of a counter.
pub const FREQUENCY_MAX: u8 = 15;
/// The words of a block: one cache line.
const BLOCK_WORDS: usize = 8;
const BLOCK_BYTES: usize = BLOCK_WORDS * 8;
/// The number of rows of a block. Each has two words.
const ROWS: usize = 4;
/// The number of low bits of a counter's number in its row that name the counter in its word.
const COUNTER_BITS: u32 = 4;
/// The bits of a hash that one row uses.
const ROW_BITS: u32 = COUNTER_BITS + 1;
/// The minimum number of bytes of the sketch for each key. With half of it, a cache has half a percent more misses;
/// with twice as much, a quarter of a percent less (docs/performance.md).
const BYTES_PER_KEY: usize = 2;
/// The number of uses for each key between two halvings.
const USES_PER_KEY: u64 = 10;
/// The size of the smallest sketch.
const BYTES_MIN: usize = 1 << 10;
/// The size of the largest sketch. One halving of it takes about 2 ms.
const BYTES_MAX: usize = 16 << 20;
/// Each bit of a counter but the highest one.
const HALVED: u64 = 0x7777_7777_7777_7777;

type Block = [u64; BLOCK_WORDS];

/// The estimates of all keys; see the module documentation.
pub struct FrequencySketch {
    blocks: Box<[Block]>,
    /// The number of counted uses since the last halving.
    uses: u64,
}

/// The counters of a key.
#[derive(Clone, Copy)]
struct Counters {
    block: usize,
    /// The bits that choose the counter of each row.
    bits: u64,
}

impl Counters {
    /// Returns the word of a row's counter in the block, and the position of the counter in that word.
    #[inline]
    fn of_row(self, row: usize) -> (usize, u32) {
        #[allow(clippy::cast_possible_truncation)] // The lower bits are masked.
        let bits = (self.bits >> (row as u32 * ROW_BITS)) as u32;
        let word = row * 2 + ((bits >> COUNTER_BITS) & 1) as usize;
        (word, (bits & ((1 << COUNTER_BITS) - 1)) * 4)
    }
}

impl FrequencySketch {
    /// Creates the sketch for a number of keys. Its size is a power of two, within bounds.
    pub fn for_keys(keys: usize) -> FrequencySketch {
        let bytes = keys.saturating_mul(BYTES_PER_KEY).clamp(BYTES_MIN, BYTES_MAX);
        let blocks = bytes.next_power_of_two() / BLOCK_BYTES;
        FrequencySketch { blocks: vec![[0; BLOCK_WORDS]; blocks].into_boxed_slice(), uses: 0 }
    }

    /// Returns the memory of the sketch, in bytes.
    pub fn heap_bytes(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Returns the number of keys for which the sketch has the intended precision.
    fn keys(&self) -> usize {
        self.heap_bytes() / BYTES_PER_KEY
    }

    /// Doubles the sketch until it suits this number of keys, or has its maximum size. All estimates stay the same.
    pub fn grow_for(&mut self, keys: usize) {
        while self.keys() < keys && self.heap_bytes() < BYTES_MAX {
            // The number of a block has one more bit now, so both blocks of a key are copies of the old one.
            self.blocks = [&self.blocks[..], &self.blocks[..]].concat().into_boxed_slice();
        }
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation)] // The lower bits are masked.
    fn counters_of(&self, hash: u32) -> Counters {
        let bits = mix(u64::from(hash));
        Counters { block: (bits >> 32) as usize & (self.blocks.len() - 1), bits }
    }

    /// Returns how often a key was used lately, from 0 to [`FREQUENCY_MAX`].
    #[inline]
    pub fn estimate(&self, hash: u32) -> u8 {
        let counters = self.counters_of(hash);
        let block = &self.blocks[counters.block];
        #[allow(clippy::cast_possible_truncation)] // A counter has four bits.
        let count = |row| {
            let (word, shift) = counters.of_row(row);
            (block[word] >> shift) as u8 & FREQUENCY_MAX
        };
        (0..ROWS).map(count).min().unwrap_or(0)
    }

    /// Counts a use of a key. Only the lowest of the key's counters are raised.
    #[inline]
    pub fn count(&mut self, hash: u32) {
        let counters = self.counters_of(hash);
        let least = self.estimate(hash);
        if least < FREQUENCY_MAX {
            let block = &mut self.blocks[counters.block];
            for row in 0..ROWS {
                let (word, shift) = counters.of_row(row);
                let is_least =
                    (block[word] >> shift) & u64::from(FREQUENCY_MAX) == u64::from(least);
                block[word] += u64::from(is_least) << shift;
            }
        }
        self.uses += 1;
        if self.uses >= USES_PER_KEY * self.keys() as u64 {
            self.halve();
        }
    }

    #[cold]
    fn halve(&mut self) {
        for word in self.blocks.iter_mut().flatten() {
            *word = (*word >> 1) & HALVED;
        }
        self.uses = 0;
    }
}

/// Writes the size, because the counters are many.
impl fmt::Debug for FrequencySketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrequencySketch")
            .field("bytes", &self.heap_bytes())
            .field("uses", &self.uses)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts uses of keys below `keys`, with a few of them often.
    fn used(sketch: &mut FrequencySketch, keys: u32) {
        for key in 0..keys {
            let times = if key % 100 == 0 { 8 } else { 1 };
            (0..times).for_each(|_| sketch.count(key.wrapping_mul(0x9e37_79b9)));
        }
    }

    #[test]
    fn an_estimate_is_never_too_low_and_seldom_too_high() {
        let mut sketch = FrequencySketch::for_keys(10_000);
        used(&mut sketch, 10_000);
        let mut high = 0;
        for key in 0..10_000_u32 {
            let estimate = sketch.estimate(key.wrapping_mul(0x9e37_79b9));
            let times = if key % 100 == 0 { 8 } else { 1 };
            assert!(estimate >= times, "{estimate} instead of {times}");
            high += u32::from(estimate > times);
        }
        assert!(high < 500, "{high} of 10,000 estimates are too high");
    }

    #[test]
    fn a_counter_stops_at_its_maximum() {
        let mut sketch = FrequencySketch::for_keys(1_000);
        (0..100).for_each(|_| sketch.count(5));
        assert_eq!(sketch.estimate(5), FREQUENCY_MAX);
        assert_eq!(sketch.estimate(6), 0);
    }

    #[test]
    fn frequencies_of_keys_that_are_no_longer_used_are_halved() {
        let mut sketch = FrequencySketch::for_keys(1);
        (0..12).for_each(|_| sketch.count(5));
        let period = USES_PER_KEY * sketch.keys() as u64;
        (12..period - 1).for_each(|_| sketch.count(6));
        assert_eq!(sketch.estimate(5), 12);
        sketch.count(6);
        assert_eq!((sketch.estimate(5), sketch.estimate(6)), (6, FREQUENCY_MAX / 2));
    }

    #[test]
    fn growth_changes_no_estimate_and_ends_at_the_maximum_size() {
        let mut sketch = FrequencySketch::for_keys(600);
        used(&mut sketch, 600);
        let estimates = |sketch: &FrequencySketch| {
            (0..600_u32)
                .map(|key| sketch.estimate(key.wrapping_mul(0x9e37_79b9)))
                .collect::<Vec<_>>()
        };
        let (before, bytes) = (estimates(&sketch), sketch.heap_bytes());
        sketch.grow_for(600);
        assert_eq!(sketch.heap_bytes(), bytes);
        sketch.grow_for(10_000);
        assert_eq!(sketch.heap_bytes(), 32 << 10);
        assert_eq!(estimates(&sketch), before);
        assert_eq!(FrequencySketch::for_keys(usize::MAX).heap_bytes(), BYTES_MAX);
    }
}
