//! Pins: entries that must stay readable while their values are being sent.
//!
//! ```text
//!   pin(key) --> Pin --> pinned_value: the value as it was when it was pinned
//!                 |         (the key may have another value by now, or none)
//!                 +----> unpin: the last one frees an entry that the table has dropped
//! ```
//!
//! A [`Pin`] is a ticket, not a pointer. The sender requests the bytes again for every piece of the value. So the entry
//! may move in memory, as long as its record in [`Pins`] is updated.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::arena::Handle;
use crate::mutations::{self, Mutation};

/// A ticket that keeps one entry's value readable, created by [`Table::pin`](super::Table::pin) and ended by
/// [`Table::unpin`](super::Table::unpin). If a pin is dropped without `unpin`, the entry keeps its memory until the
/// table is cleared.
///
/// [`Table::clear`](super::Table::clear) invalidates the pin.
#[derive(Debug)]
#[must_use = "a pin keeps its entry's memory until it is given to `unpin`"]
pub struct Pin {
    index: u32,
    number: u64,
}

/// One pinned entry.
#[derive(Clone, Copy, Debug)]
struct Record {
    number: u64,
    handle: Handle,
    /// The number of its pins.
    pins: u32,
    /// True if the table has dropped the entry; its memory is freed when the last pin ends.
    is_dropped: bool,
}

/// The records of all pinned entries.
#[derive(Debug, Default)]
pub(super) struct Pins {
    records: Vec<Option<Record>>,
    vacant: Vec<u32>,
    places: HashMap<Handle, u32, FixedState>,
    /// The number of records ever created. It never decreases, so an old pin never matches a new record.
    numbers: u64,
}

impl Pins {
    /// Adds a pin to an entry.
    pub(super) fn add(&mut self, handle: Handle) -> Pin {
        if let Some(&index) = self.places.get(&handle) {
            let record = self.records[index as usize].as_mut().expect("a place names a record");
            record.pins += 1;
            return Pin { index, number: record.number };
        }
        let number = self.numbers;
        self.numbers += 1;
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.records.push(None);
            u32::try_from(self.records.len() - 1).expect("an arena has fewer entries than 2^32")
        });
        let record = Record { number, handle, pins: 1, is_dropped: false };
        self.records[index as usize] = Some(record);
        self.places.insert(handle, index);
        Pin { index, number }
    }

    /// Returns the entry of a pin, or `None` after the table was cleared.
    pub(super) fn get(&self, pin: &Pin) -> Option<Handle> {
        let record = self.records.get(pin.index as usize)?.as_ref()?;
        (record.number == pin.number).then_some(record.handle)
    }

    /// Ends a pin. Returns the entry if it must be freed: the table has dropped it and this was its last pin.
    pub(super) fn remove(&mut self, pin: Pin) -> Option<Handle> {
        let place = self.records.get_mut(pin.index as usize)?;
        let record = place.as_mut().filter(|record| record.number == pin.number)?;
        record.pins -= 1;
        if record.pins > 0 {
            return None;
        }
        let Record { handle, is_dropped, .. } = *record;
        *place = None;
        self.vacant.push(pin.index);
        self.places.remove(&handle);
        is_dropped.then_some(handle)
    }

    /// Records that the table drops an entry. Returns whether the entry is pinned and so must not be freed yet.
    pub(super) fn drop_entry(&mut self, handle: Handle) -> bool {
        if self.places.is_empty() {
            return false;
        }
        let Some(&index) = self.places.get(&handle) else { return false };
        let record = self.records[index as usize].as_mut().expect("a place names a record");
        debug_assert!(!record.is_dropped, "an entry is dropped once");
        record.is_dropped = true;
        true
    }

    /// Records that an entry has moved.
    pub(super) fn follow(&mut self, handle: Handle, moved: Handle) {
        if self.places.is_empty() {
            return;
        }
        if let Some(index) = self.places.remove(&handle) {
            if mutations::is_open(Mutation::PinLeftBehind) {
                // The pinned entry no longer exists.
                self.records[index as usize] = None;
                return;
            }
            self.places.insert(moved, index);
            let record = self.records[index as usize].as_mut().expect("a place names a record");
            record.handle = moved;
        }
    }

    /// Returns the number of pinned entries.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Drops all records. Earlier pins do not match later records.
    pub(super) fn clear(&mut self) {
        self.records = Vec::new();
        self.vacant = Vec::new();
        self.places = HashMap::default();
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Option<Record>>()
            + self.vacant.capacity() * size_of::<u32>()
            + self.places.capacity() * size_of::<(Handle, u32)>()
    }
}
