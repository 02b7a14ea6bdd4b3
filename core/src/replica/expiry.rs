//! Expiry: the removal of entries whose deadlines have passed.
//!
//! ```text
//!   primary    deadline <= wall clock -> UPKEEP (removals) -> log -> committed: the entries are gone
//!   read       entry has expired      -> its removal is logged; NOT_FOUND once it is committed
//!   write      entry has expired      -> counts as absent; the write removes or replaces it
//! ```
//!
//! Only the primary decides that an entry has expired, by the wall clock of its machine, and the decision is a write.
//! So all replicas have the same entries, and an entry that was reported as expired never appears again, also after a
//! failover to a server whose clock is slow. If clocks differ, an entry expires early or late by at most the difference.
//!
//! Wall time is an input ([`Replica::note_wall`]). Between two readings it advances with the boot clock.

use std::time::Duration;

use kv_protocol::change::{CHANGE_FIXED_BYTES, Change};
use kv_protocol::client_message::Status;
use kv_protocol::ids::{ClientId, RequestHash, RequestSeq, SequenceNumber, Time, WallTime};
use kv_protocol::limits::BATCH_TARGET_BYTES;
use kv_protocol::peer_message::{CompletionRecord, Effect};
use kv_protocol::placement::Digest;

use super::key_list::KeyList;
use super::pending::{More, PendingChange, PendingWrite, Waiters};
use super::requests::Asker;
use super::{Replica, Responses, Role};
use crate::mutations::{self, Mutation};
use crate::table::TableHash;

/// The interval at which a primary removes expired entries.
const UPKEEP_INTERVAL: Duration = Duration::from_millis(1);
/// The interval at which any other replica advances its search for expired entries, so that little is left to do when
/// it becomes the primary.
const ADVANCE_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum number of entries that one write removes. Its decision and its commit take about 150 microseconds each,
/// and more if segments of the table shrink at the same time.
pub(super) const REMOVALS_MAX: usize = 384;
/// The maximum number of moves of the search per step.
const MOVES_MAX: usize = 2_048;
/// The maximum number of reads that wait for the removal of one entry.
const READERS_MAX: usize = 1_024;
/// The number of nanoseconds in a millisecond.
const NANOS: u64 = 1_000_000;

/// The relation of the wall clock of this machine to its boot clock.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WallClock {
    /// The wall time at the boot, in milliseconds since 1970. It is negative if the wall clock was set back far.
    at_boot: i64,
}

impl WallClock {
    fn read(now: Time, wall: WallTime) -> WallClock {
        let [wall, now] = [wall.millis(), now.nanos / NANOS].map(u64::cast_signed);
        WallClock { at_boot: wall - now }
    }

    #[inline]
    fn at(self, now: Time) -> WallTime {
        WallTime::from_millis((now.nanos / NANOS).saturating_add_signed(self.at_boot))
    }

    /// Returns the boot time at which the wall clock reaches this time.
    fn reaches(self, wall: WallTime) -> Time {
        let millis = u64::try_from(wall.millis().cast_signed() - self.at_boot).unwrap_or(0);
        Time::from_nanos(millis.saturating_mul(NANOS))
    }
}

/// The progress of the removal of expired entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Upkeep {
    /// The time of the last step.
    stepped: Time,
    /// The last two writes that remove expired entries, the older one first.
    logged: [SequenceNumber; 2],
    /// The number of entries that were removed because they had expired.
    pub(super) expired: u64,
}

impl Upkeep {
    /// Returns the upkeep of a replica whose log was replaced.
    pub(super) fn with_new_log(self) -> Upkeep {
        Upkeep { logged: [SequenceNumber::ZERO; 2], ..self }
    }
}

impl Replica {
    /// Returns the wall time at `now`, by the last reading of the wall clock.
    pub fn wall(&self, now: Time) -> WallTime {
        self.wall.at(now)
    }

    /// Records a reading of the wall clock, taken at `now`. The caller must record one before the first request, and at
    /// least every 100 ms.
    pub fn note_wall(&mut self, now: Time, wall: WallTime) {
        self.wall = WallClock::read(now, wall);
    }

    /// Returns the wall time at `now`.
    pub(super) fn wall_at(&self, now: Time) -> WallTime {
        self.wall.at(now)
    }

    /// Returns whether a deadline has passed.
    #[inline]
    pub(super) fn has_passed(&self, now: Time, deadline: WallTime) -> bool {
        deadline <= self.wall.at(now)
    }

    /// Returns the time of the next step; `None` if no entry has a deadline.
    pub(super) fn next_upkeep(&self) -> Option<Time> {
        let due = self.table.next_deadline_work()?;
        Some(self.wall.reaches(due).max(self.upkeep.stepped + self.upkeep_interval()))
    }

    fn upkeep_interval(&self) -> Duration {
        let is_active = self.primary().is_some_and(|primary| primary.is_active());
        if is_active { UPKEEP_INTERVAL } else { ADVANCE_INTERVAL }
    }

