//! The watchdog: ends the process if one of its threads is hung for longer than the grace G (consistency.md §5).
//!
//! ```text
//!   executors: every tick ------- beat --+
//!   control,   between two waits - beat -+-> pulses <- check, every 100 ms - main thread -> Stalled
//!   orders:
//! ```
//!
//! Other processes may have concluded from the silence of a hung executor that its lease has expired. So the other
//! threads of a process must not continue while one is hung.
//!
//! A suspension of the whole process (SIGSTOP, a suspended machine, no processor available) is not a failure of a
//! thread. The processes that received nothing in that time decide how to react. So the watchdog counts only the time
//! in which it was running itself: each check adds at most [`LOOK_COUNTS`], however long the suspension was.
//!
//! A process that is the only holder of a group is never ended for a hung thread (supervisor.rs): no lease depends on
//! this process, and the group would be lost with it.

use std::fmt;
use std::sync::atomic::{AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use kv_protocol::ids::Time;
use kv_protocol::limits::GRACE;

/// The interval between checks.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The maximum time that one check adds.
const LOOK_COUNTS: Duration = Duration::from_millis(125);

/// The progress of one thread, as recorded by the thread and checked by the watchdog.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// The number of beats; a thread is watched from its first beat on.
    beats: AtomicU64,
    /// The additional time, beyond the grace, that the next beat may take, in milliseconds.
    allowed: AtomicU32,
    /// The thread's current [`Activity`], as a number.
    activity: AtomicU8,
    /// The thread's id; 0 before [`Pulse::own`].
    thread: AtomicI32,
}

/// The activity that a thread last recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Activity {
    /// An executor: serving connections, or waiting for input.
    #[default]
    Connections = 0,
    /// An executor: processing its timers.
    Timers = 1,
    /// An executor: processing a message from another thread, of a kind that has no separate variant.
    Message = 2,
    /// An executor: installing a view.
    Install = 3,
    /// An executor: performing a step of a dump.
    Dump = 4,
    /// An executor: performing a step of a load.
    Load = 5,
    /// The control thread: connecting, sending or receiving, each with a timeout.
    Link = 6,
    /// The orders thread: receiving orders, or replies from the shards.
    Orders = 7,
}

impl Activity {
    const ALL: [Activity; 8] = {
        use Activity::{Connections, Dump, Install, Link, Load, Message, Orders, Timers};
        [Connections, Timers, Message, Install, Dump, Load, Link, Orders]
    };

    fn from_number(number: u8) -> Activity {
        Activity::ALL.get(usize::from(number)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activity::Connections => "serving its connections or waiting for input",
            Activity::Timers => "running its timers",
            Activity::Message => "processing a message from another thread",
            Activity::Install => "installing a view",
            Activity::Dump => "running a step of a dump",
            Activity::Load => "running a step of a load",
            Activity::Link => "connecting, sending or receiving",
            Activity::Orders => "receiving orders, or replies from the shards",
        })
    }
}

impl Pulse {
    /// Records that the thread is running.
    pub(crate) fn beat(&self) {
        self.beat_before(Duration::ZERO);
    }

    /// Records the activity that the thread begins; returns the previous one.
    pub(crate) fn begin(&self, activity: Activity) -> Activity {
        Activity::from_number(self.activity.swap(activity as u8, Ordering::Relaxed))
    }

    /// Records the calling thread as the thread of this pulse.
    pub(crate) fn own(&self) {
        // SAFETY: gettid takes no arguments and cannot fail.
        self.thread.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    }

    /// Records that the thread is running. Its next beat may take `wait` longer than the grace, for example because the
    /// thread waits for another process.
    pub(crate) fn beat_before(&self, wait: Duration) {
        let millis = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        self.allowed.store(millis, Ordering::Relaxed);
        self.beats.fetch_add(1, Ordering::Release);
    }

    fn stalled(&self, who: Watched, stood: Duration) -> Stalled {
        let activity = Activity::from_number(self.activity.load(Ordering::Relaxed));
        Stalled { who, stood, activity, thread: self.thread.load(Ordering::Relaxed) }
    }

    fn read(&self) -> (u64, Duration) {
        let beats = self.beats.load(Ordering::Acquire);
        (beats, Duration::from_millis(self.allowed.load(Ordering::Relaxed).into()))
    }
}

/// A watched thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The executor of this shard.
    Executor(usize),
    /// The control thread, which holds the link to the coordinator.
    Control,
    /// The orders thread, which serves the port for the coordinator's orders.
    Orders,
}

