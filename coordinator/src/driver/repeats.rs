//! Limits on repeated reports: the same failure for the same reason is reported only at intervals.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use kv_protocol::Time;

/// The last report of each kind.
#[derive(Debug)]
pub(super) struct Repeats<Kind> {
    every: Duration,
    /// The reason and the time of the last report.
    last: RefCell<HashMap<Kind, (String, Time)>>,
}

impl<Kind: Eq + Hash> Repeats<Kind> {
    /// Creates the limits, with the interval at which a report is repeated.
    pub(super) fn every(every: Duration) -> Repeats<Kind> {
        Repeats { every, last: RefCell::default() }
    }

    /// Returns whether a report is due, and records it in that case.
    pub(super) fn is_due(&self, kind: Kind, reason: &str, now: Time) -> bool {
        let mut last = self.last.borrow_mut();
        let is_known = last
            .get(&kind)
            .is_some_and(|(known, at)| known == reason && now.since(*at) < self.every);
        if !is_known {
            last.insert(kind, (reason.to_owned(), now));
        }
        !is_known
    }

    /// Forgets the last report of a kind. Returns whether there was one.
    pub(super) fn forget(&self, kind: &Kind) -> bool {
        self.last.borrow_mut().remove(kind).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_repeated_for_a_new_reason_after_the_interval_and_when_forgotten() {
        let repeats = Repeats::every(Duration::from_secs(10));
        let due = |reason, seconds: u64| {
            repeats.is_due(1, reason, Time::from_nanos(seconds * 1_000_000_000))
        };
        assert!(due("disk full", 0) && !due("disk full", 9));
        assert!(due("no permission", 9) && !due("no permission", 18));
        assert!(due("no permission", 19), "the interval has passed");
        assert!(repeats.forget(&1) && !repeats.forget(&1));
        assert!(due("no permission", 20));
    }
}
