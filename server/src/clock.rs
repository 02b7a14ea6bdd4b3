//! The clock of the leases: CLOCK_BOOTTIME, which also counts the time in which the machine is suspended
//! (consistency.md §1).

use kv_protocol::ids::Time;
use rustix::time::{ClockId, clock_gettime};

/// Returns the current time.
pub(crate) fn now() -> Time {
    let reading = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(reading.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(reading.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds * 1_000_000_000 + nanos)
}
