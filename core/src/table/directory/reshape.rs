//! Changes in the size of segments and the directory: growth, splits, shrinking and merges.

use super::*;

/// The numbers of slots that belong to the lower half of a segment.
#[derive(Clone, Copy, Debug)]
struct LowerHalf {
    /// The number of slots in use.
    len: usize,
    /// The number of reserved slots.
    reserved: usize,
    /// True if each half gets a large enough share of the slots.
    helps: bool,
    /// True if the lower half gets more slots than the upper one.
    is_larger: bool,
}

impl Directory {
    pub(super) fn create_first(&mut self, arena: &mut Arena) -> Result<(), OutOfMemory> {
        debug_assert!(self.segments.is_empty());
        let segment = build(arena, &[], 0, 0, capacity_for(0))?;
        self.segments.push(segment);
        self.at_full_depth = 1;
        Ok(())
    }

    /// Gives the segment with this first place a larger capacity, or splits it. Every resulting segment has an empty
    /// slot that is not reserved. After an error nothing is changed.
    pub(super) fn enlarge(
        &mut self,
        arena: &mut Arena,
        staging: &Staging,
        first: usize,
    ) -> Result<(), OutOfMemory> {
        let mut skewed = self.enlarge_once(arena, staging, first)?;
        // The larger half of a skewed split has room already, so a failure of the next split changes nothing.
        while let Some(larger) = skewed {
            skewed = self.enlarge_once(arena, staging, larger).unwrap_or_default();
        }
        Ok(())
    }

    /// Does one step of [`Directory::enlarge`]. Returns the first place of the larger half if the halves of a split
    /// are very unequal.
    fn enlarge_once(
        &mut self,
        arena: &mut Arena,
        staging: &Staging,
        first: usize,
    ) -> Result<Option<usize>, OutOfMemory> {
        let segment = self.segments[first];
        let slots = self.gather(arena, &[segment]);
        let wanted = if segment.is_full() {
            capacity_for(segment.taken()).max(segment.capacity() + 1)
        } else {
            // Too many hashes have their homes close to the segment's end. Only a larger capacity gives them more
            // room.
            segment.capacity() * 2
        };
        let halves = match wanted > CAPACITY_MAX && segment.depth() < DEPTH_MAX {
            true => self.halves(staging, first, &slots),
            false => None,
        };
        let done = match halves {
            Some(low) => self.split(arena, first, &slots, low).map(|(lower, upper)| {
                let larger = if low.is_larger { lower } else { upper };
                (!low.helps).then_some(larger)
            }),
            None => self.rebuild(arena, first, &slots, wanted).map(|()| None),
        };
        self.scratch = slots;
        done
    }

    /// Counts the slots of a segment that belong to its lower half. Returns `None` if a split would make too little
    /// room and the directory has many places already.
    fn halves(&self, staging: &Staging, first: usize, slots: &[Slot]) -> Option<LowerHalf> {
        let segment = &self.segments[first];
        let len = first_of_upper_half(slots, segment.depth());
        // The bits that the hashes of the lower half have in common.
        let bits = ((first >> (self.depth - segment.depth())) << 1) as u64;
        let below = 31 - segment.depth();
        let is_low = |hash: HashBits| u64::from(hash) >> below == bits;
        let reserved = staging.hashes().filter(|&hash| is_low(hash)).count();
        let low = len + reserved;
        let smaller = low.min(segment.taken() - low);
        let helps = smaller * SPLIT_PART_DIVISOR >= segment.taken();
        let is_larger = low * 2 > segment.taken();
        (helps || self.may_separate(slots)).then_some(LowerHalf { len, reserved, helps, is_larger })
    }

    /// Returns whether splits separate these slots before the directory has too many places.
    fn may_separate(&self, slots: &[Slot]) -> bool {
        let (Some(first), Some(last)) = (slots.first(), slots.last()) else { return false };
        let common = (first.hash() ^ last.hash()).leading_zeros();
        let places_max = SKEWED_PLACES_MIN.max(self.len / ENTRIES_PER_SKEWED_PLACE);
        common < DEPTH_MAX && 2_usize << common <= places_max
    }

    /// Packs a segment in place, which needs no memory.
    pub(super) fn pack(&mut self, arena: &mut Arena, first: usize) {
        let mut segment = self.segments[first];
        // SAFETY: a segment of this directory.
        segment.pack(unsafe { segment.slots_mut(arena) });
        // Each place has a copy of the description, and a look-up may use any of them.
        self.put(first, segment);
    }

    /// Shrinks or merges a segment after removals. Nothing is changed if there is no memory for the smaller segment.
    pub(super) fn reduce(&mut self, arena: &mut Arena, first: usize) {
        let mut first = first;
        let mut has_merged = false;
        while let Some(merged) = self.merge(arena, first) {
            first = merged;
            has_merged = true;
        }
        if has_merged {
            self.halve_while_possible();
            return;
        }
        let segment = self.segments[first];
        let wanted = capacity_for(segment.taken());
        if wanted < segment.capacity() {
            let slots = self.gather(arena, &[segment]);
            let wanted = fitting_capacity(&slots, segment.depth(), wanted);
            if wanted < segment.capacity() {
                // After an error the larger segment stays in use.
                let _ = self.rebuild(arena, first, &slots, wanted);
            }
            self.scratch = slots;
        }
    }

    fn rebuild(
        &mut self,
        arena: &mut Arena,
        first: usize,
        slots: &[Slot],
        capacity: usize,
    ) -> Result<(), OutOfMemory> {
        let old = self.segments[first];
        let new = build(arena, slots, old.reserved(), old.depth(), capacity)?;
        self.moved_slots += slots.len() as u64;
        self.put(first, new);
        // SAFETY: no place of the directory refers to the old segment any more.
        unsafe { old.free(arena) };
        Ok(())
    }

