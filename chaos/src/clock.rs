//! The clock of all histories: CLOCK_MONOTONIC, which all processes of a machine share.

use rustix::time::{ClockId, clock_gettime};

/// Returns the reading of the clock in nanoseconds. Its zero is arbitrary.
pub(crate) fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
