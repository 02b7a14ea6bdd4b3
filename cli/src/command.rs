//! The operations of the command line.

use super::change::Change;
use super::help::Word;
use super::scan::Scan;

/// An operation of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Sets a key, `count` times in sequence.
    Put { key: Vec<u8>, value: Vec<u8>, count: u32 },
    /// Reads a key.
    Get { key: Vec<u8> },
    /// Reads something of a key.
    Read { key: Vec<u8>, what: What },
    /// Removes a key.
    Delete { key: Vec<u8> },
    /// Compares both replicas with a value; `None`: the key must not exist.
    Verify { key: Vec<u8>, expected: Option<Vec<u8>> },
    /// Checks that the key's server responds.
    Noop { key: Vec<u8> },
    /// Executes an update.
    Update(Change),
    /// Executes several updates of keys of one shard, all or none.
    Batch(Vec<Change>),
    /// Runs operations on their own, which have their results in this order.
    Several(Vec<Command>),
    /// Lists the keys that match a pattern.
    Scan(Scan),
    /// Counts all keys.
    Count,
    /// Lists the operations, or describes one.
    Help(Option<&'static Word>),
}

/// The part of an entry that a line reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// At most `most` bytes of the value from byte `from` on, or from this byte before its end.
    Range {
        from: u32,
        from_end: bool,
        most: u32,
    },
    Length,
    Existence,
    Deadline,
}

impl Command {
    /// Returns the key that determines the server; `None` if the line has no key.
    pub(crate) fn key(&self) -> Option<&[u8]> {
        match self {
            Command::Put { key, .. }
            | Command::Get { key }
            | Command::Read { key, .. }
            | Command::Delete { key }
            | Command::Verify { key, .. }
            | Command::Noop { key }
            | Command::Update(Change { key, .. }) => Some(key),
            Command::Batch(changes) => changes.first().map(|change| &change.key[..]),
            Command::Several(_) | Command::Scan(_) | Command::Count | Command::Help(_) => None,
        }
    }

    /// Returns whether the operation concerns all keys, so that it runs after the earlier lines and before the later
    /// ones.
    pub(crate) fn is_of_all_keys(&self) -> bool {
        matches!(self, Command::Scan(_) | Command::Count)
    }

    /// Returns all keys of the operation, without repetitions.
    pub(crate) fn keys(&self) -> Vec<&[u8]> {
        let mut keys: Vec<&[u8]> = match self {
            Command::Update(change) => change.keys().collect(),
            Command::Batch(changes) => changes.iter().flat_map(Change::keys).collect(),
            _ => return self.key().into_iter().collect(),
        };
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Returns the updates of the operation; empty if it is none.
    pub(crate) fn changes(&self) -> &[Change] {
        match self {
            Command::Update(change) => std::slice::from_ref(change),
            Command::Batch(changes) => changes,
            _ => &[],
        }
    }

    /// Returns the number of bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Command::Put { key, value, .. } => key.len() + value.len(),
            Command::Verify { key, expected } => key.len() + expected.as_ref().map_or(0, Vec::len),
            Command::Update(_) | Command::Batch(_) => {
                self.changes().iter().map(|change| change.update().wire_bytes()).sum()
            }
            _ => self.key().map_or(0, <[u8]>::len),
        }
    }
}
