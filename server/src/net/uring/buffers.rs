//! The buffers that the kernel receives into: one group for the streams of other servers, one for all other
//! connections.
//!
//! ```text
//!   [ ring of free buffers ] --> kernel: received bytes --> completion --> Lent: a piece of a buffer
//!        ^                                                                  |
//!        +--- filled, and every piece is given back <-- the bytes are served
//! ```
//!
//! The kernel fills a buffer piece by piece, from any connections with bytes ([`Filling::Pieces`]). So a few large
//! buffers are enough, and a frame that arrives complete is contiguous unless a buffer ends within it. A kernel without
//! this feature takes a buffer for each receive ([`Filling::Once`]); then the buffers are many and small.
//!
//! The owner of a [`Lent`] may read it and gives it back once; until then the kernel writes nothing there. The start of
//! a piece follows from the pieces before it. So completions must arrive in the order in which the kernel filled the
//! buffer, as those of multishot receives do ([`super::ring::Uring::receive`]).
//!
//! When all buffers are filled and in use, receiving ends with ENOBUFS and is armed again later; the bytes wait in
//! their sockets. (io_uring_register_buf_ring(3), Linux 5.19; IOU_PBUF_RING_INC, Linux 6.12.)

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

/// A group of buffers. Clients that fill all of theirs take none from the streams of other servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Group {
    /// The group for streams between servers.
    Streams = 0,
    /// The group for all other connections.
    #[default]
    Clients = 1,
}

impl Group {
    /// All groups, in order.
    pub(super) const ALL: [Group; 2] = [Group::Streams, Group::Clients];
}

/// The alignment of the ring's address that the kernel requires.
const PAGE_BYTES: usize = 4_096;
/// The flag of include/uapi/linux/io_uring.h for buffers that are filled piece by piece.
const IOU_PBUF_RING_INC: u16 = 2;

/// The way in which the kernel fills a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filling {
    /// Several receives, of any connections, fill one buffer.
    Pieces,
    /// One receive uses one buffer, however few bytes it returns.
    Once,
}

/// The number and size of buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// The number of buffers, a power of two.
    pub(super) count: u16,
    pub(super) bytes_each: u32,
}

/// A piece of a buffer, with received bytes.
#[derive(Debug)]
pub(super) struct Lent {
    pub(super) group: Group,
    buffer: u16,
    start: usize,
    length: usize,
}

/// The use of a buffer since it was offered to the kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Filled {
    bytes: usize,
    /// Pieces that are lent and not given back.
    lent: usize,
}

/// The ring of free buffers, and their memory.
pub(super) struct Buffers {
    group: Group,
    ring: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    shape: Shape,
    filling: Filling,
    filled: Vec<Filled>,
    tail: u16,
}

impl Buffers {
    /// Registers buffers with a ring.
    ///
    /// Their memory is never freed: the kernel may write to it for as long as the ring has requests, and an engine
    /// lives as long as its process.
    ///
    /// # Errors
    /// The error of io_uring_register(2): EINVAL if the kernel does not support this filling.
    pub(super) fn register(
        submitter: &Submitter<'_>,
        group: Group,
        filling: Filling,
        shape: Shape,
    ) -> io::Result<Buffers> {
        let Shape { count, bytes_each } = shape;
        assert!(count.is_power_of_two(), "{count} buffers are no power of two");
        let flags = match filling {
            Filling::Pieces => IOU_PBUF_RING_INC,
            Filling::Once => 0,
        };
        let ring_bytes = usize::from(count) * size_of::<BufRingEntry>();
        let ring = allocate(ring_bytes).cast::<BufRingEntry>();
        let address = ring.as_ptr() as u64;
        // SAFETY: the address is that of `count` zeroed entries, aligned to a page, which are never freed.
        let registered =
            unsafe { submitter.register_buf_ring_with_flags(address, count, group as u16, flags) };
        if let Err(error) = registered {
            // SAFETY: the memory was allocated with this layout, and the kernel has not taken it.
            unsafe { dealloc(ring.as_ptr().cast(), layout(ring_bytes)) };
            return Err(error);
        }
        let memory = allocate(usize::from(count) * bytes_each as usize);
        let filled = vec![Filled::default(); usize::from(count)];
        let mut buffers = Buffers { group, ring, memory, shape, filling, filled, tail: 0 };
        (0..count).for_each(|buffer| buffers.offer(buffer));
        Ok(buffers)
    }

    /// Returns the piece of a completion: `length` bytes of the buffer, after the earlier pieces.
    pub(super) fn lend(&mut self, buffer: u16, length: usize) -> Lent {
        let bytes_each = self.shape.bytes_each as usize;
        let filled = &mut self.filled[usize::from(buffer)];
        let start = filled.bytes;
        assert!(length <= bytes_each - start, "a buffer was filled beyond its end");
        filled.bytes = match self.filling {
            Filling::Pieces => start + length,
            Filling::Once => bytes_each,
        };
        filled.lent += 1;
        Lent { group: self.group, buffer, start, length }
    }

    /// Returns the received bytes.
    pub(super) fn bytes(&self, lent: &Lent) -> &[u8] {
        let start = usize::from(lent.buffer) * self.shape.bytes_each as usize + lent.start;
        // SAFETY: `lend` has checked that the range is inside the memory, which is initialised with zeros. While a
        // `Lent` of it exists the kernel writes nothing to it.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(start), lent.length) }
    }

    /// Takes a piece back. If the buffer is filled and this was its last piece, the buffer is offered to the kernel
    /// again.
    #[expect(clippy::needless_pass_by_value, reason = "a piece goes back once")]
    pub(super) fn give_back(&mut self, lent: Lent) {
        let filled = &mut self.filled[usize::from(lent.buffer)];
        filled.lent -= 1;
        if filled.lent == 0 && filled.bytes == self.shape.bytes_each as usize {
            self.offer(lent.buffer);
        }
    }

    /// Offers a whole buffer to the kernel.
    fn offer(&mut self, buffer: u16) {
        self.filled[usize::from(buffer)] = Filled::default();
        let place = usize::from(self.tail & (self.shape.count - 1));
        let start = usize::from(buffer) * self.shape.bytes_each as usize;
        // SAFETY: the place is one of the ring's entries. The kernel reads it only after the tail below has passed it,
        // and no longer uses its earlier content: there are as many entries as buffers.
        let entry = unsafe { &mut *self.ring.as_ptr().add(place) };
        entry.set_addr(self.memory.as_ptr().wrapping_add(start) as u64);
        entry.set_len(self.shape.bytes_each);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is in the first entry, in a field that the setters above do not touch; it is aligned, and
        // the kernel only reads it.
        unsafe {
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}

/// Allocates zeroed, page-aligned memory.
fn allocate(bytes: usize) -> NonNull<u8> {
    let layout = layout(bytes);
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

fn layout(bytes: usize) -> Layout {
    assert!(bytes > 0, "an allocation of 0 bytes");
    Layout::from_size_align(bytes, PAGE_BYTES).expect("a size far below the address space")
}
