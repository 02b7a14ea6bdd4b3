//! The receiving end of the stream. It applies each write as soon as it arrives, in order, and acks it.
//!
//! On a slow link the transfer of a long value can take longer than a lease. So the part received so far is acked too,
//! once per beacon interval.

use kv_protocol::control_message::Following;
use kv_protocol::copy_message::Handover;
use kv_protocol::ids::{SequenceNumber, Time, ViewVersion};
use kv_protocol::peer_message::{
    Ack, Beacon, CompletionRecord, Effect, Fragment, PeerMessage, Prepare,
};

use super::{Replica, Role, StreamError};
use crate::mutations::{self, Mutation};
use crate::table::{Staged, Table, TableHash};

/// The state of a follower, without its table and sessions.
#[derive(Debug, Default)]
pub(super) struct Follower {
    /// The last write applied.
    pub(super) last: SequenceNumber,
    /// True if a stream is up.
    pub(super) connected: bool,
    /// The write `last + 1` while its value is incomplete.
    partial: Option<Partial>,
    /// The newest `t_send` for which an ack is due.
    owed: Option<Time>,
    /// The newest `t_send` of the stream, which an ack of the copy or of a part of a value echoes.
    newest: Option<Time>,
    /// The last write for which this replica had no memory.
    no_memory_for: Option<SequenceNumber>,
}

/// A write whose value is incomplete.
#[derive(Debug)]
struct Partial {
    staged: Staged,
    record: CompletionRecord,
    missing: usize,
    /// The time at which its PREPARE was sent, which the ack of the whole write echoes.
    t_send: Time,
}

impl Follower {
    /// Creates a follower with a full copy up to `last`.
    pub(super) fn starting_after(last: SequenceNumber) -> Follower {
        Follower { last, ..Follower::default() }
    }

    /// Returns this follower for a new view, without its stream: due acks and a partial value are dropped.
    pub(super) fn on_new_stream(mut self, table: &mut Table) -> Follower {
        self.drop_stream(table);
        Follower::starting_after(self.last)
    }

    /// Records that a new stream is up.
    pub(super) fn connect(&mut self, table: &mut Table) {
        self.drop_stream(table);
        self.connected = true;
    }

    fn drop_stream(&mut self, table: &mut Table) {
        // The stream that carried the rest of a partial value has ended.
        if let Some(partial) = self.partial.take() {
            table.discard(partial.staged);
        }
        (self.owed, self.newest) = (None, None);
    }

    /// Records that an ack of a message with this `t_send` is due.
    pub(super) fn owe_ack(&mut self, t_send: Time) {
        self.owed = Some(self.owed.map_or(t_send, |owed| owed.max(t_send)));
        self.newest = Some(self.newest.map_or(t_send, |newest| newest.max(t_send)));
    }

    /// Returns the number of bytes received of the next write's value.
    pub(super) fn part(&self, table: &Table) -> u64 {
        let partial = self.partial.as_ref();
        partial.map_or(0, |partial| table.staged_entry(&partial.staged).1.len() as u64)
    }

    /// Records that an ack is due for data without a `t_send`, such as a part of a value. It echoes the newest `t_send`
    /// of the stream; before the first one no ack is due.
    pub(super) fn owe_sign(&mut self) {
        self.owed = self.owed.or(self.newest);
    }

    /// Records that there was no memory for a write, or for an entry of the copy.
    pub(super) fn note_no_memory(&mut self, sn: SequenceNumber) {
        // An entry of the copy may be older than the last live write.
        self.no_memory_for = Some(sn.max(self.last.next()));
    }

    /// Returns whether this replica keeps up. It does once it has applied the last write for which it had no memory.
    pub(super) fn following(&self) -> Following {
        match self.no_memory_for {
            Some(sn) if sn > self.last => Following::OutOfMemory,
            _ => Following::KeepsUp,
        }
    }

