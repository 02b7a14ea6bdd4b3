//! Evacuation of the sparsest chunks, so that they can be returned and serve allocations of any size.
//!
//! ```text
//!   begin     starts the survey
//!   prepare   survey: the load of each chunk, and the free room in all of them; in steps
//!             choice: the sparsest chunks first, as long as their content fits into the others and a few
//!                     chunks from the source; in steps. A chosen chunk takes no more allocations.
//!   relocate  the owner of the arena moves every allocation of a chosen chunk
//!   end       chunks that are not empty are opened again
//! ```
//!
//! Only the owner knows where handles are stored. So the owner calls [`Arena::relocate`] for each allocation for
//! which [`Arena::is_leaving`] returns true. Blocks have no unused memory, so they are not moved.

use super::chunk::Chunk;
use super::page_map::PAGES_PER_CHUNK;
use super::size_class::{CLASSES_MAX, class_units};
use super::slab::{NO_SLAB, Slab, SlabId};
use super::{Arena, Handle, UNIT_BYTES};

/// The maximum share of a chunk's bytes in use, in eighths, for which moving its content is worthwhile.
const LOAD_MAX_EIGHTHS: usize = 7;
/// The maximum number of chunks that are emptied together.
const CHOSEN_MAX: usize = 128;
/// The maximum number of chunks that are considered for one evacuation.
const CANDIDATES_MAX: usize = 2 * CHOSEN_MAX;
/// The minimum length, in pages, of a free run that moved allocations are expected to use.
const LONG_RUN_PAGES: usize = 64;
/// The share of such a run, in eighths, that moved allocations are expected to fill.
const FILLED_EIGHTHS: usize = 7;
/// The maximum number of chunks that moves are planned to take from the source, unless [`HELD_FOR_ONE_FRESH`] allows
/// more. Moves may take one chunk more than planned. Otherwise entries that find no room at the end would keep their
/// chunks.
const FRESH_MAX: usize = 2;
/// The number of held chunks for each chunk that moves may be planned to take from the source.
const HELD_FOR_ONE_FRESH: usize = 32;

/// The chunks that are being emptied, and the state of their choice.
#[derive(Debug)]
pub(super) struct Evacuation {
    stage: Stage,
    /// The number of bytes in use of each surveyed chunk, and the chunk's number.
    loads: Vec<(u32, u32)>,
    next: usize,
    room: Room,
    chosen: Vec<u32>,
    /// For each chunk number, true if that chunk is being emptied.
    leaving: Vec<bool>,
    /// The number of empty chunks that moves have begun to fill, and its maximum.
    fresh: usize,
    fresh_max: usize,
    emptied: usize,
    moved_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Survey,
    Choice,
    Moves,
}

/// The content of the chosen chunks, and the free room in the others.
#[derive(Clone, Debug)]
struct Room {
    /// The number of objects in use in chosen chunks, and of free objects in slabs of the others, for each class.
    objects: [u32; CLASSES_MAX],
    free_objects: [u32; CLASSES_MAX],
    /// The number of pages of page runs in chosen chunks, and of usable free pages of the others.
    run_pages: usize,
    usable_pages: usize,
}

/// The progress of [`Arena::prepare_evacuation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preparation {
    /// The preparation needs more steps.
    Unfinished,
    /// Chunks were chosen, and their allocations can be relocated.
    Ready,
    /// No choice of chunks gains memory.
    Futile,
}

/// The result of an evacuation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evacuated {
    /// The number of chunks that became empty.
    pub emptied: usize,
    /// The number of empty chunks that moves have begun to fill.
    pub fresh: usize,
    /// The total size of the moved allocations.
    pub moved_bytes: usize,
}

impl Room {
    /// Returns the number of pages that the content of the chosen chunks needs beyond the room in the others.
    fn shortfall_pages(&self, arena: &Arena) -> usize {
        let page_bytes = arena.sizes.page_bytes();
        let mut pages = self.run_pages;
        for class in 0..CLASSES_MAX {
            let without = self.objects[class].saturating_sub(self.free_objects[class]) as usize;
            if without > 0 {
                let bytes = without * class_units(class) * UNIT_BYTES;
                pages += bytes.div_ceil(page_bytes) + arena.sizes.slab_pages_min(class);
            }
        }
        pages.saturating_sub(self.usable_pages)
    }

