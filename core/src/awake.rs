//! A clock that excludes time in which this process was paused. It is used for timeouts on the silence of other
//! processes.
//!
//! ```text
//!   clock      |----|----|----------------------|----|
//!   look       x    x    x     paused           x    x      every `interval`, or sooner
//!   reading    |----|----|----|                 |----|      a later look counts as `interval`
//! ```
//!
//! While a process is paused, messages from others wait unread in its sockets. If this time counted as their silence, a
//! pause of one machine would look like a failure of all its peers. Leases and graces use the ordinary clock.

use std::time::Duration;

use kv_protocol::Time;

/// A clock that excludes the pauses of its owner.
#[derive(Clone, Copy, Debug)]
pub struct Awake {
    interval: Duration,
    looked: Time,
    total: Duration,
}

impl Awake {
    /// Creates a clock whose owner calls [`Awake::look`] every `interval` or sooner.
    pub const fn new(interval: Duration) -> Awake {
        Awake { interval, looked: Time::from_nanos(0), total: Duration::ZERO }
    }

    /// Returns the longest time between two looks that counts in full.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// Records that the owner runs at `now`; returns the reading of the clock. An earlier `now` changes nothing.
    pub fn look(&mut self, now: Time) -> Duration {
        self.total = self.at(now);
        self.looked = self.looked.max(now);
        self.total
    }

    /// Returns the same reading as [`Awake::look`] without recording anything.
    pub fn at(&self, now: Time) -> Duration {
        self.total + now.since(self.looked).min(self.interval)
    }

    /// Returns the time of the next call of [`Awake::look`] for an owner that waits until the reading is `total`.
    pub fn next_look(&self, total: Duration) -> Time {
        self.looked + total.saturating_sub(self.total).min(self.interval)
    }
}

/// The last pause of a process, as observed by the thread that publishes the reports of its other threads. The pause
/// does not add to the age of a report made before it, because the reporting thread was paused too.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastSleep {
    looked: Option<Time>,
    woke: Time,
    slept: Duration,
}

impl LastSleep {
    /// Records that the thread runs at `now`. The thread calls this every `interval` or sooner.
    pub fn look(&mut self, now: Time, interval: Duration) {
        let gap = self.looked.map_or(Duration::ZERO, |looked| now.since(looked));
        if gap > interval {
            (self.woke, self.slept) = (now, gap - interval);
        }
        self.looked = Some(now);
    }

    /// Returns the age of a report made at `said`. If the report is older than the end of the last pause, this pause is
    /// excluded.
    pub fn age(&self, said: Time, now: Time) -> Duration {
        let age = now.since(said);
        if said < self.woke { age.saturating_sub(self.slept) } else { age }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_does_not_age_a_report_made_before_it() {
        let interval = Duration::from_millis(100);
        let mut sleep = LastSleep::default();
        for now in [0, 100, 200, 1_000] {
            sleep.look(at(now), interval);
        }
        assert_eq!(sleep.age(at(190), at(1_000)), Duration::from_millis(110));
        sleep.look(at(1_100), interval);
        assert_eq!(sleep.age(at(190), at(1_100)), Duration::from_millis(210));
        assert_eq!(sleep.age(at(1_010), at(1_100)), Duration::from_millis(90));
        // The age of the reports of a hung executor grows.
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
        assert_eq!(
            awake.at(at(9_000)) - start,
            Duration::from_millis(230),
            "a late look counts as one interval"
        );
        assert_eq!(awake.look(at(9_000)) - start, Duration::from_millis(230));
        assert_eq!(
            awake.look(at(8_000)) - start,
            Duration::from_millis(230),
            "an old reading counts nothing"
        );
        assert_eq!(awake.look(at(9_010)) - start, Duration::from_millis(240));
    }

    #[test]
    fn an_owner_that_looks_in_time_loses_no_time() {
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
