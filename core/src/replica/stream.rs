//! The stream between the two holders: the end that dials, the response to a hello, and the content of batches.
//!
//! ```text
//!   dials                      accepts
//!   an active primary          its secondary or candidate; the old primary, once it has handed over
//!   the old primary (hand-     the new primary that waits for HANDOVER
//!   over view)
//! ```
//!
//! Every view has separate streams. The hello carries the whole view, so a receiver that has not received the view
//! yet installs it first. A hello of an older view is rejected; the rejection carries the newer view.

use std::cmp::Ordering;

use kv_protocol::copy_message::Handover;
use kv_protocol::ids::{ClusterId, Member, Time};
use kv_protocol::limits::{FRAGMENT_BYTES, MAX_VIEW_STEP};
use kv_protocol::peer_message::{
    BatchWriter, Beacon, PeerHello, PeerMessage, PeerRefusal, PeerRefusalReason, PeerWelcome,
};

use super::copy_out::CopyOut;
use super::lease::Acked;
use super::primary::{Candidacy, Primary};
use super::{HandingOver, Pumped, Replica, Responses, Role, StreamError};
use crate::mutations::{self, Mutation};

/// Opening and closing of streams.
impl Replica {
    /// Returns the hello with which this replica opens a stream; `None` if it dials no other replica. The driver
    /// keeps one stream to `hello.to` as long as this value is unchanged, and closes the stream when the value
    /// changes.
    pub fn peer_hello(&self, cluster: ClusterId) -> Option<PeerHello> {
        let view = self.view?;
        let to = match &self.role {
            Role::Primary(primary) => self.dials(primary)?,
            Role::HandingOver(_) => view.primary?,
            _ => return None,
        };
        Some(PeerHello {
            cluster,
            from: self.config.me,
            to,
            shard: self.config.shard,
            shards: self.config.placement.shards(),
            view,
        })
    }

    /// Returns the member that a primary dials; `None` during its grace, after its candidate has failed, or if the view
    /// names no other member.
    fn dials(&self, primary: &Primary) -> Option<Member> {
        let may_dial = primary.is_active() || mutations::is_open(Mutation::UnionByInactive);
        let failed = matches!(primary.candidacy, Candidacy::Failed);
        self.view?.other().filter(|_| may_dial && !failed)
    }

    /// Checks that the sender of a hello can be the other holder. The driver calls this function before it replaces an
    /// open stream with the new one.
    ///
    /// # Errors
    /// The refusal to send before closing: the hello is not for this replica, its sender does not hold the group, its
    /// view is older than the installed view or far newer, the dump has begun, or the hand-over is already complete.
    pub fn judge_hello(&self, hello: &PeerHello) -> Result<(), PeerRefusal> {
        let refuse = |reason| Err(PeerRefusal { reason, view: self.view });
        let (installed, me) = (self.view_version(), Some(self.config.me));
        let view = &hello.view;
        let is_from_primary = view.primary == Some(hello.from) && view.other() == me;
        let is_handover =
            view.handover && view.primary == me && view.secondary() == Some(hello.from);
        let is_ours = view.group == self.config.group
            && hello.shard == self.config.shard
            && hello.shards == self.config.placement.shards()
            && hello.to == self.config.me
            && (is_from_primary || is_handover);
        if !is_ours || view.version.0.saturating_sub(installed.0) > MAX_VIEW_STEP {
            return refuse(PeerRefusalReason::Stranger);
        }
        if self.frozen {
            return refuse(PeerRefusalReason::Stopping);
        }
        match view.version.cmp(&installed) {
            Ordering::Less => refuse(PeerRefusalReason::OldView),
            Ordering::Equal if self.view != Some(*view) => refuse(PeerRefusalReason::Stranger),
            Ordering::Equal if is_handover && self.primary().is_some() => {
                refuse(PeerRefusalReason::HandedOver)
            }
            Ordering::Equal | Ordering::Greater => Ok(()),
        }
    }

    /// Accepts a stream dialled by the other holder: checks the hello, installs its view if that is newer, and returns
    /// the position at which the stream continues. The driver must have closed any earlier stream of this replica.
    ///
    /// # Errors
    /// The refusal to send before closing: that of [`Replica::judge_hello`], or one if the view cannot be installed or
    /// the role under it accepts no stream.
    pub fn on_peer_hello(
        &mut self,
        now: Time,
        hello: &PeerHello,
        responses: &mut impl Responses,
    ) -> Result<PeerWelcome, PeerRefusal> {
        self.judge_hello(hello)?;
        let stranger = PeerRefusal { reason: PeerRefusalReason::Stranger, view: self.view };
        self.install(now, hello.view, responses).map_err(|_| stranger)?;
        if let Role::HandingOver(_) = &self.role {
            // The new primary dials only when it serves, so it has every write.
            self.finish_handing_over();
        }
        if mutations::is_open(Mutation::HandshakeIsHeard) {
            self.hear(now);
        }
        let table = &mut self.table;
        let (Role::TakingOver(follower) | Role::Secondary(follower) | Role::Candidate(follower, _)) =
            &mut self.role
        else {
            return Err(stranger);
        };
        follower.connect(table);
        let last = follower.last;
        if mutations::is_open(Mutation::ServeBeforeHandover)
            && matches!(self.role, Role::TakingOver(_))
        {
            self.finish_taking_over();
        }
        Ok(PeerWelcome { view: hello.view.version, last })
    }

