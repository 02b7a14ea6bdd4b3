//! Deadlines: finds the entries that have expired, in bounded steps.
//!
//! ```text
//!   link ─┬─> far wheel   9 levels of 64 slots; a slot of the lowest level covers 1,024 ms
//!         │      │           cascade: entry by entry, from 1,024 ms before the slot begins
//!         ├─> near ring   2,048 slots of 1 ms
//!         │      │           splice: a whole slot at once, when its millisecond has come
//!         └─> due list    visited by Table::for_due
//! ```
//!
//! This is a hierarchical timing wheel (Varghese and Lauck: Hashed and Hierarchical Timing Wheels, SOSP 1987). Each
//! slot is a circular doubly linked list through the trailers of its entries. So an entry is in exactly one list, and
//! leaves it in constant time when it is overwritten or removed. The wheel itself has a fixed size, allocated for the
//! first entry with a deadline.
//!
//! - A slot of the ring is one millisecond, so deadlines are exact. A coarser ring would need a check of every entry of
//!   a slot, or would report entries late.
//! - Because the ring covers two slots of the far wheel, a far slot is cascaded while the previous one is in use. A
//!   deadline at most a second ahead needs no cascade, one of a minute needs one, one of an hour two.
//! - Every entry of a far slot lies after every entry of a lower level, so the next occupied slot is found in the
//!   occupancy bits of one level. Empty slots cost nothing, even if the time jumps by years.
//!
//! # Wall clocks that are set
//!
//! The wheel has its own time, which never goes back: wall time plus an offset. If the wall clock goes back, the offset
//! grows by the same amount. An entry that was linked before then reaches the due list too early. It is never reported
//! early, because [`Table::for_due`] compares deadlines with the wall clock and links such an entry again. So a step of
//! the clock costs at most one more move for each entry, and at the time at which the entry moves anyway.

use std::fmt;

use kv_protocol::ids::WallTime;

use super::entry::{self, Entry, Trailer};
use super::{Handle, Table};
use crate::arena::Arena;

/// The number of slots of the near ring: two units.
const NEAR_SLOTS: usize = 2 << UNIT_BITS;
const NEAR_WORDS: usize = NEAR_SLOTS / 64;
/// The number of low bits of a wheel time within a unit, the span of a slot of the lowest level of the far wheel.
const UNIT_BITS: u32 = 10;
/// The number of bits of a unit's number that choose the slot of a level.
const LEVEL_BITS: u32 = 6;
const LEVEL_SLOTS: usize = 1 << LEVEL_BITS;
/// The levels of the far wheel cover all 64 bits of wheel time.
const LEVELS: usize = (u64::BITS - UNIT_BITS).div_ceil(LEVEL_BITS) as usize;

/// The number of the due list, after the numbers of the ring's slots and the far slots.
const DUE: usize = NEAR_SLOTS + LEVELS * LEVEL_SLOTS;
const LISTS: usize = DUE + 1;
const _: () = assert!(LISTS <= 1 << 16, "a trailer has 16 bits for the number of a slot");
const _: () = assert!(NEAR_WORDS == u32::BITS as usize && LEVELS <= u16::BITS as usize);

/// A point in the time of a wheel, in milliseconds. It never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct WheelTime(u64);

impl WheelTime {
    fn unit(self) -> Unit {
        Unit(self.0 >> UNIT_BITS)
    }

    fn next(self) -> WheelTime {
        WheelTime(self.0 + 1)
    }

    fn near_slot(self) -> usize {
        low_bits(self.0, NEAR_SLOTS)
    }
}

/// A span of 1,024 ms of wheel time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Unit(u64);

impl Unit {
    fn start(self) -> WheelTime {
        WheelTime(self.0 << UNIT_BITS)
    }

    fn next(self) -> Unit {
        Unit(self.0 + 1)
    }

    /// Returns the number of the far slot for this unit, given an earlier unit as the position of the far wheel.
    fn far_slot(self, position: Unit) -> usize {
        let level = (self.0 ^ position.0).ilog2() / LEVEL_BITS;
        let digit = low_bits(self.0 >> (level * LEVEL_BITS), LEVEL_SLOTS);
        NEAR_SLOTS + level as usize * LEVEL_SLOTS + digit
    }
}

/// Returns a number modulo a power of two.
fn low_bits(number: u64, modulus: usize) -> usize {
    usize::try_from(number & (modulus as u64 - 1)).expect("it is less than the modulus")
}

