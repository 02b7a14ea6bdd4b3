//! The part of a server process that handles the coordinator's orders: the epoch that it has accepted, and the progress
//! of each order.
//!
//! ```text
//!   ORDERS-HELLO -> on_orders_hello: check cluster, member, epoch    refused, or
//!   order        -> on_order:  known? the same report again
//!                              new?   passed to every shard (NodeEffect)
//!   shards       -> on_shard:  the current state of each; an order is done when all shards have done it
//!                                                               -> Report
//! ```
//!
//! Each shard completes its part of an order independently. The server reports the order as done when every shard
//! has done its part. The coordinator acts on the state of the whole group, so a report covers all shards,
//! including empty ones (consistency.md §4).

use std::collections::VecDeque;
use std::net::SocketAddr;

use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::{
    Order, OrderFailure, OrderKind, OrdersHello, ReplicaReport, ReplicaState, Report, ViewOrder,
    ViewPurpose,
};
use kv_protocol::ids::{ClusterId, Epoch, GroupId, Member, OrderId, ShardId, ViewVersion};
use kv_protocol::limits::MAX_EPOCH_STEP;
use kv_protocol::view::View;

use crate::mutations::{self, Mutation};

#[cfg(test)]
mod tests;

/// The maximum number of orders in progress at the same time. Further orders are reported as failed.
pub const MAX_RUNNING: usize = 64;
/// The maximum number of orders that are kept. The oldest one with an outcome is dropped first.
pub const MAX_REMEMBERED: usize = 1_024;

/// The identity of a server process.
#[derive(Clone, Copy, Debug)]
pub struct NodeConfig {
    /// The cluster for which the process was started.
    pub cluster: ClusterId,
    /// The place and incarnation of the process.
    pub me: Member,
    /// The number of shards that the process runs.
    pub shards: u16,
}

/// The epoch and the orders of one server process; see the module documentation.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    epoch: Epoch,
    ledger: VecDeque<Entry>,
    /// The last reports of the replicas of each shard.
    shards: Vec<Vec<ReplicaReport>>,
}

/// An order and its progress.
#[derive(Debug)]
struct Entry {
    order: Order,
    /// True for each shard that has echoed a probe.
    echoed: Vec<bool>,
    outcome: Option<Result<u64, OrderFailure>>,
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEffect {
    /// Make every shard install this view. A shard that has installed it may dial the other holder.
    Install {
        /// The order. If a shard cannot install the view, the driver calls [`Node::on_refused`].
        order: OrderId,
        /// The view to install.
        view: View,
        /// The address at which the other holder accepts streams.
        other: Option<SocketAddr>,
    },
    /// Make every shard echo the probe with [`Node::on_probed`].
    Probe {
        /// The id of the PROBE order.
        order: OrderId,
    },
    /// Notify every shard that this process is proven dead.
    Exited {
        /// The process that is proven dead.
        member: Member,
    },
    /// Make every shard reject new writes. The driver reports the end with [`Node::on_outcome`].
    Drain {
        /// The id of the DRAIN order.
        order: OrderId,
    },
    /// Dump a table. The driver reports the end with [`Node::on_outcome`].
    Dump {
        /// The id of the dump order.
        order: OrderId,
        /// The role of the table.
        role: ReplicaRole,
    },
    /// Make every shard remove the entries of a group of which this process is the primary. No report follows.
    Flush {
        /// The id of the FLUSH order.
        order: OrderId,
        /// The group.
        group: GroupId,
        /// The version of the view under which this process is the primary.
        view: ViewVersion,
    },
    /// Report this order as done and exit the process.
    Shutdown {
        /// The id of the SHUTDOWN order.
        order: OrderId,
    },
    /// Send this report to the coordinator.
    Report(Report),
}

/// The reason why a coordinator's hello is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloRefused {
    /// The coordinator belongs to another cluster.
    #[error("this server belongs to cluster {ours}, not {theirs}")]
    OtherCluster {
        /// The cluster of this server.
        ours: ClusterId,
        /// The cluster of the coordinator.
        theirs: ClusterId,
    },
    /// The hello is for another process.
    #[error("this is server {ours}, not {theirs}")]
    OtherMember {
        /// This process.
        ours: Member,
        /// The process named in the hello.
        theirs: Member,
    },
    /// This server has accepted a later coordinator, or another one with the same epoch number.
    #[error(
        "coordinator epoch {} (boot {}) is older than, or conflicts with, epoch {} (boot {}), which this \
         server follows", theirs.number, theirs.boot, ours.number, ours.boot
    )]
    OldEpoch {
        /// The epoch that the server has accepted.
        ours: Epoch,
        /// The epoch of the rejected coordinator.
        theirs: Epoch,
    },
    /// The epoch is implausibly far above the current one.
    #[error(
        "coordinator epoch {} is too far above epoch {}, which this server follows", theirs.number,
        ours.number
    )]
    ImpossibleEpoch {
        /// The epoch that the server has accepted.
        ours: Epoch,
        /// The epoch of the rejected coordinator.
        theirs: Epoch,
    },
}

