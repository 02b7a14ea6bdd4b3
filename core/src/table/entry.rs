//! The layout of an entry in the arena: one allocation with header, key and value.
//!
//! ```text
//!   0        8          12       14     16
//!   | version | value len | key len | check | key … | value … |
//! ```

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use kv_protocol::ids::SequenceNumber;

use crate::arena::{Arena, Handle};
use crate::hash::mix;

/// The maximum length of a key.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// The maximum length of a value. It is far above the protocol's limit, and so low that no sum of lengths
/// overflows.
pub const VALUE_BYTES_MAX: usize = 1 << 30;

/// The header that precedes each key.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Header {
    version: u64,
    value_len: u32,
    key_len: u16,
    /// 16 bits of a hash of key and value, stored once the value is complete; part of the table's digest.
    check: u16,
}

const HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(HEADER_BYTES == 16 && align_of::<Header>() <= crate::arena::UNIT_BYTES);

/// The size of a cache line.
const LINE_BYTES: usize = 64;
/// The number of cache lines to prefetch: they contain the header, key and value of a small entry. For long values the
/// processor's hardware prefetcher fetches the rest.
const PREFETCH_LINES: usize = 2;

/// A key, its value, and the sequence number of its last write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The whole key.
    pub key: &'a [u8],
    /// The whole value.
    pub value: &'a [u8],
    /// The sequence number of the entry's last write.
    pub version: SequenceNumber,
}

/// Returns the size of an entry's allocation.
pub(super) fn entry_bytes(key_len: usize, value_len: usize) -> usize {
    HEADER_BYTES + key_len + value_len
}

/// Allocates an entry and writes its header and key. Returns `None` if there is no memory.
pub(super) fn create(arena: &mut Arena, key: &[u8], value_len: usize) -> Option<Handle> {
    let key_len = u16::try_from(key.len()).expect("a key has at most 65,535 bytes");
    assert!(value_len <= VALUE_BYTES_MAX, "a value of {value_len} bytes is above any limit");
    let value_len = u32::try_from(value_len).expect("the limit is below 2^32");
    let handle = arena.allocate(entry_bytes(key.len(), value_len as usize))?;
    let at = arena.address(handle);
    // SAFETY: nothing else uses the fresh allocation, which is aligned to 16 and has room for header and key.
    unsafe {
        at.cast::<Header>().write(Header { version: 0, value_len, key_len, check: 0 });
        at.add(HEADER_BYTES).copy_from_nonoverlapping(key.as_ptr(), key.len());
        if value_len == 0 {
            note_check(arena, handle);
        }
    }
    Some(handle)
}

/// # Safety
///
/// `handle` is an entry of this arena, created by [`create`] and not yet freed.
#[inline]
unsafe fn header(arena: &Arena, handle: Handle) -> Header {
    // SAFETY: `create` wrote a header there.
    unsafe { arena.address(handle).cast::<Header>().read() }
}

/// # Safety
///
/// The requirements of [`header`] hold.
#[inline]
pub(super) unsafe fn key(arena: &Arena, handle: Handle) -> &[u8] {
    // SAFETY: `create` wrote a header and a key of that length; an entry's key never changes, and
    // freeing it needs the arena exclusively.
    unsafe {
        let key_len = usize::from(header(arena, handle).key_len);
        std::slice::from_raw_parts(arena.address(handle).add(HEADER_BYTES), key_len)
    }
}

/// Returns the version of an entry.
///
/// # Safety
///
/// The requirements of [`header`] hold.
pub(super) unsafe fn version(arena: &Arena, handle: Handle) -> SequenceNumber {
    // SAFETY: guaranteed by the caller.
    SequenceNumber(unsafe { header(arena, handle) }.version)
}

/// Computes and stores the check of an entry when its value becomes complete, because the bytes of the value are then
/// in the processor's caches. When the entry is linked, they may no longer be.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the whole value was written.
unsafe fn note_check(arena: &mut Arena, handle: Handle) {
    // SAFETY: guaranteed by the caller; the arena is borrowed exclusively.
    unsafe {
        let check = sealed_anew(arena, handle).check;
        (*arena.address(handle).cast::<Header>()).check = check;
    }
}

/// Stores the version of an entry that is about to be linked, and returns the entry's seal.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the whole value was written.
pub(super) unsafe fn seal(arena: &mut Arena, handle: Handle, version: SequenceNumber) -> Seal {
    // SAFETY: `create` wrote a header there, and the arena is borrowed exclusively.
    unsafe {
        (*arena.address(handle).cast::<Header>()).version = version.0;
        sealed(arena, handle)
    }
}

/// Returns 16 bits of a hash of key and value. It is not keyed, because two servers compare it.
fn check_of(key_and_value: &[u8]) -> u16 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    hasher.write(key_and_value);
    let hash = hasher.finish().to_le_bytes();
    u16::from_le_bytes([hash[6], hash[7]])
}

/// The contribution of a sealed entry to its table's digest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seal {
    pub(super) version: SequenceNumber,
    check: u16,
    /// The length of key and value.
    pub(super) bytes: usize,
}

