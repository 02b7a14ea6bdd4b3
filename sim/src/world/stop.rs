//! Stops: of the whole cluster by the operator or after a double fault, and of single processes by a signal.
//!
//! ```text
//!   the operator, and single processes: at times planned at the beginning
//!   DRAIN, dumps and SHUTDOWN are orders; a dump is durable some time after its last shard.
//!   disks fill and recover: every step of a dump fails meanwhile, and is retried.
//!   a signal: the process requests these orders; without them it dumps and exits by itself.
//! ```

use kv_core::cluster::StopPhase;
use kv_core::dump::DumpOrigin;
use kv_core::replica::NoFullCopy;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{GroupId, ViewVersion};
use kv_protocol::status::ClusterState;

use super::*;
use crate::dump::{Job, Part};
use crate::invariants::stops;

/// The probability, per mille, that the other holder of a leaving process's keys crashes once it has acknowledged a
/// write alone.
const TEMPTATIONS: u64 = 300;
/// The probability, per mille, that the other holder crashes at a random time within 1.2 s of the stop signal.
const CRASHES: u64 = 300;
/// The interval between checks of whether the other holder has acknowledged a write alone, in nanoseconds.
const LOOK_FOR_ACKS: u64 = 3_000_000;
/// The longest time for which these checks continue, in nanoseconds.
const TEMPTATION_LASTS: u64 = 1_500_000_000;

/// The time for which a process waits for its coordinator's orders after a stop signal, in nanoseconds.
const TIMEOUT: u64 = 5_000_000_000;
/// The longest duration of a dump, in nanoseconds. It exceeds the time for which a stop waits for a silent server.
const SLOWEST_DUMP: u64 = 8_000_000_000;
/// The shortest pause in a stop, in nanoseconds. It exceeds the time for which a stop waits for a silent server.
const LONGER_THAN_TIMEOUT: u64 = 5_600_000_000;
/// The longest pause in a stop, in nanoseconds.
const LONGEST_SUSPEND: u64 = 9_000_000_000;
/// The interval at which the progress of a drain is checked, in nanoseconds.
const LOOK_AGAIN: u64 = 2_000_000;
/// The timeout of a drain, in nanoseconds.
const DRAIN_TIMEOUT: u64 = 4_500_000_000;

/// A test case for restores: a holder of a group leaves with a dump, and the other holder continues alone. If the
/// other holder crashes, only the dump is left of the group, without the writes acknowledged since.
#[derive(Clone, Copy, Debug)]
pub struct Temptation {
    group: GroupId,
    other: ServerId,
    /// The sum of acknowledged versions in the group when the other holder was first alone.
    acked: Option<u64>,
    until: u64,
}

impl World {
    /// Plans the times of the operator's stops, and of stop signals to single processes.
    pub(super) fn plan_stops(&mut self) {
        if self.config.leaves {
            return self.plan_leaves();
        }
        if self.config.orphans {
            return self.plan_orphans();
        }
        if !self.config.shutdown {
            return;
        }
        for part in 0..2 {
            let third = self.config.faulty / 3;
            let at = self.random.between(third * part + third / 2, third * (part + 1) + third / 2);
            self.at(at, Happening::Stop);
        }
        // Single processes receive stop signals only in runs with double faults, because the process may be a
        // group's last holder.
        let mut at = 0;
        while self.config.double {
            at += self.random.between(1_500_000_000, 5_000_000_000);
            if at >= self.config.faulty {
                break;
            }
            let place = self.random.index(usize::from(self.config.servers));
            self.at(at, Happening::SignalAt(place));
        }
    }

    /// Plans the times of stop signals, and the number of servers that receive them together, up to all. At the
    /// end the operator stops the servers that are left.
    fn plan_leaves(&mut self) {
        let (mut at, servers) = (0, usize::from(self.config.servers));
        loop {
            at += self.random.between(1_000_000_000, 6_000_000_000);
            if at >= self.config.faulty * 9 / 10 {
                break;
            }
            let many = match self.random.below(10) {
                0..=4 => 1,
                5..=6 => 2,
                _ => servers,
            };
            let within = match self.random.below(3) {
                0 => 1_000_000,
                1 => 200_000_000,
                _ => 3_000_000_000,
            };
            self.at(at, Happening::SignalMany(many, within));
        }
        self.at(self.config.faulty * 9 / 10, Happening::Stop);
    }

