//! The sending end of the stream: the acks that a commit needs, the commits, and the progress of a candidate.
//!
//! ```text
//!   view names       Candidacy        commits wait for     reads need
//!   no other member  None             nothing              nothing
//!   a candidate      Awaited          nothing              nothing
//!                    Copying          its ack (union)      nothing
//!                    CaughtUp         its ack (union)      its lease
//!                    Failed           nothing              nothing
//!   a secondary      None             its ack              its lease
//! ```
//!
//! The union begins as soon as the candidate's stream is up, before the copy begins. So every committed write is in
//! the copy or on the stream. Until the primary reports the candidate as caught up, it may end the union by itself
//! (`Failed`). After the report only a view ends the union, because the coordinator may make the candidate a
//! secondary, and then the primary, at any time.

use std::time::Duration;

use kv_protocol::client_message::Status;
use kv_protocol::control_message::Following;
use kv_protocol::copy_message::Marked;
use kv_protocol::ids::{SequenceNumber, Time};
use kv_protocol::peer_message::{Ack, Effect};

use super::copy_out::CopyOut;
use super::forgetting::Forgetting;
use super::lease::{Lease, Standing};
use super::pending::{Committed, More, PendingChange, PendingLog};
use super::{Replica, Responses, Role, StreamError};
use crate::mutations::{self, Mutation};
use crate::table::{LOOK_AHEAD, Staged, TableHash};

/// The number of consecutive streams without progress after which the other end counts as not keeping up. With the
/// back-off between dials, this many streams take about a quarter of a second.
const FRUITLESS_STREAMS: u32 = 8;

/// The timeout for a candidate's first stream.
const CANDIDATE_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The state of a primary besides table and sessions.
#[derive(Debug)]
pub(super) struct Primary {
    pub(super) sender: Sender,
    pub(super) standing: Standing,
    pub(super) lease: Lease,
    pub(super) candidacy: Candidacy,
    /// The expiry of sessions.
    pub(super) forgetting: Forgetting,
}

/// The progress of the view's candidate, if it has one.
#[derive(Debug)]
pub(super) enum Candidacy {
    /// No candidate in the view.
    None,
    /// A candidate whose first stream is not up yet.
    Awaited { since: Time },
    /// A candidate in the union whose copy is in progress.
    Copying(Box<CopyOut>),
    /// A candidate with a complete copy; reported to the coordinator.
    CaughtUp,
    /// A candidate that was dropped from the union, or whose first stream was not up in time. Only a new view begins
    /// another copy to it.
    Failed,
}

/// The log, and the stream that carries it.
#[derive(Debug, Default)]
pub(super) struct Sender {
    pub(super) log: PendingLog,
    stream: Stream,
    /// The number of consecutive streams that were up and ended without progress while writes were pending.
    fruitless: u32,
    /// True if an ack on the current stream acked a pending write, or arrived while nothing was pending.
    has_progressed: bool,
    /// The largest `taken` of the acks on the current stream since its last progress; see [`Ack::taken`].
    part: u64,
    /// The reason why the follower last refused a stream; cleared by an ack that shows progress.
    refused: Following,
}

/// The stream to the other holder.
#[derive(Clone, Copy, Debug, Default)]
enum Stream {
    #[default]
    Down,
    Up {
        /// The newest `t_send` sent on the stream. The next beacon is due one interval later; with `None`, at once.
        t_send: Option<Time>,
    },
}

impl Sender {
    pub(super) fn of(log: PendingLog) -> Sender {
        Sender { log, ..Sender::default() }
    }

    /// Creates a sender with an empty log that continues after `last`.
    pub(super) fn starting_after(last: SequenceNumber) -> Sender {
        Sender::of(PendingLog::starting_after(last))
    }

    pub(super) fn connect(&mut self) {
        self.stream = Stream::Up { t_send: None };
        (self.has_progressed, self.part) = (false, 0);
    }

    pub(super) fn disconnect(&mut self) {
        self.stream = Stream::Down;
    }

    /// Resets the stream state for a new view. Failures under the previous view are forgotten.
    pub(super) fn on_new_view(&mut self) {
        self.disconnect();
        (self.fruitless, self.refused) = (0, Following::KeepsUp);
    }

    /// Records the end of the stream. A stream without progress counts as fruitless if writes were pending.
    pub(super) fn on_broken(&mut self) {
        if self.is_connected() && !self.has_progressed && !self.log.is_empty() {
            self.fruitless = (self.fruitless + 1).min(FRUITLESS_STREAMS);
        }
        self.disconnect();
    }

