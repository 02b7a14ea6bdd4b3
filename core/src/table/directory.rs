//! The directory: the map from hashes to segments (extendible hashing: Fagin et al., TODS 1979).
//!
//! ```text
//!   first `depth` bits of the hash        segments
//!        000  ───────────────────────────>  A   depth 2: all hashes 00…
//!        001  ──────────────────────────┘
//!        010  ───────────────────────────>  B   depth 3
//!        011  ───────────────────────────>  C   depth 3
//!        1xx  ── ── ── ── ── ── ── ── ──>  D   depth 1: four places, one segment
//! ```
//!
//! Each place has a copy of its segment's description. So a look-up reads one place of the directory and then the
//! slots. Only the copy in the segment's first place has the correct numbers of used and reserved slots.
//!
//! A segment always has an empty slot for each staged entry that belongs to it. So linking an accepted entry needs no
//! memory: a segment grows before an entry is staged, while the write can still be rejected. Reserved slots are kept
//! when segments merge, split or shrink.
//!
//! A full segment grows up to a limit and is then split, independently of the others. So no write ever moves more
//! slots than one segment has. If the segment already uses all bits of the directory, the directory is doubled first,
//! which copies 16 bytes per place.
//!
//! If nearly all hashes of a segment belong to one half, that half is split again at once: entries that arrive in the
//! order of their hashes, as in a copy, would otherwise form one long run. Such a write moves the slots of one segment up
//! to a dozen times. When entries are removed, segments shrink, and merge with the other half of a split.

use super::OutOfMemory;
use super::segment::{
    CAPACITY_MAX, Found, HashBits, Segment, Slot, capacity_for, fits, round_capacity,
};
use super::staging::Staging;
use crate::arena::{Arena, Handle};

mod relocate;
mod reshape;
mod sampling;

pub(super) use relocate::{Relocated, RelocationEnd};

/// The maximum number of hash bits that a directory uses. At this depth segments grow instead of being split.
const DEPTH_MAX: u32 = 24;
/// The minimum share of entries (a divisor) that the smaller half must get for a split to help.
const SPLIT_PART_DIVISOR: usize = 8;
/// The number of places that a directory may have for splits that do not help by themselves, and the number of entries
/// per place above it. Such splits separate entries whose hashes are close to each other, which is the case if they
/// are inserted in the order of their hashes. The limit bounds the memory of the directory if hashes are equal.
const SKEWED_PLACES_MIN: usize = 4_096;
const ENTRIES_PER_SKEWED_PLACE: usize = 256;
/// The number of attempts to reduce a segment while it loses as many entries as it has slots. If its last entries are all
/// close to its end, for example because others were removed in the order of their hashes, a smaller segment has no room
/// for them. So an attempt at every removal would read all slots every time.
const REDUCTIONS: usize = 16;
/// The maximum number of used and reserved slots that two halves may have together when they merge.
const MERGE_LEN_MAX: usize = CAPACITY_MAX / 4;

/// A slot of a segment. Any change of the directory invalidates it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The first place of the segment in the directory.
    segment: usize,
    slot: usize,
}

/// An empty slot of a segment that is not reserved. Any change of the directory invalidates it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vacancy {
    /// The first place of the segment in the directory.
    segment: usize,
}

/// All segments of a table. Every method that takes an arena must get the arena of this table, in which every
/// segment in `segments` is live. The `SAFETY` comments in this file rely on both.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// One place for each value of the first `depth` bits; empty before the first insertion.
    segments: Vec<Segment>,
    depth: u32,
    /// The number of segments that use all `depth` bits; if it is zero, the directory can be halved.
    at_full_depth: usize,
    /// The number of entries.
    len: usize,
    /// A buffer for the slots of the segments that are being rebuilt.
    scratch: Vec<Slot>,
    /// The number of slots ever moved to another segment.
    moved_slots: u64,
}

impl Directory {
    fn place_of(&self, hash: HashBits) -> usize {
        // There are two shifts, because a single shift by 32 (at depth 0) would overflow.
        ((hash >> 1) >> (31 - self.depth)) as usize
    }

    /// Returns the first of the places that belong to the segment at `place`.
    fn first_place(&self, place: usize) -> usize {
        place & !(self.places_of(&self.segments[place]) - 1)
    }

    fn places_of(&self, segment: &Segment) -> usize {
        1 << (self.depth - segment.depth())
    }

    /// Prefetches the memory where the slots of a hash are searched.
    #[inline]
    pub(super) fn prefetch(&self, arena: &Arena, hash: HashBits) {
        if let Some(segment) = self.segments.get(self.place_of(hash)) {
            segment.prefetch(arena, hash);
        }
    }

