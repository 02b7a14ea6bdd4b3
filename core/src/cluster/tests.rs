//! Scenarios of a whole cluster, as sequences of inputs and effects.

mod faults;
mod flushing;
mod leaving;
mod moving;
mod random;
mod recovering;
mod restoring;
mod ring;
mod shown;
mod stopping;
mod storing;
mod verdicts;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use kv_protocol::BootId;
use kv_protocol::control_message::{
    DumpedBytes, Following, Heartbeat, Order, OrderKind, ReplicaReport, ReplicaState, Report,
};
use kv_protocol::status::ClusterState;
use kv_protocol::{SequenceNumber, ShardId};

use super::*;

const SILENCE: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(5);
const CLUSTER: ClusterId = ClusterId(7);

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

/// A cluster, the time, and servers that act only when a test makes them act.
struct World {
    cluster: Cluster,
    now: Time,
    effects: Vec<Effect>,
    orders: Vec<(Member, Order)>,
    /// Stores that are not complete yet.
    stores: VecDeque<(u64, DurableState)>,
    /// True if stores wait for the test to complete them.
    keeps_stores: bool,
    on_disk: Option<DurableState>,
    kept: Vec<Effect>,
    /// The first process at place 1 (server A).
    first_a: Option<Member>,
    /// Effects that a run has processed.
    seen: Vec<Effect>,
    /// The servers whose messages no other server receives.
    unheard: Vec<ServerId>,
    /// The non-zero silences in milliseconds, by (receiver, sender).
    silences: BTreeMap<(ServerId, ServerId), u32>,
    /// The `following` value that the secondaries and candidates of a server report.
    following: BTreeMap<ServerId, Following>,
}

fn config(servers: u16, term: u64) -> ClusterConfig {
    ClusterConfig {
        hash_tags: false,
        cluster: CLUSTER,
        epoch: Epoch { number: term, boot: BootId(8 + term) },
        servers,
        shards: 2,
        seed: 100 + term,
        on_double_fault: DoubleFault::Isolate,
        failure_timeout: FailureTimeout::new(SILENCE),
        start_timeout: Duration::from_secs(60),
        stop_timeout: TIMEOUT,
    }
}

impl World {
    fn new(servers: u16) -> World {
        let mut effects = Vec::new();
        let cluster = Cluster::found(at(0), config(servers, 1), &mut effects);
        let mut world = World {
            cluster,
            now: at(0),
            effects,
            orders: Vec::new(),
            stores: VecDeque::new(),
            keeps_stores: false,
            on_disk: None,
            kept: Vec::new(),
            unheard: Vec::new(),
            silences: BTreeMap::new(),
            following: BTreeMap::new(),
            seen: Vec::new(),
            first_a: None,
        };
        world.collect();
        let spawned = world.effects.iter().filter(|e| matches!(e, Effect::Spawn { .. })).count();
        assert_eq!(spawned, usize::from(servers), "spawned once their incarnations are durable");
        world.effects.clear();
        world
    }

    fn serving(servers: u16) -> World {
        let mut world = World::new(servers);
        for id in world.ids() {
            world.start(id);
        }
        world.report_all();
        assert_eq!(world.take().last(), Some(&Effect::Serving));
        world.first_a = Some(world.cluster.member(ServerId(1)));
        world
    }

    fn ids(&self) -> Vec<ServerId> {
        (0..self.cluster.count()).map(ServerId).collect()
    }

    fn started(&self, id: ServerId) -> Started {
        Started {
            cluster: CLUSTER,
            member: self.cluster.member(id),
            pid: 1_000 + u32::from(id.0),
            start_time: 5,
            namespace: kv_protocol::PidNamespace(6),
            shards: 2,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            clients_port: 3_000 + id.0,
            servers_port: 4_000 + id.0,
            coord_port: 5_000 + id.0,
            epoch: Epoch::default(),
        }
    }

    fn link(id: ServerId) -> LinkId {
        LinkId(u64::from(id.0))
    }

    fn start(&mut self, id: ServerId) {
        let started = self.started(id);
        self.cluster.on_started(self.now, World::link(id), &started, &mut self.effects).unwrap();
        self.cluster.on_orders_connected(started.member, &mut self.effects);
        self.collect();
    }

