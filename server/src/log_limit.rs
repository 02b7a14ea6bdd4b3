//! At most one line a second about things that strangers can cause at any rate.

use std::time::Duration;

use kv_protocol::ids::Time;

const INTERVAL: Duration = Duration::from_secs(1);

/// Decides which of many equal events is logged.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    last: Option<Time>,
    suppressed: u64,
}

impl LogLimit {
    /// Whether to log an event now; if so, how many were passed over since the last.
    pub(crate) fn admit(&mut self, now: Time) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < INTERVAL) {
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
}
