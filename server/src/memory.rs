//! Memory of the tables: mapped, aligned to huge pages, and advised to be made of them.
//!
//! A process that holds gigabytes in 4 KiB pages takes a tenth of a second a gigabyte to die, and
//! its successor can take over only after that; in huge pages it is a thirtieth of it.

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

/// Maps chunks of one huge page each.
#[derive(Debug, Default)]
pub(crate) struct HugePages;

// SAFETY: the chunk size is a constant power of two within the bounds; fresh private mappings are
// readable, writable and nobody else's until they are unmapped, from whichever thread; what lies
// outside the aligned range is given back before anyone sees it.
unsafe impl ChunkSource for HugePages {
    fn chunk_bytes(&self) -> usize {
        CHUNK_BYTES_DEFAULT
    }

    fn allocate(&mut self, chunks: usize) -> Option<NonNull<u8>> {
        ahead::take(chunks)
    }

    unsafe fn release(&mut self, at: NonNull<u8>, chunks: usize) {
        // SAFETY: by the contract of `release` these chunks are mapped, ours, and used by nobody.
        unsafe { unmap(at, chunks) };
        ahead::note_released(chunks);
    }
}

/// Gives chunks back to the system.
///
/// # Safety
/// They are mapped, ours, and used by nobody.
unsafe fn unmap(at: NonNull<u8>, chunks: usize) {
    // SAFETY: as the caller says.
    let result = unsafe { munmap(at.as_ptr().cast(), chunks * CHUNK_BYTES_DEFAULT) };
    debug_assert!(result.is_ok(), "chunks that were never mapped were released");
}

/// Fresh memory for so many chunks, aligned; `None`: the system has no more.
fn map(chunks: usize) -> Option<NonNull<u8>> {
    let bytes = chunks.checked_mul(CHUNK_BYTES_DEFAULT)?;
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
    // SAFETY: the range is mapped; the advice changes no content. It may be refused (huge pages
    // switched off), and the memory is as good without.
    let _ = unsafe { madvise(aligned.cast(), bytes, Advice::LinuxHugepage) };
    NonNull::new(aligned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_aligned_writable_and_released_one_by_one() {
        let mut source = HugePages;
        let start = source.allocate(3).unwrap();
        assert_eq!(start.as_ptr().addr() % CHUNK_BYTES_DEFAULT, 0);
        let last = 3 * CHUNK_BYTES_DEFAULT - 1;
        // SAFETY: both bytes lie in the three chunks just allocated; each chunk is released once.
        unsafe {
            start.as_ptr().write(1);
            start.as_ptr().add(last).write(2);
            assert_eq!(start.as_ptr().add(last).read(), 2);
            source.release(start, 1);
            source.release(start.add(CHUNK_BYTES_DEFAULT), 2);
        }
    }

    #[test]
    fn a_machine_without_that_much_memory_gives_none() {
        assert!(HugePages.allocate(usize::MAX / CHUNK_BYTES_DEFAULT).is_none());
    }
}
