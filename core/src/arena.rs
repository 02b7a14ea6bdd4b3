//! Memory for the entries and slots of one table, cut from large chunks.
//!
//! ```text
//!   ChunkSource
//!        +-- chunk       2 MiB (in a server: a huge page), 512 pages; runs of pages go to
//!        |      +-- slab        objects of one size class, with its own free list
//!        |      +-- page run    one allocation above 8 pages
//!        +-- window      the address range of a chunk; only pages in use have memory
//!        |      +-- block       one allocation above 64 pages
//!        +-- block       one allocation above a chunk
//! ```
//!
//! So nearly all memory is usable for any mix of sizes. An allocation in a chunk is at most an eighth of the chunk,
//! so chunks can be filled to at least seven eighths. A block takes exactly the pages that it needs (`block`).
//!
//! An allocation is named by a 32-bit [`Handle`]: the number of its chunk, window or block, and its offset in it in
//! units of 16 bytes. With chunks of 2 MiB there are 32,767 numbers. They limit the size of an arena:
//!
//! - 64 GiB with allocations up to 256 KiB or above a chunk;
//! - 32 GiB with sizes in between if nothing was freed, because every window except the last is more than half full;
//! - 8 GiB with sizes in between and any pattern of frees, because a window may then hold a single block.
//!
//! When no number is left, allocations fail as if there were no memory.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::ptr::NonNull;

mod block;
mod chunk;
mod chunk_source;
mod evacuation;
mod page_map;
mod size_class;
mod slab;

use chunk::{Chunk, PagedChunk};
pub use chunk_source::{
    CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ChunkSource, HeapChunks, SwitchedChunks,
};
use evacuation::Evacuation;
pub use evacuation::{Evacuated, Preparation};
use page_map::{PAGES_PER_CHUNK, PageMap, RunIndex};
use size_class::{CLASSES_MAX, Fit, Sizes};
use slab::{NO_SLAB, Slab, SlabId};

/// The unit of offsets in a [`Handle`], and the alignment of every allocation.
pub const UNIT_BYTES: usize = 16;

/// The maximum number of bytes of a freed allocation that debug builds overwrite, to detect a use after free.
const POISON_BYTES_MAX: usize = 256;
const POISON: u8 = 0xDD;

/// The name of an allocation in its arena: the number of its chunk, window or block, and its offset in it in units of
/// 16 bytes. A handle is never zero, so zero can stand for "none" where handles are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(NonZeroU32);

impl Handle {
    /// Returns the handle as a number.
    pub fn to_bits(self) -> u32 {
        self.0.get()
    }

    /// Returns the handle with this number, or `None` for zero.
    pub fn from_bits(bits: u32) -> Option<Handle> {
        NonZeroU32::new(bits).map(Handle)
    }
}

/// Memory for one table; see the module documentation.
pub struct Arena {
    source: Box<dyn ChunkSource>,
    sizes: Sizes,
    /// The number of low bits of a handle that hold the offset. The higher bits hold the number of the chunk,
    /// window or block.
    place_bits: u32,
    /// The base address of each chunk, window or block, by number. It is null for a number that is not in use, and
    /// always for number 0.
    bases: Vec<*mut u8>,
    chunks: Vec<Chunk>,
    vacant_numbers: Vec<u32>,
    runs: RunIndex,
    window_runs: RunIndex,
    /// An empty chunk that is kept for later allocations instead of being returned to the source.
    spare: Option<u32>,
    slabs: Vec<Slab>,
    vacant_slabs: Vec<SlabId>,
    /// The first slab with a free object, for each class.
    open_slabs: [SlabId; CLASSES_MAX],
    paged_chunks: usize,
    windows: usize,
    block_pages: usize,
    /// The warm pages: pages of recently freed blocks, the newest last. The page maps of their windows still mark
    /// them as taken.
    warm: VecDeque<block::Run>,
    warm_pages: usize,
    used_bytes: usize,
    /// The total size of all allocations that were ever freed.
    freed_bytes: u64,
    evacuation: Option<Box<Evacuation>>,
}

// SAFETY: the memory behind `bases` belongs to this arena alone. `ChunkSource` guarantees that any thread may use the
// memory, and the source itself is `Send`.
unsafe impl Send for Arena {}

