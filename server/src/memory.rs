//! Memory of the tables: mapped, aligned to huge pages, and advised to be made of them.
//!
//! A process that holds gigabytes in 4 KiB pages takes a tenth of a second a gigabyte to die, and
//! its successor can take over only after that; in huge pages it is a thirtieth of it.
//!
//! Windows are made of small pages, each of which can be given back by itself. They lie side by side where they can,
//! and a part of one that goes back leaves its addresses in place: so a process has far fewer mappings than values
//! (vm.max_map_count allows 65,530).

mod ahead;
pub(crate) mod limit;

use std::ptr::{self, NonNull};

use kv_core::arena::{CHUNK_BYTES_DEFAULT, ChunkSource};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Buffers of connections from this size on are mappings of their own, which go back to the system when they are
/// freed; of smaller ones so much stays at the end of a heap.
const MAPPED_BUFFER: libc::c_int = 1 << 20;
const KEPT_FREE: libc::c_int = 4 << 20;

/// Has the allocator give freed memory back to the system. By default its thresholds rise with the largest buffer
/// that was ever freed (mallopt(3)), so that a few long requests would keep megabytes of each thread.
pub(crate) fn give_freed_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call changes two numbers of the allocator; it has no pointers.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BUFFER);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_FREE);
    }
}

/// Maps chunks of one huge page each, blocks of several, and windows of small pages.
#[derive(Debug, Default)]
pub(crate) struct HugePages;

// SAFETY: the chunk size is a constant power of two within the bounds; fresh private mappings are
// readable, writable and nobody else's until they are unmapped, from whichever thread; what lies
// outside the aligned range is given back before anyone sees it.
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
        // Where the system's pages are larger, those that a neighbour has a part of stay.
        let page = rustix::param::page_size();
        let start = at.addr().get().next_multiple_of(page) - at.addr().get();
        let end = bytes.saturating_sub((at.addr().get() + bytes) % page);
        if start < end {
            // SAFETY: by the contract of `discard` these pages are mapped, ours, and their content is of no use.
            let result = unsafe {
                madvise(at.as_ptr().add(start).cast(), end - start, Advice::LinuxDontNeed)
            };
            debug_assert!(result.is_ok(), "pages that were never mapped were discarded");
        }
    }

    unsafe fn release(&mut self, at: NonNull<u8>, bytes: usize) {
        // SAFETY: by the contract of `release` this memory is mapped, ours, and used by nobody.
        unsafe { unmap(at, bytes) };
        if bytes == CHUNK_BYTES_DEFAULT {
            ahead::note_released();
        }
    }
}

/// Gives memory back to the system.
///
/// # Safety
/// It is mapped, ours, and used by nobody.
unsafe fn unmap(at: NonNull<u8>, bytes: usize) {
    // SAFETY: as the caller says.
    let result = unsafe { munmap(at.as_ptr().cast(), bytes) };
    debug_assert!(result.is_ok(), "memory that was never mapped was released");
}

/// What a mapping is made of.
#[derive(Clone, Copy)]
enum Pages {
    /// Huge pages, as far as whole ones fit: the rest of the last one's addresses is never used.
    Huge,
    Small,
}

/// Fresh memory of so many bytes, aligned to a chunk; `None`: the system has no more.
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
    // SAFETY: both ranges are parts of the mapping just made, outside the part handed out.
    // Failing to give them back costs address space only.
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
    // SAFETY: the range is mapped; the advice changes no content. It may be refused (huge pages
    // switched off), and the memory is as good without.
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
            // SAFETY: both bytes lie in what was just allocated; it is released once.
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
        // SAFETY: all of it lies in the window, which is released once.
        unsafe {
            window.add(512 << 10).write_bytes(7, 512 << 10);
            assert_eq!(resident(), 512 << 10);
            source.discard(window.add(512 << 10), 256 << 10);
            assert_eq!(resident(), 256 << 10);
            assert_eq!(window.add(768 << 10).read(), 7, "what is in use stays");
            window.add(512 << 10).write_bytes(8, 4 << 10);
            source.release(window, CHUNK_BYTES_DEFAULT);
        }
    }

    #[test]
    fn a_machine_without_that_much_memory_gives_none() {
        assert!(HugePages.allocate(usize::MAX / 2).is_none());
        assert!(HugePages.allocate(usize::MAX).is_none());
    }
}
