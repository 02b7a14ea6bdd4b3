//! One executor: a shard, its sockets, and the order of the work in a wake-up, as in the engines of the server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kv_core::arena::SwitchedChunks;
use kv_core::hash::HashSecret;
use kv_core::replica::{ConnectionId, InstallError, NoFullCopy, Replica, StreamError};
use kv_protocol::control_message::{ReplicaReport, ReplicaState};
use kv_protocol::ids::{GroupId, Member, OrderId, ShardId, Time, ViewVersion};
use kv_protocol::key::Nonce;
use kv_protocol::view::View;
use kv_shard::{
    Address, ConnectionMemory, EventKind, Fate, HelloBounds, Identity, InstallRefused, Port,
    Service, Shard,
};

use super::socket::Sockets;
use super::tap::Answered;
use crate::dump::Part;
use crate::invariants::{
    Violation, copy_is_equal, lease_is_checked, nothing_old, one_view, only_primaries_answer,
    streams_are_whole,
};
use crate::network::ConnectionNumber;

/// The interval at which a shard publishes its reports to the node, and enforces deadlines, in nanoseconds of true
/// time. Changes are published at once.
const PUBLISH_EVERY: u64 = 100_000_000;
/// The work of a wake-up, of an input, and of each byte received or sent, in nanoseconds.
const WORK_A_WAKE: u64 = 1_000;
const WORK_AN_INPUT: u64 = 500;
const WORK_A_BYTE: u64 = 3;
/// The time for which a wake-up serves clients, in nanoseconds.
const CLIENTS_TIME: u64 = 1_000_000;
/// Small chunks, because a run creates many tables.
const CHUNK_BYTES: usize = 64 << 10;

/// An input of a shard.
#[derive(Debug)]
pub enum Input {
    /// A connection was accepted at this port.
    Accepted(ConnectionNumber, Port),
    /// A connection that another executor accepted, with the bytes received so far.
    Adopted(ConnectionNumber, Port, Vec<u8>),
    /// Bytes on a connection that was accepted or dialled.
    Bytes(ConnectionNumber, Vec<u8>),
    /// The end of a connection.
    Closed(ConnectionNumber),
    /// The stream dialled for this group is connected.
    Dialled(ConnectionNumber, GroupId),
    /// The dial for this group's stream has failed.
    DialFailed(GroupId),
    /// An order to install a view, with the address of the other member.
    Install(OrderId, View, Option<SocketAddr>),
    /// A probe to respond to.
    Probe(OrderId),
    /// A proof of death.
    Exited(Member),
    /// An order to accept no new writes; pending ones still commit.
    Drain,
    /// The dump of this number begins, or continues at this shard. The replicas freeze: they take, apply, send
    /// and commit no write any more.
    Dump(GroupId, u64),
}

impl Input {
    /// Returns the connection to which it belongs.
    fn connection(&self) -> Option<ConnectionNumber> {
        match self {
            Input::Accepted(number, _)
            | Input::Adopted(number, ..)
            | Input::Bytes(number, _)
            | Input::Closed(number)
            | Input::Dialled(number, _) => Some(*number),
            _ => None,
        }
    }
}

/// An effect of a shard's wake-up.
#[derive(Debug)]
pub enum Output {
    /// Send these bytes.
    Send(ConnectionNumber, Vec<u8>),
    /// Close this connection.
    Close(ConnectionNumber),
    /// Hand this connection, with the bytes received so far and its further inputs, to the executor of this shard.
    HandOver(ConnectionNumber, ShardId, Port, Vec<u8>, Vec<Input>),
    /// Dial this address for this group's stream.
    Dial(GroupId, SocketAddr),
    /// The view of this order could not be installed.
    Refused(OrderId, String),
    /// A probe was responded to.
    Probed(OrderId),
    /// The current reports on the replicas, for the node.
    Published(Vec<ReplicaReport>),
    /// A request got its response.
    Answered(Answered),
    /// A shard's part of the dump of this number, or the reason why there must be none.
    Dumped(u64, Result<Box<Part>, NoFullCopy>),
    /// A promise was broken.
    Broken(Violation),
}

