//! The durable state of a coordinator, and the rule that nothing is announced before it is durable
//! (consistency.md §9).
//!
//! ```text
//!   decided  --Store-->  the driver: file and directory synced  --on_stored-->  durable
//!   (the next views)                                                            (sent to all)
//! ```
//!
//! A process that receives a view may act on it at any later time. So a view that a crash could revoke must not be
//! sent. Incarnations and addresses that become known while a Store is in progress are part of the next Store. The
//! next views are decided when the Store in progress is done (views.rs).
//!
//! A store fails, for example, while the disk is full. The views and last holders that it would have made durable are
//! then withdrawn: no process has received them, and the facts may change until the disk has room. When the retry is
//! due, the views are decided again. Before the cluster has served, nothing is withdrawn.

use std::time::Duration;

use kv_protocol::Time;
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, Epoch, GroupId, Incarnation, Member, ServerId, View, ViewVersion};
use serde::{Deserialize, Serialize};

use super::{Cluster, Effect};
use crate::mutations::{self, Mutation};

/// The back-off after a failed store.
pub const STORE_AGAIN: Duration = Duration::from_millis(200);

/// The minimum time for which the alarm about a failed store lasts if nothing is left to store. A withdrawn decision
/// may be made again within this time.
const TROUBLE_LASTS: Duration = Duration::from_secs(3);

/// The durable state of a coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableState {
    /// The id of the cluster.
    pub cluster: ClusterId,
    /// The clusters from which this one was restored, the latest first; at most [`MAX_ANCESTORS`].
    ///
    /// [`MAX_ANCESTORS`]: kv_protocol::limits::MAX_ANCESTORS
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<ClusterId>,
    /// The epoch of the coordinator process that wrote this state.
    pub epoch: Epoch,
    /// The number of shards of every group.
    pub shards: u16,
    /// True if only the hash tag of a key, if it has one, determines its place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hash_tags: bool,
    /// True once every holder has received its first view. From then on clients may get a map.
    pub has_served: bool,
    /// The servers, by place in the ring.
    pub servers: Vec<DurableServer>,
    /// The view of every group; version 0 before the first.
    pub views: Vec<View>,
    /// The origin of each group in a restored cluster; empty in a cluster that began with empty tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foundings: Vec<Founding>,
    /// The last holders of groups without a live holder. Their dumps count at a restore. If a group rests in dumps, its
    /// view still names them. Otherwise the previous view named them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_holders: Vec<LastHolders>,
    /// True if the cluster is being stopped, or is stopped. Its views are final then: exits no longer change them.
    /// A coordinator that takes over continues the stop.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_stopping: bool,
    /// The place whose fault was counted and whose recovery is in progress. A fault of another place is a second
    /// fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovering: Option<ServerId>,
    /// The places that move to other hosts, until the decision to spawn their new processes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moving: Vec<ServerId>,
}

/// The origin of a group in a restored cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// The highest view version of the group in the earlier cluster. The first view of the group has a higher one.
    pub above: ViewVersion,
    /// True if the group is LOST because no dump of it counts: its first view names no process.
    pub is_lost: bool,
}

/// The last holders of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastHolders {
    /// The group without a live holder.
    pub group: GroupId,
    /// The primary that its last view with a holder named.
    pub primary: Member,
    /// The secondary of that view, if it had one.
    pub secondary: Option<Member>,
}

/// The process at one place of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableServer {
    /// The incarnation, drawn before the process is spawned.
    pub incarnation: Incarnation,
    /// The STARTED report of the process; `None` before it arrives.
    pub started: Option<Started>,
}

impl DurableState {
    /// Returns the process at a place of the ring.
    pub fn member(&self, server: ServerId) -> Member {
        Member { server, incarnation: self.servers[usize::from(server.0)].incarnation }
    }

    /// Returns the origin of a group. In a cluster that began with empty tables this is version 0, not LOST.
    pub(super) fn founding(&self, group: GroupId) -> Founding {
        let known = self.foundings.get(usize::from(group.0)).copied();
        known.unwrap_or(Founding { above: ViewVersion(0), is_lost: false })
    }

    /// Returns the holders that the view of a group names; if it names none, the last holders. A dump of any other
    /// process may lack acknowledged writes.
    pub fn holders(&self, group: GroupId) -> impl Iterator<Item = Member> {
        let view = self.views.get(usize::from(group.0)).filter(|view| view.primary.is_some());
        let last = self.last_holders.iter().find(|last| last.group == group);
        let now = view.map(|view| [view.primary, view.secondary()]);
        let last = last.map(|last| [Some(last.primary), last.secondary]);
        now.or(last).into_iter().flatten().flatten()
    }

    /// Returns whether a group rests in complete dumps: no holder is left, and at least one of the last ones has made
    /// an orderly exit. Its view stays, so it is not LOST. No process serves it until the cluster is restored.
    pub fn rests(&self, group: GroupId) -> bool {
        let Some(view) = self.views.get(usize::from(group.0)) else { return false };
        let is_of_view = |last: &LastHolders| {
            last.group == group
                && view.primary == Some(last.primary)
                && view.secondary() == last.secondary
        };
        self.last_holders.iter().any(is_of_view)
    }

