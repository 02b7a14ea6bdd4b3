//! The clocks. That of the leases is CLOCK_BOOTTIME, which also counts the time in which the machine is suspended
//! (consistency.md §1). That of the expiry of entries is CLOCK_REALTIME.

use std::time::Duration;

use kv_protocol::ids::{Time, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Returns the current time.
pub(crate) fn now() -> Time {
    let reading = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(reading.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(reading.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds * 1_000_000_000 + nanos)
}

/// The maximum time between two readings that count as taken together.
const TOGETHER: Duration = Duration::from_millis(1);
/// The number of attempts to take two readings together.
const ATTEMPTS: usize = 20;

/// Returns the current time and the wall time, read together. If the machine was suspended between the two readings,
/// entries would expire early by the length of the suspension. So the readings are then repeated.
pub(crate) fn now_and_wall() -> (Time, WallTime) {
    read_together(now, wall)
}

fn read_together(
    mut now: impl FnMut() -> Time,
    mut wall: impl FnMut() -> WallTime,
) -> (Time, WallTime) {
    let mut before = now();
    let mut reading = wall();
    for _ in 1..ATTEMPTS {
        let after = now();
        if after.since(before) < TOGETHER {
            break;
        }
        (before, reading) = (after, wall());
    }
    (before, reading)
}

fn wall() -> WallTime {
    let reading = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(reading.tv_sec).unwrap_or(0);
    let millis = u64::try_from(reading.tv_nsec).unwrap_or(0) / 1_000_000;
    WallTime::from_millis(seconds.saturating_mul(1_000) + millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_around_a_suspension_are_repeated() {
        // The machine is suspended for an hour after the first reading.
        let hour = 3_600_000;
        let mut readings = [0, hour, hour].into_iter();
        let now = || Time::from_nanos(readings.next().expect("three readings") * 1_000_000);
        let (now, wall) = read_together(now, || WallTime::from_millis(hour + 5));
        assert_eq!((now.nanos / 1_000_000, wall.millis()), (hour, hour + 5));
    }
}