/// A message of a stream that the shard must not accept: it must close the stream.
struct Suspect {
    id: ConnectionId,
    group: GroupId,
    view: ViewVersion,
    installed: ViewVersion,
}

/// One executor.
pub struct Executor {
    /// The shard that ships.
    pub shard: Shard,
    /// The inputs since the last wake-up.
    pub inbox: VecDeque<Input>,
    /// The clock reading and the inputs of a wake-up that a pause interrupted.
    pub stalled: Option<(Time, VecDeque<Input>)>,
    /// The true time at which it read the clock for its last wake-up.
    pub read_at: u64,
    /// The true time until which a fault stops this executor.
    pub stopped_until: u64,
    /// The true time until which this executor is busy with its last wake-up.
    pub busy_until: u64,
    /// The true time until which it reads nothing from other servers; it still serves clients and responds to
    /// probes.
    pub deaf_until: u64,
    /// The true time of the next wake-up, if one is due.
    pub wake_at: Option<u64>,
    /// The processes of whose deaths it was informed.
    pub told_dead: BTreeSet<Member>,
    sockets: Sockets,
    /// Received from streams, and from all other connections, and not served yet.
    streams: VecDeque<Input>,
    others: VecDeque<Input>,
    published_at: u64,
    deadlines_at: u64,
    /// The number of wake-ups.
    wakes: u64,
    /// The work of this wake-up so far, in nanoseconds.
    work: u64,
    output: Vec<Output>,
    suspects: Vec<Suspect>,
    shown: BTreeMap<GroupId, (ReplicaState, ViewVersion, bool)>,
    noted: BTreeMap<GroupId, (ReplicaState, ViewVersion)>,
}

impl Executor {
    /// Creates an executor of a process, with empty tables.
    pub(super) fn new(
        identity: Identity,
        memory: &Arc<ConnectionMemory>,
        has_slow_readers: bool,
        seed: u64,
        is_exhausted: &Arc<AtomicBool>,
    ) -> Executor {
        let mut nonce = u128::from(seed) << 64 | u128::from(identity.shard.0) << 48;
        let nonces = Box::new(move || {
            nonce += 1;
            Ok(Nonce(nonce))
        });
        let chunks =
            || Box::new(SwitchedChunks::new(CHUNK_BYTES, Arc::clone(is_exhausted))) as Box<_>;
        let memory = Arc::clone(memory);
        let service = Service::new(identity, nonces, memory, HashSecret::new(seed), chunks);
        Executor {
            shard: Shard::new(service, HelloBounds::WIDEST),
            inbox: VecDeque::new(),
            stalled: None,
            read_at: 0,
            stopped_until: 0,
            busy_until: 0,
            deaf_until: 0,
            wake_at: None,
            told_dead: BTreeSet::new(),
            sockets: Sockets::new(has_slow_readers),
            streams: VecDeque::new(),
            others: VecDeque::new(),
            published_at: 0,
            deadlines_at: 0,
            wakes: 0,
            work: 0,
            output: Vec::new(),
            suspects: Vec::new(),
            shown: BTreeMap::new(),
            noted: BTreeMap::new(),
        }
    }

