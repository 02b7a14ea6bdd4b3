//! The directory's part of compaction: it moves slots, and updates the slots of entries that move.

use super::*;
use crate::table::compaction::CompactionBudget;

/// The result of moving an entry out of a chunk that is being emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::table) enum Relocated {
    /// The entry was moved: its new handle, and the number of bytes moved.
    To(Handle, usize),
    /// There is no room for this entry, so the pass ends.
    NoRoom,
}

/// The reason why a step of relocation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::table) enum RelocationEnd<Place> {
    /// The budget is used up; the step continues at this place.
    Budget(Place),
    /// Everything is relocated.
    Done,
    /// The remaining chunks have no room for the next allocation.
    NoRoom,
}

impl Directory {
    /// Relocates slots and entries out of chunks that are being emptied. Starts at a hash and proceeds in ascending
    /// order until the budget is used up. Entries of equal hash are relocated together, so that each step makes
    /// progress.
    pub(in crate::table) fn relocate(
        &mut self,
        arena: &mut Arena,
        from: HashBits,
        budget: CompactionBudget,
        mut relocate: impl FnMut(&mut Arena, Handle) -> Relocated,
    ) -> RelocationEnd<HashBits> {
        let mut from = from;
        let (mut entries, mut bytes, mut slots_seen) = (0, 0, 0);
        let mut last: Option<HashBits> = None;
        loop {
            let place = self.place_of(from);
            if place >= self.segments.len() {
                return RelocationEnd::Done;
            }
            let first = self.first_place(place);
            let mut segment = self.segments[first];
            if segment.is_leaving(arena) {
                // SAFETY: a segment of this directory. The new segment replaces it in all its places.
                let Some((moved, size)) = (unsafe { segment.relocate(arena) }) else {
                    return RelocationEnd::NoRoom;
                };
                self.put(first, moved);
                segment = moved;
                bytes += size;
            }
            let mut at = segment.home(from);
            // SAFETY: a segment of this directory.
            slots_seen += unsafe { segment.slots(arena) }.len() - at;
            loop {
                // SAFETY: as above.
                let slots = unsafe { segment.slots(arena) };
                let Some((place, slot, handle)) = next_leaving(arena, slots, at) else { break };
                at = place + 1;
                // The slots of lower hashes than `from` that lie after the home of `from` were examined in the
                // previous step.
                if slot.hash() < from {
                    continue;
                }
                let is_used_up = entries >= budget.entries || bytes >= budget.bytes;
                if is_used_up && last != Some(slot.hash()) {
                    return RelocationEnd::Budget(slot.hash());
                }
                match relocate(arena, handle) {
                    Relocated::To(moved, size) => {
                        // SAFETY: a segment of this directory.
                        let slots = unsafe { segment.slots_mut(arena) };
                        slots[place] = Slot::new(slot.hash(), moved);
                        entries += 1;
                        bytes += size;
                        last = Some(slot.hash());
                    }
                    Relocated::NoRoom => return RelocationEnd::NoRoom,
                }
            }
            let end = first + self.places_of(&segment);
            if end == self.segments.len() {
                return RelocationEnd::Done;
            }
            from = HashBits::try_from((end as u64) << (32 - self.depth))
                .expect("a place of the directory begins at a hash");
            if entries >= budget.entries || bytes >= budget.bytes || slots_seen >= budget.slots {
                return RelocationEnd::Budget(from);
            }
        }
    }
}

/// Returns the next slot, starting at a place, whose entry is in a chunk that is being emptied.
fn next_leaving(arena: &Arena, slots: &[Slot], from: usize) -> Option<(usize, Slot, Handle)> {
    let leaving = |slot: &Slot| slot.handle().filter(|&handle| arena.is_leaving(handle));
    let rest = slots[from..].iter().enumerate();
    rest.filter_map(|(offset, slot)| Some((from + offset, *slot, leaving(slot)?))).next()
}