    /// Returns whether any view names this process, so that the process is needed. The view of a group that rests is
    /// ignored, because its holders have exited.
    pub fn names(&self, member: Member) -> bool {
        let of = |view: &View| view.primary == Some(member) || view.other() == Some(member);
        self.views.iter().filter(|view| of(view)).any(|view| !self.rests(view.group))
    }
}

/// The decided state, the state being stored, and the durable state.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) decided: DurableState,
    durable: DurableState,
    storing: Option<(u64, DurableState)>,
    stored: u64,
    /// The number of a store that the caller has requested because other data that it stores with the state has
    /// changed. This store is made even if the state has not changed.
    due: Option<u64>,
    /// The time of the retry after a failed store; no store begins earlier.
    again_at: Option<Time>,
    /// The time at which a failed or slow store was noticed, and the reason.
    trouble: Option<(Time, String)>,
}

impl Memory {
    /// Creates a memory with the decided state `decided` and the durable state `durable`.
    pub(super) fn new(decided: DurableState, durable: DurableState) -> Memory {
        Memory {
            decided,
            durable,
            storing: None,
            stored: 0,
            due: None,
            again_at: None,
            trouble: None,
        }
    }

    pub(super) fn durable(&self) -> &DurableState {
        &self.durable
    }

    /// Returns whether a store is in progress or must not begin yet.
    pub(super) fn is_storing(&self) -> bool {
        self.storing.is_some() || self.again_at.is_some()
    }

    /// Returns the time at which a failed store is retried; `None` if none waits for its retry.
    pub(super) fn again_at(&self) -> Option<Time> {
        self.again_at
    }

    /// Ends the back-off after a failed store if it is over.
    pub(super) fn on_time(&mut self, now: Time) {
        self.again_at.take_if(|again| *again <= now);
    }

    /// Returns the reason why a store has failed or takes long, while the alarm about it lasts.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(_, reason)| reason.as_str())
    }

    /// Clears the record of a failed or slow store if it is at least [`TROUBLE_LASTS`] old and nothing is left to
    /// store.
    pub(super) fn end_trouble(&mut self, now: Time) {
        if !self.is_storing() && self.decided == self.durable {
            self.trouble.take_if(|(noticed, _)| now.since(*noticed) >= TROUBLE_LASTS);
        }
    }

    /// Records that a store takes long, if it is the one in progress.
    fn on_late(&mut self, now: Time, number: u64, reason: &str) {
        if self.storing.as_ref().is_some_and(|(storing, _)| *storing == number) {
            self.trouble = Some((now, reason.to_owned()));
        }
    }

    /// Handles a failed store, if it was the one in progress. Once the cluster has served, withdraws the views and last
    /// holders that the store would have made durable.
    fn on_failed(&mut self, now: Time, number: u64, reason: &str) {
        let failed = self.storing.take_if(|(storing, _)| *storing == number);
        if failed.is_none() {
            return;
        }
        self.trouble = Some((now, reason.to_owned()));
        self.again_at = Some(now + STORE_AGAIN);
        if self.durable.has_served && !mutations::is_open(Mutation::FailedDecisionKept) {
            self.decided.views.clone_from(&self.durable.views);
            self.decided.last_holders.clone_from(&self.durable.last_holders);
        }
    }

    /// Begins the next store and returns its number and state; `None` if nothing must be stored or no store may begin.
    pub(super) fn next_store(&mut self) -> Option<(u64, DurableState)> {
        if self.is_storing() || (self.decided == self.durable && self.due.is_none()) {
            return None;
        }
        self.stored += 1;
        self.storing = Some((self.stored, self.decided.clone()));
        self.storing.clone()
    }

    /// Completes the store in progress and returns the state that was durable before; `None` if the number is another
    /// one.
    pub(super) fn on_stored(&mut self, number: u64) -> Option<DurableState> {
        let (_, state) = self.storing.take_if(|(storing, _)| *storing == number)?;
        self.trouble = None;
        self.due.take_if(|due| number >= *due);
        Some(std::mem::replace(&mut self.durable, state))
    }
}

impl Cluster {
    /// Requests another store of the state, because the data that the caller stores with it has changed.
    pub fn store_again(&mut self, now: Time, sink: &mut Vec<Effect>) {
        // A store in progress may contain the data from before the change.
        self.memory.due = Some(self.memory.stored + 1);
        self.advance(now, sink);
    }

    /// Records that the store with this number failed. Its content is not announced, although it may have reached
    /// the disk.
    pub fn on_store_failed(
        &mut self,
        now: Time,
        number: u64,
        reason: &str,
        sink: &mut Vec<Effect>,
    ) {
        if mutations::is_open(Mutation::FailedStoreBelieved) {
            return self.on_stored(now, number, sink);
        }
        self.memory.on_failed(now, number, reason);
        self.advance(now, sink);
    }

    /// Records that the store with this number takes long; it may still succeed.
    pub fn on_store_late(&mut self, now: Time, number: u64, reason: &str, sink: &mut Vec<Effect>) {
        self.memory.on_late(now, number, reason);
        self.advance(now, sink);
    }

    /// Records the reason why the next store may fail although the last one has succeeded; `None` ends the alarm.
    pub fn note_store_risk(&mut self, risk: Option<String>) {
        self.store_risk = risk;
        self.renew_alarms();
    }
}
