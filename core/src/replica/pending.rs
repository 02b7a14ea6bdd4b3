//! The pending log: writes that have a sequence number and wait for the other holder.
//!
//! ```text
//!   committed   sent so far         last assigned
//!       |  [ w w w w | w w w w w w w ]  |
//!       |            ^ cursor           |
//! ```
//!
//! The log is also what the stream sends from: a cursor says which write, and which byte of its
//! value, goes out next. A new stream moves the cursor back to the first write that the other side
//! lacks; nothing else is needed for sending again.

use std::collections::VecDeque;

use kv_protocol::ids::{SequenceNumber, Time, ViewVersion};
use kv_protocol::limits::{FRAGMENT_BYTES, MAX_PENDING_BYTES, MAX_PENDING_WRITES};
use kv_protocol::peer_message::{CompletionRecord, Effect, Fragment, PeerMessage, Prepare};
use kv_protocol::placement::Digest;

use super::requests::Asker;
use crate::table::{Staged, Table, TableHash};

/// One write that waits.
#[derive(Debug)]
pub(super) struct PendingWrite {
    pub(super) effect: Effect,
    pub(super) digest: Digest,
    pub(super) hash: TableHash,
    pub(super) record: CompletionRecord,
    /// Key and value, in the table's memory but not in the table. `None`: the write has no key.
    pub(super) staged: Option<Staged>,
    pub(super) waiters: Waiters,
    /// Bytes of key and value.
    pub(super) bytes: usize,
}

/// The requests that wait for one write. Of each kind it is the latest: a late sending of the write takes no response
/// from a question about it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiters {
    sending: Option<Asker>,
    resolve: Option<Asker>,
}

impl Waiters {
    pub(super) fn add(&mut self, asker: Asker, is_resolve: bool) {
        match is_resolve {
            true => self.resolve = Some(asker),
            false => self.sending = Some(asker),
        }
    }

    pub(super) fn all(self) -> impl Iterator<Item = Asker> {
        [self.sending, self.resolve].into_iter().flatten()
    }
}

/// The writes between the last committed and the last assigned, in order.
#[derive(Debug, Default)]
pub(super) struct PendingLog {
    writes: VecDeque<PendingWrite>,
    bytes: usize,
    committed: SequenceNumber,
    cursor: Cursor,
}

/// What goes out next.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    /// Writes of the log that are sent in full.
    whole: usize,
    /// Bytes of the next write's value that are sent; `None` when not even its PREPARE is.
    part: Option<usize>,
}

impl PendingLog {
    /// An empty log that goes on after `committed`.
    pub(super) fn starting_after(committed: SequenceNumber) -> PendingLog {
        PendingLog { committed, ..PendingLog::default() }
    }

    /// The same log, of which the next stream has been sent nothing.
    pub(super) fn into_new_stream(self) -> PendingLog {
        PendingLog { cursor: Cursor::default(), ..self }
    }

    /// Whoever waits for an answer, and waits no more.
    pub(super) fn take_waiters(&mut self) -> Vec<Asker> {
        self.writes.iter_mut().flat_map(|write| std::mem::take(&mut write.waiters).all()).collect()
    }

    /// The last committed write.
    pub(super) fn committed(&self) -> SequenceNumber {
        self.committed
    }

    /// The last write assigned.
    pub(super) fn last(&self) -> SequenceNumber {
        SequenceNumber(self.committed.0 + self.writes.len() as u64)
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether one more write of `bytes` fits the bounds. A single write always fits an empty log.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.writes.len() < MAX_PENDING_WRITES
            && (self.writes.is_empty() || self.bytes + bytes <= MAX_PENDING_BYTES)
    }

    /// Appends a write; its sequence number is the answer.
    pub(super) fn push(&mut self, write: PendingWrite) -> SequenceNumber {
        self.bytes += write.bytes;
        self.writes.push_back(write);
        self.last()
    }

    /// Takes the oldest write, which is thereby committed.
    pub(super) fn commit_oldest(&mut self) -> Option<PendingWrite> {
        let write = self.writes.pop_front()?;
        self.bytes -= write.bytes;
        self.committed = self.committed.next();
        // A write is acked only after all of it was sent; a sole primary sends nothing.
        match self.cursor.whole.checked_sub(1) {
            Some(whole) => self.cursor.whole = whole,
            None => self.cursor.part = None,
        }
        Some(write)
    }

    /// The hashes of the oldest writes.
    pub(super) fn hashes(&self) -> impl Iterator<Item = TableHash> {
        self.writes.iter().map(|write| write.hash)
    }

    /// The write with this sequence number, if it waits.
    pub(super) fn get_mut(&mut self, sn: SequenceNumber) -> Option<&mut PendingWrite> {
        let index = usize::try_from(sn.0.checked_sub(self.committed.0 + 1)?).ok()?;
        self.writes.get_mut(index)
    }

    /// The newest write that changes the key; the log is short, and this is asked only by writes
    /// whose outcome depends on it.
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

    /// The newest pending PUT of a key, which no reader may see.
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

    /// Key and value of every write that has them.
    pub(super) fn staged<'a>(
        &'a self,
        table: &'a Table,
    ) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let staged = self.writes.iter().filter_map(|write| write.staged.as_ref());
        staged.map(|staged| table.staged_entry(staged))
    }

    /// Sends again from the write after `applied`. `None`: the other side claims a write that this
    /// one does not have, or lacks one that is committed and gone from the log.
    pub(super) fn rewind(&mut self, applied: SequenceNumber) -> Option<()> {
        let whole = usize::try_from(applied.0.checked_sub(self.committed.0)?).ok()?;
        if whole > self.writes.len() {
            return None;
        }
        self.cursor = Cursor { whole, part: None };
        Some(())
    }

    /// The last write that was sent in full.
    pub(super) fn sent(&self) -> SequenceNumber {
        SequenceNumber(self.committed.0 + self.cursor.whole as u64)
    }

    /// Whether the rest of a value is what goes out next.
    pub(super) fn is_amid_value(&self) -> bool {
        self.cursor.part.is_some()
    }

    /// Whether something waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.cursor.whole < self.writes.len()
    }

    /// Gives the next message to `send` and moves on; `false` when all is sent.
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
                    value_length: u32::try_from(value.len()).expect("values end at 16 MiB"),
                    value: &value[..first],
                }));
                first
            }
            Some(offset) => {
                let end = value.len().min(offset + FRAGMENT_BYTES);
                send(&PeerMessage::Fragment(Fragment {
                    view,
                    sn,
                    offset: u32::try_from(offset).expect("values end at 16 MiB"),
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