    /// Sends stop signals to `many` neighbouring processes within this time. Some receive a second signal and then
    /// do not wait for orders.
    pub(super) fn signal_many(&mut self, many: usize, within: u64) {
        if !self.serves() {
            return;
        }
        let servers = usize::from(self.config.servers);
        let first = self.random.index(servers);
        for n in 0..many {
            let place = (first + n) % servers;
            let Some(process) = self.running_at(place) else { continue };
            if self.operator.told(process) {
                continue;
            }
            let delay = self.random.between(0, within);
            self.note_place(place, format_args!("process {process} receives a stop signal"));
            self.after(delay, Happening::Signal(process));
            if self.config.impatient && self.random.per_mille(400) {
                let again = delay + self.random.between(1_000_000, 500_000_000);
                self.after(again, Happening::LeaveNow(process));
            }
            if !self.config.calm && self.random.per_mille(600) {
                let neighbour = (place + 1 + self.random.index(2) * (servers - 2)) % servers;
                let delay = delay + self.random.between(0, 150_000_000);
                self.after(delay, Happening::StrikeNeighbour(neighbour));
            }
        }
        if !self.config.calm && self.random.per_mille(200) {
            let lasts = self.random.between(1_000_000, 3_000_000_000);
            self.coordinator.disk_full_until = self.now + lasts;
        }
    }

    /// Sends a stop signal, with some probability, to a process that has just started and has no data yet.
    pub(super) fn signal_newcomer(&mut self, process: usize) {
        let may_be = self.config.leaves && !self.is_healing && self.serves();
        if may_be && self.random.per_mille(200) {
            let place = self.processes[process].place;
            self.note_place(place, format_args!("process {process} is stopped at its start"));
            let delay = self.random.between(1_000_000, 60_000_000);
            self.after(delay, Happening::Signal(process));
        }
    }

    /// Sends a stop signal to the process at a place. With some probability, the other holder of one of its groups
    /// crashes afterwards.
    pub(super) fn signal_at(&mut self, place: usize) {
        let Some(process) = self.running_at(place).filter(|_| self.serves()) else { return };
        self.note_place(place, format_args!("process {process} receives a stop signal"));
        self.after(1_000, Happening::Signal(process));
        if self.random.per_mille(200) {
            self.full_until[place] = self.now + self.random.between(1_000_000, LONGEST_SUSPEND);
        }
        let servers = usize::from(self.config.servers);
        let before = (place + servers - 1) % servers;
        let (group, other) = match self.random.per_mille(500) {
            true => (place, (place + 1) % servers),
            false => (before, before),
        };
        match self.random.below(1_000) {
            chance if chance < TEMPTATIONS => {
                let small = |number| u16::try_from(number).expect("places are few");
                let temptation = Temptation {
                    group: GroupId(small(group)),
                    other: ServerId(small(other)),
                    acked: None,
                    until: self.now + TEMPTATION_LASTS,
                };
                self.after(LOOK_FOR_ACKS, Happening::Tempt(temptation));
            }
            chance if chance < TEMPTATIONS + CRASHES => {
                let delay = self.random.between(50_000_000, 1_200_000_000);
                self.after(delay, Happening::Crash(other));
            }
            _ => {}
        }
    }

    /// Returns whether the cluster serves, and is not being stopped.
    pub(super) fn serves(&self) -> bool {
        let serves = self.coordinator.cluster.as_ref().is_some_and(|c| c.has_served());
        serves && self.operator.is_idle()
    }

