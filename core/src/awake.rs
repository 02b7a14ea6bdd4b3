//! Time as it passes for one who may himself be paused: what he judges others by.
//!
//! ```text
//!   clock      |----|----|----------------------|----|
//!   looked at  x    x    x     paused           x    x      every `interval`, or sooner
//!   awake      |----|----|----|                 |----|      a later look counts for no more
//! ```
//!
//! Whoever slept heard nothing, and what was said meanwhile waits unread in his sockets. To take the others'
//! silence of that time for their death would turn a pause of one machine into the failure of all its servers.
//! Leases and graces are none of this: they go by the clock alone.

use std::time::Duration;

use kv_protocol::Time;

/// Counts the time for which its owner was awake.
#[derive(Clone, Copy, Debug)]
pub struct Awake {
    interval: Duration,
    looked: Time,
    total: Duration,
}

impl Awake {
    /// Its owner will look every `interval`, or sooner.
    pub const fn new(interval: Duration) -> Awake {
        Awake { interval, looked: Time::from_nanos(0), total: Duration::ZERO }
    }

    /// The longest time between two looks that counts in full.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// The owner is awake now; for how long he has been so altogether.
    pub fn look(&mut self, now: Time) -> Duration {
        self.total = self.at(now);
        self.looked = self.looked.max(now);
        self.total
    }

    /// What [`Awake::look`] would say.
    pub fn at(&self, now: Time) -> Duration {
        self.total + now.since(self.looked).min(self.interval)
    }

    /// When to look next, for somebody who waits until he has been awake for `total`.
    pub fn next_look(&self, total: Duration) -> Time {
        self.looked + total.saturating_sub(self.total).min(self.interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn time_between_two_looks_counts_in_full_unless_the_second_is_late() {
        let mut awake = Awake::new(Duration::from_millis(100));
        let start = awake.look(at(5_000));
        assert_eq!(awake.look(at(5_100)) - start, Duration::from_millis(100));
        assert_eq!(awake.look(at(5_130)) - start, Duration::from_millis(130));
        assert_eq!(awake.at(at(9_000)) - start, Duration::from_millis(230), "it slept");
        assert_eq!(awake.look(at(9_000)) - start, Duration::from_millis(230));
        assert_eq!(awake.look(at(8_000)) - start, Duration::from_millis(230), "an old reading");
        assert_eq!(awake.look(at(9_010)) - start, Duration::from_millis(240));
    }

    #[test]
    fn whoever_looks_when_told_to_loses_nothing() {
        let mut awake = Awake::new(Duration::from_millis(100));
        let start = awake.look(at(70));
        let end = start + Duration::from_millis(250);
        let mut now = at(70);
        while awake.look(now) < end {
            now = awake.next_look(end);
        }
        assert_eq!(now, at(320));
    }
}
