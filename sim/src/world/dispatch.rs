//! Dispatch of events to the actors concerned, including paused and dead actors.

use std::sync::atomic::Ordering;

use super::*;
use crate::invariants::roles;

impl World {
    pub(super) fn dispatch(&mut self, happening: Happening) {
        // While all machines are suspended no event occurs, not even a fault.
        if self.now < self.all_asleep_until {
            return self.at(self.all_asleep_until, happening);
        }
        // Messages to a client on a suspended machine wait, in order.
        if let Some(client) = self.client_concerned(&happening)
            && self.now < self.asleep_until[client]
        {
            return self.at(self.asleep_until[client], happening);
        }
        // A paused actor handles its backlog when it resumes.
        if let Some(process) = self.process_concerned(&happening) {
            if !self.processes[process].alive {
                return self.on_dead(happening);
            }
            if self.now < self.processes[process].paused_until {
                return self.backlogs.entry(process).or_default().push(happening);
            }
        } else if self.concerns_coordinator(&happening) && self.now < self.coordinator.paused_until
        {
            return self.coordinator_backlog.push(happening);
        }
        match happening {
            Happening::Arrive(number, to, bytes) => self.on_arrive(number, to, bytes),
            Happening::Release(number, to) => self.on_release(number, to),
            Happening::End(number, end) => self.on_end(number, end),
            Happening::EndOfInput(number, end) => self.on_end_of_input(number, end),
            Happening::Dial { from, to, purpose } => self.on_dial(from, to, purpose),
            Happening::DialFailed(from, purpose) => self.handle_dial_failed(from, purpose),
            Happening::WakeShard(process, shard) => self.on_wake_shard(process, shard),
            Happening::Beat(process) => self.on_beat(process),
            Happening::WakeCoordinator(term) => {
                if term == self.coordinator.term {
                    self.coordinator.wake_at = None;
                    self.brain(|cluster, now, sink| cluster.on_timeout(now, sink));
                }
            }
            Happening::Stored(term, number) => self.on_stored(term, number),
            Happening::Spawned(member) => self.on_spawned(member),
            Happening::Killed(member, reason) => {
                // An unreachable process cannot be killed.
                if self.is_out_of_reach(member) {
                    return self.after(50_000_000, Happening::Killed(member, reason));
                }
                if let Some(process) = self.process_of(member) {
                    if reason == KillReason::Replaced && self.processes[process].alive {
                        self.check(|_, world| roles::kill_spares_holders(world, member));
                    }
                    self.kill(process);
                }
            }
            Happening::Proof(term, member) => {
                if self.is_out_of_reach(member) {
                    return self.after(50_000_000, Happening::Proof(term, member));
                }
                if term == self.coordinator.term {
                    // A real coordinator detects an orderly exit by the exit status or, if this is unknown, by the
                    // dumps of the process.
                    let in_order =
                        self.process_of(member).is_some_and(|process| self.processes[process].left);
                    self.brain(|cluster, now, sink| match in_order {
                        true => cluster.on_left(now, member, sink),
                        false => cluster.on_exited(now, member, sink),
                    });
                }
            }
            Happening::DialOrders(term, member, address) => {
                if term == self.coordinator.term && self.coordinator.cluster.is_some() {
                    let from = Actor::Coordinator { term };
                    let purpose = Purpose::Orders(member);
                    self.dial(from, Target::Orders(address), purpose);
                }
            }
            Happening::RestartCoordinator => self.restart_coordinator(),
            Happening::Resume(process) => self.on_resume(process),
            Happening::WakeClient(client) => self.on_wake_client(client),
            Happening::WakeRedis(client) => self.on_wake_redis(client),
            Happening::SleepClient(client, sleep) => self.sleep_client(client, sleep, true),
            Happening::ClientSlept(client, slept) => {
                self.clients[client].on_slept(slept);
                self.on_wake_client(client);
            }
            Happening::SleepAll(sleep) => self.sleep_all(sleep),
            Happening::Clone => self.clone_client(),
            Happening::AskMap(client) => self.on_ask_map(client),
            Happening::Map(client, map) => self.on_map(client, *map),
            Happening::MemoryIsBack(process) => {
                self.processes[process].is_exhausted.store(false, Ordering::Relaxed);
            }
            Happening::Nemesis => crate::nemesis::strike_at_rest(self),
            Happening::Strike(place, step) => crate::nemesis::strike_in_step(self, place, step),
            Happening::StrikeAgain(place, kind, step, timeout) => {
                crate::nemesis::strike(self, place, kind, step, timeout);
            }
            Happening::Part(place, other, timeout) => {
                crate::nemesis::part(self, place, other, timeout);
            }
            Happening::Move(place) => crate::nemesis::give_place(self, place),
            Happening::Heal => self.heal(),
            Happening::BreakLink(place) => crate::nemesis::break_link(self, place),
            Happening::Zombie(epoch, member) => self.on_zombie(epoch, member),
            Happening::SignalAt(place) => self.signal_at(place),
            Happening::SignalMany(places, within) => self.signal_many(places, within),
            Happening::LookAtDrain(process, order, since) => {
                self.look_at_drain(process, order, since);
            }
            Happening::Signal(process) => self.on_signal(process),
            Happening::StrikeNeighbour(place) => crate::nemesis::strike_neighbour(self, place),
            Happening::StandAgain(process, shard, more) => {
                crate::nemesis::slow::stand_again(self, process, shard, more);
            }
            Happening::Orphan => self.orphan(),
            Happening::LeaveAlone(process) => self.leave_if_ignored(process),
            Happening::LeaveNow(process) => self.leave_alone(process),
            Happening::DumpWritten(process, number) => self.on_dump_written(process, number),
            Happening::DumpFailed(process, order) => self.on_dump_failed(process, order),
            Happening::DumpAgain(process, role) => self.begin_dump(process, role, None),
            Happening::Suspend => self.suspend(),
            Happening::SuspendInStep(place, step) => {
                crate::nemesis::suspend_in_step(self, place, step);
            }
            Happening::Force => self.force(),
            Happening::Stop => self.stop_cluster(),
            Happening::Stopped(term) => self.on_stopped(term),
            Happening::Restore => self.restore(),
            Happening::Crash(place) => self.crash(place),
            Happening::StepClock(timeout) => crate::nemesis::clocks::step(self, timeout),
            Happening::Flood => self.begin_flood(),
            Happening::Scan => self.on_scan(),
            Happening::Flush => self.on_flush(),
            Happening::Tempt(temptation) => self.tempt(temptation),
        }
    }

