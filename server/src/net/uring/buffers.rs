//! The buffers that the kernel receives into, shared by all connections of a shard.
//!
//! ```text
//!   give_back(n) --> [ ring of free buffers ] --> kernel: bytes came in --> completion --> Lent(n)
//!        ^                                                                                  |
//!        +------------------------- the bytes were served -----------------------------------+
//! ```
//!
//! A buffer is the kernel's or, as a [`Lent`], ours; whoever has the `Lent` may read it, and it goes back
//! once. When all of them are ours, receiving ends with ENOBUFS and is armed again later: nothing is
//! lost, the bytes wait in their sockets. (io_uring_register_buf_ring(3), Linux 5.19.)

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// The only group of buffers of a ring.
pub(super) const GROUP: u16 = 0;
/// What the kernel demands of the ring's address.
const PAGE_BYTES: usize = 4_096;

/// A buffer with received bytes.
#[derive(Debug)]
pub(super) struct Lent {
    buffer: u16,
    length: usize,
}

/// The ring of free buffers, and their memory.
pub(super) struct Buffers {
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    /// A power of two.
    count: u16,
    bytes_each: u32,
    tail: u16,
}

impl Buffers {
    /// Registers `count` buffers (a power of two) of `bytes_each` with a ring.
    ///
    /// Their memory is never given back: the kernel may write to it for as long as the ring has requests,
    /// and an engine lives as long as its process.
    pub(super) fn register(
        submitter: &Submitter<'_>,
        count: u16,
        bytes_each: u32,
    ) -> io::Result<Buffers> {
        assert!(count.is_power_of_two(), "{count} buffers are no power of two");
        let ring = allocate(usize::from(count) * size_of::<BufRingEntry>()).cast::<BufRingEntry>();
        let memory = allocate(usize::from(count) * bytes_each as usize);
        let address = ring.as_ptr() as u64;
        // SAFETY: the address is that of `count` entries of zeros, aligned to a page, which stay for ever.
        unsafe { submitter.register_buf_ring_with_flags(address, count, GROUP, 0)? };
        let mut buffers = Buffers { ring, memory, count, bytes_each, tail: 0 };
        for buffer in 0..count {
            buffers.give_back(Lent { buffer, length: 0 });
        }
        Ok(buffers)
    }

    /// The buffer that a completion names, of which the kernel has filled so much.
    pub(super) fn lend(&self, buffer: u16, length: usize) -> Lent {
        assert!(buffer < self.count && length <= self.bytes_each as usize, "a buffer of nobody");
        Lent { buffer, length }
    }

    /// The bytes received into a buffer.
    pub(super) fn bytes(&self, lent: &Lent) -> &[u8] {
        let start = usize::from(lent.buffer) * self.bytes_each as usize;
        // SAFETY: `lend` has checked that the range is inside the memory, which was zeroed first; while
        // there is a `Lent` of it the kernel writes nothing to it.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(start), lent.length) }
    }

    /// Lets the kernel have a buffer again.
    #[expect(clippy::needless_pass_by_value, reason = "a buffer goes back once")]
    pub(super) fn give_back(&mut self, lent: Lent) {
        let place = usize::from(self.tail & (self.count - 1));
        let start = usize::from(lent.buffer) * self.bytes_each as usize;
        // SAFETY: the place is one of the ring's entries. The kernel reads it only after the tail below has
        // passed it, and has read what stood there before: there are as many entries as buffers.
        let entry = unsafe { &mut *self.ring.as_ptr().add(place) };
        entry.set_addr(self.memory.as_ptr().wrapping_add(start) as u64);
        entry.set_len(self.bytes_each);
        entry.set_bid(lent.buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, in a field that the setters above do not touch; it is
        // aligned, and the kernel only reads it.
        unsafe {
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Zeroed memory at the start of a page.
fn allocate(bytes: usize) -> NonNull<u8> {
    let layout =
        Layout::from_size_align(bytes, PAGE_BYTES).expect("a size far below the address space");
    assert!(bytes > 0, "no memory was asked for");
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}
