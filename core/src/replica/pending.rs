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
}

impl PendingWrite {
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

/// The number of counters of a [`KeyFilter`].
const FILTER_COUNTERS: usize = 1 << 12;

/// Counts of the pending changes by some bits of the hashes of their keys. If the count for a key is zero, no pending
/// write changes the key.
struct KeyFilter(Box<[u16; FILTER_COUNTERS]>);

impl Default for KeyFilter {
    fn default() -> KeyFilter {
        KeyFilter(Box::new([0; FILTER_COUNTERS]))
    }
}

/// Writes nothing of the counts, which follow from the pending writes.
impl fmt::Debug for KeyFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFilter")
    }
}

impl KeyFilter {
    /// Returns the index of a key's counter.
    #[allow(clippy::cast_possible_truncation)] // The lower bits are masked.
    fn index(hash: TableHash) -> usize {
        hash.0 as usize % FILTER_COUNTERS
    }

    fn add(&mut self, hash: TableHash) {
        self.0[Self::index(hash)] += 1;
    }

    fn remove(&mut self, hash: TableHash) {
        self.0[Self::index(hash)] -= 1;
    }

    fn may_have(&self, hash: TableHash) -> bool {
        self.0[Self::index(hash)] > 0
    }
}

// The counters do not overflow: the changes of all pending writes are fewer.
const _: () = assert!(MAX_PENDING_CHANGES <= u16::MAX as usize);

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
    filter: KeyFilter,
    committed: SequenceNumber,
    cursor: Cursor,
}

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
    #[inline]
    pub(super) fn push(&mut self, write: PendingWrite) -> SequenceNumber {
        self.bytes += write.bytes;
        if write.staged.is_some() {
            self.filter.add(write.hash);
            self.changes += 1;
        }
        if let Some(more) = &write.more {
            more.changes.iter().for_each(|change| self.filter.add(change.hash));
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
        if write.staged.is_some() {
            self.filter.remove(write.hash);
            self.changes -= 1;
        }
        if let Some(more) = &write.more {
            more.changes.iter().for_each(|change| self.filter.remove(change.hash));
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

    /// Returns the hashes of the pending writes, oldest first.
    pub(super) fn hashes(&self) -> impl Iterator<Item = TableHash> {
        self.writes.iter().map(|write| write.hash)
    }

    /// Returns the write with this sequence number if it is pending.
    pub(super) fn get_mut(&mut self, sn: SequenceNumber) -> Option<&mut PendingWrite> {
        let index = usize::try_from(sn.0.checked_sub(self.committed.0 + 1)?).ok()?;
        self.writes.get_mut(index)
    }

    /// Returns the newest pending change of a key. A linear search is acceptable, because the log is short and the
    /// filter excludes most keys without a pending change.
    pub(super) fn newest_change<'a>(
        &'a self,
        table: &'a Table,
        hash: TableHash,
        key: &[u8],
    ) -> Option<NewestChange<'a>> {
        if !self.filter.may_have(hash) {
            return None;
        }
        self.writes.iter().enumerate().rev().find_map(|(at, write)| {
            let staged = write.change_of(table, hash, key)?;
            let sn = SequenceNumber(self.committed.0 + 1 + at as u64);
            let entry = staged.map(|staged| {
                let (_, value, deadline) = table.staged_parts(staged);
                (value, deadline)
            });
            Some(NewestChange { sn, entry })
        })
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
