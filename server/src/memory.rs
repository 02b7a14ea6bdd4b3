//! The memory of the tables: anonymous mappings, aligned to huge pages. Chunks and blocks use huge pages if possible.
//!
//! With 4 KiB pages, the exit of a process takes a tenth of a second per gigabyte, and its successor must wait for the
//! exit. With huge pages, the exit takes a thirtieth of that time.
//!
//! Windows ([`ChunkSource::reserve`]) consist of small pages, each of which can be returned by itself. The kernel
//! merges adjacent windows if possible, and the addresses of returned pages stay mapped. So a process has far fewer
//! mappings than values (vm.max_map_count allows 65,530).

mod ahead;
pub(crate) mod limit;

use std::ptr::{self, NonNull};

use kv_core::arena::{CHUNK_BYTES_DEFAULT, ChunkSource};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// The size at and above which a buffer gets a separate mapping, which returns to the system when the buffer is freed.
const MAPPED_BUFFER: libc::c_int = 1 << 20;
/// The maximum free memory that stays at the top of a heap.
const KEPT_FREE: libc::c_int = 4 << 20;

/// Makes the allocator of glibc return freed memory to the system; changes nothing with another C library. By default
/// its thresholds rise with the largest buffer ever freed (mallopt(3)), so a few long requests would keep megabytes in
/// each thread.
pub(crate) fn give_freed_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes two numbers of the allocator; it takes no pointers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BUFFER);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_FREE);
    }
}

/// A source of chunks of one huge page each, blocks of several, and windows of small pages.
#[derive(Debug, Default)]
pub(crate) struct HugePages;

// SAFETY: the chunk size is a constant power of two within the bounds. Fresh private mappings are readable, writable
// and unaliased until they are unmapped, from any thread. The memory outside the aligned range is unmapped before the
// mapping is returned.
unsafe impl ChunkSource for HugePages {
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES_DEFAULT
    }

    fn allocate(&mut self, bytes: usize) -> Option<NonNull<u8>> {
        if bytes == CHUNK_BYTES_DEFAULT { ahead::take() } else { map(bytes, Pages::Huge) }
    }

    fn reserve(&mut self) -> Option<NonNull<u8>> {
        let window = map(CHUNK_BYTES_DEFAULT, Pages::Small)?;
        ahead::note_taken();
        Some(window)
    }

    unsafe fn discard(&mut self, at: NonNull<u8>, bytes: usize) {
        // If the system's pages are larger than the arena's, a page that is shared with a neighbour is not returned.
        let page = rustix::param::page_size();
        let start = at.addr().get().next_multiple_of(page) - at.addr().get();
        let end = bytes.saturating_sub((at.addr().get() + bytes) % page);
        if start < end {
            // SAFETY: by the contract of `discard` these pages are mapped and owned, and their content is not needed.
            let result = unsafe {
                madvise(at.as_ptr().add(start).cast(), end - start, Advice::LinuxDontNeed)
            };
            debug_assert!(result.is_ok(), "pages that were never mapped were discarded");
        }
    }

    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: by the contract of `release` this memory is mapped, owned and unused.
        unsafe { unmap(at, bytes) };
        if bytes == CHUNK_BYTES_DEFAULT {
            ahead::note_released();
        }
    }
}

/// Unmaps memory.
///
/// # Safety
/// The memory is mapped, owned by the caller, and unused.
unsafe fn unmap(at: NonNull<u8>, bytes: usize) {
    // SAFETY: guaranteed by the caller.
    let result = unsafe { munmap(at.as_ptr().cast(), bytes) };
    debug_assert!(result.is_ok(), "memory that was never mapped was released");
}

/// The kind of pages of a mapping.
#[derive(Clone, Copy)]
enum Pages {
    /// Huge pages. A remainder that is shorter than a huge page consists of small pages.
    Huge,
    Small,
}

/// Maps fresh memory of `bytes`, rounded up to whole pages and aligned to a chunk. Returns `None` if the system has no
/// more.
fn map(bytes: usize, pages: Pages) -> Option<NonNull<u8>> {
    let bytes = bytes.checked_next_multiple_of(rustix::param::page_size())?;
    let padded = bytes.checked_add(CHUNK_BYTES_DEFAULT)?;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe {
        mmap_anonymous(ptr::null_mut(), padded, access, MapFlags::PRIVATE).ok()?.cast::<u8>()
    };
    let before = start.addr().next_multiple_of(CHUNK_BYTES_DEFAULT) - start.addr();
    let after = padded - before - bytes;
    let aligned = start.wrapping_add(before);
    // SAFETY: both ranges are parts of the mapping just made, outside the part returned. Failing to unmap them costs
    // address space only.
    unsafe {
        if before > 0 {
            let _ = munmap(start.cast(), before);
        }
        if after > 0 {
            let _ = munmap(aligned.wrapping_add(bytes).cast(), after);
        }
    }
    let advice = match pages {
        Pages::Huge => Advice::LinuxHugepage,
        Pages::Small => Advice::LinuxNoHugepage,
    };
    // SAFETY: the range is mapped; the advice changes no content. If it fails (huge pages are disabled), the memory
    // works without it.
    let _ = unsafe { madvise(aligned.cast(), bytes, advice) };
    NonNull::new(aligned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_blocks_are_aligned_and_writable_to_their_last_byte() {
        let mut source = HugePages;
        for bytes in [CHUNK_BYTES_DEFAULT, 3 * CHUNK_BYTES_DEFAULT + (4 << 10)] {
            let start = source.allocate(bytes).unwrap();
            assert_eq!(start.addr().get() % CHUNK_BYTES_DEFAULT, 0);
            // SAFETY: both bytes are inside the memory just allocated, which is released once.
            unsafe {
                start.write(1);
                start.add(bytes - 1).write(2);
                assert_eq!((start.read(), start.add(bytes - 1).read()), (1, 2));
                source.release(start, bytes);
            }
        }
    }

    #[test]
    fn a_window_has_memory_for_the_pages_in_use_and_keeps_its_addresses() {
        let mut source = HugePages;
        let window = source.reserve().unwrap();
        let resident = || {
            let pages = CHUNK_BYTES_DEFAULT / rustix::param::page_size();
            let mut in_memory = vec![0u8; pages];
            // SAFETY: the window is mapped, and the list has a byte for each of its pages.
            let result = unsafe {
                libc::mincore(window.as_ptr().cast(), CHUNK_BYTES_DEFAULT, in_memory.as_mut_ptr())
            };
            assert_eq!(result, 0);
            in_memory.iter().filter(|&&byte| byte & 1 == 1).count() * rustix::param::page_size()
        };
        assert_eq!(resident(), 0);
        // SAFETY: all accesses are inside the window, which is released once.
        unsafe {
            window.add(512 << 10).write_bytes(7, 512 << 10);
            assert_eq!(resident(), 512 << 10);
            source.discard(window.add(512 << 10), 256 << 10);
            assert_eq!(resident(), 256 << 10);
            assert_eq!(window.add(768 << 10).read(), 7, "pages in use are kept");
            window.add(512 << 10).write_bytes(8, 4 << 10);
            source.release(window, CHUNK_BYTES_DEFAULT);
        }
    }

    #[test]
    fn a_mapping_that_the_system_cannot_provide_is_none() {
        assert!(HugePages.allocate(usize::MAX / 2).is_none());
        assert!(HugePages.allocate(usize::MAX).is_none());
    }
}
