//! A flush of the whole cluster: every key of every shard is removed (consistency.md §13).
//!
//! ```text
//!   request -> FLUSH to the primary of each group  -- heartbeats: the progress of each shard --> every shard is done
//!                ^                                          |
//!                +-- the primary has changed or restarted --+
//! ```
//!
//! The progress is in the memory of this coordinator only. A flush that a coordinator does not complete is repeated as
//! a whole, which is harmless.

use std::time::Duration;

use kv_protocol::control_message::{FlushReport, Heartbeat, Order, OrderKind, ReplicaReport};
use kv_protocol::{GroupId, Member, OrderId, ServerId, ShardId, Time, ViewVersion};

use super::{Cluster, Effect};

/// The interval at which a FLUSH is sent again to a primary that does not report it.
const AGAIN: Duration = Duration::from_secs(1);

/// The reason why a flush does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlushRefused {
    /// The cluster does not serve yet or is being stopped, or this coordinator's state is outdated.
    #[error("the cluster is starting or stopping; retry when it serves")]
    NotServing,
    /// Another flush is in progress.
    #[error("another flush is in progress; wait for its end, then retry")]
    Running,
}

/// The progress of a flush in one shard of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushedShard {
    /// The group.
    pub group: GroupId,
    /// The shard.
    pub shard: ShardId,
    /// The number of entries that its primaries have reported as removed.
    pub removed: u64,
    /// True if every entry that existed at the beginning has been removed.
    pub is_done: bool,
    /// False if the number is a lower bound, because the flush has begun again at another primary.
    pub is_exact: bool,
    /// The primary that has reported last, with its number of removed entries.
    reporter: Option<(Member, u64)>,
}

/// A flush and its progress.
#[derive(Debug)]
pub(super) struct Flush {
    id: OrderId,
    /// The shards of all groups, by group and shard.
    shards: Vec<FlushedShard>,
    /// The view and the time of the last order for each group.
    ordered: Vec<Option<(ViewVersion, Time)>>,
}

impl Cluster {
    /// Begins to remove every key of every shard.
    ///
    /// # Errors
    /// [`FlushRefused`] if the cluster does not serve or another flush is in progress; nothing is removed.
    pub fn on_flush(&mut self, now: Time, sink: &mut Vec<Effect>) -> Result<(), FlushRefused> {
        if !self.has_served() || self.stop.is_some() || self.is_outdated {
            return Err(FlushRefused::NotServing);
        }
        if self.flush.is_some() {
            return Err(FlushRefused::Running);
        }
        let shards = self.config.shards;
        let places =
            (0..self.count()).flat_map(|group| (0..shards).map(move |shard| (group, shard)));
        let shards = places.map(|(group, shard)| FlushedShard {
            group: GroupId(group),
            shard: ShardId(shard),
            removed: 0,
            is_done: false,
            is_exact: true,
            reporter: None,
        });
        let id = self.next_order;
        self.next_order.0 += 1;
        let ordered = vec![None; usize::from(self.count())];
        self.flush = Some(Flush { id, shards: shards.collect(), ordered });
        self.advance(now, sink);
        Ok(())
    }

    /// Returns the progress of the flush in every shard, by group and shard; `None` if there is no flush, or a stop has
    /// ended it.
    pub fn flushed_shards(&self) -> Option<&[FlushedShard]> {
        self.flush.as_ref().map(|flush| &*flush.shards)
    }

    /// Forgets the flush. No further shard begins it; shards that have begun it complete it.
    pub fn end_flush(&mut self) {
        self.flush = None;
    }

    /// Orders the primary of each group to flush, unless it reports that it has begun. A stop ends the flush.
    pub(super) fn order_flush(&mut self, now: Time, sink: &mut Vec<Effect>) {
        let Some(mut flush) = self.flush.take() else { return };
        if self.stop.is_some() {
            return;
        }
        let shards = usize::from(self.config.shards);
        for (group, (shards, ordered)) in
            flush.shards.chunks_mut(shards).zip(&mut flush.ordered).enumerate()
        {
            let view = &self.views()[group];
            let Some(to) = view.primary else {
                // A LOST group has no entries.
                let is_lost = !self.memory.durable().rests(view.group);
                shards.iter_mut().for_each(|place| place.is_done |= is_lost);
                continue;
            };
            let server = self.server(to.server);
            if server.member != to || server.exited || !server.orders_connected {
                continue;
            }
            let has_begun = |place: &FlushedShard| {
                let heartbeat = server.heartbeat.as_ref().map(|(_, heartbeat)| heartbeat);
                let mut replicas = heartbeat.iter().flat_map(|heartbeat| &heartbeat.replicas);
                replicas
                    .any(|r| (r.group, r.shard, r.flush.id) == (view.group, place.shard, flush.id))
            };
            let is_sent =
                ordered.is_some_and(|(last, at)| last == view.version && now < at + AGAIN);
            if is_sent || shards.iter().all(|place| place.is_done || has_begun(place)) {
                continue;
            }
            *ordered = Some((view.version, now));
            // A new primary flushes all its shards, so the flush waits for all of them.
            shards.iter_mut().for_each(|place| place.is_done = false);
            let kind = OrderKind::Flush(view.group, view.version);
            let order = Order { id: flush.id, kind };
            sink.push(Effect::Order { to, order });
        }
        self.flush = Some(flush);
    }

    /// Records the progress of the flush in the shards of which a server is the primary.
    pub(super) fn note_flush(&mut self, server: ServerId, heartbeat: &Heartbeat) {
        let member = self.member(server);
        let views = &self.memory.durable().views;
        let is_primary = |replica: &ReplicaReport| {
            let view = &views[usize::from(replica.group.0)];
            view.primary == Some(member) && view.version == replica.view
        };
        let Some(flush) = &mut self.flush else { return };
        for replica in heartbeat.replicas.iter().filter(|r| r.flush.id == flush.id) {
            let mut shards = flush.shards.iter_mut();
            let place = shards.find(|at| (at.group, at.shard) == (replica.group, replica.shard));
            if let Some(place) = place.filter(|_| is_primary(replica)) {
                place.note(member, replica.flush);
            }
        }
    }
}

impl FlushedShard {
    fn note(&mut self, member: Member, FlushReport { removed, is_done, .. }: FlushReport) {
        // A number that decreases is that of a new beginning.
        let known = match self.reporter {
            Some((reporter, known)) if reporter == member && known <= removed => known,
            earlier => {
                self.is_exact &= earlier.is_none();
                0
            }
        };
        self.removed += removed - known;
        self.reporter = Some((member, removed));
        self.is_done = is_done;
    }
}
