//! The coordinator's process: its inputs, and the effects of its brain.

use super::SEAL;
use kv_protocol::control_message::{OrderKind, ViewOrder, write_cluster_map};

use super::*;
use crate::invariants::{commits, groups, messages, roles, slowness, stops};

impl World {
    /// Applies an input to the brain, and executes its effects.
    pub fn brain<R>(
        &mut self,
        give: impl FnOnce(&mut kv_core::cluster::Cluster, Time, &mut Vec<Effect>) -> R,
    ) -> Option<R> {
        let now = self.clock_of(self.coordinator_host());
        let cluster = self.coordinator.cluster.as_mut()?;
        let mut effects = Vec::new();
        let result = give(cluster, now, &mut effects);
        self.carry_out(effects);
        self.schedule_brain();
        Some(result)
    }

    pub(super) fn schedule_brain(&mut self) {
        let clock = self.clocks[self.coordinator_host().0];
        let Some(cluster) = &self.coordinator.cluster else { return };
        let Some(due) = cluster.next_timeout() else { return };
        let at = clock.true_time(due).max(self.now + 100_000);
        if self.coordinator.wake_at.is_none_or(|known| at < known) {
            self.coordinator.wake_at = Some(at);
            self.at(at, Happening::WakeCoordinator(self.coordinator.term));
        }
    }

    pub(super) fn carry_out(&mut self, effects: Vec<Effect>) {
        let term = self.coordinator.term;
        for effect in effects {
            match effect {
                Effect::Store { number, state } => {
                    self.check(|_, world| roles::leavers_get_nothing(world, &state));
                    self.coordinator.storing = Some((number, *state));
                    self.coordinator.is_doomed = self.now < self.coordinator.disk_full_until;
                    let delay = crate::nemesis::store_delay(&mut self.random, self.is_healing);
                    self.after(delay, Happening::Stored(term, number));
                }
                Effect::Spawn { member } => {
                    let delay = self.random.between(2_000_000, 30_000_000);
                    self.after(delay, Happening::Spawned(member));
                }
                Effect::Adopt { started } => {
                    let process = self.process_of(started.member);
                    if process.is_none_or(|process| !self.processes[process].alive) {
                        self.after(1_000_000, Happening::Proof(term, started.member));
                    }
                }
                Effect::Dial { member, address } => {
                    self.after(100_000, Happening::DialOrders(term, member, address));
                }
                Effect::Order { to, order } => {
                    if let OrderKind::View(ViewOrder { view, .. }) = &order.kind {
                        self.check(|checks, world| checks.on_view_told(world.cluster(), view));
                    }
                    if let OrderKind::Flush(group, view) = order.kind {
                        self.note_flush_order(group, view);
                    }
                    if order.kind == OrderKind::Shutdown {
                        self.check(|_, world| stops::dumped_before_shutdown(world, to));
                    }
                    if let Some(number) = self.coordinator.orders.get(&to).copied() {
                        let mut bytes = Vec::new();
                        order.write(&mut bytes);
                        self.send(number, 0, bytes);
                    }
                }
                Effect::Kill { member, reason } => {
                    // A stop may kill processes that do not respond.
                    if reason == KillReason::Replaced {
                        self.check(|_, world| roles::holders_are_spared(world, member));
                        self.check(|_, world| slowness::slow_are_not_replaced(world, member));
                    }
                    if let KillReason::Unanswered(order) = reason {
                        self.check(|_, world| stops::dumped_before_kill(world, member, order));
                    }
                    // A host may be unreachable, so a process may run for a while after the decision to kill it.
                    let delay = match self.random.below(100) {
                        0..=24 if !self.is_healing => {
                            self.random.between(100_000_000, 3_000_000_000)
                        }
                        _ => 1_000_000,
                    };
                    self.after(delay, Happening::Killed(member, reason));
                }
                Effect::Down { member, cause } => {
                    self.check(|_, world| slowness::sleepers_suspect_none(world, member, &cause));
                }
                Effect::ViewChanged { before, view } => {
                    let about = About::Group(view.group);
                    self.trace.note(self.now, about, format_args!("{view:?}"));
                    self.check(|_, world| {
                        commits::new_secondary_is_complete(world, &before, &view)
                    });
                    self.check(|_, world| groups::lost_is_lost(world, &before, &view));
                    self.check(|_, world| slowness::sleepers_stay(world, &before, &view));
                    if let Err(violation) = slowness::slow_are_spared(self, &before, &view) {
                        self.violation.get_or_insert(violation);
                    }
                    if view.primary.is_none() {
                        let last = [before.primary, before.secondary()];
                        let key = (self.cluster(), view.group);
                        self.last_holders.insert(key, last.into_iter().flatten().collect());
                        self.lost_at.entry((self.cluster(), view.group)).or_insert(self.now);
                    }
                    crate::nemesis::on_view(self, &view);
                }
                // The operator retries the restore.
                Effect::StartFailed { .. } if self.operator.is_restoring() => {
                    self.after(1_000, Happening::Stopped(term));
                }
                Effect::StartFailed { server, reason } => {
                    let words = format!("the start has failed at server {server}: {reason}");
                    self.violation.get_or_insert(Violation::new(19, words));
                }
                Effect::OrderFailed { member, order, reason, .. } => {
                    let place = usize::from(member.server.0);
                    self.note_place(place, format_args!("{member}: {order} failed: {reason}"));
                }
                Effect::Outdated { server, group, known, reported } => {
                    let words = format!(
                        "server {server} has view {} of group {group}, but the disk has view {}",
                        reported.0, known.0
                    );
                    self.violation.get_or_insert(Violation::new(5, words));
                }
                Effect::Recovery { server, step } => {
                    let place = usize::from(server.0);
                    self.note_place(place, format_args!("server {server}: step {step:?}"));
                    crate::nemesis::on_step(self, server, step);
                }
                Effect::DoubleFault { first, second } => {
                    self.check(|_, world| groups::orderly_exit_is_no_fault(world, first, second));
                    self.check(|_, world| slowness::slow_are_no_second_fault(world));
                }
                Effect::CannotFollow { server, .. } => {
                    let member = self.coordinator.cluster.as_ref().map(|c| c.member(server));
                    member.into_iter().for_each(|member| self.slowness.note_failure(member));
                }
                Effect::Leaving { member, .. } => {
                    let place = usize::from(member.server.0);
                    self.note_place(place, format_args!("{member} requests to leave"));
                }
                Effect::Stopping(phase) => self.on_stopping(phase),
                Effect::Stopped(_) => self.after(1_000, Happening::Stopped(term)),
                Effect::Serving => self.on_serving(),
                _ => {}
            }
        }
        self.schedule_brain();
    }

