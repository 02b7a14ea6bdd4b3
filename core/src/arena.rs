//! Memory for the entries and slots of one table, cut from large chunks.
//!
//! ```text
//!   ChunkSource     chunks of 2 MiB (the server: huge pages)
//!        |
//!     chunk         512 pages; runs of pages go to
//!        +-- slab        objects of one size class, with a free list of its own
//!        +-- page run    one allocation above 8 pages
//!        +-- tail        the last, partial chunk of one allocation above a chunk
//! ```
//!
//! An allocation is named by a [`Handle`] of 32 bits that counts units of 16 bytes, so an arena
//! reaches 64 GiB (less one chunk). A number is used up by each chunk, and for an allocation above
//! a chunk by its first chunk and by its tail only.
//!
//! A slab whose last object is freed gives its pages back to its chunk, and a chunk whose last page
//! is freed goes back to the source, save for one spare, so that an allocation that comes and goes
//! at a border costs no system call. Nothing is ever moved: a chunk with one small object left
//! stays.
//!
//! An allocation of more than half a chunk leaves the rest of its chunk to smaller ones; where all
//! allocations are of such a size, up to half of the memory stays unused.

use std::num::NonZeroU32;
use std::ptr::NonNull;

mod chunk;
mod chunk_source;
mod page_map;
mod size_class;
mod slab;

use chunk::{Chunk, PagedChunk};
pub use chunk_source::{
    CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ChunkSource, HeapChunks,
};
use page_map::RunIndex;
use size_class::{CLASSES_MAX, Fit, Sizes};
use slab::{NO_SLAB, Slab, SlabId};

/// What a [`Handle`] counts, and the alignment of every allocation.
pub const UNIT_BYTES: usize = 16;

/// How much of freed memory debug builds overwrite, so that a use after free is seen.
const POISON_BYTES_MAX: usize = 256;
const POISON: u8 = 0xDD;

/// Names an allocation of one arena: its chunk's number, and its place there in units of 16 bytes.
/// Never zero, so that zero can stand for "none" where handles are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle(NonZeroU32);

impl Handle {
    /// The handle as a number.
    pub fn to_bits(self) -> u32 {
        self.0.get()
    }

    /// The handle of that number, `None` for zero.
    pub fn from_bits(bits: u32) -> Option<Handle> {
        NonZeroU32::new(bits).map(Handle)
    }
}

/// Memory for one table. See the module's documentation.
pub struct Arena {
    source: Box<dyn ChunkSource>,
    sizes: Sizes,
    /// A handle is a chunk's number above so many bits of a place within it.
    place_bits: u32,
    /// Where each chunk begins; null for a number that is not in use, and for number 0, which never
    /// is.
    bases: Vec<*mut u8>,
    chunks: Vec<Chunk>,
    vacant_numbers: Vec<u32>,
    runs: RunIndex,
    /// A chunk without allocations that is kept.
    spare: Option<u32>,
    slabs: Vec<Slab>,
    vacant_slabs: Vec<SlabId>,
    /// For each class the first of its slabs that have a free object.
    open_slabs: [SlabId; CLASSES_MAX],
    chunks_held: usize,
    paged_chunks: usize,
    used_bytes: usize,
}

