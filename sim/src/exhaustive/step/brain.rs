//! The driver of the coordinator: its inputs and its effects.

use std::collections::VecDeque;

use super::{Explorer, running};
use crate::exhaustive::brain::{BrainDone, BrainInput};
use crate::exhaustive::machine::Step;
use crate::exhaustive::replica::reading;
use crate::exhaustive::world::{Machines, Paper, Process, World};
use crate::exhaustive::{properties, trace};
use crate::invariants::{Violation, messages};

impl Explorer {
    /// Connects a process to the coordinator and sends its STARTED.
    pub(super) fn connect(&mut self, world: &mut World, p: usize) {
        world.links += 1;
        let process = &mut world.processes[p];
        process.link = (world.links, true);
        let input = BrainInput::Started(process.member, world.links);
        self.brain(world, input);
        // A restarted coordinator decides nothing before every process has sent a heartbeat, so heartbeats follow
        // here.
        if self.scope.left.restarts > 0 {
            self.heartbeat(world, p);
        }
    }

    /// Delivers a server's next report to the coordinator. With `again`, the same report arrives once more
    /// later.
    pub(super) fn report(&mut self, world: &mut World, p: usize, again: bool) {
        let process = &mut world.processes[p];
        let member = process.member;
        let Some(report) = process.reports.pop_front() else { return };
        if again {
            process.reports.push_back(report);
            world.left.late_reports -= 1;
        }
        self.brain(world, BrainInput::Report(member, report));
    }

    /// Advances time by a tick, and wakes the coordinator if a timer is due.
    pub(super) fn tick(&mut self, world: &mut World) {
        (world.tick, world.left.ticks) = (world.tick + 1, world.left.ticks - 1);
        let due = self.machines.brains.sight(world.brain).due;
        if due.is_some_and(|due| due <= reading(world.tick)) {
            self.brain(world, BrainInput::Wake);
        }
    }

    /// Delivers the proof of a process's exit.
    pub(super) fn proof(&mut self, world: &mut World, p: usize) {
        let process = &mut world.processes[p];
        process.proven = true;
        let member = process.member;
        self.brain(world, BrainInput::Exited(member));
    }

    /// Ends the link of a process: the process is dead, or the link breaks without a reason.
    pub(super) fn suspect(&mut self, world: &mut World, p: usize) {
        let process = &mut world.processes[p];
        if process.alive {
            world.left.suspicions -= 1;
        }
        process.link.1 = false;
        let (link, server) = (process.link.0, process.member.server);
        self.brain(world, BrainInput::LinkLost(link, server));
    }

    /// Delivers the first STARTED of the next started process.
    pub(super) fn spawned(&mut self, world: &mut World) {
        world.left.spawns -= 1;
        let member = world.spawning.remove(0);
        let process = Process::new(&mut self.machines, &self.scope, member);
        world.processes.push(process);
        self.connect(world, world.processes.len() - 1);
    }

    /// Makes the store in progress durable.
    pub(super) fn stored(&mut self, world: &mut World) {
        if let Some(number) = world.storing.take() {
            self.brain(world, BrainInput::Stored(number));
        }
    }

    /// Delivers a heartbeat with the current state of a process's replicas.
    pub(super) fn heartbeat(&mut self, world: &mut World, p: usize) {
        let process = &world.processes[p];
        let now = reading(world.tick);
        let line = |state: &u32| {
            let sight = self.machines.replicas.sight(*state);
            let mut report = sight.report?;
            let silent = now.since(sight.heard?).as_millis();
            report.silent_ms = u32::try_from(silent).unwrap_or(u32::MAX);
            Some(report)
        };
        let reports = process.shards.iter().filter_map(line).collect();
        let input = BrainInput::Heartbeat(process.link.0, process.member, reports);
        self.brain(world, input);
    }

    /// Kills the coordinator, and starts another from the state on disk.
    pub(super) fn restart(&mut self, world: &mut World) {
        world.left.restarts -= 1;
        (world.storing, world.spawning) = (None, Vec::new());
        let before = self.machines.brains.sight(world.brain).epoch;
        for process in &mut world.processes {
            (process.link.1, process.proven, process.is_condemned) = (false, false, false);
            process.reports.clear();
            // Messages that the dead coordinator has sent, including its hello, may arrive at any time.
            if process.alive {
                process.late = std::mem::take(&mut process.orders);
                process.late.push_front(Paper::Hello(before));
            }
        }
        self.brain(world, BrainInput::Restart);
    }

    /// Applies an input to the brain, with every input that follows from it immediately.
    pub(in crate::exhaustive) fn brain(&mut self, world: &mut World, input: BrainInput) {
        let mut todo = VecDeque::from([input]);
        while let Some(input) = todo.pop_front() {
            let key = (world.tick, input.clone());
            let Machines { brains, papers, .. } = &mut self.machines;
            let step = match brains.take(papers, world.brain, key) {
                Ok(step) => step,
                Err(words) => return self.panicked("the coordinator", &words),
            };
            let Step { next, output } = &*step;
            world.brain = *next;
            for done in output {
                self.brain_done(world, &input, done, &mut todo);
            }
        }
    }

    fn brain_done(
        &mut self,
        world: &mut World,
        input: &BrainInput,
        done: &BrainDone,
        todo: &mut VecDeque<BrainInput>,
    ) {
        match done {
            BrainDone::Store(number) if self.scope.slow_disk => world.storing = Some(*number),
            BrainDone::Store(number) => todo.push_back(BrainInput::Stored(*number)),
            BrainDone::Spawn(member) => world.spawning.push(*member),
            BrainDone::Dial(member) => {
                if let Some(p) = running(world, *member) {
                    let epoch = self.machines.brains.sight(world.brain).epoch;
                    world.processes[p].orders.push_back(Paper::Hello(epoch));
                    todo.push_back(BrainInput::OrdersConnected(*member));
                }
            }
            BrainDone::Adopt(_) => {}
            BrainDone::Order(to, order) => {
                if let Some(p) = running(world, *to) {
                    world.processes[p].orders.push_back(Paper::Order(*order));
                }
            }
            BrainDone::StubOrder(to, order) => {
                if running(world, *to).is_some() {
                    todo.push_back(BrainInput::ByTheStub(*to, *order));
                }
            }
            BrainDone::Kill(member, named) => {
                if *named {
                    let words = format!("{member} is killed although a durable view names it");
                    self.note(Err(Violation::new(20, words)));
                }
                if let Some(p) = running(world, *member) {
                    world.processes[p].is_condemned = true;
                }
            }
            BrainDone::View(before, view) => {
                self.tell(|| format!("durable: {}", trace::view_words(view)));
                properties::on_view(self, world, before, view);
            }
            BrainDone::Heard(whose) => {
                if let BrainInput::Heartbeat(_, speaker, _) = input {
                    self.note(messages::heartbeat_is_of_this_process(speaker.incarnation, *whose));
                }
            }
        }
    }
}
