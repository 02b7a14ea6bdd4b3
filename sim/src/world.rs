//! The whole simulated world: true time, hosts, processes, and everything that happens to them.
//!
//! ```text
//!   heap of events, by true time -> dispatch to the actor concerned, unless it is paused
//!                                     -> what it wants done becomes further events
//!                                -> the checks look at what was touched
//! ```

use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};

use kv_core::cluster::{DoubleFault, Effect};
use kv_core::node::NodeEffect;
use kv_protocol::client_message::{Answer, Condition, Hello, opcode as client_opcode};
use kv_protocol::control_message::{
    Admission, Heartbeat, Order, OrdersHello, Report, ServerMessage, Started, opcode,
    write_orders_welcome,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClusterId, Epoch, Member, OrderId, ServerId, ShardId, Time};
use kv_protocol::limits::{MAX_ANSWER_BODY, MAX_CONTROL_BODY};
use kv_protocol::placement::Placement;

use crate::checks::Checks;
use crate::client::{Client, Wish};
use crate::clock::Clock;
use crate::coordinator::{Coordinator, Shape};
use crate::counts::Counts;
use crate::event::{Event, Happening, Purpose, Target};
use crate::nemesis::Nemesis;
use crate::network::{Actor, ConnectionNumber, Host, Network};
use crate::random::Random;
use crate::server::{Input, Output, Process};
use crate::trace::Trace;
use crate::workload::Workload;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// Servers.
    pub servers: u16,
    /// Shards of a group.
    pub shards: u16,
    /// Clients.
    pub clients: usize,
    /// Nanoseconds of true time with faults.
    pub faulty: u64,
    /// Nanoseconds within which all must be home again afterwards.
    pub patience: u64,
    /// Two servers may die at the same time: groups without a holder are LOST, and stay so.
    pub double: bool,
}

impl Config {
    /// The run of a seed.
    pub fn of(seed: u64) -> Config {
        let mut random = Random::new(seed ^ 0xc0f1);
        Config {
            seed,
            servers: u16::try_from(random.between(3, 5)).expect("it is small"),
            shards: u16::try_from(random.between(1, 2)).expect("it is small"),
            clients: random.index(4) + 3,
            faulty: 40_000_000_000,
            patience: 60_000_000_000,
            double: seed % 8 == 7,
        }
    }
}

/// Why a run has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise: the number of consistency.md §11.
    pub invariant: u8,
    /// What was seen.
    pub words: String,
}

/// The world. See the module's description.
pub struct World {
    /// What it is made of.
    pub config: Config,
    /// True time, in nanoseconds.
    pub now: u64,
    heap: BinaryHeap<Event>,
    made: u64,
    /// Chance.
    pub random: Random,
    /// Connections and cuts.
    pub network: Network,
    /// By host.
    pub clocks: Vec<Clock>,
    /// Every process that ever ran.
    pub processes: Vec<Process>,
    /// By process: what came while it was paused.
    backlogs: BTreeMap<usize, Vec<Happening>>,
    coordinator_backlog: Vec<Happening>,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// Clients.
    pub clients: Vec<Client>,
    client_wakes: Vec<Option<u64>>,
    /// Frame buffers of control connections, by connection and end.
    inputs: BTreeMap<(ConnectionNumber, usize), FrameBuffer>,
    /// What clients do.
    pub workload: Workload,
    /// Faults.
    pub nemesis: Nemesis,
    /// The promises.
    pub checks: Checks,
    /// What happened last.
    pub trace: Trace,
    /// What is counted.
    pub counts: Counts,
    /// Faults have stopped.
    pub is_healing: bool,
    violation: Option<Violation>,
}

const CLUSTER: ClusterId = ClusterId(0x51);
const BEAT: u64 = 100_000_000;
const THINK: u64 = 400_000;

impl World {
    /// A world just founded.
    pub fn new(config: Config) -> World {
        let mut random = Random::new(config.seed);
        let hosts = usize::from(config.servers) + 1 + config.clients;
        let clocks: Vec<Clock> = (0..hosts).map(|_| Clock::new(&mut random)).collect();
        let shape = Shape {
            cluster: CLUSTER,
            servers: config.servers,
            shards: config.shards,
            on_double_fault: DoubleFault::Isolate,
            seed: random.any(),
        };
        let mut effects = Vec::new();
        let here = clocks[usize::from(config.servers)].read(0);
        let coordinator = Coordinator::found(shape, here, &mut effects);
        let mut world = World {
            config,
            now: 0,
            heap: BinaryHeap::new(),
            made: 0,
            random,
            network: Network::new(hosts),
            clocks,
            processes: Vec::new(),
            backlogs: BTreeMap::new(),
            coordinator_backlog: Vec::new(),
            coordinator,
            clients: (0..config.clients).map(|n| Client::new(n as u128 + 1)).collect(),
            client_wakes: vec![None; config.clients],
            inputs: BTreeMap::new(),
            workload: Workload::new(),
            nemesis: Nemesis::default(),
            checks: Checks::default(),
            trace: Trace::default(),
            counts: Counts::default(),
            is_healing: false,
            violation: None,
        };
        world.clients[0].is_reader = true;
        world.carry_out(effects);
        for client in 0..config.clients {
            world.after(1_000_000 * client as u64, Happening::WakeClient(client));
        }
        world.after(300_000_000, Happening::Nemesis);
        world
    }

