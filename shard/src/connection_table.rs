//! Tables of connections: the ids, and one value for each open connection.
//!
//! ```text
//!   ConnectionId = generation (32 bits) | slot (32 bits)
//!
//!   slot                 0     1     2
//!   ConnectionIds        7     0     3       issues an id, and never issues it again
//!   outputs            [...]   -   [...]     one ConnectionTable each: the sending sides,
//!   receivers          [...]   -   [...]     the receiving sides,
//!   sockets            [...]   -   [...]     and the engine's sockets
//! ```
//!
//! The tables are separate because serving the receiving side of one connection may append to the outputs of others.

use kv_core::mutations::{self, Mutation};
use kv_core::replica::ConnectionId;

/// Returns the slot of a connection: a small number that is reused once the connection is closed.
pub(crate) fn slot_of(id: ConnectionId) -> usize {
    usize::try_from(id.0 & u64::from(u32::MAX)).expect("a slot fits 32 bits")
}

fn generation_of(id: ConnectionId) -> u32 {
    u32::try_from(id.0 >> 32).expect("the upper half has 32 bits")
}

/// The ids of a shard's connections.
#[derive(Debug, Default)]
pub(crate) struct ConnectionIds {
    /// The generation of the current or next connection in each slot.
    generations: Vec<u32>,
    free: Vec<u32>,
}

impl ConnectionIds {
    /// Issues an id that was never issued before.
    pub(crate) fn open(&mut self) -> ConnectionId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.generations.push(0);
            u32::try_from(self.generations.len() - 1).expect("fewer than 2^32 connections are open")
        });
        ConnectionId(u64::from(self.generations[slot as usize]) << 32 | u64::from(slot))
    }

    /// Frees the slot of an open connection for the next id.
    pub(crate) fn close(&mut self, id: ConnectionId) {
        let generation = &mut self.generations[slot_of(id)];
        debug_assert_eq!(*generation, generation_of(id), "the connection is already closed");
        // When the generations of a slot are used up, the slot is not reused.
        if let Some(next) = generation.checked_add(1) {
            *generation = next;
            self.free.push(u32::try_from(slot_of(id)).expect("a slot fits 32 bits"));
        }
    }
}

/// One value for each open connection of a shard, by [`ConnectionId`]. An id of a closed connection finds nothing.
#[derive(Debug)]
pub struct ConnectionTable<T> {
    slots: Vec<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Default for ConnectionTable<T> {
    fn default() -> ConnectionTable<T> {
        ConnectionTable { slots: Vec::new() }
    }
}

impl<T> ConnectionTable<T> {
    /// Sets the value of an open connection.
    pub fn insert(&mut self, id: ConnectionId, value: T) {
        let at = slot_of(id);
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, || Slot { generation: 0, value: None });
        }
        self.slots[at] = Slot { generation: generation_of(id), value: Some(value) };
    }

    /// Removes and returns the value of a connection; `None` if it has no value or is closed.
    pub fn remove(&mut self, id: ConnectionId) -> Option<T> {
        let slot = self.slots.get_mut(slot_of(id))?;
        if slot.generation == generation_of(id) { slot.value.take() } else { None }
    }

    /// Returns the value of a connection; `None` if it has no value or is closed.
    pub fn get(&self, id: ConnectionId) -> Option<&T> {
        let slot = self.slots.get(slot_of(id)).filter(|slot| slot.generation == generation_of(id));
        slot.and_then(|slot| slot.value.as_ref())
    }

    /// Returns a mutable reference to the value of a connection; `None` if it has no value or is closed.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut T> {
        let slot = self.slots.get_mut(slot_of(id))?;
        let is_current = slot.generation == generation_of(id);
        if is_current || mutations::is_open(Mutation::OutputOfClosedKept) {
            slot.value.as_mut()
        } else {
            None
        }
    }

    /// Returns the values of all connections.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_issued_once_and_its_slot_again() {
        let mut ids = ConnectionIds::default();
        let (first, other) = (ids.open(), ids.open());
        ids.close(first);
        let second = ids.open();
        assert_ne!(first, second);
        assert_eq!(slot_of(first), slot_of(second));
        assert_ne!(slot_of(first), slot_of(other));
    }

    #[test]
    fn the_id_of_a_closed_connection_finds_nothing() {
        let (mut ids, mut table) = (ConnectionIds::default(), ConnectionTable::default());
        let first = ids.open();
        table.insert(first, "first");
        ids.close(first);
        let second = ids.open();
        table.insert(second, "second");
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&"second"));
        assert_eq!(table.remove(second), Some("second"));
        assert_eq!((table.get(second), table.values().count()), (None, 0));
    }
}
