//! The sending end of a copy (consistency.md §7).
//!
//! ```text
//!   CopyOut::new   at the candidate's WELCOME: every later write goes to it live
//!     pump         COPY-START, then entries in order of hash, then completion records, a batch a
//!                  wake-up and no more than a window on its way
//!     pump         all is said and every write is sent: COPY-END(last), sessions' digest noted
//!     on_committed write `last` is committed: the table's digest noted
//!     compare      with what the candidate found
//! ```
//!
//! The walk reads the committed table while it changes. An entry that changes behind the walk comes
//! live; one that changes before it is read as it is then, and comes live too: the candidate keeps the
//! newer.

use std::collections::VecDeque;
use std::fmt;

use kv_protocol::copy_message::{CopyEnd, CopyEntry, CopyFragment, CopyRecord, CopyStart, Marked};
use kv_protocol::ids::{ClientId, SequenceNumber, ViewVersion};
use kv_protocol::limits::{
    BATCH_TARGET_BYTES, COPY_WINDOW_BYTES, COPY_WINDOW_MESSAGES, FRAGMENT_BYTES, MAX_BATCH_MESSAGES,
};
use kv_protocol::peer_message::{BatchWriter, PeerMessage};
use kv_protocol::placement::Digest;

use crate::hash::HashSecret;
use crate::holes::{self, Hole};
use crate::session::Sessions;
use crate::table::{Entry, Table, WalkBudget, WalkCursor};

/// What one step of the walk visits before the batch is looked at again.
const WALK_STEP: WalkBudget = WalkBudget { entries: 64, bytes: 16 << 10 };

/// How far the copy has come.
#[derive(Debug)]
pub(super) struct CopyOut {
    start: SequenceNumber,
    is_started: bool,
    /// `None`: the walk is over.
    walk: Option<WalkCursor>,
    /// Entries that the walk has visited and that were not sent in full.
    waiting: VecDeque<Waiting>,
    /// The clients whose records are to be copied. Sessions that begin later come live.
    clients: Vec<ClientId>,
    window: Window,
    end: Option<End>,
    copied: Copied,
}

/// How much of the table was sent, for people to see. Nothing is decided by it, so no description of
/// a replica tells it.
#[derive(Clone, Copy, Default)]
pub(super) struct Copied {
    /// Entries that were sent in full.
    pub(super) entries: u64,
    /// Bytes of keys and values.
    pub(super) bytes: u64,
}

impl fmt::Debug for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Copied")
    }
}

impl Copied {
    /// A part of an entry was sent; `is_last`: it ends it.
    fn note(&mut self, bytes: usize, is_last: bool) {
        self.entries += u64::from(is_last);
        self.bytes += bytes as u64;
    }
}

/// An entry that waits; named by its key, because the table may change meanwhile.
#[derive(Debug)]
struct Waiting {
    digest: Digest,
    key: Box<[u8]>,
    version: SequenceNumber,
    /// Bytes of its value that were sent; `None`: nothing of it.
    sent: Option<usize>,
}

/// What is on its way to the candidate.
#[derive(Debug, Default)]
struct Window {
    sent: u64,
    acked: u64,
    bytes: usize,
    /// The last message of each batch, and the bytes of that batch.
    batches: VecDeque<(u64, usize)>,
}

/// What both must hold at the last write sent before COPY-END.
#[derive(Debug)]
struct End {
    sn: SequenceNumber,
    sessions: u64,
    /// Known once that write is committed.
    table: Option<u64>,
}

impl Window {
    fn is_open(&self) -> bool {
        self.sent - self.acked < COPY_WINDOW_MESSAGES && self.bytes < COPY_WINDOW_BYTES
    }

    fn note_batch(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.batches.push_back((self.sent, bytes));
    }

    fn on_acked(&mut self, acked: u64) {
        self.acked = self.acked.max(acked.min(self.sent));
        while let Some(&(last, bytes)) = self.batches.front()
            && last <= self.acked
        {
            self.bytes -= bytes;
            self.batches.pop_front();
        }
    }
}

