//! One executor: a shard, its sockets, and the order of the work in a wake-up, which is the same as in the engines
//! of the server.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kv_core::arena::SwitchedChunks;
use kv_core::hash::HashSecret;
use kv_core::mutations::{self, Mutation};
use kv_core::replica::{ConnectionId, InstallError, NoFullCopy, Replica, StreamError};
use kv_protocol::RedisMulti;
use kv_protocol::control_message::{ReplicaReport, ReplicaState};
use kv_protocol::ids::{GroupId, Member, OrderId, ShardId, Time, ViewVersion, WallTime};
use kv_protocol::key::Nonce;
use kv_protocol::map::Map;
use kv_protocol::view::View;
use kv_shard::{
    ConnectionMemory, DialTarget, EventKind, HelloBounds, Identity, InstallRefused, Port, Service,
    Shard, turn,
};

use super::engine::{Engine, Turn, WORK_A_WAKE};
use super::socket::Reader;
use super::tap::{Asked, SentResponse};
use crate::clock::Clock;
use crate::dump::Part;
use crate::invariants::{Violation, copies, leases, messages, slowness, views};
use crate::network::ConnectionNumber;

/// The interval at which a shard publishes its reports to the node, and enforces deadlines, in nanoseconds of true
/// time. Changes are published at once.
const PUBLISH_EVERY: u64 = 100_000_000;
/// The time between the clock readings of two wake-ups above which the executor counts as stalled.
const STOOD: Duration = Duration::from_millis(200);
/// The chunk size of the tables. It is small because a run creates many tables.
const CHUNK_BYTES: usize = 64 << 10;

/// An input of a shard.
#[derive(Debug)]
pub enum Input {
    /// A connection was accepted at this port. `Reader` is the way in which the other end reads.
    Accepted(ConnectionNumber, Port, Reader),
    /// A connection that another executor accepted, with the bytes received so far.
    Adopted(ConnectionNumber, Port, Reader, Vec<u8>),
    /// Bytes on a connection that was accepted or dialled.
    Bytes(ConnectionNumber, Vec<u8>),
    /// The other end of a connection has shut down its sending direction.
    EndOfInput(ConnectionNumber),
    /// The end of a connection.
    Closed(ConnectionNumber),
    /// The stream dialled for this group is connected.
    Dialled(ConnectionNumber, DialTarget),
    /// The dial for this group's stream has failed.
    DialFailed(DialTarget),
    /// An order to install a view, with the address of the other member.
    Install(OrderId, View, Option<SocketAddr>),
    /// A probe to respond to.
    Probe(OrderId),
    /// A proof of death.
    Exited(Member),
    /// An order to accept no new writes; pending ones still commit.
    Drain,
    /// An order to remove the entries of this group, under the view of this version.
    Flush(OrderId, GroupId, ViewVersion),
    /// A newer map of the cluster.
    Map(Arc<Map>),
    /// The dump with this number begins, or continues at this shard. The replicas freeze: they no longer accept,
    /// apply, send or commit writes.
    Dump(GroupId, u64),
}

impl Input {
    /// Returns whether the input comes from the process itself, not from the network.
    fn is_order(&self) -> bool {
        self.connection().is_none() && !matches!(self, Input::DialFailed(_))
    }

    /// Returns the connection to which the input belongs.
    pub fn connection(&self) -> Option<ConnectionNumber> {
        match self {
            Input::Accepted(number, ..)
            | Input::Adopted(number, ..)
            | Input::Bytes(number, _)
            | Input::EndOfInput(number)
            | Input::Closed(number)
            | Input::Dialled(number, _) => Some(*number),
            _ => None,
        }
    }
}

