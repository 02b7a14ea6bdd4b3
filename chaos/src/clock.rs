//! The one clock of a history: CLOCK_MONOTONIC, the same for all processes of a machine.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since some moment before the start of the machine's uptime.
pub(crate) fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}