impl CopyOut {
    /// A copy of everything up to `start`; later writes go over the stream.
    pub(super) fn new(start: SequenceNumber, clients: Vec<ClientId>) -> CopyOut {
        CopyOut {
            start,
            is_started: false,
            walk: Some(WalkCursor::START),
            waiting: VecDeque::new(),
            clients,
            window: Window::default(),
            end: None,
            copied: Copied::default(),
        }
    }

    /// How much was sent so far.
    pub(super) fn copied(&self) -> Copied {
        self.copied
    }

    /// The last write that it brings; later ones go over the stream.
    pub(super) fn start(&self) -> SequenceNumber {
        self.start
    }

    /// Whether the candidate gets every write, and so must ack every commit.
    pub(super) fn is_registered(&self) -> bool {
        !holes::is_open(Hole::CopyBeforeStream) || self.end.is_some()
    }

    /// Whether COPY-END was sent.
    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether there is something to say that nothing but time keeps back.
    pub(super) fn wants_pump(&self) -> bool {
        self.end.is_none() && self.window.is_open()
    }

    pub(super) fn on_acked(&mut self, copied: u64) {
        self.window.on_acked(copied);
    }

    /// A write is committed; `table` is the digest of what is committed now.
    pub(super) fn on_committed(&mut self, sn: SequenceNumber, table: u64) {
        if let Some(end) = &mut self.end
            && end.sn == sn
        {
            end.table = Some(table);
        }
    }

    /// Whether the candidate's copy is the same as this one. `None`: it was not asked, or about
    /// another write, or what it was asked about is not committed.
    pub(super) fn compare(&self, marked: &Marked) -> Option<bool> {
        let end = self.end.as_ref().filter(|end| end.sn == marked.sn)?;
        let table = end.table?;
        Some(table == marked.content.table && end.sessions == marked.content.sessions)
    }

    /// Says that it begins, unless that was said. Comes before every write of the stream: a write may
    /// have come in the same wake-up as the candidate's WELCOME.
    pub(super) fn pump_start(
        &mut self,
        view: ViewVersion,
        sessions: &Sessions,
        batch: &mut BatchWriter<'_>,
    ) {
        if !self.is_started && !holes::is_open(Hole::CopyBeforeStream) && !batch.is_full() {
            let (sn, forgotten) = (self.start, sessions.horizon());
            batch.push(&PeerMessage::CopyStart(CopyStart { view, sn, forgotten }));
            self.is_started = true;
        }
    }

    /// Adds what fits to a batch. Every write up to `last` was sent before.
    pub(super) fn pump(
        &mut self,
        view: ViewVersion,
        last: SequenceNumber,
        committed: SequenceNumber,
        table: &Table,
        sessions: &Sessions,
        batch: &mut BatchWriter<'_>,
    ) {
        if self.end.is_some() || batch.is_full() {
            return;
        }
        let begins_late = holes::is_open(Hole::CopyBeforeStream);
        if !self.window.is_open() {
            return;
        }
        let bytes_before = batch.len();
        let place = Place { view, committed, table, secret: sessions.secret() };
        self.pump_entries(place, batch);
        if self.walk.is_none() && self.waiting.is_empty() {
            self.pump_records(view, committed, sessions, batch);
        }
        let is_all_said = self.walk.is_none() && self.waiting.is_empty() && self.clients.is_empty();
        if is_all_said && !batch.is_full() {
            if begins_late {
                let (sn, forgotten) = (last, sessions.horizon());
                batch.push(&PeerMessage::CopyStart(CopyStart { view, sn, forgotten }));
            }
            if !batch.is_full() {
                self.say_end(view, last, committed, table, sessions, batch);
            }
        }
        if batch.len() > bytes_before {
            self.window.note_batch(batch.len() - bytes_before);
        }
    }

    fn say_end(
        &mut self,
        view: ViewVersion,
        last: SequenceNumber,
        committed: SequenceNumber,
        table: &Table,
        sessions: &Sessions,
        batch: &mut BatchWriter<'_>,
    ) {
        batch.push(&PeerMessage::CopyEnd(CopyEnd { view, sn: last }));
        self.window.sent += 1;
        let table = (committed == last).then(|| table.digest());
        self.end = Some(End { sn: last, sessions: sessions.digest(), table });
    }

