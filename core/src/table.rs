//! The table of one shard: keys to values, each with the sequence number of its last write.
//!
//! ```text
//!   hash ──> Directory ──> Segment of slots (hash bits, handle) ──> entry (header, key, value)
//!            by its first bits          in order of hash             one allocation in the Arena
//! ```
//!
//! - No write takes long, because a table grows segment by segment. A write moves the slots of at most one
//!   segment (about four thousand, of 8 bytes each) and no entry.
//! - Memory: an entry takes its 16-byte header, its key and its value, rounded up to a multiple of 16
//!   (coarser above 128 bytes), and 9 to 13 bytes of slots. A deadline takes 16 bytes more. All of it comes from the
//!   arena.
//! - A write has two phases. [`Table::stage`] allocates an entry that reads do not return;
//!   [`Table::commit`] makes it the key's entry and needs no memory, because its slot is reserved. Between
//!   the two phases the other replica acknowledges the write.
//! - [`Table::pin`] keeps an entry's value readable, whatever is written to its key meanwhile, so that a
//!   long value can be sent piece by piece without a copy.
//! - A walk visits the table in hash order, in steps. The table may change between the steps.
//! - Compaction moves entries out of sparsely used chunks, in steps, so that freed memory serves entries of
//!   any size (`compaction`).
//! - Entries with a deadline are linked into a timing wheel, which finds the expired ones in steps (`deadlines`). The
//!   table only reports them: whether reads return them, and when they are removed, is up to the caller.
//!
//! Whole keys are compared; equal hashes cost time, never correctness. The hash must be keyed with a secret
//! if untrusted clients choose keys.

use std::ops::ControlFlow;

use kv_protocol::ids::{SequenceNumber, WallTime};

use crate::arena::{Arena, ChunkSource, Handle};

mod compaction;
mod deadlines;
mod directory;
mod entry;
mod pins;
mod sampling;
mod segment;
mod staging;

use compaction::Compaction;
pub use compaction::{CompactionBudget, CompactionCounts, Pressure, Room};
use deadlines::Deadlines;
use directory::{Directory, Vacancy};
pub use entry::{Entry, KEY_BYTES_MAX, VALUE_BYTES_MAX};
pub use pins::Pin;
use pins::Pins;
use segment::HashBits;
pub use staging::Staged;
use staging::{Record, Staging};

/// The maximum number of upcoming look-ups whose memory is prefetched at once.
pub const LOOK_AHEAD: usize = 32;
/// The number of slots after which a step of a walk ends, even if the step has found few entries. A step may examine up
/// to one segment more.
const WALK_SLOTS_MAX: usize = 8192;

/// The hash of a key: 64 well-mixed bits that do not change during the lifetime of the table. The table uses the
/// upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableHash(pub u64);

impl TableHash {
    /// Returns the upper half.
    #[inline]
    pub(crate) fn bits(self) -> HashBits {
        (self.0 >> 32) as HashBits
    }
}

/// The error if a table gets no memory for an entry or a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot allocate {bytes} bytes in a table: the system refused more memory, or the table has \
     reached its maximum size (8 to 64 GiB, depending on the sizes of its values); check the memory \
     limit against the machine's memory"
)]
#[non_exhaustive]
pub struct OutOfMemory {
    /// The size of the slots, or of the key and value, for which there was no memory.
    pub bytes: usize,
}

/// The position at which a walk continues. It stays valid when the table changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WalkCursor(HashBits);

impl WalkCursor {
    /// The start of a walk.
    pub const START: WalkCursor = WalkCursor(0);

    /// Returns the cursor as a number; zero only for [`WalkCursor::START`].
    pub fn to_number(self) -> u64 {
        self.0.into()
    }

    /// Returns the cursor that a number stands for; `None` if it stands for none.
    pub fn from_number(number: u64) -> Option<WalkCursor> {
        HashBits::try_from(number).ok().map(WalkCursor)
    }
}

/// The limits of one step of a walk. A step ends after the entry that reaches a limit and all other entries with the
/// same hash, so it may exceed the limits by these entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkBudget {
    /// The maximum number of entries.
    pub entries: usize,
    /// The maximum number of bytes of keys and values.
    pub bytes: usize,
}

/// The table of one shard; see the module documentation.
#[derive(Debug)]
pub struct Table {
    arena: Arena,
    directory: Directory,
    staging: Staging,
    pins: Pins,
    compaction: Compaction,
    deadlines: Deadlines,
    len: usize,
    content_bytes: usize,
    /// The sum of the digests of all entries.
    digest: u64,
}