    /// Crashes the remaining holder if it is alone and has acknowledged a write since the other one left.
    pub(super) fn tempt(&mut self, mut temptation: Temptation) {
        let Temptation { group, other, until, .. } = temptation;
        let Some(cluster) = self.coordinator.cluster.as_ref().filter(|_| self.now < until) else {
            return;
        };
        let view = &cluster.views()[usize::from(group.0)];
        let is_alone = view.secondary().is_none()
            && view.primary.is_some_and(|primary| primary.server == other);
        if is_alone {
            let places = self.checks.acked.range((group, 0)..=(group, usize::MAX));
            let acked = places.map(|(_, acked)| acked).sum();
            if *temptation.acked.get_or_insert(acked) < acked {
                return self.crash(usize::from(other.0));
            }
        }
        self.after(LOOK_FOR_ACKS, Happening::Tempt(temptation));
    }

    /// Handles a stop signal: the process requests the orders of a stop from its coordinator.
    pub(super) fn on_signal(&mut self, process: usize) {
        self.operator.tell(process);
        let delay = match self.ask_to_leave(process) {
            true => TIMEOUT,
            false => TIMEOUT / 20,
        };
        self.after(delay, Happening::LeaveAlone(process));
    }

    /// Sends a DRAIN request. Returns false if there is no admitted link.
    pub(super) fn ask_to_leave(&mut self, process: usize) -> bool {
        let Some((number, true)) = self.processes[process].link else { return false };
        let mut bytes = Vec::new();
        ServerMessage::DrainRequest.write(&mut bytes);
        self.send(number, 0, bytes);
        true
    }

    /// Lets a process leave by itself, unless its coordinator still sends it orders.
    pub(super) fn leave_if_ignored(&mut self, process: usize) {
        let is_linked = matches!(self.processes[process].link, Some((_, true)));
        let due = self.processes[process].last_order + TIMEOUT;
        if is_linked && due > self.now {
            return self.at(due, Happening::LeaveAlone(process));
        }
        self.leave_alone(process);
    }

    /// Makes a process leave by itself, without orders: it stops accepting writes, dumps at once, and exits.
    pub(super) fn leave_alone(&mut self, process: usize) {
        if self.operator.leaves(process) {
            return;
        }
        self.tell_shards(process, || Input::Drain);
        self.operator.leave(process);
        for role in [ReplicaRole::Primary, ReplicaRole::Secondary] {
            self.begin_dump(process, role, None);
        }
    }

    pub(super) fn crash(&mut self, place: usize) {
        let may_crash = !self.is_healing && self.serves();
        if let Some(process) = self.running_at(place).filter(|_| may_crash) {
            self.note_place(place, format_args!("fault: crash at place {place}"));
            self.kill(process);
        }
    }

    /// Reports the DRAIN order as done when no write is pending, or as failed after the timeout.
    pub(super) fn look_at_drain(&mut self, process: usize, order: OrderId, since: u64) {
        let mut executors = self.processes[process].shards.iter();
        let outcome = match executors.all(|executor| executor.shard.service.is_drained()) {
            true => Ok(0),
            false if self.now - since >= DRAIN_TIMEOUT => {
                Err("writes are pending".to_owned().into())
            }
            false => {
                let again = Happening::LookAtDrain(process, order, since);
                return self.after(LOOK_AGAIN, again);
            }
        };
        self.node(process, |node, sink| node.on_outcome(order, outcome, sink));
    }

    pub(super) fn begin_dump(&mut self, process: usize, role: ReplicaRole, order: Option<OrderId>) {
        // Without an order, this may be the planned retry of a process that leaves by itself.
        if order.is_none() {
            self.operator.wait_no_more(process, role);
        }
        if self.is_disk_full(process) {
            return self.fail_dump(process, role, order);
        }
        let (writer, cluster) = (self.processes[process].member, self.processes[process].cluster);
        let servers = self.config.servers;
        let group = match role {
            ReplicaRole::Primary => writer.server.home_group(),
            ReplicaRole::Secondary => GroupId((writer.server.0 + servers - 1) % servers),
        };
        let Config { shards, hash_tags, .. } = self.config;
        let origin = DumpOrigin { cluster, writer, group, shards, hash_tags };
        let number = self.operator.begin(process, Job::new(origin, role, order));
        self.give(process, 0, Input::Dump(group, number));
    }

