//! A table of items by id, in which ids are never reused. An id contains a slot and the number of the insertion. So a
//! look-up needs no hash, and a look-up by the id of a removed item finds nothing.
//!
//! ```text
//!   id = [ number of the insertion | slot ]        slots: a slab, reused
//! ```

use slab::Slab;

/// The number of bits of an id that contain the slot. It allows far more slots than any table of the client needs.
const PLACE_BITS: u32 = 24;

/// A table of items by id; see the module documentation.
#[derive(Debug)]
pub(crate) struct Table<T> {
    places: Slab<(u64, T)>,
    /// The total number of insertions; no id is zero.
    inserted: u64,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { places: Slab::new(), inserted: 0 }
    }
}

#[allow(clippy::cast_possible_truncation)] // A slot has 24 bits.
fn place(id: u64) -> usize {
    (id & ((1 << PLACE_BITS) - 1)) as usize
}

impl<T> Table<T> {
    /// Inserts the item that `make` creates for the given id, and returns the id.
    ///
    /// # Errors
    /// The errors of `make`; nothing is inserted then.
    #[inline]
    pub(crate) fn try_insert_with<E>(
        &mut self,
        make: impl FnOnce(u64) -> Result<T, E>,
    ) -> Result<u64, E> {
        let entry = self.places.vacant_entry();
        assert!(entry.key() < 1 << PLACE_BITS, "a table has at most 2^24 items");
        let id = (self.inserted + 1) << PLACE_BITS | entry.key() as u64;
        let thing = make(id)?;
        self.inserted += 1;
        entry.insert((id, thing));
        Ok(id)
    }

    /// Inserts an item and returns its id.
    #[inline]
    pub(crate) fn insert(&mut self, thing: T) -> u64 {
        let Ok(id) = self.try_insert_with(|_| Ok::<T, std::convert::Infallible>(thing));
        id
    }

    #[inline]
    pub(crate) fn get(&self, id: u64) -> Option<&T> {
        self.places.get(place(id)).filter(|(of, _)| *of == id).map(|(_, thing)| thing)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        self.places.get_mut(place(id)).filter(|(of, _)| *of == id).map(|(_, thing)| thing)
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<T> {
        self.get(id)?;
        self.places.try_remove(place(id)).map(|(_, thing)| thing)
    }

    /// Returns the total number of insertions.
    pub(crate) fn inserted(&self) -> u64 {
        self.inserted
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.places.iter().map(|(_, (id, thing))| (*id, thing))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        self.places.iter_mut().map(|(_, (id, thing))| (*id, thing))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, thing)| thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_removed_item_finds_nothing_after_its_slot_is_reused() {
        let mut table = Table::default();
        let first = table.insert("first");
        let other = table.insert("other");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(place(second), place(first));
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!((table.get(second), table.get(other)), (Some(&"second"), Some(&"other")));
        assert_eq!((table.get(0), table.len()), (None, 2));
    }

    #[test]
    fn a_failed_insertion_uses_no_id() {
        let mut table = Table::<()>::default();
        let mut offered = 0;
        let made = table.try_insert_with(|id| {
            offered = id;
            Err("no")
        });
        assert_eq!((made, table.len()), (Err("no"), 0));
        assert_eq!(table.insert(()), offered);
    }
}