impl Arena {
    /// Creates an empty arena that takes its chunks from `source`.
    pub fn new(source: Box<dyn ChunkSource>) -> Arena {
        let chunk_bytes = source.chunk_bytes();
        assert!(
            chunk_bytes.is_power_of_two()
                && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes),
            "the chunk size must be a power of two, but is {chunk_bytes} bytes"
        );
        Arena {
            source,
            sizes: Sizes::new(chunk_bytes),
            place_bits: (chunk_bytes / UNIT_BYTES).ilog2(),
            bases: Vec::new(),
            chunks: Vec::new(),
            vacant_numbers: Vec::new(),
            runs: RunIndex::default(),
            window_runs: RunIndex::default(),
            spare: None,
            slabs: Vec::new(),
            vacant_slabs: Vec::new(),
            open_slabs: [NO_SLAB; CLASSES_MAX],
            paged_chunks: 0,
            windows: 0,
            block_pages: 0,
            warm: VecDeque::new(),
            warm_pages: 0,
            used_bytes: 0,
            freed_bytes: 0,
            evacuation: None,
        }
    }

    /// Allocates `bytes` (at least 1), aligned to 16, with undefined content. Returns `None` if the source has no more
    /// memory, or if all numbers of chunks are in use. Existing allocations are unaffected.
    pub fn allocate(&mut self, bytes: usize) -> Option<Handle> {
        assert!(bytes > 0, "an allocation has at least one byte");
        let fit = self.sizes.fit(bytes);
        let handle = match fit {
            Fit::Class(class) => self.allocate_object(class)?,
            Fit::Pages(pages) => {
                let (chunk, page, _) = self.take_pages(pages, |_| pages)?;
                self.handle_of(chunk, page)
            }
            Fit::Block(pages) => self.allocate_block(pages)?,
        };
        self.used_bytes += self.sizes.bytes_of(fit);
        Some(Handle(NonZeroU32::new(handle).expect("chunk number 0 is never used")))
    }

    /// Frees an allocation of `bytes`.
    ///
    /// # Safety
    ///
    /// `handle` must come from [`allocate`](Arena::allocate) of this arena with exactly this number of bytes. It was
    /// not freed since, and its memory is no longer used.
    pub unsafe fn free(&mut self, handle: Handle, bytes: usize) {
        let fit = self.sizes.fit(bytes);
        let taken = self.sizes.bytes_of(fit);
        self.used_bytes -= taken;
        self.freed_bytes += taken as u64;
        if cfg!(debug_assertions) {
            let at = self.address(handle);
            // SAFETY: the caller guarantees that these bytes are an allocation that is no longer used.
            unsafe { at.write_bytes(POISON, taken.min(POISON_BYTES_MAX)) };
        }
        let (chunk, page) = self.page_of(handle);
        match fit {
            // SAFETY: the caller guarantees that `handle` is a live allocation of this size.
            Fit::Class(_) => unsafe { self.free_object(handle, chunk, page) },
            Fit::Pages(pages) => self.give_pages(chunk, page, pages),
            Fit::Block(pages) => self.free_block(chunk, page, pages),
        }
    }

    /// Returns the number of bytes by which an allocation of `bytes` would increase the held memory; 0 if the memory
    /// that the arena has is enough.
    pub fn fresh_bytes(&self, bytes: usize) -> usize {
        let pages = match self.sizes.fit(bytes) {
            Fit::Class(class) if self.open_slabs[class] != NO_SLAB => return 0,
            Fit::Class(class) => self.sizes.slab_pages_min(class),
            Fit::Pages(pages) => pages,
            Fit::Block(pages) => return self.fresh_block_bytes(pages),
        };
        let has_room = self.spare.is_some() || self.runs.find(pages, None).is_some();
        if has_room { 0 } else { self.fresh_block_bytes(PAGES_PER_CHUNK) }
    }

    /// Returns the size of a chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.sizes.chunk_bytes()
    }

    /// Returns the address of an allocation. It is aligned to 16, and valid for the requested number of bytes until the
    /// allocation is freed.
    pub fn address(&self, handle: Handle) -> *mut u8 {
        let bits = handle.to_bits();
        let place = bits & ((1 << self.place_bits) - 1);
        self.bases[(bits >> self.place_bits) as usize].wrapping_add(place as usize * UNIT_BYTES)
    }

    /// Returns the total size of all live allocations, each rounded up to its actual size.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// Returns the total size of all held chunks and blocks, warm pages, and the arena's own lists.
    pub fn reserved_bytes(&self) -> usize {
        self.held_bytes()
            + self.paged_chunks * size_of::<PagedChunk>()
            + self.windows * size_of::<PageMap>()
            + self.bases.capacity() * size_of::<*mut u8>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.vacant_numbers.capacity() * size_of::<u32>()
            + self.runs.heap_bytes()
            + self.window_runs.heap_bytes()
            + self.warm.capacity() * size_of::<block::Run>()
            + self.slabs.capacity() * size_of::<Slab>()
            + self.vacant_slabs.capacity() * size_of::<SlabId>()
            + self.evacuation_heap_bytes()
    }

    /// Returns the total size of all held chunks and blocks, including warm pages.
    fn held_bytes(&self) -> usize {
        self.paged_chunks * self.sizes.chunk_bytes()
            + (self.block_pages + self.warm_pages) * self.sizes.page_bytes()
    }

    /// Returns all memory to the source, which invalidates all handles.
    ///
    /// # Safety
    ///
    /// No allocation is used or freed after this.
    pub unsafe fn clear(&mut self) {
        for (chunk, &base) in self.chunks.iter().zip(&self.bases) {
            let Some(base) = NonNull::new(base) else { continue };
            let bytes = chunk.source_bytes(self.sizes.chunk_bytes());
            // SAFETY: this memory came from the source and is recorded as not yet released; the caller guarantees that
            // it is no longer used, and its record is dropped below.
            unsafe { self.source.release(base, bytes) };
        }
        self.bases = Vec::new();
        self.chunks = Vec::new();
        self.vacant_numbers = Vec::new();
        self.runs = RunIndex::default();
        self.window_runs = RunIndex::default();
        self.spare = None;
        self.evacuation = None;
        self.slabs = Vec::new();
        self.vacant_slabs = Vec::new();
        self.open_slabs = [NO_SLAB; CLASSES_MAX];
        self.paged_chunks = 0;
        self.windows = 0;
        self.block_pages = 0;
        self.warm = VecDeque::new();
        self.warm_pages = 0;
        self.used_bytes = 0;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: using an allocation needs the arena, which is being dropped.
        unsafe { self.clear() };
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("chunk_bytes", &self.sizes.chunk_bytes())
            .field("held_bytes", &self.held_bytes())
            .field("used_bytes", &self.used_bytes)
            .finish_non_exhaustive()
    }
}

/// Converts a count to 32 bits. Every count of an arena fits, because the size of an arena is limited.
fn small(count: usize) -> u32 {
    u32::try_from(count).expect("all counts of an arena are below 2^32")
}

#[cfg(test)]
mod tests;