    /// Counts a chunk as one that keeps its content, or counts such a chunk as chosen instead.
    fn add(&mut self, arena: &Arena, chunk: u32, is_chosen: bool) {
        let mut slab_pages = 0;
        arena.for_each_slab(chunk, |_, slab| {
            slab_pages += usize::from(slab.pages);
            let (class, free) = (usize::from(slab.class), slab.capacity - slab.live);
            if is_chosen {
                self.objects[class] += slab.live;
                self.free_objects[class] = self.free_objects[class].saturating_sub(free);
            } else {
                self.free_objects[class] += free;
            }
        });
        let usable = arena.usable_pages(chunk);
        if is_chosen {
            self.run_pages += PAGES_PER_CHUNK - arena.free_pages(chunk) - slab_pages;
            self.usable_pages = self.usable_pages.saturating_sub(usable);
        } else {
            self.usable_pages += usable;
        }
    }
}

/// Steps of an evacuation.
impl Arena {
    /// Returns the number of bytes in chunks that belong to no allocation.
    pub fn waste_bytes(&self) -> usize {
        let bytes_in_chunks = self.used_bytes - self.block_pages * self.sizes.page_bytes();
        self.paged_chunks * self.sizes.chunk_bytes() - bytes_in_chunks
    }

    /// Returns the total size of all allocations that the owner has ever freed. Moves do not count.
    pub fn freed_bytes(&self) -> u64 {
        self.freed_bytes
    }

    /// Returns the number of bytes that the current evacuation has moved.
    #[cfg(test)]
    pub fn moved_bytes(&self) -> usize {
        self.evacuation.as_ref().map_or(0, |evacuation| evacuation.moved_bytes)
    }

    /// Begins an evacuation. The previous one must have ended.
    pub fn begin_evacuation(&mut self) {
        debug_assert!(self.evacuation.is_none(), "the previous evacuation has not ended");
        let fresh_max = FRESH_MAX.max(self.paged_chunks / HELD_FOR_ONE_FRESH);
        self.evacuation = Some(Box::new(Evacuation {
            stage: Stage::Survey,
            loads: Vec::new(),
            next: 0,
            room: Room {
                objects: [0; CLASSES_MAX],
                free_objects: [0; CLASSES_MAX],
                run_pages: 0,
                usable_pages: 0,
            },
            chosen: Vec::new(),
            leaving: Vec::new(),
            fresh: 0,
            fresh_max,
            emptied: 0,
            moved_bytes: 0,
        }));
    }

    /// Runs one step of the survey or the choice, for at most `chunks_max` chunks. Each chunk costs about a
    /// microsecond. Returns [`Preparation::Futile`] if no evacuation has begun.
    pub fn prepare_evacuation(&mut self, chunks_max: usize) -> Preparation {
        let Some(mut evacuation) = self.evacuation.take() else { return Preparation::Futile };
        let preparation = match evacuation.stage {
            Stage::Survey => {
                self.survey(&mut evacuation, chunks_max);
                Preparation::Unfinished
            }
            Stage::Choice => self.choose(&mut evacuation, chunks_max),
            Stage::Moves => Preparation::Ready,
        };
        self.evacuation = Some(evacuation);
        preparation
    }

    fn survey(&self, evacuation: &mut Evacuation, chunks_max: usize) {
        let end = self.chunks.len().min(evacuation.next + chunks_max);
        for chunk in evacuation.next..end {
            if !matches!(self.chunks[chunk], Chunk::Paged(_)) {
                continue;
            }
            let chunk = super::small(chunk);
            evacuation.room.add(self, chunk, false);
            if self.spare != Some(chunk) {
                let load = self.load_bytes(chunk);
                if load * 8 <= LOAD_MAX_EIGHTHS * self.sizes.chunk_bytes() {
                    evacuation.loads.push((super::small(load), chunk));
                }
            }
        }
        evacuation.next = end;
        if end == self.chunks.len() {
            let loads = &mut evacuation.loads;
            if loads.len() > CANDIDATES_MAX {
                loads.select_nth_unstable(CANDIDATES_MAX);
                loads.truncate(CANDIDATES_MAX);
            }
            loads.sort_unstable();
            (evacuation.stage, evacuation.next) = (Stage::Choice, 0);
            evacuation.leaving = vec![false; self.chunks.len()];
        }
    }

