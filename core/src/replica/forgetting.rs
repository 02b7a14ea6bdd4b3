//! The expiry of sessions at a primary (consistency.md §8). Each expiry is a separate write, so both holders expire the
//! same sessions.
//!
//! ```text
//!   reason                              expires
//!   a session is idle                   every session without a write for the session idle time
//!   too many sessions                   SESSIONS_FORGOTTEN_AT_ONCE, those with the oldest last writes
//!   many bytes of values are kept       those with the oldest last writes, without one for MIN_AGE_OF_FORGOTTEN
//!   for retries
//! ```
//!
//! The primary marks positions of its log, so that it knows which writes are older than a given time.

use std::collections::VecDeque;
use std::time::Duration;

use kv_protocol::client_message::Status;
use kv_protocol::ids::{ClientId, RequestHash, RequestSeq, SequenceNumber, Time};
use kv_protocol::limits::{
    DEFAULT_DEADLINE, MAX_RETAINED_BYTES, MAX_RETAINED_RESPONSE, SESSIONS_FORGOTTEN_AT_ONCE,
};
use kv_protocol::peer_message::{CompletionRecord, Effect};
use kv_protocol::placement::Digest;

use super::pending::{PendingWrite, Waiters};
use super::{Replica, Responses};
use crate::mutations::{self, Mutation};

/// The number of searches for idle sessions within one session idle time.
const LOOKS_FOR_IDLE: u32 = 10;
/// The interval of marks. Sessions with kept values expire at most once per interval.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// The time without a write before a session expires because of its kept values: the client has retried its last write
/// for the default deadline twice.
const MIN_AGE_OF_FORGOTTEN: Duration = DEFAULT_DEADLINE.saturating_mul(2);
/// The number of kept bytes above which old sessions expire. Up to this number, every further response fits.
const MANY_RETAINED_BYTES: usize = MAX_RETAINED_BYTES - MAX_RETAINED_RESPONSE;
/// The number of kept bytes that remain after such an expiry, if enough sessions are old.
const FEW_RETAINED_BYTES: usize = MAX_RETAINED_BYTES / 2;
const _: () = assert!(FEW_RETAINED_BYTES < MANY_RETAINED_BYTES);

/// The state of the expiry of sessions at a primary.
#[derive(Debug, Default)]
pub(super) struct Forgetting {
    /// The newest write of this primary that expires sessions.
    pub(super) forgot: SequenceNumber,
    /// The time of the next search for idle sessions.
    idle_at: Option<Time>,
    /// The time of the next mark, and of the next check of the kept values.
    mark_at: Time,
    marks: Marks,
}

/// Log positions at earlier times within the session idle time, oldest first.
#[derive(Debug, Default)]
struct Marks(VecDeque<Mark>);

/// The last committed write at a given reading of the clock that excludes suspensions.
#[derive(Clone, Copy, Debug)]
struct Mark {
    awake: Duration,
    committed: SequenceNumber,
}

impl Marks {
    /// Adds a mark, unless the log has not moved since the last one, or the last one is less than `apart` old.
    fn add(&mut self, mark: Mark, apart: Duration) {
        let is_next =
            |last: &Mark| mark.committed > last.committed && mark.awake >= last.awake + apart;
        if self.0.back().is_none_or(is_next) {
            self.0.push_back(mark);
        }
    }

    /// Returns the newest position that is at least `age` old.
    fn of_age(&self, awake: Duration, age: Duration) -> Option<SequenceNumber> {
        let count = self.0.partition_point(|mark| awake >= mark.awake + age);
        Some(self.0.get(count.checked_sub(1)?)?.committed)
    }

    /// Drops the marks that are older than the newest one of at least this age.
    fn drop_older(&mut self, awake: Duration, age: Duration) {
        while self.0.get(1).is_some_and(|mark| awake >= mark.awake + age) {
            self.0.pop_front();
        }
    }
}

impl Replica {
    /// Returns the time of the next search for sessions to expire. Marks need a timeout of their own only while values
    /// are kept.
    pub(super) fn next_forgetting(&self) -> Option<Time> {
        let forgetting = &self.primary()?.forgetting;
        let mark_at = (self.sessions.retained_bytes() > 0).then_some(forgetting.mark_at);
        [mark_at, forgetting.idle_at].into_iter().flatten().min()
    }