    /// Moves orders from the effects to the queues of their servers, and completes stores unless the test keeps them.
    /// Drops effects that are for display only.
    fn collect(&mut self) {
        loop {
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Order { to, order } => self.orders.push((to, order)),
                    Effect::Store { number, state } => self.stores.push_back((number, *state)),
                    Effect::Recovery { .. } | Effect::ViewChanged { .. } => {}
                    other => self.kept.push(other),
                }
            }
            if self.keeps_stores || !self.store() {
                break;
            }
        }
        std::mem::swap(&mut self.effects, &mut self.kept);
    }

    /// Completes the store in progress.
    fn store(&mut self) -> bool {
        let Some((number, state)) = self.stores.pop_front() else { return false };
        self.on_disk = Some(state);
        self.cluster.on_stored(self.now, number, &mut self.effects);
        true
    }

    fn take(&mut self) -> Vec<Effect> {
        self.collect();
        std::mem::take(&mut self.effects)
    }

    fn ordered(&mut self) -> Vec<(ServerId, &'static str)> {
        self.collect();
        self.orders.iter().map(|(to, order)| (to.server, order.name())).collect()
    }

    fn report(&mut self, id: ServerId, outcome: Result<u64, String>) {
        self.collect();
        let at = self.orders.iter().position(|(to, _)| to.server == id).expect("an order to it");
        let (member, order) = self.orders.remove(at);
        let outcome = outcome.map_err(Into::into);
        let report = Report { id: order.id, view: order.view_version(), outcome };
        self.cluster.on_report(self.now, member, report, &mut self.effects).unwrap();
        self.collect();
    }

    /// Makes every server report success for each order given so far.
    fn report_all(&mut self) {
        for (to, _) in std::mem::take(&mut self.ordered()) {
            self.report(to, Ok(0));
        }
    }

    fn heartbeat(&self, id: ServerId) -> Heartbeat {
        Heartbeat {
            incarnation: self.cluster.member(id).incarnation,
            epoch: Epoch::default(),
            resident_bytes: 1,
            memory_limit: 7,
            connection_bytes: 5,
            connection_limit: 6,
            clients: 2,
            requests: 3,
            refused: 4,
            out_of_space: 0,
            evicted: 0,
            expired: 0,
            stood_ms: 0,
            dumped: DumpedBytes::default(),
            crowd: None,
            replicas: self.replicas(id),
        }
    }

    /// Returns the reports of a server by the durable views. It receives messages of every server except those in
    /// `unheard`.
    fn replicas(&self, id: ServerId) -> Vec<ReplicaReport> {
        let me = Some(self.cluster.member(id));
        let mut replicas = Vec::new();
        for view in self.cluster.views() {
            let (state, other) = match view.peer {
                _ if view.primary == me => (ReplicaState::Active, view.other()),
                Peer::Secondary(_) if view.other() == me => (ReplicaState::Secondary, view.primary),
                Peer::Candidate(_) if view.other() == me => (ReplicaState::Candidate, view.primary),
                _ => continue,
            };
            let hears = other.is_none_or(|other| !self.unheard.contains(&other.server));
            let known = other.and_then(|other| self.silences.get(&(id, other.server)));
            let silent_ms = known.copied().unwrap_or(if hears { 10 } else { 900 });
            for shard in (0..2).map(ShardId) {
                replicas.push(ReplicaReport {
                    group: view.group,
                    shard,
                    state,
                    view: view.version,
                    last: SequenceNumber(0),
                    committed: SequenceNumber(0),
                    entries: 0,
                    bytes: 0,
                    connected: true,
                    silent_ms,
                    longest_gap_ms: silent_ms,
                    used_bytes: 0,
                    following: match state {
                        ReplicaState::Active => Following::KeepsUp,
                        _ => self.following.get(&id).copied().unwrap_or_default(),
                    },
                    content_bytes: 0,
                    copied: 0,
                    copied_bytes: 0,
                    flush: Default::default(),
                });
            }
        }
        replicas
    }

    fn beat(&mut self, id: ServerId) {
        let heartbeat = self.heartbeat(id);
        self.cluster
            .on_heartbeat(self.now, World::link(id), id, heartbeat, &mut self.effects)
            .unwrap();
    }

    /// Lets time pass while the coordinator runs and receives nothing.
    fn watch(&mut self, duration: Duration) {
        for _ in 0..duration.as_millis() / 10 {
            self.now = self.now + Duration::from_millis(10);
            self.cluster.on_timeout(self.now, &mut self.effects);
        }
    }

    /// Lets time pass, with heartbeats of the named servers, which also respond to probes.
    fn pass(&mut self, duration: Duration, alive: &[ServerId]) {
        let end = self.now + duration;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            self.respond_to_probes(alive);
            for &id in alive {
                self.beat(id);
            }
            self.cluster.on_timeout(self.now, &mut self.effects);
        }
        self.collect();
    }

    fn respond_to_probes(&mut self, alive: &[ServerId]) {
        self.collect();
        let is_answered = |(to, order): &(Member, Order)| {
            order.kind == OrderKind::Probe && alive.contains(&to.server)
        };
        for (to, order) in
            self.orders.extract_if(.., |order| is_answered(order)).collect::<Vec<_>>()
        {
            let report = Report { id: order.id, view: ViewVersion(0), outcome: Ok(0) };
            // The coordinator may have dropped the order already.
            let _ = self.cluster.on_report(self.now, to, report, &mut self.effects);
        }
        self.collect();
    }

    fn exit(&mut self, id: ServerId) {
        let member = self.cluster.member(id);
        self.cluster.on_exited(self.now, member, &mut self.effects);
        self.collect();
    }

    /// Lets the live servers carry out orders and send heartbeats until no more effects follow. New processes start.
    /// Returns the names of the orders, in order.
    fn run(&mut self, alive: &[ServerId]) -> Vec<(ServerId, &'static str)> {
        let mut done = Vec::new();
        for _ in 0..20 {
            self.now = self.now + Duration::from_millis(20);
            self.collect();
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Spawn { member } if alive.contains(&member.server) => {
                        self.start_as(member);
                    }
                    other => self.seen.push(other),
                }
            }
            for &id in alive {
                if self.cluster.started(id).is_some() && !self.cluster.has_exited(id) {
                    self.beat(id);
                }
            }
            self.collect();
            let orders = std::mem::take(&mut self.orders);
            for (to, order) in orders {
                if alive.contains(&to.server) && to == self.cluster.member(to.server) {
                    done.push((to.server, order.name()));
                    let report =
                        Report { id: order.id, view: order.view_version(), outcome: Ok(1) };
                    // Meanwhile a newer view may have replaced the order.
                    let _ = self.cluster.on_report(self.now, to, report, &mut self.effects);
                }
            }
            self.cluster.on_timeout(self.now, &mut self.effects);
            self.collect();
        }
        done
    }

    fn start_as(&mut self, member: Member) {
        let started = Started { member, ..self.started(member.server) };
        let link = World::link(member.server);
        self.cluster.on_started(self.now, link, &started, &mut self.effects).unwrap();
        self.cluster.on_orders_connected(member, &mut self.effects);
    }

    /// Crashes the coordinator and starts another one from the state on the disk.
    fn restart(&mut self) {
        let durable = self.on_disk.clone().expect("something was stored");
        self.orders.clear();
        self.effects.clear();
        self.stores.clear();
        let config = config(self.cluster.count(), durable.epoch.number + 1);
        self.cluster = Cluster::restart(self.now, config, durable, &mut self.effects);
        self.keeps_stores = false;
        self.collect();
    }

    /// Returns the view of a group: the servers of the primary and the other member, and the version.
    fn view(&self, group: u16) -> (Option<u16>, Option<u16>, u64) {
        let view = &self.cluster.views()[usize::from(group)];
        let place = |member: Option<Member>| member.map(|member| member.server.0);
        (place(view.primary), place(view.other()), view.version.0)
    }

    fn stop(&mut self) {
        self.cluster.on_stop(self.now, &mut self.effects);
        self.collect();
    }

    fn down(&self, id: ServerId, cause: DownCause) -> Effect {
        Effect::Down { member: self.cluster.member(id), cause }
    }

    fn state(&self, id: ServerId) -> ServerState {
        self.cluster.map().servers[usize::from(id.0)].state
    }

    fn copies(&self) -> Vec<u8> {
        self.cluster.status(self.now, &[]).groups.iter().map(|group| group.copies).collect()
    }
}

fn stopped(effects: &[Effect]) -> Option<&StopOutcome> {
    effects.iter().find_map(|effect| match effect {
        Effect::Stopped(outcome) => Some(outcome),
        _ => None,
    })
}