    /// Records an ack up to `sn` with this [`Ack::taken`]. Returns whether the ack counts as a sign of life. It does if
    /// it acks a pending write or raises `part`, if nothing is pending, or if the previous stream was not fruitless.
    pub(super) fn note_ack(&mut self, sn: SequenceNumber, part: u64) -> bool {
        let is_progress = sn > self.log.committed() || self.log.is_empty();
        if is_progress {
            (self.has_progressed, self.part) = (true, part);
            (self.fruitless, self.refused) = (0, Following::KeepsUp);
            return true;
        }
        let has_more = part > self.part;
        self.part = self.part.max(part);
        has_more || self.fruitless == 0
    }

    /// Records that the other end refused the stream for lack of memory.
    pub(super) fn note_no_memory(&mut self) {
        self.refused = Following::OutOfMemory;
    }

    /// Returns whether the other end keeps up, and the reason if it does not.
    pub(super) fn following(&self) -> Following {
        match self.refused {
            Following::KeepsUp if self.fruitless >= FRUITLESS_STREAMS => Following::NoProgress,
            refused => refused,
        }
    }

    pub(super) fn is_connected(&self) -> bool {
        matches!(self.stream, Stream::Up { .. })
    }

    /// Records that a message with this clock reading was sent on the stream.
    pub(super) fn note_sent(&mut self, t_send: Time) {
        self.stream = Stream::Up { t_send: Some(t_send) };
    }

    /// Returns the time at which the next beacon is due: one interval after the newest `t_send`, or at once on a new
    /// stream. `None` if the stream is down.
    pub(super) fn beacon_due(&self, interval: Duration) -> Option<Time> {
        match self.stream {
            Stream::Down => None,
            Stream::Up { t_send: None } => Some(Time::default()),
            Stream::Up { t_send: Some(last) } => Some(last + interval),
        }
    }

    /// Returns whether an echoed reading is no later than the newest one sent on this stream.
    pub(super) fn has_sent(&self, echo: Time) -> bool {
        matches!(self.stream, Stream::Up { t_send: Some(newest) } if echo <= newest)
    }
}

impl Primary {
    pub(super) fn new(sender: Sender, standing: Standing, candidacy: Candidacy) -> Primary {
        Primary {
            sender,
            standing,
            lease: Lease::default(),
            candidacy,
            forgetting: Forgetting::default(),
        }
    }

    /// Returns whether this primary may serve, dial, and enter a union.
    pub(super) fn is_active(&self) -> bool {
        self.standing == Standing::Active
    }

    /// Returns whether an expiry of sessions by this primary is not committed yet. Until then, another primary
    /// could still have these sessions.
    pub(super) fn is_forgetting(&self) -> bool {
        self.forgetting.forgot > self.sender.log.committed()
    }

    /// Returns whether every commit waits for the candidate.
    pub(super) fn is_in_union(&self) -> bool {
        match &self.candidacy {
            Candidacy::Copying(copy) => copy.is_registered(),
            Candidacy::CaughtUp => true,
            Candidacy::None | Candidacy::Awaited { .. } | Candidacy::Failed => false,
        }
    }
}

/// Commits of writes.
impl Replica {
    /// Returns whether reads need a lease, because another member may become the primary before this replica receives
    /// the new view.
    pub(super) fn needs_lease(&self) -> bool {
        let caught_up = |p: &super::Primary| matches!(p.candidacy, Candidacy::CaughtUp);
        self.view.is_some_and(|view| view.secondary().is_some())
            || self.primary().is_some_and(caught_up)
    }

    /// Returns whether writes are committed without an ack of another member.
    fn is_alone(&self) -> bool {
        self.view.is_some_and(|view| view.secondary().is_none())
            && self.primary().is_some_and(|primary| !primary.is_in_union())
    }

    /// Commits all logged writes if no other member must ack, unless the dump has begun.
    pub(super) fn commit_if_alone(&mut self, responses: &mut impl Responses) {
        if self.is_alone()
            && !self.frozen
            && let Some(primary) = self.primary()
        {
            let last = primary.sender.log.last();
            self.commit_up_to(last, responses);
        }
    }

