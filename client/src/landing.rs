//! Reception of long values from the socket directly into the destination that the caller chose.
//!
//! ```text
//!   socket --> frame buffer   [ head | first bytes of the value ]     the start of every response
//!          --> landing        [ first bytes, copied | the rest, received here ]
//! ```
//!
//! Short values pass through the frame buffer, which receives many of them with one read.

use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use kv_protocol::client_message::{Response, Status};
use kv_protocol::ids::RequestId;

use crate::operation::OpId;

/// The minimum number of missing bytes for which the rest of a value bypasses the frame buffer.
pub(crate) const LONG_BYTES: usize = 64 << 10;
/// The maximum number of bytes per read of a value that is discarded.
const DISCARDED_AT_A_TIME: usize = 64 << 10;

/// The destination of a long value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landing {
    /// The client's receive buffer, from which the caller copies the value.
    #[default]
    Buffer,
    /// Separate memory, which the caller takes ([`crate::Reply::take_memory`]).
    Memory,
    /// The caller's memory. Short values, and values longer than this memory, still go through the receive buffer.
    At(Room),
}

/// The caller's memory for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the caller of `Room::new` has lent the memory to the client, on whichever thread the client runs.
unsafe impl Send for Room {}

impl Room {
    /// Lends `bytes` bytes at `at` to an operation.
    ///
    /// # Safety
    /// The memory is valid for writes. Nothing else reads or writes it until the operation has ended or the client has
    /// been dropped.
    pub unsafe fn new(at: NonNull<u8>, bytes: usize) -> Room {
        Room { at, bytes }
    }
}

/// A value in memory from `malloc`, followed by a NUL byte.
pub struct LongValue {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for LongValue {}

impl LongValue {
    /// Allocates memory for a value of `bytes` bytes and a NUL. Returns `None` if the allocation fails.
    fn allocate(bytes: usize) -> Option<LongValue> {
        // SAFETY: the size is at least one byte.
        let at = NonNull::new(unsafe { libc::malloc(bytes + 1) }.cast::<u8>())?;
        // SAFETY: `at + bytes` is the last byte of the allocation.
        unsafe { at.add(bytes).write(0) };
        Some(LongValue { at, bytes })
    }

    /// Returns the address and the number of bytes before the NUL. The caller owns the memory and frees it with `free`.
    pub fn into_raw(self) -> (NonNull<u8>, usize) {
        let raw = (self.at, self.bytes);
        std::mem::forget(self);
        raw
    }
}

impl Drop for LongValue {
    fn drop(&mut self) {
        // SAFETY: the memory came from malloc, and is freed only here.
        unsafe { libc::free(self.at.as_ptr().cast()) };
    }
}

impl fmt::Debug for LongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongValue").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The memory of a received value, until the caller takes it.
pub(crate) type Landed = RefCell<Option<LongValue>>;

/// A long value being received from a connection into its destination.
#[derive(Debug)]
pub(crate) struct Inflow {
    pub(crate) operation: OpId,
    /// The response without its value.
    head: Response<'static>,
    to: Destination,
    filled: usize,
    length: usize,
}

#[derive(Debug)]
enum Destination {
    Memory(LongValue),
    Room(Room),
    /// No destination: the operation has ended, or it receives the value from another connection.
    Nowhere,
}

impl Inflow {
    /// Starts a transfer. `response` contains the head and the first bytes of the value, and `missing` more bytes
    /// follow. Returns `None` if the response stays in the receive buffer: it has no value, its rest is short, or the
    /// destination is the buffer, too small or not available.
    pub(crate) fn begin(
        operation: OpId,
        landing: Landing,
        response: &Response<'_>,
        missing: usize,
    ) -> Option<Inflow> {
        if !matches!(response.status, Status::Ok | Status::Part) || missing < LONG_BYTES {
            return None;
        }
        let length = response.value.len() + missing;
        let to = match landing {
            Landing::Buffer => return None,
            Landing::Memory => Destination::Memory(LongValue::allocate(length)?),
            Landing::At(room) if length <= room.bytes => Destination::Room(room),
            Landing::At(_) => return None,
        };
        let head = Response { value: &[], ..*response };
        let mut inflow = Inflow { operation, head, to, filled: 0, length };
        let first = response.value;
        for (place, byte) in inflow.rest().iter_mut().zip(first) {
            place.write(*byte);
        }
        inflow.filled = first.len();
        Some(inflow)
    }

    pub(crate) fn request(&self) -> RequestId {
        self.head.id
    }

    /// Releases the destination; the remaining bytes are discarded.
    pub(crate) fn discard(&mut self) {
        self.to = Destination::Nowhere;
    }

    /// Returns the start of the destination, if there is one.
    fn at(&self) -> Option<NonNull<u8>> {
        match &self.to {
            Destination::Memory(memory) => Some(memory.at),
            Destination::Room(room) => Some(room.at),
            Destination::Nowhere => None,
        }
    }

    /// Returns the part of the destination that is not filled yet.
    fn rest(&mut self) -> &mut [MaybeUninit<u8>] {
        let Some(at) = self.at() else { return &mut [] };
        // SAFETY: the destination has room for `length` bytes, `filled` is at most `length`, and nothing else uses the
        // memory.
        unsafe {
            let rest = at.add(self.filled).cast::<MaybeUninit<u8>>();
            slice::from_raw_parts_mut(rest.as_ptr(), self.length - self.filled)
        }
    }

    /// Receives the next bytes: `read` gets the space for them and returns the number of bytes written.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let count = match &self.to {
            Destination::Nowhere => {
                let bytes = (self.length - self.filled).min(DISCARDED_AT_A_TIME);
                read(Vec::with_capacity(bytes).spare_capacity_mut().split_at_mut(bytes).0)?
            }
            _ => read(self.rest())?,
        };
        self.filled += count;
        Ok(count)
    }

    /// Returns the number of bytes still to be received.
    pub(crate) fn missing(&self) -> usize {
        self.length - self.filled
    }

    /// Completes the transfer after all bytes have been received, and passes the whole response to `take`. Returns
    /// `None` without calling `take` if the value was discarded.
    pub(crate) fn end<T>(self, take: impl FnOnce(&Response<'_>, &Landed) -> T) -> Option<T> {
        let at = self.at()?;
        // SAFETY: all `length` bytes were written, and are not written again while `take` runs.
        let value = unsafe { slice::from_raw_parts(at.as_ptr(), self.length) };
        let landed = match self.to {
            Destination::Memory(memory) => RefCell::new(Some(memory)),
            _ => RefCell::new(None),
        };
        Some(take(&Response { value, ..self.head }, &landed))
    }
}

/// Copies a value into the caller's memory, unless it was received into that memory.
///
/// # Safety
/// `to` is valid for writes of `value.len()` bytes.
pub unsafe fn copy_unless_there(value: &[u8], to: *mut u8) {
    if !value.is_empty() && !ptr::eq(value.as_ptr(), to) {
        // SAFETY: the caller guarantees the room. A value elsewhere is in the client's own memory, so the ranges do not
        // overlap.
        unsafe { ptr::copy_nonoverlapping(value.as_ptr(), to, value.len()) };
    }
}
