//! The results of rounds in which two servers died together, and their description as text.

use serde::Serialize;

use crate::faults::Policy;

/// The results of one round in which two servers died together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) policy: Policy,
    /// The number of keys that clients read from the restored cluster.
    pub(crate) restored: u64,
    /// The number of groups that both servers had held.
    pub(crate) lost: u64,
    /// The number of operations that ended with LOST.
    pub(crate) told: u64,
}

/// The sums of the results over all rounds in which two servers died together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Doubles {
    shutdown: u64,
    restored_keys: u64,
    groups_lost_with_shutdown: u64,
    isolate: u64,
    groups_lost_with_isolate: u64,
    answered_lost: u64,
}

impl Doubles {
    /// Adds the result of a round without failures.
    pub(crate) fn add(&mut self, shown: Shown) {
        match shown.policy {
            Policy::Shutdown => {
                self.shutdown += 1;
                self.restored_keys += shown.restored;
                self.groups_lost_with_shutdown += shown.lost;
            }
            Policy::Isolate => {
                self.isolate += 1;
                self.groups_lost_with_isolate += shown.lost;
                self.answered_lost += shown.told;
            }
        }
    }

    /// Returns a line for each policy that was tested.
    pub(crate) fn words(&self) -> String {
        let mut text = String::new();
        if self.shutdown > 0 {
            text += &format!(
                "two servers dead, shutdown: {} rounds ended with complete dumps of every surviving server; \
                 restored from them, {} keys were read with their last acknowledged write \
                 ({} groups lost both holders)\n",
                self.shutdown, self.restored_keys, self.groups_lost_with_shutdown
            );
        }
        if self.isolate > 0 {
            text += &format!(
                "two servers dead, isolate: {} rounds continued; {} groups lost both holders, and \
                 {} requests to them got LOST; every operation on another group was served\n",
                self.isolate, self.groups_lost_with_isolate, self.answered_lost
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_policies_that_were_tried_are_reported() {
        let mut doubles = Doubles::default();
        assert_eq!(doubles.words(), "");
        let shown = Shown { policy: Policy::Isolate, restored: 0, lost: 1, told: 7 };
        doubles.add(shown);
        doubles.add(shown);
        let words = doubles.words();
        assert!(
            words.contains("2 rounds continued; 2 groups") && words.contains("14 requests"),
            "{words}"
        );
        assert!(!words.contains("shutdown"));
        doubles.add(Shown { policy: Policy::Shutdown, restored: 90, lost: 1, told: 0 });
        assert!(doubles.words().contains("90 keys"));
    }
}
