//! Whole lives of a cluster, told as inputs and effects.

mod ring;
mod stopping;

use std::net::{IpAddr, Ipv4Addr};

use kv_protocol::BootId;
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::status::ClusterState;
use kv_protocol::{SequenceNumber, ShardId};

use super::*;

const SILENCE: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
const CLUSTER: ClusterId = ClusterId(7);

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

/// A cluster, the time, and servers that only do what a test tells them.
struct World {
    cluster: Cluster,
    now: Time,
    effects: Vec<Effect>,
    orders: Vec<(Member, Order)>,
}

impl World {
    fn new(servers: u16) -> World {
        let cluster = Cluster::new(
            at(0),
            ClusterConfig {
                cluster: CLUSTER,
                epoch: Epoch { number: 1, boot: BootId(9) },
                shards: 2,
                incarnations: (0..servers).map(|n| Incarnation(100 + u64::from(n))).collect(),
                silence: SILENCE,
                start_patience: Duration::from_secs(60),
                stop_patience: PATIENCE,
            },
        );
        World { cluster, now: at(0), effects: Vec::new(), orders: Vec::new() }
    }

    fn serving(servers: u16) -> World {
        let mut world = World::new(servers);
        for id in world.ids() {
            world.start(id);
        }
        world.report_all();
        assert_eq!(world.take().last(), Some(&Effect::Serving));
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

    /// Moves the orders among the effects to where a test reports on them.
    fn collect(&mut self) {
        let orders = &mut self.orders;
        self.effects.retain(|effect| match effect {
            Effect::Order { to, order } => {
                orders.push((*to, *order));
                false
            }
            _ => true,
        });
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
        let report = Report { id: order.id, outcome };
        self.cluster.on_report(self.now, member, report, &mut self.effects).unwrap();
        self.collect();
    }

    /// Everyone does once what was ordered so far.
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
            clients: 2,
            requests: 3,
            refused: 4,
            replicas: Vec::new(),
        }
    }

    fn beat(&mut self, id: ServerId) {
        let heartbeat = self.heartbeat(id);
        self.cluster
            .on_heartbeat(self.now, World::link(id), id, heartbeat, &mut self.effects)
            .unwrap();
    }

    /// Lets time pass, with heartbeats of those named.
    fn pass(&mut self, duration: Duration, alive: &[ServerId]) {
        let end = self.now + duration;
        while self.now < end {
            self.now = self.now + Duration::from_millis(50);
            for &id in alive {
                self.beat(id);
            }
            self.cluster.on_timeout(self.now, &mut self.effects);
        }
        self.collect();
    }

    fn exit(&mut self, id: ServerId) {
        let member = self.cluster.member(id);
        self.cluster.on_exited(self.now, member, &mut self.effects);
        self.collect();
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