// SAFETY: the memory behind `bases` belongs to this arena alone, `ChunkSource` promises that it may
// be used from any thread, and the source itself is `Send`.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena that holds nothing yet and takes its chunks from `source`.
    pub fn new(source: Box<dyn ChunkSource>) -> Arena {
        let chunk_bytes = source.chunk_bytes();
        assert!(
            chunk_bytes.is_power_of_two()
                && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes),
            "a chunk source promises chunks of a power of two bytes, not {chunk_bytes}"
        );
        Arena {
            source,
            sizes: Sizes::new(chunk_bytes),
            place_bits: (chunk_bytes / UNIT_BYTES).ilog2(),
            bases: Vec::new(),
            chunks: Vec::new(),
            vacant_numbers: Vec::new(),
            runs: RunIndex::default(),
            spare: None,
            slabs: Vec::new(),
            vacant_slabs: Vec::new(),
            open_slabs: [NO_SLAB; CLASSES_MAX],
            chunks_held: 0,
            paged_chunks: 0,
            used_bytes: 0,
        }
    }

    /// Memory for `bytes` (at least 1), aligned to 16, its content undefined. `None` if the source
    /// has no more or the arena's reach of 64 GiB is used up; nothing has changed then.
    pub fn allocate(&mut self, bytes: usize) -> Option<Handle> {
        assert!(bytes > 0, "an allocation has at least one byte");
        let fit = self.sizes.fit(bytes);
        let handle = match fit {
            Fit::Class(class) => self.allocate_object(class)?,
            Fit::Pages(pages) => {
                let (chunk, page, _) = self.take_pages(pages, |_| pages)?;
                self.handle_of(chunk, page)
            }
            Fit::Chunks { whole, tail_pages } => self.allocate_chunks(whole, tail_pages)?,
        };
        self.used_bytes += self.sizes.bytes_of(fit);
        Some(Handle(NonZeroU32::new(handle).expect("chunk number 0 is never used")))
    }

    /// Gives an allocation of `bytes` back.
    ///
    /// # Safety
    ///
    /// `handle` came from [`allocate`](Arena::allocate) of this arena with this very number of
    /// bytes, was not freed since, and nobody uses its memory any more.
    pub unsafe fn free(&mut self, handle: Handle, bytes: usize) {
        let fit = self.sizes.fit(bytes);
        let taken = self.sizes.bytes_of(fit);
        self.used_bytes -= taken;
        if cfg!(debug_assertions) {
            let at = self.address(handle);
            // SAFETY: the caller says that these bytes are an allocation that nobody uses.
            unsafe { at.write_bytes(POISON, taken.min(POISON_BYTES_MAX)) };
        }
        let (chunk, page) = self.page_of(handle);
        match fit {
            // SAFETY: the caller says that `handle` is a live allocation of this size.
            Fit::Class(_) => unsafe { self.free_object(handle, chunk, page) },
            Fit::Pages(pages) => self.give_pages(chunk, page, pages),
            Fit::Chunks { tail_pages, .. } => self.free_chunks(chunk, tail_pages),
        }
    }

    /// The bytes of the chunks that an allocation of `bytes` would take from the source; 0 if it finds room
    /// in those that are held.
    pub fn fresh_bytes(&self, bytes: usize) -> usize {
        let pages = match self.sizes.fit(bytes) {
            Fit::Class(class) if self.open_slabs[class] != NO_SLAB => return 0,
            Fit::Class(class) => self.sizes.slab_pages_min(class),
            Fit::Pages(pages) => pages,
            Fit::Chunks { whole, tail_pages } => {
                return (whole + usize::from(tail_pages > 0)) * self.sizes.chunk_bytes();
            }
        };
        let has_room = self.spare.is_some() || self.runs.find(pages, None).is_some();
        if has_room { 0 } else { self.sizes.chunk_bytes() }
    }

    /// The size of a chunk.
    pub fn chunk_bytes(&self) -> usize {
        self.sizes.chunk_bytes()
    }

    /// Where an allocation lies. It is aligned to 16, and valid for as many bytes as were asked for
    /// until it is freed.
    pub fn address(&self, handle: Handle) -> *mut u8 {
        let bits = handle.to_bits();
        let place = bits & ((1 << self.place_bits) - 1);
        self.bases[(bits >> self.place_bits) as usize].wrapping_add(place as usize * UNIT_BYTES)
    }

    /// The bytes of all live allocations, each rounded up to what it takes.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    /// The bytes of all chunks held, and of the arena's own lists.
    pub fn reserved_bytes(&self) -> usize {
        self.chunks_held * self.sizes.chunk_bytes()
            + self.paged_chunks * size_of::<PagedChunk>()
            + self.bases.capacity() * size_of::<*mut u8>()
            + self.chunks.capacity() * size_of::<Chunk>()
            + self.vacant_numbers.capacity() * size_of::<u32>()
            + self.runs.heap_bytes()
            + self.slabs.capacity() * size_of::<Slab>()
            + self.vacant_slabs.capacity() * size_of::<SlabId>()
    }

    /// Gives every chunk back to the source. All handles become meaningless.
    ///
    /// # Safety
    ///
    /// No allocation is used, nor freed, after this.
    pub unsafe fn clear(&mut self) {
        for (chunk, &base) in self.chunks.iter().zip(&self.bases) {
            let chunks = match chunk {
                Chunk::Vacant => continue,
                Chunk::Paged(_) => 1,
                Chunk::Whole { chunks, .. } => *chunks,
            };
            let base = NonNull::new(base).expect("a chunk in use has an address");
            self.chunks_held -= chunks;
            // SAFETY: these chunks came from the source and are recorded as not yet released; the
            // caller says that nobody uses them, and their records are dropped below.
            unsafe { self.source.release(base, chunks) };
        }
        debug_assert_eq!(self.chunks_held, 0);
        self.bases = Vec::new();
        self.chunks = Vec::new();
        self.vacant_numbers = Vec::new();
        self.runs = RunIndex::default();
        self.spare = None;
        self.slabs = Vec::new();
        self.vacant_slabs = Vec::new();
        self.open_slabs = [NO_SLAB; CLASSES_MAX];
        self.paged_chunks = 0;
        self.used_bytes = 0;
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: who could use an allocation would need the arena for it.
        unsafe { self.clear() };
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arena")
            .field("chunk_bytes", &self.sizes.chunk_bytes())
            .field("chunks_held", &self.chunks_held)
            .field("used_bytes", &self.used_bytes)
            .finish_non_exhaustive()
    }
}

/// A count that an arena's reach keeps below 2^32.
fn small(count: usize) -> u32 {
    u32::try_from(count).expect("an arena counts fewer than 2^32 of anything")
}

#[cfg(test)]
mod tests;
