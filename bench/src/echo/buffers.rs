//! The buffers that the kernel fills: a ring of provided buffers (io_uring_register_buf_ring(3)).
//!
//! ```text
//!   entries   | address, length, number | …   the kernel takes from the head, this process adds at the tail
//!   memory    | buffer 0 | buffer 1 | …
//! ```

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::Context as _;
use io_uring::IoUring;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// The number of buffers, a power of two.
const COUNT: u16 = 1_024;
/// The size of each buffer in bytes.
const BYTES: u32 = 8 << 10;
/// The only buffer group.
pub(super) const GROUP: u16 = 0;

/// The provided buffers. The kernel uses their memory until the process exits, so it is never unmapped.
#[derive(Debug)]
pub(super) struct Buffers {
    entries: *mut BufRingEntry,
    memory: *mut u8,
    tail: u16,
}

fn map(bytes: usize) -> io::Result<*mut u8> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
    let address = unsafe { mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }?;
    Ok(address.cast())
}

impl Buffers {
    /// Registers all buffers with a ring.
    pub(super) fn register(ring: &IoUring) -> anyhow::Result<Buffers> {
        let entries = map(usize::from(COUNT) * size_of::<BufRingEntry>())?;
        let memory = map(usize::from(COUNT) * BYTES as usize)?;
        // SAFETY: the entries are mapped, page-aligned and zeroed, hold COUNT entries, and are never
        // unmapped.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, COUNT, GROUP, 0) }
            .context("register buffers with io_uring (needs Linux 5.19 or newer)")?;
        let mut buffers = Buffers { entries: entries.cast(), memory, tail: 0 };
        (0..COUNT).for_each(|number| buffers.put_back(number));
        buffers.publish();
        Ok(buffers)
    }

    fn address(&self, number: u16) -> *mut u8 {
        // SAFETY: the memory holds COUNT buffers, and numbers are below COUNT.
        unsafe { self.memory.add(usize::from(number % COUNT) * BYTES as usize) }
    }

    /// Returns the bytes that a completed receive has put into a buffer.
    pub(super) fn filled(&self, number: u16, length: usize) -> &[u8] {
        let length = length.min(BYTES as usize);
        // SAFETY: the kernel does not touch the buffer between its completion and its return, which takes `&mut
        // self`.
        unsafe { std::slice::from_raw_parts(self.address(number), length) }
    }

    /// Returns a buffer to the kernel, which can use it after [`Buffers::publish`].
    pub(super) fn put_back(&mut self, number: u16) {
        let address = self.address(number);
        // SAFETY: the entry lies in the ring, and the kernel does not read it before the tail moves past it: no
        // more buffers are returned than were taken.
        let entry = unsafe { &mut *self.entries.add(usize::from(self.tail % COUNT)) };
        entry.set_addr(address as u64);
        entry.set_len(BYTES);
        entry.set_bid(number);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Makes the returned buffers visible to the kernel.
    pub(super) fn publish(&self) {
        // SAFETY: the tail lies in the first entry, is aligned, and is written only here; the kernel reads it
        // with acquire semantics.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
