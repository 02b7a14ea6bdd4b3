//! The last recoveries of one place of the ring, each with its steps.
//!
//! ```text
//!   step derived from views:   None  0  0  1  2  3  3  5  None
//!   kept:                            |--------------------|    a recovery, with its start and end
//!                                    |--| 1 | 2 | 3 | 5 |      its steps
//! ```
//!
//! No decision depends on the history: a restarted coordinator begins with an empty one.

use std::collections::VecDeque;
use std::fmt;

use kv_protocol::Time;
use kv_protocol::status::{RecoveryStatus, StepStatus};

/// The maximum number of recoveries kept per place.
pub(super) const MAX_RECOVERIES: usize = 4;
/// The maximum number of steps kept per recovery. Older steps are dropped, because a recovery that fails repeatedly
/// has an unlimited number of steps.
pub(super) const MAX_STEPS: usize = 16;

/// The last recoveries of one place, the newest last.
#[derive(Default)]
pub(super) struct History {
    recoveries: VecDeque<Recovery>,
}

struct Recovery {
    span: Span,
    steps: VecDeque<(u8, Span)>,
}

/// A span of time. `ended` is `None` while the span is in progress.
#[derive(Clone, Copy)]
struct Span {
    began: Time,
    ended: Option<Time>,
}

/// The history affects no decision, so the `Debug` output of a cluster omits it.
impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("History")
    }
}

impl Span {
    fn since(now: Time) -> Span {
        Span { began: now, ended: None }
    }

    fn end(&mut self, now: Time) {
        self.ended.get_or_insert(now);
    }

    /// Returns the time since the start of the span and the length of the span, in milliseconds.
    fn as_of(self, now: Time) -> (u64, Option<u64>) {
        let millis =
            |from: Time, to: Time| u64::try_from(to.since(from).as_millis()).unwrap_or(u64::MAX);
        (millis(self.began, now), self.ended.map(|ended| millis(self.began, ended)))
    }
}

impl History {
    /// Records the current step of the recovery, or its end.
    pub(super) fn note(&mut self, now: Time, step: Option<u8>) {
        let last = self.recoveries.back_mut().filter(|last| last.span.ended.is_none());
        match (last, step) {
            (None, None) => {}
            (None, Some(step)) => {
                if self.recoveries.len() == MAX_RECOVERIES {
                    self.recoveries.pop_front();
                }
                let steps = VecDeque::from([(step, Span::since(now))]);
                self.recoveries.push_back(Recovery { span: Span::since(now), steps });
            }
            (Some(last), step) => last.go_on(now, step),
        }
    }

    /// Returns the recoveries for display, the newest first.
    pub(super) fn status(&self, now: Time) -> Vec<RecoveryStatus> {
        let told = |recovery: &Recovery| {
            let (began_ms_ago, took_ms) = recovery.span.as_of(now);
            let steps = recovery.steps.iter().map(|(step, span)| {
                let (began_ms_ago, took_ms) = span.as_of(now);
                StepStatus { step: *step, began_ms_ago, took_ms }
            });
            RecoveryStatus { began_ms_ago, took_ms, steps: steps.collect() }
        };
        self.recoveries.iter().rev().map(told).collect()
    }
}

impl Recovery {
    fn go_on(&mut self, now: Time, step: Option<u8>) {
        if let Some((_, span)) = self.steps.back_mut() {
            span.end(now);
        }
        match step {
            None => self.span.end(now),
            Some(step) => {
                if self.steps.len() == MAX_STEPS {
                    self.steps.pop_front();
                }
                self.steps.push_back((step, Span::since(now)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_recovery_has_steps_with_start_times_and_durations() {
        let mut history = History::default();
        history.note(at(5), None);
        assert!(history.status(at(6)).is_empty(), "nothing has happened");
        for (millis, step) in [(100, Some(0)), (130, Some(1)), (250, Some(3)), (900, None)] {
            history.note(at(millis), step);
        }
        let step = |step, began_ms_ago, took_ms| StepStatus { step, began_ms_ago, took_ms };
        let steps = vec![step(0, 900, Some(30)), step(1, 870, Some(120)), step(3, 750, Some(650))];
        let first = RecoveryStatus { began_ms_ago: 900, took_ms: Some(800), steps };
        assert_eq!(history.status(at(1_000)), [first]);
        history.note(at(2_000), Some(0));
        let now = &history.status(at(2_010))[0];
        assert_eq!(
            (now.began_ms_ago, now.took_ms),
            (10, None),
            "the newest comes first and is in progress"
        );
        assert_eq!(now.steps, [step(0, 10, None)]);
    }

    #[test]
    fn only_the_last_recoveries_and_their_last_steps_are_kept() {
        let mut history = History::default();
        let mut millis = 0;
        for _ in 0..2 * MAX_RECOVERIES {
            for n in 0..3 * MAX_STEPS {
                millis += 10;
                history.note(at(millis), Some(if n % 2 == 0 { 1 } else { 2 }));
            }
            millis += 10;
            history.note(at(millis), None);
        }
        let told = history.status(at(millis));
        assert_eq!(told.len(), MAX_RECOVERIES);
        assert!(told.iter().all(|recovery| recovery.steps.len() == MAX_STEPS));
        assert_eq!(told[0].took_ms, Some(30 * MAX_STEPS as u64), "its start time is kept");
        assert_eq!(told[0].steps.last().map(|step| step.took_ms), Some(Some(10)));
    }
}