    /// Takes the ack that is due, if there is one. `taken` is its [`Ack::taken`].
    pub(super) fn take_ack(&mut self, view: ViewVersion, taken: u64) -> Option<Ack> {
        let echo = self.owed.take()?;
        Some(Ack { view, sn: self.last, echo, taken })
    }
}

impl Replica {
    /// Rejects a message of another view. If the message is older, its sender gets the newer view from the refusal. If
    /// the message is newer, this replica must install that view first.
    pub(super) fn on_message_of_another_view(
        &mut self,
        message: &PeerMessage<'_>,
        got: ViewVersion,
        installed: ViewVersion,
    ) -> Result<(), StreamError> {
        #[cfg(feature = "mutations")]
        if self.takes_old_message(message, got) {
            return Ok(());
        }
        let _ = message;
        Err(StreamError::View { got, installed })
    }

    pub(super) fn on_prepare(&mut self, prepare: &Prepare<'_>) -> Result<(), StreamError> {
        self.may_follow()?;
        let Some(follower) = self.follower_mut() else { return Err(StreamError::WrongEnd) };
        let sn = prepare.sn;
        if sn <= follower.last {
            // The write was sent again after a reconnect. It is already applied, so it is only acked again.
            follower.owe_ack(prepare.t_send);
            return Ok(());
        }
        let expected = follower.last.next();
        if sn != expected || follower.partial.is_some() {
            return Err(StreamError::Gap { expected, got: sn });
        }
        let place = (self.config.group, self.config.shard);
        if !prepare.key.is_empty() && self.config.placement.locate(prepare.digest) != place {
            return Err(StreamError::ForeignKey { sn });
        }
        if !self.apply(prepare)? {
            return Ok(());
        }
        let Some(follower) = self.follower_mut() else { return Err(StreamError::WrongEnd) };
        follower.last = sn;
        follower.owe_ack(prepare.t_send);
        Ok(())
    }

    /// Checks that this role accepts writes. A candidate accepts them only once its copy has begun, because COPY-START
    /// names the first live write.
    fn may_follow(&self) -> Result<(), StreamError> {
        match &self.role {
            Role::Candidate(_, copy) if !copy.has_started() => Err(StreamError::WrongEnd),
            Role::Candidate(..) | Role::Secondary(_) | Role::TakingOver(_) => Ok(()),
            _ => Err(StreamError::WrongEnd),
        }
    }

    /// Applies a write. Returns `false` if a part of its value is still missing.
    fn apply(&mut self, prepare: &Prepare<'_>) -> Result<bool, StreamError> {
        let sn = prepare.sn;
        let hash = self.hash_of(prepare.digest, prepare.key);
        match prepare.effect {
            Effect::Put => {
                let missing = prepare.value_length as usize - prepare.value.len();
                if missing > 0 {
                    return self.begin_value(hash, prepare, missing).map(|()| false);
                }
                let put = self.table.put(hash, prepare.key, prepare.value, sn);
                let replaced = put.map_err(|_| self.out_of_memory(sn))?;
                self.check_order(sn, replaced);
                self.keep_record(sn, prepare.record);
            }
            Effect::Delete => {
                self.table.remove(hash, prepare.key);
                if let Role::Candidate(_, copy) = &mut self.role {
                    copy.bury(hash, prepare.key, sn);
                }
                self.keep_record(sn, prepare.record);
            }
            Effect::Nothing => self.keep_record(sn, prepare.record),
            Effect::ForgetSessions => self.sessions.forget(prepare.record.version),
        }
        Ok(true)
    }

    /// Stages the first part of a long value. Fragments carry the rest.
    fn begin_value(
        &mut self,
        hash: TableHash,
        prepare: &Prepare<'_>,
        missing: usize,
    ) -> Result<(), StreamError> {
        let Prepare { sn, record, t_send, key, value, .. } = *prepare;
        let staged = self.table.stage(hash, key, value.len() + missing);
        let mut staged = staged.map_err(|_| self.out_of_memory(sn))?;
        self.table.staged_append(&mut staged, value);
        let Some(follower) = self.follower_mut() else { return Err(StreamError::WrongEnd) };
        follower.owe_ack(t_send);
        follower.partial = Some(Partial { staged, record, missing, t_send });
        Ok(())
    }