impl Table {
    /// Creates an empty table. It takes no memory from `source` before the first entry.
    pub fn new(source: Box<dyn ChunkSource>) -> Table {
        Table {
            arena: Arena::new(source),
            directory: Directory::default(),
            staging: Staging::default(),
            pins: Pins::default(),
            compaction: Compaction::default(),
            deadlines: Deadlines::default(),
            len: 0,
            content_bytes: 0,
            digest: 0,
        }
    }

    /// Returns the number of entries, without the staged ones.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a digest of the keys, values, deadlines and versions of all entries. It does not depend on their order. Two tables
    /// of one (group, shard) with equal content have equal digests. The digest includes all 64 bits of each version,
    /// and 16 bits of a hash of the key, value and deadline.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Returns the bytes of all keys and values, without the staged ones.
    pub fn content_bytes(&self) -> usize {
        self.content_bytes
    }

    /// Recomputes the digest from the bytes of all entries; it must equal [`Table::digest`].
    pub fn recount(&self) -> u64 {
        let (mut sum, mut cursor) = (0u64, Some(HashBits::MIN));
        while let Some(at) = cursor {
            cursor = self.directory.walk(&self.arena, at, WALK_SLOTS_MAX, |handle| {
                // SAFETY: the handle of a linked entry, whose value was complete when it was linked.
                let seal = unsafe { entry::sealed_anew(&self.arena, handle) };
                sum = sum.wrapping_add(seal.digest());
                ControlFlow::Continue(())
            });
        }
        sum
    }

    /// Returns the number of staged entries.
    pub fn staged_len(&self) -> usize {
        self.staging.len()
    }

    /// Returns the number of pinned entries.
    pub fn pinned_len(&self) -> usize {
        self.pins.len()
    }

    /// Returns the number of bytes that entries and slots use, including the rounding of allocations. Staged entries
    /// are included, and so are replaced entries that are still pinned.
    pub fn used_bytes(&self) -> usize {
        self.arena.used_bytes()
    }

    /// Returns the memory of the table, in bytes: all chunks and blocks of the arena, and the table's own
    /// structures.
    pub fn reserved_bytes(&self) -> usize {
        self.arena.reserved_bytes()
            + self.directory.heap_bytes()
            + self.staging.heap_bytes()
            + self.pins.heap_bytes()
            + self.deadlines.heap_bytes()
    }

    /// Returns the memory of the table, in bytes, after the allocation of an entry of these lengths, with or without a
    /// deadline. Growth of the table's segments is not included.
    pub fn reserved_bytes_with(
        &self,
        key_len: usize,
        value_len: usize,
        deadline: Option<WallTime>,
    ) -> usize {
        let bytes = entry::entry_bytes(key_len, value_len, deadline.is_some());
        let wheel_bytes = if deadline.is_some() { self.deadlines.fresh_bytes() } else { 0 };
        self.reserved_bytes() + self.arena.fresh_bytes(bytes) + wheel_bytes
    }

    /// Returns the size of a chunk, which is the minimum memory of a table that is not empty.
    pub fn chunk_bytes(&self) -> usize {
        self.arena.chunk_bytes()
    }

