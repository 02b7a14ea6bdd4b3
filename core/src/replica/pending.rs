//! The pending log: writes that have a sequence number and wait for the ack of the other holder.
//!
//! ```text
//!   committed   sent so far         last assigned
//!       |  [ w w w w | w w w w w w w ]  |
//!       |            ^ cursor           |
//! ```
//!
//! The stream sends from this log: a cursor marks the write, and the byte of its value, that is sent next. For a
//! new stream the cursor moves back to the first write that the other side lacks. Nothing else is needed for a
//! retransmission.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use kv_protocol::ids::{SequenceNumber, Time, ViewVersion, WallTime};
use kv_protocol::limits::{
    FRAGMENT_BYTES, MAX_PENDING_BYTES, MAX_PENDING_CHANGES, MAX_PENDING_WRITES,
};
use kv_protocol::peer_message::{CompletionRecord, Effect, Fragment, PeerMessage, Prepare};
use kv_protocol::placement::Digest;

use super::requests::Asker;
use crate::retained_bytes::RetainedBytes;
use crate::table::{Staged, Table, TableHash};

/// One pending write.
#[derive(Debug)]
pub(super) struct PendingWrite {
    pub(super) effect: Effect,
    /// For a write with one change, its [`PendingChange::back`]. The log sets it.
    pub(super) back: u32,
    pub(super) digest: Digest,
    pub(super) hash: TableHash,
    pub(super) record: CompletionRecord,
    /// Key and value, staged in the table's memory but not linked into the table; `None` if the write changes no key.
    pub(super) staged: Option<Staged>,
    pub(super) waiters: Waiters,
    /// The total length of keys, values and response in bytes.
    pub(super) bytes: usize,
    /// The parts that few writes have.
    pub(super) more: Option<Box<More>>,
}

/// The parts of a pending write that its commit needs.
#[derive(Debug)]
pub(super) struct Committed {
    pub(super) effect: Effect,
    pub(super) record: CompletionRecord,
    pub(super) staged: Option<Staged>,
    pub(super) waiters: Waiters,
    pub(super) more: Option<Box<More>>,
}

/// The parts of a pending write that few writes have.
#[derive(Debug, Default)]
pub(super) struct More {
    /// The changes of a write with several of them.
    pub(super) changes: Vec<PendingChange>,
    /// The same changes as they are sent.
    pub(super) encoded: Vec<u8>,
    /// The rest of the response, empty if there is none; see [`RetainedResponse`](kv_protocol::change::RetainedResponse).
    pub(super) response: RetainedBytes,
    /// Reads of an entry that this write removes because it has expired. They get their response at the commit.
    pub(super) readers: Vec<Asker>,
}

/// One of the changes of a pending write.
#[derive(Debug)]
pub(super) struct PendingChange {
    pub(super) hash: TableHash,
    /// The position of the key in [`More::encoded`].
    pub(super) key: Range<usize>,
    /// The new entry; `None` if the entry of the key is removed.
    pub(super) staged: Option<Staged>,
    /// The distance to the previous write that changes a key of the same bucket. That write may be committed. If several
    /// changes of a write have the same bucket, the distance of the first one counts. The log sets it.
    pub(super) back: u32,
}

impl PendingWrite {
    /// Returns the distance to the previous write of a bucket; `None` if the write changes no key of the bucket.
    fn back_of(&self, hash: TableHash) -> Option<usize> {
        let back = match (&self.staged, &self.more) {
            (Some(_), _) => (bucket(self.hash) == bucket(hash)).then_some(self.back),
            (None, Some(more)) => {
                let change = more.changes.iter().find(|change| bucket(change.hash) == bucket(hash));
                change.map(|change| change.back)
            }
            (None, None) => None,
        };
        back.map(|back| back as usize)
    }

    /// Returns the new entry of a key if the write changes the key. The result is `Some(None)` if it removes the entry.
    fn change_of<'a>(
        &'a self,
        table: &'a Table,
        hash: TableHash,
        key: &[u8],
    ) -> Option<Option<&'a Staged>> {
        if let Some(staged) = &self.staged {
            let is_it = self.hash == hash && table.staged_entry(staged).0 == key;
            return is_it.then_some((self.effect == Effect::Put).then_some(staged));
        }
        let more = self.more.as_ref()?;
        let is_it = |change: &&PendingChange| {
            change.hash == hash && &more.encoded[change.key.clone()] == key
        };
        more.changes.iter().find(is_it).map(|change| change.staged.as_ref())
    }
}

