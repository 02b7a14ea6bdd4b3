//! The clock of the cluster's state machine: CLOCK_BOOTTIME, which also counts the time in which the machine is
//! suspended.

use kv_protocol::Time;
use rustix::time::{ClockId, clock_gettime};

/// Returns the time since this machine's boot.
pub(crate) fn now() -> Time {
    let reading = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(reading.tv_sec).expect("CLOCK_BOOTTIME is never negative");
    let nanos = u64::try_from(reading.tv_nsec).expect("nanoseconds are never negative");
    Time::from_nanos(seconds * 1_000_000_000 + nanos)
}
