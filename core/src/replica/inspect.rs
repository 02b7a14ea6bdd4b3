//! What a simulator or an exhaustive check may see of a replica's inside. Nothing that ships decides
//! by it.

use kv_protocol::control_message::ReplicaState;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{Member, SequenceNumber, Time};
use kv_protocol::view::View;

use super::{Replica, Role};

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
        Inspection {
            view: self.view,
            state: self.state(),
            last,
            committed,
            serves: self.serves(),
            lease_until,
            grace: self.acked.map(|acked| (acked.to, acked.until)),
            in_union,
            is_complete: matches!(&self.role, Role::Candidate(_, copy) if copy.is_complete()),
            content: self.content(),
        }
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
