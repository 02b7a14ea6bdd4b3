//! A rate limit for log lines about frequent events: one line per second, or per chosen interval.

use std::time::Duration;

use kv_protocol::ids::Time;

const INTERVAL: Duration = Duration::from_secs(1);

/// A filter that selects the events to log among similar ones.
#[derive(Debug)]
pub struct LogLimit {
    interval: Duration,
    last: Option<Time>,
    suppressed: u64,
}

impl Default for LogLimit {
    fn default() -> LogLimit {
        LogLimit::every(INTERVAL)
    }
}

impl LogLimit {
    /// Creates a limit of one event per `interval`.
    pub fn every(interval: Duration) -> LogLimit {
        LogLimit { interval, last: None, suppressed: 0 }
    }

    /// Returns the number of events suppressed since the last logged one if this event is to be logged, else `None`.
    pub fn admit(&mut self, now: Time) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < self.interval) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_a_second_is_logged_and_the_others_are_counted() {
        let mut limit = LogLimit::default();
        let start = Time::from_nanos(5);
        assert_eq!(limit.admit(start), Some(0));
        assert_eq!(limit.admit(start), None);
        assert_eq!(limit.admit(start + Duration::from_millis(999)), None);
        assert_eq!(limit.admit(start + INTERVAL), Some(2));
        assert_eq!(limit.admit(start + INTERVAL * 2), Some(0));
    }

    #[test]
    fn a_chosen_interval_is_respected() {
        let mut limit = LogLimit::every(INTERVAL * 10);
        let start = Time::from_nanos(5);
        let admitted: Vec<Option<u64>> =
            (0..21).map(|n| limit.admit(start + INTERVAL * n)).collect();
        let lines: Vec<u64> = admitted.into_iter().flatten().collect();
        assert_eq!(lines, [0, 9, 9]);
    }
}
