//! The receiving end of the stream. It applies each write as soon as it arrives, in order, and acks it.
//!
//! On a slow link the transfer of a long value can take longer than a lease. So the part received so far is acked too,
//! once per beacon interval.

use kv_protocol::change::{Change, NewEntry};
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
    partial: Option<Box<Partial>>,
    /// The newest `t_send` for which an ack is due.
    owed: Option<Time>,
    /// The newest `t_send` of the stream, which an ack of the copy or of a part of a value echoes.
    newest: Option<Time>,
    /// The last write for which this replica had no memory.
    no_memory_for: Option<SequenceNumber>,
}

/// A write whose value or response is incomplete.
#[derive(Debug)]
struct Partial {
    head: Head,
    /// The entry of a PUT with the part of its value that was received.
    staged: Option<Staged>,
    /// The received part of the value of any other write.
    value: Vec<u8>,
    /// The received part of the response.
    response: Vec<u8>,
    missing_value: usize,
    missing_response: usize,
    /// The time at which its PREPARE was sent, which the ack of the whole write echoes.
    t_send: Time,
}

/// The parts of a PREPARE that are needed once its value is complete.
#[derive(Clone, Debug)]
struct Head {
    effect: Effect,
    hash: TableHash,
    key: Box<[u8]>,
    record: CompletionRecord,
}

