//! Every host's own clock: its own beginning, and its own speed, up to a tenth off the true one.

use kv_protocol::Time;

use crate::random::Random;

/// Parts of a thousand that a clock may run fast or slow.
const DRIFT_PER_MILLE: u64 = 100;

/// A host's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: u64,
    per_mille: u64,
}

impl Clock {
    /// A clock of its own.
    pub fn new(random: &mut Random) -> Clock {
        let per_mille = random.between(1_000 - DRIFT_PER_MILLE, 1_000 + DRIFT_PER_MILLE);
        Clock { start: random.between(1_000_000_000, 1_000_000_000_000), per_mille }
    }

    /// What it shows at a true time, in nanoseconds.
    pub fn read(&self, now: u64) -> Time {
        let shown = u128::from(now) * u128::from(self.per_mille) / 1_000;
        Time::from_nanos(self.start + u64::try_from(shown).expect("a run lasts hours at most"))
    }

    /// The first true time at which it shows `reading` or more.
    pub fn true_time(&self, reading: Time) -> u64 {
        let elapsed = u128::from(reading.nanos.saturating_sub(self.start));
        let true_time = (elapsed * 1_000).div_ceil(u128::from(self.per_mille));
        u64::try_from(true_time).unwrap_or(u64::MAX)
    }
}
