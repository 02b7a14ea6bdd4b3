//! The directory's part of sampling: visits the few entries that follow a hash.

use std::ops::ControlFlow;

use super::*;

/// The maximum number of segments that one visit examines. Only a table with very few entries needs more than two.
const SEGMENTS_MAX: usize = 4;

impl Directory {
    /// Visits at most `max` entries in ascending order of hash, starting at a hash, until `visit` breaks. The visit
    /// continues at the lowest hash after the highest one, so a small table may be visited several times.
    pub(in crate::table) fn visit_from(
        &self,
        arena: &Arena,
        from: HashBits,
        max: usize,
        mut visit: impl FnMut(HashBits, Handle) -> ControlFlow<()>,
    ) {
        let (mut from, mut left) = (from, max);
        for _ in 0..SEGMENTS_MAX {
            let place = self.place_of(from);
            let Some(segment) = self.segments.get(place) else { return };
            // SAFETY: a segment of this directory.
            let slots = unsafe { &segment.slots(arena)[segment.home(from)..] };
            for slot in slots {
                let Some(handle) = slot.handle() else { continue };
                if slot.hash() < from {
                    continue;
                }
                left -= 1;
                if visit(slot.hash(), handle).is_break() || left == 0 {
                    return;
                }
            }
            let end = self.first_place(place) + self.places_of(segment);
            from = match end == self.segments.len() {
                true => HashBits::MIN,
                false => HashBits::try_from((end as u64) << (32 - self.depth))
                    .expect("a place of the directory begins at a hash"),
            };
        }
    }
}
