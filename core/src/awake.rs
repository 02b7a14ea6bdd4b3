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

/// The last sleep of a process, as the thread finds it that reports what others have said. Until they have said something
/// again, the sleep makes what they said no older: they have heard nothing in it, and missed nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastSleep {
    looked: Option<Time>,
    woke: Time,
    slept: Duration,
}

impl LastSleep {
    /// Notes that the thread is awake. It looks every `interval`, or sooner.
    pub fn look(&mut self, now: Time, interval: Duration) {
        let gap = self.looked.map_or(Duration::ZERO, |looked| now.since(looked));
        if gap > interval {
            (self.woke, self.slept) = (now, gap - interval);
        }
        self.looked = Some(now);
    }

    /// The age of what was said at this time, without the sleep.
    pub fn age(&self, said: Time, now: Time) -> Duration {
        let age = now.since(said);
        if said < self.woke { age.saturating_sub(self.slept) } else { age }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_a_sleep_is_no_older_for_it() {
        let interval = Duration::from_millis(100);
        let mut sleep = LastSleep::default();
        for now in [0, 100, 200, 1_000] {
            sleep.look(at(now), interval);
        }
        assert_eq!(sleep.age(at(190), at(1_000)), Duration::from_millis(110));
        sleep.look(at(1_100), interval);
        assert_eq!(sleep.age(at(190), at(1_100)), Duration::from_millis(210));
        assert_eq!(sleep.age(at(1_010), at(1_100)), Duration::from_millis(90));
        // An executor that stands ages.
        for now in (1_200..2_000).step_by(100) {
            sleep.look(at(now), interval);
        }
        assert_eq!(sleep.age(at(1_010), at(1_900)), Duration::from_millis(890));
    }

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
