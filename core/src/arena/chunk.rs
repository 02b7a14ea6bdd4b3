//! The chunks of an arena: their numbers and their pages.

use std::ptr::NonNull;

use super::page_map::{PAGES_PER_CHUNK, PageMap};
use super::slab::{NO_SLAB, SlabId};
use super::{Arena, Handle, UNIT_BYTES, small};

/// The kind of memory that a chunk number names.
#[derive(Debug)]
pub(super) enum Chunk {
    /// The number is not in use.
    Vacant,
    /// A chunk that is cut into pages.
    Paged(Box<PagedChunk>),
    /// A window: an address range of the size of a chunk. Only pages in blocks have memory.
    Window(Box<PageMap>),
    /// A block above the size of a chunk, with its size in bytes.
    Block(usize),
}

#[derive(Debug)]
pub(super) struct PagedChunk {
    pub(super) map: PageMap,
    /// The slab of each page, or [`NO_SLAB`].
    pub(super) slab_of_page: [SlabId; PAGES_PER_CHUNK],
}

impl Chunk {
    /// Returns the number of bytes to release to the source; for a window, the size of its address range.
    pub(super) fn source_bytes(&self, chunk_bytes: usize) -> usize {
        match self {
            Chunk::Vacant => 0,
            Chunk::Paged(_) | Chunk::Window(_) => chunk_bytes,
            Chunk::Block(bytes) => *bytes,
        }
    }
}

/// Allocation of pages and chunks.
impl Arena {
    /// Takes pages from the first free run of at least `pages_min`; `pages_of` maps the length of the run to the number
    /// of pages to take. Returns the chunk, its first page and the number of pages. The spare chunk is used last, so
    /// that it stays whole for as long as possible.
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
        let (page, length) = map.find(pages_min).expect("the index has the longest run");
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
        self.paged_chunks -= 1;
        self.release_number(chunk);
    }

    fn add_paged_chunk(&mut self) -> Option<u32> {
        self.cool(PAGES_PER_CHUNK);
        let number = self.vacant_number()?;
        let base = self.source.allocate(self.sizes.chunk_bytes())?;
        self.paged_chunks += 1;
        let slab_of_page = [NO_SLAB; PAGES_PER_CHUNK];
        let paged = Box::new(PagedChunk { map: PageMap::new(), slab_of_page });
        self.occupy(number, base, Chunk::Paged(paged));
        self.runs.set(number as usize, small_u16(PAGES_PER_CHUNK));
        Some(number)
    }

    /// Returns the memory of this chunk number to the source.
    pub(super) fn release_number(&mut self, number: u32) {
        let base = std::mem::replace(&mut self.bases[number as usize], std::ptr::null_mut());
        let chunk = std::mem::replace(&mut self.chunks[number as usize], Chunk::Vacant);
        self.vacant_numbers.push(number);
        let bytes = chunk.source_bytes(self.sizes.chunk_bytes());
        let base = NonNull::new(base).expect("a chunk in use has an address");
        // SAFETY: this memory came from the source and has not been released yet. The callers have checked that it
        // holds no live allocation.
        unsafe { self.source.release(base, bytes) };
    }

    /// Returns an unused chunk number. The number stays vacant until [`occupy`](Arena::occupy).
    pub(super) fn vacant_number(&mut self) -> Option<u32> {
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

    pub(super) fn occupy(&mut self, number: u32, base: NonNull<u8>, chunk: Chunk) {
        let popped = self.vacant_numbers.pop();
        debug_assert_eq!(popped, Some(number), "the vacant number was the last of the list");
        self.bases[number as usize] = base.as_ptr();
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

pub(super) fn small_u16(count: usize) -> u16 {
    u16::try_from(count).expect("a chunk has few pages")
}