/// The lists, and the occupancy of the slots.
struct Slots {
    /// The first entry of each list, by number.
    heads: [Option<Handle>; LISTS],
    /// A bit for each slot of the ring, and a bit for each of these words that is not zero.
    near: [u64; NEAR_WORDS],
    near_words: u32,
    /// A bit for each slot of each level, and a bit for each level that has an entry.
    far: [u64; LEVELS],
    far_levels: u16,
}

/// The entries of a table that have a deadline. Every method that takes an arena must get the arena of this table, in
/// which every linked entry is live. Every handle that a method takes must be that of an entry with a deadline. The
/// `SAFETY` comments in this file rely on both.
#[derive(Default)]
pub(super) struct Deadlines {
    /// `None` before the first entry with a deadline.
    slots: Option<Box<Slots>>,
    len: usize,
    /// The last known time.
    now: WheelTime,
    /// The wheel time minus the wall time, in milliseconds. It is zero until the wall clock goes back.
    offset: u64,
    /// The first time whose slot of the ring was not spliced into the due list, at most the time after `now`.
    near: WheelTime,
    /// The last unit whose entries belong into the ring, at most the unit after that of `near`. Entries of later units
    /// are in the far wheel.
    far: Unit,
    /// The far slot that is being cascaded: the one that begins with the unit `far`.
    draining: Option<usize>,
    /// The number of entries cascaded and of slots spliced.
    #[cfg(test)]
    pub(super) moves: usize,
}

/// The next move of the wheel.
enum Move {
    /// The slot of the ring for this time is due.
    Splice(WheelTime),
    /// The first entry of a far slot belongs into a lower level or the ring.
    Cascade(usize),
    /// There is nothing to move yet.
    Rest,
}

/// Deadlines of entries.
impl Table {
    /// Returns the number of entries with a deadline, without the staged ones.
    pub fn expiring_len(&self) -> usize {
        self.deadlines.len
    }

    /// Advances the search for due entries to this time, with at most `budget` moves, and returns whether moves are
    /// left. A move changes the lists of one entry, or those of all entries with one deadline at once.
    ///
    /// Call this regularly, also while no entry has a deadline: entries are linked relative to the time of the last
    /// call. If calls are late, entries are reported late, and nothing else changes.
    pub fn advance_deadlines(&mut self, now: WallTime, budget: usize) -> bool {
        self.deadlines.advance(&mut self.arena, now, budget)
    }

