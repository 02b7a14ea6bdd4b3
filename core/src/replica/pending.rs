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

use kv_protocol::ids::{SequenceNumber, Time, ViewVersion};
use kv_protocol::limits::{FRAGMENT_BYTES, MAX_PENDING_BYTES, MAX_PENDING_WRITES};
use kv_protocol::peer_message::{CompletionRecord, Effect, Fragment, PeerMessage, Prepare};
use kv_protocol::placement::Digest;

use super::requests::Asker;
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
    /// The total length of key and value in bytes.
    pub(super) bytes: usize,
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
    others: Vec<Asker>,
}

impl Waiters {
    pub(super) fn add(&mut self, asker: Asker) {
        if self.first.is_none() {
            return self.first = Some(asker);
        }
        if self.others.len() + 1 == MOST_WAITERS {
            self.others.remove(0);
        }
        self.others.push(asker);
    }

    pub(super) fn all(self) -> impl Iterator<Item = Asker> {
        self.first.into_iter().chain(self.others)
    }
}

/// The writes after the last committed up to the last assigned, in order.
#[derive(Debug, Default)]
pub(super) struct PendingLog {
    writes: VecDeque<PendingWrite>,
    bytes: usize,
    committed: SequenceNumber,
    cursor: Cursor,
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
        self.writes.iter_mut().flat_map(|write| std::mem::take(&mut write.waiters).all()).collect()
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

    /// Returns whether one more write of `bytes` fits the limits. A single write always fits an empty log.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.writes.len() < MAX_PENDING_WRITES
            && (self.writes.is_empty() || self.bytes + bytes <= MAX_PENDING_BYTES)
    }

    /// Appends a write and returns its sequence number.
    pub(super) fn push(&mut self, write: PendingWrite) -> SequenceNumber {
        self.bytes += write.bytes;
        self.writes.push_back(write);
        self.last()
    }

    /// Removes and returns the oldest write, which is committed now.
    pub(super) fn commit_oldest(&mut self) -> Option<PendingWrite> {
        let write = self.writes.pop_front()?;
        self.bytes -= write.bytes;
        self.committed = self.committed.next();
        // A write is acked only after it was sent in full. A sole primary sends nothing, so its cursor stays at the
        // start.
        match self.cursor.whole.checked_sub(1) {
            Some(whole) => self.cursor.whole = whole,
            None => self.cursor.part = None,
        }
        Some(write)
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

    /// Returns the newest write that changes the key. A linear search is acceptable, because the log is short and only
    /// deletions and writes with a condition search it.
    pub(super) fn newest_change(
        &self,
        table: &Table,
        hash: TableHash,
        key: &[u8],
    ) -> Option<(SequenceNumber, Effect)> {
        let at = self.writes.iter().rposition(|write| {
            write.hash == hash
                && matches!(write.effect, Effect::Put | Effect::Delete)
                && write.staged.as_ref().is_some_and(|staged| table.staged_entry(staged).0 == key)
        })?;
        Some((SequenceNumber(self.committed.0 + 1 + at as u64), self.writes[at].effect))
    }

    /// Returns the newest pending change of a key if it is a PUT. Reads do not return it.
    pub(super) fn newest_staged(
        &self,
        table: &Table,
        hash: TableHash,
        key: &[u8],
    ) -> Option<(SequenceNumber, &Staged)> {
        let (sn, _) = self.newest_change(table, hash, key).filter(|(_, e)| *e == Effect::Put)?;
        let at = usize::try_from(sn.0 - self.committed.0 - 1).ok()?;
        Some((sn, self.writes[at].staged.as_ref()?))
    }

    /// Returns the key and value of every write that changes a key.
    pub(super) fn staged<'a>(
        &'a self,
        table: &'a Table,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let staged = self.writes.iter().filter_map(|write| write.staged.as_ref());
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
        let (key, value) = match &write.staged {
            Some(staged) => table.staged_entry(staged),
            None => (&[][..], &[][..]),
        };
        let sent = match self.cursor.part {
            None => {
                let first = value.len().min(FRAGMENT_BYTES);
                send(&PeerMessage::Prepare(Prepare {
                    view,
                    sn,
                    t_send,
                    effect: write.effect,
                    record: write.record,
                    digest: write.digest,
                    key,
                    value_length: u32::try_from(value.len())
                        .expect("a value is at most 16 MiB long"),
                    value: &value[..first],
                }));
                first
            }
            Some(offset) => {
                let end = value.len().min(offset + FRAGMENT_BYTES);
                send(&PeerMessage::Fragment(Fragment {
                    view,
                    sn,
                    offset: u32::try_from(offset).expect("a value is at most 16 MiB long"),
                    bytes: &value[offset..end],
                }));
                end
            }
        };
        self.cursor = if sent == value.len() {
            Cursor { whole: self.cursor.whole + 1, part: None }
        } else {
            Cursor { part: Some(sent), ..self.cursor }
        };
        true
    }
}