/// An effect of a shard's wake-up.
#[derive(Debug)]
pub enum Output {
    /// Send these bytes after the given work, in nanoseconds.
    Send(ConnectionNumber, Vec<u8>, u64),
    /// Close this connection.
    Close(ConnectionNumber),
    /// Shut down the sending direction of this connection.
    ShutDown(ConnectionNumber),
    /// Hand this connection, with its inputs, to the executor of this shard.
    HandOver(ConnectionNumber, ShardId, Vec<Input>),
    /// Dial this address for this target.
    Dial(DialTarget, SocketAddr),
    /// The view of this order could not be installed.
    Refused(OrderId, String),
    /// The shard has responded to a probe.
    Probed(OrderId),
    /// The current reports on the replicas, for the node.
    Published(Vec<ReplicaReport>),
    /// A request got its response.
    SentResponse(SentResponse),
    /// A shard's part of the dump with this number, or the reason why the shard must not be dumped.
    Dumped(u64, Result<Box<Part>, NoFullCopy>),
    /// An invariant was violated.
    Broken(Violation),
}

/// One executor.
pub struct Executor {
    /// The shipped shard.
    pub shard: Shard,
    /// The inputs since the last wake-up.
    pub inbox: VecDeque<Input>,
    /// The clock reading and the inputs of a wake-up that a pause interrupted.
    pub stalled: Option<(Time, VecDeque<Input>)>,
    /// The true time at which the executor read the clock for its last wake-up.
    pub read_at: u64,
    /// The true time until which a fault stops this executor.
    pub stopped_until: u64,
    /// The true time until which this executor is busy with its last wake-up.
    pub busy_until: u64,
    /// The true time until which this executor reads nothing from other servers. It still serves clients and
    /// responds to probes.
    pub deaf_until: u64,
    /// The true time of the next wake-up, if one is due.
    pub wake_at: Option<u64>,
    /// The processes of whose death this executor has received the proof.
    pub told_dead: BTreeSet<Member>,
    engine: Engine,
    published_at: u64,
    deadlines_at: u64,
    /// The clock reading of the last wake-up.
    woke_at: Time,
    /// The last wake-up in which a table was cleared or may have been cleared, by group.
    cleared: BTreeMap<GroupId, u64>,
    shown: BTreeMap<GroupId, (ReplicaState, ViewVersion, bool)>,
    noted: BTreeMap<GroupId, (ReplicaState, ViewVersion)>,
}

