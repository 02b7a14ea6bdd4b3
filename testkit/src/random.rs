//! Seeded random numbers: the same seed always gives the same numbers. Not suitable for secrets.

use std::hash::{BuildHasher as _, Hasher as _};

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Creates a generator with a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    /// Creates a generator with a fresh seed, or with the seed in `KV_TEST_SEED`. The seed is printed so that a failure
    /// can be reproduced.
    pub fn announced() -> Random {
        let seed = match std::env::var("KV_TEST_SEED") {
            Ok(text) => text.parse().expect("KV_TEST_SEED is a number"),
            Err(_) => fresh_seed(),
        };
        eprintln!("KV_TEST_SEED={seed}");
        Random::new(seed)
    }

    /// Returns a number from the whole range of u64.
    #[inline]
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Returns a number below `bound`, which must not be zero.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound
    }

    /// Returns a number from `low` to `high`, both included.
    #[inline]
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// Returns an index into a list of this length.
    #[inline]
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("it is below a usize")
    }

    /// Returns a length from `low` to `high`, both included.
    pub fn length(&mut self, low: usize, high: usize) -> usize {
        low + self.index(high - low + 1)
    }

    /// Returns true with this probability, per mille.
    #[inline]
    pub fn per_mille(&mut self, times: u64) -> bool {
        self.below(1_000) < times
    }

    /// Returns `count` random bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.any().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

/// Returns a seed that differs at every call: the hash keys of `RandomState` are the only random numbers in the
/// standard library.
pub fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
