//! Memory of the program that a value, or a part of it, is read into.

use std::ffi::c_void;
use std::ptr::NonNull;

use kv_client::{Answered, Landing, Op, Part, Room, copy_unless_there};

use crate::error::{Failure, KVC_TOO_BIG};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    dst: *mut c_void,
    cap: usize,
    part: Part,
}

// SAFETY: the program lets the library write there until the operation has ended, on whichever thread.
unsafe impl Send for Target {}

impl Target {
    /// For a whole value, or nothing of one that is longer.
    pub(crate) fn all(dst: *mut c_void, cap: usize) -> Target {
        Target { dst, cap, part: Part { all_or_nothing: true, ..part(cap, 0) } }
    }

    /// For the bytes from `offset` on.
    pub(crate) fn range(dst: *mut c_void, cap: usize, offset: usize) -> Target {
        Target { dst, cap, part: part(cap, offset) }
    }

    /// The operation that reads a key into it.
    pub(crate) fn op<'a>(&self, key: &'a [u8]) -> Op<'a> {
        let landing = NonNull::new(self.dst.cast::<u8>()).map_or(Landing::Buffer, |at| {
            // SAFETY: whoever made the target has promised the memory.
            Landing::At(unsafe { Room::new(at, self.cap) })
        });
        Op::Read { key, part: Some(self.part), landing }
    }

    /// Takes the bytes that have come, unless they are there.
    ///
    /// # Safety
    /// The memory has room for what was asked for.
    pub(crate) unsafe fn take(&self, answered: Answered<'_>) {
        debug_assert!(answered.value.len() <= self.cap);
        // SAFETY: the client gives no more bytes than were asked for, and passed on.
        unsafe { copy_unless_there(answered.value, self.dst.cast()) };
    }

    /// Why a whole value of this length does not fit.
    pub(crate) fn too_small(&self, length: usize) -> Option<Failure> {
        (self.part.all_or_nothing && length > self.cap).then(|| {
            let words = format!("the value has {length} bytes, dst has room for {}", self.cap);
            Failure::new(KVC_TOO_BIG, words)
        })
    }
}

/// At most `most` bytes from `from` on. No value is so long that what does not fit 32 bits matters.
fn part(most: usize, from: usize) -> Part {
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Part { from: narrow(from), most: narrow(most), all_or_nothing: false }
}
