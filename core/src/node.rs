//! One server process towards its coordinator: whose orders it obeys, and when each is done.
//!
//! ```text
//!   ORDERS-HELLO -> on_orders_hello: cluster, member, epoch          refused, or
//!   order        -> on_order:  known? the same report again
//!                              new?   told to every shard (NodeEffect)
//!   shards       -> on_shard:  what each holds now; an order is done when all of them say so
//!                                                               -> Report
//! ```
//!
//! A shard is ready on its own, the server only when every shard is: the coordinator acts on what is
//! true of the whole group, so a report looks at all shards, the empty ones too (consistency.md §4).

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

use crate::holes::{self, Hole};

#[cfg(test)]
mod tests;

/// Orders being carried out at the same time; more are reported as failed.
pub const MAX_RUNNING: usize = 64;
/// Orders whose outcome is remembered.
pub const MAX_REMEMBERED: usize = 1_024;

/// What a server process is to its coordinator.
#[derive(Clone, Copy, Debug)]
pub struct NodeConfig {
    /// The cluster it was started for.
    pub cluster: ClusterId,
    /// Who it is.
    pub me: Member,
    /// Shards it runs.
    pub shards: u16,
}

/// One server process. See the module's description.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    epoch: Epoch,
    ledger: VecDeque<Entry>,
    /// By shard: what its replicas said last.
    shards: Vec<Vec<ReplicaReport>>,
}

/// An order and how far it is.
#[derive(Debug)]
struct Entry {
    order: Order,
    /// Shards that have echoed a probe.
    echoed: Vec<bool>,
    outcome: Option<Result<u64, OrderFailure>>,
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEffect {
    /// Every shard is to install this view, and may dial its other holder there.
    Install {
        /// Of this order; a shard that cannot says so by [`Node::on_refused`].
        order: OrderId,
        /// The view.
        view: View,
        /// Where the other holder takes streams.
        other: Option<SocketAddr>,
    },
    /// Every shard is to echo this, by [`Node::on_probed`].
    Probe {
        /// The order.
        order: OrderId,
    },
    /// Every shard is to be told that this process is proven dead.
    Exited {
        /// The process.
        member: Member,
    },
    /// Every shard is to take no new writes; done by [`Node::on_outcome`].
    Drain {
        /// The order.
        order: OrderId,
    },
    /// A table is to be dumped; done by [`Node::on_outcome`].
    Dump {
        /// The order.
        order: OrderId,
        /// Which.
        role: ReplicaRole,
    },
    /// The process is to report this and exit.
    Shutdown {
        /// The order.
        order: OrderId,
    },
    /// To the coordinator.
    Report(Report),
}

/// Why a coordinator's hello is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloRefused {
    /// Another cluster's coordinator.
    #[error("this server belongs to cluster {ours}, not {theirs}")]
    OtherCluster {
        /// This server's.
        ours: ClusterId,
        /// The coordinator's.
        theirs: ClusterId,
    },
    /// It means another process.
    #[error("this is server {ours}, not {theirs}")]
    OtherMember {
        /// This process.
        ours: Member,
        /// The one meant.
        theirs: Member,
    },
    /// A later coordinator is obeyed, or a rival of the same term.
    #[error(
        "coordinator epoch {} (boot {}) is older than, or a rival of, epoch {} (boot {}), which this \
         server obeys", theirs.number, theirs.boot, ours.number, ours.boot
    )]
    OldEpoch {
        /// The one obeyed.
        ours: Epoch,
        /// The one refused.
        theirs: Epoch,
    },
    /// No coordinator comes so long after the one obeyed.
    #[error(
        "coordinator epoch {} is too far above epoch {}, which this server obeys", theirs.number,
        ours.number
    )]
    ImpossibleEpoch {
        /// The one obeyed.
        ours: Epoch,
        /// The one refused.
        theirs: Epoch,
    },
}

impl Node {
    /// A process that has obeyed nobody yet.
    pub fn new(config: NodeConfig) -> Node {
        let shards = vec![Vec::new(); usize::from(config.shards)];
        Node { config, epoch: Epoch::default(), ledger: VecDeque::new(), shards }
    }

    /// The highest coordinator epoch obeyed.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Judges the coordinator that has connected for orders. What its predecessors have ordered is
    /// forgotten.
    ///
    /// # Errors
    /// Why its orders are not taken.
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
        if ours != Epoch::default() && is_old && !holes::is_open(Hole::OldEpochAccepted) {
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

    /// An order of the coordinator that is obeyed, while it is remembered.
    pub fn order(&self, id: OrderId) -> Option<&Order> {
        self.ledger.iter().map(|entry| &entry.order).find(|order| order.id == id)
    }

    /// Takes an order of the coordinator that is obeyed. Those of its predecessors may still arrive, on
    /// connections of their own: they are thrown away.
    pub fn on_order(&mut self, order: Order, sink: &mut Vec<NodeEffect>) {
        if !order.id.is_of(self.epoch) {
            return;
        }
        if let Some(known) = self.ledger.iter().find(|entry| entry.order.id == order.id) {
            match &known.outcome {
                Some(outcome) => sink.push(report(&known.order, outcome.clone())),
                // Telling the shards again changes nothing where they have heard it.
                None if known.order.view().is_some() => {
                    let known = known.order;
                    self.tell(&known, sink);
                }
                None => {}
            }
            return;
        }
        if self.ledger.iter().filter(|entry| entry.outcome.is_none()).count() >= MAX_RUNNING {
            let words = format!("{MAX_RUNNING} orders are being carried out; send it again later");
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
            OrderKind::Shutdown => NodeEffect::Shutdown { order: id },
        });
    }

    /// A shard says what its replicas hold now.
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

    /// A shard could not install the view of an order.
    pub fn on_refused(
        &mut self,
        order: OrderId,
        shard: ShardId,
        reason: &str,
        sink: &mut Vec<NodeEffect>,
    ) {
        self.finish(order, Err(format!("shard {shard}: {reason}").into()), sink);
    }

    /// A shard has echoed a probe.
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

    /// The driver has carried out a drain or a dump.
    pub fn on_outcome(
        &mut self,
        order: OrderId,
        outcome: Result<u64, OrderFailure>,
        sink: &mut Vec<NodeEffect>,
    ) {
        self.finish(order, outcome, sink);
    }

    /// What every replica of every shard said last, for the heartbeat.
    pub fn reports(&self) -> impl Iterator<Item = &ReplicaReport> {
        self.shards.iter().flatten()
    }

    /// Orders of views that are still being carried out.
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

    /// Reports every view order that is done, or never will be.
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

    /// Whether an order is done; `None`: not yet.
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
            let words = format!("shard {shard}: the candidate was lost before it had all");
            return Some(Err(words.into()));
        }
        let done = |r: &Option<ReplicaReport>| r.is_some_and(|r| is_done(order.purpose, &r));
        let mut shards = reports.iter();
        let all = match holes::is_open(Hole::ReportedBeforeAllShards) && is_update(order.purpose) {
            true => shards.any(done),
            false => shards.all(done),
        };
        let entries = || reports.iter().flatten().map(|r| r.entries).sum();
        all.then(|| Ok(entries()))
    }

    /// The newest view of a group that any shard has installed, or any order names.
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

/// Whether a shard has done its part.
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
