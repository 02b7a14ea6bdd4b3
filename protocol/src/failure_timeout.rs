//! The failure timeout of a cluster, and every time that follows from it (consistency.md §4, §5).
//!
//! | time | from the timeout t | default |
//! |---|---|---|
//! | silence to the coordinator until a server is suspected | t | 0.5 s |
//! | lease L of a primary | t, at least 0.5 s | 0.5 s |
//! | grace G; silence between two holders until one of them complains; a hung thread ends its process | 1.25 L | 0.625 s |
//! | interval of beacons | L / 5 | 0.1 s |
//! | silence that a vote bears; patience with a candidate | L / 2 | 0.25 s |
//! | patience with a probe | L | 0.5 s |
//!
//! All processes of a cluster must agree on it: a grace that is shorter than the lease of another process
//! lets two servers answer for one key.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::limits::LEASE;

/// The failure timeouts that a cluster may have, in seconds. Below the least, a server that works is
/// suspected between two heartbeats; above the most, a failed one stays unnoticed.
pub const FAILURE_TIMEOUT_SECONDS: RangeInclusive<f64> = 0.15..=3_600.0;

/// The failure timeout of a cluster. See the module's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureTimeout {
    timeout: Duration,
    lease: Duration,
    grace: Duration,
    beacon_interval: Duration,
    heard_within: Duration,
}

impl FailureTimeout {
    /// That of a cluster that was given none.
    pub const DEFAULT: FailureTimeout = FailureTimeout::new(LEASE);

    /// The times that follow from a timeout. The caller keeps to [`FAILURE_TIMEOUT_SECONDS`].
    pub const fn new(timeout: Duration) -> FailureTimeout {
        let lease_nanos =
            if timeout.as_nanos() > LEASE.as_nanos() { nanos(timeout) } else { nanos(LEASE) };
        FailureTimeout {
            timeout,
            lease: Duration::from_nanos(lease_nanos),
            grace: Duration::from_nanos(lease_nanos + lease_nanos.div_ceil(4)),
            beacon_interval: Duration::from_nanos(lease_nanos / 5),
            heard_within: Duration::from_nanos(lease_nanos / 2),
        }
    }

    /// The same leases with another silence until a server is suspected. For searches in which silence is an
    /// input.
    pub const fn suspecting_after(self, silence: Duration) -> FailureTimeout {
        FailureTimeout { timeout: silence, ..self }
    }

    /// After how long a silence a server is suspected: the timeout itself.
    pub const fn timeout(self) -> Duration {
        self.timeout
    }

    /// The lease of a primary.
    pub const fn lease(self) -> Duration {
        self.lease
    }

    /// The grace that an ack costs its sender.
    pub const fn grace(self) -> Duration {
        self.grace
    }

    /// How often an idle primary sends a beacon.
    pub const fn beacon_interval(self) -> Duration {
        self.beacon_interval
    }

    /// A member hears the other one if every shard heard it this recently.
    pub const fn heard_within(self) -> Duration {
        self.heard_within
    }

    /// After how long a silence a member complains of the other one: a lease and what a beacon may be late,
    /// so a stall that is shorter than the lease is never complained of.
    pub const fn complains_after(self) -> Duration {
        self.grace
    }

    /// A candidate that acknowledges nothing for this long has failed.
    pub const fn candidate_patience(self) -> Duration {
        self.heard_within
    }

    /// How long a member may take to answer a probe.
    pub const fn probe_patience(self) -> Duration {
        self.lease
    }
}

impl Default for FailureTimeout {
    fn default() -> FailureTimeout {
        FailureTimeout::DEFAULT
    }
}

/// A duration of at most 584 years, in nanoseconds.
#[allow(clippy::cast_possible_truncation)] // See above: the bounds are seconds.
const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{BEACON_INTERVAL, CANDIDATE_PATIENCE, GRACE, HEARD_WITHIN};

    #[test]
    fn the_default_has_the_times_of_the_limits() {
        let times = FailureTimeout::DEFAULT;
        assert_eq!((times.timeout(), times.lease()), (LEASE, LEASE));
        assert_eq!((times.grace(), times.beacon_interval()), (GRACE, BEACON_INTERVAL));
        assert_eq!(times.heard_within(), HEARD_WITHIN);
        assert_eq!(times.candidate_patience(), CANDIDATE_PATIENCE);
    }

    #[test]
    fn a_grace_is_always_long_enough_and_a_short_timeout_shortens_no_lease() {
        for millis in [150, 499, 500, 501, 777, 5_000, 3_600_000] {
            let times = FailureTimeout::new(Duration::from_millis(millis));
            assert!(times.grace() * 4 >= times.lease() * 5, "{millis}");
            assert!(times.beacon_interval() * 5 <= times.lease(), "{millis}");
            assert!(times.complains_after() > times.lease() + times.beacon_interval(), "{millis}");
            assert_eq!(times.lease(), Duration::from_millis(millis.max(500)));
            assert_eq!(times.timeout(), Duration::from_millis(millis));
        }
    }
}
