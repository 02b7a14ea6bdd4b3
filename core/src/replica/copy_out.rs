//! The sending end of a copy (consistency.md §7).
//!
//! ```text
//!   CopyOut::new   at the candidate's WELCOME: every later write is sent to it live
//!     pump         COPY-START, then entries in hash order, then completion records, one batch per
//!                  wake-up and at most one window in flight
//!     pump         everything is sent, including live writes: COPY-END(last), sessions' digest recorded
//!     on_committed write `last` is committed: the table's digest recorded
//!     compare      with the candidate's digests
//! ```
//!
//! The walk reads the committed table while the table changes. The change of an entry that the walk has passed is
//! sent live. If an entry changes before the walk reaches it, its new version is sent both live and by the copy.
//! The candidate keeps the newer version.

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
use crate::mutations::{self, Mutation};
use crate::session::{LoggedRecord, Sessions};
use crate::table::{Entry, Table, WalkBudget, WalkCursor};

/// The budget of one step of the walk, after which the fill level of the batch is checked.
const WALK_STEP: WalkBudget = WalkBudget { entries: 64, bytes: 16 << 10 };

/// The progress of the copy.
#[derive(Debug)]
pub(super) struct CopyOut {
    start: SequenceNumber,
    is_started: bool,
    /// The position of the walk; `None` once it is complete.
    walk: Option<WalkCursor>,
    /// Entries that the walk has visited and that are not yet sent in full.
    waiting: VecDeque<Waiting>,
    /// Records whose responses are not yet sent in full.
    waiting_records: VecDeque<WaitingRecord>,
    /// The clients whose records are to be copied. The candidate gets sessions that begin later from their live
    /// writes.
    clients: Vec<ClientId>,
    window: Window,
    end: Option<End>,
    copied: Copied,
}

/// The size of the sent part of the table, for display only. The `Debug` output, which is part of
/// [`Replica::describe`](super::Replica::describe), omits the counts, because no decision depends on them.
#[derive(Clone, Copy, Default)]
pub(super) struct Copied {
    /// The number of entries sent in full.
    pub(super) entries: u64,
    /// The number of bytes of keys and values sent.
    pub(super) bytes: u64,
}

impl fmt::Debug for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Copied")
    }
}

impl Copied {
    /// Adds a sent part of an entry; `is_last` marks its last part.
    fn note(&mut self, bytes: usize, is_last: bool) {
        self.entries += u64::from(is_last);
        self.bytes += bytes as u64;
    }
}

/// A waiting entry, named by its key because the table may change meanwhile.
#[derive(Debug)]
struct Waiting {
    digest: Digest,
    key: Box<[u8]>,
    version: SequenceNumber,
    /// The number of bytes of the value that were sent; `None` if nothing was sent.
    sent: Option<usize>,
}

/// A record with a response, named by its client and number because the sessions may change meanwhile.
#[derive(Debug)]
struct WaitingRecord {
    logged: LoggedRecord,
    /// The number of bytes of the response that were sent; `None` if the record was not sent.
    sent: Option<usize>,
}

/// The copy messages in flight to the candidate.
#[derive(Debug, Default)]
struct Window {
    sent: u64,
    acked: u64,
    bytes: usize,
    /// The number of the last message of each batch, and the size of the batch in bytes.
    batches: VecDeque<(u64, usize)>,
}

/// The state that both ends must have at the last write sent before COPY-END.
#[derive(Debug)]
struct End {
    sn: SequenceNumber,
    sessions: u64,
    /// The digest of the table, known once that write is committed.
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
    /// Creates a copy of everything up to write `start`. The stream carries later writes live.
    pub(super) fn new(start: SequenceNumber, clients: Vec<ClientId>) -> CopyOut {
        CopyOut {
            start,
            is_started: false,
            walk: Some(WalkCursor::START),
            waiting: VecDeque::new(),
            waiting_records: VecDeque::new(),
            clients,
            window: Window::default(),
            end: None,
            copied: Copied::default(),
        }
    }

    /// Returns the part of the table that was sent so far.
    pub(super) fn copied(&self) -> Copied {
        self.copied
    }

    /// Returns the last write that only the copy carries. The stream carries later writes live.
    pub(super) fn start(&self) -> SequenceNumber {
        self.start
    }

    /// Returns whether the candidate gets every write, so every commit needs its ack.
    pub(super) fn is_registered(&self) -> bool {
        !mutations::is_open(Mutation::CopyBeforeStream) || self.end.is_some()
    }

    /// Returns whether COPY-END was sent.
    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Returns whether there is copy content to send and the window is open.
    pub(super) fn wants_pump(&self) -> bool {
        self.end.is_none() && self.window.is_open()
    }

    pub(super) fn on_acked(&mut self, copied: u64) {
        self.window.on_acked(copied);
    }

    /// Records a commit; `table` is the digest of the committed table after it.
    pub(super) fn on_committed(&mut self, sn: SequenceNumber, table: u64) {
        if let Some(end) = &mut self.end
            && end.sn == sn
        {
            end.table = Some(table);
        }
    }

