//! The possible states of an object.

use super::{KEYS_MAX, Span, Text};

/// The entry of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Item {
    pub(super) value: Text,
    /// The version; `None` if no response has shown it.
    pub(super) version: Option<u64>,
    /// The deadline, or the range in which it lies.
    pub(super) deadline: Option<Span>,
}

/// The entries of an object's keys.
pub(super) type World = [Option<Item>; KEYS_MAX];

/// A set of entries that agrees with the responses so far.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Possible {
    pub(super) world: World,
    /// The deletes of each key that are in doubt: as many may still take effect.
    pub(super) deletes: [usize; KEYS_MAX],
}

impl Possible {
    /// Returns whether all that may follow `other` may follow this one too.
    fn covers(&self, other: &Possible) -> bool {
        let mut counts = self.deletes.iter().zip(&other.deletes);
        self.world == other.world && counts.all(|(mine, others)| mine >= others)
    }
}

/// All sets of entries that agree with the responses so far, in order and without duplicates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State(Vec<Possible>);

impl State {
    /// The state before the first write.
    pub(super) fn empty() -> State {
        State(vec![Possible { world: World::default(), deletes: [0; KEYS_MAX] }])
    }

    pub(super) fn of(all: impl Iterator<Item = Possible>) -> State {
        let mut all: Vec<Possible> = all.collect();
        all.sort_unstable();
        all.dedup();
        let is_covered = |one: &Possible| all.iter().any(|other| other != one && other.covers(one));
        State(all.iter().filter(|one| !is_covered(one)).cloned().collect())
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Possible> {
        self.0.iter()
    }

    /// Returns whether no set of entries agrees with the responses.
    pub(super) fn is_impossible(&self) -> bool {
        self.0.is_empty()
    }
}