    /// Records that there is no memory for a write, and returns the error. This replica reports the lack of memory
    /// until the write is applied.
    pub(super) fn out_of_memory(&mut self, sn: SequenceNumber) -> StreamError {
        if let Some(follower) = self.follower_mut() {
            follower.note_no_memory(sn);
        }
        StreamError::OutOfMemory { sn }
    }

    fn keep_record(&mut self, sn: SequenceNumber, record: CompletionRecord) {
        if mutations::is_open(Mutation::RecordNotInPrepare) {
            return;
        }
        match self.role {
            // The session may have begun long before the copy, and its earlier records may never arrive.
            Role::Candidate(..) => self.sessions.record_known(sn, record),
            _ => self.sessions.record(sn, record),
        }
    }

    pub(super) fn on_fragment(
        &mut self,
        now: Time,
        fragment: &Fragment<'_>,
    ) -> Result<(), StreamError> {
        self.may_follow()?;
        let sn = fragment.sn;
        let may_sign = self.may_sign(now);
        let (Role::TakingOver(follower) | Role::Secondary(follower) | Role::Candidate(follower, _)) =
            &mut self.role
        else {
            return Err(StreamError::WrongEnd);
        };
        if sn <= follower.last {
            return Ok(());
        }
        let wrong = StreamError::Fragment { sn };
        let Some(partial) = &mut follower.partial else { return Err(wrong) };
        let received = self.table.staged_entry(&partial.staged).1.len();
        if sn != follower.last.next()
            || fragment.offset as usize != received
            || fragment.bytes.len() > partial.missing
        {
            return Err(wrong);
        }
        self.table.staged_append(&mut partial.staged, fragment.bytes);
        partial.missing -= fragment.bytes.len();
        if partial.missing == 0 {
            let whole = follower.partial.take().expect("it was just filled");
            follower.last = sn;
            follower.owe_ack(whole.t_send);
            self.apply_committed(sn, Effect::Put, Some(whole.staged));
            self.keep_record(sn, whole.record);
        } else if may_sign {
            follower.owe_sign();
        }
        Ok(())
    }

    /// Handles the arrival of a part of a message. If the rest takes long, the link is slow but the sender is alive.
    /// So the part counts as a sign of life and is acked.
    pub fn on_part_of_message(&mut self, now: Time) {
        self.readings.note(now);
        let may_sign = self.may_sign(now);
        if let Some(follower) = self.follower_mut().filter(|follower| follower.connected) {
            if may_sign {
                follower.owe_sign();
            }
            self.hear(now);
        }
    }

    /// Returns whether the last ack is at least one beacon interval old, so that an unrequested one may be sent.
    fn may_sign(&self, now: Time) -> bool {
        let times = self.config.failure_timeout;
        self.acked.is_none_or(|acked| acked.until + times.beacon_interval() <= now + times.grace())
    }

    /// Handles a beacon, a sign of life of the other holder.
    pub(super) fn on_beacon(&mut self, beacon: &Beacon) -> Result<(), StreamError> {
        if let Some(follower) = self.follower_mut() {
            follower.owe_ack(beacon.t_send);
            return Ok(());
        }
        // The old primary sends beacons until it receives the new primary's hello. It has no lease to renew.
        let has_taken_over =
            self.primary().is_some() && self.view.is_some_and(|view| view.handover);
        if has_taken_over { Ok(()) } else { Err(StreamError::WrongEnd) }
    }

    /// Completes a hand-over: the old primary has sent all its writes.
    pub(super) fn on_handover(&mut self, handover: &Handover) -> Result<(), StreamError> {
        let Role::TakingOver(follower) = &self.role else { return Err(StreamError::WrongEnd) };
        if handover.sn != follower.last {
            return Err(StreamError::End { got: handover.sn, applied: follower.last });
        }
        self.finish_taking_over();
        Ok(())
    }
}