impl fmt::Display for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Watched::Executor(shard) => write!(f, "the executor of shard {shard}"),
            Watched::Control => f.write_str("the thread of the link to the coordinator"),
            Watched::Orders => f.write_str("the thread of the port for the coordinator's orders"),
        }
    }
}

/// A hung thread, and the time for which it has been hung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stalled {
    pub(crate) who: Watched,
    pub(crate) stood: Duration,
    /// The activity that the thread last recorded.
    pub(crate) activity: Activity,
    /// The thread's id; 0 if unknown.
    pub(crate) thread: i32,
}

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stalled { who, stood, activity, .. } = self;
        write!(f, "{who} has been hung for {stood:?}, activity: {activity}")
    }
}

impl Stalled {
    /// Returns the state of the thread according to /proc; reading /proc may block.
    pub(crate) fn seen_by_the_system(&self) -> &'static str {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{}/stat", self.thread));
        let stat = stat.unwrap_or_default();
        match stat.rsplit_once(") ").map_or("", |(_, rest)| rest).get(..1) {
            Some("R") => "it is running, or waits for a processor",
            Some("S") => "it waits for an event (interruptible sleep)",
            Some("D") => "it waits for a device (uninterruptible sleep)",
            Some("T" | "t") => "it was stopped, by a signal or a debugger",
            _ => "its state is not known",
        }
    }
}

/// The state of the watchdog; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Watchdog {
    last_look: Option<Time>,
    /// For each pulse, the last number of beats seen, and the time counted since it changed.
    seen: Vec<(u64, Duration)>,
}

impl Watchdog {
    /// Checks all pulses, which every call must pass in the same order. Returns the first thread that has been hung for
    /// too long, if there is one.
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
                stalled = stalled.or(Some(pulse.stalled(who, *stood)));
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_nanos(1_000_000_000);

    /// Checks `count` times, `interval` apart, each time after `before`; returns the first hung thread and the number
    /// of checks.
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
    fn a_hung_thread_is_reported_soon_after_its_grace() {
        let (mut watchdog, pulses) = (Watchdog::default(), pulses(3));
        assert_eq!(pulses[1].begin(Activity::Dump), Activity::Connections);
        let others = || [0, 2].into_iter().for_each(|n| pulses[n].beat());
        let found = look_on(&mut watchdog, &pulses, START, 20, LOOK_INTERVAL, others);
        let (looks, stalled) = found.unwrap();
        assert_eq!(stalled.who, Watched::Executor(1));
        assert_eq!(stalled.activity, Activity::Dump);
        let most = GRACE + 3 * LOOK_INTERVAL;
        assert!(LOOK_INTERVAL * looks > GRACE && LOOK_INTERVAL * looks < most, "{looks} looks");
    }

    #[test]
    fn the_state_of_a_hung_thread_is_read_from_the_system() {
        let pulse = Pulse::default();
        pulse.own();
        let stalled = pulse.stalled(Watched::Control, GRACE);
        assert_eq!(stalled.seen_by_the_system(), "it is running, or waits for a processor");
        let gone = Stalled { thread: i32::MAX, ..stalled };
        assert_eq!(gone.seen_by_the_system(), "its state is not known");
        for (number, activity) in (0..).zip(Activity::ALL) {
            assert_eq!(Activity::from_number(number), activity);
        }
    }

    #[test]
    fn threads_that_beat_or_have_not_started_are_not_reported() {
        let (mut watchdog, mut pulses) = (Watchdog::default(), pulses(1));
        pulses.push(Pulse::default());
        for round in 0..10 {
            let from = START + LOOK_INTERVAL * (5 * round);
            assert_eq!(look_on(&mut watchdog, &pulses, from, 5, LOOK_INTERVAL, || {}), None);
            pulses[0].beat();
        }
    }

    #[test]
    fn after_a_pause_of_the_process_every_thread_has_a_whole_grace() {
        let (mut watchdog, pulses) = (Watchdog::default(), pulses(2));
        assert_eq!(look_on(&mut watchdog, &pulses, START, 3, LOOK_INTERVAL, || {}), None);
        let hour = Duration::from_secs(3_600);
        let found = look_on(&mut watchdog, &pulses, START + hour, 2, LOOK_INTERVAL, || {});
        assert_eq!(found, None, "the whole process was paused");
        let from = START + hour + LOOK_INTERVAL * 2;
        let found = look_on(&mut watchdog, &pulses, from, 20, LOOK_INTERVAL, || {});
        assert!(found.is_some(), "a thread that does not resume is reported");
    }

    #[test]
    fn threads_that_are_no_later_than_the_watchdog_are_not_reported() {
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
    fn an_announced_wait_extends_the_grace() {
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