impl Node {
    /// Creates the state of a process that has not accepted any coordinator yet.
    pub fn new(config: NodeConfig) -> Node {
        let shards = vec![Vec::new(); usize::from(config.shards)];
        Node { config, epoch: Epoch::default(), ledger: VecDeque::new(), shards }
    }

    /// Returns the highest epoch of a coordinator that the server has accepted.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Accepts or rejects a coordinator that has connected for orders. A newer epoch drops the orders of earlier ones.
    ///
    /// # Errors
    /// [`HelloRefused`] if the orders of this coordinator are not accepted.
    pub fn on_orders_hello(&mut self, hello: &OrdersHello) -> Result<(), HelloRefused> {
        if hello.cluster != self.config.cluster {
            let ours = self.config.cluster;
            return Err(HelloRefused::OtherCluster { ours, theirs: hello.cluster });
        }
        if hello.to != self.config.me {
            return Err(HelloRefused::OtherMember { ours: self.config.me, theirs: hello.to });
        }
        let (ours, theirs) = (self.epoch, hello.epoch);
        let is_old = theirs.number < ours.number
            || (theirs.number == ours.number && theirs.boot != ours.boot);
        if ours != Epoch::default() && is_old && !mutations::is_open(Mutation::OldEpochAccepted) {
            return Err(HelloRefused::OldEpoch { ours, theirs });
        }
        if theirs.number.saturating_sub(ours.number) > MAX_EPOCH_STEP {
            return Err(HelloRefused::ImpossibleEpoch { ours, theirs });
        }
        if theirs != ours {
            self.epoch = theirs;
            self.ledger.clear();
        }
        Ok(())
    }

    /// Returns an order of the current coordinator; `None` if it is unknown or no longer kept.
    pub fn order(&self, id: OrderId) -> Option<&Order> {
        self.ledger.iter().map(|entry| &entry.order).find(|order| order.id == id)
    }

    /// Handles an order. Orders of earlier coordinators may still arrive over their connections; they are dropped. FLUSH
    /// orders are only passed on: the reports of the shards show their progress.
    pub fn on_order(&mut self, order: Order, sink: &mut Vec<NodeEffect>) {
        if !order.id.is_of(self.epoch) {
            return;
        }
        if let OrderKind::Flush(..) = order.kind {
            return self.tell(&order, sink);
        }
        if let Some(known) = self.ledger.iter().find(|entry| entry.order.id == order.id) {
            match &known.outcome {
                Some(outcome) => sink.push(report(&known.order, outcome.clone())),
                // The order is passed again. This has no effect on shards that have received it already.
                None if known.order.view().is_some() => {
                    let known = known.order;
                    self.tell(&known, sink);
                }
                None => {}
            }
            return;
        }
        if self.ledger.iter().filter(|entry| entry.outcome.is_none()).count() >= MAX_RUNNING {
            let words =
                format!("{MAX_RUNNING} orders are in progress already; send the order again later");
            sink.push(report(&order, Err(words.into())));
            return;
        }
        if self.ledger.len() >= MAX_REMEMBERED {
            let oldest = self.ledger.iter().position(|entry| entry.outcome.is_some());
            oldest.and_then(|at| self.ledger.remove(at));
        }
        let echoed = vec![false; self.shards.len()];
        self.ledger.push_back(Entry { order, echoed, outcome: None });
        self.tell(&order, sink);
        match order.kind {
            OrderKind::Exited(_) => self.finish(order.id, Ok(0), sink),
            _ => self.evaluate(sink),
        }
    }

    fn tell(&self, order: &Order, sink: &mut Vec<NodeEffect>) {
        let id = order.id;
        sink.push(match order.kind {
            OrderKind::View(ViewOrder { view, other, .. }) => {
                NodeEffect::Install { order: id, view, other }
            }
            OrderKind::Probe => NodeEffect::Probe { order: id },
            OrderKind::Exited(member) => NodeEffect::Exited { member },
            OrderKind::Drain => NodeEffect::Drain { order: id },
            OrderKind::DumpPrimary => NodeEffect::Dump { order: id, role: ReplicaRole::Primary },
            OrderKind::DumpSecondary => {
                NodeEffect::Dump { order: id, role: ReplicaRole::Secondary }
            }
            OrderKind::Flush(group, view) => NodeEffect::Flush { order: id, group, view },
            OrderKind::Shutdown => NodeEffect::Shutdown { order: id },
        });
    }

    /// Records the current reports of a shard's replicas, and reports the orders that are done or have failed by them.
    pub fn on_shard(
        &mut self,
        shard: ShardId,
        reports: Vec<ReplicaReport>,
        sink: &mut Vec<NodeEffect>,
    ) {
        if let Some(last) = self.shards.get_mut(usize::from(shard.0)) {
            *last = reports;
        }
        self.evaluate(sink);
    }

    /// Records that a shard could not install the view of an order, which therefore fails.
    pub fn on_refused(
        &mut self,
        order: OrderId,
        shard: ShardId,
        reason: &str,
        sink: &mut Vec<NodeEffect>,
    ) {
        self.finish(order, Err(format!("shard {shard}: {reason}").into()), sink);
    }

