//! State shared by all threads of a phase: the clock, the end, and the progress.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The end of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// The phase ends after this duration, not counting the warm-up.
    Time(Duration),
    /// The phase ends after this many operations, not counting the warm-up.
    Count(u64),
    /// The phase ends after every key has been drawn.
    EveryKey,
}

/// The shared state of a phase. Times are nanoseconds since the phase began.
#[derive(Debug)]
pub(crate) struct Control {
    begun: Instant,
    /// The end of the warm-up: operations that begin earlier are not counted.
    pub(crate) warm_ns: u64,
    /// The end of the phase: no operation begins at this time or later.
    pub(crate) end_ns: u64,
    /// The number of operations that may still begin after the warm-up.
    tickets: Option<AtomicI64>,
    is_aborted: AtomicBool,
    /// Completed operations, by thread.
    done: Box<[Done]>,
}

/// A counter on a separate cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Done(AtomicU64);

impl Done {
    /// Increments the counter. Only the thread to which the counter belongs may call this function.
    pub(crate) fn bump(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Control {
    /// Begins a phase with this many threads.
    pub(crate) fn begin(warm_up: Duration, until: Until, threads: usize) -> Control {
        let warm_ns = nanos(warm_up);
        let (end_ns, tickets) = match until {
            Until::Time(duration) => (warm_ns.saturating_add(nanos(duration)), None),
            Until::Count(count) => (u64::MAX, Some(i64::try_from(count).unwrap_or(i64::MAX))),
            Until::EveryKey => (u64::MAX, None),
        };
        Control {
            begun: Instant::now(),
            warm_ns,
            end_ns,
            tickets: tickets.map(AtomicI64::new),
            is_aborted: AtomicBool::new(false),
            done: (0..threads).map(|_| Done::default()).collect(),
        }
    }

    /// Returns the time since the phase began.
    pub(crate) fn now_ns(&self) -> u64 {
        nanos(self.begun.elapsed())
    }

    /// Returns whether an operation may begin now. In a phase with a fixed number of operations, each operation after
    /// the warm-up uses up one of them.
    pub(crate) fn admit(&self, now_ns: u64) -> bool {
        if now_ns >= self.end_ns || self.is_aborted.load(Ordering::Relaxed) {
            return false;
        }
        match &self.tickets {
            Some(tickets) if now_ns >= self.warm_ns => tickets.fetch_sub(1, Ordering::Relaxed) > 0,
            _ => true,
        }
    }

    /// Ends the phase early.
    pub(crate) fn abort(&self) {
        self.is_aborted.store(true, Ordering::Relaxed);
    }

    /// Returns whether the phase was ended early.
    pub(crate) fn is_aborted(&self) -> bool {
        self.is_aborted.load(Ordering::Relaxed)
    }

    /// Returns the counter of a thread.
    pub(crate) fn done_by(&self, thread: usize) -> &Done {
        &self.done[thread]
    }

    /// Returns the number of operations completed by all threads.
    pub(crate) fn done(&self) -> u64 {
        self.done.iter().map(|done| done.0.load(Ordering::Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_warm_up_at_most_the_requested_number_of_operations_begins() {
        let control = Control::begin(Duration::from_nanos(100), Until::Count(3), 1);
        assert_eq!((0..50).filter(|_| control.admit(99)).count(), 50);
        assert_eq!((0..50).filter(|_| control.admit(100)).count(), 3);
    }

    #[test]
    fn no_operation_begins_after_the_end_or_an_abort() {
        let control = Control::begin(Duration::ZERO, Until::Time(Duration::from_nanos(10)), 1);
        assert!(control.admit(9) && !control.admit(10));
        control.abort();
        assert!(!control.admit(0));
    }
}