    pub(super) fn on_stored(&mut self, term: u64, number: u64) {
        if term != self.coordinator.term {
            return;
        }
        if self.coordinator.is_doomed || self.now < self.coordinator.disk_full_until {
            if self.coordinator.storing.take_if(|(n, _)| *n == number).is_some() {
                self.trace.note(self.now, About::All, format_args!("store {number}: no space"));
                self.brain(|cluster, now, sink| {
                    cluster.on_store_failed(now, number, "no space", sink);
                });
            }
            return;
        }
        if let Some((_, state)) = self.coordinator.storing.take_if(|(n, _)| *n == number) {
            self.coordinator.disk = Some(state);
            self.brain(|cluster, now, sink| cluster.on_stored(now, number, sink));
        }
    }

    pub(super) fn on_coordinator_bytes(
        &mut self,
        number: ConnectionNumber,
        end: usize,
        bytes: &[u8],
    ) {
        let Actor::Coordinator { term } = self.network.get(number).ends[end] else { return };
        if term != self.coordinator.term {
            return self.close(number, end);
        }
        for (opcode, body) in self.frames(number, end, bytes) {
            match opcode {
                opcode::STARTED | opcode::HEARTBEAT | opcode::DRAIN_REQUEST => {
                    self.on_server_message(number, opcode, &body)
                }
                opcode::ORDERS_WELCOME => {
                    let member = self.coordinator.orders.iter().find(|(_, n)| **n == number);
                    if let Some(member) = member.map(|(member, _)| *member) {
                        self.brain(|cluster, _, sink| cluster.on_orders_connected(member, sink));
                    }
                }
                opcode::REPORT => {
                    let report = Report::read(&body).expect("it is well formed");
                    let member = self.coordinator.orders.iter().find(|(_, n)| **n == number);
                    if let Some(member) = member.map(|(member, _)| *member) {
                        self.brain(|cluster, now, sink| {
                            // A late or repeated report is ignored.
                            let _ = cluster.on_report(now, member, report, sink);
                        });
                    }
                }
                _ => {}
            }
        }
    }

    /// Responds to a heartbeat with the newest map. Only the requests of Redis clients use the map of a server.
    fn send_map(&mut self, number: ConnectionNumber) {
        if self.config.redis > 0
            && let Some(map) = self.coordinator.map_for(number)
        {
            let mut bytes = Vec::new();
            write_cluster_map(&mut bytes, &map);
            self.send(number, 1, bytes);
        }
    }

