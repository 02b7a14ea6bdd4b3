//! The chunks of an arena: their numbers, their pages, and what lies across several of them.

use std::ptr::NonNull;

use super::page_map::{PAGES_PER_CHUNK, PageMap};
use super::slab::{NO_SLAB, SlabId};
use super::{Arena, Handle, UNIT_BYTES, small};

/// What a chunk number stands for.
#[derive(Debug)]
pub(super) enum Chunk {
    /// Nothing now.
    Vacant,
    /// A chunk that is cut into pages.
    Paged(Box<PagedChunk>),
    /// The whole chunks of an allocation above a chunk; the rest of it is in the chunk `tail`.
    Whole { chunks: usize, tail: Option<u32> },
}

#[derive(Debug)]
pub(super) struct PagedChunk {
    pub(super) map: PageMap,
    /// The slab of each page that is in one.
    pub(super) slab_of_page: [SlabId; PAGES_PER_CHUNK],
    /// Its first pages are the tail of an allocation above a chunk.
    pub(super) has_tail: bool,
}

/// Pages and chunks.
impl Arena {
    /// Takes pages from the first free run of at least `pages_min`; how many, `pages_of` says from
    /// the length of the run. Returns the chunk, the first page there and their number. The spare
    /// chunk comes last, so that it stays whole as long as it can.
    pub(super) fn take_pages(
        &mut self,
        pages_min: usize,
        pages_of: impl Fn(usize) -> usize,
    ) -> Option<(u32, usize, usize)> {
        let spare = self.spare.map(|number| number as usize);
        let chunk = match self.runs.find(pages_min, spare) {
            Some(chunk) => small(chunk),
            None => match self.spare.take() {
                Some(chunk) => chunk,
                None => self.add_paged_chunk()?,
            },
        };
        let map = &mut self.paged(chunk).map;
        let (page, length) = map.find(pages_min).expect("the index knows the longest run");
        let pages = pages_of(length);
        map.take(page, pages);
        let longest = map.longest_run();
        self.runs.set(chunk as usize, longest);
        Some((chunk, page, pages))
    }

    pub(super) fn give_pages(&mut self, chunk: u32, page: usize, pages: usize) {
        let map = &mut self.paged(chunk).map;
        map.give(page, pages);
        let (longest, is_empty) = (map.longest_run(), map.is_empty());
        if !is_empty {
            if !self.is_chunk_leaving(chunk) {
                self.runs.set(chunk as usize, longest);
            }
            return;
        }
        self.runs.set(chunk as usize, longest);
        self.note_emptied(chunk);
        if self.spare.is_none() {
            self.spare = Some(chunk);
            return;
        }
        self.runs.set(chunk as usize, 0);
        self.release_number(chunk, 1);
    }

    fn add_paged_chunk(&mut self) -> Option<u32> {
        let number = self.vacant_number()?;
        let base = self.source.allocate(1)?;
        self.chunks_held += 1;
        self.occupy(number, base.as_ptr(), new_paged());
        self.runs.set(number as usize, small_u16(PAGES_PER_CHUNK));
        Some(number)
    }

    /// `whole` chunks, and if `tail_pages` is not zero the first pages of one more, whose other
    /// pages serve smaller allocations.
    pub(super) fn allocate_chunks(&mut self, whole: usize, tail_pages: usize) -> Option<u32> {
        let number = self.vacant_number()?;
        let has_tail = tail_pages > 0;
        let chunks = whole + usize::from(has_tail);
        // Occupied at once, so that the tail gets another number; set right below.
        self.occupy(number, std::ptr::null_mut(), Chunk::Whole { chunks: whole, tail: None });
        let tail = if has_tail { self.vacant_number() } else { None };
        let base = if has_tail && tail.is_none() { None } else { self.source.allocate(chunks) };
        let Some(base) = base else {
            self.chunks[number as usize] = Chunk::Vacant;
            self.vacant_numbers.push(number);
            return None;
        };
        self.chunks_held += chunks;
        self.bases[number as usize] = base.as_ptr();
        self.chunks[number as usize] = Chunk::Whole { chunks: whole, tail };
        if let Some(tail) = tail {
            let at = base.as_ptr().wrapping_add(whole * self.sizes.chunk_bytes());
            self.occupy(tail, at, new_paged());
            let paged = self.paged(tail);
            paged.has_tail = true;
            paged.map.take(0, tail_pages);
            let longest = paged.map.longest_run();
            self.runs.set(tail as usize, longest);
        }
        Some(self.handle_of(number, 0))
    }