    /// Splits a segment in two, and returns the first places of both.
    fn split(
        &mut self,
        arena: &mut Arena,
        first: usize,
        slots: &[Slot],
        LowerHalf { len, reserved, .. }: LowerHalf,
    ) -> Result<(usize, usize), OutOfMemory> {
        let old = self.segments[first];
        let depth = old.depth() + 1;
        let (low, high) = slots.split_at(len);
        let mut half = |slots: &[Slot], reserved: usize| {
            build(arena, slots, reserved, depth, capacity_for(slots.len() + reserved))
        };
        let low = half(low, reserved)?;
        let high = match half(high, old.reserved() - reserved) {
            Ok(high) => high,
            Err(refused) => {
                // SAFETY: this segment was never put into the directory.
                unsafe { low.free(arena) };
                return Err(refused);
            }
        };
        self.moved_slots += slots.len() as u64;
        let mut first = first;
        if old.depth() == self.depth {
            self.double();
            first *= 2;
        }
        if depth == self.depth {
            self.at_full_depth += 2;
        }
        let upper = first + self.places_of(&low);
        self.put(first, low);
        self.put(upper, high);
        // SAFETY: both halves of its places refer to other segments now.
        unsafe { old.free(arena) };
        Ok((first, upper))
    }

    /// Merges a segment with its other half if both are small; returns the first place of the result, or `None` if they
    /// stay separate.
    fn merge(&mut self, arena: &mut Arena, first: usize) -> Option<usize> {
        let segment = self.segments[first];
        if segment.depth() == 0 {
            return None;
        }
        // The other half has the same number of places, but may consist of more than one segment.
        let places = self.places_of(&segment);
        let (low_at, high_at) = (first & !places, first | places);
        let (low, high) = (self.segments[low_at], self.segments[high_at]);
        let taken = low.taken() + high.taken();
        if low.depth() != high.depth() || taken > MERGE_LEN_MAX {
            return None;
        }
        let reserved = low.reserved() + high.reserved();
        let slots = self.gather(arena, &[low, high]);
        let merged = build(arena, &slots, reserved, low.depth() - 1, capacity_for(taken));
        self.moved_slots += slots.len() as u64;
        self.scratch = slots;
        let merged = merged.ok()?;
        if low.depth() == self.depth {
            self.at_full_depth -= 2;
        }
        self.put(low_at, merged);
        // SAFETY: the places of both old segments refer to the merged segment now.
        unsafe {
            low.free(arena);
            high.free(arena);
        }
        Some(low_at)
    }

    /// Writes a segment into all its places.
    pub(super) fn put(&mut self, first: usize, segment: Segment) {
        let places = self.places_of(&segment);
        debug_assert_eq!(first % places, 0);
        self.segments[first..first + places].fill(segment);
    }

    fn double(&mut self) {
        let places = self.segments.iter().flat_map(|&segment| [segment, segment]);
        self.segments = places.collect();
        self.depth += 1;
        self.at_full_depth = 0;
    }

    fn halve_while_possible(&mut self) {
        while self.at_full_depth == 0 && self.depth > 0 {
            // Of each pair of places the first has the correct number of entries.
            self.segments = self.segments.iter().copied().step_by(2).collect();
            self.depth -= 1;
            let at_full_depth = |segment: &&Segment| segment.depth() == self.depth;
            self.at_full_depth = self.segments.iter().filter(at_full_depth).count();
        }
    }

    /// Returns the slots in use of adjacent segments, in ascending order. The caller puts the vector back into
    /// `scratch`.
    fn gather(&mut self, arena: &Arena, segments: &[Segment]) -> Vec<Slot> {
        let mut slots = std::mem::take(&mut self.scratch);
        slots.clear();
        for segment in segments {
            // SAFETY: a segment of this directory.
            let all = unsafe { segment.slots(arena) };
            slots.extend(all.iter().filter(|slot| !slot.is_empty()));
        }
        debug_assert!(slots.is_sorted_by_key(|slot| slot.hash()));
        debug_assert_eq!(slots.len(), segments.iter().map(Segment::len).sum::<usize>());
        slots
    }
}

/// Returns the index of the first slot whose hash has the bit after the first `depth` set.
fn first_of_upper_half(slots: &[Slot], depth: u32) -> usize {
    let bit = 1 << (HashBits::BITS - 1 - depth);
    slots.partition_point(|slot| slot.hash() & bit == 0)
}

/// Returns a capacity of at least `capacity` with which a segment has room for these slots.
fn fitting_capacity(slots: &[Slot], depth: u32, capacity: usize) -> usize {
    let mut capacity = round_capacity(capacity);
    // Hashes whose homes are close to each other and to the end of the segment need more slots for overflow. The
    // number of these slots grows with the capacity, so the loop ends.
    while !fits(slots, depth, capacity) {
        capacity *= 2;
    }
    capacity
}

/// Builds a segment of at least this capacity that holds these slots, and keeps `reserved` others free.
fn build(
    arena: &mut Arena,
    slots: &[Slot],
    reserved: usize,
    depth: u32,
    capacity: usize,
) -> Result<Segment, OutOfMemory> {
    let capacity = fitting_capacity(slots, depth, capacity);
    let bytes = capacity * size_of::<Slot>();
    Segment::build(arena, slots, reserved, depth, capacity).ok_or(OutOfMemory { bytes })
}
