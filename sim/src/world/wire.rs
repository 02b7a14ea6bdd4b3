//! Connections: sending, arrival, closing and dialling.

use super::SEAL;
use super::*;
use crate::invariants::messages;
use crate::server::Reader;
use kv_shard::Port;

impl World {
    /// Sends bytes from one side of a connection.
    pub fn send(&mut self, number: ConnectionNumber, from: usize, bytes: Vec<u8>) {
        self.send_after(number, from, bytes, 0);
    }

    /// Sends bytes from one side of a connection after a delay in nanoseconds.
    pub(super) fn send_after(
        &mut self,
        number: ConnectionNumber,
        from: usize,
        bytes: Vec<u8>,
        after: u64,
    ) {
        if bytes.is_empty() || !self.network.may_send(number, from) {
            return;
        }
        let at = self.network.arrival(&mut self.random, self.now + after, number, from);
        if bytes.len() > 2 && self.random.per_mille(30) {
            let middle = self.random.index(bytes.len() - 1) + 1;
            let rest = bytes[middle..].to_vec();
            self.at(at, Happening::Arrive(number, 1 - from, bytes[..middle].to_vec()));
            let at = self.network.arrival(&mut self.random, at, number, from);
            self.at(at, Happening::Arrive(number, 1 - from, rest));
        } else {
            self.at(at, Happening::Arrive(number, 1 - from, bytes));
        }
    }

    /// Closes one side of a connection. The other side observes the close after all earlier bytes.
    pub(super) fn close(&mut self, number: ConnectionNumber, end: usize) {
        if !self.network.is_open(number, end) {
            return;
        }
        let at = self.network.arrival(&mut self.random, self.now, number, end);
        self.network.close(number, end);
        self.inputs.remove(&(number, end));
        self.at(at, Happening::End(number, 1 - end));
    }

    /// Shuts down the sending direction of one side. The other side observes the end of input after all earlier bytes.
    pub(super) fn shut_down(&mut self, number: ConnectionNumber, end: usize) {
        if !self.network.may_send(number, end) {
            return;
        }
        let at = self.network.arrival(&mut self.random, self.now, number, end);
        self.network.shut_down(number, end);
        self.at(at, Happening::EndOfInput(number, 1 - end));
    }

    /// Breaks a connection. Both sides observe it, each at its own time.
    pub fn break_connection(&mut self, number: ConnectionNumber) {
        self.network.note_broken(number);
        for end in 0..2 {
            let delay = self.random.between(0, 3_000_000);
            self.after(delay, Happening::End(number, end));
        }
    }

    pub(super) fn on_arrive(&mut self, number: ConnectionNumber, to: usize, bytes: Vec<u8>) {
        if let Some(bytes) = self.network.arrive(number, to, bytes) {
            self.hand_over(number, to, bytes);
        }
    }

    /// Delivers the bytes that a cut held back.
    pub(super) fn on_release(&mut self, number: ConnectionNumber, to: usize) {
        let bytes = self.network.take_held(number, to);
        if !bytes.is_empty() {
            self.hand_over(number, to, bytes);
        }
    }

    fn hand_over(&mut self, number: ConnectionNumber, to: usize, bytes: Vec<u8>) {
        match self.network.get(number).ends[to] {
            Actor::Shard { process, shard } => {
                self.give(process, shard, Input::Bytes(number, bytes));
            }
            Actor::Node { process } => self.on_node_bytes(process, number, to, &bytes),
            Actor::Coordinator { .. } => self.on_coordinator_bytes(number, to, &bytes),
            Actor::Client { client } => self.on_client_bytes(client, number, to, &bytes),
            Actor::Redis { client } => self.on_redis_bytes(client, number, &bytes),
            Actor::Flooder { flooder } => self.on_flooder_bytes(flooder, number, &bytes),
            Actor::Scanner => self.on_scanner_bytes(number, &bytes),
        }
    }

