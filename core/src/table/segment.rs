//! One segment of a table: the slots of all entries whose hashes begin with the same bits.
//!
//! A slot is 64 bits: the upper half of the entry's hash, then the entry's handle; zero is an empty slot. The slots of
//! a segment are in ascending order of hash, with gaps:
//!
//! ```text
//!   hash bits     | depth bits: the segment's own | home: position in the segment | rest |
//!   slots         . 17 18 . . 31 35 36 . 52 . . 70 71 71 80 . . . 98 | room for overflow
//! ```
//!
//! Each hash has a home, a position that increases with the hash. A slot is at its home or after it, with no empty
//! slot in between. So a look-up starts at the home and ends at the first slot that is empty or has a greater hash,
//! on average after a few slots (linear probing in Robin Hood order: Celis, 1986). In a long run, it skips the
//! lower hashes.
//!
//! If there is no empty slot at or after the place of a new hash, a larger segment is needed. If there is no memory
//! for a larger segment, the segment is packed: its slots move together to its start, and its start is the home of
//! every hash. Look-ups in a packed segment are slow, but an insertion only needs an empty slot anywhere. The next
//! write that gets memory unpacks the segment.
//!
//! A segment has an empty slot for each staged entry that belongs there (`reserved`).
//!
//! The order simplifies the rest. A walk is a scan that can stop and continue at any hash whatever happened
//! in between, and a split cuts the slots in two. None of this reads the entries themselves, because a slot
//! holds all bits of the hash that are ever used.

use crate::arena::{Arena, Handle};
use crate::prefetch::prefetch;

/// The number of slots above which a segment is split instead of enlarged, if a split helps.
pub(super) const CAPACITY_MAX: usize = 4096;
/// The minimum capacity of a segment, and the capacity of a table's first segment.
pub(super) const CAPACITY_MIN: usize = 16;
/// The granularity of capacities above this value: 4 KiB of slots.
const CAPACITY_STEP: usize = 512;
/// The share of slots in use, in eighths, at which a segment must grow.
const LOAD_MAX_EIGHTHS: usize = 7;
/// The share of a segment's slots (as a divisor) that is reserved for overflow at its end. No hash has its home in
/// this part.
const OVERFLOW_DIVISOR: usize = 32;
/// The maximum number of staged entries of one segment. The pending log allows fewer writes.
const RESERVED_MAX: u16 = u16::MAX;
/// The value of `ignored` in a packed segment: no bit of a hash determines its home.
const PACKED: u8 = 32;

/// The 32 bits of a hash that the table uses.
pub(super) type HashBits = u32;

/// The slot of an entry in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Slot(u64);

impl Slot {
    pub(super) const EMPTY: Slot = Slot(0);

    pub(super) fn new(hash: HashBits, handle: Handle) -> Slot {
        Slot((u64::from(hash) << 32) | u64::from(handle.to_bits()))
    }

    #[inline]
    pub(super) fn hash(self) -> HashBits {
        (self.0 >> 32) as u32
    }

    /// Returns the entry's handle, or `None` for an empty slot.
    #[inline]
    pub(super) fn handle(self) -> Option<Handle> {
        Handle::from_bits((self.0 & 0xFFFF_FFFF) as u32)
    }

    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The location and number of a segment's slots. The owner of this value decides when they are freed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    slots: Handle,
    capacity: u32,
    /// The number of slots in use.
    len: u32,
    /// The number of empty slots that are kept for staged entries.
    reserved: u16,
    /// The number of leading bits that all hashes of the segment have in common.
    depth: u8,
    /// The number of leading bits that do not determine a hash's home: `depth`, or [`PACKED`].
    ignored: u8,
}

// The directory has one or more copies of each segment's description, so the description must stay small.
const _: () = assert!(size_of::<Segment>() == 16);

/// The result of a look-up by hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The slot at this place matches.
    At(usize),
    /// No slot matches; a new one would be inserted here.
    BelongsAt(usize),
}

/// Returns a capacity for `len` entries with room to grow by more than a tenth.
pub(super) fn capacity_for(len: usize) -> usize {
    round_capacity((len * 9).div_ceil(LOAD_MAX_EIGHTHS))
}

/// Returns the smallest valid capacity of at least `wanted`.
pub(super) fn round_capacity(wanted: usize) -> usize {
    if wanted <= CAPACITY_STEP {
        wanted.max(CAPACITY_MIN).next_power_of_two()
    } else {
        wanted.next_multiple_of(CAPACITY_STEP)
    }
}

/// Returns the place where the search for a hash begins. The first `ignored` bits of the hash (at most 32) have no
/// influence on it.
#[inline]
fn home(hash: HashBits, ignored: u32, capacity: usize) -> usize {
    let homes = capacity - capacity / OVERFLOW_DIVISOR;
    // The shift is done in 64 bits, because a shift of a 32-bit number by 32 would overflow.
    let rest = (u64::from(hash) << ignored) & 0xFFFF_FFFF;
    ((rest * homes as u64) >> 32) as usize
}

