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

/// All sets of entries that agree with the responses so far, in order and without duplicates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State(Vec<World>);

impl State {
    /// The state before the first write.
    pub(super) fn empty() -> State {
        State(vec![World::default()])
    }

    pub(super) fn of(worlds: impl Iterator<Item = World>) -> State {
        let mut worlds: Vec<World> = worlds.collect();
        worlds.sort_unstable();
        worlds.dedup();
        State(worlds)
    }

    pub(super) fn worlds(&self) -> impl Iterator<Item = &World> {
        self.0.iter()
    }

    /// Returns whether no set of entries agrees with the responses.
    pub(super) fn is_impossible(&self) -> bool {
        self.0.is_empty()
    }
}