    pub(super) fn on_end(&mut self, number: ConnectionNumber, end: usize) {
        if !self.network.is_open(number, end) {
            return;
        }
        if self.network.is_held_back(number, end) {
            // The end of the connection is not observed before the cut is healed.
            return self.after(50_000_000, Happening::End(number, end));
        }
        self.network.close(number, end);
        self.inputs.remove(&(number, end));
        self.note_end(number, end);
    }

    /// Handles the arrival of the end of input at one side. A shard may continue to send; other actors close their
    /// side.
    pub(super) fn on_end_of_input(&mut self, number: ConnectionNumber, end: usize) {
        if !self.network.is_open(number, end) {
            return;
        }
        if self.network.is_held_back(number, end) {
            return self.after(50_000_000, Happening::EndOfInput(number, end));
        }
        if let Actor::Shard { process, shard } = self.network.get(number).ends[end] {
            self.network.note_end_of_input(self.now, number, end);
            return self.give(process, shard, Input::EndOfInput(number));
        }
        self.close(number, end);
        self.note_end(number, end);
    }

    /// Notifies the owner of one side that the connection was closed.
    fn note_end(&mut self, number: ConnectionNumber, end: usize) {
        match self.network.get(number).ends[end] {
            Actor::Shard { process, shard } => self.give(process, shard, Input::Closed(number)),
            Actor::Node { process } => {
                if self.processes[process].link.is_some_and(|(link, _)| link == number) {
                    self.processes[process].link = None;
                    self.processes[process].link_tries += 1;
                }
            }
            Actor::Coordinator { term } => self.on_coordinator_end(term, number),
            Actor::Flooder { flooder } => self.on_flooder_end(flooder),
            Actor::Scanner => self.on_scanner_end(number),
            Actor::Redis { client } => self.on_redis_end(client, number),
            Actor::Client { client } => {
                let now = self.now;
                self.check(|_, world| messages::half_closed_is_served(world, client, number));
                self.clients[client].on_closed(now, number);
                self.ask_map(client);
                self.wake_client(client);
            }
        }
    }

    pub(super) fn on_coordinator_end(&mut self, term: u64, number: ConnectionNumber) {
        if term != self.coordinator.term {
            return;
        }
        if let Some((link, server)) = self.coordinator.links.remove(&number) {
            if let Some(server) = server {
                self.brain(|cluster, now, sink| cluster.on_link_lost(now, link, server, sink));
            }
            return;
        }
        let member = self.coordinator.orders.iter().find(|(_, known)| **known == number);
        if let Some(member) = member.map(|(member, _)| *member) {
            self.coordinator.orders.remove(&member);
            self.brain(|cluster, _, _| cluster.on_orders_lost(member));
            self.redial_orders(member);
        }
    }

    pub(super) fn redial_orders(&mut self, member: Member) {
        let Some(cluster) = &self.coordinator.cluster else { return };
        let process = self.process_of(member);
        if let Some(process) = process.filter(|_| cluster.may_run(member)) {
            let address = self.processes[process].address;
            let term = self.coordinator.term;
            self.after(50_000_000, Happening::DialOrders(term, member, address));
        }
    }

    pub(super) fn dial(&mut self, from: Actor, to: Target, purpose: Purpose) {
        let delay = self.random.between(50_000, 300_000);
        self.after(delay, Happening::Dial { from, to, purpose });
    }