    fn pump_entries(&mut self, place: Place<'_>, batch: &mut BatchWriter<'_>) {
        loop {
            while let Some(entry) = self.waiting.front_mut() {
                if has_enough(batch) {
                    return;
                }
                if place.send_waiting(entry, &mut self.window.sent, &mut self.copied, batch) {
                    self.waiting.pop_front();
                }
            }
            let Some(cursor) = self.walk else { return };
            if has_enough(batch) {
                return;
            }
            let (waiting, sent) = (&mut self.waiting, &mut self.window.sent);
            let copied = &mut self.copied;
            self.walk = place.table.walk(cursor, WALK_STEP, |entry| {
                let digest = Digest::of(entry.key);
                if entry.value.len() > FRAGMENT_BYTES || batch.is_full() {
                    let (key, version) = (entry.key.into(), entry.version);
                    waiting.push_back(Waiting { digest, key, version, sent: None });
                } else {
                    place.send_entry(digest, &entry, batch);
                    *sent += 1;
                    copied.note(entry.key.len() + entry.value.len(), true);
                }
            });
        }
    }

    /// Only records of committed writes: the others ride in their PREPAREs.
    fn pump_records(
        &mut self,
        view: ViewVersion,
        committed: SequenceNumber,
        sessions: &Sessions,
        batch: &mut BatchWriter<'_>,
    ) {
        if holes::is_open(Hole::RecordNotCopied) {
            self.clients.clear();
        }
        while !has_enough(batch)
            && let Some(client) = self.clients.pop()
        {
            for logged in sessions.records_of(client).filter(|logged| logged.sn <= committed) {
                let (sn, record) = (logged.sn, logged.record);
                batch.push(&PeerMessage::CopyRecord(CopyRecord { view, sn, record }));
                self.window.sent += 1;
            }
        }
    }
}

/// A batch takes no more of the copy when it is half full: what one session or one entry adds then
/// fits in any case.
fn has_enough(batch: &BatchWriter) -> bool {
    batch.len() >= BATCH_TARGET_BYTES / 4 || batch.count() >= MAX_BATCH_MESSAGES / 2
}

/// What a copy is made of and under.
#[derive(Clone, Copy)]
struct Place<'a> {
    view: ViewVersion,
    committed: SequenceNumber,
    table: &'a Table,
    secret: HashSecret,
}

impl Place<'_> {
    fn send_entry(&self, digest: Digest, entry: &Entry<'_>, batch: &mut BatchWriter<'_>) {
        let first = entry.value.len().min(FRAGMENT_BYTES);
        batch.push(&PeerMessage::CopyEntry(CopyEntry {
            view: self.view,
            committed: self.committed,
            version: entry.version,
            digest,
            key: entry.key,
            value_length: u32::try_from(entry.value.len()).expect("values end at 16 MiB"),
            value: &entry.value[..first],
        }));
    }

    /// Sends a part of an entry that waits; `true` when there is no more to send of it.
    fn send_waiting(
        &self,
        waiting: &mut Waiting,
        sent: &mut u64,
        copied: &mut Copied,
        batch: &mut BatchWriter<'_>,
    ) -> bool {
        let hash = self.secret.of_key(waiting.digest, &waiting.key);
        // One that was written again meanwhile comes live.
        let Some(entry) = self.table.get(hash, &waiting.key) else { return true };
        if entry.version != waiting.version {
            return true;
        }
        *sent += 1;
        let end = match waiting.sent {
            None => {
                self.send_entry(waiting.digest, &entry, batch);
                entry.value.len().min(FRAGMENT_BYTES)
            }
            Some(offset) => {
                let end = entry.value.len().min(offset + FRAGMENT_BYTES);
                batch.push(&PeerMessage::CopyFragment(CopyFragment {
                    view: self.view,
                    offset: u32::try_from(offset).expect("values end at 16 MiB"),
                    bytes: &entry.value[offset..end],
                }));
                end
            }
        };
        let before = waiting.sent.replace(end);
        let key = if before.is_none() { entry.key.len() } else { 0 };
        let is_last = end == entry.value.len();
        copied.note(key + end - before.unwrap_or(0), is_last);
        is_last
    }
}
