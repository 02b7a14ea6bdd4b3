//! When operations need attention: one timer each, in order of time.
//!
//! An operation keeps the time of its own timer. A timer that is due early is left as it is: it goes off,
//! and is set again. So an operation that ends within its first wait costs one insertion and one removal.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::operation::OpId;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeSet<(Instant, OpId)>,
}

impl Timers {
    /// Sets the timer of an operation, whose own is `timer`, to go off at `at` or earlier.
    #[inline]
    pub(crate) fn set(&mut self, id: OpId, timer: &mut Option<Instant>, at: Instant) {
        if timer.is_none_or(|set| set > at) {
            self.clear(id, timer);
            self.due.insert((at, id));
            *timer = Some(at);
        }
    }

    /// Removes the timer of an operation.
    #[inline]
    pub(crate) fn clear(&mut self, id: OpId, timer: &mut Option<Instant>) {
        if let Some(at) = timer.take() {
            self.due.remove(&(at, id));
        }
    }

    /// Takes the earliest timer that is due. Its operation has to note that it has none.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<OpId> {
        let &(at, _) = self.due.first()?;
        if at > now {
            return None;
        }
        self.due.pop_first().map(|(_, id)| id)
    }

    /// The time of the earliest timer.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.due.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn timers_go_off_in_order_of_time_and_none_that_was_cleared() {
        let mut timers = Timers::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut own = [None; 4];
        for (id, millis) in [(0, 30), (1, 10), (2, 20), (3, 15)] {
            timers.set(id, &mut own[usize::try_from(id).unwrap()], at(millis));
        }
        timers.set(0, &mut own[0], at(12));
        timers.set(1, &mut own[1], at(40));
        assert_eq!(own[1], Some(at(10)), "it goes off early and is set again");
        timers.clear(3, &mut own[3]);
        assert_eq!((own[3], timers.next()), (None, Some(at(10))));
        assert_eq!(timers.take_due(at(9)), None);
        let due: Vec<OpId> = std::iter::from_fn(|| timers.take_due(at(20))).collect();
        assert_eq!((due, timers.next()), (vec![1, 0, 2], None));
    }
}
