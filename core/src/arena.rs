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

mod chunk_source;
mod page_map;
mod size_class;

pub use chunk_source::{
    CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, ChunkSource, HeapChunks,
};
use page_map::{PAGES_PER_CHUNK, PageMap, RunIndex};
use size_class::{CLASSES_MAX, Fit, Sizes, class_units};

/// What a [`Handle`] counts, and the alignment of every allocation.
pub const UNIT_BYTES: usize = 16;

/// How much of freed memory debug builds overwrite, so that a use after free is seen.
const POISON_BYTES_MAX: usize = 256;
const POISON: u8 = 0xDD;

/// Names an allocation of one arena: its chunk's number, and its place there in units of 16 bytes.
/// Never zero, so that zero can stand for "none" where handles are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// The number of a slab; [`NO_SLAB`] ends a list.
type SlabId = u32;
const NO_SLAB: SlabId = SlabId::MAX;

/// A run of pages that holds objects of one class.
#[derive(Debug)]
struct Slab {
    /// The handle of its first object.
    first: u32,
    /// The newest free object, which holds the next one's handle in its first bytes; 0 for none.
    free: u32,
    capacity: u32,
    /// How many objects were ever handed out; those behind them are free too, but not listed.
    carved: u32,
    live: u32,
    /// Its neighbours in the list of its class's slabs that have a free object.
    previous: SlabId,
    next: SlabId,
    class: u16,
    pages: u16,
}

impl Slab {
    fn is_full(&self) -> bool {
        self.free == 0 && self.carved == self.capacity
    }
}

/// What a chunk number stands for.
#[derive(Debug)]
enum Chunk {
    /// Nothing now.
    Vacant,
    /// A chunk that is cut into pages.
    Paged(Box<PagedChunk>),
    /// The whole chunks of an allocation above a chunk; the rest of it is in the chunk `tail`.
    Whole { chunks: usize, tail: Option<u32> },
}

#[derive(Debug)]
struct PagedChunk {
    map: PageMap,
    slab_of_page: [SlabId; PAGES_PER_CHUNK],
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

/// Objects of a size class.
impl Arena {
    fn allocate_object(&mut self, class: usize) -> Option<u32> {
        let id = match self.open_slabs[class] {
            NO_SLAB => self.open_slab(class)?,
            id => id,
        };
        let slab = &self.slabs[id as usize];
        let listed = Handle::from_bits(slab.free).map(|handle| {
            let link = self.address(handle).cast::<u32>();
            // SAFETY: an object in a free list is this arena's, at least 16 bytes long, aligned,
            // and holds the next free object's handle since `free_object` put it there.
            (handle.to_bits(), unsafe { link.read() })
        });
        let slab = &mut self.slabs[id as usize];
        let handle = match listed {
            Some((handle, next_free)) => {
                slab.free = next_free;
                handle
            }
            None => {
                debug_assert!(slab.carved < slab.capacity, "an open slab has a free object");
                slab.carved += 1;
                slab.first + (slab.carved - 1) * small(class_units(class))
            }
        };
        slab.live += 1;
        if slab.is_full() {
            self.unlink_slab(id);
        }
        Some(handle)
    }

    /// # Safety
    ///
    /// `handle` is a live object in this page, and nobody uses it any more.
    unsafe fn free_object(&mut self, handle: Handle, chunk: u32, page: usize) {
        let id = self.paged(chunk).slab_of_page[page];
        let link = self.address(handle).cast::<u32>();
        let slab = &mut self.slabs[id as usize];
        debug_assert!(slab.live > 0, "an object was freed twice");
        let was_full = slab.is_full();
        // SAFETY: the object is at least 16 bytes long, aligned, and nobody else's any more.
        unsafe { link.write(slab.free) };
        slab.free = handle.to_bits();
        slab.live -= 1;
        if slab.live == 0 {
            let (first, pages) = (slab.first, usize::from(slab.pages));
            if !was_full {
                self.unlink_slab(id);
            }
            self.vacant_slabs.push(id);
            let (chunk, page) = self.page_of_bits(first);
            self.give_pages(chunk, page, pages);
        } else if was_full {
            self.link_slab(id);
        }
    }

