//! Who has been silent for too long: a function of when each server was last heard.
//!
//! ```text
//!   heard(now) ----> deadline = now + silence
//!                        |
//!   silent(now) <--------+  deadline passed: once, until heard again
//! ```
//!
//! The one who watches may itself have been asleep (a suspended machine, a stopped process). What it
//! missed then waits unread in its sockets, so a deadline that is noticed late is put off once by a
//! heartbeat interval: time to read what is there, and no more.

use std::time::Duration;

use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::{ServerId, Time};

/// Watches every server of a ring.
#[derive(Clone, Debug)]
pub struct FailureDetector {
    silence: Duration,
    watched: Vec<Option<Watch>>,
    /// No deadline is before this one. Hearing from a server moves its deadline later only, so the
    /// bound stays true without looking at all servers for every heartbeat.
    earliest: Option<Time>,
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    deadline: Time,
    put_off: bool,
}

impl FailureDetector {
    /// Watches nobody yet, of a ring of `servers`; a server is silent after `silence`.
    pub fn new(servers: u16, silence: Duration) -> FailureDetector {
        FailureDetector { silence, watched: vec![None; usize::from(servers)], earliest: None }
    }

    /// A sign of life: from now on `server` is watched, or watched anew.
    pub fn heard(&mut self, now: Time, server: ServerId) {
        let deadline = now + self.silence;
        self.watched[usize::from(server.0)] = Some(Watch { deadline, put_off: false });
        self.note(deadline);
    }

    /// `server` is known to be down: its silence is no news.
    pub fn forget(&mut self, server: ServerId) {
        self.watched[usize::from(server.0)] = None;
    }

    /// Who has fallen silent since the last call. Each is named once, and watched again when heard.
    pub fn silent(&mut self, now: Time) -> Vec<ServerId> {
        let mut silent = Vec::new();
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return silent;
        }
        self.earliest = None;
        for (id, slot) in (0..).map(ServerId).zip(&mut self.watched) {
            let Some(watch) = slot else { continue };
            if watch.deadline <= now
                && !watch.put_off
                && now.since(watch.deadline) > HEARTBEAT_INTERVAL
            {
                *watch = Watch { deadline: now + HEARTBEAT_INTERVAL, put_off: true };
            } else if watch.deadline <= now {
                silent.push(id);
                *slot = None;
                continue;
            }
            let deadline = watch.deadline;
            self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        }
        silent
    }

    /// When to ask [`FailureDetector::silent`] next; `None` while nobody is watched.
    pub fn next_timeout(&self) -> Option<Time> {
        self.earliest
    }

    fn note(&mut self, deadline: Time) {
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn a_server_is_silent_when_its_time_is_over_and_is_named_once() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(1));
        assert_eq!(detector.next_timeout(), Some(at(500)));
        assert!(detector.silent(at(499)).is_empty());
        assert_eq!(detector.silent(at(500)), [ServerId(1)]);
        assert!(detector.silent(at(5_000)).is_empty());
        assert_eq!(detector.next_timeout(), None);
    }

    #[test]
    fn every_sign_of_life_starts_the_time_anew() {
        let mut detector = FailureDetector::new(3, SILENCE);
        for beat in 0..20 {
            detector.heard(at(beat * 100), ServerId(0));
            assert!(detector.silent(at(beat * 100 + 50)).is_empty());
        }
        assert!(detector.silent(at(2_399)).is_empty());
        assert_eq!(detector.silent(at(2_400)), [ServerId(0)]);
    }

    #[test]
    fn servers_are_told_apart() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        detector.heard(at(100), ServerId(2));
        assert_eq!(detector.silent(at(500)), [ServerId(0)]);
        assert_eq!(detector.next_timeout(), Some(at(600)));
        assert_eq!(detector.silent(at(600)), [ServerId(2)]);
    }

    #[test]
    fn a_watcher_that_overslept_judges_only_after_reading_what_it_missed() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        detector.heard(at(0), ServerId(1));
        assert!(detector.silent(at(9_000)).is_empty(), "nine seconds asleep prove nothing");
        detector.heard(at(9_010), ServerId(0));
        assert_eq!(detector.silent(at(9_100)), [ServerId(1)]);
    }

    #[test]
    fn a_deadline_is_put_off_only_once() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        assert!(detector.silent(at(9_000)).is_empty());
        assert_eq!(detector.silent(at(20_000)), [ServerId(0)]);
    }

    #[test]
    fn a_forgotten_server_is_never_named() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        detector.forget(ServerId(0));
        assert!(detector.silent(at(500)).is_empty());
    }
}