/// The number of buckets of [`Newest`].
const BUCKETS: usize = 1 << 12;

/// For each bucket of keys, the lower half of the sequence number of the newest write that changes one of them. Each
/// write has the distance to the one before it, so a look-up visits only the pending writes of one bucket:
///
/// ```text
///   bucket of the key -> write 97 -> write 61 -> write 12, which is committed
/// ```
///
/// Nothing is undone at a commit. After 2^32 writes an old number may equal that of a pending write; then a look-up
/// visits a write without the key.
struct Newest(Box<[u32; BUCKETS]>);

impl Default for Newest {
    fn default() -> Newest {
        Newest(Box::new([0; BUCKETS]))
    }
}

/// Writes nothing of the numbers, which follow from the pending writes.
impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Newest")
    }
}

impl Newest {
    /// Makes a write the newest one of a bucket. Returns its distance to the one before.
    #[inline]
    fn replace(&mut self, hash: TableHash, sn: SequenceNumber) -> u32 {
        lower(sn).wrapping_sub(std::mem::replace(&mut self.0[bucket(hash)], lower(sn)))
    }

    /// Returns the distance from the write `last` to the newest one that changes a key of the bucket.
    #[inline]
    fn distance(&self, hash: TableHash, last: SequenceNumber) -> usize {
        lower(last).wrapping_sub(self.0[bucket(hash)]) as usize
    }
}

#[allow(clippy::cast_possible_truncation)] // The lower bits choose the bucket.
fn bucket(hash: TableHash) -> usize {
    hash.0 as usize % BUCKETS
}

#[allow(clippy::cast_possible_truncation)] // Pending writes are fewer than 2^32.
fn lower(sn: SequenceNumber) -> u32 {
    sn.0 as u32
}

/// The maximum number of requests that wait for one write. When another one arrives, the oldest after the first is
/// dropped without a response.
const MOST_WAITERS: usize = 8;

/// The requests that wait for one write: the original request, its retries and its RESOLVEs. Each gets a response,
/// because the client may wait for the response to any of them. For example, a delayed request from a lost connection
/// may arrive after the retry.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    first: Option<Asker>,
    /// Boxed, because few writes have several.
    #[allow(clippy::box_collection)]
    others: Option<Box<Vec<Asker>>>,
}

impl Waiters {
    pub(super) fn add(&mut self, asker: Asker) {
        if self.first.is_none() {
            return self.first = Some(asker);
        }
        let others = self.others.get_or_insert_default();
        if others.len() + 1 == MOST_WAITERS {
            others.remove(0);
        }
        others.push(asker);
    }

    pub(super) fn all(self) -> impl Iterator<Item = Asker> {
        self.first.into_iter().chain(self.others.into_iter().flat_map(|others| *others))
    }
}

/// The writes after the last committed up to the last assigned, in order.
#[derive(Debug, Default)]
pub(super) struct PendingLog {
    writes: VecDeque<PendingWrite>,
    bytes: usize,
    /// The number of changes of all writes.
    changes: usize,
    newest: Newest,
    committed: SequenceNumber,
    cursor: Cursor,
    /// Boxes of committed writes, at most [`MOST_SPARE`], for the next writes that need one.
    #[allow(clippy::vec_box)] // The boxes move to the writes.
    spare: Vec<Box<More>>,
}

/// The maximum number of boxes that are kept for the next writes.
const MOST_SPARE: usize = 64;

/// The newest pending change of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewestChange<'a> {
    pub(super) sn: SequenceNumber,
    /// The value and deadline of the new entry; `None` if the entry is removed.
    pub(super) entry: Option<(&'a [u8], Option<WallTime>)>,
}

/// The position of the next byte to send.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// The number of writes of the log that are sent in full.
    whole: usize,
    /// The number of bytes sent of the next write's value; `None` if its PREPARE was not sent.
    part: Option<usize>,
}

