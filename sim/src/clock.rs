//! The clocks of the hosts. Each has an offset, and a rate that differs from true time by up to a tenth. Each host also
//! has a wall clock, which differs from true wall time by at most a bound.

use kv_protocol::Time;
use kv_protocol::ids::WallTime;

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

/// The true wall time at the beginning of a run, in milliseconds since 1970.
const WALL_START: i64 = 1_800_000_000_000;
const NANOS_A_MILLI: u64 = 1_000_000;

/// Returns the true wall time at a true time in nanoseconds.
pub fn wall_millis(now: u64) -> i64 {
    WALL_START + i64::try_from(now / NANOS_A_MILLI).expect("a run lasts hours at most")
}

/// A host's wall clock.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// The bound of its deviation from true wall time, in milliseconds.
    bound: i64,
    /// The true time at which it was set.
    set_at: u64,
    /// The deviation at that time, in milliseconds.
    offset: i64,
    /// The drift, in milliseconds per second.
    drift: i64,
}

impl WallClock {
    /// Creates a wall clock with a random deviation of at most `bound` milliseconds.
    pub fn new(bound: i64, now: u64, random: &mut Random) -> WallClock {
        // Some clocks are at the ends of the range, so that two of them differ as much as possible.
        let offset = match random.below(4) {
            0 => bound,
            1 => -bound,
            _ => WallClock::within(bound, random),
        };
        let drift = if random.per_mille(500) { WallClock::within(20, random) } else { 0 };
        WallClock { bound, set_at: now, offset, drift }
    }

    fn within(bound: i64, random: &mut Random) -> i64 {
        let width = u64::try_from(2 * bound + 1).expect("the bound is positive");
        i64::try_from(random.below(width)).expect("the bound is small") - bound
    }

    /// Returns the reading at a true time in nanoseconds.
    pub fn read(&self, now: u64) -> WallTime {
        let since = now.saturating_sub(self.set_at) / NANOS_A_MILLI;
        let drift = self.drift * i64::try_from(since).expect("a run lasts hours at most") / 1_000;
        let deviation = (self.offset + drift).clamp(-self.bound, self.bound);
        let millis = u64::try_from(wall_millis(now) + deviation).expect("it is after 1970");
        WallTime::from_millis(millis)
    }

    /// Returns the maximum error, in milliseconds, of a reading that has advanced with the clock of the host for this
    /// time in nanoseconds. It includes the rounding of both clocks.
    pub fn error_after(nanos: u64) -> i64 {
        let drift = nanos * DRIFT_PER_MILLE / 1_000 / NANOS_A_MILLI;
        i64::try_from(drift).expect("a pause is short") + 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wall_clock_stays_within_its_bound() {
        let mut random = Random::new(1);
        for bound in [0, 5, 2_000] {
            for _ in 0..100 {
                let clock = WallClock::new(bound, 0, &mut random);
                for second in [0, 1, 50, 500] {
                    let now = second * 1_000_000_000;
                    let reading = clock.read(now).millis().cast_signed();
                    assert!((reading - wall_millis(now)).abs() <= bound, "{clock:?} at {second} s");
                }
            }
        }
    }
}
