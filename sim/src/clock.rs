//! The clocks of the hosts. Each has an offset, and a rate that differs from true time by up to a tenth.

use kv_protocol::Time;

use kv_testkit::random::Random;

/// The maximum drift of a clock in either direction, per mille.
const DRIFT_PER_MILLE: u64 = 100;

/// A host's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: u64,
    per_mille: u64,
}

impl Clock {
    /// Creates a clock with a random offset and rate.
    pub fn new(random: &mut Random) -> Clock {
        let per_mille = random.between(1_000 - DRIFT_PER_MILLE, 1_000 + DRIFT_PER_MILLE);
        Clock { start: random.between(1_000_000_000, 1_000_000_000_000), per_mille }
    }

    /// Returns the clock's reading at a true time in nanoseconds.
    pub fn read(&self, now: u64) -> Time {
        let shown = u128::from(now) * u128::from(self.per_mille) / 1_000;
        Time::from_nanos(self.start + u64::try_from(shown).expect("a run lasts hours at most"))
    }

    /// Returns the first true time at which the clock reads `reading` or later.
    pub fn true_time(&self, reading: Time) -> u64 {
        let elapsed = u128::from(reading.nanos.saturating_sub(self.start));
        let true_time = (elapsed * 1_000).div_ceil(u128::from(self.per_mille));
        u64::try_from(true_time).unwrap_or(u64::MAX)
    }
}
