//! What a coordinator must not forget, and the rule about telling it (consistency.md §9).
//!
//! ```text
//!   decided  --Store-->  the driver: file and directory synced  --on_stored-->  durable
//!   (the next views)                                                            (told to everyone)
//! ```
//!
//! Whoever is told of a view may act on it for ever, so a view that a crash could take back must not
//! be told. Names and addresses that become known while a Store is under way go into the next one; views
//! are decided when it is done (views.rs).

use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, Epoch, GroupId, Incarnation, Member, ServerId, View, ViewVersion};
use serde::{Deserialize, Serialize};

/// The coordinator's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableState {
    /// The cluster.
    pub cluster: ClusterId,
    /// The clusters that it was restored from, the latest first; at most [`MAX_ANCESTORS`].
    ///
    /// [`MAX_ANCESTORS`]: kv_protocol::limits::MAX_ANCESTORS
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<ClusterId>,
    /// The term in which this was written.
    pub epoch: Epoch,
    /// Shards of every group.
    pub shards: u16,
    /// Every holder has had its first view: from then on clients may have been told where things are.
    pub has_served: bool,
    /// In ring order.
    pub servers: Vec<DurableServer>,
    /// The view of every group; version 0 before the first.
    pub views: Vec<View>,
    /// Of a cluster that was restored: how each group began. Empty in one that began with nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foundings: Vec<Founding>,
    /// The cluster is being stopped, or is stopped: its views are the last, whoever exits. A coordinator
    /// that follows stops on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_stopping: bool,
}

/// How a group of a restored cluster begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Its first view is above this version, the highest that the cluster before has ever told.
    pub above: ViewVersion,
    /// Nothing of it was left: its first view names nobody.
    pub is_lost: bool,
}

/// The process at one place of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableServer {
    /// Its name, drawn before it is spawned.
    pub incarnation: Incarnation,
    /// What it said of itself; `None` before that.
    pub started: Option<Started>,
}

impl DurableState {
    /// The process at a place of the ring.
    pub fn member(&self, server: ServerId) -> Member {
        Member { server, incarnation: self.servers[usize::from(server.0)].incarnation }
    }

    /// How a group begins, if its first view is not yet made.
    pub(super) fn founding(&self, group: GroupId) -> Founding {
        let known = self.foundings.get(usize::from(group.0)).copied();
        known.unwrap_or(Founding { above: ViewVersion(0), is_lost: false })
    }

    /// Whether any view names this process.
    pub fn names(&self, member: Member) -> bool {
        let of = |view: &View| view.primary == Some(member) || view.other() == Some(member);
        self.views.iter().any(of)
    }
}

/// What is decided, what is on its way to the disk, and what is there.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) decided: DurableState,
    durable: DurableState,
    storing: Option<(u64, DurableState)>,
    stored: u64,
}

impl Memory {
    /// A memory of which `durable` is on the disk.
    pub(super) fn new(decided: DurableState, durable: DurableState) -> Memory {
        Memory { decided, durable, storing: None, stored: 0 }
    }

    pub(super) fn durable(&self) -> &DurableState {
        &self.durable
    }

    /// Whether a store is under way.
    pub(super) fn is_storing(&self) -> bool {
        self.storing.is_some()
    }

    /// What to store now, and under which number.
    pub(super) fn next_store(&mut self) -> Option<(u64, DurableState)> {
        if self.storing.is_some() || self.decided == self.durable {
            return None;
        }
        self.stored += 1;
        self.storing = Some((self.stored, self.decided.clone()));
        self.storing.clone()
    }

    /// A store is done: what was durable before, if it was the one that is under way.
    pub(super) fn on_stored(&mut self, number: u64) -> Option<DurableState> {
        let (_, state) = self.storing.take_if(|(storing, _)| *storing == number)?;
        Some(std::mem::replace(&mut self.durable, state))
    }
}