    fn choose(&mut self, evacuation: &mut Evacuation, chunks_max: usize) -> Preparation {
        let room_in_fresh = |fresh: usize| fresh * filled(PAGES_PER_CHUNK);
        let end = evacuation.loads.len().min(evacuation.next + chunks_max);
        for at in evacuation.next..end {
            let (_, chunk) = evacuation.loads[at];
            // The chunk may have been returned between two steps, and its number reused.
            let is_candidate = matches!(&self.chunks[chunk as usize], Chunk::Paged(paged)
                if !paged.map.is_empty());
            if !is_candidate || self.spare == Some(chunk) {
                continue;
            }
            let before = evacuation.room.clone();
            evacuation.room.add(self, chunk, true);
            if evacuation.room.shortfall_pages(self) > room_in_fresh(evacuation.fresh_max) {
                evacuation.room = before;
                continue;
            }
            self.close_chunk(chunk);
            evacuation.leaving[chunk as usize] = true;
            evacuation.chosen.push(chunk);
            if evacuation.chosen.len() == CHOSEN_MAX {
                break;
            }
        }
        evacuation.next = end;
        if end < evacuation.loads.len() && evacuation.chosen.len() < CHOSEN_MAX {
            return Preparation::Unfinished;
        }
        let fresh = evacuation.room.shortfall_pages(self).div_ceil(room_in_fresh(1));
        // Moving the content of one chunk to a fresh one would free no memory.
        let chosen = evacuation.chosen.len();
        if chosen < fresh.max(1) || (chosen == 1 && fresh > 0) {
            return Preparation::Futile;
        }
        evacuation.fresh_max = chosen.min(fresh + 1);
        evacuation.stage = Stage::Moves;
        Preparation::Ready
    }

    /// Returns whether an allocation is in a chunk that is being emptied.
    #[inline]
    pub fn is_leaving(&self, handle: Handle) -> bool {
        self.is_chunk_leaving(handle.to_bits() >> self.place_bits)
    }

    #[inline]
    pub(super) fn is_chunk_leaving(&self, chunk: u32) -> bool {
        let evacuation = self.evacuation.as_ref();
        evacuation.is_some_and(|e| e.leaving.get(chunk as usize).copied().unwrap_or(false))
    }

    /// Moves an allocation of `bytes` to a chunk that is not being emptied. Only the first `written` bytes are
    /// copied. Returns `None` without any change if there is no room.
    ///
    /// # Safety
    ///
    /// The requirements of [`free`](Arena::free) hold, and the first `written` bytes, at most `bytes`, were written.
    pub unsafe fn relocate(
        &mut self,
        handle: Handle,
        bytes: usize,
        written: usize,
    ) -> Option<Handle> {
        debug_assert!(written <= bytes);
        let evacuation = self.evacuation.as_ref()?;
        if evacuation.fresh >= evacuation.fresh_max && self.fresh_bytes(bytes) > 0 {
            return None;
        }
        let occupied = self.occupied_chunks();
        let moved = self.allocate(bytes)?;
        let fresh = self.occupied_chunks() - occupied;
        // SAFETY: the old and the new allocation have at least `written` bytes and do not overlap. The caller
        // guarantees that these bytes of the old one were written.
        unsafe {
            self.address(moved).copy_from_nonoverlapping(self.address(handle), written);
        }
        let freed = self.freed_bytes;
        // SAFETY: guaranteed by the caller.
        unsafe { self.free(handle, bytes) };
        let taken = self.freed_bytes - freed;
        self.freed_bytes = freed;
        if let Some(evacuation) = &mut self.evacuation {
            evacuation.fresh += fresh;
            evacuation.moved_bytes += usize::try_from(taken).unwrap_or(usize::MAX);
        }
        Some(moved)
    }

