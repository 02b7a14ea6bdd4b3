//! Writes that wait for room in the window of their session, in the order in which they were submitted.
//!
//! A write whose deadline has passed leaves its entry behind. Entries without a write are removed when they are
//! more than half: so each costs constant time in all, and they take no more room than the writes.

use std::collections::VecDeque;

use crate::operation::OpId;

/// Fewer entries than this are not worth a removal.
const MIN_ENTRIES: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    entries: VecDeque<OpId>,
    /// Entries whose write has ended.
    ended: usize,
}

impl Waiting {
    /// Appends a write.
    pub(crate) fn push(&mut self, id: OpId) {
        self.entries.push_back(id);
    }

    /// Takes the oldest entry. Its write may have ended.
    pub(crate) fn next(&mut self) -> Option<OpId> {
        let next = self.entries.pop_front();
        if self.entries.is_empty() {
            self.ended = 0;
        }
        next
    }

    /// Whether there are entries.
    pub(crate) fn has_any(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Notes that a write of these has ended. `has_ended` tells which have.
    pub(crate) fn remove_one(&mut self, has_ended: impl Fn(OpId) -> bool) {
        self.ended += 1;
        if self.ended * 2 > self.entries.len() && self.entries.len() >= MIN_ENTRIES {
            self.entries.retain(|&id| !has_ended(id));
            self.ended = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn writes_leave_in_order_and_those_that_have_ended_take_little_room() {
        let mut waiting = Waiting::default();
        let mut alive = BTreeSet::new();
        for id in 0..10_000 {
            waiting.push(id);
            alive.insert(id);
            // Nine of ten end before their turn.
            if id % 10 != 0 {
                alive.remove(&id);
                waiting.remove_one(|id| !alive.contains(&id));
            }
            assert!(waiting.entries.len() <= MIN_ENTRIES.max(2 * alive.len() + 1));
        }
        let left: Vec<OpId> =
            std::iter::from_fn(|| waiting.next()).filter(|id| alive.contains(id)).collect();
        assert_eq!(left, alive.into_iter().collect::<Vec<OpId>>());
    }
}