    /// Commits everything up to `sn` and responds to the waiting requests.
    pub(super) fn commit_up_to(&mut self, sn: SequenceNumber, responses: &mut impl Responses) {
        let mut at_hand = 0;
        while let Some(sender) = self.sender_mut()
            && sender.log.committed() < sn
        {
            if at_hand == 0 {
                at_hand = LOOK_AHEAD;
                self.prefetch_commits(sn);
                continue;
            }
            at_hand -= 1;
            let write = sender.log.commit_oldest().expect("sn is at most the last assigned");
            let committed = sender.log.committed();
            let Committed { effect, staged, mut more, record, waiters } = write;
            self.apply_committed(committed, effect, staged, more.as_deref_mut());
            self.note_committed(committed);
            let rest: &[u8] = more.as_ref().map_or(&[], |more| &more.response);
            for asker in waiters.all() {
                self.respond_to_write(asker, &record, rest, responses);
            }
            if let Some(mut more) = more {
                for reader in std::mem::take(&mut more.readers) {
                    self.refuse(reader, Status::NotFound, "", responses);
                }
                if let Some(sender) = self.sender_mut() {
                    sender.log.recycle(more);
                }
            }
        }
    }

    /// Prefetches the table memory that the next commits up to `sn` will access, if there is more than one.
    fn prefetch_commits(&self, sn: SequenceNumber) {
        let Some(primary) = self.primary() else { return };
        let log = &primary.sender.log;
        let count = usize::try_from(sn.0 - log.committed().0).unwrap_or(LOOK_AHEAD);
        if count < 2 {
            return;
        }
        let (mut hashes, mut known) = ([TableHash(0); LOOK_AHEAD], 0);
        for (place, hash) in hashes.iter_mut().zip(log.hashes().take(count)) {
            *place = hash;
            known += 1;
        }
        self.table.prefetch(&hashes[..known]);
    }

    /// Applies a committed write to the table.
    #[inline]
    pub(super) fn apply_committed(
        &mut self,
        sn: SequenceNumber,
        effect: Effect,
        staged: Option<Staged>,
        more: Option<&mut More>,
    ) {
        if let Some(More { changes, encoded, .. }) = more {
            for PendingChange { hash, key, staged, .. } in changes.drain(..) {
                let replaced = match staged {
                    Some(staged) => self.table.commit(staged, sn),
                    None => self.table.remove(hash, &encoded[key]),
                };
                self.check_order(sn, replaced);
            }
        }
        let replaced = match (effect, staged) {
            (Effect::Put, Some(staged)) => self.table.commit(staged, sn),
            (Effect::Delete, Some(staged)) => self.table.commit_removal(staged),
            (_, Some(staged)) => {
                self.table.discard(staged);
                None
            }
            (_, None) => None,
        };
        self.check_order(sn, replaced);
    }

    /// Asserts that the versions of a key only increase.
    pub(super) fn check_order(&self, sn: SequenceNumber, replaced: Option<SequenceNumber>) {
        assert!(
            replaced.is_none_or(|older| older < sn),
            "write {sn} of group {}, shard {} is not newer than the entry that it replaces",
            self.config.group,
            self.config.shard
        );
    }

    /// Passes the commit and the table's digest to the copy. At its end the digests of both tables as of the same
    /// write are compared.
    fn note_committed(&mut self, committed: SequenceNumber) {
        let digest = self.table.digest();
        if let Some(Primary { candidacy: Candidacy::Copying(copy), .. }) = self.primary_mut() {
            copy.on_committed(committed, digest);
        }
    }

    /// Handles an ack of the other holder, or of the candidate.
    pub(super) fn on_ack(
        &mut self,
        now: Time,
        ack: &Ack,
        responses: &mut impl Responses,
    ) -> Result<(), StreamError> {
        let Some(sender) = self.sender_mut() else { return Err(StreamError::WrongEnd) };
        let (committed, sent) = (sender.log.committed(), sender.log.sent());
        if ack.sn > sent {
            return Err(StreamError::Impossible { claimed: ack.sn, committed, sent });
        }
        if !sender.has_sent(ack.echo) {
            return Err(StreamError::Echo { sn: ack.sn });
        }
        let is_heard = sender.note_ack(ack.sn, ack.taken);
        if let Role::Primary(primary) = &mut self.role {
            let late = mutations::is_open(Mutation::LeaseFromAckReceipt);
            primary.lease.renew(if late { now } else { ack.echo }, self.config.failure_timeout);
            if let Candidacy::Copying(copy) = &mut primary.candidacy {
                copy.on_acked(ack.taken);
            }
        }
        if is_heard {
            self.hear(now);
        }
        self.commit_up_to(ack.sn, responses);
        Ok(())
    }

