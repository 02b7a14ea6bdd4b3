//! Seeded random numbers (SplitMix64: Steele, Lea and Flood, OOPSLA 2014). Not suitable for
//! secrets.

use std::hash::{BuildHasher, Hasher};

/// A sequence of numbers determined by its seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Returns a new sequence, or that of the seed in `KV_TEST_SEED`. The seed is printed so that a
    /// failure can be reproduced.
    pub(crate) fn announced() -> Random {
        let seed = match std::env::var("KV_TEST_SEED") {
            Ok(text) => text.parse().expect("KV_TEST_SEED is a number"),
            // The hash keys of `RandomState` are the only random numbers in the standard library.
            Err(_) => std::hash::RandomState::new().build_hasher().finish(),
        };
        eprintln!("KV_TEST_SEED={seed}");
        Random(seed)
    }

    /// Returns the sequence of this seed.
    pub(crate) fn of_seed(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from `from` to `to`, both included.
    pub(crate) fn between(&mut self, from: usize, to: usize) -> usize {
        from + usize::try_from(self.next() % (to - from + 1) as u64).expect("below a usize")
    }

    /// Returns `count` random bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}