impl Executor {
    /// Creates an executor of a process, with empty tables.
    pub(super) fn new(
        identity: Identity,
        memory: &Arc<ConnectionMemory>,
        redis_multi: RedisMulti,
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
        let secret = match mutations::is_open(Mutation::ScanInAnotherOrder) {
            true => HashSecret::new(seed),
            false => HashSecret::of_cluster(identity.key),
        };
        let mut service = Service::new(identity, nonces, memory, secret, chunks);
        service.set_redis_multi(redis_multi);
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
            engine: Engine::new(),
            published_at: 0,
            deadlines_at: 0,
            woke_at: Time::default(),
            cleared: BTreeMap::new(),
            shown: BTreeMap::new(),
            noted: BTreeMap::new(),
        }
    }

    /// Returns the replicas.
    pub fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.shard.service.replicas()
    }

    /// Returns the number of client connections.
    pub fn clients(&self) -> usize {
        self.engine.sockets.clients()
    }

    /// Runs one wake-up that begins at the clock reading `now` and the wall time `wall`, and serves the inputs. Returns
    /// its effects, and its work in nanoseconds.
    pub fn wake(
        &mut self,
        true_now: u64,
        clock: Clock,
        (now, wall): (Time, WallTime),
        inputs: VecDeque<Input>,
    ) -> (Vec<Output>, u64) {
        self.engine.wakes += 1;
        self.engine.work = WORK_A_WAKE;
        let has_stood = now.since(self.woke_at) > STOOD;
        self.woke_at = now;
        let active = self.active_streams();
        self.shard.handle_tick(now, wall);
        if has_stood && true_now >= self.deaf_until {
            self.check_judgement(&active, &inputs);
        }
        self.dial_due(now);
        for input in inputs {
            match input.is_order() {
                true => self.carry_out(now, input),
                false => self.engine.queue(&mut self.shard, input),
            }
        }
        for id in self.engine.sockets.drained(true_now) {
            self.shard.mark_dirty(id);
        }
        if true_now >= self.deadlines_at {
            self.deadlines_at = true_now + PUBLISH_EVERY;
            let ids: Vec<ConnectionId> = self.engine.sockets.ids().collect();
            self.shard.enforce_deadlines(now, ids.into_iter());
        }
        self.shard.begin_wake_up(now);
        let is_deaf = true_now < self.deaf_until;
        let mut turn = Turn { engine: &mut self.engine, true_now, clock, is_deaf };
        turn::run(&mut turn, &mut self.shard, now, true);
        self.judge();
        self.dial_due(now);
        self.take_events();
        self.publish(true_now, now);
        (std::mem::take(&mut self.engine.output), self.engine.work)
    }

    /// Returns the groups for which this executor has an active primary, with the connections of their streams.
    fn active_streams(&self) -> Vec<(GroupId, ConnectionNumber)> {
        let service = &self.shard.service;
        let active = service.replicas().filter(|replica| replica.state() == ReplicaState::Active);
        let streams = active.filter_map(|replica| {
            let id = service.stream(replica.group())?;
            Some((replica.group(), self.engine.sockets.number(id)?))
        });
        streams.collect()
    }

    /// Checks that no candidate was dropped whose messages had arrived while this executor was stalled.
    fn check_judgement(
        &mut self,
        active: &[(GroupId, ConnectionNumber)],
        inputs: &VecDeque<Input>,
    ) {
        for (group, stream) in active {
            let replica = self.shard.service.replica(*group);
            let has_failed = replica.is_some_and(|r| r.state() == ReplicaState::CopyFailed);
            let has_said =
                |input: &Input| matches!(input, Input::Bytes(number, _) if number == stream);
            if has_failed && inputs.iter().any(has_said) {
                self.engine.output.push(Output::Broken(slowness::candidate_went_unread(*group)));
            }
        }
    }

    fn dial_due(&mut self, now: Time) {
        for (target, address) in self.shard.due_dials(now) {
            self.engine.output.push(Output::Dial(target, address));
        }
    }

    fn carry_out(&mut self, now: Time, order: Input) {
        let service = &mut self.shard.service;
        match order {
            Input::Install(order, view, other) => {
                let Err(refused) = service.install(now, view, other) else { return };
                if let InstallRefused::Replica(InstallError::Contradiction { group, version }) =
                    refused
                {
                    self.engine
                        .output
                        .push(Output::Broken(views::order_contradicts(group, version)));
                }
                self.engine.output.push(Output::Refused(order, refused.to_string()));
            }
            Input::Probe(order) => {
                // A frozen process is about to exit. It does not respond to a probe, because no server may be
                // removed on its report.
                if !service.is_frozen() {
                    self.engine.output.push(Output::Probed(order));
                }
            }
            Input::Exited(member) => {
                self.told_dead.insert(member);
                service.handle_exited(now, member);
            }
            Input::Drain => service.drain(),
            Input::Flush(order, group, view) => service.begin_flush(order, group, view),
            Input::Map(map) => service.set_map(map),
            Input::Dump(group, number) => {
                service.freeze();
                let part = service.replica(group).map(Part::of);
                self.engine.output.extend(part.map(|part| Output::Dumped(number, part)));
            }
            _ => unreachable!("inputs of connections are queued"),
        }
    }

    /// Checks the end of a wake-up: the responses, and the streams that the other ends have closed.
    fn judge(&mut self) {
        for (responded, asked) in std::mem::take(&mut self.engine.fresh) {
            let checked = self.check_response(&responded, &asked);
            self.engine.output.extend(checked.err().map(Output::Broken));
        }
        for number in std::mem::take(&mut self.engine.ended) {
            if self.engine.sockets.id(number).is_some() {
                self.engine.output.push(Output::Broken(messages::stream_is_kept(number)));
            }
        }
        for replica in self.shard.service.replicas() {
            if matches!(replica.state(), ReplicaState::Out | ReplicaState::Candidate) {
                self.cleared.insert(replica.group(), self.engine.wakes);
            }
        }
    }

    /// Checks that a replica may send the response that it has sent in this wake-up.
    fn check_response(&self, responded: &SentResponse, asked: &Asked) -> Result<(), Violation> {
        let Some(replica) = self.shard.service.replica(responded.group) else { return Ok(()) };
        let sight = replica.inspect();
        messages::only_primaries_respond(responded.group, &sight, responded.status)?;
        if asked.is_read {
            leases::lease_is_checked(responded.group, &sight, asked.at, responded.status)?;
        }
        Ok(())
    }

    /// Checks the events of a wake-up.
    fn take_events(&mut self) {
        for event in self.shard.service.take_events() {
            let (group, error) = match event.kind {
                EventKind::StreamBroken { group, error } => (group, error),
                EventKind::ValueLost { group, connection } => {
                    let mut closed = self.engine.closed.iter();
                    let closed = closed.find(|(id, _)| *id == connection).map(|(_, socket)| socket);
                    let socket = closed.or_else(|| self.engine.sockets.look_up(connection));
                    let asked = socket.and_then(|socket| socket.tap.oldest(group));
                    let cleared = self.cleared.get(&group).copied().unwrap_or(0);
                    if asked.is_some_and(|asked| asked > cleared) {
                        self.engine
                            .output
                            .push(Output::Broken(messages::pinned_value_is_gone(group)));
                    }
                    continue;
                }
                _ => continue,
            };
            let view =
                self.shard.service.replica(group).and_then(|replica| replica.view().copied());
            let is_of_the_dead = view.is_some_and(|view| {
                let holders = [view.primary, view.other()];
                holders.iter().flatten().any(|holder| self.told_dead.contains(holder))
            });
            let checked = messages::streams_are_whole(group, &error, is_of_the_dead);
            self.engine.output.extend(checked.err().map(Output::Broken));
            if let StreamError::Diverged { sn } = error {
                self.engine.output.push(Output::Broken(copies::copy_differs(group, sn)));
            }
        }
        self.engine.closed.clear();
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
            self.engine.output.push(Output::Published(reports));
        }
    }

    /// Returns the replicas whose state or view version has changed since the last call.
    pub fn new_roles(&mut self) -> Vec<(GroupId, ReplicaState, ViewVersion)> {
        let Executor { shard, noted, .. } = self;
        let roles = shard.service.replicas().filter_map(|replica| {
            let (group, role) = (replica.group(), (replica.state(), replica.view_version()));
            (noted.insert(group, role) != Some(role)).then_some((group, role.0, role.1))
        });
        roles.collect()
    }

    /// Returns the true time at which the executor last published.
    pub(crate) fn published_at(&self) -> u64 {
        self.published_at
    }

    /// Returns the true time of the next wake-up, after one at `true_now`. `clock` converts a clock reading to
    /// true time.
    pub fn next_wake(&self, true_now: u64, clock: impl Fn(Time) -> u64) -> u64 {
        let has_work = !self.inbox.is_empty()
            || self.engine.has_work()
            || self.shard.has_dirty()
            || self.shard.has_readers()
            || self.shard.postponed() > 0;
        if has_work {
            return self.busy_until.max(true_now + 1_000);
        }
        let service = &self.shard.service;
        let timers = [service.poll_timeout(), service.poll_dial()].into_iter().flatten().map(clock);
        let hears = self.engine.has_streams().then_some(self.deaf_until);
        let publish = self.published_at + PUBLISH_EVERY;
        timers.chain(hears).chain(self.engine.sockets.next_drained()).fold(publish, u64::min)
    }
}