    /// Returns the entry with this hash that `is_it` accepts.
    #[inline]
    pub(super) fn get(
        &self,
        arena: &Arena,
        hash: HashBits,
        is_it: impl FnMut(Handle) -> bool,
    ) -> Option<Handle> {
        let segment = self.segments.get(self.place_of(hash))?;
        // SAFETY: a segment of this directory.
        let slots = unsafe { segment.slots(arena) };
        segment.get(slots, hash, is_it)
    }

    /// Returns the place of the entry with this hash that `is_it` accepts.
    pub(super) fn find(
        &self,
        arena: &Arena,
        hash: HashBits,
        is_it: impl FnMut(Handle) -> bool,
    ) -> Option<Place> {
        let place = self.place_of(hash);
        self.segments.get(place)?;
        self.find_in(arena, Vacancy { segment: self.first_place(place) }, hash, is_it)
    }

    /// Returns the place of the entry with this hash that `is_it` accepts, given a vacancy of its segment.
    pub(super) fn find_in(
        &self,
        arena: &Arena,
        Vacancy { segment: first }: Vacancy,
        hash: HashBits,
        is_it: impl FnMut(Handle) -> bool,
    ) -> Option<Place> {
        let segment = &self.segments[first];
        // SAFETY: a segment of this directory.
        match segment.find(unsafe { segment.slots(arena) }, hash, is_it) {
            Found::At(slot) => Some(Place { segment: first, slot }),
            Found::BelongsAt(_) => None,
        }
    }

    /// Replaces the entry at a place by another one of the same hash; returns the old entry.
    pub(super) fn replace(&mut self, arena: &mut Arena, place: Place, handle: Handle) -> Handle {
        let segment = &self.segments[place.segment];
        // SAFETY: a segment of this directory.
        let slot = &mut unsafe { segment.slots_mut(arena) }[place.slot];
        let old = std::mem::replace(slot, Slot::new(slot.hash(), handle));
        old.handle().expect("a place that was found holds an entry")
    }

    /// Makes room for one more entry of this hash, so that its segment has an empty slot that is not reserved.
    /// `staging` has the entries for which slots are reserved. The returned slot stays empty until an insertion or a
    /// reservation.
    pub(super) fn make_room(
        &mut self,
        arena: &mut Arena,
        staging: &Staging,
        hash: HashBits,
    ) -> Result<Vacancy, OutOfMemory> {
        if self.segments.is_empty() {
            self.create_first(arena)?;
        }
        let first = self.first_place(self.place_of(hash));
        let segment = &self.segments[first];
        if segment.is_full() || segment.is_packed() || segment.is_reserved_to_the_limit() {
            self.enlarge_or_keep(arena, staging, first)?;
            return Ok(Vacancy { segment: self.first_place(self.place_of(hash)) });
        }
        Ok(Vacancy { segment: first })
    }

    /// Enlarges a segment. If there is no memory, a packed segment that still has room is kept, although look-ups in it
    /// are slow. Fails for a segment with the maximum number of staged entries.
    #[cold]
    fn enlarge_or_keep(
        &mut self,
        arena: &mut Arena,
        staging: &Staging,
        first: usize,
    ) -> Result<(), OutOfMemory> {
        if self.segments[first].is_reserved_to_the_limit() {
            return Err(OutOfMemory { bytes: size_of::<Slot>() });
        }
        match self.enlarge(arena, staging, first) {
            Err(refused) if self.segments[first].is_full() => Err(refused),
            _ => Ok(()),
        }
    }

    /// Reserves a slot, for which room was just made, for a staged entry.
    pub(super) fn reserve(&mut self, vacancy: Vacancy) {
        self.segments[vacancy.segment].reserve();
    }

    /// Ends the reservation of a slot: the entry is no longer staged. Returns the slot.
    pub(super) fn release(&mut self, hash: HashBits) -> Vacancy {
        let first = self.first_place(self.place_of(hash));
        self.segments[first].release();
        Vacancy { segment: first }
    }

