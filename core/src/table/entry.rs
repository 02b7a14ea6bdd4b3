//! The layout of an entry in the arena: one allocation with header, key and value, and a trailer if the entry has a
//! deadline.
//!
//! ```text
//!   0        8          12       14     16                    next multiple of 8
//!   | version | value len | key len | check | key … | value … | prev | next | deadline, slot |
//!               first bit: has a deadline                       trailer: 16 bytes
//! ```
//!
//! The trailer links the entry into a list of the deadline wheel (`deadlines`). An entry without a deadline has no
//! trailer, and the positions of key and value do not depend on it.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;
use kv_protocol::ids::{SequenceNumber, WallTime};

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
    /// The length of the value, and [`HAS_DEADLINE`].
    value_len_and_flag: u32,
    key_len: u16,
    /// 16 bits of a hash of key, value and deadline, stored once the value is complete; part of the table's digest.
    check: u16,
}

/// The bit of `value_len_and_flag` that marks an entry with a deadline.
const HAS_DEADLINE: u32 = 1 << 31;
const _: () = assert!(VALUE_BYTES_MAX < HAS_DEADLINE as usize);

impl Header {
    #[inline]
    fn value_len(self) -> usize {
        (self.value_len_and_flag & !HAS_DEADLINE) as usize
    }

    #[inline]
    fn has_deadline(self) -> bool {
        self.value_len_and_flag & HAS_DEADLINE != 0
    }

    /// Returns the length of key and value.
    fn content_len(self) -> usize {
        usize::from(self.key_len) + self.value_len()
    }

    /// Returns the size of the entry's allocation.
    fn entry_bytes(self) -> usize {
        entry_bytes(self.key_len.into(), self.value_len(), self.has_deadline())
    }
}

const HEADER_BYTES: usize = size_of::<Header>();
const _: () = assert!(HEADER_BYTES == 16 && align_of::<Header>() <= crate::arena::UNIT_BYTES);

/// The end of an entry with a deadline.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Trailer {
    /// The neighbours in the circular list of the entry's slot; `None` if the entry is in no list.
    pub(super) prev: Option<Handle>,
    pub(super) next: Option<Handle>,
    /// The deadline in the upper 48 bits, and the slot number in the lower 16.
    deadline_and_slot: u64,
}

/// The number of bytes by which a deadline enlarges an entry.
pub(super) const TRAILER_BYTES: usize = size_of::<Trailer>();
const TRAILER_ALIGN: usize = align_of::<Trailer>();
const SLOT_BITS: u32 = 16;
const _: () = assert!(TRAILER_BYTES == 16 && TRAILER_ALIGN == 8);
const _: () = assert!(WallTime::MAX.millis() <= u64::MAX >> SLOT_BITS);

impl Trailer {
    fn new(deadline: WallTime) -> Trailer {
        Trailer { prev: None, next: None, deadline_and_slot: deadline.millis() << SLOT_BITS }
    }

    #[inline]
    pub(super) fn deadline(self) -> WallTime {
        WallTime::from_millis(self.deadline_and_slot >> SLOT_BITS)
    }

    /// Returns the number of the slot of the deadline wheel for which the entry was last linked.
    pub(super) fn slot(self) -> u16 {
        let [low, high, ..] = self.deadline_and_slot.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    pub(super) fn set_slot(&mut self, slot: u16) {
        self.deadline_and_slot = self.deadline_and_slot & !u64::from(u16::MAX) | u64::from(slot);
    }
}

/// The size of a cache line.
const LINE_BYTES: usize = 64;
/// The number of cache lines to prefetch: they contain the header, key and value of a small entry. For long values the
/// processor's hardware prefetcher fetches the rest.
const PREFETCH_LINES: usize = 2;

/// A key, its value, the sequence number of its last write, and its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The whole key.
    pub key: &'a [u8],
    /// The whole value.
    pub value: &'a [u8],
    /// The sequence number of the entry's last write.
    pub version: SequenceNumber,
    /// The time at which the entry expires, if it does.
    pub deadline: Option<WallTime>,
}

/// Returns the size of an entry's allocation.
pub(super) fn entry_bytes(key_len: usize, value_len: usize, has_deadline: bool) -> usize {
    match has_deadline {
        true => trailer_offset(key_len + value_len) + TRAILER_BYTES,
        false => HEADER_BYTES + key_len + value_len,
    }
}

/// Returns the position of the trailer in an entry with this total length of key and value.
#[inline]
fn trailer_offset(content_len: usize) -> usize {
    (HEADER_BYTES + content_len).next_multiple_of(TRAILER_ALIGN)
}