impl Partial {
    /// Returns the number of bytes received so far.
    fn received(&self, table: &Table) -> usize {
        let staged = self.staged.as_ref().map_or(0, |staged| table.staged_entry(staged).1.len());
        staged + self.value.len() + self.response.len()
    }
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
        if let Some(staged) = self.partial.take().and_then(|partial| partial.staged) {
            table.discard(staged);
        }
        (self.owed, self.newest) = (None, None);
    }

    /// Records that an ack of a message with this `t_send` is due.
    pub(super) fn owe_ack(&mut self, t_send: Time) {
        self.owed = Some(self.owed.map_or(t_send, |owed| owed.max(t_send)));
        self.newest = Some(self.newest.map_or(t_send, |newest| newest.max(t_send)));
    }

    /// Returns the number of bytes received of the next write's value and response.
    pub(super) fn part(&self, table: &Table) -> u64 {
        let partial = self.partial.as_ref();
        partial.map_or(0, |partial| partial.received(table) as u64)
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
        let key = prepare.key;
        if !key.is_empty() && self.config.placement.locate_digested(prepare.digest, key) != place {
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

    /// Applies a write. Returns `false` if a part of its value or response is still missing.
    fn apply(&mut self, prepare: &Prepare<'_>) -> Result<bool, StreamError> {
        let Prepare { sn, effect, key, value, deadline, record, response, .. } = *prepare;
        let hash = self.hash_of(prepare.digest, key);
        let missing_value = prepare.value_length as usize - value.len();
        let missing_response = prepare.response_length as usize - response.len();
        if missing_value > 0 || missing_response > 0 {
            let (missing, head) =
                ((missing_value, missing_response), Head { effect, hash, key: key.into(), record });
            return self.begin_value(prepare, head, missing).map(|()| false);
        }
        match effect {
            Effect::Put => {
                let put = self.table.put(hash, key, value, deadline, sn);
                let replaced = put.map_err(|_| self.out_of_memory(sn))?;
                self.check_order(sn, replaced);
            }
            Effect::Delete => self.apply_removal(sn, hash, key),
            Effect::Changes | Effect::Upkeep => self.apply_changes(sn, value)?,
            Effect::Nothing => {}
            Effect::ForgetSessions => self.sessions.forget(record.version),
        }
        if effect.has_record() {
            self.keep_record(sn, record, response);
        }
        Ok(true)
    }

    fn apply_removal(&mut self, sn: SequenceNumber, hash: TableHash, key: &[u8]) {
        self.table.remove(hash, key);
        if let Role::Candidate(_, copy) = &mut self.role {
            copy.bury(hash, key, sn);
        }
    }

    /// Applies the changes of a write, all of them or, if there is no memory, none.
    fn apply_changes(&mut self, sn: SequenceNumber, value: &[u8]) -> Result<(), StreamError> {
        let changes =
            Change::read_all(value).map_err(|error| StreamError::Changes { sn, error })?;
        let place = (self.config.group, self.config.shard);
        let placement = self.config.placement;
        let is_elsewhere =
            |change: &Change<'_>| placement.locate_digested(change.digest, change.key) != place;
        if changes.iter().any(is_elsewhere) {
            return Err(StreamError::ForeignKey { sn });
        }
        let mut staged = Vec::new();
        for Change { digest, key, entry } in &changes {
            let Some(NewEntry { value, deadline }) = entry else { continue };
            let hash = self.hash_of(*digest, key);
            match self.table.stage(hash, key, value.len(), *deadline) {
                Ok(mut one) => {
                    self.table.staged_append(&mut one, value);
                    staged.push(one);
                }
                Err(_) => {
                    staged.into_iter().for_each(|one| self.table.discard(one));
                    return Err(self.out_of_memory(sn));
                }
            }
        }
        let mut staged = staged.into_iter();
        for Change { digest, key, entry } in changes {
            match entry.and_then(|_| staged.next()) {
                Some(one) => {
                    let replaced = self.table.commit(one, sn);
                    self.check_order(sn, replaced);
                }
                None => self.apply_removal(sn, self.hash_of(digest, key), key),
            }
        }
        Ok(())
    }

    /// Keeps the first part of a long value or response. Fragments carry the rest.
    fn begin_value(
        &mut self,
        prepare: &Prepare<'_>,
        head: Head,
        (missing_value, missing_response): (usize, usize),
    ) -> Result<(), StreamError> {
        let Prepare { sn, t_send, key, value, deadline, response, .. } = *prepare;
        let mut partial = Partial {
            staged: None,
            value: Vec::new(),
            response: Vec::new(),
            missing_value,
            missing_response,
            t_send,
            head,
        };
        if prepare.effect == Effect::Put {
            let length = value.len() + missing_value;
            let staged = self.table.stage(partial.head.hash, key, length, deadline);
            let mut staged = staged.map_err(|_| self.out_of_memory(sn))?;
            self.table.staged_append(&mut staged, value);
            partial.staged = Some(staged);
        } else {
            partial.value.extend_from_slice(value);
        }
        partial.response.extend_from_slice(response);
        let Some(follower) = self.follower_mut() else { return Err(StreamError::WrongEnd) };
        follower.owe_ack(t_send);
        follower.partial = Some(Box::new(partial));
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

    fn keep_record(&mut self, sn: SequenceNumber, record: CompletionRecord, response: &[u8]) {
        if mutations::is_open(Mutation::RecordNotInPrepare) {
            return;
        }
        match self.role {
            // The session may have begun long before the copy, and its earlier records may never arrive.
            Role::Candidate(..) => self.sessions.record_known(sn, record, response),
            _ if response.is_empty() => self.sessions.record(sn, record, None),
            _ => self.sessions.record(sn, record, Some(&response.into())),
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
        let missing = match partial.missing_value {
            0 => &mut partial.missing_response,
            _ => &mut partial.missing_value,
        };
        let is_of_value = fragment.bytes.len() <= *missing;
        if sn != follower.last.next()
            || fragment.offset as usize != partial.received(&self.table)
            || !is_of_value
        {
            return Err(wrong);
        }
        match (partial.missing_value, &mut partial.staged) {
            (0, _) => partial.response.extend_from_slice(fragment.bytes),
            (_, Some(staged)) => self.table.staged_append(staged, fragment.bytes),
            (_, None) => partial.value.extend_from_slice(fragment.bytes),
        }
        let missing = match partial.missing_value {
            0 => &mut partial.missing_response,
            _ => &mut partial.missing_value,
        };
        *missing -= fragment.bytes.len();
        if partial.missing_value + partial.missing_response == 0 {
            let whole = follower.partial.take().expect("it was just filled");
            self.apply_whole(sn, *whole)?;
        } else if may_sign {
            follower.owe_sign();
        }
        Ok(())
    }

    /// Applies a write whose last fragment has arrived.
    fn apply_whole(&mut self, sn: SequenceNumber, whole: Partial) -> Result<(), StreamError> {
        let Partial { head: Head { effect, hash, key, record }, staged, value, response, .. } =
            whole;
        match (effect, staged) {
            (_, Some(staged)) => {
                let replaced = self.table.commit(staged, sn);
                self.check_order(sn, replaced);
            }
            (Effect::Changes | Effect::Upkeep, None) => self.apply_changes(sn, &value)?,
            (Effect::Delete, None) => self.apply_removal(sn, hash, &key),
            _ => {}
        }
        if effect.has_record() {
            self.keep_record(sn, record, &response);
        }
        let Some(follower) = self.follower_mut() else { return Err(StreamError::WrongEnd) };
        follower.last = sn;
        follower.owe_ack(whole.t_send);
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
