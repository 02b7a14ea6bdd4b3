//! The failure timeout of a cluster, and every time derived from it (consistency.md §4, §5).
//!
//! | time | from the timeout t | default |
//! |---|---|---|
//! | silence to the coordinator after which a server is suspected | t | 0.5 s |
//! | lease L of a primary | t, at least 0.5 s | 0.5 s |
//! | grace G; silence before a complaint; time until the watchdog acts on a hung thread | 1.25 L | 0.625 s |
//! | interval of beacons | L / 5 | 0.1 s |
//! | maximum silence that a vote tolerates; timeout of a candidate | L / 2 | 0.25 s |
//! | timeout of a probe | L | 0.5 s |
//!
//! All processes of a cluster must use the same timeout: if a grace is shorter than the lease of another process, two
//! servers can serve the same key.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::limits::LEASE;

/// The valid failure timeouts of a cluster, in seconds. Below the minimum, a working server would be suspected between
/// two heartbeats. Above the maximum, failures would remain undetected for more than an hour.
pub const FAILURE_TIMEOUT_SECONDS: RangeInclusive<f64> = 0.15..=3_600.0;

/// The failure timeout of a cluster, and the times derived from it. See the module's documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureTimeout {
    timeout: Duration,
    lease: Duration,
    grace: Duration,
    beacon_interval: Duration,
    heard_within: Duration,
}

impl FailureTimeout {
    /// The default failure timeout of a cluster.
    pub const DEFAULT: FailureTimeout = FailureTimeout::new(LEASE);

    /// Derives all times from a timeout. The caller checks that the timeout is in
    /// [`FAILURE_TIMEOUT_SECONDS`].
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

    /// Returns a copy in which only the silence before suspicion differs. The exhaustive search of the simulator uses
    /// it, because silence is an explicit input there.
    pub const fn suspecting_after(self, silence: Duration) -> FailureTimeout {
        FailureTimeout { timeout: silence, ..self }
    }

    /// Returns the silence after which a server is suspected: the timeout itself.
    pub const fn timeout(self) -> Duration {
        self.timeout
    }

    /// Returns the lease of a primary.
    pub const fn lease(self) -> Duration {
        self.lease
    }

    /// Returns the grace, which begins at the sender of an ack.
    pub const fn grace(self) -> Duration {
        self.grace
    }

    /// Returns the interval of beacons of an idle primary.
    pub const fn beacon_interval(self) -> Duration {
        self.beacon_interval
    }

    /// Returns the maximum age at which a vote counts the last message from the other member as recent. Every
    /// shard must have such a message.
    pub const fn heard_within(self) -> Duration {
        self.heard_within
    }

    /// Returns the silence after which a member reports a complaint about the other one. It is longer than a lease and
    /// a beacon interval together. So a pause shorter than the lease causes no complaint.
    pub const fn complains_after(self) -> Duration {
        self.grace
    }

    /// Returns the time without acknowledgements after which a candidate has failed.
    pub const fn candidate_timeout(self) -> Duration {
        self.heard_within
    }

    /// Returns the timeout for a member's response to a probe.
    pub const fn probe_timeout(self) -> Duration {
        self.lease
    }
}

impl Default for FailureTimeout {
    fn default() -> FailureTimeout {
        FailureTimeout::DEFAULT
    }
}

/// Converts a duration of at most 584 years to nanoseconds.
#[allow(clippy::cast_possible_truncation)] // Every valid timeout is far shorter.
const fn nanos(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{BEACON_INTERVAL, CANDIDATE_TIMEOUT, GRACE, HEARD_WITHIN};

    #[test]
    fn the_default_has_the_times_in_the_limits_module() {
        let times = FailureTimeout::DEFAULT;
        assert_eq!((times.timeout(), times.lease()), (LEASE, LEASE));
        assert_eq!((times.grace(), times.beacon_interval()), (GRACE, BEACON_INTERVAL));
        assert_eq!(times.heard_within(), HEARD_WITHIN);
        assert_eq!(times.candidate_timeout(), CANDIDATE_TIMEOUT);
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