    /// Handles the other holder's acceptance of the stream. Sending continues after the last write that the other
    /// holder has applied; that write counts as acked. An awaited candidate is in the union from now on: its copy
    /// begins, and it receives all later writes live.
    ///
    /// # Errors
    /// [`StreamError::Impossible`] if the position in the welcome contradicts this log, [`StreamError::View`] if the
    /// welcome is of another view, [`StreamError::WrongEnd`] if this role opens no streams, and [`StreamError::Frozen`]
    /// if the dump has begun.
    pub fn on_peer_welcome(
        &mut self,
        now: Time,
        welcome: &PeerWelcome,
        responses: &mut impl Responses,
    ) -> Result<(), StreamError> {
        self.readings.note(now);
        if self.frozen {
            return Err(StreamError::Frozen);
        }
        let installed = self.view_version();
        if welcome.view != installed {
            return Err(StreamError::View { got: welcome.view, installed });
        }
        if let Role::Primary(primary) = &mut self.role
            && let Candidacy::Awaited { .. } = primary.candidacy
        {
            let last = primary.sender.log.last();
            primary.sender.log.rewind(last);
            primary.sender.connect();
            primary.candidacy =
                Candidacy::Copying(Box::new(CopyOut::new(last, self.sessions.clients())));
            self.hear(now);
            return Ok(());
        }
        let Some(sender) = self.sender_mut() else { return Err(StreamError::WrongEnd) };
        if sender.log.rewind(welcome.last).is_none() {
            return Err(StreamError::Impossible {
                claimed: welcome.last,
                committed: sender.log.committed(),
                sent: sender.log.last(),
            });
        }
        sender.connect();
        let is_progress = welcome.last > sender.log.committed();
        if is_progress {
            sender.note_ack(welcome.last, 0);
        }
        if let Role::HandingOver(old) = &mut self.role {
            old.is_said = false;
        }
        // A handshake alone is no sign of life: a follower that cannot apply writes still accepts stream after stream.
        if is_progress || mutations::is_open(Mutation::HandshakeIsHeard) {
            self.hear(now);
        }
        self.commit_up_to(welcome.last, responses);
        Ok(())
    }

    /// Handles the rejection of a dialled stream. Installs the newer view that the rejection may carry, because the
    /// coordinator may have reached only one of the two holders. Completes a hand-over if the new primary already
    /// serves. Records a lack of memory for the reports.
    pub fn on_peer_refusal(
        &mut self,
        now: Time,
        refusal: &PeerRefusal,
        responses: &mut impl Responses,
    ) {
        self.readings.note(now);
        let installed = self.view_version();
        if refusal.reason == PeerRefusalReason::NoMemory
            && !mutations::is_open(Mutation::HandshakeIsHeard)
            && let Some(sender) = self.sender_mut()
        {
            sender.note_no_memory();
        }
        match refusal.view {
            Some(view)
                if view.version > installed && view.version.0 - installed.0 <= MAX_VIEW_STEP =>
            {
                // If the view cannot be installed, it is ignored.
                let _ = self.install(now, view, responses);
            }
            Some(view)
                if refusal.reason == PeerRefusalReason::HandedOver
                    && self.view == Some(view)
                    && matches!(self.role, Role::HandingOver(_)) =>
            {
                self.finish_handing_over();
            }
            _ => {}
        }
    }

    /// Handles the loss of the stream, at either end. Writes that were not acked are sent again on the next stream. A
    /// copy in progress is abandoned and never restarted under the same view.
    pub fn on_stream_down(&mut self, now: Time, responses: &mut impl Responses) {
        self.readings.note(now);
        if let Some(sender) = self.sender_mut() {
            sender.on_broken();
        }
        if let Some(follower) = self.follower_mut() {
            follower.connected = false;
        }
        if let Some(Primary { candidacy: Candidacy::Copying(_), .. }) = self.primary() {
            self.fail_candidate(responses);
        }
    }
}

/// Batches of the stream.
impl Replica {
    /// Appends one batch for the stream to an output if anything is to be sent, in any role: writes and beacons, the
    /// copy, the hand-over, or acks. The driver calls it at the end of a wake-up, with the clock reading of that
    /// wake-up.
    pub fn pump(&mut self, now: Time, output: &mut Vec<u8>) -> Pumped {
        self.readings.note(now);
        let mut batch = BatchWriter::new(output);
        let pumped = match self.frozen {
            true => self.fill_frozen_batch(now, &mut batch),
            false => self.fill_batch(now, &mut batch),
        };
        batch.finish();
        pumped
    }

