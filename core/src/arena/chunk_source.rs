//! Where an arena's memory comes from.
//!
//! This crate does no I/O and makes no system call; the owner of a table says where large blocks of
//! memory come from. The server maps them and asks for huge pages; tests and the simulator take
//! them from the heap.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The smallest chunk an arena works with.
pub const CHUNK_BYTES_MIN: usize = 64 * 1024;
/// The largest chunk an arena works with.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The chunk size meant for servers: one huge page of x86-64 and of AArch64 with 4 KiB granules.
pub const CHUNK_BYTES_DEFAULT: usize = 2 * 1024 * 1024;

/// Hands out and takes back chunks: blocks of memory of one fixed size.
///
/// # Safety
///
/// The arena reads and writes the memory that an implementation returns, so an implementation
/// promises that
/// - [`chunk_bytes`](ChunkSource::chunk_bytes) is a power of two between [`CHUNK_BYTES_MIN`] and
///   [`CHUNK_BYTES_MAX`], and never changes;
/// - what [`allocate`](ChunkSource::allocate) returns is readable and writable, overlaps nothing
///   that is in use, is aligned to the chunk size, is contiguous for all its chunks, and stays so
///   until it is released, from whichever thread uses it.
///
/// The content of fresh memory does not matter.
pub unsafe trait ChunkSource: Send {
    /// The size and alignment of a chunk in bytes.
    fn chunk_bytes(&self) -> usize;

    /// `chunks` (at least 1) contiguous chunks, or `None` if there is no more memory to be had.
    fn allocate(&mut self, chunks: usize) -> Option<NonNull<u8>>;

    /// Takes back `chunks` contiguous chunks that begin at `at`. They may be a part of what one
    /// call of [`allocate`](ChunkSource::allocate) returned; the rest follows later.
    ///
    /// # Safety
    ///
    /// All these chunks came from this source, none was released before, and nobody uses them.
    unsafe fn release(&mut self, at: NonNull<u8>, chunks: usize);
}

/// Chunks from the process's heap: for tests, benches and the simulator.
#[derive(Debug)]
pub struct HeapChunks {
    chunk_bytes: usize,
    /// Allocations of more than one chunk by their address. The heap takes back whole allocations
    /// only, so one whose chunks return one by one waits here for its last.
    groups: BTreeMap<usize, Group>,
}

#[derive(Debug)]
struct Group {
    start: NonNull<u8>,
    chunks: usize,
    chunks_out: usize,
}

// SAFETY: the pointers in `groups` are owned by this value alone and the heap may be used from any
// thread.
unsafe impl Send for HeapChunks {}

impl HeapChunks {
    /// A source of chunks of `chunk_bytes` (a power of two from [`CHUNK_BYTES_MIN`] to
    /// [`CHUNK_BYTES_MAX`]).
    pub fn new(chunk_bytes: usize) -> HeapChunks {
        assert!(
            chunk_bytes.is_power_of_two()
                && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes),
            "a chunk of {chunk_bytes} bytes is not a power of two in \
             {CHUNK_BYTES_MIN}..={CHUNK_BYTES_MAX}"
        );
        HeapChunks { chunk_bytes, groups: BTreeMap::new() }
    }

    fn layout(&self, chunks: usize) -> Option<Layout> {
        Layout::from_size_align(self.chunk_bytes.checked_mul(chunks)?, self.chunk_bytes).ok()
    }
}

/// Chunks from the heap until a switch is thrown: for tests, and for the simulator's lack of memory.
#[derive(Debug)]
pub struct SwitchedChunks {
    heap: HeapChunks,
    is_exhausted: Arc<AtomicBool>,
}

impl SwitchedChunks {
    /// As [`HeapChunks::new`]. While the switch is true there is no more memory to be had.
    pub fn new(chunk_bytes: usize, is_exhausted: Arc<AtomicBool>) -> SwitchedChunks {
        SwitchedChunks { heap: HeapChunks::new(chunk_bytes), is_exhausted }
    }
}

// SAFETY: everything that is handed out and taken back is that of `heap`.
unsafe impl ChunkSource for SwitchedChunks {
    fn chunk_bytes(&self) -> usize {
        self.heap.chunk_bytes()
    }

    fn allocate(&mut self, chunks: usize) -> Option<NonNull<u8>> {
        match self.is_exhausted.load(Ordering::Relaxed) {
            true => None,
            false => self.heap.allocate(chunks),
        }
    }

    unsafe fn release(&mut self, at: NonNull<u8>, chunks: usize) {
        // SAFETY: what the caller promises of this source is true of the heap behind it.
        unsafe { self.heap.release(at, chunks) };
    }
}

impl Default for HeapChunks {
    fn default() -> HeapChunks {
        HeapChunks::new(CHUNK_BYTES_DEFAULT)
    }
}

// SAFETY: the size was checked in `new`; the heap returns memory of the asked size and alignment
// that is nobody else's until `dealloc`, which is called once all of an allocation was released.
unsafe impl ChunkSource for HeapChunks {
    fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    fn allocate(&mut self, chunks: usize) -> Option<NonNull<u8>> {
        assert!(chunks > 0, "an allocation has at least one chunk");
        let layout = self.layout(chunks)?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc(layout) })?;
        if chunks > 1 {
            let group = Group { start, chunks, chunks_out: chunks };
            self.groups.insert(start.as_ptr().addr(), group);
        }
        Some(start)
    }

    unsafe fn release(&mut self, at: NonNull<u8>, chunks: usize) {
        let address = at.as_ptr().addr();
        let group_of = self.groups.range_mut(..=address).next_back();
        let (start, chunks) = match group_of {
            Some((&start, group)) if address - start < group.chunks * self.chunk_bytes => {
                group.chunks_out -= chunks;
                if group.chunks_out > 0 {
                    return;
                }
                let whole = (group.start, group.chunks);
                self.groups.remove(&start);
                whole
            }
            _ => (at, chunks),
        };
        let layout = self.layout(chunks).expect("the layout was valid when it was allocated");
        // SAFETY: `start` came from `alloc` with this layout, and by the contract of `release` all
        // of its chunks have now come back exactly once.
        unsafe { dealloc(start.as_ptr(), layout) };
    }
}