impl PendingLog {
    /// Creates an empty log that continues after `committed`.
    pub(super) fn starting_after(committed: SequenceNumber) -> PendingLog {
        PendingLog { committed, ..PendingLog::default() }
    }

    /// Returns the same log with its cursor at the start, for a new stream.
    pub(super) fn into_new_stream(self) -> PendingLog {
        PendingLog { cursor: Cursor::default(), ..self }
    }

    /// Takes all requests that wait for a response.
    pub(super) fn take_waiters(&mut self) -> Vec<Asker> {
        let taken = self.writes.iter_mut().flat_map(|write| {
            let readers = write.more.as_mut().map(|more| std::mem::take(&mut more.readers));
            std::mem::take(&mut write.waiters).all().chain(readers.unwrap_or_default())
        });
        taken.collect()
    }

    /// Returns the last committed write.
    pub(super) fn committed(&self) -> SequenceNumber {
        self.committed
    }

    /// Returns the last assigned write.
    pub(super) fn last(&self) -> SequenceNumber {
        SequenceNumber(self.committed.0 + self.writes.len() as u64)
    }

    /// Returns whether no write is pending.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Returns whether one more write of `bytes` with `changes` fits the limits. A single write always fits an empty
    /// log.
    pub(super) fn has_room(&self, bytes: usize, changes: usize) -> bool {
        self.writes.len() < MAX_PENDING_WRITES
            && self.changes + changes <= MAX_PENDING_CHANGES
            && (self.writes.is_empty() || self.bytes + bytes <= MAX_PENDING_BYTES)
    }

    /// Appends a write and returns its sequence number.
    #[inline(always)]
    pub(super) fn push(&mut self, mut write: PendingWrite) -> SequenceNumber {
        let sn = self.last().next();
        self.bytes += write.bytes;
        if write.staged.is_some() {
            write.back = self.newest.replace(write.hash, sn);
            self.changes += 1;
        }
        if let Some(more) = &mut write.more {
            for change in &mut more.changes {
                change.back = self.newest.replace(change.hash, sn);
            }
            self.changes += more.changes.len();
        }
        self.writes.push_back(write);
        self.last()
    }

    /// Removes the oldest write, which is committed now, and returns what its commit needs.
    #[inline]
    pub(super) fn commit_oldest(&mut self) -> Option<Committed> {
        let write = self.writes.pop_front()?;
        self.bytes -= write.bytes;
        self.changes -= usize::from(write.staged.is_some());
        if let Some(more) = &write.more {
            self.changes -= more.changes.len();
        }
        self.committed = self.committed.next();
        // A write is acked only after it was sent in full. A sole primary sends nothing, so its cursor stays at the
        // start.
        match self.cursor.whole.checked_sub(1) {
            Some(whole) => self.cursor.whole = whole,
            None => self.cursor.part = None,
        }
        let PendingWrite { effect, record, staged, waiters, more, .. } = write;
        Some(Committed { effect, record, staged, waiters, more })
    }

    /// Returns the parts of a write that has only a response.
    #[inline]
    pub(super) fn new_more(&mut self, response: RetainedBytes) -> Box<More> {
        let mut more = self.spare.pop().unwrap_or_default();
        more.response = response;
        more
    }

    /// Keeps the box of a committed write for a later one, unless it has memory of its own.
    #[inline]
    pub(super) fn recycle(&mut self, more: Box<More>) {
        let More { changes, encoded, response, readers } = &*more;
        let own = changes.capacity() + encoded.capacity() + readers.capacity();
        if own + response.heap_bytes() == 0 && self.spare.len() < MOST_SPARE {
            self.spare.push(more);
        }
    }

    /// Returns the hashes of the pending writes, oldest first.
    pub(super) fn hashes(&self) -> impl Iterator<Item = TableHash> {
        self.writes.iter().map(|write| write.hash)
    }

    /// Returns the write with this sequence number if it is pending.
    pub(super) fn get_mut(&mut self, sn: SequenceNumber) -> Option<&mut PendingWrite> {
        let index = usize::try_from(sn.0.checked_sub(self.committed.0 + 1)?).ok()?;
        self.writes.get_mut(index)
    }