    /// Handles a shard's part of a dump.
    pub(super) fn on_dumped(
        &mut self,
        process: usize,
        number: u64,
        part: Result<Box<Part>, NoFullCopy>,
    ) {
        let Some(job) = self.operator.job(process, number) else { return };
        let group = job.origin().group;
        if self.is_disk_full(process) {
            return self.drop_dump(process, number);
        }
        let Some(job) = self.operator.job(process, number) else { return };
        match part.map(|part| (part.shard(), job.take(&part))) {
            Ok((shard, false)) => self.give(process, shard + 1, Input::Dump(group, number)),
            Ok((_, true)) => {
                let delay = match self.random.below(100) {
                    _ if self.config.leaves || self.config.orphans => {
                        self.random.between(500_000, 1_200_000_000)
                    }
                    // The dump of a large table takes longer than a stop waits for a silent server.
                    0..=3 => self.random.between(500_000_000, SLOWEST_DUMP),
                    _ => self.random.between(500_000, 60_000_000),
                };
                self.after(delay, Happening::DumpWritten(process, number));
            }
            Err(reason) => {
                let job = self.operator.take_job(process, number);
                let failure = OrderFailure { reason: reason.to_string(), is_no_copy: true };
                self.report_dump(process, job.and_then(|job| job.order), Err(failure));
            }
        }
    }

    /// Returns whether the disk of a process's host is full now.
    fn is_disk_full(&self, process: usize) -> bool {
        self.full_until[self.processes[process].place] > self.now
    }

    /// Fails a dump in progress and removes its partial file.
    fn drop_dump(&mut self, process: usize, number: u64) {
        if let Some(job) = self.operator.take_job(process, number) {
            self.fail_dump(process, job.role, job.order);
        }
    }

    fn fail_dump(&mut self, process: usize, role: ReplicaRole, order: Option<OrderId>) {
        self.counts.failed_dumps += 1;
        match order {
            Some(order) => self.after(100_000, Happening::DumpFailed(process, order)),
            None => {
                self.operator.wait(process, role);
                let pause = self.random.between(500_000_000, 3_000_000_000);
                self.after(pause, Happening::DumpAgain(process, role));
            }
        }
    }

    /// Reports a failed dump to the coordinator.
    pub(super) fn on_dump_failed(&mut self, process: usize, order: OrderId) {
        let failure = OrderFailure::from("no space left".to_owned());
        self.node(process, |node, sink| node.on_outcome(order, Err(failure), sink));
    }

    /// Handles a dump that has become durable.
    pub(super) fn on_dump_written(&mut self, process: usize, number: u64) {
        if self.is_disk_full(process) {
            return self.drop_dump(process, number);
        }
        let Some(job) = self.operator.take_job(process, number) else { return };
        let (order, group) = (job.order, job.origin().group);
        let (file, entries) = job.finish();
        self.operator.keep(file);
        let member = self.processes[process].member;
        self.operator.note_complete(member, group);
        let words = format_args!("{member} has dumped group {group}: {entries} entries");
        self.trace.note(self.now, About::Group(group), words);
        self.report_dump(process, order, Ok(entries));
    }

    fn report_dump(
        &mut self,
        process: usize,
        order: Option<OrderId>,
        outcome: Result<u64, OrderFailure>,
    ) {
        match order {
            Some(order) => self.node(process, |node, sink| node.on_outcome(order, outcome, sink)),
            None if self.operator.has_left(process) => {
                self.check(|_, world| stops::dumped_before_leaving(world, process));
                self.processes[process].left = true;
                self.kill(process);
            }
            None => {}
        }
    }

    /// Ends the dumps in progress of a process that ends. Their partial files stay on the disk.
    pub(super) fn cut_dumps(&mut self, process: usize) {
        for job in self.operator.take_jobs(process) {
            self.operator.keep(job.cut());
        }
    }

    /// Stops the cluster on behalf of the operator. If no coordinator runs, the operator retries. A stop that has
    /// begun continues even after faults have ended.
    pub(super) fn stop_cluster(&mut self) {
        let has_begun = self.operator.is_stopping();
        if !has_begun && (self.is_healing || !self.operator.is_idle()) {
            return;
        }
        let is_stopped = self.brain(|cluster, now, sink| {
            if cluster.has_served() {
                cluster.on_stop(now, sink);
            }
        });
        if is_stopped.is_none() {
            self.after(100_000_000, Happening::Stop);
        }
    }

