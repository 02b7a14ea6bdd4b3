//! The buffers that the kernel receives into: one group for the streams of other servers, one for all else.
//!
//! ```text
//!   [ ring of free buffers ] --> kernel: bytes came in --> completion --> Lent: a piece of a buffer
//!        ^                                                                  |
//!        +--- filled, and every piece is given back <-- the bytes were served
//! ```
//!
//! A buffer is filled piece by piece, by whichever connections have bytes ([`Filling::Pieces`]): a few large ones
//! are enough, and a frame that has come whole lies there in one piece. A kernel that cannot do that takes a buffer
//! for each receive ([`Filling::Once`]): then they are many and small.
//!
//! Whoever has a [`Lent`] may read it, and it goes back once; until then the kernel writes nothing there. Where a
//! piece begins follows from those before it, so completions must come in the order in which the kernel has filled
//! the buffer, as those of standing receives do ([`super::ring::Ring::receive`]). When all buffers are filled and in
//! use, receiving ends with ENOBUFS and is armed again later: nothing is lost, the bytes wait in their sockets.
//! (io_uring_register_buf_ring(3), Linux 5.19; IOU_PBUF_RING_INC, Linux 6.12.)

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
    /// Of streams between servers.
    Streams = 0,
    /// Of all other connections.
    #[default]
    Clients = 1,
}

impl Group {
    /// All of them, in order.
    pub(super) const ALL: [Group; 2] = [Group::Streams, Group::Clients];
}

/// What the kernel demands of the ring's address.
const PAGE_BYTES: usize = 4_096;
/// Of include/uapi/linux/io_uring.h: a buffer is filled piece by piece.
const IOU_PBUF_RING_INC: u16 = 2;

/// How the kernel fills a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filling {
    /// Until it is full, whoever receives.
    Pieces,
    /// By one receive, however little that brings.
    Once,
}

/// How many buffers there are, and how large.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// A power of two.
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

/// What has become of a buffer since the kernel got it.
#[derive(Clone, Copy, Debug, Default)]
struct Filled {
    bytes: usize,
    /// Pieces that are ours.
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
    /// Their memory is never given back: the kernel may write to it for as long as the ring has requests,
    /// and an engine lives as long as its process.
    ///
    /// # Errors
    /// EINVAL if the kernel cannot fill buffers so.
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
        // SAFETY: the address is that of `count` entries of zeros, aligned to a page, which stay for ever.
        let registered =
            unsafe { submitter.register_buf_ring_with_flags(address, count, group as u16, flags) };
        if let Err(error) = registered {
            // SAFETY: it was allocated so, and the kernel has not taken it.
            unsafe { dealloc(ring.as_ptr().cast(), layout(ring_bytes)) };
            return Err(error);
        }
        let memory = allocate(usize::from(count) * bytes_each as usize);
        let filled = vec![Filled::default(); usize::from(count)];
        let mut buffers = Buffers { group, ring, memory, shape, filling, filled, tail: 0 };
        (0..count).for_each(|buffer| buffers.offer(buffer));
        Ok(buffers)
    }

    /// The piece that a completion tells of: so many bytes of the buffer it names, behind those before.
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

    /// The bytes received.
    pub(super) fn bytes(&self, lent: &Lent) -> &[u8] {
        let start = usize::from(lent.buffer) * self.shape.bytes_each as usize + lent.start;
        // SAFETY: `lend` has checked that the range is inside the memory, which was zeroed first; while
        // there is a `Lent` of it the kernel writes nothing to it.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(start), lent.length) }
    }

    /// Takes a piece back; the kernel has the buffer again once it is filled and this was the last.
    #[expect(clippy::needless_pass_by_value, reason = "a piece goes back once")]
    pub(super) fn give_back(&mut self, lent: Lent) {
        let filled = &mut self.filled[usize::from(lent.buffer)];
        filled.lent -= 1;
        if filled.lent == 0 && filled.bytes == self.shape.bytes_each as usize {
            self.offer(lent.buffer);
        }
    }

    /// Lets the kernel have a whole buffer.
    fn offer(&mut self, buffer: u16) {
        self.filled[usize::from(buffer)] = Filled::default();
        let place = usize::from(self.tail & (self.shape.count - 1));
        let start = usize::from(buffer) * self.shape.bytes_each as usize;
        // SAFETY: the place is one of the ring's entries. The kernel reads it only after the tail below has
        // passed it, and is done with what stood there before: there are as many entries as buffers.
        let entry = unsafe { &mut *self.ring.as_ptr().add(place) };
        entry.set_addr(self.memory.as_ptr().wrapping_add(start) as u64);
        entry.set_len(self.shape.bytes_each);
        entry.set_bid(buffer);
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
    let layout = layout(bytes);
    // SAFETY: the size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout))
}

fn layout(bytes: usize) -> Layout {
    assert!(bytes > 0, "no memory is asked for");
    Layout::from_size_align(bytes, PAGE_BYTES).expect("a size far below the address space")
}
