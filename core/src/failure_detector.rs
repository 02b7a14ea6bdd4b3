//! Detection of servers that have been silent for too long, from the times of their last heartbeats.
//!
//! ```text
//!   heard(now) ----> deadline = reading of the clock + silence
//!                        |
//!   silent(now) <--------+  deadline passed: reported once, until the next heartbeat
//! ```
//!
//! The clock excludes pauses of the observer ([`Awake`]), because messages that arrive during a pause wait unread in
//! its sockets.

use std::time::Duration;

use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::{ServerId, Time};

use crate::awake::Awake;

/// A failure detector for every server of a ring.
#[derive(Clone, Debug)]
pub struct FailureDetector {
    silence: Duration,
    awake: Awake,
    /// For each server, the reading of the clock at which its silence is too long; `None` if it is not watched.
    deadlines: Vec<Option<Duration>>,
    /// A lower bound of all deadlines. A heartbeat only moves a deadline later, so the bound stays valid without a scan
    /// of all servers on every heartbeat.
    earliest: Option<Duration>,
}

impl FailureDetector {
    /// Creates a detector for a ring of `servers` that watches no server yet. A server counts as silent if there is no
    /// sign of life for `silence`.
    pub fn new(servers: u16, silence: Duration) -> FailureDetector {
        // This clock counts at most one interval of a pause. The interval plus the time to read a heartbeat after the
        // pause must be shorter than the silence.
        let awake = Awake::new(HEARTBEAT_INTERVAL.min(silence / 5));
        FailureDetector {
            silence,
            awake,
            deadlines: vec![None; usize::from(servers)],
            earliest: None,
        }
    }

    /// Records a sign of life and starts or restarts the deadline of `server`.
    pub fn heard(&mut self, now: Time, server: ServerId) {
        let deadline = self.awake.look(now) + self.silence;
        self.deadlines[usize::from(server.0)] = Some(deadline);
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }

    /// Stops watching `server`, which is known to be down.
    pub fn forget(&mut self, server: ServerId) {
        self.deadlines[usize::from(server.0)] = None;
    }

    /// Returns the servers that fell silent since the last call. Each is reported once, and watched again after its
    /// next sign of life.
    pub fn silent(&mut self, now: Time) -> Vec<ServerId> {
        let awake = self.awake.look(now);
        let mut silent = Vec::new();
        if self.earliest.is_none_or(|earliest| awake < earliest) {
            return silent;
        }
        for (id, slot) in (0..).map(ServerId).zip(&mut self.deadlines) {
            if slot.is_some_and(|deadline| deadline <= awake) {
                silent.push(id);
                *slot = None;
            }
        }
        self.earliest = self.deadlines.iter().flatten().min().copied();
        silent
    }

    /// Returns the time at which [`FailureDetector::silent`] must be called next; `None` if no call is needed. The call
    /// may find no silent server.
    pub fn next_timeout(&self) -> Option<Time> {
        self.earliest.map(|earliest| self.awake.next_look(earliest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    /// Advances to each timeout in turn until a server is silent; returns the time and the servers.
    fn wait(detector: &mut FailureDetector) -> (Time, Vec<ServerId>) {
        let mut due = detector.next_timeout();
        while let Some(now) = due {
            let silent = detector.silent(now);
            if !silent.is_empty() {
                return (now, silent);
            }
            due = detector.next_timeout();
        }
        panic!("no server is watched");
    }

    #[test]
    fn a_server_is_silent_after_its_deadline_and_is_reported_once() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(3), ServerId(1));
        assert_eq!(wait(&mut detector), (at(503), vec![ServerId(1)]));
        assert!(detector.silent(at(600)).is_empty());
        assert_eq!(detector.next_timeout(), None);
    }

    #[test]
    fn every_sign_of_life_restarts_the_deadline() {
        let mut detector = FailureDetector::new(3, SILENCE);
        for beat in 0..20 {
            detector.heard(at(beat * 100), ServerId(0));
            assert!(detector.silent(at(beat * 100 + 50)).is_empty());
        }
        assert_eq!(wait(&mut detector), (at(2_400), vec![ServerId(0)]));
    }

    #[test]
    fn servers_are_told_apart() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        detector.heard(at(90), ServerId(2));
        assert_eq!(wait(&mut detector), (at(500), vec![ServerId(0)]));
        assert_eq!(wait(&mut detector), (at(590), vec![ServerId(2)]));
    }

    #[test]
    fn a_paused_observer_judges_only_after_reading_missed_heartbeats() {
        for silence in [150, 500, 3_000] {
            for asleep in [silence / 2, silence - 1, silence, silence + 1, 60_000] {
                let mut detector = FailureDetector::new(3, Duration::from_millis(silence));
                detector.heard(at(0), ServerId(0));
                detector.heard(at(0), ServerId(1));
                // The pause begins just before the next heartbeats; afterwards only one of them is read.
                assert!(detector.silent(at(99)).is_empty());
                let woke = 99 + asleep;
                assert!(
                    detector.silent(at(woke)).is_empty(),
                    "a pause of {asleep} ms is no evidence"
                );
                detector.heard(at(woke + 5), ServerId(0));
                assert!(detector.silent(at(woke + 10)).is_empty(), "{silence} {asleep}");
                let (since, silent) = wait(&mut detector);
                assert_eq!(silent, [ServerId(1)]);
                assert!(since <= at(woke + silence), "{silence} {asleep}");
            }
        }
    }

    #[test]
    fn heartbeats_between_two_pauses_count() {
        let mut detector = FailureDetector::new(3, SILENCE);
        let mut now = 0;
        for asleep in [450, 900, 60, 499, 501, 450] {
            detector.heard(at(now), ServerId(0));
            now += asleep;
            assert!(detector.silent(at(now)).is_empty(), "{asleep} ms");
            now += 20;
        }
    }

    #[test]
    fn a_crashed_server_is_detected_however_often_the_observer_pauses() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        let naps = (1..).find(|nap| !detector.silent(at(nap * 700)).is_empty());
        assert_eq!(naps, Some(5), "each pause counts as one interval");
    }

    #[test]
    fn a_forgotten_server_is_never_reported() {
        let mut detector = FailureDetector::new(3, SILENCE);
        detector.heard(at(0), ServerId(0));
        detector.forget(ServerId(0));
        assert!(detector.silent(at(500)).is_empty());
    }
}