    /// Ends the evacuation, if one is in progress. Chunks that still hold allocations are open for new ones again.
    pub fn end_evacuation(&mut self) -> Evacuated {
        let Some(evacuation) = self.evacuation.take() else { return Evacuated::default() };
        let Evacuation { chosen, leaving, fresh, emptied, moved_bytes, .. } = *evacuation;
        for chunk in chosen.into_iter().filter(|&chunk| leaving[chunk as usize]) {
            self.reopen_chunk(chunk);
        }
        Evacuated { emptied, fresh, moved_bytes }
    }

    /// Returns the number of chunks that the evacuation in progress has emptied.
    pub fn emptied_chunks(&self) -> usize {
        self.evacuation.as_ref().map_or(0, |evacuation| evacuation.emptied)
    }

    /// Records that a chunk has become empty. If it was being emptied, it counts as emptied.
    pub(super) fn note_emptied(&mut self, chunk: u32) {
        if let Some(evacuation) = &mut self.evacuation
            && let Some(leaving) = evacuation.leaving.get_mut(chunk as usize)
        {
            evacuation.emptied += usize::from(std::mem::replace(leaving, false));
        }
    }

    pub(super) fn evacuation_heap_bytes(&self) -> usize {
        self.evacuation.as_ref().map_or(0, |evacuation| {
            size_of::<Evacuation>()
                + evacuation.loads.capacity() * size_of::<(u32, u32)>()
                + evacuation.leaving.capacity()
                + evacuation.chosen.capacity() * size_of::<u32>()
        })
    }

    /// Excludes a chunk's slabs and pages from allocation.
    fn close_chunk(&mut self, chunk: u32) {
        for id in self.slabs_of(chunk) {
            if !self.slabs[id as usize].is_full() {
                self.unlink_slab(id);
            }
            self.slabs[id as usize].is_leaving = true;
        }
        self.runs.set(chunk as usize, 0);
    }

    fn reopen_chunk(&mut self, chunk: u32) {
        for id in self.slabs_of(chunk) {
            self.slabs[id as usize].is_leaving = false;
            if !self.slabs[id as usize].is_full() {
                self.link_slab(id);
            }
        }
        let longest = self.paged(chunk).map.longest_run();
        self.runs.set(chunk as usize, longest);
    }

    fn slabs_of(&self, chunk: u32) -> Vec<SlabId> {
        let mut ids = Vec::new();
        self.for_each_slab(chunk, |id, _| ids.push(id));
        ids
    }

    fn for_each_slab(&self, chunk: u32, mut visit: impl FnMut(SlabId, &Slab)) {
        let Chunk::Paged(paged) = &self.chunks[chunk as usize] else { return };
        let mut page = 0;
        while let Some(&id) = paged.slab_of_page.get(page) {
            page += 1;
            if id != NO_SLAB {
                let slab = &self.slabs[id as usize];
                page += usize::from(slab.pages) - 1;
                visit(id, slab);
            }
        }
    }

    fn occupied_chunks(&self) -> usize {
        self.paged_chunks - usize::from(self.spare.is_some())
    }

    fn free_pages(&self, chunk: u32) -> usize {
        match &self.chunks[chunk as usize] {
            Chunk::Paged(paged) => paged.map.free_pages(),
            _ => 0,
        }
    }

    /// Returns the number of free pages of a chunk that moved allocations can be expected to fill.
    fn usable_pages(&self, chunk: u32) -> usize {
        match &self.chunks[chunk as usize] {
            Chunk::Paged(paged) => match usize::from(paged.map.longest_run()) {
                LONG_RUN_PAGES.. => filled(paged.map.longest_run().into()),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Returns the number of bytes of a chunk that are in allocations.
    fn load_bytes(&self, chunk: u32) -> usize {
        let (mut bytes, mut slab_pages) = (0, 0);
        self.for_each_slab(chunk, |_, slab| {
            slab_pages += usize::from(slab.pages);
            bytes += slab.live as usize * class_units(usize::from(slab.class)) * UNIT_BYTES;
        });
        let run_pages = PAGES_PER_CHUNK - self.free_pages(chunk) - slab_pages;
        bytes + run_pages * self.sizes.page_bytes()
    }
}

fn filled(pages: usize) -> usize {
    pages * FILLED_EIGHTHS / 8
}
