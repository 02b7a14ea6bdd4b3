//! Back-off between retries: doubling from 1 ms to a bound, with jitter.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(1);
/// The longest back-off between two attempts of an operation, or between two rounds of requests for the map.
const LONGEST: Duration = Duration::from_millis(100);

/// The back-off state of one operation, or of the requests for the map.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// Returns the next back-off: a random time between 50 % and 100 % of 1 ms at the first call. The range doubles
    /// with each further call, up to 100 ms.
    pub(crate) fn next(&mut self, random: &mut Random) -> Duration {
        // 2^7 ms already exceeds the bound.
        let full = (FIRST * (1 << self.tries.min(7))).min(LONGEST);
        self.tries = self.tries.saturating_add(1);
        full / 2 + random.below(full / 2)
    }

    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

/// A small random generator (xorshift64*, Vigna 2014) for jitter. The caller provides the seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded(seed: u64) -> Random {
        Random(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: Duration) -> Duration {
        let nanos = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX).max(1);
        Duration::from_nanos(self.next() % nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_offs_double_from_a_millisecond_to_a_bound_with_jitter() {
        let mut random = Random::seeded(7);
        let mut backoff = Backoff::default();
        for full in [1u64, 2, 4, 8, 16, 32, 64, 100, 100, 100] {
            let full = Duration::from_millis(full);
            let pause = backoff.next(&mut random);
            assert!(pause >= full / 2 && pause <= full, "{pause:?} of {full:?}");
        }
        let pauses: Vec<_> = (0..16).map(|_| backoff.next(&mut random)).collect();
        assert!(pauses.windows(2).any(|two| two[0] != two[1]), "not jittered: {pauses:?}");
    }
}
