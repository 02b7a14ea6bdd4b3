//! The writes that wait for room in the window of their session, in order of submission.
//!
//! A write that ends while waiting leaves a stale entry behind. Stale entries are removed when they are more than half
//! of all entries. So each write takes constant time on average, and the memory is proportional to the number of
//! waiting writes.

use std::collections::VecDeque;

use crate::operation::OpId;

/// The size below which stale entries are not removed.
const MIN_ENTRIES: usize = 64;

/// A queue of waiting writes; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    entries: VecDeque<OpId>,
    /// The number of stale entries.
    ended: usize,
}

impl Waiting {
    /// Appends a write.
    pub(crate) fn push(&mut self, id: OpId) {
        self.entries.push_back(id);
    }

    /// Removes and returns the oldest entry. Its write may have ended.
    pub(crate) fn next(&mut self) -> Option<OpId> {
        let next = self.entries.pop_front();
        if self.entries.is_empty() {
            self.ended = 0;
        }
        next
    }

    /// Returns whether there are entries.
    pub(crate) fn has_any(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Records that one of these writes has ended, and may remove stale entries. `has_ended` returns whether a given
    /// write has ended.
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
    fn writes_leave_in_order_and_ended_ones_use_little_memory() {
        let mut waiting = Waiting::default();
        let mut alive = BTreeSet::new();
        for id in 0..10_000 {
            waiting.push(id);
            alive.insert(id);
            // Nine of ten writes end while they wait.
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
