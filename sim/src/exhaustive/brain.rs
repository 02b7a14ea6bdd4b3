//! The coordinator's state machine (the brain) with its disk, as a machine of the search.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kv_core::cluster::{Cluster, ClusterConfig, DoubleFault, Effect, LinkId};
use kv_protocol::FailureTimeout;
use kv_protocol::control_message::{Heartbeat, ReplicaReport, Report, Started};
use kv_protocol::ids::{BootId, Epoch, Member, ServerId, Time};
use kv_protocol::map::ServerState;
use kv_protocol::view::View;

use super::machine::Machine;
use super::node::Papers;
use super::replica::{CLUSTER, GROUP, SERVERS, reading};

/// An input of the brain, besides the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrainInput {
    /// A process has connected over the link with this number and sent STARTED.
    Started(Member, u64),
    /// The order connection is open.
    OrdersConnected(Member),
    /// The store with this number is durable.
    Stored(u64),
    /// A report of a server.
    Report(Member, u32),
    /// The stub has executed an order for the other group, which is not model-checked.
    ByTheStub(Member, u32),
    /// A proof of death.
    Exited(Member),
    /// The link with this number to a server has ended.
    LinkLost(u64, ServerId),
    /// A heartbeat: the link's number, the sender, and the reports on its replicas.
    Heartbeat(u64, Member, Vec<ReplicaReport>),
    /// A wake-up for a timer.
    Wake,
    /// The coordinator is killed, and another one continues from the durable state.
    Restart,
}

impl std::hash::Hash for BrainInput {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        match self {
            BrainInput::Started(member, link) => (1, member, link).hash(state),
            BrainInput::OrdersConnected(member) => (2, member).hash(state),
            BrainInput::Stored(number) => (3, number).hash(state),
            BrainInput::Report(member, report) => (4, member, report).hash(state),
            BrainInput::ByTheStub(member, order) => (5, member, order).hash(state),
            BrainInput::Exited(member) => (6, member).hash(state),
            BrainInput::LinkLost(link, server) => (7, link, server).hash(state),
            BrainInput::Heartbeat(link, member, reports) => {
                (8, link, member, reports.first().map(|r| r.silent_ms)).hash(state);
            }
            BrainInput::Wake => 9.hash(state),
            BrainInput::Restart => 10.hash(state),
        }
    }
}

/// An effect of the brain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BrainDone {
    /// Starts the store with this number.
    Store(u64),
    /// Starts a process.
    Spawn(Member),
    /// Opens an order connection.
    Dial(Member),
    /// Watches a process that an earlier coordinator started.
    Adopt(Member),
    /// Sends an order.
    Order(Member, u32),
    /// Sends an order that concerns the other group, which is not model-checked.
    StubOrder(Member, u32),
    /// Kills a process. The flag is true if a durable view names the process.
    Kill(Member, bool),
    /// Reports that a view of the group is durable, with the previous view and the new one.
    View(View, View),
    /// Attributes a heartbeat to this process.
    Heard(Member),
}

/// The observable state of the brain.
#[derive(Debug)]
pub struct BrainSight {
    /// The durable view of the group.
    pub view: View,
    /// The places of the ring, as the brain records them.
    pub places: Vec<Place>,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// The time of the next timer.
    pub due: Option<Time>,
}

/// A place of the ring.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The process at the place.
    pub member: Member,
    /// True if the brain considers it down.
    pub is_down: bool,
    /// True if its exit is proven.
    pub exited: bool,
}

/// The brain as a machine.
#[derive(Debug)]
pub struct Coordinating {
    cluster: Cluster,
    shards: u16,
    /// The effects of the founding, returned with the first input.
    first: Vec<Effect>,
}

fn config(shards: u16, number: u64) -> ClusterConfig {
    ClusterConfig {
        hash_tags: false,
        cluster: CLUSTER,
        epoch: Epoch { number, boot: BootId(number) },
        servers: SERVERS,
        shards,
        seed: number,
        on_double_fault: DoubleFault::Isolate,
        // Silence is an input of the search and possible at any time, so the timeout of the failure detector must
        // never expire. So after a restart only proofs of death count.
        failure_timeout: FailureTimeout::DEFAULT.suspecting_after(Duration::from_secs(3_600)),
        start_timeout: Duration::from_secs(60),
        stop_timeout: Duration::from_secs(60),
    }
}

/// Returns the STARTED message of a process.
fn started(member: Member, shards: u16, epoch: Epoch) -> Started {
    Started {
        cluster: CLUSTER,
        member,
        pid: 1,
        start_time: 1,
        namespace: kv_protocol::ids::PidNamespace(1),
        shards,
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        clients_port: 1,
        servers_port: 2,
        coord_port: 3,
        epoch,
    }
}

impl Machine for Coordinating {
    type Origin = u16;
    type Input = (u8, BrainInput);
    type Output = Vec<BrainDone>;
    type Sight = BrainSight;
    type Shared = Papers;

