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
//!
//! A store may fail for as long as a disk is full. Then the views that it would have made durable are withdrawn, and
//! the last holders that go with them. No process was told of them, and facts change while the disk is full. When it is
//! time to retry, they are decided anew.

use std::time::Duration;

use kv_protocol::Time;
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, Epoch, GroupId, Incarnation, Member, ServerId, View, ViewVersion};
use serde::{Deserialize, Serialize};

use super::{Cluster, Effect};
use crate::holes::{self, Hole};

/// After a store that failed, so long until the next.
pub const STORE_AGAIN: Duration = Duration::from_millis(200);

/// An alarm about a store that failed lasts so long where nothing is left to store: a decision that was
/// withdrawn may be made again.
const TROUBLE_LASTS: Duration = Duration::from_secs(3);

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
    /// The last holders of each group that rests in dumps, which its view still names. If the view of a group names no
    /// process any more, the holders that the view before it named. Their dumps count at a restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_holders: Vec<LastHolders>,
    /// The cluster is being stopped, or is stopped: its views are the last, whoever exits. A coordinator
    /// that follows stops on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_stopping: bool,
    /// The place whose fault was counted and whose recovery goes on: a fault of another place is a second one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovering: Option<ServerId>,
    /// The places that were given to other hosts, and whose processes there are not spawned yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moving: Vec<ServerId>,
}

/// How a group of a restored cluster begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// Its first view is above this version, the highest that the cluster before has ever told.
    pub above: ViewVersion,
    /// Nothing of it was left: its first view names nobody.
    pub is_lost: bool,
}

/// Who held a group last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastHolders {
    /// The group.
    pub group: GroupId,
    /// Its last primary.
    pub primary: Member,
    /// Its last secondary, if it had one.
    pub secondary: Option<Member>,
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

    /// Whoever holds a group, or held it last: each has every acknowledged write, in memory or in a complete dump.
    pub fn holders(&self, group: GroupId) -> impl Iterator<Item = Member> {
        let view = self.views.get(usize::from(group.0)).filter(|view| view.primary.is_some());
        let last = self.last_holders.iter().find(|last| last.group == group);
        let now = view.map(|view| [view.primary, view.secondary()]);
        let last = last.map(|last| [Some(last.primary), last.secondary]);
        now.or(last).into_iter().flatten().flatten()
    }

    /// Returns whether all that is left of a group is in complete dumps: its last holders have exited in order. Its
    /// view stays, so it is not LOST, and no process serves it until the cluster is restored.
    pub fn rests(&self, group: GroupId) -> bool {
        let Some(view) = self.views.get(usize::from(group.0)) else { return false };
        let is_of_view = |last: &LastHolders| {
            last.group == group
                && view.primary == Some(last.primary)
                && view.secondary() == last.secondary
        };
        self.last_holders.iter().any(is_of_view)
    }

    /// Returns whether any view names this process, so that it is needed. The holders of a group that rests have
    /// exited.
    pub fn names(&self, member: Member) -> bool {
        let of = |view: &View| view.primary == Some(member) || view.other() == Some(member);
        self.views.iter().filter(|view| of(view)).any(|view| !self.rests(view.group))
    }
}

/// What is decided, what is on its way to the disk, and what is there.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) decided: DurableState,
    durable: DurableState,
    storing: Option<(u64, DurableState)>,
    stored: u64,
    /// Until a store of this number or a later one is done, there is something to store besides the state.
    due: Option<u64>,
    /// The last store has failed; until then there is no other.
    again_at: Option<Time>,
    /// Why the last store has failed, or takes so long, and when that was noticed.
    trouble: Option<(Time, String)>,
}

impl Memory {
    /// A memory of which `durable` is on the disk.
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

    /// Whether a store is under way, or cannot be begun yet.
    pub(super) fn is_storing(&self) -> bool {
        self.storing.is_some() || self.again_at.is_some()
    }

    /// When a store that failed is tried again.
    pub(super) fn again_at(&self) -> Option<Time> {
        self.again_at
    }

    /// Time has passed.
    pub(super) fn on_time(&mut self, now: Time) {
        self.again_at.take_if(|again| *again <= now);
    }

    /// Why nothing can be stored.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|(_, reason)| reason.as_str())
    }

    /// The trouble is over where nothing was to be stored for a while.
    pub(super) fn end_trouble(&mut self, now: Time) {
        if !self.is_storing() && self.decided == self.durable {
            self.trouble.take_if(|(noticed, _)| now.since(*noticed) >= TROUBLE_LASTS);
        }
    }

    /// A store takes long.
    fn on_late(&mut self, now: Time, number: u64, reason: &str) {
        if self.storing.as_ref().is_some_and(|(storing, _)| *storing == number) {
            self.trouble = Some((now, reason.to_owned()));
        }
    }

    /// Handles a failed store, if it was the one under way: withdraws the views that it would have made durable, and
    /// the last holders that go with them.
    fn on_failed(&mut self, now: Time, number: u64, reason: &str) {
        let failed = self.storing.take_if(|(storing, _)| *storing == number);
        if failed.is_none() {
            return;
        }
        self.trouble = Some((now, reason.to_owned()));
        self.again_at = Some(now + STORE_AGAIN);
        if self.durable.has_served && !holes::is_open(Hole::FailedDecisionKept) {
            self.decided.views.clone_from(&self.durable.views);
            self.decided.last_holders.clone_from(&self.durable.last_holders);
        }
    }

    /// What to store now, and under which number.
    pub(super) fn next_store(&mut self) -> Option<(u64, DurableState)> {
        if self.is_storing() || (self.decided == self.durable && self.due.is_none()) {
            return None;
        }
        self.stored += 1;
        self.storing = Some((self.stored, self.decided.clone()));
        self.storing.clone()
    }

    /// A store is done: what was durable before, if it was the one that is under way.
    pub(super) fn on_stored(&mut self, number: u64) -> Option<DurableState> {
        let (_, state) = self.storing.take_if(|(storing, _)| *storing == number)?;
        self.trouble = None;
        self.due.take_if(|due| number >= *due);
        Some(std::mem::replace(&mut self.durable, state))
    }
}

impl Cluster {
    /// Has the state stored once more, because what the coordinator stores with it has changed.
    pub fn store_again(&mut self, now: Time, sink: &mut Vec<Effect>) {
        // One that is under way may have been written before the change.
        self.memory.due = Some(self.memory.stored + 1);
        self.advance(now, sink);
    }

    /// What was given to be stored under this number could not be made durable, for this reason. It may be on
    /// the disk all the same, as after a crash; nobody is told of it.
    pub fn on_store_failed(
        &mut self,
        now: Time,
        number: u64,
        reason: &str,
        sink: &mut Vec<Effect>,
    ) {
        if holes::is_open(Hole::FailedStoreBelieved) {
            return self.on_stored(now, number, sink);
        }
        self.memory.on_failed(now, number, reason);
        self.advance(now, sink);
    }

    /// What was given to be stored under this number takes long; it may still succeed.
    pub fn on_store_late(&mut self, now: Time, number: u64, reason: &str, sink: &mut Vec<Effect>) {
        self.memory.on_late(now, number, reason);
        self.advance(now, sink);
    }

    /// What is wrong about the next store, though the last one has succeeded.
    pub fn note_store_risk(&mut self, risk: Option<String>) {
        self.store_risk = risk;
        self.renew_alarms();
    }
}
