//! The timers of operations, one each, in order of time.
//!
//! An operation stores the time of its own timer. A timer that is set too early is not changed: when it fires, it is
//! set again. A cleared timer leaves a stale entry behind. Stale entries are removed when they are more than half of
//! all entries. So an operation causes a constant number of removals on average, and the steady state allocates
//! nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::operation::OpId;

/// The size below which stale entries are not removed.
const MIN_ENTRIES: usize = 64;

/// The timers of one engine; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    entries: BinaryHeap<Reverse<(Instant, OpId)>>,
    /// The number of stale entries.
    stale: usize,
}

impl Timers {
    /// Sets the timer of an operation, whose stored time is `timer`, to fire at `at` or earlier.
    #[inline]
    pub(crate) fn set(&mut self, id: OpId, timer: &mut Option<Instant>, at: Instant) {
        if timer.is_none_or(|set| set > at) {
            self.clear(timer);
            self.entries.push(Reverse((at, id)));
            *timer = Some(at);
        }
    }

    /// Clears the timer of an operation.
    #[inline]
    pub(crate) fn clear(&mut self, timer: &mut Option<Instant>) {
        self.stale += usize::from(timer.take().is_some());
    }

    /// Removes and returns the earliest entry that is due. The entry is valid if its operation has a timer at that
    /// time. Otherwise the caller reports it with [`Timers::note_stale`].
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<(Instant, OpId)> {
        if self.next()? > now {
            return None;
        }
        self.entries.pop().map(|Reverse(entry)| entry)
    }

    /// Records that the entry just taken was stale.
    pub(crate) fn note_stale(&mut self) {
        self.stale = self.stale.saturating_sub(1);
    }

    /// Removes stale entries if they are more than half of all entries. `is_set` returns whether an operation has a
    /// timer at a given time.
    pub(crate) fn tidy(&mut self, is_set: impl Fn(OpId, Instant) -> bool) {
        if self.stale * 2 > self.entries.len() && self.entries.len() >= MIN_ENTRIES {
            self.entries.retain(|&Reverse((at, id))| is_set(id, at));
            self.stale = 0;
        }
    }

    /// Returns the time of the earliest entry, which may be stale; `None` if there is no entry.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.entries.peek().map(|&Reverse((at, _))| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::time::Duration;

    #[test]
    fn timers_fire_in_order_of_time_and_cleared_ones_never_do() {
        let mut timers = Timers::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut own: HashMap<OpId, Option<Instant>> = HashMap::new();
        let mut set = |timers: &mut Timers, id: OpId, millis| {
            timers.set(id, own.entry(id).or_default(), at(millis));
            own[&id]
        };
        for (id, millis) in [(0, 30), (1, 10), (2, 20), (3, 15), (0, 12)] {
            set(&mut timers, id, millis);
        }
        assert_eq!(set(&mut timers, 1, 40), Some(at(10)), "it fires early and is set again");
        timers.clear(own.get_mut(&3).unwrap());
        assert_eq!(timers.take_due(at(9)), None);
        let mut due = Vec::new();
        while let Some((time, id)) = timers.take_due(at(20)) {
            match own[&id] == Some(time) {
                true => due.push(id),
                false => timers.note_stale(),
            }
        }
        assert_eq!((due, timers.stale), (vec![1, 0, 2], 1));
    }

    #[test]
    fn cleared_timers_use_little_memory() {
        let mut timers = Timers::default();
        let start = Instant::now();
        for id in 0..100_000 {
            let mut timer = None;
            timers.set(id, &mut timer, start + Duration::from_micros(id));
            timers.clear(&mut timer);
            timers.tidy(|_, _| false);
            assert!(timers.entries.len() <= MIN_ENTRIES);
        }
    }
}