    /// Returns the newest pending change of a key.
    pub(super) fn newest_change<'a>(
        &'a self,
        table: &'a Table,
        hash: TableHash,
        key: &[u8],
    ) -> Option<NewestChange<'a>> {
        let distance = self.newest.distance(hash, self.last());
        let mut at = self.writes.len().checked_sub(distance.checked_add(1)?)?;
        loop {
            let write = &self.writes[at];
            if let Some(staged) = write.change_of(table, hash, key) {
                let sn = SequenceNumber(self.committed.0 + 1 + at as u64);
                let entry = staged.map(|staged| {
                    let (_, value, deadline) = table.staged_parts(staged);
                    (value, deadline)
                });
                return Some(NewestChange { sn, entry });
            }
            let back = write.back_of(hash).filter(|back| *back > 0)?;
            at = at.checked_sub(back)?;
        }
    }

    /// Returns the key and value of every change of a pending write.
    pub(super) fn staged<'a>(
        &'a self,
        table: &'a Table,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let more = |write: &'a PendingWrite| write.more.iter().flat_map(|more| &more.changes);
        let staged = self.writes.iter().flat_map(move |write| {
            write.staged.iter().chain(more(write).filter_map(|change| change.staged.as_ref()))
        });
        staged.map(|staged| table.staged_entry(staged))
    }

    /// Moves the cursor to the write after `applied`. Returns `None` if `applied` was never logged, or if a later write
    /// is committed already.
    pub(super) fn rewind(&mut self, applied: SequenceNumber) -> Option<()> {
        let whole = usize::try_from(applied.0.checked_sub(self.committed.0)?).ok()?;
        if whole > self.writes.len() {
            return None;
        }
        self.cursor = Cursor { whole, part: None };
        Some(())
    }

    /// Returns the last write that was sent in full.
    pub(super) fn sent(&self) -> SequenceNumber {
        SequenceNumber(self.committed.0 + self.cursor.whole as u64)
    }

    /// Returns whether the next message to send continues a value.
    pub(super) fn is_amid_value(&self) -> bool {
        self.cursor.part.is_some()
    }

    /// Returns whether some write is not sent in full.
    pub(super) fn has_unsent(&self) -> bool {
        self.cursor.whole < self.writes.len()
    }

    /// Passes the next message to `send` and advances the cursor; returns `false` if there was nothing left to send.
    pub(super) fn send_next(
        &mut self,
        table: &Table,
        view: ViewVersion,
        t_send: Time,
        send: impl FnOnce(&PeerMessage<'_>),
    ) -> bool {
        let Some(write) = self.writes.get(self.cursor.whole) else { return false };
        let sn = SequenceNumber(self.committed.0 + 1 + self.cursor.whole as u64);
        let (key, value, deadline) = match (&write.staged, &write.more) {
            (Some(staged), _) => table.staged_parts(staged),
            (None, Some(more)) => (&[][..], &more.encoded[..], None),
            (None, None) => (&[][..], &[][..], None),
        };
        let response: &[u8] = write.more.as_ref().map_or(&[], |more| &more.response);
        let whole = value.len() + response.len();
        let length = |length: usize| u32::try_from(length).expect("a write has at most 33 MiB");
        let sent = match self.cursor.part {
            None => {
                let first = value.len().min(FRAGMENT_BYTES);
                let is_whole = first == value.len();
                let first_response = if is_whole { response.len().min(FRAGMENT_BYTES) } else { 0 };
                send(&PeerMessage::Prepare(Prepare {
                    view,
                    sn,
                    t_send,
                    effect: write.effect,
                    record: write.record,
                    digest: write.digest,
                    key,
                    deadline,
                    value_length: length(value.len()),
                    response_length: length(response.len()),
                    value: &value[..first],
                    response: &response[..first_response],
                }));
                first + first_response
            }
            Some(offset) => {
                let (part, from) = match offset.checked_sub(value.len()) {
                    Some(from) => (response, from),
                    None => (value, offset),
                };
                let bytes = &part[from..part.len().min(from + FRAGMENT_BYTES)];
                let fragment = Fragment { view, sn, offset: length(offset), bytes };
                send(&PeerMessage::Fragment(fragment));
                offset + bytes.len()
            }
        };
        self.cursor = if sent == whole {
            Cursor { whole: self.cursor.whole + 1, part: None }
        } else {
            Cursor { part: Some(sent), ..self.cursor }
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use kv_protocol::client_message::Status;
    use kv_protocol::ids::{ClientId, RequestHash, RequestSeq};
    use proptest::prelude::*;

    use super::*;
    use crate::arena::HeapChunks;

    /// The keys of the test. Those with equal last digits have the same bucket; two of them have equal hashes.
    const KEYS: [(u64, &[u8]); 6] = [
        (1, b"a"),
        (1 + BUCKETS as u64, b"b"),
        (1 + 2 * BUCKETS as u64, b"c"),
        (2, b"d"),
        (2, b"e"),
        (3, b"f"),
    ];

    fn record() -> CompletionRecord {
        CompletionRecord {
            client: ClientId(1),
            seq: RequestSeq(1),
            first_incomplete: RequestSeq(1),
            status: Status::Ok,
            version: SequenceNumber::ZERO,
            request: RequestHash(1),
        }
    }

    /// Returns a write that sets these keys to `value`.
    fn write(table: &mut Table, keys: &[usize], value: u8) -> PendingWrite {
        let mut stage = |at: usize| {
            let (hash, key) = KEYS[at];
            let mut staged = table.stage(TableHash(hash), key, 1, None).expect("memory");
            table.staged_append(&mut staged, &[value]);
            staged
        };
        let (mut staged, mut more) = (None, None);
        match keys {
            [] => {}
            [only] => staged = Some(stage(*only)),
            several => {
                let mut parts = Box::<More>::default();
                for at in several {
                    let (hash, key) = KEYS[*at];
                    let start = parts.encoded.len();
                    parts.encoded.extend_from_slice(key);
                    let key = start..parts.encoded.len();
                    let staged = Some(stage(*at));
                    parts.changes.push(PendingChange {
                        hash: TableHash(hash),
                        key,
                        staged,
                        back: 0,
                    });
                }
                more = Some(parts);
            }
        }
        PendingWrite {
            effect: if more.is_some() { Effect::Changes } else { Effect::Put },
            back: 0,
            digest: Digest([0; 16]),
            hash: TableHash(keys.first().map_or(0, |at| KEYS[*at].0)),
            record: record(),
            staged,
            waiters: Waiters::default(),
            bytes: 1,
            more,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Push(Vec<usize>),
        Commit,
    }

    fn step() -> impl Strategy<Value = Step> {
        let keys = prop::collection::btree_set(0..KEYS.len(), 0..4);
        prop_oneof![
            2 => keys.prop_map(|keys| Step::Push(keys.into_iter().collect())),
            1 => Just(Step::Commit),
        ]
    }

    proptest! {
        /// The first writes of some runs have numbers around 2^32, where lower halves of numbers begin again.
        #[test]
        fn the_newest_change_is_that_of_a_search_of_all_pending_writes(
            first in prop_oneof![Just(0), Just((1u64 << 32) - 10)],
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let mut table = Table::new(Box::new(HeapChunks::default()));
            let mut log = PendingLog::starting_after(SequenceNumber(first));
            let mut model: VecDeque<(u64, Vec<usize>, u8)> = VecDeque::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Push(keys) => {
                        let value = u8::try_from(n).expect("few steps");
                        let sn = log.push(write(&mut table, &keys, value));
                        model.push_back((sn.0, keys, value));
                    }
                    Step::Commit => {
                        prop_assert_eq!(log.commit_oldest().is_some(), model.pop_front().is_some());
                    }
                }
                for (at, (hash, key)) in KEYS.iter().enumerate() {
                    let found = log.newest_change(&table, TableHash(*hash), key);
                    let found = found.map(|change| (change.sn.0, change.entry.expect("set").0[0]));
                    let newest = model.iter().rev().find(|(_, keys, _)| keys.contains(&at));
                    prop_assert_eq!(found, newest.map(|(sn, _, value)| (*sn, *value)));
                }
            }
        }
    }
}