    pub(super) fn free_chunks(&mut self, number: u32, tail_pages: usize) {
        let Chunk::Whole { chunks, tail } = self.chunks[number as usize] else {
            panic!("chunk {number} does not hold an allocation above a chunk");
        };
        self.release_number(number, chunks);
        if let Some(tail) = tail {
            self.paged(tail).has_tail = false;
            self.give_pages(tail, 0, tail_pages);
        }
    }

    /// Gives a number's chunks back to the source.
    fn release_number(&mut self, number: u32, chunks: usize) {
        let base = std::mem::replace(&mut self.bases[number as usize], std::ptr::null_mut());
        let chunk = std::mem::replace(&mut self.chunks[number as usize], Chunk::Vacant);
        self.paged_chunks -= usize::from(matches!(chunk, Chunk::Paged(_)));
        self.vacant_numbers.push(number);
        self.chunks_held -= chunks;
        let base = NonNull::new(base).expect("a chunk in use has an address");
        // SAFETY: these chunks came from the source, were recorded until now as not released, and
        // hold no live allocation: that was checked by the callers.
        unsafe { self.source.release(base, chunks) };
    }

    /// A number that no chunk has. It stays vacant until [`occupy`](Arena::occupy).
    fn vacant_number(&mut self) -> Option<u32> {
        if let Some(&number) = self.vacant_numbers.last() {
            return Some(number);
        }
        // Number 0 stays unused so that no handle is zero.
        let number = small(self.chunks.len().max(1));
        if number >> (u32::BITS - self.place_bits) != 0 {
            return None;
        }
        self.chunks.resize_with(number as usize + 1, || Chunk::Vacant);
        self.bases.resize(number as usize + 1, std::ptr::null_mut());
        self.vacant_numbers.push(number);
        Some(number)
    }

    fn occupy(&mut self, number: u32, base: *mut u8, chunk: Chunk) {
        let popped = self.vacant_numbers.pop();
        debug_assert_eq!(popped, Some(number), "the vacant number was the last of the list");
        self.paged_chunks += usize::from(matches!(chunk, Chunk::Paged(_)));
        self.bases[number as usize] = base;
        self.chunks[number as usize] = chunk;
    }

    pub(super) fn paged(&mut self, chunk: u32) -> &mut PagedChunk {
        match &mut self.chunks[chunk as usize] {
            Chunk::Paged(paged) => paged,
            _ => panic!("chunk {chunk} is not cut into pages"),
        }
    }

    pub(super) fn handle_of(&self, chunk: u32, page: usize) -> u32 {
        (chunk << self.place_bits) | small(page * self.sizes.page_bytes() / UNIT_BYTES)
    }

    pub(super) fn page_of(&self, handle: Handle) -> (u32, usize) {
        self.page_of_bits(handle.to_bits())
    }

    pub(super) fn page_of_bits(&self, bits: u32) -> (u32, usize) {
        let place = bits & ((1 << self.place_bits) - 1);
        let page_bits = self.place_bits - PAGES_PER_CHUNK.ilog2();
        (bits >> self.place_bits, (place >> page_bits) as usize)
    }
}

fn new_paged() -> Chunk {
    let slab_of_page = [NO_SLAB; PAGES_PER_CHUNK];
    Chunk::Paged(Box::new(PagedChunk { map: PageMap::new(), slab_of_page, has_tail: false }))
}

fn small_u16(count: usize) -> u16 {
    u16::try_from(count).expect("a chunk has few pages")
}