    /// Marks the position of the log if a mark is due. Returns whether it was due and this primary is active.
    fn mark(&mut self, now: Time) -> bool {
        let interval = MARK_INTERVAL.min(self.config.session_idle / LOOKS_FOR_IDLE);
        let awake = self.awake_for_sessions(now);
        let Some(primary) = self.primary_mut() else { return false };
        if now < primary.forgetting.mark_at {
            return false;
        }
        primary.forgetting.mark_at = now + interval;
        if !primary.is_active() {
            return false;
        }
        let pending = mutations::is_open(Mutation::PendingForgotten);
        let log = &primary.sender.log;
        let committed = if pending { log.last() } else { log.committed() };
        // After a suspension the clock has advanced more than the time without suspensions.
        primary.forgetting.marks.add(Mark { awake, committed }, interval / 2);
        true
    }

    /// Returns the reading of the clock by which sessions age. Time in which this shard was suspended does not count,
    /// because a client on the same machine was suspended too.
    fn awake_for_sessions(&self, now: Time) -> Duration {
        match mutations::is_open(Mutation::IdleByTheClock) {
            true => now.since(Time::default()),
            false => self.awake.at(now),
        }
    }

    /// Expires sessions that have written nothing for the session idle time.
    pub(super) fn forget_idle_sessions(&mut self, now: Time, responses: &mut impl Responses) {
        let idle_after = self.config.session_idle;
        let look_again = idle_after / LOOKS_FOR_IDLE;
        let awake = self.awake_for_sessions(now);
        let Some(primary) = self.primary_mut() else { return };
        let due = *primary.forgetting.idle_at.get_or_insert(now + look_again);
        if now < due || !primary.is_active() {
            return;
        }
        primary.forgetting.idle_at = Some(now + look_again);
        let marks = &mut primary.forgetting.marks;
        marks.drop_older(awake, idle_after);
        if let Some(horizon) = marks.of_age(awake, idle_after)
            && self.sessions.has_idle(horizon)
        {
            self.forget_sessions(horizon, responses);
        }
    }

    /// Marks the position of the log. If many bytes of values are kept for retries, expires the sessions with the oldest
    /// last writes that keep some of them, and every session whose last write is older. A client that has ended confirms
    /// nothing, so its last value would stay for the session idle time.
    pub(super) fn forget_kept_values(&mut self, now: Time, responses: &mut impl Responses) {
        if !self.mark(now) || self.sessions.retained_bytes() <= MANY_RETAINED_BYTES {
            return;
        }
        let awake = self.awake_for_sessions(now);
        let Some(primary) = self.primary() else { return };
        let old = primary.forgetting.marks.of_age(awake, MIN_AGE_OF_FORGOTTEN);
        let bytes = self.sessions.retained_bytes() - FEW_RETAINED_BYTES;
        if let Some(old) = old
            && let Some(horizon) = self.sessions.horizon_of_retained(bytes, old)
        {
            self.forget_sessions(horizon, responses);
        }
    }

    /// Expires the sessions with the oldest last writes to make room for others, if enough of these writes are
    /// committed.
    pub(super) fn forget_oldest_sessions(&mut self, responses: &mut impl Responses) {
        let Some(primary) = self.primary() else { return };
        let committed = primary.sender.log.committed();
        let horizon = self.sessions.horizon_of_oldest(SESSIONS_FORGOTTEN_AT_ONCE, committed);
        if let Some(horizon) = horizon {
            self.forget_sessions(horizon, responses);
        }
    }

    /// Expires every session up to the horizon. The horizon is committed, so no session with a pending write expires.
    /// Does nothing while this replica drains or its log is full.
    fn forget_sessions(&mut self, horizon: SequenceNumber, responses: &mut impl Responses) {
        let draining = self.draining;
        let Some(primary) = self.primary_mut() else { return };
        if draining || !primary.sender.log.has_room(0, 0) {
            return;
        }
        primary.forgetting.forgot = primary.sender.log.last().next();
        let digest = Digest([0; 16]);
        self.sessions.forget(horizon);
        let write = PendingWrite {
            effect: Effect::ForgetSessions,
            back: 0,
            digest,
            hash: self.hash_of(digest, &[]),
            record: CompletionRecord {
                client: ClientId(0),
                seq: RequestSeq(0),
                first_incomplete: RequestSeq(0),
                status: Status::Ok,
                version: horizon,
                request: RequestHash::default(),
            },
            staged: None,
            waiters: Waiters::default(),
            bytes: 0,
            more: None,
        };
        self.log(write, responses);
    }

    /// Returns the log position at which the session of a client that connects now begins; zero if this replica is not
    /// the primary.
    ///
    /// The position is committed, so every write that is sent later gets a higher number under any primary. So all
    /// writes of such a session are above its start.
    pub fn session_start(&self) -> SequenceNumber {
        self.primary().map_or(SequenceNumber::ZERO, |primary| primary.sender.log.committed())
    }
}