/// Returns whether a segment of this capacity has a place for each of these slots, which are in ascending order.
pub(super) fn fits(slots: &[Slot], depth: u32, capacity: usize) -> bool {
    let next = slots.iter().fold(0, |next, slot| home(slot.hash(), depth, capacity).max(next) + 1);
    next <= capacity
}

/// The number of slots that a look-up reads one after the other. In a longer run it skips slots.
const RUN_USUAL: usize = 16;

/// Returns the last place at or after `place` whose slot has a lower hash; `place` itself if there is none. `place` is
/// at or after the home of the hash.
///
/// If a slot after the home has a lower hash, no slot between them is empty: the home of the lower hash is not after
/// this home. So the lower hashes are contiguous, and can be skipped in growing and then in shrinking steps.
#[cold]
fn skip_lower(slots: &[Slot], mut place: usize, hash: HashBits) -> usize {
    let is_lower =
        |place: usize| slots.get(place).is_some_and(|slot| !slot.is_empty() && slot.hash() < hash);
    let mut step = 1;
    while is_lower(place + step) {
        place += step;
        step *= 2;
    }
    while step > 0 {
        if is_lower(place + step) {
            place += step;
        }
        step /= 2;
    }
    place
}

impl Segment {
    /// Builds a segment with these slots, and keeps `reserved` others free. The slots must be in ascending order, and
    /// [`fits`] must return true for them. Returns `None` if there is no memory.
    pub(super) fn build(
        arena: &mut Arena,
        slots: &[Slot],
        reserved: usize,
        depth: u32,
        capacity: usize,
    ) -> Option<Segment> {
        debug_assert!(fits(slots, depth, capacity) && slots.len() + reserved <= capacity);
        let bits = u8::try_from(depth).expect("a hash has 32 bits");
        let handle = arena.allocate(capacity * size_of::<Slot>())?;
        let segment = Segment {
            slots: handle,
            capacity: u32::try_from(capacity).expect("a segment has few slots"),
            len: u32::try_from(slots.len()).expect("a segment has few slots"),
            reserved: u16::try_from(reserved).expect("the sum for one segment was bounded"),
            depth: bits,
            ignored: bits,
        };
        let at = arena.address(handle).cast::<Slot>();
        // SAFETY: nothing else uses the fresh allocation, which is aligned and has `capacity` slots; all-zero
        // bytes are empty slots.
        let places = unsafe {
            at.write_bytes(0, capacity);
            std::slice::from_raw_parts_mut(at, capacity)
        };
        let mut next = 0;
        for &slot in slots {
            let place = home(slot.hash(), depth, capacity).max(next);
            places[place] = slot;
            next = place + 1;
        }
        Some(segment)
    }

    /// # Safety
    ///
    /// The segment was built in this arena, was not freed, and no copy of it is used any more.
    pub(super) unsafe fn free(self, arena: &mut Arena) {
        // SAFETY: guaranteed by the caller; the size is the one that `build` requested.
        unsafe { arena.free(self.slots, self.capacity() * size_of::<Slot>()) };
    }

    /// Moves the slots to a chunk that is not being emptied. Returns the new segment and the size of the slots, or
    /// `None` without any change if there is no room for them.
    ///
    /// # Safety
    ///
    /// The requirements of [`free`](Segment::free) hold once there is a new segment.
    pub(super) unsafe fn relocate(self, arena: &mut Arena) -> Option<(Segment, usize)> {
        let bytes = self.capacity() * size_of::<Slot>();
        // SAFETY: guaranteed by the caller; `build` requested this many bytes and wrote all of them.
        let slots = unsafe { arena.relocate(self.slots, bytes, bytes) }?;
        Some((Segment { slots, ..self }, bytes))
    }

    /// Returns whether the slots of this segment are in a chunk that is being emptied.
    pub(super) fn is_leaving(&self, arena: &Arena) -> bool {
        arena.is_leaving(self.slots)
    }