    /// Handles the candidate's report of a complete copy. If the copy equals this table, the candidate has caught up;
    /// otherwise it is dropped.
    pub(super) fn on_marked(
        &mut self,
        marked: &Marked,
        responses: &mut impl Responses,
    ) -> Result<(), StreamError> {
        let Some(primary) = self.primary_mut() else { return Err(StreamError::WrongEnd) };
        let Candidacy::Copying(copy) = &primary.candidacy else {
            return Err(StreamError::WrongEnd);
        };
        let is_equal = copy.compare(marked).ok_or(StreamError::WrongEnd)?;
        if is_equal {
            primary.candidacy = Candidacy::CaughtUp;
            return Ok(());
        }
        self.fail_candidate(responses);
        Err(StreamError::Diverged { sn: marked.sn })
    }

    /// Drops the candidate, unless it has caught up: the coordinator may already have received that report.
    pub(super) fn fail_candidate(&mut self, responses: &mut impl Responses) {
        let heard = self.heard;
        let Some(primary) = self.primary_mut() else { return };
        match primary.candidacy {
            Candidacy::Copying(_) if mutations::is_open(Mutation::CopyRestartedUnderSameView) => {
                primary.candidacy = Candidacy::Awaited { since: heard };
            }
            Candidacy::Awaited { .. } | Candidacy::Copying(_) => {
                primary.candidacy = Candidacy::Failed;
            }
            Candidacy::CaughtUp if mutations::is_open(Mutation::UnionLeftAfterReport) => {
                primary.candidacy = Candidacy::Failed;
            }
            Candidacy::CaughtUp | Candidacy::None | Candidacy::Failed => return,
        }
        primary.sender.disconnect();
        self.commit_if_alone(responses);
    }
}

/// Timeouts.
impl Replica {
    /// Returns the time at which [`Replica::on_timeout`], followed by [`Replica::pump`], must be called next.
    pub fn next_timeout(&self) -> Option<Time> {
        if self.frozen {
            return self.next_frozen_timeout();
        }
        let work =
            [self.next_compaction(), self.next_upkeep(), self.next_eviction(), self.next_flush()];
        self.next_duty().into_iter().chain(work.into_iter().flatten()).min()
    }

    /// Returns the next time at which the role of this replica requires a timeout.
    fn next_duty(&self) -> Option<Time> {
        if let Role::HandingOver(old) = &self.role {
            return old.sender.beacon_due(self.config.failure_timeout.beacon_interval());
        }
        if let Role::TakingOver(_) = &self.role
            && mutations::is_open(Mutation::GraceInHandover)
        {
            return self.acked.map(|acked| acked.until);
        }
        let primary = self.primary()?;
        let grace = match primary.standing {
            Standing::InGrace(acked) => Some(acked.until),
            Standing::Active => None,
        };
        let timeout = self.config.failure_timeout.candidate_timeout();
        let candidate = match &primary.candidacy {
            Candidacy::Awaited { since } => Some(*since + CANDIDATE_CONNECT_TIMEOUT),
            Candidacy::Copying(copy) if copy.wants_pump() => Some(Time::default()),
            Candidacy::Copying(_) => Some(self.heard + timeout),
            Candidacy::CaughtUp if mutations::is_open(Mutation::UnionLeftAfterReport) => {
                Some(self.heard + timeout)
            }
            Candidacy::None | Candidacy::CaughtUp | Candidacy::Failed => None,
        };
        let interval = self.config.failure_timeout.beacon_interval();
        let beacon = primary.sender.beacon_due(interval);
        let forgetting = self.next_forgetting();
        [grace, candidate, beacon, forgetting].into_iter().flatten().min()
    }

    /// Handles everything that is due: the end of a grace, the timeout of a candidate, the expiry of idle sessions,
    /// removals and compaction.
    pub fn on_timeout(&mut self, now: Time, responses: &mut impl Responses) {
        self.readings.note(now);
        self.advance_standing(now);
        self.judge_candidate(now, responses);
        self.forget_idle_sessions(now, responses);
        self.forget_kept_values(now, responses);
        if !self.frozen {
            self.remove_expired(now, responses);
            self.continue_flush(now, responses);
            self.keep_headroom(now, responses);
            self.compact(now);
        }
    }

    fn judge_candidate(&mut self, now: Time, responses: &mut impl Responses) {
        let (heard, timeout) = (self.heard, self.config.failure_timeout.candidate_timeout());
        let Some(primary) = self.primary() else { return };
        let is_late = match &primary.candidacy {
            Candidacy::Awaited { since } => now.since(*since) >= CANDIDATE_CONNECT_TIMEOUT,
            Candidacy::Copying(_) | Candidacy::CaughtUp => now.since(heard) >= timeout,
            Candidacy::None | Candidacy::Failed => false,
        };
        if is_late {
            self.fail_candidate(responses);
        }
    }
}