    /// Examines at most `max` entries that may be due, and visits those whose deadline is at most `now`. Returns whether
    /// there are entries that this call has not examined.
    ///
    /// After [`advance_deadlines`](Table::advance_deadlines) has returned `false` for the same time, the calls visit
    /// every entry whose deadline is at most `now`. An entry is visited again by later calls until it is removed or
    /// overwritten, but only after all others that were due.
    pub fn for_due(&mut self, now: WallTime, max: usize, mut visit: impl FnMut(Entry<'_>)) -> bool {
        self.deadlines.for_due(&mut self.arena, now, max, |arena, handle| {
            // SAFETY: the handle of a linked entry, whose value was complete when it was linked.
            visit(unsafe { entry::read(arena, handle) });
        })
    }

    /// Visits at most `max` entries with a deadline: those that are due first, then by ascending deadline, exactly up to
    /// one to two seconds ahead. Later deadlines are only ordered by the slot of the far wheel; within one, each call
    /// begins with the entries that the previous call did not visit.
    pub fn nearest_deadlines(&mut self, max: usize, mut visit: impl FnMut(Entry<'_>)) {
        self.deadlines.nearest(&self.arena, max, |arena, handle| {
            // SAFETY: the handle of a linked entry, whose value was complete when it was linked.
            visit(unsafe { entry::read(arena, handle) });
        });
    }

    /// Returns the time from which on [`advance_deadlines`](Table::advance_deadlines) has moves to do or
    /// [`for_due`](Table::for_due) entries to examine: a time that has passed if that is so now, and `None` if no
    /// entry has a deadline.
    pub fn next_deadline_work(&self) -> Option<WallTime> {
        self.deadlines.next_work()
    }
}

impl Deadlines {
    /// Allocates the slots, so that entries with a deadline can be linked.
    pub(super) fn reserve(&mut self) {
        self.slots.get_or_insert_with(Slots::new);
    }

    /// Inserts an entry that was just linked into the directory.
    pub(super) fn link(&mut self, arena: &mut Arena, handle: Handle) {
        self.len += 1;
        let list = self.list_for(trailer(arena, handle).deadline());
        self.slots_mut().append(arena, list, handle);
    }

    /// Removes an entry that was just unlinked from the directory.
    pub(super) fn unlink(&mut self, arena: &mut Arena, handle: Handle) {
        self.len -= 1;
        self.slots_mut().detach(arena, handle);
    }

    /// Updates the list of an entry that has moved in memory, together with its trailer.
    pub(super) fn follow(&mut self, arena: &mut Arena, handle: Handle, moved: Handle) {
        let Trailer { prev, next, .. } = trailer(arena, moved);
        // In a list of one entry, both neighbours are the entry itself.
        let neighbour = |linked: Handle| if linked == handle { moved } else { linked };
        let [prev, next] = [prev, next].map(|linked| neighbour(linked.expect("it is in a list")));
        trailer_mut(arena, prev).next = Some(moved);
        trailer_mut(arena, next).prev = Some(moved);
        let slots = self.slots_mut();
        if let Some(list) = slots.headed_by(handle, trailer(arena, moved)) {
            slots.heads[list] = Some(moved);
        }
    }

    /// Drops all lists.
    pub(super) fn clear(&mut self) {
        (self.slots, self.len, self.draining) = (None, 0, None);
    }

    pub(super) fn heap_bytes(&self) -> usize {
        if self.slots.is_some() { size_of::<Slots>() } else { 0 }
    }

    /// Returns the number of bytes that [`reserve`](Deadlines::reserve) would allocate.
    pub(super) fn fresh_bytes(&self) -> usize {
        size_of::<Slots>() - self.heap_bytes()
    }

    fn advance(&mut self, arena: &mut Arena, now: WallTime, budget: usize) -> bool {
        self.observe(now);
        if self.len == 0 {
            return false;
        }
        let mut left = budget;
        loop {
            let next = self.next_move();
            if matches!(next, Move::Rest) {
                return false;
            }
            if left == 0 {
                return true;
            }
            left -= 1;
            #[cfg(test)]
            (self.moves += 1);
            match next {
                Move::Splice(at) => {
                    self.slots_mut().splice(arena, at.near_slot());
                    self.near = at.next();
                }
                Move::Cascade(slot) => {
                    let head =
                        self.slots_mut().heads[slot].expect("a slot that is cascaded has entries");
                    self.link_again(arena, head);
                }
                Move::Rest => {}
            }
        }
    }

    fn for_due(
        &mut self,
        arena: &mut Arena,
        now: WallTime,
        max: usize,
        mut visit: impl FnMut(&Arena, Handle),
    ) -> bool {
        self.observe(now);
        let mut first = None;
        for _ in 0..max {
            let Some(head) = self.due().filter(|&head| first != Some(head)) else { return false };
            let Trailer { next, .. } = trailer(arena, head);
            if trailer(arena, head).deadline() > now {
                self.link_again(arena, head);
            } else {
                visit(arena, head);
                first = first.or(Some(head));
                self.slots_mut().heads[DUE] = next;
            }
        }
        self.due().is_some_and(|head| first != Some(head))
    }

    fn nearest(&mut self, arena: &Arena, max: usize, mut visit: impl FnMut(&Arena, Handle)) {
        let near = self.near;
        let Some(slots) = self.slots.as_deref_mut() else { return };
        let mut left = max;
        slots.visit_list(arena, DUE, &mut left, &mut visit);
        let mut next = near;
        while let Some(at) = slots.first_near(next)
            && at.0 - near.0 < NEAR_SLOTS as u64
            && left > 0
        {
            slots.visit_list(arena, at.near_slot(), &mut left, &mut visit);
            next = at.next();
        }
        for level in 0..LEVELS {
            let mut occupied = slots.far[level];
            while occupied != 0 && left > 0 {
                let digit = occupied.trailing_zeros() as usize;
                occupied &= occupied - 1;
                let list = NEAR_SLOTS + level * LEVEL_SLOTS + digit;
                slots.visit_list(arena, list, &mut left, &mut visit);
            }
        }
    }

    fn next_work(&self) -> Option<WallTime> {
        let slots = self.slots.as_deref().filter(|_| self.len > 0)?;
        let is_draining = self.draining.is_some_and(|slot| slots.heads[slot].is_some());
        let at = if is_draining || self.due().is_some() {
            self.now
        } else {
            let near = slots.first_near(self.near);
            let far = slots.first_far(self.far).map(|(_, unit)| Unit(unit.0 - 1).start());
            near.into_iter().chain(far).min()?
        };
        Some(WallTime::from_millis(at.0.saturating_sub(self.offset)))
    }

    fn due(&self) -> Option<Handle> {
        self.slots.as_deref()?.heads[DUE]
    }

    fn slots_mut(&mut self) -> &mut Slots {
        self.slots.as_deref_mut().expect("the slots were reserved when the entry was created")
    }

    /// Records the time.
    fn observe(&mut self, now: WallTime) {
        if self.len == 0 {
            // No entry depends on the offset and the positions.
            self.now = WheelTime(now.millis());
            self.near = self.now.next();
            self.far = self.now.unit().next();
            (self.offset, self.draining) = (0, None);
            return;
        }
        let now = WheelTime(now.millis() + self.offset);
        // A wall clock that has gone back adds to the offset. So the wheel time stays where it is.
        self.offset += self.now.0.saturating_sub(now.0);
        self.now = self.now.max(now);
    }

    /// Returns the number of the list for an entry with this deadline.
    fn list_for(&self, deadline: WallTime) -> usize {
        let at = WheelTime(deadline.millis() + self.offset);
        if at < self.near {
            DUE
        } else if at.unit() <= self.far {
            at.near_slot()
        } else {
            at.unit().far_slot(self.far)
        }
    }

    /// Moves an entry to the list where it now belongs.
    fn link_again(&mut self, arena: &mut Arena, handle: Handle) {
        let list = self.list_for(trailer(arena, handle).deadline());
        let slots = self.slots_mut();
        slots.detach(arena, handle);
        slots.append(arena, list, handle);
    }

    /// Returns the next move, and advances the positions over slots that are empty.
    ///
    /// The ring comes first. It is complete up to the unit that is being cascaded, because entries of that unit may
    /// still be in the far wheel.
    fn next_move(&mut self) -> Move {
        let Some(slots) = self.slots.as_deref() else { return Move::Rest };
        self.draining = self.draining.filter(|&slot| slots.heads[slot].is_some());
        let complete = if self.draining.is_some() { self.far } else { self.far.next() };
        let near_end = self.now.next().min(complete.start());
        match slots.first_near(self.near) {
            Some(at) if at < near_end => return Move::Splice(at),
            _ => self.near = near_end,
        }
        if let Some(slot) = self.draining {
            return Move::Cascade(slot);
        }
        let far_end = self.now.unit().next();
        match slots.first_far(self.far) {
            Some((slot, unit)) if unit <= far_end => {
                // The ring is empty, or `near` has reached the present. So `near` may follow.
                self.near = self.near.max(self.now.next().min(unit.start()));
                self.far = unit;
                self.draining = Some(slot);
                Move::Cascade(slot)
            }
            _ => {
                self.near = self.now.next();
                self.far = far_end;
                Move::Rest
            }
        }
    }
}

impl Slots {
    fn new() -> Box<Slots> {
        Box::new(Slots {
            heads: [None; LISTS],
            near: [0; NEAR_WORDS],
            near_words: 0,
            far: [0; LEVELS],
            far_levels: 0,
        })
    }

    /// Appends an entry to a list.
    fn append(&mut self, arena: &mut Arena, list: usize, handle: Handle) {
        let (prev, next) = match self.heads[list] {
            Some(head) => {
                let tail = trailer_mut(arena, head).prev.replace(handle).expect("it is in a list");
                trailer_mut(arena, tail).next = Some(handle);
                (tail, head)
            }
            None => {
                self.heads[list] = Some(handle);
                self.note_occupied(list);
                (handle, handle)
            }
        };
        let own = trailer_mut(arena, handle);
        (own.prev, own.next) = (Some(prev), Some(next));
        own.set_slot(u16::try_from(list).expect("the lists are numbered with 16 bits"));
    }

    /// Removes an entry from its list. Its own trailer keeps the old links.
    fn detach(&mut self, arena: &mut Arena, handle: Handle) {
        let own = trailer(arena, handle);
        let [prev, next] = [own.prev, own.next].map(|linked| linked.expect("it is in a list"));
        let is_last = next == handle;
        if let Some(list) = self.headed_by(handle, own) {
            self.heads[list] = if is_last { None } else { Some(next) };
            if is_last {
                self.note_vacant(list);
            }
        }
        if !is_last {
            trailer_mut(arena, prev).next = Some(next);
            trailer_mut(arena, next).prev = Some(prev);
        }
    }

    /// Returns the list whose first entry this is. An entry of the due list has the number of the slot from which it was
    /// spliced, and that slot may have other entries by now.
    fn headed_by(&self, handle: Handle, trailer: Trailer) -> Option<usize> {
        let lists = [usize::from(trailer.slot()), DUE];
        lists.into_iter().find(|&list| self.heads[list] == Some(handle))
    }

    /// Visits the entries of a list, at most `left`, which it decreases. The list then begins with the next entry.
    fn visit_list(
        &mut self,
        arena: &Arena,
        list: usize,
        left: &mut usize,
        visit: &mut impl FnMut(&Arena, Handle),
    ) {
        let Some(head) = self.heads[list] else { return };
        let mut at = head;
        while *left > 0 {
            *left -= 1;
            visit(arena, at);
            at = trailer(arena, at).next.expect("it is in a list");
            if at == head {
                break;
            }
        }
        self.heads[list] = Some(at);
    }

    /// Moves all entries of an occupied slot of the ring to the end of the due list.
    fn splice(&mut self, arena: &mut Arena, slot: usize) {
        let head = self.heads[slot].take().expect("a slot that is spliced has entries");
        self.note_vacant(slot);
        let Some(due_head) = self.heads[DUE] else {
            self.heads[DUE] = Some(head);
            return;
        };
        let due_tail = trailer_mut(arena, due_head).prev;
        let tail = std::mem::replace(&mut trailer_mut(arena, head).prev, due_tail);
        trailer_mut(arena, due_head).prev = tail;
        trailer_mut(arena, tail.expect("it is in a list")).next = Some(due_head);
        trailer_mut(arena, due_tail.expect("it is in a list")).next = Some(head);
    }

    fn note_occupied(&mut self, list: usize) {
        if list < NEAR_SLOTS {
            self.near[list / 64] |= 1 << (list % 64);
            self.near_words |= 1 << (list / 64);
        } else if list < DUE {
            let level = (list - NEAR_SLOTS) / LEVEL_SLOTS;
            self.far[level] |= 1 << (list % LEVEL_SLOTS);
            self.far_levels |= 1 << level;
        }
    }

    fn note_vacant(&mut self, list: usize) {
        if list < NEAR_SLOTS {
            self.near[list / 64] &= !(1 << (list % 64));
            if self.near[list / 64] == 0 {
                self.near_words &= !(1 << (list / 64));
            }
        } else if list < DUE {
            let level = (list - NEAR_SLOTS) / LEVEL_SLOTS;
            self.far[level] &= !(1 << (list % LEVEL_SLOTS));
            if self.far[level] == 0 {
                self.far_levels &= !(1 << level);
            }
        }
    }

    /// Returns the time of the first occupied slot of the ring, which begins at a time.
    fn first_near(&self, from: WheelTime) -> Option<WheelTime> {
        let start = from.near_slot();
        let here = self.near[start / 64] >> (start % 64);
        if here != 0 {
            return Some(WheelTime(from.0 + u64::from(here.trailing_zeros())));
        }
        // The next words follow. The word of `start` comes last, for its slots before `start`.
        let after = start / 64 + 1;
        let words = self.near_words.rotate_right(u32::try_from(after).expect("at most 32 words"));
        let word = (after + words.trailing_zeros() as usize) % NEAR_WORDS;
        let slot = word * 64 + self.near[word].trailing_zeros() as usize;
        let ahead = slot.wrapping_sub(start) % NEAR_SLOTS;
        (words != 0).then_some(WheelTime(from.0 + ahead as u64))
    }

    /// Returns the first occupied far slot after a position, and the unit at which it begins.
    fn first_far(&self, position: Unit) -> Option<(usize, Unit)> {
        let level = (self.far_levels != 0).then(|| self.far_levels.trailing_zeros())?;
        let digit = self.far[level as usize].trailing_zeros();
        let (low, high) = (level * LEVEL_BITS, (level + 1) * LEVEL_BITS);
        let unit = Unit((position.0 >> high << high) | (u64::from(digit) << low));
        Some((NEAR_SLOTS + level as usize * LEVEL_SLOTS + digit as usize, unit))
    }
}

fn trailer(arena: &Arena, handle: Handle) -> Trailer {
    // SAFETY: the handle of a live entry; see `Deadlines`.
    unsafe { entry::trailer(arena, handle) }.expect("the entry has a deadline")
}

fn trailer_mut(arena: &mut Arena, handle: Handle) -> &mut Trailer {
    // SAFETY: the handle of a live entry with a deadline; see `Deadlines`.
    unsafe { entry::trailer_mut(arena, handle) }
}

impl fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadlines")
            .field("len", &self.len)
            .field("now", &self.now)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