    /// Makes a slab of this class, which becomes the first of the open ones.
    fn open_slab(&mut self, class: usize) -> Option<SlabId> {
        let sizes = self.sizes;
        let (chunk, page, pages) =
            self.take_pages(sizes.slab_pages_min(class), |length| sizes.slab_pages(class, length))?;
        let object_bytes = class_units(class) * UNIT_BYTES;
        let slab = Slab {
            first: self.handle_of(chunk, page),
            free: 0,
            capacity: small(pages * self.sizes.page_bytes() / object_bytes),
            carved: 0,
            live: 0,
            previous: NO_SLAB,
            next: NO_SLAB,
            class: u16::try_from(class).expect("there are few classes"),
            pages: u16::try_from(pages).expect("a chunk has few pages"),
        };
        let id = match self.vacant_slabs.pop() {
            Some(id) => {
                self.slabs[id as usize] = slab;
                id
            }
            None => {
                self.slabs.push(slab);
                small(self.slabs.len() - 1)
            }
        };
        self.paged(chunk).slab_of_page[page..page + pages].fill(id);
        self.link_slab(id);
        Some(id)
    }

    fn link_slab(&mut self, id: SlabId) {
        let class = usize::from(self.slabs[id as usize].class);
        let next = std::mem::replace(&mut self.open_slabs[class], id);
        if next != NO_SLAB {
            self.slabs[next as usize].previous = id;
        }
        let slab = &mut self.slabs[id as usize];
        slab.previous = NO_SLAB;
        slab.next = next;
    }

    fn unlink_slab(&mut self, id: SlabId) {
        let Slab { previous, next, class, .. } = self.slabs[id as usize];
        match previous {
            NO_SLAB => self.open_slabs[usize::from(class)] = next,
            previous => self.slabs[previous as usize].next = next,
        }
        if next != NO_SLAB {
            self.slabs[next as usize].previous = previous;
        }
    }
}

/// Pages and chunks.
impl Arena {
    /// Takes pages from the first free run of at least `pages_min`; how many, `pages_of` says from
    /// the length of the run. Returns the chunk, the first page there and their number. The spare
    /// chunk comes last, so that it stays whole as long as it can.
    fn take_pages(
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

    fn give_pages(&mut self, chunk: u32, page: usize, pages: usize) {
        let map = &mut self.paged(chunk).map;
        map.give(page, pages);
        let (longest, is_empty) = (map.longest_run(), map.is_empty());
        self.runs.set(chunk as usize, longest);
        if !is_empty {
            return;
        }
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
    fn allocate_chunks(&mut self, whole: usize, tail_pages: usize) -> Option<u32> {
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
            let map = &mut self.paged(tail).map;
            map.take(0, tail_pages);
            let longest = map.longest_run();
            self.runs.set(tail as usize, longest);
        }
        Some(self.handle_of(number, 0))
    }

    fn free_chunks(&mut self, number: u32, tail_pages: usize) {
        let Chunk::Whole { chunks, tail } = self.chunks[number as usize] else {
            panic!("chunk {number} does not hold an allocation above a chunk");
        };
        self.release_number(number, chunks);
        if let Some(tail) = tail {
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

    fn paged(&mut self, chunk: u32) -> &mut PagedChunk {
        match &mut self.chunks[chunk as usize] {
            Chunk::Paged(paged) => paged,
            _ => panic!("chunk {chunk} is not cut into pages"),
        }
    }

    fn handle_of(&self, chunk: u32, page: usize) -> u32 {
        (chunk << self.place_bits) | small(page * self.sizes.page_bytes() / UNIT_BYTES)
    }

    fn page_of(&self, handle: Handle) -> (u32, usize) {
        self.page_of_bits(handle.to_bits())
    }

    fn page_of_bits(&self, bits: u32) -> (u32, usize) {
        let place = bits & ((1 << self.place_bits) - 1);
        let page_bits = self.place_bits - PAGES_PER_CHUNK.ilog2();
        (bits >> self.place_bits, (place >> page_bits) as usize)
    }
}

fn new_paged() -> Chunk {
    let slab_of_page = [NO_SLAB; PAGES_PER_CHUNK];
    Chunk::Paged(Box::new(PagedChunk { map: PageMap::new(), slab_of_page }))
}

/// A count that an arena's reach keeps below 2^32.
fn small(count: usize) -> u32 {
    u32::try_from(count).expect("an arena counts fewer than 2^32 of anything")
}

fn small_u16(count: usize) -> u16 {
    u16::try_from(count).expect("a chunk has few pages")
}

#[cfg(test)]
mod tests;
