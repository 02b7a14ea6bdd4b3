//! Long values that go from the socket straight to where the caller wants them.
//!
//! ```text
//!   socket --> frame buffer   [ head | first bytes of the value ]     as every response begins
//!          --> landing        [ first bytes, copied | the rest, received here ]
//! ```
//!
//! Short values pass through the frame buffer, which takes many of them with one read.

use std::cell::RefCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::slice;

use kv_protocol::client_message::{Answer, Status};
use kv_protocol::ids::RequestId;

use crate::operation::OpId;

/// The fewest missing bytes for which a value leaves the frame buffer.
pub(crate) const LONG_BYTES: usize = 64 << 10;
/// The number of bytes that are received at a time of a value that nobody wants any more.
const DISCARDED_AT_A_TIME: usize = 64 << 10;

/// Where a read puts a long value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landing {
    /// In the client's buffer, from where the caller copies it.
    #[default]
    Buffer,
    /// In memory of its own, which the caller gets ([`crate::Answered::take_memory`]).
    Memory,
    /// In the caller's memory. Short values are not put there.
    At(Room),
}

/// Memory of the caller that a value is received into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: whoever made it has promised the memory to the client, on whichever thread that runs.
unsafe impl Send for Room {}

impl Room {
    /// Promises `bytes` bytes at `at` to an operation.
    ///
    /// # Safety
    /// They may be written, and nothing else reads or writes them, until the operation has ended or the client has
    /// been dropped.
    pub unsafe fn new(at: NonNull<u8>, bytes: usize) -> Room {
        Room { at, bytes }
    }
}

/// A value in memory from `malloc`, with a NUL behind it.
pub struct LongValue {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is its own.
unsafe impl Send for LongValue {}

impl LongValue {
    /// Memory for a value of `bytes` bytes. Returns `None` if there is none.
    fn allocate(bytes: usize) -> Option<LongValue> {
        // SAFETY: at least one byte.
        let at = NonNull::new(unsafe { libc::malloc(bytes + 1) }.cast::<u8>())?;
        // SAFETY: the last byte of the allocation.
        unsafe { at.add(bytes).write(0) };
        Some(LongValue { at, bytes })
    }

    /// Gives the memory away: the address and the number of bytes before the NUL. The caller frees it with `free`.
    pub fn into_raw(self) -> (NonNull<u8>, usize) {
        let raw = (self.at, self.bytes);
        std::mem::forget(self);
        raw
    }
}

impl Drop for LongValue {
    fn drop(&mut self) {
        // SAFETY: it came from malloc, and nobody else frees it.
        unsafe { libc::free(self.at.as_ptr().cast()) };
    }
}

impl fmt::Debug for LongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongValue").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

/// The memory of a value that has landed, until the caller takes it.
pub(crate) type Landed = RefCell<Option<LongValue>>;

/// A long value on its way from a connection to its landing.
#[derive(Debug)]
pub(crate) struct Inflow {
    pub(crate) operation: OpId,
    /// The response, without its value.
    head: Answer<'static>,
    to: Destination,
    filled: usize,
    length: usize,
}

#[derive(Debug)]
enum Destination {
    Memory(LongValue),
    Room(Room),
    /// The operation has ended, or receives the value from another connection.
    Nowhere,
}

impl Inflow {
    /// Begins with a response of which the head and the first bytes of the value have come, and `missing` more are to
    /// come. Returns `None` if the value goes to the buffer.
    pub(crate) fn begin(
        operation: OpId,
        landing: Landing,
        answer: &Answer<'_>,
        missing: usize,
    ) -> Option<Inflow> {
        if !matches!(answer.status, Status::Ok | Status::Part) || missing < LONG_BYTES {
            return None;
        }
        let length = answer.value.len() + missing;
        let to = match landing {
            Landing::Buffer => return None,
            Landing::Memory => Destination::Memory(LongValue::allocate(length)?),
            Landing::At(room) if length <= room.bytes => Destination::Room(room),
            Landing::At(_) => return None,
        };
        let head = Answer { value: &[], ..*answer };
        let mut inflow = Inflow { operation, head, to, filled: 0, length };
        let first = answer.value;
        for (place, byte) in inflow.rest().iter_mut().zip(first) {
            place.write(*byte);
        }
        inflow.filled = first.len();
        Some(inflow)
    }

    pub(crate) fn request(&self) -> RequestId {
        self.head.id
    }

    /// Lets go of the memory; the bytes to come are dropped.
    pub(crate) fn discard(&mut self) {
        self.to = Destination::Nowhere;
    }

    /// Where the memory begins.
    fn at(&self) -> Option<NonNull<u8>> {
        match &self.to {
            Destination::Memory(memory) => Some(memory.at),
            Destination::Room(room) => Some(room.at),
            Destination::Nowhere => None,
        }
    }

    /// The memory that the next bytes go to.
    fn rest(&mut self) -> &mut [MaybeUninit<u8>] {
        let Some(at) = self.at() else { return &mut [] };
        // SAFETY: the destination has room for `length` bytes, `filled` is no more, and nobody else uses them.
        unsafe {
            let rest = at.add(self.filled).cast::<MaybeUninit<u8>>();
            slice::from_raw_parts_mut(rest.as_ptr(), self.length - self.filled)
        }
    }

    /// Lets `read` receive the next bytes: it is given room for them and returns how many it has written.
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

    /// How many bytes are to come.
    pub(crate) fn missing(&self) -> usize {
        self.length - self.filled
    }

    /// Ends it, all bytes having come: `take` sees the whole response. Returns `None` without a call if the value was
    /// dropped.
    pub(crate) fn end<T>(self, take: impl FnOnce(&Answer<'_>, &Landed) -> T) -> Option<T> {
        let at = self.at()?;
        // SAFETY: all of it was written, and is not written again while `take` runs.
        let value = unsafe { slice::from_raw_parts(at.as_ptr(), self.length) };
        let landed = match self.to {
            Destination::Memory(memory) => RefCell::new(Some(memory)),
            _ => RefCell::new(None),
        };
        Some(take(&Answer { value, ..self.head }, &landed))
    }
}

/// Copies a value into the caller's memory, unless it has landed there.
///
/// # Safety
/// `to` has room for it.
pub unsafe fn copy_unless_there(value: &[u8], to: *mut u8) {
    if !value.is_empty() && !ptr::eq(value.as_ptr(), to) {
        // SAFETY: the caller's promise. Memory that the client reads from is its own.
        unsafe { ptr::copy_nonoverlapping(value.as_ptr(), to, value.len()) };
    }
}
