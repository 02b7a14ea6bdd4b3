//! The part of a server that serves the coordinator (the node), as a machine of the search.

use kv_core::node::{Node, NodeConfig, NodeEffect};
use kv_protocol::control_message::{Order, OrdersHello, ReplicaReport, Report};
use kv_protocol::ids::{Epoch, Member, OrderId, ShardId};
use kv_protocol::view::View;

use super::machine::{Machine, Numbered};
use super::replica::CLUSTER;

/// Orders and reports by number.
#[derive(Debug, Default)]
pub struct Papers {
    /// The coordinator's orders.
    pub orders: Numbered<Order>,
    /// The servers' reports.
    pub reports: Numbered<Report>,
}

/// An input of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeInput {
    /// A coordinator has connected for orders.
    Hello(Epoch),
    /// An order.
    Order(u32),
    /// A shard reports the current state of its replica.
    Shard(ShardId, Option<ReplicaReport>),
    /// A shard has rejected the view of an order.
    Refused(OrderId, ShardId, String),
    /// A shard has responded to a probe.
    Probed(OrderId, ShardId),
}

impl std::hash::Hash for NodeInput {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            NodeInput::Hello(epoch) => epoch.number.hash(state),
            NodeInput::Order(order) => order.hash(state),
            NodeInput::Shard(shard, report) => {
                (shard, report.map(|r| (r.view, r.state as u8, r.connected))).hash(state);
            }
            NodeInput::Refused(order, shard, words) => (order, shard, words).hash(state),
            NodeInput::Probed(order, shard) => (order, shard).hash(state),
        }
    }
}

/// An effect of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeDone {
    /// Orders every shard to install a view.
    Install(OrderId, View),
    /// Reports a death to every shard.
    Exited(Member),
    /// Probes every shard.
    Probe(OrderId),
    /// Sends a report.
    Report(u32),
    /// Rejects the coordinator.
    HelloRefused,
    /// Accepts the coordinator. The value is the epoch before the hello.
    Obeyed(Epoch),
}

/// The node as a machine.
#[derive(Debug)]
pub struct Served {
    node: Node,
    me: Member,
}

impl Machine for Served {
    type Origin = (Member, u16);
    type Input = NodeInput;
    type Output = Vec<NodeDone>;
    type Sight = Epoch;
    type Shared = Papers;

    fn make(&(me, shards): &Self::Origin) -> Served {
        Served { node: Node::new(NodeConfig { cluster: CLUSTER, me, shards }), me }
    }

    fn take(&mut self, papers: &mut Papers, input: &NodeInput) -> Vec<NodeDone> {
        let (mut sink, mut done) = (Vec::new(), Vec::new());
        match input {
            NodeInput::Hello(epoch) => {
                let before = self.node.epoch();
                let hello = OrdersHello { cluster: CLUSTER, epoch: *epoch, to: self.me };
                done.push(match self.node.on_orders_hello(&hello) {
                    Ok(()) => NodeDone::Obeyed(before),
                    Err(_) => NodeDone::HelloRefused,
                });
            }
            NodeInput::Order(order) => self.node.on_order(*papers.orders.get(*order), &mut sink),
            NodeInput::Shard(shard, report) => {
                self.node.on_shard(*shard, report.iter().copied().collect(), &mut sink);
            }
            NodeInput::Refused(order, shard, words) => {
                self.node.on_refused(*order, *shard, words, &mut sink);
            }
            NodeInput::Probed(order, shard) => self.node.on_probed(*order, *shard, &mut sink),
        }
        done.extend(sink.into_iter().filter_map(|effect| match effect {
            NodeEffect::Install { order, view, .. } => Some(NodeDone::Install(order, view)),
            NodeEffect::Exited { member } => Some(NodeDone::Exited(member)),
            NodeEffect::Probe { order } => Some(NodeDone::Probe(order)),
            NodeEffect::Report(report) => {
                Some(NodeDone::Report(papers.reports.number_printed(report)))
            }
            // The orderly stop is outside the scope of the search.
            NodeEffect::Drain { .. }
            | NodeEffect::Dump { .. }
            | NodeEffect::Flush { .. }
            | NodeEffect::Shutdown { .. } => None,
        }));
        done
    }

    fn describe(&self) -> String {
        format!("{:?}", self.node)
    }

    fn sight(&self) -> Epoch {
        self.node.epoch()
    }
}