    pub(super) fn on_dial(&mut self, from: Actor, to: Target, purpose: Purpose) {
        let listener = match to {
            Target::Coordinator => self
                .coordinator
                .cluster
                .is_some()
                .then_some(Actor::Coordinator { term: self.coordinator.term }),
            Target::Process(address) => self
                .processes
                .iter()
                .rposition(|process| process.alive && process.address == address)
                .map(|process| self.executor_for(from, process)),
            Target::Orders(address) => self
                .processes
                .iter()
                .rposition(|process| process.alive && process.address == address)
                .map(|process| Actor::Node { process }),
        };
        let from_host = self.host_of(from);
        let alive = self.process_behind(from).is_none_or(|process| self.processes[process].alive)
            && !matches!(from, Actor::Coordinator { term } if term != self.coordinator.term);
        let Some(listener) = listener.filter(|_| alive) else {
            return self.after(200_000, Happening::DialFailed(from, purpose));
        };
        let to_host = self.host_of(listener);
        if self.network.is_cut(from_host, to_host) || self.network.is_cut(to_host, from_host) {
            return self.after(1_000_000_000, Happening::DialFailed(from, purpose));
        }
        let number = self.network.connect(&mut self.random, [from, listener], [from_host, to_host]);
        if let Actor::Shard { process, shard } = listener {
            let port = match purpose {
                Purpose::Shard(target) => target.port(),
                Purpose::Link(_) | Purpose::Orders(_) => Port::Servers,
            };
            self.give(process, shard, Input::Accepted(number, port, Reader::Fast));
        }
        self.on_connected(from, number, purpose);
    }

    /// Returns the executor of a process that accepts a connection of `from`. It is another one than `from`, because an
    /// executor has one end of a connection.
    fn executor_for(&mut self, from: Actor, process: usize) -> Actor {
        match from {
            Actor::Shard { process: own, shard } if own == process => {
                Actor::Shard { process, shard: (shard + 1) % usize::from(self.config.shards) }
            }
            _ => self.any_executor(process),
        }
    }

    /// Returns a random executor of a process, which accepts a connection.
    pub(super) fn any_executor(&mut self, process: usize) -> Actor {
        Actor::Shard { process, shard: self.random.index(usize::from(self.config.shards)) }
    }

    pub(super) fn on_connected(&mut self, from: Actor, number: ConnectionNumber, purpose: Purpose) {
        match (from, purpose) {
            (Actor::Shard { process, shard }, Purpose::Shard(target)) => {
                self.give(process, shard, Input::Dialled(number, target));
            }
            (Actor::Node { process }, Purpose::Link(tried)) => {
                if self.processes[process].link.is_some()
                    || self.processes[process].link_tries != tried
                {
                    return self.close(number, 0);
                }
                self.processes[process].link = Some((number, false));
                let mut bytes = Vec::new();
                self.started(process).write(&SEAL, &mut bytes);
                self.send(number, 0, bytes);
            }
            (Actor::Coordinator { .. }, Purpose::Orders(member)) => {
                let Some(cluster) = &self.coordinator.cluster else { return };
                let config = cluster.config();
                let mut bytes = Vec::new();
                OrdersHello { cluster: config.cluster, epoch: config.epoch, to: member }
                    .write(&SEAL, &mut bytes);
                self.coordinator.orders.insert(member, number);
                self.send(number, 0, bytes);
            }
            _ => {}
        }
    }

    pub(super) fn handle_dial_failed(&mut self, from: Actor, purpose: Purpose) {
        match (from, purpose) {
            (Actor::Shard { process, shard }, Purpose::Shard(target)) => {
                self.give(process, shard, Input::DialFailed(target));
            }
            (Actor::Node { process }, Purpose::Link(tried)) => {
                let process = &mut self.processes[process];
                if process.link_tries == tried {
                    process.link_tries += 1;
                }
            }
            (Actor::Coordinator { term }, Purpose::Orders(member))
                if term == self.coordinator.term =>
            {
                self.redial_orders(member);
            }
            _ => {}
        }
    }

    pub(super) fn started(&self, process: usize) -> Started {
        let process = &self.processes[process];
        Started {
            cluster: process.cluster,
            member: process.member,
            pid: 1,
            start_time: 1,
            namespace: kv_protocol::ids::PidNamespace(1),
            shards: self.config.shards,
            address: process.address.ip(),
            clients_port: process.address.port(),
            servers_port: process.address.port(),
            coord_port: process.address.port(),
            epoch: process.node.epoch(),
        }
    }
}