    /// Returns whether the candidate's copy equals the table and sessions of this end. `None` if the report belongs to
    /// no COPY-END, or if the write of the COPY-END is not committed yet.
    pub(super) fn compare(&self, marked: &Marked) -> Option<bool> {
        let end = self.end.as_ref().filter(|end| end.sn == marked.sn)?;
        let table = end.table?;
        Some(table == marked.content.table && end.sessions == marked.content.sessions)
    }

    /// Sends COPY-START if it was not sent yet. COPY-START precedes every write of the stream, even a write that
    /// arrived in the same wake-up as the candidate's WELCOME.
    pub(super) fn pump_start(
        &mut self,
        view: ViewVersion,
        sessions: &Sessions,
        batch: &mut BatchWriter<'_>,
    ) {
        if !self.is_started && !mutations::is_open(Mutation::CopyBeforeStream) && !batch.is_full() {
            let (sn, forgotten) = (self.start, sessions.horizon());
            batch.push(&PeerMessage::CopyStart(CopyStart { view, sn, forgotten }));
            self.is_started = true;
        }
    }

    /// Adds the next part of the copy to a batch while the window is open, and COPY-END after the last part. Every
    /// write up to `last` was sent before.
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
        let begins_late = mutations::is_open(Mutation::CopyBeforeStream);
        if !self.window.is_open() {
            return;
        }
        let bytes_before = batch.len();
        let place = Place { view, committed, table, secret: sessions.secret() };
        self.pump_entries(place, batch);
        if self.walk.is_none() && self.waiting.is_empty() {
            self.pump_records(view, committed, sessions, batch);
        }
        let is_all_said = self.walk.is_none()
            && self.waiting.is_empty()
            && self.waiting_records.is_empty()
            && self.clients.is_empty();
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

    /// Sends the records of committed writes. The records of pending writes travel in their PREPAREs.
    fn pump_records(
        &mut self,
        view: ViewVersion,
        committed: SequenceNumber,
        sessions: &Sessions,
        batch: &mut BatchWriter<'_>,
    ) {
        if mutations::is_open(Mutation::RecordNotCopied) {
            self.clients.clear();
        }
        loop {
            while let Some(waiting) = self.waiting_records.front_mut() {
                if has_enough(batch) {
                    return;
                }
                if send_record(view, waiting, sessions, &mut self.window.sent, batch) {
                    self.waiting_records.pop_front();
                }
            }
            if has_enough(batch) {
                return;
            }
            let Some(client) = self.clients.pop() else { return };
            for logged in sessions.records_of(client).filter(|logged| logged.sn <= committed) {
                let mut waiting = WaitingRecord { logged, sent: None };
                // A record with a response waits for its turn, so that the batch stays small.
                let response = sessions.response_of(client, logged.record.seq);
                if response.is_empty() {
                    send_record(view, &mut waiting, sessions, &mut self.window.sent, batch);
                } else {
                    self.waiting_records.push_back(waiting);
                }
            }
        }
    }
}

/// Sends a record, or the next part of its response. Returns true if nothing of it is left to send.
fn send_record(
    view: ViewVersion,
    waiting: &mut WaitingRecord,
    sessions: &Sessions,
    sent: &mut u64,
    batch: &mut BatchWriter<'_>,
) -> bool {
    let LoggedRecord { sn, record } = waiting.logged;
    // A live write or the expiry of the session may have dropped the record meanwhile, at both ends.
    let is_kept = sessions.records_of(record.client).any(|kept| kept.record.seq == record.seq);
    if !is_kept {
        return true;
    }
    *sent += 1;
    let response = sessions.response_of(record.client, record.seq);
    let length = |length: usize| u32::try_from(length).expect("a response is at most 16 MiB long");
    let Some(offset) = waiting.sent else {
        let first = response.len().min(FRAGMENT_BYTES);
        batch.push(&PeerMessage::CopyRecord(CopyRecord {
            view,
            sn,
            record,
            response_length: length(response.len()),
            response: &response[..first],
        }));
        waiting.sent = Some(first);
        return first == response.len();
    };
    let end = response.len().min(offset + FRAGMENT_BYTES);
    let bytes = &response[offset..end];
    batch.push(&PeerMessage::CopyFragment(CopyFragment { view, offset: length(offset), bytes }));
    waiting.sent = Some(end);
    end == response.len()
}

/// Returns whether a batch is full enough for this wake-up. The limit is so low that one more session or entry always
/// fits.
fn has_enough(batch: &BatchWriter) -> bool {
    batch.len() >= BATCH_TARGET_BYTES / 4 || batch.count() >= MAX_BATCH_MESSAGES / 2
}

/// The source of a copy: the table and the view.
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
            deadline: entry.deadline,
            value_length: u32::try_from(entry.value.len()).expect("a value is at most 16 MiB long"),
            value: &entry.value[..first],
        }));
    }

    /// Sends a part of a waiting entry; returns `true` if nothing of the entry is left to send.
    fn send_waiting(
        &self,
        waiting: &mut Waiting,
        sent: &mut u64,
        copied: &mut Copied,
        batch: &mut BatchWriter<'_>,
    ) -> bool {
        let hash = self.secret.of_key(waiting.digest, &waiting.key);
        // If the entry was overwritten or deleted meanwhile, the stream carries that change live.
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
                    offset: u32::try_from(offset).expect("a value is at most 16 MiB long"),
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