impl Seal {
    /// Returns a well-mixed number for the sum that is the table's digest. Sequence numbers are unique, so no two
    /// entries of a (group, shard) contribute the same number.
    pub(super) fn digest(self) -> u64 {
        mix(self.version.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (u64::from(self.check) << 48))
    }
}

/// Returns the seal of a sealed entry.
///
/// # Safety
///
/// The requirements of [`header`] hold.
pub(super) unsafe fn sealed(arena: &Arena, handle: Handle) -> Seal {
    // SAFETY: guaranteed by the caller.
    let header = unsafe { header(arena, handle) };
    let bytes = usize::from(header.key_len) + header.value_len as usize;
    Seal { version: SequenceNumber(header.version), check: header.check, bytes }
}

/// Returns a fresh seal, whose check is recomputed from key and value.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the whole value was written.
pub(super) unsafe fn sealed_anew(arena: &Arena, handle: Handle) -> Seal {
    // SAFETY: the caller guarantees that key and value follow the header.
    unsafe {
        let header = header(arena, handle);
        let bytes = usize::from(header.key_len) + header.value_len as usize;
        let check =
            check_of(std::slice::from_raw_parts(arena.address(handle).add(HEADER_BYTES), bytes));
        Seal { version: SequenceNumber(header.version), check, bytes }
    }
}

/// Returns the length of the complete value of an entry.
///
/// # Safety
///
/// The requirements of [`header`] hold.
pub(super) unsafe fn value_len(arena: &Arena, handle: Handle) -> usize {
    // SAFETY: guaranteed by the caller.
    unsafe { header(arena, handle) }.value_len as usize
}

/// Writes `bytes` into the value at `offset`. The parts of a value must be written in order.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the value was written up to `offset`.
pub(super) unsafe fn write_value(arena: &mut Arena, handle: Handle, offset: usize, bytes: &[u8]) {
    // SAFETY: guaranteed by the caller.
    let header = unsafe { header(arena, handle) };
    let value_len = header.value_len as usize;
    assert!(
        offset <= value_len && bytes.len() <= value_len - offset,
        "{} bytes at {offset} do not fit a value of {value_len} bytes",
        bytes.len()
    );
    // SAFETY: the allocation has room for the value after the key, the range was just checked, and
    // `bytes` cannot lie in the arena, which is borrowed exclusively.
    unsafe {
        let value = arena.address(handle).add(HEADER_BYTES + usize::from(header.key_len));
        value.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        if offset + bytes.len() == value_len {
            note_check(arena, handle);
        }
    }
}

/// Returns the first `filled` bytes of an entry's value.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the value was written up to `filled`.
pub(super) unsafe fn value_so_far(arena: &Arena, handle: Handle, filled: usize) -> &[u8] {
    // SAFETY: the bytes were written and do not change while the arena is borrowed.
    unsafe {
        let key_len = usize::from(header(arena, handle).key_len);
        std::slice::from_raw_parts(arena.address(handle).add(HEADER_BYTES + key_len), filled)
    }
}

/// Returns the key, value and version of an entry.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the whole value was written.
#[inline]
pub(super) unsafe fn read(arena: &Arena, handle: Handle) -> Entry<'_> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let header = header(arena, handle);
        let key_at = arena.address(handle).add(HEADER_BYTES);
        let key_len = usize::from(header.key_len);
        Entry {
            key: std::slice::from_raw_parts(key_at, key_len),
            value: std::slice::from_raw_parts(key_at.add(key_len), header.value_len as usize),
            version: SequenceNumber(header.version),
        }
    }
}

/// Prefetches the memory of an entry's header and key, and of a short value.
#[inline]
pub(super) fn prefetch(arena: &Arena, handle: Handle) {
    let at = arena.address(handle);
    for line in 0..PREFETCH_LINES {
        crate::prefetch::prefetch(at.wrapping_add(line * LINE_BYTES));
    }
}

/// Moves an entry out of its chunk, which is being emptied. `filled` is the number of bytes of the value that were
/// written; `None` means all of them. Returns the new handle and the size of the allocation, or `None` without any
/// change if there is no room.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the given part of the value was written. If a new handle is returned, the
/// old one is no longer used.
pub(super) unsafe fn relocate(
    arena: &mut Arena,
    handle: Handle,
    filled: Option<usize>,
) -> Option<(Handle, usize)> {
    // SAFETY: guaranteed by the caller.
    let header = unsafe { header(arena, handle) };
    let (key_len, value_len) = (usize::from(header.key_len), header.value_len as usize);
    let bytes = entry_bytes(key_len, value_len);
    let written = entry_bytes(key_len, filled.unwrap_or(value_len));
    // SAFETY: guaranteed by the caller; the size is the one that `create` requested.
    let moved = unsafe { arena.relocate(handle, bytes, written) }?;
    Some((moved, bytes))
}

/// Frees an entry's memory.
///
/// # Safety
///
/// The requirements of [`header`] hold, and nothing refers to the entry.
pub(super) unsafe fn free(arena: &mut Arena, handle: Handle) {
    // SAFETY: guaranteed by the caller; the size is the one that `create` requested.
    unsafe {
        let header = header(arena, handle);
        let bytes = entry_bytes(usize::from(header.key_len), header.value_len as usize);
        arena.free(handle, bytes);
    }
}
