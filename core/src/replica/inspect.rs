//! What a simulator or an exhaustive check may see of a replica's inside. Nothing that ships decides
//! by it.

use std::fmt::Write as _;
use std::hash::BuildHasher as _;

use foldhash::quality::FixedState;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{Member, SequenceNumber, Time};
use kv_protocol::view::View;

use super::primary::Candidacy;
use super::{Replica, Role};
use crate::holes::{self, Hole};
use crate::table::{WalkBudget, WalkCursor};

/// Until when a replica answers reads, by its own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Not as things stand.
    Never,
    /// At readings before this one.
    Before(Time),
    /// At any time: it is the only holder.
    Always,
}

/// A replica's inside at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The installed view.
    pub view: Option<View>,
    /// What it is under that view.
    pub state: ReplicaState,
    /// The last write assigned (primary) or applied.
    pub last: SequenceNumber,
    /// The last write committed; at a follower, the last applied.
    pub committed: SequenceNumber,
    /// Until when it answers reads.
    pub serves: Serves,
    /// The lease of a primary.
    pub lease_until: Option<Time>,
    /// Whom it acked last, and the end of the grace that it owes him, by its own clock.
    pub grace: Option<(Member, Time)>,
    /// Whether it is a primary whose commits wait for its candidate.
    pub in_union: bool,
    /// The last write before the union that it is in: what came until then is brought by the copy, which
    /// goes on. Zero once the candidate has caught up.
    pub copied_from: SequenceNumber,
    /// Whether it is a candidate whose copy is complete.
    pub is_complete: bool,
    /// What its table and sessions hold.
    pub content: ContentDigest,
}

impl Replica {
    /// Its inside.
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

    /// The digest of what it holds, made anew: what [`Replica::content`] must be.
    pub fn recount(&self) -> ContentDigest {
        ContentDigest { table: self.table.recount(), sessions: self.sessions.recount() }
    }

    /// Everything on which its behaviour depends, as text: two replicas of the same configuration that
    /// describe themselves alike do the same from there on. For a search that must know when it has been
    /// somewhere before.
    ///
    /// Every field is named here, so that a new one cannot be forgotten without a compiler error. All but
    /// the table is what `Debug` says of it: roles with their logs, streams, leases, copies and
    /// tombstones, sessions with their records. The table is its entries, those that are staged for the
    /// pending writes included; where they lie in memory is left out. Two that behave alike may describe
    /// themselves differently (a ticket of a staged entry counts all before it): a search then visits
    /// more than it must, never less.
    pub fn describe(&self) -> String {
        let Replica {
            config: _,
            view,
            role,
            table,
            sessions,
            heard,
            // Of its reports alone, which such a search makes of `heard`: there nobody sleeps.
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
            // Of where entries lie, and not of what they are.
            last_steps: _,
            #[cfg(feature = "holes")]
            planted,
        } = self;
        let mut text = format!("{view:?} {role:?} {sessions:?} {heard:?} {acked:?} {proven:?} ");
        let _ = write!(text, "{restored:?} {draining} {frozen} {lent} ");
        let mut cursor = Some(WalkCursor::START);
        while let Some(at) = cursor {
            cursor = table.walk(at, WalkBudget { entries: 64, bytes: 1 << 20 }, |entry| {
                let _ = write!(text, "{:?} {} {:x} ", entry.key, entry.version, sum(entry.value));
            });
        }
        for (key, value) in self.sender().into_iter().flat_map(|sender| sender.log.staged(table)) {
            let _ = write!(text, "{key:?} {:x} ", sum(value));
        }
        // The reading of the wake-up before decides only where one of these rules is left out.
        if holes::is_open(Hole::StaleClockInLeaseCheck)
            || holes::is_open(Hole::GraceFromStaleReading)
        {
            let _ = write!(text, "{readings:?} ");
        }
        #[cfg(feature = "holes")]
        let _ = write!(text, "{planted:?}");
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

/// Stands for a value, which may be long.
fn sum(value: &[u8]) -> u64 {
    FixedState::default().hash_one(value)
}