    /// Advances the search for expired entries. A primary logs the removal of those that were found, one write per step.
    /// Two of these writes may be in flight. Otherwise each one would wait for a round trip after the one before.
    pub(super) fn remove_expired(&mut self, now: Time, responses: &mut impl Responses) {
        if self.next_upkeep().is_none_or(|due| due > now) {
            return;
        }
        self.upkeep.stepped = now;
        let wall = self.wall.at(now);
        self.table.advance_deadlines(wall, MOVES_MAX);
        if mutations::is_open(Mutation::ExpiredBySecondary)
            && matches!(self.role, Role::Secondary(_))
        {
            self.drop_expired(wall);
        }
        let Some(primary) = self.primary() else { return };
        let log = &primary.sender.log;
        let [older, _] = self.upkeep.logged;
        if !primary.is_active() || self.draining || older > log.committed() {
            return;
        }
        if mutations::is_open(Mutation::ExpiryNotLogged) {
            return self.drop_expired(wall);
        }
        let mut more = Box::<More>::default();
        let mut keys = KeyList::default();
        self.table.for_due(wall, REMOVALS_MAX, |entry| {
            if keys.bytes() < BATCH_TARGET_BYTES {
                keys.push(entry.key);
            }
        });
        keys.for_each(|digest, key| {
            let hash = self.hash_of(digest, key);
            // An entry that a pending write replaces or removes needs no removal.
            let is_pending = self.primary().is_some_and(|primary| {
                primary.sender.log.newest_change(&self.table, hash, key).is_some()
            });
            if !is_pending {
                more.remove(digest, hash, key);
            }
        });
        self.log_expired(more, responses);
    }

    /// Lets a read wait for the removal of an expired entry. The removal is logged unless it is pending.
    pub(super) fn await_expiry(
        &mut self,
        asker: Asker,
        (digest, key): (Digest, &[u8]),
        hash: TableHash,
        responses: &mut impl Responses,
    ) {
        let Some(primary) = self.primary() else { return };
        let log = &primary.sender.log;
        let may_log = !self.draining && log.has_room(CHANGE_FIXED_BYTES + key.len(), 1);
        let newest = log.newest_change(&self.table, hash, key);
        let newest = newest.map(|newest| (newest.sn, newest.entry.is_none()));
        if newest.is_none() && may_log {
            let mut more = Box::<More>::default();
            more.remove(digest, hash, key);
            more.readers.push(asker);
            return self.log_expired(more, responses);
        }
        if let Some((sn, true)) = newest
            && let Some(primary) = self.primary_mut()
            && let Some(write) = primary.sender.log.get_mut(sn)
        {
            let more = write.more.get_or_insert_default();
            if more.readers.len() < READERS_MAX {
                return more.readers.push(asker);
            }
        }
        // A pending write may replace the entry; then the read must wait for its commit.
        let reason = "the entry has expired and is being removed; retry later";
        self.refuse(asker, Status::Busy, reason, responses);
    }

    /// Logs the removal of expired entries.
    fn log_expired(&mut self, more: Box<More>, responses: &mut impl Responses) {
        let removed = more.changes.len() as u64;
        if let Some(logged) = self.log_removals(more, responses) {
            self.upkeep.logged = [self.upkeep.logged[1], logged];
            self.upkeep.expired += removed;
        }
    }

    /// Logs a write that removes entries for the primary itself, and returns its sequence number. Does nothing without
    /// any, or if the log is full.
    pub(super) fn log_removals(
        &mut self,
        more: Box<More>,
        responses: &mut impl Responses,
    ) -> Option<SequenceNumber> {
        let bytes = more.encoded.len();
        let log = &self.primary()?.sender.log;
        let first = more.changes.first()?;
        if !log.has_room(bytes, more.changes.len()) {
            return None;
        }
        let logged = log.last().next();
        let write = PendingWrite {
            effect: Effect::Upkeep,
            back: 0,
            digest: Digest([0; 16]),
            hash: first.hash,
            record: NO_RECORD,
            staged: None,
            waiters: Waiters::default(),
            bytes,
            more: Some(more),
        };
        self.log(write, responses);
        Some(logged)
    }

    /// Removes expired entries without a write; only for mutations.
    fn drop_expired(&mut self, wall: WallTime) {
        let mut keys: Vec<Box<[u8]>> = Vec::new();
        self.table.for_due(wall, REMOVALS_MAX, |entry| keys.push(entry.key.into()));
        for key in keys {
            let hash = self.hash_of(Digest::of(&key), &key);
            self.table.remove(hash, &key);
        }
    }
}

/// The record of a write that has none.
const NO_RECORD: CompletionRecord = CompletionRecord {
    client: ClientId(0),
    seq: RequestSeq(0),
    first_incomplete: RequestSeq(0),
    status: Status::Ok,
    version: SequenceNumber::ZERO,
    request: RequestHash(0),
};

impl More {
    /// Adds the removal of an entry.
    pub(super) fn remove(&mut self, digest: Digest, hash: TableHash, key: &[u8]) {
        let key = self.encode(&Change { digest, key, entry: None });
        self.changes.push(PendingChange { hash, key, staged: None, back: 0 });
    }
}