    /// Runs to the end: the faulty time, then the healing.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn run(&mut self) -> Result<(), Violation> {
        self.run_until(self.config.faulty)?;
        self.is_healing = true;
        crate::nemesis::stop(self);
        let end = self.now + self.config.patience;
        while self.now < end && !self.is_at_rest() {
            self.run_until((self.now + 50_000_000).min(end))?;
        }
        if !self.is_at_rest() {
            let views = self.coordinator.cluster.as_ref().map(|cluster| cluster.views().to_vec());
            let words = format!(
                "{} s after the last fault not everything is home: {} operations wait; {views:?}",
                self.config.patience / 1_000_000_000,
                self.clients.iter().map(|client| client.flights.len()).sum::<usize>()
            );
            return Err(Violation { invariant: 19, words });
        }
        let checks = std::mem::take(&mut self.checks);
        let ended = checks.at_end(self);
        self.checks = checks;
        ended
    }

    fn is_at_rest(&self) -> bool {
        let is_home = self.coordinator.cluster.as_ref().is_some_and(|cluster| {
            let is_lost = cluster.views().iter().any(|view| view.primary.is_none());
            cluster.is_whole() || (self.config.double && is_lost)
        });
        is_home && self.clients.iter().all(|client| client.flights.is_empty())
    }

    fn run_until(&mut self, end: u64) -> Result<(), Violation> {
        while let Some(event) = self.heap.peek()
            && event.at <= end
        {
            let Event { at, happening, .. } = self.heap.pop().expect("it was just seen");
            self.now = at;
            self.counts.events += 1;
            self.dispatch(happening);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if self.counts.events.is_multiple_of(1_000) {
                let mut checks = std::mem::take(&mut self.checks);
                let result = checks.every_thousand(self);
                self.checks = checks;
                result?;
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Notes that a promise is broken; the run ends after this event.
    pub fn fail(&mut self, invariant: u8, words: String) {
        self.violation.get_or_insert(Violation { invariant, words });
    }

    /// Something will happen.
    pub fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.made += 1;
        self.heap.push(Event { at, number: self.made, happening });
    }

    /// The coordinator's host.
    pub fn coordinator_host(&self) -> Host {
        Host(usize::from(self.config.servers))
    }

    /// What an actor's own clock shows.
    pub fn clock_of(&self, host: Host) -> Time {
        self.clocks[host.0].read(self.now)
    }

    fn host_of(&self, actor: Actor) -> Host {
        match actor {
            Actor::Shard { process, .. } | Actor::Node { process } => {
                Host(self.processes[process].place)
            }
            Actor::Coordinator { .. } => self.coordinator_host(),
            Actor::Client { client } => Host(usize::from(self.config.servers) + 1 + client),
        }
    }

    /// The process of a member, if it ever ran.
    pub fn process_of(&self, member: Member) -> Option<usize> {
        self.processes.iter().rposition(|process| process.member == member)
    }

    /// The process that runs at a place.
    pub fn running_at(&self, place: usize) -> Option<usize> {
        self.processes.iter().rposition(|process| process.place == place && process.alive)
    }

    // --- Dispatch --------------------------------------------------------------------------------

    fn dispatch(&mut self, happening: Happening) {
        // Whoever is paused finds it all when he goes on.
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
            Happening::End(number, end) => self.on_end(number, end),
            Happening::Dial { from, to, purpose } => self.on_dial(from, to, purpose),
            Happening::DialFailed(from, purpose) => self.on_dial_failed(from, purpose),
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
            Happening::Killed(member) => {
                // Whoever cannot be reached cannot be killed.
                if self.is_out_of_reach(member) {
                    return self.after(50_000_000, Happening::Killed(member));
                }
                if let Some(process) = self.process_of(member) {
                    self.kill(process);
                }
            }
            Happening::Proof(term, member) => {
                if self.is_out_of_reach(member) {
                    return self.after(50_000_000, Happening::Proof(term, member));
                }
                if term == self.coordinator.term {
                    self.brain(|cluster, now, sink| cluster.on_exited(now, member, sink));
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
            Happening::AskMap(client) => self.on_ask_map(client),
            Happening::Map(client, map) => {
                let now = self.now;
                self.clients[client].on_map(now, *map);
                self.wake_client(client);
            }
            Happening::Nemesis => crate::nemesis::strike(self),
            Happening::Heal => self.heal(),
            Happening::BreakLink(place) => crate::nemesis::break_link(self, place),
            Happening::Zombie(epoch, member) => self.on_zombie(epoch, member),
            Happening::Effects(term, effects) => {
                if term == self.coordinator.term {
                    self.carry_out(effects);
                }
            }
        }
    }

    /// Whether the coordinator can neither kill a process nor learn of its end.
    fn is_out_of_reach(&self, member: Member) -> bool {
        let (here, there) = (self.coordinator_host(), Host(usize::from(member.server.0)));
        self.network.is_cut(here, there) || self.network.is_cut(there, here)
    }

    fn process_concerned(&self, happening: &Happening) -> Option<usize> {
        match happening {
            Happening::Arrive(number, to, _) | Happening::End(number, to) => {
                self.process_behind(self.network.get(*number).ends[*to])
            }
            Happening::DialFailed(from, _) => self.process_behind(*from),
            Happening::WakeShard(process, _) | Happening::Beat(process) => Some(*process),
            _ => None,
        }
    }

    fn process_behind(&self, actor: Actor) -> Option<usize> {
        match actor {
            Actor::Shard { process, .. } | Actor::Node { process } => Some(process),
            Actor::Coordinator { .. } | Actor::Client { .. } => None,
        }
    }

    fn concerns_coordinator(&self, happening: &Happening) -> bool {
        let is_it = |actor: Actor| matches!(actor, Actor::Coordinator { .. });
        match happening {
            Happening::Arrive(number, to, _) | Happening::End(number, to) => {
                is_it(self.network.get(*number).ends[*to])
            }
            Happening::DialFailed(from, _) => is_it(*from),
            Happening::WakeCoordinator(_)
            | Happening::Stored(..)
            | Happening::Proof(..)
            | Happening::DialOrders(..)
            | Happening::AskMap(_) => true,
            _ => false,
        }
    }

    /// What comes to a dead process is thrown away.
    fn on_dead(&mut self, happening: Happening) {
        if let Happening::Arrive(number, to, _) | Happening::End(number, to) = happening {
            self.network.close(number, to);
        }
    }

    // --- Connections -----------------------------------------------------------------------------

    /// Sends from an actor's end.
    pub fn send(&mut self, number: ConnectionNumber, from: usize, bytes: Vec<u8>) {
        if bytes.is_empty() || !self.network.is_open(number, from) {
            return;
        }
        let at = self.network.arrival(&mut self.random, self.now, number, from);
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

    /// An end closes its connection; the other end learns of it after what was sent before.
    fn close(&mut self, number: ConnectionNumber, end: usize) {
        if !self.network.is_open(number, end) {
            return;
        }
        let at = self.network.arrival(&mut self.random, self.now, number, end);
        self.network.close(number, end);
        self.inputs.remove(&(number, end));
        self.at(at, Happening::End(number, 1 - end));
    }

    /// Breaks a connection: both ends learn of it, each in its own time.
    pub fn break_connection(&mut self, number: ConnectionNumber) {
        for end in 0..2 {
            let delay = self.random.between(0, 3_000_000);
            self.after(delay, Happening::End(number, end));
        }
    }

    fn on_arrive(&mut self, number: ConnectionNumber, to: usize, bytes: Vec<u8>) {
        let Some(bytes) = self.network.arrive(number, to, bytes) else { return };
        match self.network.get(number).ends[to] {
            Actor::Shard { process, shard } => {
                self.give(process, shard, Input::Bytes(number, bytes));
            }
            Actor::Node { process } => self.on_node_bytes(process, number, to, &bytes),
            Actor::Coordinator { .. } => self.on_coordinator_bytes(number, to, &bytes),
            Actor::Client { client } => self.on_client_bytes(client, number, to, &bytes),
        }
    }

    fn on_end(&mut self, number: ConnectionNumber, end: usize) {
        if !self.network.is_open(number, end) {
            return;
        }
        let [from, to] = [1 - end, end].map(|end| self.network.get(number).hosts()[end]);
        if self.network.is_cut(from, to) {
            // The word of it is lost with everything else; it comes when the cut is healed.
            return self.after(50_000_000, Happening::End(number, end));
        }
        self.network.close(number, end);
        self.inputs.remove(&(number, end));
        match self.network.get(number).ends[end] {
            Actor::Shard { process, shard } => self.give(process, shard, Input::Closed(number)),
            Actor::Node { process } => {
                if self.processes[process].link.is_some_and(|(link, _)| link == number) {
                    self.processes[process].link = None;
                    self.processes[process].link_tries += 1;
                }
            }
            Actor::Coordinator { term } => self.on_coordinator_end(term, number),
            Actor::Client { client } => {
                let now = self.now;
                self.clients[client].on_closed(now, number);
                self.ask_map(client);
                self.wake_client(client);
            }
        }
    }

    fn on_coordinator_end(&mut self, term: u64, number: ConnectionNumber) {
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

    fn redial_orders(&mut self, member: Member) {
        let Some(cluster) = &self.coordinator.cluster else { return };
        let process = self.process_of(member);
        if let Some(process) = process.filter(|_| cluster.may_run(member)) {
            let address = self.processes[process].address;
            let term = self.coordinator.term;
            self.after(50_000_000, Happening::DialOrders(term, member, address));
        }
    }

    fn dial(&mut self, from: Actor, to: Target, purpose: Purpose) {
        let delay = self.random.between(50_000, 300_000);
        self.after(delay, Happening::Dial { from, to, purpose });
    }

    fn on_dial(&mut self, from: Actor, to: Target, purpose: Purpose) {
        let listener = match to {
            Target::Coordinator => self
                .coordinator
                .cluster
                .is_some()
                .then_some(Actor::Coordinator { term: self.coordinator.term }),
            Target::Process(address, shard) => self
                .processes
                .iter()
                .rposition(|process| process.alive && process.address == address)
                .map(|process| Actor::Shard { process, shard }),
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
        let number = self.network.connect([from, listener], [from_host, to_host]);
        self.on_connected(from, number, purpose);
    }

    fn on_connected(&mut self, from: Actor, number: ConnectionNumber, purpose: Purpose) {
        match (from, purpose) {
            (Actor::Shard { process, shard }, Purpose::Stream(group)) => {
                self.give(process, shard, Input::Dialled(number, group));
            }
            (Actor::Node { process }, Purpose::Link(tried)) => {
                if self.processes[process].link.is_some()
                    || self.processes[process].link_tries != tried
                {
                    return self.close(number, 0);
                }
                self.processes[process].link = Some((number, false));
                let started = ServerMessage::Started(self.started(process));
                let mut bytes = Vec::new();
                started.write(&mut bytes);
                self.send(number, 0, bytes);
            }
            (Actor::Coordinator { .. }, Purpose::Orders(member)) => {
                let Some(cluster) = &self.coordinator.cluster else { return };
                let config = cluster.config();
                let mut bytes = Vec::new();
                OrdersHello { cluster: config.cluster, epoch: config.epoch, to: member }
                    .write(&mut bytes);
                self.coordinator.orders.insert(member, number);
                self.send(number, 0, bytes);
            }
            _ => {}
        }
    }

    fn on_dial_failed(&mut self, from: Actor, purpose: Purpose) {
        match (from, purpose) {
            (Actor::Shard { process, shard }, Purpose::Stream(group)) => {
                self.give(process, shard, Input::DialFailed(group));
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

    fn started(&self, process: usize) -> Started {
        let process = &self.processes[process];
        Started {
            cluster: CLUSTER,
            member: process.member,
            pid: 1,
            start_time: 1,
            shards: self.config.shards,
            address: process.address.ip(),
            clients_port: process.address.port(),
            servers_port: process.address.port(),
            coord_port: process.address.port(),
            epoch: process.node.epoch(),
        }
    }

    // --- Servers ---------------------------------------------------------------------------------

    /// Puts something into a shard's inbox, and wakes it soon.
    fn give(&mut self, process: usize, shard: usize, input: Input) {
        self.processes[process].shards[shard].inbox.push_back(input);
        let delay = self.random.between(1_000, 20_000);
        self.wake_shard_at(process, shard, self.now + delay);
    }

    fn wake_shard_at(&mut self, process: usize, shard: usize, at: u64) {
        let at = at.max(self.now + 1_000);
        let wake_at = &mut self.processes[process].shards[shard].wake_at;
        if wake_at.is_none_or(|known| at < known) {
            *wake_at = Some(at);
            self.at(at, Happening::WakeShard(process, shard));
        }
    }

    fn on_wake_shard(&mut self, process: usize, shard: usize) {
        let place = &mut self.processes[process];
        if place.shards[shard].wake_at.is_none_or(|at| at > self.now) {
            return;
        }
        place.shards[shard].wake_at = None;
        let reading = self.clocks[place.place].read(self.now);
        let (reading, inputs) = match place.shards[shard].stalled.take() {
            Some(stalled) => stalled,
            None => (reading, std::mem::take(&mut place.shards[shard].inbox)),
        };
        // A pause between the reading of the clock and the serving.
        if let Some(pause) = place.stall_next.take_if(|_| !inputs.is_empty()) {
            place.shards[shard].stalled = Some((reading, inputs));
            self.pause(process, pause);
            return self.wake_shard_at(process, shard, self.now + pause);
        }
        let outputs = place.shards[shard].wake(self.now, reading, inputs);
        let clock = self.clocks[place.place];
        let next = place.shards[shard].next_wake(|reading| clock.true_time(reading));
        let next = if place.shards[shard].inbox.is_empty() { next } else { self.now + 1_000 };
        self.wake_shard_at(process, shard, next);
        self.take_outputs(process, shard, outputs);
        let mut checks = std::mem::take(&mut self.checks);
        let result = checks.after_wake(self, process, shard);
        self.checks = checks;
        if let Err(violation) = result {
            self.violation.get_or_insert(violation);
        }
    }

    fn take_outputs(&mut self, process: usize, shard: usize, outputs: Vec<Output>) {
        let actor = Actor::Shard { process, shard };
        for output in outputs {
            match output {
                Output::Send(number, bytes) => {
                    let end = self.network.get(number).end_of(actor);
                    self.send(number, end, bytes);
                }
                Output::Close(number) => {
                    let end = self.network.get(number).end_of(actor);
                    self.close(number, end);
                }
                Output::Dial(group, address) => {
                    self.dial(actor, Target::Process(address, shard), Purpose::Stream(group));
                }
                Output::Refused(order, reason) => {
                    let shard = shard_id(shard);
                    self.node(process, |node, sink| node.on_refused(order, shard, &reason, sink));
                }
                Output::Probed(order) => {
                    let shard = shard_id(shard);
                    self.node(process, |node, sink| node.on_probed(order, shard, sink));
                }
                Output::Published(reports) => {
                    let shard = shard_id(shard);
                    self.node(process, |node, sink| node.on_shard(shard, reports, sink));
                }
                Output::Acked(acked) => {
                    self.counts.acked += 1;
                    let mut checks = std::mem::take(&mut self.checks);
                    let result = checks.on_acked(self, process, shard, &acked);
                    self.checks = checks;
                    if let Err(violation) = result {
                        self.violation.get_or_insert(violation);
                    }
                }
                Output::Diverged(group) => {
                    self.fail(11, format!("the copy of group {group}, shard {shard} diverged"));
                }
            }
        }
    }

    /// Gives the process's node an input, and does what it wants done.
    fn node(
        &mut self,
        process: usize,
        give: impl FnOnce(&mut kv_core::node::Node, &mut Vec<NodeEffect>),
    ) {
        let mut effects = VecDeque::new();
        let mut sink = Vec::new();
        give(&mut self.processes[process].node, &mut sink);
        effects.extend(sink);
        while let Some(effect) = effects.pop_front() {
            match effect {
                NodeEffect::Install { order, view, other } => {
                    self.tell_shards(process, || Input::Install(order, view, other));
                }
                NodeEffect::Probe { order } => self.tell_shards(process, || Input::Probe(order)),
                NodeEffect::Exited { member } => {
                    self.tell_shards(process, || Input::Exited(member));
                }
                NodeEffect::Drain { order } => {
                    self.tell_shards(process, || Input::Drain);
                    effects.extend(self.outcome(process, order));
                }
                NodeEffect::Dump { order, .. } => {
                    self.tell_shards(process, || Input::Freeze);
                    effects.extend(self.outcome(process, order));
                }
                NodeEffect::Shutdown { .. } => self.kill(process),
                NodeEffect::Report(report) => self.send_report(process, &report),
            }
        }
    }

    fn outcome(&mut self, process: usize, order: OrderId) -> Vec<NodeEffect> {
        let mut sink = Vec::new();
        self.processes[process].node.on_outcome(order, Ok(0), &mut sink);
        sink
    }

    fn tell_shards(&mut self, process: usize, input: impl Fn() -> Input) {
        for shard in 0..self.processes[process].shards.len() {
            self.give(process, shard, input());
        }
    }

    fn send_report(&mut self, process: usize, report: &Report) {
        let mut bytes = Vec::new();
        report.write(&mut bytes);
        let actor = Actor::Node { process };
        // Reports go to whoever has connected for orders and lives.
        let open =
            self.network.live(|connection| connection.ends[1] == actor && connection.open[1]);
        for number in open {
            self.send(number, 1, bytes.clone());
        }
    }

    fn on_node_bytes(
        &mut self,
        process: usize,
        number: ConnectionNumber,
        end: usize,
        bytes: &[u8],
    ) {
        for (opcode, body) in self.frames(number, end, bytes) {
            match opcode {
                opcode::ADMITTED => {
                    if let Some((link, admitted)) = &mut self.processes[process].link
                        && *link == number
                    {
                        *admitted = true;
                    }
                }
                opcode::REFUSED if end == 0 => {
                    let Ok(Admission::Refused { reason }) = Admission::read(opcode, &body) else {
                        return;
                    };
                    self.close(number, 0);
                    self.processes[process].link = None;
                    self.processes[process].link_tries += 1;
                    // One that belongs to nobody ends itself.
                    if reason.contains("not started") || reason.contains("exited") {
                        return self.kill(process);
                    }
                }
                opcode::ORDERS_HELLO => {
                    let hello = OrdersHello::read(&body).expect("it was written so");
                    let before = self.processes[process].node.epoch();
                    match self.processes[process].node.on_orders_hello(&hello) {
                        Ok(()) => {
                            let after = self.processes[process].node.epoch();
                            if after.number < before.number {
                                self.fail(5, format!("epoch {before:?} was followed by {after:?}"));
                            }
                            let mut bytes = Vec::new();
                            write_orders_welcome(&mut bytes);
                            self.send(number, 1, bytes);
                        }
                        Err(_) => return self.close(number, 1),
                    }
                }
                _ => {
                    if let Ok(order) = Order::read(opcode, &body) {
                        self.node(process, |node, sink| node.on_order(order, sink));
                        if !self.processes[process].alive {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn on_beat(&mut self, process: usize) {
        self.after(BEAT, Happening::Beat(process));
        match self.processes[process].link {
            None => {
                let tries = self.processes[process].link_tries;
                self.dial(Actor::Node { process }, Target::Coordinator, Purpose::Link(tries));
            }
            Some((number, true)) => {
                let node = &self.processes[process].node;
                let heartbeat = Heartbeat {
                    incarnation: self.processes[process].member.incarnation,
                    epoch: node.epoch(),
                    resident_bytes: 0,
                    clients: 0,
                    requests: 0,
                    refused: 0,
                    replicas: node.reports().copied().collect(),
                };
                let mut bytes = Vec::new();
                ServerMessage::Heartbeat(heartbeat).write(&mut bytes);
                self.send(number, 0, bytes);
            }
            Some((_, false)) => {}
        }
    }

    fn on_spawned(&mut self, member: Member) {
        let place = usize::from(member.server.0);
        if self.running_at(place).is_some() {
            // Its ports are taken: it ends at once, and whoever started it sees that.
            let term = self.coordinator.term;
            return self.after(1_000_000, Happening::Proof(term, member));
        }
        let process = self.processes.len();
        let port = u16::try_from(1_000 + process).expect("processes are few");
        let host = u8::try_from(place + 1).expect("hosts are few");
        let address = SocketAddr::from((Ipv4Addr::new(10, 0, 0, host), port));
        let placement = Placement::new(self.config.servers, self.config.shards);
        let seed = self.random.any();
        self.processes.push(Process::new(CLUSTER, member, address, placement, seed));
        self.trace.note(self.now, format_args!("{member} starts as process {process}"));
        self.after(1_000, Happening::Beat(process));
        for shard in 0..usize::from(self.config.shards) {
            self.wake_shard_at(process, shard, self.now + 1_000);
        }
    }

    /// A process ends, by whatever cause.
    pub fn kill(&mut self, process: usize) {
        if !self.processes[process].alive {
            return;
        }
        let member = self.processes[process].member;
        self.trace.note(self.now, format_args!("{member} (process {process}) ends"));
        self.processes[process].alive = false;
        self.backlogs.remove(&process);
        let is_its = |actor: Actor| matches!(actor, Actor::Shard { process: p, .. } | Actor::Node { process: p } if p == process);
        for number in self.network.live(|c| is_its(c.ends[0]) || is_its(c.ends[1])) {
            for end in 0..2 {
                if is_its(self.network.get(number).ends[end]) {
                    self.close(number, end);
                }
            }
        }
        let (term, delay) = (self.coordinator.term, self.random.between(100_000, 5_000_000));
        self.after(delay, Happening::Proof(term, member));
    }

    /// A process does nothing for a while.
    pub fn pause(&mut self, process: usize, pause: u64) {
        let until = self.now + pause;
        self.processes[process].paused_until = until;
        self.at(until, Happening::Resume(Some(process)));
    }

    fn on_resume(&mut self, process: Option<usize>) {
        let waiting = match process {
            Some(process) if self.now < self.processes[process].paused_until => return,
            Some(process) => self.backlogs.remove(&process).unwrap_or_default(),
            None if self.now < self.coordinator.paused_until => return,
            None => std::mem::take(&mut self.coordinator_backlog),
        };
        for happening in waiting {
            self.dispatch(happening);
        }
    }

    // --- The coordinator -------------------------------------------------------------------------

    /// Gives the brain an input, and carries out what follows.
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

    fn schedule_brain(&mut self) {
        let clock = self.clocks[self.coordinator_host().0];
        let Some(cluster) = &self.coordinator.cluster else { return };
        let Some(due) = cluster.next_timeout() else { return };
        let at = clock.true_time(due).max(self.now + 100_000);
        if self.coordinator.wake_at.is_none_or(|known| at < known) {
            self.coordinator.wake_at = Some(at);
            self.at(at, Happening::WakeCoordinator(self.coordinator.term));
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        let term = self.coordinator.term;
        for effect in effects {
            match effect {
                Effect::Store { number, state } => {
                    self.coordinator.storing = Some((number, *state));
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
                    if let Some(number) = self.coordinator.orders.get(&to).copied() {
                        let mut bytes = Vec::new();
                        order.write(&mut bytes);
                        self.send(number, 0, bytes);
                    }
                }
                Effect::Kill { member, .. } => {
                    let cluster = self.coordinator.cluster.as_ref();
                    if cluster.is_some_and(|cluster| cluster.durable().names(member)) {
                        self.fail(20, format!("{member} is killed though a durable view names it"));
                    }
                    // A host may be hard to reach: whoever is to be killed may go on for a while.
                    let delay = match self.random.below(100) {
                        0..=24 if !self.is_healing => {
                            self.random.between(100_000_000, 3_000_000_000)
                        }
                        _ => 1_000_000,
                    };
                    self.after(delay, Happening::Killed(member));
                }
                Effect::ViewChanged { before, view } => {
                    self.trace.note(self.now, format_args!("{before:?} -> {view:?}"));
                    let checks = std::mem::take(&mut self.checks);
                    let result = checks.on_view(self, &before, &view);
                    self.checks = checks;
                    if let Err(violation) = result {
                        self.violation.get_or_insert(violation);
                    }
                    let is_dead = |member: Member| {
                        self.process_of(member).is_none_or(|p| !self.processes[p].alive)
                    };
                    let all_dead =
                        [before.primary, before.secondary()].into_iter().flatten().all(is_dead);
                    if view.primary.is_none() && !(self.config.double && all_dead) {
                        self.fail(
                            17,
                            format!("group {} is LOST though it need not be", view.group),
                        );
                    }
                }
                Effect::Recovery { server, step } => {
                    self.trace.note(self.now, format_args!("server {server}: step {step:?}"));
                }
                _ => {}
            }
        }
        self.schedule_brain();
    }

    fn on_stored(&mut self, term: u64, number: u64) {
        if term != self.coordinator.term {
            return;
        }
        if let Some((_, state)) = self.coordinator.storing.take_if(|(n, _)| *n == number) {
            self.coordinator.disk = Some(state);
            self.brain(|cluster, now, sink| cluster.on_stored(now, number, sink));
        }
    }

    fn on_coordinator_bytes(&mut self, number: ConnectionNumber, end: usize, bytes: &[u8]) {
        let Actor::Coordinator { term } = self.network.get(number).ends[end] else { return };
        if term != self.coordinator.term {
            return self.close(number, end);
        }
        for (opcode, body) in self.frames(number, end, bytes) {
            match opcode {
                opcode::STARTED | opcode::HEARTBEAT => {
                    self.on_server_message(number, opcode, &body)
                }
                opcode::ORDERS_WELCOME => {
                    let member = self.coordinator.orders.iter().find(|(_, n)| **n == number);
                    if let Some(member) = member.map(|(member, _)| *member) {
                        self.brain(|cluster, _, sink| cluster.on_orders_connected(member, sink));
                    }
                }
                opcode::REPORT => {
                    let report = Report::read(&body).expect("it was written so");
                    let member = self.coordinator.orders.iter().find(|(_, n)| **n == number);
                    if let Some(member) = member.map(|(member, _)| *member) {
                        self.brain(|cluster, now, sink| {
                            // A late or repeated report changes nothing.
                            let _ = cluster.on_report(now, member, report, sink);
                        });
                    }
                }
                _ => {}
            }
        }
    }

    fn on_server_message(&mut self, number: ConnectionNumber, opcode: u8, body: &[u8]) {
        match ServerMessage::read(opcode, body).expect("it was written so") {
            ServerMessage::Started(started) => {
                let link = self.coordinator.next_link();
                let result =
                    self.brain(|cluster, now, sink| cluster.on_started(now, link, &started, sink));
                let Some(result) = result else { return };
                let epoch = self.coordinator.cluster.as_ref().expect("it lives").config().epoch;
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
            ServerMessage::Heartbeat(heartbeat) => {
                let Some(&(link, Some(server))) = self.coordinator.links.get(&number) else {
                    return;
                };
                let speaks = heartbeat.incarnation;
                let taken = self.brain(|cluster, now, sink| {
                    let member = cluster.member(server);
                    (cluster.on_heartbeat(now, link, server, heartbeat, sink).is_ok(), member)
                });
                if let Some((true, member)) = taken
                    && member.incarnation != speaks
                {
                    self.fail(9, format!("a heartbeat of {speaks} was taken for {member}"));
                }
            }
            ServerMessage::DrainRequest => {}
        }
    }

    /// The coordinator's process ends.
    pub fn kill_coordinator(&mut self) {
        if self.coordinator.cluster.is_none() {
            return;
        }
        self.trace.note(self.now, format_args!("the coordinator ends"));
        let stored = self.random.per_mille(500);
        let term = self.coordinator.term;
        let cluster = self.coordinator.cluster.as_ref();
        if let Some(epoch) = cluster.map(|cluster| cluster.config().epoch)
            && let Some(process) = self.processes.iter().rev().find(|p| p.alive)
        {
            let (member, delay) = (process.member, self.random.between(1_000_000, 2_000_000_000));
            self.after(delay, Happening::Zombie(epoch, member));
        }
        self.coordinator.die(stored);
        self.coordinator_backlog.clear();
        let is_its = |actor: Actor| actor == Actor::Coordinator { term };
        for number in self.network.live(|c| is_its(c.ends[0]) || is_its(c.ends[1])) {
            let end = self.network.get(number).end_of(Actor::Coordinator { term });
            self.close(number, end);
        }
    }

    /// A hello of a coordinator that is dead by now, and was long on its way.
    fn on_zombie(&mut self, epoch: Epoch, member: Member) {
        let Some(process) = self.process_of(member).filter(|p| self.processes[*p].alive) else {
            return;
        };
        let from = Actor::Coordinator { term: 0 };
        let to = Actor::Node { process };
        let hosts = [self.coordinator_host(), Host(self.processes[process].place)];
        let number = self.network.connect([from, to], hosts);
        let mut bytes = Vec::new();
        OrdersHello { cluster: CLUSTER, epoch, to: member }.write(&mut bytes);
        self.send(number, 0, bytes);
        self.close(number, 0);
    }

    /// Another coordinator follows the dead one.
    pub fn restart_coordinator(&mut self) {
        if self.coordinator.cluster.is_some() {
            return;
        }
        let now = self.clock_of(self.coordinator_host());
        let mut effects = Vec::new();
        self.coordinator.restart(now, &mut effects);
        let term = self.coordinator.term;
        self.trace.note(self.now, format_args!("coordinator {term} starts"));
        self.carry_out(effects);
    }

    /// All cuts are healed.
    pub fn heal(&mut self) {
        for (number, to, bytes) in self.network.heal() {
            let at = self.network.arrival(&mut self.random, self.now, number, 1 - to);
            self.at(at, Happening::Arrive(number, to, bytes));
        }
        self.nemesis.is_cut = false;
    }

    // --- Clients ---------------------------------------------------------------------------------

    fn on_wake_client(&mut self, client: usize) {
        self.client_wakes[client] = self.client_wakes[client].filter(|at| *at > self.now);
        let now = self.now;
        if self.clients[client].map.is_none() {
            self.ask_map(client);
            return self.after(20_000_000, Happening::WakeClient(client));
        }
        let mut wishes = Vec::new();
        self.clients[client].wake(now, &mut wishes);
        if !self.is_healing && self.clients[client].flights.len() < self.clients[client].depth() {
            let plan = self.workload.plan(&mut self.random);
            let seen = self.clients[client].seen.get(&plan.key).copied();
            let (asked, condition, value) = match self.clients[client].is_reader {
                true => (crate::history::Asked::Read, Condition::Always, Vec::new()),
                false => self.workload.ask(&mut self.random, seen.as_ref()),
            };
            self.clients[client].begin(now, plan.slot, plan.key, asked, condition, value);
            self.clients[client].wake(now, &mut wishes);
        }
        self.grant(client, wishes);
        self.wake_client(client);
    }

    /// Sees to it that a client is woken when it wants to be, or to begin its next operation.
    fn wake_client(&mut self, client: usize) {
        let due = self.clients[client].next_wake();
        let begin = (!self.is_healing
            && self.clients[client].flights.len() < self.clients[client].depth())
        .then(|| {
            let think = if self.clients[client].is_reader { 10 * THINK } else { THINK };
            self.now + self.random.between(think / 2, think * 3 / 2)
        });
        let Some(at) = due.into_iter().chain(begin).min() else { return };
        let at = at.max(self.now + 10_000);
        if self.client_wakes[client].is_none_or(|known| at < known) {
            self.client_wakes[client] = Some(at);
            self.at(at, Happening::WakeClient(client));
        }
    }

    fn grant(&mut self, client: usize, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Map => self.ask_map(client),
                Wish::Send(address, shard, id, bytes) => {
                    self.send_request(client, address, shard, id, bytes);
                }
                Wish::Ended(_, flight, answered) => {
                    self.counts.note_operation(answered);
                    if flight.was_sent() {
                        let process = self.clients[client].process;
                        let entry = flight.entry(process, self.now, answered);
                        self.workload.note(flight.key, entry);
                        if answered == crate::history::Answered::InDoubt {
                            self.clients[client].process += 1;
                        }
                    }
                }
            }
        }
    }

    fn send_request(
        &mut self,
        client: usize,
        address: SocketAddr,
        shard: ShardId,
        id: u64,
        bytes: Vec<u8>,
    ) {
        let known = self.clients[client].connections.get(&(address, shard)).copied();
        let number = match known.filter(|number| self.network.is_open(*number, 0)) {
            Some(number) => number,
            None => {
                let process = self.processes.iter().rposition(|p| p.alive && p.address == address);
                let Some(process) = process else {
                    // Refused: asked again soon.
                    let now = self.now;
                    self.clients[client].note_connection(id, ConnectionNumber(usize::MAX));
                    return self.clients[client].on_closed(now, ConnectionNumber(usize::MAX));
                };
                let from = Actor::Client { client };
                let to = Actor::Shard { process, shard: usize::from(shard.0) };
                let hosts = [self.host_of(from), self.host_of(to)];
                let number = self.network.connect([from, to], hosts);
                self.clients[client].connections.insert((address, shard), number);
                let mut hello = Vec::new();
                Hello { cluster: CLUSTER, client: self.clients[client].id, shard }
                    .write(&mut hello);
                self.send(number, 0, hello);
                number
            }
        };
        self.clients[client].note_connection(id, number);
        self.send(number, 0, bytes);
    }

    fn ask_map(&mut self, client: usize) {
        let delay = self.random.between(50_000, 300_000);
        self.after(delay, Happening::AskMap(client));
    }

    fn on_ask_map(&mut self, client: usize) {
        let Some(cluster) = &self.coordinator.cluster else { return };
        let map = Box::new(cluster.map());
        let delay = self.random.between(50_000, 300_000);
        self.after(delay, Happening::Map(client, map));
    }

    fn on_client_bytes(
        &mut self,
        client: usize,
        number: ConnectionNumber,
        end: usize,
        bytes: &[u8],
    ) {
        let mut wishes = Vec::new();
        let (now, jitter) = (self.now, self.random.any());
        let rules = FrameRules::unchecked(MAX_ANSWER_BODY);
        let input = self.inputs.entry((number, end)).or_insert_with(|| FrameBuffer::new(rules));
        input.extend(bytes);
        while let Ok(Some(frame)) = input.next_frame() {
            if frame.opcode == client_opcode::ANSWER {
                let answer = Answer::read(frame.body).expect("it was written so");
                self.clients[client].on_answer(now, jitter, &answer, &mut wishes);
            }
        }
        self.grant(client, wishes);
        self.wake_client(client);
    }

    /// The whole frames that have come to an end of a control connection.
    fn frames(&mut self, number: ConnectionNumber, end: usize, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let rules = FrameRules::checked(MAX_CONTROL_BODY);
        let input = self.inputs.entry((number, end)).or_insert_with(|| FrameBuffer::new(rules));
        input.extend(bytes);
        let mut frames = Vec::new();
        while let Ok(Some(frame)) = input.next_frame() {
            frames.push((frame.opcode, frame.body.to_vec()));
        }
        frames
    }

    /// The server places of the ring.
    pub fn places(&self) -> impl Iterator<Item = ServerId> {
        (0..self.config.servers).map(ServerId)
    }
}

fn shard_id(shard: usize) -> ShardId {
    ShardId(u16::try_from(shard).expect("shards are few"))
}
