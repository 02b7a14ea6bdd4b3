//! The source of an arena's memory.
//!
//! This crate does no I/O and makes no system calls, so the owner of a table supplies large pieces of memory. The
//! server maps the memory and requests huge pages. Tests and the simulator use the heap.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The smallest chunk size of an arena.
pub const CHUNK_BYTES_MIN: usize = 64 * 1024;
/// The largest chunk size of an arena.
pub const CHUNK_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The chunk size for servers: one huge page of x86-64, and of AArch64 with 4 KiB granules.
pub const CHUNK_BYTES_DEFAULT: usize = 2 * 1024 * 1024;

/// A supplier of large pieces of memory: chunks of one fixed size, windows of the same size, and larger blocks. A
/// chunk has 512 pages.
///
/// # Safety
///
/// The arena reads and writes the memory that an implementation returns. So an implementation guarantees that
/// - [`chunk_bytes`](ChunkSource::chunk_bytes) is a power of two between [`CHUNK_BYTES_MIN`] and
///   [`CHUNK_BYTES_MAX`], and never changes;
/// - memory from [`allocate`](ChunkSource::allocate) and [`reserve`](ChunkSource::reserve) is readable and
///   writable from any thread, overlaps nothing in use, is aligned to [`UNIT_BYTES`](super::UNIT_BYTES), and
///   stays so until it is released.
///
/// The content of fresh memory is arbitrary.
pub unsafe trait ChunkSource: Send {
    /// Returns the size of a chunk in bytes.
    fn chunk_bytes(&self) -> usize;

    /// Allocates `bytes`, at least a chunk, in whole pages. The arena will use all of them. Returns `None` if there is
    /// no more memory.
    fn allocate(&mut self, bytes: usize) -> Option<NonNull<u8>>;

    /// Reserves a window: address space of the size of a chunk, in which a page takes memory only when it is first
    /// accessed. Returns `None` if there is no more memory.
    fn reserve(&mut self) -> Option<NonNull<u8>>;

    /// Takes back the memory of some pages of a window. The addresses stay reserved. The content of the pages is
    /// undefined afterwards.
    ///
    /// # Safety
    ///
    /// The pages must belong to a window of this source that was not released. Their content is no longer used.
    unsafe fn discard(&mut self, at: NonNull<u8>, bytes: usize);

    /// Takes back memory that was allocated or reserved in one piece. For a window, `bytes` is the size of a chunk.
    ///
    /// # Safety
    ///
    /// The memory must come from this source with this size. It was not released before and is no longer used.
    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize);
}

/// A source of chunks from the process's heap, for tests, benches and the simulator.
#[derive(Debug)]
pub struct HeapChunks {
    chunk_bytes: usize,
}

impl HeapChunks {
    /// Creates a source of chunks of `chunk_bytes` (a power of two from [`CHUNK_BYTES_MIN`] to [`CHUNK_BYTES_MAX`]).
    pub fn new(chunk_bytes: usize) -> HeapChunks {
        assert!(
            chunk_bytes.is_power_of_two()
                && (CHUNK_BYTES_MIN..=CHUNK_BYTES_MAX).contains(&chunk_bytes),
            "a chunk of {chunk_bytes} bytes is not a power of two in \
             {CHUNK_BYTES_MIN}..={CHUNK_BYTES_MAX}"
        );
        HeapChunks { chunk_bytes }
    }

    fn layout(&self, bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, self.chunk_bytes).ok()
    }
}

/// A source of chunks from the heap with a switch that makes allocations fail. Tests and the simulator use it to inject
/// a lack of memory.
#[derive(Debug)]
pub struct SwitchedChunks {
    heap: HeapChunks,
    is_exhausted: Arc<AtomicBool>,
}

impl SwitchedChunks {
    /// Creates a source like [`HeapChunks::new`] that supplies no more memory while the switch is true.
    pub fn new(chunk_bytes: usize, is_exhausted: Arc<AtomicBool>) -> SwitchedChunks {
        SwitchedChunks { heap: HeapChunks::new(chunk_bytes), is_exhausted }
    }
}

// SAFETY: all memory that is supplied and taken back is that of `heap`.
unsafe impl ChunkSource for SwitchedChunks {
    fn chunk_bytes(&self) -> usize {
        self.heap.chunk_bytes()
    }

    fn allocate(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        match self.is_exhausted.load(Ordering::Relaxed) {
            true => None,
            false => self.heap.allocate(bytes),
        }
    }

    fn reserve(&mut self) -> Option<NonNull<u8>> {
        self.allocate(self.heap.chunk_bytes)
    }

    unsafe fn discard(&mut self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's guarantees for this source hold for the heap behind it.
        unsafe { self.heap.discard(at, bytes) };
    }

    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: as above.
        unsafe { self.heap.release(at, bytes) };
    }
}

impl Default for HeapChunks {
    fn default() -> HeapChunks {
        HeapChunks::new(CHUNK_BYTES_DEFAULT)
    }
}

// SAFETY: the size was checked in `new`; the heap returns memory of the requested size and alignment that nothing else
// uses until `dealloc`.
unsafe impl ChunkSource for HeapChunks {
    fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    fn allocate(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        assert!(
            bytes >= self.chunk_bytes,
            "an allocation of {bytes} bytes is smaller than a chunk"
        );
        let layout = self.layout(bytes)?;
        // SAFETY: the layout's size is not zero.
        NonNull::new(unsafe { alloc(layout) })
    }

    fn reserve(&mut self) -> Option<NonNull<u8>> {
        self.allocate(self.chunk_bytes)
    }

    unsafe fn discard(&mut self, _at: NonNull<u8>, _bytes: usize) {}

    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize) {
        let layout = self.layout(bytes).expect("the layout was valid when it was allocated");
        // SAFETY: the caller guarantees that `at` came from `alloc` with this layout.
        unsafe { dealloc(at.as_ptr(), layout) };
    }
}