    /// Returns its replicas.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.shard.service.replicas()
    }

    /// Runs one wake-up: serves the inputs with one reading of the clock. Returns its effects and its work in
    /// nanoseconds.
    pub fn wake(
        &mut self,
        true_now: u64,
        now: Time,
        inputs: VecDeque<Input>,
    ) -> (Vec<Output>, u64) {
        self.wakes += 1;
        self.work = WORK_A_WAKE;
        self.shard.on_tick(now);
        self.dial_due(now);
        self.shard.begin_wake_up(now);
        let mut orders = VecDeque::new();
        for input in inputs {
            match input.connection() {
                None if !matches!(input, Input::DialFailed(_)) => orders.push_back(input),
                None => self.streams.push_back(input),
                Some(number) if self.is_of_stream(number, &input) => self.streams.push_back(input),
                Some(_) => self.others.push_back(input),
            }
        }
        for order in orders {
            self.carry_out(now, order);
        }
        for id in self.sockets.drained(true_now) {
            self.shard.mark_dirty(id);
        }
        if true_now >= self.deaf_until {
            while let Some(input) = self.streams.pop_front() {
                self.receive(now, input);
            }
        }
        self.settle(true_now, now, true);
        let until = self.work + CLIENTS_TIME;
        while self.work < until
            && let Some(input) = self.others.pop_front()
        {
            self.receive(now, input);
        }
        self.settle(true_now, now, false);
        self.serve_readers(true_now, now);
        self.settle(true_now, now, false);
        if true_now >= self.deadlines_at {
            self.deadlines_at = true_now + PUBLISH_EVERY;
            let ids: Vec<ConnectionId> = self.sockets.ids().collect();
            self.shard.enforce_deadlines(now, ids.into_iter());
            self.settle(true_now, now, false);
        }
        self.dial_due(now);
        self.take_events();
        self.publish(true_now, now);
        (std::mem::take(&mut self.output), self.work)
    }

    fn dial_due(&mut self, now: Time) {
        for (group, address) in self.shard.due_dials(now) {
            self.output.push(Output::Dial(group, address));
        }
    }

    /// Returns whether an input belongs to a stream. A connection that has just become one keeps its inputs in order.
    fn is_of_stream(&mut self, number: ConnectionNumber, input: &Input) -> bool {
        if matches!(input, Input::Dialled(..)) {
            return true;
        }
        let waits =
            |queue: &VecDeque<Input>| queue.iter().any(|input| input.connection() == Some(number));
        let is_stream = self.sockets.id(number).is_some_and(|id| self.shard.is_stream(id));
        waits(&self.streams) || is_stream && !waits(&self.others)
    }

    fn carry_out(&mut self, now: Time, order: Input) {
        let service = &mut self.shard.service;
        match order {
            Input::Install(order, view, other) => {
                let Err(refused) = service.install(now, view, other) else { return };
                if let InstallRefused::Replica(InstallError::Contradiction { group, version }) =
                    refused
                {
                    self.output.push(Output::Broken(one_view::contradiction(group, version)));
                }
                self.output.push(Output::Refused(order, refused.to_string()));
            }
            Input::Probe(order) => {
                // No server may be removed because of a process that is about to exit.
                if !service.is_frozen() {
                    self.output.push(Output::Probed(order));
                }
            }
            Input::Exited(member) => {
                self.told_dead.insert(member);
                service.on_exited(now, member);
            }
            Input::Drain => service.drain(),
            Input::Dump(group, number) => {
                service.freeze();
                let part = service.replica(group).map(Part::of);
                self.output.extend(part.map(|part| Output::Dumped(number, part)));
            }
            _ => unreachable!("it is an input of a connection"),
        }
    }

    /// Serves an input of a connection.
    fn receive(&mut self, now: Time, input: Input) {
        self.work += WORK_AN_INPUT;
        match input {
            Input::Accepted(number, port) => {
                let id = self.shard.open_greeting(now, port);
                self.shard.set_address(id, Address::of(IpAddr::V4(Ipv4Addr::LOCALHOST)));
                self.open(number, id, port);
            }
            Input::Adopted(number, port, received) => {
                let id = self.shard.adopt(now, port, &[]);
                self.shard.set_address(id, Address::of(IpAddr::V4(Ipv4Addr::LOCALHOST)));
                self.open(number, id, port);
                self.on_bytes(now, id, &received);
            }
            Input::Dialled(number, group) => {
                let id = self.shard.open_stream(now, group);
                self.open(number, id, Port::Servers);
            }
            Input::DialFailed(group) => {
                self.shard.service.on_dial_failed(now, group, "nothing listens there");
            }
            Input::Bytes(number, bytes) => {
                if let Some(id) = self.sockets.id(number) {
                    self.on_bytes(now, id, &bytes);
                }
            }
            Input::Closed(number) => {
                if let Some(id) = self.sockets.id(number) {
                    self.shard.on_end_of_input(now, id);
                    self.shard.mark_dirty(id);
                }
            }
            _ => unreachable!("it is an order"),
        }
    }

    fn open(&mut self, number: ConnectionNumber, id: ConnectionId, port: Port) {
        self.sockets.open(id, number, port);
        self.shard.mark_dirty(id);
    }

    fn on_bytes(&mut self, now: Time, id: ConnectionId, bytes: &[u8]) {
        self.work += bytes.len() as u64 * WORK_A_BYTE;
        let placement = self.shard.service.identity.placement;
        let Some(socket) = self.sockets.get(id) else { return };
        let views = socket.tap.received(self.wakes, placement, bytes);
        if views.is_empty() {
            self.shard.on_bytes(now, id, bytes);
            return self.shard.mark_dirty(id);
        }
        let installed: Vec<(GroupId, ViewVersion)> =
            self.replicas().map(|replica| (replica.group(), replica.view_version())).collect();
        self.shard.on_bytes(now, id, bytes);
        self.shard.mark_dirty(id);
        let service = &self.shard.service;
        let stream = installed.into_iter().find(|(group, _)| service.stream(*group) == Some(id));
        if let Some((group, installed)) = stream.filter(|_| !service.is_frozen()) {
            let views = views.into_iter().filter(|view| *view != installed);
            self.suspects.extend(views.map(|view| Suspect { id, group, view, installed }));
        }
    }

    /// Ends a wake-up, or the streams' part of it: sends all output, and carries out the fates of connections.
    fn settle(&mut self, true_now: u64, now: Time, only_streams: bool) {
        self.shard.finish_wake_up(now);
        loop {
            let next = match only_streams {
                true => self.shard.next_dirty_stream(),
                false => self.shard.next_dirty(),
            };
            let Some(id) = next else { return };
            self.see_to(true_now, now, id);
        }
    }

    fn see_to(&mut self, true_now: u64, now: Time, id: ConnectionId) {
        let Some(socket) = self.sockets.get(id) else { return };
        let (number, port) = (socket.number, socket.port);
        if !socket.is_blocked() {
            let unsent = self.shard.unsent(id).len();
            let taken = socket.offer(true_now, unsent);
            if taken > 0 {
                let bytes = self.shard.unsent(id)[..taken].to_vec();
                self.shard.on_sent(now, id, taken);
                self.send(now, id, bytes);
            }
        }
        let fate = self.shard.fate(id);
        let suspects = self.suspects.extract_if(.., |suspect| suspect.id == id);
        if matches!(fate, Fate::Read | Fate::Wait) {
            for Suspect { group, view, installed, .. } in suspects {
                let checked = nothing_old::message(group, view, installed);
                self.output.extend(checked.err().map(Output::Broken));
            }
        } else {
            suspects.for_each(drop);
        }
        match fate {
            Fate::Read | Fate::Wait => {}
            // The simulated network closes both directions at once.
            Fate::Close | Fate::Shut => {
                self.shard.close(now, id);
                self.sockets.remove(id);
                self.output.push(Output::Close(number));
            }
            Fate::HandOver(wanted) if wanted == self.shard.service.identity.shard => {
                self.shard.adopt_greeting(now, id);
                self.shard.mark_dirty(id);
            }
            Fate::HandOver(wanted) => {
                let greeting = self.shard.take_greeting(id);
                self.shard.close(now, id);
                self.sockets.remove(id);
                let mut rest = Vec::new();
                for queue in [&mut self.others, &mut self.inbox] {
                    let inputs = std::mem::take(queue).into_iter();
                    let (its, others): (VecDeque<Input>, VecDeque<Input>) =
                        inputs.partition(|input| input.connection() == Some(number));
                    *queue = others;
                    rest.extend(its);
                }
                let received = greeting.map(|(_, received)| received).unwrap_or_default();
                self.output.push(Output::HandOver(number, wanted, port, received, rest));
            }
        }
    }

    fn serve_readers(&mut self, true_now: u64, now: Time) {
        while let Some(transmit) = self.shard.poll_transmit(now) {
            let id = transmit.id;
            let mut bytes: Vec<u8> =
                transmit.parts.iter().flat_map(|part| part.iter()).copied().collect();
            let taken =
                self.sockets.get(id).map_or(0, |socket| socket.offer(true_now, bytes.len()));
            bytes.truncate(taken);
            self.shard.on_transmitted(now, taken);
            self.send(now, id, bytes);
        }
    }

    /// Sends bytes of a connection, and checks the responses among them.
    fn send(&mut self, now: Time, id: ConnectionId, bytes: Vec<u8>) {
        self.work += bytes.len() as u64 * WORK_A_BYTE;
        let Some(socket) = self.sockets.get(id) else { return };
        let number = socket.number;
        for (answered, asked) in socket.tap.sent(number, &bytes) {
            // A response that waited for other bytes may be of a time at which the replica was another.
            if asked.wake == self.wakes {
                let checked = self.check_answer(now, &answered, asked.is_read);
                self.output.extend(checked.err().map(Output::Broken));
            }
            self.output.push(Output::Answered(answered));
        }
        self.output.push(Output::Send(number, bytes));
    }

    /// Checks that a replica may send the response that it has just sent to a request of this wake-up.
    fn check_answer(&self, now: Time, answered: &Answered, is_read: bool) -> Result<(), Violation> {
        let Some(replica) = self.shard.service.replica(answered.group) else { return Ok(()) };
        let sight = replica.inspect();
        only_primaries_answer::check(answered.group, &sight, answered.status)?;
        if is_read {
            lease_is_checked::check(answered.group, &sight, now, answered.status)?;
        }
        Ok(())
    }

    /// Judges the events of a wake-up.
    fn take_events(&mut self) {
        for event in self.shard.service.take_events() {
            let EventKind::StreamBroken { group, error } = event.kind else { continue };
            let view =
                self.shard.service.replica(group).and_then(|replica| replica.view().copied());
            let is_of_the_dead = view.is_some_and(|view| {
                let holders = [view.primary, view.other()];
                holders.iter().flatten().any(|holder| self.told_dead.contains(holder))
            });
            let checked = streams_are_whole::refused(group, &error, is_of_the_dead);
            self.output.extend(checked.err().map(Output::Broken));
            if let StreamError::Diverged { sn } = error {
                self.output.push(Output::Broken(copy_is_equal::differs(group, sn)));
            }
        }
    }

    fn publish(&mut self, true_now: u64, now: Time) {
        let mut is_news = true_now >= self.published_at + PUBLISH_EVERY;
        let reports: Vec<ReplicaReport> = self.shard.service.reports(now).collect();
        for report in &reports {
            let shown = (report.state, report.view, report.connected);
            is_news |= self.shown.insert(report.group, shown) != Some(shown);
        }
        if is_news {
            self.published_at = true_now;
            self.output.push(Output::Published(reports));
        }
    }

    /// Returns the roles of the replicas that have changed since the last call.
    pub fn new_roles(&mut self) -> Vec<(GroupId, ReplicaState, ViewVersion)> {
        let Executor { shard, noted, .. } = self;
        let roles = shard.service.replicas().filter_map(|replica| {
            let (group, role) = (replica.group(), (replica.state(), replica.view_version()));
            (noted.insert(group, role) != Some(role)).then_some((group, role.0, role.1))
        });
        roles.collect()
    }

    /// Returns the true time at which it last published.
    pub(crate) fn published_at(&self) -> u64 {
        self.published_at
    }

    /// Returns the true time of its next wake-up, after one at `true_now`; `clock` converts a clock reading to true
    /// time.
    pub fn next_wake(&self, true_now: u64, clock: impl Fn(Time) -> u64) -> u64 {
        let has_work = !self.inbox.is_empty()
            || !self.others.is_empty()
            || self.shard.has_dirty()
            || self.shard.has_readers();
        if has_work {
            return true_now + 1_000;
        }
        let service = &self.shard.service;
        let timers = [service.next_timeout(), service.next_dial()].into_iter().flatten().map(clock);
        let hears = (!self.streams.is_empty()).then_some(self.deaf_until);
        let publish = self.published_at + PUBLISH_EVERY;
        timers.chain(hears).chain(self.sockets.next_drained()).fold(publish, u64::min)
    }
}