    fn fill_batch(&mut self, now: Time, batch: &mut BatchWriter<'_>) -> Pumped {
        self.pump_acks(now, batch);
        self.pump_copy_start(batch);
        if self.pump_writes(now, batch) == Pumped::More {
            return Pumped::More;
        }
        match &mut self.role {
            Role::Primary(_) => self.pump_copy(batch),
            Role::HandingOver(old) => pump_handover(old, self.view, batch),
            _ => {}
        }
        Pumped::Done
    }

    fn pump_writes(&mut self, now: Time, batch: &mut BatchWriter<'_>) -> Pumped {
        let view = self.view_version();
        let interval = self.config.failure_timeout.beacon_interval();
        let table = &self.table;
        let sender = match &mut self.role {
            Role::Primary(primary) => &mut primary.sender,
            Role::HandingOver(old) => &mut old.sender,
            _ => return Pumped::Done,
        };
        let Some(beacon_due) = sender.beacon_due(interval) else { return Pumped::Done };
        if beacon_due <= now {
            batch.push(&PeerMessage::Beacon(Beacon { view, t_send: now }));
            sender.note_sent(now);
        }
        while sender.log.has_unsent() {
            // A batch has one piece of a long value, so that a beacon can precede the next piece.
            let has_piece = batch.len() >= FRAGMENT_BYTES && sender.log.is_amid_value();
            if batch.is_full() || has_piece {
                return Pumped::More;
            }
            let mut asks_for_ack = false;
            sender.log.send_next(table, view, now, |message| {
                // The fragments of a long value request no ack, because beacons are sent between them.
                asks_for_ack = matches!(message, PeerMessage::Prepare(_));
                batch.push(message);
            });
            if asks_for_ack {
                sender.note_sent(now);
            }
        }
        Pumped::Done
    }

    fn pump_copy_start(&mut self, batch: &mut BatchWriter<'_>) {
        let view = self.view_version();
        let Role::Primary(primary) = &mut self.role else { return };
        let Candidacy::Copying(copy) = &mut primary.candidacy else { return };
        if primary.sender.is_connected() {
            copy.pump_start(view, &self.sessions, batch);
        }
    }

    fn pump_copy(&mut self, batch: &mut BatchWriter<'_>) {
        let view = self.view_version();
        let Role::Primary(primary) = &mut self.role else { return };
        let Candidacy::Copying(copy) = &mut primary.candidacy else { return };
        if !primary.sender.is_connected() {
            return;
        }
        let (last, committed) = (primary.sender.log.last(), primary.sender.log.committed());
        copy.pump(view, last, committed, &self.table, &self.sessions, batch);
        if mutations::is_open(Mutation::ReportedWithAckOutstanding) && copy.has_ended() {
            primary.candidacy = Candidacy::CaughtUp;
        }
    }

    pub(super) fn pump_acks(&mut self, now: Time, batch: &mut BatchWriter<'_>) {
        #[cfg(feature = "mutations")]
        if let Some(ack) = self.mutant.old_ack.take() {
            batch.push(&PeerMessage::Ack(ack));
        }
        let (view, me) = (self.view_version(), self.config.me);
        let Some(other) = self.view.and_then(|view| {
            if view.primary == Some(me) { view.secondary() } else { view.primary }
        }) else {
            return;
        };
        let is_candidate = matches!(self.role, Role::Candidate(..));
        let (acks, mark) = match &mut self.role {
            Role::Candidate(follower, copy) => {
                (follower.take_ack(view, copy.taken()), copy.take_mark())
            }
            Role::TakingOver(follower) | Role::Secondary(follower) => {
                let part = follower.part(&self.table);
                (follower.take_ack(view, part), None)
            }
            _ => return,
        };
        if let Some(ack) = acks {
            let reading = self.readings.read(Mutation::GraceFromStaleReading, now);
            if !(is_candidate && mutations::is_open(Mutation::CandidateAcksGiveNoGrace)) {
                self.acked = Some(Acked::new(other, reading, self.config.failure_timeout));
            }
            batch.push(&PeerMessage::Ack(ack));
        }
        if let Some(mark) = mark {
            batch.push(&PeerMessage::Marked(mark));
        }
    }
}

/// Sends HANDOVER once per stream, after every write was sent. The old primary was active when it installed the
/// hand-over view, because `may_become` rejects that view otherwise.
fn pump_handover(
    old: &mut HandingOver,
    view: Option<kv_protocol::view::View>,
    batch: &mut BatchWriter<'_>,
) {
    let Some(view) = view else { return };
    if !old.is_said && old.sender.is_connected() && !batch.is_full() {
        let sn = old.sender.log.last();
        batch.push(&PeerMessage::Handover(Handover { view: view.version, sn }));
        old.is_said = true;
    }
}
