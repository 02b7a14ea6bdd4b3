//! The watchdog: a thread that stands for longer than G ends the process (consistency.md §5).
//!
//! ```text
//!   executors: every tick ------- beat --+
//!   control,   between two waits - beat -+-> pulses <- look, every 100 ms - main thread -> Stalled
//!   orders:
//! ```
//!
//! A lease may be judged by what an executor does not do any more, so a process of which one part stands
//! must not go on in the others. But a process that stood as a whole (SIGSTOP, a suspended machine, no
//! processor to be had) did nothing wrong while it stood; what follows from its silence is decided by
//! those who heard nothing. So the time that counts is the watchdog's own: however long it was since the
//! last look, no more is counted than a look may be late. Whoever stood with the watchdog has G again.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use kv_protocol::ids::Time;
use kv_protocol::limits::GRACE;

/// How often the watchdog looks.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The most that one look counts.
const LOOK_COUNTS: Duration = Duration::from_millis(125);

/// What one thread shows to the watchdog.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// None is watched before its first.
    beats: AtomicU64,
    /// How long beyond G the next beat may take, in milliseconds.
    allowed: AtomicU32,
}

impl Pulse {
    /// The thread runs.
    pub(crate) fn beat(&self) {
        self.beat_before(Duration::ZERO);
    }

    /// The thread runs, and is about to wait for somebody else for at most so long.
    pub(crate) fn beat_before(&self, wait: Duration) {
        let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self.allowed.store(millis, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Release);
    }

    fn read(&self) -> (u64, Duration) {
        let beats = self.beats.load(Ordering::Acquire);
        (beats, Duration::from_millis(self.allowed.load(Ordering::Relaxed).into()))
    }
}

/// A thread that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The executor of this shard.
    Executor(usize),
    /// The link to the coordinator.
    Control,
    /// The port for the coordinator's orders.
    Orders,
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Watched::Executor(shard) => write!(f, "the executor of shard {shard}"),
            Watched::Control => f.write_str("the link to the coordinator"),
            Watched::Orders => f.write_str("the port for the coordinator's orders"),
        }
    }
}

/// Who stood, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stalled {
    pub(crate) who: Watched,
    pub(crate) stood: Duration,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    last_look: Option<Time>,
    /// By pulse: the beats seen last, and how much has been counted since they changed.
    seen: Vec<(u64, Duration)>,
}

impl Watchdog {
    /// Looks at all pulses; somebody who has stood for too long, if there is one.
    pub(crate) fn look<'a>(
        &mut self,
        now: Time,
        pulses: impl Iterator<Item = (Watched, &'a Pulse)>,
    ) -> Option<Stalled> {
        let passed = self.last_look.map_or(Duration::ZERO, |last| now.since(last));
        let counted = passed.min(LOOK_COUNTS);
        self.last_look = Some(now);
        let mut stalled = None;
        for (place, (who, pulse)) in pulses.enumerate() {
            let (beats, allowed) = pulse.read();
            if place == self.seen.len() {
                self.seen.push((0, Duration::ZERO));
            }
            let (seen, stood) = &mut self.seen[place];
            if *seen != beats {
                (*seen, *stood) = (beats, Duration::ZERO);
            } else if beats > 0 {
                *stood += counted;
            }
            if *stood > GRACE + allowed {
                stalled = stalled.or(Some(Stalled { who, stood: *stood }));
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(1_000_000_000);

    /// Looks `count` times, `interval` apart, each time after `before`; the first verdict and when it
    /// came.
    fn look_on(
        watchdog: &mut Watchdog,
        pulses: &[Pulse],
        from: Time,
        count: u32,
        interval: Duration,
        before: impl Fn(),
    ) -> Option<(u32, Stalled)> {
        (1..=count).find_map(|n| {
            before();
            let watched = (0..).map(Watched::Executor).zip(pulses);
            watchdog.look(from + interval * n, watched).map(|stalled| (n, stalled))
        })
    }

    fn pulses(count: usize) -> Vec<Pulse> {
        let pulses: Vec<Pulse> = (0..count).map(|_| Pulse::default()).collect();
        pulses.iter().for_each(Pulse::beat);
        pulses
    }

    #[test]
    fn one_that_stands_is_named_one_look_after_its_grace_while_others_go_on() {
        let (mut watchdog, pulses) = (Watchdog::default(), pulses(3));
        let others = || [0, 2].into_iter().for_each(|n| pulses[n].beat());
        let found = look_on(&mut watchdog, &pulses, START, 20, LOOK_INTERVAL, others);
        let (looks, stalled) = found.unwrap();
        assert_eq!(stalled.who, Watched::Executor(1));
        let most = GRACE + 3 * LOOK_INTERVAL;
        assert!(LOOK_INTERVAL * looks > GRACE && LOOK_INTERVAL * looks < most, "{looks} looks");
    }

    #[test]
    fn whoever_beats_now_and_then_or_has_not_begun_is_left_alone() {
        let (mut watchdog, mut pulses) = (Watchdog::default(), pulses(1));
        pulses.push(Pulse::default());
        for round in 0..10 {
            let from = START + LOOK_INTERVAL * (5 * round);
            assert_eq!(look_on(&mut watchdog, &pulses, from, 5, LOOK_INTERVAL, || {}), None);
            pulses[0].beat();
        }
    }

    #[test]
    fn a_process_that_stood_as_a_whole_gives_everyone_his_grace_again() {
        let (mut watchdog, pulses) = (Watchdog::default(), pulses(2));
        assert_eq!(look_on(&mut watchdog, &pulses, START, 3, LOOK_INTERVAL, || {}), None);
        let hour = Duration::from_secs(3_600);
        let found = look_on(&mut watchdog, &pulses, START + hour, 2, LOOK_INTERVAL, || {});
        assert_eq!(found, None, "it was stopped, and goes on");
        let from = START + hour + LOOK_INTERVAL * 2;
        let found = look_on(&mut watchdog, &pulses, from, 20, LOOK_INTERVAL, || {});
        assert!(found.is_some(), "who does not go on afterwards is found all the same");
    }

    #[test]
    fn a_machine_on_which_the_watchdog_is_late_too_kills_nobody_who_is_only_as_late() {
        let (mut watchdog, pulses) = (Watchdog::default(), pulses(1));
        let late = Duration::from_secs(1);
        for round in 0..50 {
            let from = START + late * (2 * round);
            let found = look_on(&mut watchdog, &pulses, from, 2, late, || {});
            assert_eq!(found, None);
            pulses[0].beat();
        }
    }

    #[test]
    fn a_wait_that_was_announced_may_last_as_long_and_a_grace() {
        let (mut watchdog, pulses) = (Watchdog::default(), pulses(1));
        let wait = Duration::from_secs(2);
        pulses[0].beat_before(wait);
        let found = look_on(&mut watchdog, &pulses, START, 60, LOOK_INTERVAL, || {});
        let (looks, _) = found.unwrap();
        assert!(LOOK_INTERVAL * looks > wait + GRACE, "{looks} looks");
        pulses[0].beat();
        let from = START + LOOK_INTERVAL * looks;
        let found = look_on(&mut watchdog, &pulses, from, 20, LOOK_INTERVAL, || {});
        assert!(found.unwrap().0 < 10, "the next wait was not announced");
    }
}
