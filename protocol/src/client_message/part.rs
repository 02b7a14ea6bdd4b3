//! The part of a value that a read requests.

use std::ops::Range;

/// The part of a value that a read requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The offset of the first byte: from the start of the value, or if `from_end`, from its end.
    pub from: u32,
    /// The maximum number of bytes to return.
    pub most: u32,
    /// True if the part is empty when the value has more than `most` bytes from offset `from` on. The response then has
    /// only the length of the value.
    pub all_or_nothing: bool,
    /// True if `from` counts from the end of the value. An offset before the start of the value means its start.
    pub from_end: bool,
    /// True if the response has the deadline of the entry.
    pub with_deadline: bool,
}

const ALL_OR_NOTHING: u8 = 1;
const FROM_END: u8 = 2;
const WITH_DEADLINE: u8 = 4;

impl Part {
    /// The whole value with the deadline of its entry.
    pub const WITH_DEADLINE: Part = Part { with_deadline: true, ..Part::new(0, u32::MAX) };
    /// The deadline and the length of the value, without the value.
    pub const ONLY_DEADLINE: Part =
        Part { all_or_nothing: true, with_deadline: true, ..Part::new(0, 0) };

    /// At most `most` bytes from offset `from` on.
    pub const fn new(from: u32, most: u32) -> Part {
        Part { from, most, all_or_nothing: false, from_end: false, with_deadline: false }
    }

    /// Returns the range of a value of this length that the part covers.
    #[inline]
    pub fn of(&self, length: usize) -> Range<usize> {
        let from = (self.from as usize).min(length);
        let from = if self.from_end { length - from } else { from };
        match (length - from).min(self.most as usize) {
            bytes if self.all_or_nothing && bytes < length - from => from..from,
            bytes => from..from + bytes,
        }
    }

    /// Encodes the part for the field `if_version` of a GET: `from` in the low 32 bits, `most` + 1 in the high ones.
    /// The field is zero if the whole value is requested.
    pub(super) fn to_wire(self) -> u64 {
        // `most + 1` must fit in 32 bits. The cap does not change the result, because no value is that long.
        u64::from(self.from) | (u64::from(self.most.min(u32::MAX - 1)) + 1) << 32
    }

    /// Encodes the flags for the field `replica` of a GET.
    pub(super) fn flags(self) -> u8 {
        let flag = |is_set: bool, flag| if is_set { flag } else { 0 };
        flag(self.all_or_nothing, ALL_OR_NOTHING)
            | flag(self.from_end, FROM_END)
            | flag(self.with_deadline, WITH_DEADLINE)
    }

    /// Decodes both fields. Returns `None` if they encode no part.
    pub(super) fn from_wire(number: u64, flags: u8) -> Option<Part> {
        let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
        let from = u32::from_le_bytes([a, b, c, d]);
        let most = u32::from_le_bytes([e, f, g, h]).checked_sub(1)?;
        let is_known = flags & !(ALL_OR_NOTHING | FROM_END | WITH_DEADLINE) == 0;
        is_known.then_some(Part {
            from,
            most,
            all_or_nothing: flags & ALL_OR_NOTHING != 0,
            from_end: flags & FROM_END != 0,
            with_deadline: flags & WITH_DEADLINE != 0,
        })
    }
}