    pub(super) fn on_stopping(&mut self, phase: StopPhase) {
        self.trace.note(self.now, About::All, format_args!("the cluster is stopped: {phase:?}"));
        self.operator.note_stopping();
        if !self.is_healing && phase != StopPhase::Shutdown {
            self.strike_a_stop();
        }
    }

    /// Injects a fault in this phase of the stop.
    fn strike_a_stop(&mut self) {
        let servers = usize::from(self.config.servers);
        let place = self.random.index(servers);
        let delay = self.random.between(0, 80_000_000);
        match self.random.below(10) {
            0..=2 => self.after(delay, Happening::Suspend),
            3..=4 => {
                let Some(process) = self.running_at(place) else { return };
                let pause = self.random.between(LONGER_THAN_TIMEOUT, LONGEST_SUSPEND);
                self.counts.stop_suspends += 1;
                self.pause(process, pause);
                if self.random.per_mille(700) {
                    let neighbour = (place + 1 + self.random.index(2) * (servers - 2)) % servers;
                    self.full_until[neighbour] = self.now + pause + 1_000_000_000;
                }
            }
            5..=7 => {
                for place in 0..servers {
                    if self.random.per_mille(500) {
                        let lasts = self.random.between(1_000_000, LONGEST_SUSPEND);
                        self.full_until[place] = self.now + lasts;
                    }
                }
                if self.random.per_mille(150) {
                    let delay = self.random.between(0, LONGEST_SUSPEND);
                    self.after(delay, Happening::Force);
                }
            }
            8 => {
                let lasts = self.random.between(1_000_000, LONGEST_SUSPEND);
                self.coordinator.disk_full_until = self.now + lasts;
            }
            _ => {}
        }
    }

    /// Injects a fault while a restored cluster starts.
    pub(super) fn strike_a_restore(&mut self) {
        if self.is_healing {
            return;
        }
        let delay = self.random.between(0, 100_000_000);
        match self.random.below(10) {
            0..=2 => self.after(delay, Happening::Suspend),
            3..=4 => {
                let lasts = self.random.between(1_000_000, LONGEST_SUSPEND);
                self.coordinator.disk_full_until = self.now + lasts;
            }
            _ => {}
        }
    }

    /// Pauses all servers and the coordinator for longer than a stop waits for any server. Servers resume together
    /// with the coordinator, or up to two seconds later.
    pub(super) fn suspend(&mut self) {
        let pause = self.random.between(LONGER_THAN_TIMEOUT, LONGEST_SUSPEND);
        self.suspend_for(pause);
        match self.operator.is_restoring() {
            true => self.counts.restore_suspends += 1,
            false => self.counts.stop_suspends += 1,
        }
    }

    /// Pauses all servers and the coordinator.
    pub fn suspend_for(&mut self, pause: u64) {
        self.trace.note(self.now, About::All, format_args!("all processes are suspended"));
        // Once the cluster has views, two servers that resume a failure timeout after the others count as two faults.
        let serves = self.coordinator.cluster.as_ref().is_some_and(|cluster| {
            let has_views = cluster.views().iter().any(|view| view.version > ViewVersion(0));
            has_views && cluster.state() != ClusterState::Stopping
        });
        for process in 0..self.processes.len() {
            let wakes_after = match serves || self.random.per_mille(500) {
                true => self.random.between(0, 10_000_000),
                false => self.random.between(0, 2_000_000_000),
            };
            self.pause(process, pause + wakes_after);
        }
        crate::nemesis::pause_coordinator(self, pause);
    }

    /// Forces the end of a stop.
    pub(super) fn force(&mut self) {
        if self.operator.is_stopping() && self.coordinator.cluster.is_some() {
            self.operator.insist();
            self.brain(|cluster, now, sink| cluster.on_force(now, sink));
        }
    }
}