/// Allocates an entry and writes its header, key and trailer. Returns `None` if there is no memory.
pub(super) fn create(
    arena: &mut Arena,
    key: &[u8],
    value_len: usize,
    deadline: Option<WallTime>,
) -> Option<Handle> {
    let key_len = u16::try_from(key.len()).expect("a key has at most 65,535 bytes");
    assert!(value_len <= VALUE_BYTES_MAX, "a value of {value_len} bytes is above any limit");
    let flag = if deadline.is_some() { HAS_DEADLINE } else { 0 };
    let value_len_and_flag = u32::try_from(value_len).expect("the limit is below 2^31") | flag;
    let header = Header { version: 0, value_len_and_flag, key_len, check: 0 };
    let handle = arena.allocate(header.entry_bytes())?;
    let at = arena.address(handle);
    // SAFETY: nothing else uses the fresh allocation, which is aligned to 16 and has room for header, key, value and
    // trailer.
    unsafe {
        at.cast::<Header>().write(header);
        at.add(HEADER_BYTES).copy_from_nonoverlapping(key.as_ptr(), key.len());
        if let Some(deadline) = deadline {
            trailer_at(at, header).write(Trailer::new(deadline));
        }
        if value_len == 0 {
            note_check(at, header);
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

/// Returns the address of the trailer of the entry at `at`, which has this header.
///
/// # Safety
///
/// `at` is the address of an entry with a deadline.
#[inline]
unsafe fn trailer_at(at: *mut u8, header: Header) -> *mut Trailer {
    // SAFETY: the allocation of an entry with a deadline has room for a trailer there. The allocation is aligned to
    // 16, so the trailer is aligned to 8.
    unsafe { at.add(trailer_offset(header.content_len())).cast() }
}

/// Returns a copy of the trailer of an entry, or `None` if the entry has no deadline.
///
/// # Safety
///
/// The requirements of [`header`] hold.
#[inline]
pub(super) unsafe fn trailer(arena: &Arena, handle: Handle) -> Option<Trailer> {
    // SAFETY: guaranteed by the caller; `create` wrote a trailer if the header says so.
    unsafe {
        let header = header(arena, handle);
        header.has_deadline().then(|| trailer_at(arena.address(handle), header).read())
    }
}

/// Returns the trailer of an entry, for changes.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the entry has a deadline.
#[inline]
pub(super) unsafe fn trailer_mut(arena: &mut Arena, handle: Handle) -> &mut Trailer {
    // SAFETY: guaranteed by the caller; `create` wrote a trailer, and the arena is borrowed exclusively.
    unsafe {
        let header = header(arena, handle);
        debug_assert!(header.has_deadline(), "only an entry with a deadline has a trailer");
        &mut *trailer_at(arena.address(handle), header)
    }
}

/// Returns the deadline of an entry, if it has one.
///
/// # Safety
///
/// The requirements of [`header`] hold.
pub(super) unsafe fn deadline(arena: &Arena, handle: Handle) -> Option<WallTime> {
    // SAFETY: guaranteed by the caller.
    unsafe { trailer(arena, handle) }.map(Trailer::deadline)
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
/// The requirements of [`fresh_check`] hold, and nothing else uses the entry.
unsafe fn note_check(at: *mut u8, header: Header) {
    // SAFETY: guaranteed by the caller.
    unsafe { (*at.cast::<Header>()).check = fresh_check(at, header) };
}

/// Computes the check of the entry at `at`, which has this header.
///
/// # Safety
///
/// `at` is the address of an entry whose whole value was written.
#[inline]
unsafe fn fresh_check(at: *mut u8, header: Header) -> u16 {
    // SAFETY: the caller guarantees that key and value follow the header, and the trailer follows them.
    unsafe {
        let content = std::slice::from_raw_parts(at.add(HEADER_BYTES), header.content_len());
        let deadline =
            if header.has_deadline() { Some(deadline_at(trailer_at(at, header))) } else { None };
        check_of(content, deadline)
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

/// Returns 16 bits of a hash of key, value and deadline. It is not keyed, because two servers compare it.
fn check_of(key_and_value: &[u8], deadline: Option<WallTime>) -> u16 {
    let mut hasher = FixedState::with_seed(0).build_hasher();
    hasher.write(key_and_value);
    if let Some(deadline) = deadline {
        hasher.write_u64(deadline.millis());
    }
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
    pub(super) has_deadline: bool,
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
    seal_with(header, header.check)
}

/// Returns the seal of an entry with this header, with another check.
fn seal_with(header: Header, check: u16) -> Seal {
    Seal {
        version: SequenceNumber(header.version),
        check,
        bytes: header.content_len(),
        has_deadline: header.has_deadline(),
    }
}

/// Returns a fresh seal, whose check is recomputed from key, value and deadline.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the whole value was written.
pub(super) unsafe fn sealed_anew(arena: &Arena, handle: Handle) -> Seal {
    // SAFETY: the caller guarantees that key and value follow the header.
    unsafe {
        let header = header(arena, handle);
        seal_with(header, fresh_check(arena.address(handle), header))
    }
}

/// Returns the length of the complete value of an entry.
///
/// # Safety
///
/// The requirements of [`header`] hold.
pub(super) unsafe fn value_len(arena: &Arena, handle: Handle) -> usize {
    // SAFETY: guaranteed by the caller.
    unsafe { header(arena, handle) }.value_len()
}

/// Writes `bytes` into the value at `offset`. The parts of a value must be written in order.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the value was written up to `offset`.
pub(super) unsafe fn write_value(arena: &mut Arena, handle: Handle, offset: usize, bytes: &[u8]) {
    // SAFETY: guaranteed by the caller.
    let header = unsafe { header(arena, handle) };
    let value_len = header.value_len();
    assert!(
        offset <= value_len && bytes.len() <= value_len - offset,
        "{} bytes at {offset} do not fit a value of {value_len} bytes",
        bytes.len()
    );
    // SAFETY: the allocation has room for the value after the key, the range was just checked, and
    // `bytes` cannot lie in the arena, which is borrowed exclusively.
    unsafe {
        let at = arena.address(handle);
        let value = at.add(HEADER_BYTES + usize::from(header.key_len));
        value.add(offset).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        if offset + bytes.len() == value_len {
            note_check(at, header);
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

/// Returns the key, value, version and deadline of an entry.
///
/// # Safety
///
/// The requirements of [`header`] hold, and the whole value was written.
#[inline]
pub(super) unsafe fn read(arena: &Arena, handle: Handle) -> Entry<'_> {
    // SAFETY: guaranteed by the caller.
    unsafe {
        let header = header(arena, handle);
        let at = arena.address(handle);
        let key_at = at.add(HEADER_BYTES);
        let key_len = usize::from(header.key_len);
        let deadline =
            if header.has_deadline() { Some(deadline_at(trailer_at(at, header))) } else { None };
        Entry {
            key: std::slice::from_raw_parts(key_at, key_len),
            value: std::slice::from_raw_parts(key_at.add(key_len), header.value_len()),
            version: SequenceNumber(header.version),
            deadline,
        }
    }
}

/// Returns the deadline in a trailer. This is a separate function so that reading an entry without a deadline takes
/// only a few instructions more.
///
/// # Safety
///
/// An entry has its trailer there.
#[cold]
unsafe fn deadline_at(trailer: *const Trailer) -> WallTime {
    // SAFETY: guaranteed by the caller.
    unsafe { *trailer }.deadline()
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
    let (header, trailer) = unsafe { (header(arena, handle), trailer(arena, handle)) };
    let bytes = header.entry_bytes();
    let filled = filled.unwrap_or(header.value_len());
    let written = HEADER_BYTES + usize::from(header.key_len) + filled;
    // SAFETY: guaranteed by the caller; the size is the one that `create` requested.
    let moved = unsafe { arena.relocate(handle, bytes, written) }?;
    if let Some(trailer) = trailer {
        // SAFETY: the header was copied to the new allocation, which is as large as the old one.
        unsafe { trailer_at(arena.address(moved), header).write(trailer) };
    }
    Some((moved, bytes))
}

/// Frees an entry's memory.
///
/// # Safety
///
/// The requirements of [`header`] hold, and nothing refers to the entry.
pub(super) unsafe fn free_sealed(arena: &mut Arena, handle: Handle, seal: Seal) {
    // SAFETY: guaranteed by the caller; the size is the one that `create` requested.
    unsafe { arena.free(handle, entry_bytes(seal.bytes, 0, seal.has_deadline)) };
}

/// Frees the memory of an entry that may not be sealed.
///
/// # Safety
///
/// The requirements of [`header`] hold, and nothing refers to the entry.
pub(super) unsafe fn free(arena: &mut Arena, handle: Handle) {
    // SAFETY: guaranteed by the caller; the size is the one that `create` requested.
    unsafe {
        let bytes = header(arena, handle).entry_bytes();
        arena.free(handle, bytes);
    }
}