    /// # Safety
    ///
    /// The segment was built in this arena and not freed.
    #[inline]
    pub(super) unsafe fn slots<'a>(&self, arena: &'a Arena) -> &'a [Slot] {
        let at = arena.address(self.slots).cast::<Slot>();
        // SAFETY: `build` initialised this many slots there; changing them needs the arena
        // exclusively.
        unsafe { std::slice::from_raw_parts(at, self.capacity()) }
    }

    /// # Safety
    ///
    /// The segment was built in this arena and not freed.
    pub(super) unsafe fn slots_mut<'a>(&self, arena: &'a mut Arena) -> &'a mut [Slot] {
        let at = arena.address(self.slots).cast::<Slot>();
        // SAFETY: `build` initialised this many slots there, and the arena is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(at, self.capacity()) }
    }

    /// Prefetches the memory of a hash's home. The segment need not be live, because the address is only used for
    /// the prefetch.
    #[inline]
    pub(super) fn prefetch(&self, arena: &Arena, hash: HashBits) {
        let home = self.home(hash) * size_of::<Slot>();
        prefetch(arena.address(self.slots).wrapping_add(home));
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity as usize
    }

    pub(super) fn len(&self) -> usize {
        self.len as usize
    }

    pub(super) fn depth(&self) -> u32 {
        u32::from(self.depth)
    }

    /// Returns the number of slots kept free for staged entries.
    pub(super) fn reserved(&self) -> usize {
        usize::from(self.reserved)
    }

    /// Returns the number of slots in use or reserved, which never exceeds the capacity.
    pub(super) fn taken(&self) -> usize {
        self.len() + self.reserved()
    }

    /// Returns whether another entry needs a larger segment, because too many slots are taken.
    pub(super) fn is_full(&self) -> bool {
        self.taken() * 8 >= self.capacity() * LOAD_MAX_EIGHTHS
    }

    /// Returns whether a smaller segment suffices, because few slots are taken.
    pub(super) fn is_sparse(&self) -> bool {
        self.capacity() > CAPACITY_MIN && self.taken() * 4 < self.capacity()
    }

    /// Returns whether no more entries of this segment can be staged.
    pub(super) fn is_reserved_to_the_limit(&self) -> bool {
        self.reserved == RESERVED_MAX
    }

    /// Keeps a slot free for a staged entry. The segment must have an empty slot that is not reserved.
    pub(super) fn reserve(&mut self) {
        debug_assert!(self.taken() < self.capacity());
        self.reserved += 1;
    }

    /// Ends the reservation of a slot.
    pub(super) fn release(&mut self) {
        self.reserved -= 1;
    }

    pub(super) fn is_packed(&self) -> bool {
        self.ignored == PACKED
    }

    /// Moves the slots in use to the start of the segment. Afterwards an insertion succeeds if any slot is empty.
    pub(super) fn pack(&mut self, slots: &mut [Slot]) {
        let mut next = 0;
        for at in 0..slots.len() {
            if !slots[at].is_empty() {
                slots.swap(at, next);
                next += 1;
            }
        }
        self.ignored = PACKED;
    }

    #[inline]
    pub(super) fn home(&self, hash: HashBits) -> usize {
        home(hash, u32::from(self.ignored), self.capacity())
    }

    /// Returns the entry with this hash that `is_it` accepts. It reads even a long run slot by slot, because a check of
    /// its length would slow down every read.
    #[inline]
    pub(super) fn get(
        &self,
        slots: &[Slot],
        hash: HashBits,
        mut is_it: impl FnMut(Handle) -> bool,
    ) -> Option<Handle> {
        let mut place = self.home(hash);
        while let Some(&slot) = slots.get(place) {
            let handle = slot.handle()?;
            if slot.hash() > hash {
                return None;
            }
            if slot.hash() == hash && is_it(handle) {
                return Some(handle);
            }
            place += 1;
        }
        None
    }

    /// Finds the slot with this hash whose entry `is_it` accepts, or the place where a new slot belongs.
    #[inline]
    pub(super) fn find(
        &self,
        slots: &[Slot],
        hash: HashBits,
        mut is_it: impl FnMut(Handle) -> bool,
    ) -> Found {
        let mut place = self.home(hash);
        let long = place + RUN_USUAL;
        while let Some(&slot) = slots.get(place) {
            let Some(handle) = slot.handle() else { break };
            if slot.hash() > hash {
                break;
            }
            if slot.hash() == hash && is_it(handle) {
                return Found::At(place);
            }
            place = if place == long { skip_lower(slots, place, hash) } else { place } + 1;
        }
        Found::BelongsAt(place)
    }

    /// Inserts a slot at the place that a look-up returned. Returns `false` without any change if there is no empty
    /// slot at or after that place.
    #[must_use]
    pub(super) fn insert(&mut self, slots: &mut [Slot], place: usize, slot: Slot) -> bool {
        let Some(distance) = slots[place..].iter().position(|slot| slot.is_empty()) else {
            return false;
        };
        slots.copy_within(place..place + distance, place + 1);
        slots[place] = slot;
        self.len += 1;
        true
    }

    /// Empties a place, and moves the following slots that are past their home back by one.
    pub(super) fn remove(&mut self, slots: &mut [Slot], place: usize) -> Slot {
        let removed = slots[place];
        debug_assert!(!removed.is_empty());
        let stays = |(at, slot): (usize, &Slot)| slot.is_empty() || self.home(slot.hash()) > at;
        let end = (slots[place + 1..].iter().enumerate())
            .position(|(offset, slot)| stays((place + offset, slot)))
            .map_or(slots.len(), |offset| place + 1 + offset);
        slots.copy_within(place + 1..end, place);
        slots[end - 1] = Slot::EMPTY;
        self.len -= 1;
        removed
    }
}