    /// Returns the entry of a key, if the key is present.
    #[inline]
    pub fn get(&self, hash: TableHash, key: &[u8]) -> Option<Entry<'_>> {
        let handle = self.directory.get(&self.arena, hash.bits(), self.has_key(key))?;
        // SAFETY: the handle of a linked entry, whose value was complete when it was linked.
        Some(unsafe { entry::read(&self.arena, handle) })
    }

    /// Prefetches the memory that look-ups of these hashes will access, so that their cache misses overlap. This is
    /// only a hint. Pass at most [`LOOK_AHEAD`] hashes, so that the memory is still in the first-level cache when it
    /// is used.
    #[inline]
    pub fn prefetch(&self, hashes: &[TableHash]) {
        for hash in hashes {
            self.directory.prefetch(&self.arena, hash.bits());
        }
        for hash in hashes {
            // The first entry with this hash is nearly always the right one.
            if let Some(handle) = self.directory.get(&self.arena, hash.bits(), |_| true) {
                entry::prefetch(&self.arena, handle);
            }
        }
    }

    /// Returns the sequence number of a key's last write, if the key is present.
    pub fn version_of(&self, hash: TableHash, key: &[u8]) -> Option<SequenceNumber> {
        let handle = self.directory.get(&self.arena, hash.bits(), self.has_key(key))?;
        // SAFETY: the handle of a linked entry.
        Some(unsafe { entry::version(&self.arena, handle) })
    }

    /// Stores an entry in one step. Returns the version of the entry that it replaced, if there was one. The deadline
    /// of the replaced entry has no effect on the new one.
    pub fn put(
        &mut self,
        hash: TableHash,
        key: &[u8],
        value: &[u8],
        deadline: Option<WallTime>,
        version: SequenceNumber,
    ) -> Result<Option<SequenceNumber>, OutOfMemory> {
        let hash = hash.bits();
        let (handle, vacancy) = self.create(hash, key, value.len(), deadline)?;
        // SAFETY: the handle of an entry that was just created for a value of that length.
        unsafe { entry::write_value(&mut self.arena, handle, 0, value) };
        Ok(self.link(hash, handle, version, vacancy))
    }

    /// Removes a key's entry; returns its version, or `None` if the key was not present.
    pub fn remove(&mut self, hash: TableHash, key: &[u8]) -> Option<SequenceNumber> {
        let place = self.directory.find(&self.arena, hash.bits(), self.has_key(key))?;
        let handle = self.directory.remove(&mut self.arena, place);
        self.len -= 1;
        Some(self.free_removed(handle))
    }

    /// Removes all entries and returns all memory to the source. Every [`Staged`] and [`Pin`] becomes invalid.
    pub fn clear(&mut self) {
        self.directory.clear();
        self.staging.clear();
        self.pins.clear();
        self.compaction.clear();
        self.deadlines.clear();
        self.len = 0;
        self.content_bytes = 0;
        self.digest = 0;
        // SAFETY: nothing refers to an allocation any more. The directory and the records of staged and pinned entries
        // were just dropped, and no borrowed entry outlives this exclusive borrow.
        unsafe { self.arena.clear() };
    }

    /// Visits entries in hash order, starting at a cursor, until the budget is used up. Returns the cursor at which to
    /// continue, or `None` after the last entry.
    ///
    /// A key that is present from the first step to the last is visited exactly once, even if the table changes between
    /// the steps. A step examines a bounded number of slots, so it may visit nothing if the table is sparse.
    pub fn walk(
        &self,
        cursor: WalkCursor,
        budget: WalkBudget,
        mut visit: impl FnMut(Entry<'_>),
    ) -> Option<WalkCursor> {
        let (mut entries, mut bytes) = (0, 0);
        self.walk_while(cursor, |entry| {
            entries += 1;
            bytes += entry.key.len() + entry.value.len();
            visit(entry);
            if entries >= budget.entries || bytes >= budget.bytes {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
    }

    /// Visits entries like [`Table::walk`], until `visit` breaks. The entries with the same hash as the last one follow
    /// nevertheless.
    pub fn walk_while(
        &self,
        cursor: WalkCursor,
        mut visit: impl FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Option<WalkCursor> {
        let next = self.directory.walk(&self.arena, cursor.0, WALK_SLOTS_MAX, |handle| {
            // SAFETY: the handle of a linked entry, whose value was complete when it was linked.
            visit(unsafe { entry::read(&self.arena, handle) })
        });
        next.map(WalkCursor)
    }

    /// Returns a predicate that tests whether an entry has this key.
    #[inline]
    fn has_key(&self, key: &[u8]) -> impl Fn(Handle) -> bool {
        // SAFETY: the directory calls this closure only with the handles of linked entries.
        move |handle| unsafe { entry::key(&self.arena, handle) } == key
    }

    /// Creates an entry without its value. The entry is not in the directory yet.
    #[inline]
    fn create(
        &mut self,
        hash: HashBits,
        key: &[u8],
        value_len: usize,
        deadline: Option<WallTime>,
    ) -> Result<(Handle, Vacancy), OutOfMemory> {
        // The segment gets room for the entry now, while the write can still be rejected.
        let vacancy = self.directory.make_room(&mut self.arena, &self.staging, hash)?;
        let handle = entry::create(&mut self.arena, key, value_len, deadline)
            .ok_or(OutOfMemory { bytes: key.len() + value_len })?;
        if deadline.is_some() {
            self.deadlines.reserve();
        }
        Ok((handle, vacancy))
    }

    /// Inserts an entry with a complete value as the entry of its key. Returns the version of the entry that it
    /// replaced. That entry is freed once it has no pins.
    fn link(
        &mut self,
        hash: HashBits,
        handle: Handle,
        version: SequenceNumber,
        vacancy: Vacancy,
    ) -> Option<SequenceNumber> {
        // SAFETY: the callers guarantee that the whole value of the entry was written.
        let seal = unsafe { entry::seal(&mut self.arena, handle, version) };
        self.digest = self.digest.wrapping_add(seal.digest());
        self.content_bytes += seal.bytes;
        if seal.has_deadline {
            self.link_deadline(handle);
        }
        // SAFETY: as above.
        let key = unsafe { entry::key(&self.arena, handle) };
        match self.directory.find_in(&self.arena, vacancy, hash, self.has_key(key)) {
            Some(place) => {
                let old = self.directory.replace(&mut self.arena, place, handle);
                Some(self.free_removed(old))
            }
            None => {
                self.directory.insert(&mut self.arena, &self.staging, vacancy, hash, handle);
                self.len += 1;
                None
            }
        }
    }

    /// Frees an entry that was just unlinked. A pinned entry is freed when its last pin ends. Returns the version of
    /// the entry.
    #[inline]
    fn free_removed(&mut self, handle: Handle) -> SequenceNumber {
        // SAFETY: the callers have just unlinked the entry, which was sealed when it was linked.
        let seal = unsafe { entry::sealed(&self.arena, handle) };
        self.digest = self.digest.wrapping_sub(seal.digest());
        self.content_bytes -= seal.bytes;
        if seal.has_deadline {
            self.unlink_deadline(handle);
        }
        if !self.pins.drop_entry(handle) {
            // SAFETY: the callers have just unlinked the entry, and no borrow of it can exist.
            unsafe { entry::free_sealed(&mut self.arena, handle, seal) };
        }
        seal.version
    }

    /// Adds an entry that was just linked to the search for due entries. Most entries have no deadline, so this is not
    /// inlined.
    #[cold]
    fn link_deadline(&mut self, handle: Handle) {
        self.deadlines.link(&mut self.arena, handle);
    }

    /// Removes an entry that was just unlinked from the search for due entries.
    #[cold]
    fn unlink_deadline(&mut self, handle: Handle) {
        self.deadlines.unlink(&mut self.arena, handle);
    }

    /// Frees an entry to which neither a slot nor a staged or pinned record refers.
    fn free_unlinked(&mut self, handle: Handle) {
        // SAFETY: the callers have just unlinked the entry, and no borrow of it can exist.
        unsafe { entry::free(&mut self.arena, handle) };
    }
}

/// Pinned values, which stay readable.
impl Table {
    /// Pins the entry of a key. Until [`Table::unpin`], [`Table::pinned_value`] returns the value that the entry has
    /// now, even if the key is overwritten or removed meanwhile. An entry can be pinned several times. Returns `None`
    /// if the key is not present.
    ///
    /// The memory of a replaced or removed entry counts as in use while the entry is pinned.
    pub fn pin(&mut self, hash: TableHash, key: &[u8]) -> Option<Pin> {
        let handle = self.directory.get(&self.arena, hash.bits(), self.has_key(key))?;
        Some(self.pins.add(handle))
    }

    /// Returns the value of a pinned entry, or `None` if the table was cleared since it was pinned.
    pub fn pinned_value(&self, pin: &Pin) -> Option<&[u8]> {
        let handle = self.pins.get(pin)?;
        // SAFETY: the entry was linked when it was pinned, so its value is complete, and a pinned entry
        // is not freed.
        Some(unsafe { entry::read(&self.arena, handle) }.value)
    }

    /// Ends a pin. Frees the entry if the table has dropped it and this was its last pin.
    pub fn unpin(&mut self, pin: Pin) {
        if let Some(dropped) = self.pins.remove(pin) {
            self.free_unlinked(dropped);
        }
    }
}

/// Staging and committing: the two phases of a write.
impl Table {
    /// Allocates an entry for a key and a value of `value_len` bytes. [`staged_append`](Table::staged_append) adds
    /// the value. Reads do not return the entry. The caller has checked that the key has at most [`KEY_BYTES_MAX`]
    /// bytes and the value at most [`VALUE_BYTES_MAX`].
    ///
    /// The memory of the value is reserved, but not accessed before the bytes of the value arrive.
    pub fn stage(
        &mut self,
        hash: TableHash,
        key: &[u8],
        value_len: usize,
        deadline: Option<WallTime>,
    ) -> Result<Staged, OutOfMemory> {
        let hash = hash.bits();
        let (handle, vacancy) = self.create(hash, key, value_len, deadline)?;
        self.directory.reserve(vacancy);
        Ok(self.staging.add(Record { hash, handle, filled: 0 }))
    }

    /// Removes the record of a staged entry and returns it, with the slot that was reserved for the entry and is
    /// still empty.
    fn take_staged(&mut self, staged: Staged) -> (Record, Vacancy) {
        let record = self.staging.take(staged);
        (record, self.directory.release(record.hash))
    }

    /// Appends bytes to a staged entry's value, up to the length that it was staged for.
    pub fn staged_append(&mut self, staged: &mut Staged, bytes: &[u8]) {
        let record = self.staging.get_mut(staged);
        // SAFETY: the handle of a staged entry whose value was written up to `filled`.
        unsafe { entry::write_value(&mut self.arena, record.handle, record.filled, bytes) };
        record.filled += bytes.len();
    }

    /// Returns the number of missing bytes of a staged entry's value.
    pub fn staged_missing(&self, staged: &Staged) -> usize {
        let record = self.staging.get(staged);
        // SAFETY: the handle of a staged entry.
        unsafe { entry::value_len(&self.arena, record.handle) - record.filled }
    }

    /// Returns a staged entry's deadline, if it has one.
    pub fn staged_deadline(&self, staged: &Staged) -> Option<WallTime> {
        let record = self.staging.get(staged);
        // SAFETY: the handle of a staged entry.
        unsafe { entry::deadline(&self.arena, record.handle) }
    }

    /// Returns a staged entry's key, and the part of its value that was appended so far.
    pub fn staged_entry(&self, staged: &Staged) -> (&[u8], &[u8]) {
        let record = self.staging.get(staged);
        // SAFETY: the handle of a staged entry, whose value was written up to `filled`.
        unsafe {
            let key = entry::key(&self.arena, record.handle);
            (key, entry::value_so_far(&self.arena, record.handle, record.filled))
        }
    }

    /// Returns a staged entry's key, the part of its value that was appended so far, and its deadline.
    pub fn staged_parts(&self, staged: &Staged) -> (&[u8], &[u8], Option<WallTime>) {
        let record = self.staging.get(staged);
        // SAFETY: the handle of a staged entry, whose value was written up to `filled`.
        unsafe {
            let key = entry::key(&self.arena, record.handle);
            let value = entry::value_so_far(&self.arena, record.handle, record.filled);
            (key, value, entry::deadline(&self.arena, record.handle))
        }
    }

    /// Inserts a staged entry with a complete value as the entry of its key. Returns the version of the entry that it
    /// replaced. That entry is freed once it has no pins.
    ///
    /// A commit needs no memory: the entry is allocated already, and its segment has kept an empty slot for it
    /// since the staging.
    pub fn commit(&mut self, staged: Staged, version: SequenceNumber) -> Option<SequenceNumber> {
        let missing = self.staged_missing(&staged);
        assert_eq!(missing, 0, "{missing} bytes of a value are missing at the commit of its entry");
        let (Record { hash, handle, .. }, vacancy) = self.take_staged(staged);
        self.link(hash, handle, version, vacancy)
    }

    /// Removes the table's entry for the key of a staged entry, and frees both entries, a pinned one when its last pin
    /// ends. Returns the version of the removed entry, if there was one.
    pub fn commit_removal(&mut self, staged: Staged) -> Option<SequenceNumber> {
        let (Record { hash, handle, .. }, vacancy) = self.take_staged(staged);
        // SAFETY: the handle of an entry that was staged until now.
        let key = unsafe { entry::key(&self.arena, handle) };
        let removed =
            self.directory.find_in(&self.arena, vacancy, hash, self.has_key(key)).map(|place| {
                let old = self.directory.remove(&mut self.arena, place);
                self.len -= 1;
                self.free_removed(old)
            });
        self.free_unlinked(handle);
        removed
    }

    /// Frees a staged entry.
    pub fn discard(&mut self, staged: Staged) {
        let (record, _) = self.take_staged(staged);
        self.free_unlinked(record.handle);
    }
}

#[cfg(test)]
mod compaction_tests;
#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod refusal_tests;
#[cfg(test)]
mod tests;
