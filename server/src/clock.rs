//! The clocks. That of the leases is CLOCK_BOOTTIME, which also counts the time in which the machine is suspended
//! (consistency.md §1). That of the expiry of entries is CLOCK_REALTIME.

use kv_protocol::ids::{Time, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// Returns the current time.
pub(crate) fn now() -> Time {
    let reading = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(reading.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(reading.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds * 1_000_000_000 + nanos)
}

/// Returns the wall time.
pub(crate) fn wall() -> WallTime {
    let reading = clock_gettime(ClockId::Realtime);
    let seconds = u64::try_from(reading.tv_sec).unwrap_or(0);
    let millis = u64::try_from(reading.tv_nsec).unwrap_or(0) / 1_000_000;
    WallTime::from_millis(seconds.saturating_mul(1_000) + millis)
}
