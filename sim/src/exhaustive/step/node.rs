//! The driver of the nodes: messages from the coordinator, and their effects on the shards.

use std::collections::VecDeque;

use kv_protocol::ids::{OrderId, ShardId};
use kv_protocol::view::View;

use super::Explorer;
use super::replica::Place;
use crate::exhaustive::node::{NodeDone, NodeInput};
use crate::exhaustive::world::{Machines, Paper, Process, Told, World};
use crate::invariants::views;

impl Explorer {
    /// Delivers the next message of an order connection to a node. The node may end the connection.
    pub(super) fn next_paper(
        &mut self,
        world: &mut World,
        p: usize,
        queue: fn(&mut Process) -> &mut VecDeque<Paper>,
    ) {
        let Some(paper) = queue(&mut world.processes[p]).pop_front() else { return };
        if !self.paper(world, p, paper) {
            queue(&mut world.processes[p]).clear();
        }
    }

    /// Delivers a message of an order connection to a node. Returns false if the node ends the connection.
    fn paper(&mut self, world: &mut World, p: usize, paper: Paper) -> bool {
        match paper {
            Paper::Order(order) => {
                self.node(world, p, NodeInput::Order(order));
                true
            }
            Paper::Hello(epoch) => {
                let before = *self.machines.nodes.sight(world.processes[p].node).as_ref();
                self.node(world, p, NodeInput::Hello(epoch));
                let after = *self.machines.nodes.sight(world.processes[p].node).as_ref();
                self.note(views::epochs_grow(before, after));
                after == epoch
            }
        }
    }

    /// Applies an input to a node, with everything that follows from it immediately.
    pub(super) fn node(&mut self, world: &mut World, p: usize, input: NodeInput) {
        let Machines { nodes, papers, .. } = &mut self.machines;
        let step = match nodes.take(papers, world.processes[p].node, input) {
            Ok(step) => step,
            Err(words) => return self.panicked("a node", &words),
        };
        world.processes[p].node = step.next;
        for done in &step.output {
            match done {
                NodeDone::Install(order, view) => {
                    self.tell_shards(world, p, |me| Told::Install(me.order_of(*order, *view)));
                }
                NodeDone::Exited(member) => {
                    self.tell_shards(world, p, |_| Told::Exited(*member));
                }
                NodeDone::Probe(order) => {
                    for shard in 0..self.scope.shards {
                        self.node(world, p, NodeInput::Probed(*order, ShardId(shard)));
                    }
                }
                NodeDone::Report(report) => world.processes[p].reports.push_back(*report),
                NodeDone::HelloRefused | NodeDone::Obeyed(_) => {}
            }
        }
    }

    /// Forwards a message to every shard. With one shard, the step of the node includes that of its executor.
    fn tell_shards(&mut self, world: &mut World, p: usize, told: impl Fn(&mut Explorer) -> Told) {
        let told = told(self);
        match self.scope.shards {
            1 => self.told(world, Place { p, s: 0 }, told),
            _ => world.processes[p].inboxes.iter_mut().for_each(|inbox| inbox.push_back(told)),
        }
    }

    fn order_of(&mut self, id: OrderId, view: View) -> u32 {
        self.machines.installs.number_printed((id, view))
    }
}
