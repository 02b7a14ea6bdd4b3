//! The program's memory for a value or a part of it.

use std::ffi::c_void;
use std::ptr::NonNull;

use kv_client::{Landing, Op, Part, Reply, Room, copy_unless_there};

use crate::error::{Failure, KVC_TOO_BIG};

/// The destination of a read; see the module documentation.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    dst: *mut c_void,
    cap: usize,
    part: Part,
}

// SAFETY: the program allows the library to write to the memory until the operation has ended, on any thread.
unsafe impl Send for Target {}

impl Target {
    /// Creates a destination for a whole value. A value longer than `cap` is not fetched at all.
    pub(crate) fn all(dst: *mut c_void, cap: usize) -> Target {
        Target { dst, cap, part: Part { all_or_nothing: true, ..part(cap, 0) } }
    }

    /// Creates a destination for up to `cap` bytes of a value, starting at `offset`.
    pub(crate) fn range(dst: *mut c_void, cap: usize, offset: usize) -> Target {
        Target { dst, cap, part: part(cap, offset) }
    }

    /// Returns whether the target has memory, or needs none because its capacity is zero.
    pub(crate) fn has_memory(&self) -> bool {
        !self.dst.is_null() || self.cap == 0
    }

    /// Returns the operation that reads a key into this target, and the deadline of its entry if requested.
    pub(crate) fn op<'a>(&self, key: &'a [u8], with_deadline: bool) -> Op<'a> {
        let landing = NonNull::new(self.dst.cast::<u8>()).map_or(Landing::Buffer, |at| {
            // SAFETY: the program lends the memory until the operation has ended.
            Landing::At(unsafe { Room::new(at, self.cap) })
        });
        Op::Read { key, part: Some(Part { with_deadline, ..self.part }), landing }
    }

    /// Copies the received bytes into the memory, unless they were received directly into it.
    ///
    /// # Safety
    /// The memory has room for the requested bytes.
    pub(crate) unsafe fn take(&self, responded: Reply<'_>) {
        // This limit is a safeguard, because the client never returns more bytes than requested.
        let value = &responded.value[..responded.value.len().min(self.cap)];
        // SAFETY: it fits, and the caller guarantees the room.
        unsafe { copy_unless_there(value, self.dst.cast()) };
    }

    /// Returns the failure KVC_TOO_BIG if a whole value of this length does not fit.
    pub(crate) fn too_small(&self, length: usize) -> Option<Failure> {
        (self.part.all_or_nothing && length > self.cap).then(|| {
            let words = format!(
                "the length of the value is {length} bytes, but the size of dst is {}",
                self.cap
            );
            Failure::new(KVC_TOO_BIG, words)
        })
    }
}

/// Returns the part of at most `most` bytes that starts at `from`. Larger numbers are clamped to 32 bits, because no
/// value is that long.
fn part(most: usize, from: usize) -> Part {
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Part::new(narrow(from), narrow(most))
}