    /// Records that a shard has echoed a probe, and reports the probe as done when every shard has.
    pub fn on_probed(&mut self, order: OrderId, shard: ShardId, sink: &mut Vec<NodeEffect>) {
        let Some(entry) = self.ledger.iter_mut().find(|entry| entry.order.id == order) else {
            return;
        };
        if let Some(echoed) = entry.echoed.get_mut(usize::from(shard.0)) {
            *echoed = true;
        }
        if entry.order.kind == OrderKind::Probe && entry.echoed.iter().all(|&echoed| echoed) {
            self.finish(order, Ok(0), sink);
        }
    }

    /// Records the outcome of a drain or a dump.
    pub fn on_outcome(
        &mut self,
        order: OrderId,
        outcome: Result<u64, OrderFailure>,
        sink: &mut Vec<NodeEffect>,
    ) {
        self.finish(order, outcome, sink);
    }

    /// Returns the last reports of every replica of every shard, for the heartbeat.
    pub fn reports(&self) -> impl Iterator<Item = &ReplicaReport> {
        self.shards.iter().flatten()
    }

    /// Returns whether any order is still in progress.
    pub fn has_running(&self) -> bool {
        self.ledger.iter().any(|entry| entry.outcome.is_none())
    }

    fn finish(
        &mut self,
        id: OrderId,
        outcome: Result<u64, OrderFailure>,
        sink: &mut Vec<NodeEffect>,
    ) {
        let running = |entry: &&mut Entry| entry.order.id == id && entry.outcome.is_none();
        if let Some(entry) = self.ledger.iter_mut().find(running) {
            entry.outcome = Some(outcome.clone());
            sink.push(report(&entry.order, outcome));
        }
    }

    /// Reports every view order that is done or has failed.
    fn evaluate(&mut self, sink: &mut Vec<NodeEffect>) {
        let mut done = Vec::new();
        for entry in self.ledger.iter().filter(|entry| entry.outcome.is_none()) {
            if let OrderKind::View(order) = &entry.order.kind
                && let Some(outcome) = self.judge(order)
            {
                done.push((entry.order.id, outcome));
            }
        }
        for (id, outcome) in done {
            self.finish(id, outcome, sink);
        }
    }

    /// Returns the outcome of a view order; `None` while it is in progress.
    fn judge(&self, order: &ViewOrder) -> Option<Result<u64, OrderFailure>> {
        let (group, version) = (order.view.group, order.view.version);
        if let Some(newer) = self.newest(group).filter(|newer| *newer > version) {
            return Some(Err(format!("superseded by view {newer}").into()));
        }
        let here = |shard: &Vec<ReplicaReport>| {
            shard.iter().find(|r| r.group == group && r.view == version).copied()
        };
        let reports: Vec<Option<ReplicaReport>> = self.shards.iter().map(here).collect();
        let failed =
            |r: &Option<ReplicaReport>| r.is_some_and(|r| r.state == ReplicaState::CopyFailed);
        if is_update(order.purpose)
            && let Some(shard) = reports.iter().position(failed)
        {
            let words =
                format!("shard {shard}: the candidate was lost before its copy was complete");
            return Some(Err(words.into()));
        }
        let done = |r: &Option<ReplicaReport>| r.is_some_and(|r| is_done(order.purpose, &r));
        let mut shards = reports.iter();
        let all = match mutations::is_open(Mutation::ReportedBeforeAllShards)
            && is_update(order.purpose)
        {
            true => shards.any(done),
            false => shards.all(done),
        };
        let entries = || reports.iter().flatten().map(|r| r.entries).sum();
        all.then(|| Ok(entries()))
    }

    /// Returns the newest view of a group that any shard has installed or any order names.
    fn newest(&self, group: GroupId) -> Option<ViewVersion> {
        let installed = self.reports().filter(|r| r.group == group).map(|r| r.view);
        let ordered = self.ledger.iter().filter_map(|entry| entry.order.view());
        let ordered = ordered.filter(|view| view.group == group).map(|view| view.version);
        installed.chain(ordered).max()
    }
}

fn is_update(purpose: ViewPurpose) -> bool {
    matches!(purpose, ViewPurpose::UpdatePrimary | ViewPurpose::UpdateSecondary)
}

/// Returns whether a shard has carried out its part of an order.
fn is_done(purpose: ViewPurpose, report: &ReplicaReport) -> bool {
    match purpose {
        ViewPurpose::SetSecondary => report.state.is_active() && report.connected,
        ViewPurpose::TakeOver => report.state.is_active(),
        ViewPurpose::DropSecondary | ViewPurpose::Leave => true,
        ViewPurpose::UpdatePrimary | ViewPurpose::UpdateSecondary => {
            report.state == ReplicaState::CaughtUp
        }
        ViewPurpose::SwitchPrimary => report.state == ReplicaState::Secondary,
    }
}

fn report(order: &Order, outcome: Result<u64, OrderFailure>) -> NodeEffect {
    NodeEffect::Report(Report { id: order.id, view: order.view_version(), outcome })
}