    fn make(&shards: &u16) -> Coordinating {
        let mut first = Vec::new();
        let cluster = Cluster::found(reading(0), config(shards, 1), &mut first);
        Coordinating { cluster, shards, first }
    }

    fn take(&mut self, papers: &mut Papers, (tick, input): &Self::Input) -> Vec<BrainDone> {
        let now = reading(*tick);
        let mut sink = std::mem::take(&mut self.first);
        let mut done = Vec::new();
        self.serve(papers, now, input, &mut sink, &mut done);
        for effect in sink {
            let known = self.known(papers, effect);
            done.extend(known);
        }
        done
    }

    fn describe(&self) -> String {
        format!("{:?} {:?}", self.cluster, self.first)
    }

    fn sight(&self) -> BrainSight {
        let places = self.cluster.map().servers.into_iter().map(|server| Place {
            member: self.cluster.member(server.id),
            is_down: server.state == ServerState::Down,
            exited: self.cluster.has_exited(server.id),
        });
        BrainSight {
            view: self.cluster.views()[usize::from(GROUP.0)],
            places: places.collect(),
            epoch: self.cluster.config().epoch,
            due: self.cluster.next_timeout(),
        }
    }
}

impl Coordinating {
    fn serve(
        &mut self,
        papers: &mut Papers,
        now: Time,
        input: &BrainInput,
        sink: &mut Vec<Effect>,
        done: &mut Vec<BrainDone>,
    ) {
        let cluster = &mut self.cluster;
        match input {
            BrainInput::Started(member, link) => {
                let epoch = cluster.config().epoch;
                let started = started(*member, self.shards, epoch);
                // If the STARTED is rejected, it has no effect.
                let _ = cluster.on_started(now, LinkId(*link), &started, sink);
            }
            BrainInput::OrdersConnected(member) => cluster.on_orders_connected(*member, sink),
            BrainInput::Stored(number) => cluster.on_stored(now, *number, sink),
            BrainInput::Report(member, report) => {
                let report = papers.reports.get(*report).clone();
                // A late or repeated report changes nothing.
                let _ = cluster.on_report(now, *member, report, sink);
            }
            BrainInput::ByTheStub(member, order) => {
                let order = papers.orders.get(*order);
                let report = Report { id: order.id, view: order.view_version(), outcome: Ok(0) };
                let _ = cluster.on_report(now, *member, report, sink);
            }
            BrainInput::Exited(member) => cluster.on_exited(now, *member, sink),
            BrainInput::LinkLost(link, server) => {
                cluster.on_link_lost(now, LinkId(*link), *server, sink);
            }
            BrainInput::Heartbeat(link, speaker, replicas) => {
                let heartbeat = Heartbeat {
                    incarnation: speaker.incarnation,
                    epoch: Epoch::default(),
                    resident_bytes: 0,
                    memory_limit: 0,
                    connection_bytes: 0,
                    connection_limit: 0,
                    clients: 0,
                    requests: 0,
                    refused: 0,
                    out_of_space: 0,
                    evicted: 0,
                    expired: 0,
                    stood_ms: 0,
                    dumped: Default::default(),
                    crowd: None,
                    replicas: replicas.clone(),
                };
                // The heartbeat arrives 1 ns after the event that makes it a vote.
                let now = now + Duration::from_nanos(1);
                let whose = cluster.member(speaker.server);
                let taken =
                    cluster.on_heartbeat(now, LinkId(*link), speaker.server, heartbeat, sink);
                done.extend(taken.is_ok().then_some(BrainDone::Heard(whose)));
            }
            BrainInput::Wake => cluster.on_timeout(now, sink),
            BrainInput::Restart => {
                let durable = cluster.durable().clone();
                let config = config(self.shards, cluster.config().epoch.number + 1);
                *cluster = Cluster::restart(now, config, durable, sink);
            }
        }
    }

    fn known(&self, papers: &mut Papers, effect: Effect) -> Option<BrainDone> {
        Some(match effect {
            Effect::Store { number, .. } => BrainDone::Store(number),
            Effect::Spawn { member } => BrainDone::Spawn(member),
            Effect::Dial { member, .. } => BrainDone::Dial(member),
            Effect::Adopt { started } => BrainDone::Adopt(started.member),
            Effect::Kill { member, .. } => {
                BrainDone::Kill(member, self.cluster.durable().names(member))
            }
            Effect::ViewChanged { before, view } if view.group == GROUP => {
                BrainDone::View(before, view)
            }
            Effect::Order { to, order } => {
                let is_stubs = order.view().is_some_and(|view| view.group != GROUP);
                let number = papers.orders.number_printed(order);
                match is_stubs {
                    true => BrainDone::StubOrder(to, number),
                    false => BrainDone::Order(to, number),
                }
            }
            _ => return None,
        })
    }
}