    fn on_started(&mut self, number: ConnectionNumber, started: &Started) {
        let link = self.coordinator.next_link();
        let result = self.brain(|cluster, now, sink| cluster.on_started(now, link, started, sink));
        let Some(result) = result else { return };
        let epoch =
            self.coordinator.cluster.as_ref().expect("the coordinator is alive").config().epoch;
        let admission = match result {
            Ok(()) => {
                let server = Some(started.member.server);
                self.coordinator.links.insert(number, (link, server));
                Admission::Admitted { epoch }
            }
            Err(refused) => Admission::Refused { reason: refused.to_string() },
        };
        let mut bytes = Vec::new();
        admission.write(&mut bytes);
        self.send(number, 1, bytes);
    }

    pub(super) fn on_server_message(&mut self, number: ConnectionNumber, opcode: u8, body: &[u8]) {
        if opcode == opcode::STARTED {
            let started = Started::read(body, &SEAL).expect("it is well formed");
            return self.on_started(number, &started);
        }
        match ServerMessage::read(opcode, body).expect("it is well formed") {
            ServerMessage::Heartbeat(heartbeat) => {
                let Some(&(link, Some(server))) = self.coordinator.links.get(&number) else {
                    return;
                };
                let speaks = heartbeat.incarnation;
                let taken = self.brain(|cluster, now, sink| {
                    let member = cluster.member(server);
                    (cluster.on_heartbeat(now, link, server, heartbeat, sink).is_ok(), member)
                });
                if let Some((true, member)) = taken {
                    let awake = self.coordinator_awake();
                    self.heard_at.insert(member, awake);
                    self.check(|_, _| messages::heartbeat_is_of_this_process(speaks, member));
                    self.send_map(number);
                }
            }
            ServerMessage::DrainRequest => {
                let Some(&(link, Some(server))) = self.coordinator.links.get(&number) else {
                    return;
                };
                let taken = self.brain(|cluster, now, sink| {
                    // A request over an old link is ignored: its sender is not the current process.
                    let taken = cluster.on_drain_request(now, link, server, sink);
                    taken.is_ok().then(|| cluster.member(server))
                });
                self.asked.extend(taken.flatten());
            }
        }
    }

    /// Ends the coordinator's process.
    pub fn kill_coordinator(&mut self) {
        if self.coordinator.cluster.is_none() {
            return;
        }
        self.trace.note(self.now, About::All, format_args!("the coordinator ends"));
        let stored = self.random.per_mille(500);
        let term = self.coordinator.term;
        // A coordinator contacts no server before its epoch is durable.
        let cluster = self.coordinator.cluster.as_ref();
        let cluster = cluster.filter(|cluster| cluster.durable().epoch == cluster.config().epoch);
        if let Some(epoch) = cluster.map(|cluster| cluster.config().epoch)
            && let Some(process) = self.processes.iter().rev().find(|p| p.alive)
        {
            let (member, delay) = (process.member, self.random.between(1_000_000, 2_000_000_000));
            self.after(delay, Happening::Zombie(epoch, member));
        }
        let asleep = self.coordinator.paused_until.saturating_sub(self.now);
        self.coordinator.slept = self.coordinator.slept.saturating_sub(asleep);
        self.asked.clear();
        self.coordinator.die(stored);
        self.coordinator_backlog.clear();
        let is_its = |actor: Actor| actor == Actor::Coordinator { term };
        for number in self.network.live(|c| is_its(c.ends[0]) || is_its(c.ends[1])) {
            let end = self.network.get(number).end_of(Actor::Coordinator { term });
            self.close(number, end);
        }
    }

    /// Delivers a long-delayed hello of a coordinator that has died since.
    pub(super) fn on_zombie(&mut self, epoch: Epoch, member: Member) {
        let Some(process) = self.process_of(member).filter(|p| self.processes[*p].alive) else {
            return;
        };
        let from = Actor::Coordinator { term: 0 };
        let to = Actor::Node { process };
        let hosts = [self.coordinator_host(), Host(self.processes[process].place)];
        let number = self.network.connect(&mut self.random, [from, to], hosts);
        let mut bytes = Vec::new();
        let cluster = self.processes[process].cluster;
        OrdersHello { cluster, epoch, to: member }.write(&SEAL, &mut bytes);
        self.send(number, 0, bytes);
        self.close(number, 0);
    }

    /// Starts another coordinator after the previous one has died.
    pub fn restart_coordinator(&mut self) {
        if self.coordinator.cluster.is_some() || self.operator.is_down() {
            return;
        }
        let now = self.clock_of(self.coordinator_host());
        let mut effects = Vec::new();
        self.coordinator.restart(now, &mut effects);
        let term = self.coordinator.term;
        self.trace.note(self.now, About::All, format_args!("coordinator {term} starts"));
        self.carry_out(effects);
        self.on_coordinator_restarted();
    }

    /// Heals all cuts.
    pub fn heal(&mut self) {
        for (number, to) in self.network.heal() {
            let delay = self.random.between(50_000, 3_000_000);
            self.after(delay, Happening::Release(number, to));
        }
        self.nemesis.note_healed();
    }
}