    /// Inserts an entry that is not present, given a vacancy of its segment.
    ///
    /// An insertion cannot fail, because the segment has an empty slot. If this slot is before the entry's place and
    /// there is no memory for a larger segment, the segment is packed.
    pub(super) fn insert(
        &mut self,
        arena: &mut Arena,
        staging: &Staging,
        Vacancy { segment: mut first }: Vacancy,
        hash: HashBits,
        handle: Handle,
    ) {
        loop {
            let segment = &mut self.segments[first];
            debug_assert!(segment.taken() < segment.capacity());
            // SAFETY: a segment of this directory.
            let slots = unsafe { segment.slots_mut(arena) };
            let place = match segment.find(slots, hash, |_| false) {
                Found::BelongsAt(place) | Found::At(place) => place,
            };
            if segment.insert(slots, place, Slot::new(hash, handle)) {
                self.len += 1;
                return;
            }
            assert!(!segment.is_packed(), "an entry was inserted without making room for it");
            match self.enlarge(arena, staging, first) {
                Ok(()) => first = self.first_place(self.place_of(hash)),
                Err(OutOfMemory { .. }) => self.pack(arena, first),
            }
        }
    }

    /// Removes the entry at a place and returns it. A segment that becomes sparse shrinks or merges after a few more
    /// removals.
    pub(super) fn remove(&mut self, arena: &mut Arena, place: Place) -> Handle {
        let segment = &mut self.segments[place.segment];
        // SAFETY: a segment of this directory.
        let removed = segment.remove(unsafe { segment.slots_mut(arena) }, place.slot);
        self.len -= 1;
        if segment.is_sparse() && segment.len().is_multiple_of(segment.capacity() / REDUCTIONS) {
            self.reduce(arena, place.segment);
        }
        removed.handle().expect("a place that was found holds an entry")
    }

    /// Visits all entries in ascending order of hash, starting at a hash, until `visit` breaks. Entries of equal hash
    /// are visited together. The walk stops after a bounded number of slots. Returns the hash at which to continue, or
    /// `None` at the end.
    pub(super) fn walk(
        &self,
        arena: &Arena,
        from: HashBits,
        slots_max: usize,
        mut visit: impl FnMut(Handle) -> std::ops::ControlFlow<()>,
    ) -> Option<HashBits> {
        let mut from = from;
        let mut enough_at: Option<HashBits> = None;
        let mut slots_seen = 0;
        loop {
            let place = self.place_of(from);
            let segment = self.segments.get(place)?;
            // SAFETY: a segment of this directory.
            let slots = unsafe { &segment.slots(arena)[segment.home(from)..] };
            for slot in slots {
                let Some(handle) = slot.handle() else { continue };
                if slot.hash() < from {
                    continue;
                }
                if enough_at.is_some_and(|hash| hash != slot.hash()) {
                    return Some(slot.hash());
                }
                if visit(handle).is_break() {
                    enough_at = Some(slot.hash());
                }
            }
            slots_seen += slots.len();
            let end = self.first_place(place) + self.places_of(segment);
            if end == self.segments.len() {
                return None;
            }
            from = HashBits::try_from((end as u64) << (32 - self.depth))
                .expect("a place of the directory begins at a hash");
            if enough_at.is_some() || slots_seen >= slots_max {
                return Some(from);
            }
        }
    }

    /// Drops all segments. The caller frees their memory when it clears the arena.
    pub(super) fn clear(&mut self) {
        *self = Directory::default();
    }

    /// Returns the memory of the directory itself; the slots are in the arena.
    pub(super) fn heap_bytes(&self) -> usize {
        self.segments.capacity() * size_of::<Segment>()
            + self.scratch.capacity() * size_of::<Slot>()
    }

    #[cfg(test)]
    pub(super) fn moved_slots(&self) -> u64 {
        self.moved_slots
    }

    #[cfg(test)]
    pub(super) fn longest_segment(&self) -> usize {
        self.segments.iter().map(Segment::capacity).max().unwrap_or(0)
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.segments.len()
    }

    /// Returns the number of packed segments.
    #[cfg(test)]
    pub(super) fn packed(&self) -> usize {
        self.firsts().filter(|&first| self.segments[first].is_packed()).count()
    }

    #[cfg(test)]
    fn firsts(&self) -> impl Iterator<Item = usize> {
        (0..self.segments.len()).filter(|&place| self.first_place(place) == place)
    }

    /// Asserts that each segment has a slot for each staged entry of its hashes.
    #[cfg(test)]
    pub(super) fn check(&self, arena: &Arena, staging: &Staging) {
        for first in self.firsts() {
            let segment = &self.segments[first];
            let place_of_staged = |hash: &HashBits| self.first_place(self.place_of(*hash));
            let staged = staging.hashes().filter(|hash| place_of_staged(hash) == first).count();
            // SAFETY: a segment of this directory.
            let slots = unsafe { segment.slots(arena) };
            let used = slots.iter().filter(|slot| !slot.is_empty()).count();
            assert_eq!((segment.len(), segment.reserved()), (used, staged));
            assert!(segment.taken() <= segment.capacity());
        }
    }
}
