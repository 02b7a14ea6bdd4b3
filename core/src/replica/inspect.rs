//! Access to a replica's internal state for the simulator and the exhaustive search. No shipped code depends on it.

use std::fmt::Write as _;
use std::hash::BuildHasher as _;

use foldhash::quality::FixedState;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{Member, SequenceNumber, Time};
use kv_protocol::view::View;

use super::primary::Candidacy;
use super::{Replica, Role};
use crate::mutations::{self, Mutation};
use crate::table::{WalkBudget, WalkCursor};

/// The time until which a replica serves reads, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// No reads in the current state.
    Never,
    /// Reads while the clock reading is below this time.
    Before(Time),
    /// Reads at any time: no other member can become the primary without this replica.
    Always,
}

/// The internal state of a replica at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The installed view.
    pub view: Option<View>,
    /// The state under that view.
    pub state: ReplicaState,
    /// The last write assigned (primary) or applied.
    pub last: SequenceNumber,
    /// The last write committed; at a follower, the last applied.
    pub committed: SequenceNumber,
    /// The time until which the replica serves reads.
    pub serves: Serves,
    /// The end of a primary's lease.
    pub lease_until: Option<Time>,
    /// The member that this replica acked last, and the end of the grace for that ack, by the replica's clock.
    pub grace: Option<(Member, Time)>,
    /// True for a primary whose commits wait for its candidate.
    pub in_union: bool,
    /// The last write before the union with the candidate began: the copy in progress contains all writes up to this
    /// one. Zero if no copy is in progress.
    pub copied_from: SequenceNumber,
    /// True for a candidate whose copy is complete.
    pub is_complete: bool,
    /// The digest of table and sessions.
    pub content: ContentDigest,
}

impl Replica {
    /// Returns the internal state of this replica.
    pub fn inspect(&self) -> Inspection {
        let (last, committed) = self.progress();
        let (lease_until, in_union) = match &self.role {
            Role::Primary(primary) => (primary.lease.until(), primary.is_in_union()),
            _ => (None, false),
        };
        let copied_from = match &self.role {
            Role::Primary(primary) => match &primary.candidacy {
                Candidacy::Copying(copy) => copy.start(),
                _ => SequenceNumber::ZERO,
            },
            _ => SequenceNumber::ZERO,
        };
        Inspection {
            view: self.view,
            state: self.state(),
            last,
            committed,
            serves: self.serves(),
            lease_until,
            grace: self.acked.map(|acked| (acked.to, acked.until)),
            in_union,
            copied_from,
            is_complete: matches!(&self.role, Role::Candidate(_, copy) if copy.is_complete()),
            content: self.content(),
        }
    }

    /// Recomputes the digest of the content, which must equal [`Replica::content`].
    pub fn recount(&self) -> ContentDigest {
        ContentDigest { table: self.table.recount(), sessions: self.sessions.recount() }
    }

    /// Returns everything on which the behaviour of this replica depends, as text. Two replicas with the same
    /// configuration and equal descriptions behave alike. A state-space search uses the description to recognize a
    /// visited state.
    ///
    /// Every field is named here, so that the omission of a new one is a compiler error. The fields that affect the
    /// behaviour appear as their `Debug` output, except the table: roles with their logs, streams, leases, copies and
    /// tombstones, and sessions with their records. The table appears as its entries, including those staged for
    /// pending writes, without their addresses. Two replicas that behave alike may have different descriptions, because
    /// the number in a [`Staged`](crate::table::Staged) ticket depends on all earlier tickets. A search then visits
    /// more states than necessary, never fewer.
    pub fn describe(&self) -> String {
        let Replica {
            config,
            view,
            role,
            table,
            sessions,
            heard,
            // Affects the silence in reports, which the search derives from `heard`, and the expiry of sessions, which
            // takes longer than a search covers. The search does not model suspension.
            awake: _,
            awake_when_heard: _,
            // A statistic.
            longest_gap: _,
            acked,
            proven,
            restored,
            draining,
            frozen,
            readings,
            lent,
            // Affects only the addresses of entries.
            last_steps: _,
            // The search does not model wall time, and its entries have no deadlines.
            wall: _,
            upkeep: _,
            // The search evicts and flushes nothing.
            updated_bytes: _,
            evictions: _,
            flush: _,
            #[cfg(feature = "mutations")]
            mutant,
        } = self;
        let mut text = format!("{view:?} {role:?} {sessions:?} {heard:?} {acked:?} {proven:?} ");
        // Without a memory limit, lent bytes have no effect.
        let lent = config.memory_limit.map(|_| lent);
        let _ = write!(text, "{restored:?} {draining} {frozen} {lent:?} ");
        let mut cursor = Some(WalkCursor::START);
        while let Some(at) = cursor {
            cursor = table.walk(at, WalkBudget { entries: 64, bytes: 1 << 20 }, |entry| {
                let (version, deadline) = (entry.version, entry.deadline);
                let value = sum(entry.value);
                let _ = write!(text, "{:?} {version} {value:x} {deadline:?} ", entry.key);
            });
        }
        for (key, value) in self.sender().into_iter().flat_map(|sender| sender.log.staged(table)) {
            let _ = write!(text, "{key:?} {:x} ", sum(value));
        }
        // The clock reading of the previous wake-up matters only while one of these rules is disabled.
        if mutations::is_open(Mutation::StaleClockInLeaseCheck)
            || mutations::is_open(Mutation::GraceFromStaleReading)
        {
            let _ = write!(text, "{readings:?} ");
        }
        #[cfg(feature = "mutations")]
        let _ = write!(text, "{mutant:?}");
        text
    }

    fn serves(&self) -> Serves {
        match &self.role {
            Role::Primary(primary) if !primary.is_active() => Serves::Never,
            Role::Primary(primary) if !self.needs_lease() => Serves::Always,
            Role::Primary(primary) => primary.lease.until().map_or(Serves::Never, Serves::Before),
            _ => Serves::Never,
        }
    }
}

/// Returns a hash that represents a value, which may be long.
fn sum(value: &[u8]) -> u64 {
    FixedState::default().hash_one(value)
}