    /// Returns whether a process is out of reach: the coordinator can neither kill it nor observe its exit.
    pub(super) fn is_out_of_reach(&self, member: Member) -> bool {
        let (here, there) = (self.coordinator_host(), Host(usize::from(member.server.0)));
        let is_away = self.process_of(member).is_some_and(|process| {
            self.now < self.processes[process].out_of_reach_until && !self.is_healing
        });
        is_away || self.network.is_cut(here, there) || self.network.is_cut(there, here)
    }

    pub(super) fn process_concerned(&self, happening: &Happening) -> Option<usize> {
        match happening {
            Happening::Arrive(number, to, _)
            | Happening::Release(number, to)
            | Happening::EndOfInput(number, to)
            | Happening::End(number, to) => {
                self.process_behind(self.network.get(*number).ends[*to])
            }
            Happening::DialFailed(from, _) => self.process_behind(*from),
            Happening::WakeShard(process, _)
            | Happening::Beat(process)
            | Happening::Signal(process)
            | Happening::LeaveAlone(process)
            | Happening::LeaveNow(process)
            | Happening::LookAtDrain(process, ..)
            | Happening::DumpFailed(process, _)
            | Happening::DumpAgain(process, _)
            | Happening::DumpWritten(process, _) => Some(*process),
            _ => None,
        }
    }

    fn client_concerned(&self, happening: &Happening) -> Option<usize> {
        match happening {
            Happening::Arrive(number, to, _)
            | Happening::Release(number, to)
            | Happening::EndOfInput(number, to)
            | Happening::End(number, to) => match self.network.get(*number).ends[*to] {
                Actor::Client { client } => Some(client),
                _ => None,
            },
            Happening::WakeClient(client) | Happening::Map(client, _) => Some(*client),
            _ => None,
        }
    }

    pub(super) fn process_behind(&self, actor: Actor) -> Option<usize> {
        match actor {
            Actor::Shard { process, .. } | Actor::Node { process } => Some(process),
            Actor::Coordinator { .. }
            | Actor::Client { .. }
            | Actor::Redis { .. }
            | Actor::Flooder { .. }
            | Actor::Scanner => None,
        }
    }

    pub(super) fn concerns_coordinator(&self, happening: &Happening) -> bool {
        let is_it = |actor: Actor| matches!(actor, Actor::Coordinator { .. });
        match happening {
            Happening::Arrive(number, to, _)
            | Happening::Release(number, to)
            | Happening::EndOfInput(number, to)
            | Happening::End(number, to) => is_it(self.network.get(*number).ends[*to]),
            Happening::DialFailed(from, _) => is_it(*from),
            Happening::WakeCoordinator(_)
            | Happening::Stored(..)
            | Happening::Proof(..)
            | Happening::DialOrders(..)
            | Happening::AskMap(_) => true,
            _ => false,
        }
    }

    /// Discards an event for a dead process.
    pub(super) fn on_dead(&mut self, happening: Happening) {
        if let Happening::Arrive(number, to, _)
        | Happening::Release(number, to)
        | Happening::EndOfInput(number, to)
        | Happening::End(number, to) = happening
        {
            self.network.close(number, to);
        }
    }
}
