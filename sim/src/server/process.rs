//! A process: its link to the coordinator, its node, its executors.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kv_core::awake::LastSleep;
use kv_core::node::{Node, NodeConfig};
use kv_core::replica::{Replica, aged};
use kv_protocol::FailureTimeout;
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{ClusterId, GroupId, Member, ShardId, Time};
use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::placement::Placement;

use super::{Bounds, Identity, Shard};
use crate::network::ConnectionNumber;

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Who it is, and of which cluster.
    pub member: Member,
    /// As above.
    pub cluster: ClusterId,
    /// Its place.
    pub place: usize,
    /// Its address; the port is its own.
    pub address: SocketAddr,
    /// Whether it runs.
    pub alive: bool,
    /// It has ended in order, all that it held in whole dumps.
    pub left: bool,
    /// The coordinator that has started it, and may ask for its exit status.
    pub term: u64,
    /// When it was given an order last, as true time.
    pub last_order: u64,
    /// The true time since which it has received nothing from a coordinator.
    pub alone_since: Option<u64>,
    /// Until when it does nothing, while time passes.
    pub paused_until: u64,
    /// Until when nobody can kill it, or see whether it has ended.
    pub out_of_reach_until: u64,
    /// As its reports show it.
    sleep: LastSleep,
    /// The next wake-up of a shard is struck by a pause of this length, after the clock was read.
    pub stall_next: Option<u64>,
    /// The machine towards the coordinator.
    pub node: Node,
    /// Its executors.
    pub shards: Vec<Shard>,
    /// While it is true, the process gets no memory.
    pub is_exhausted: Arc<AtomicBool>,
    /// The link for heartbeats, and whether it is admitted.
    pub link: Option<(ConnectionNumber, bool)>,
    /// Numbers its dials of the coordinator, so that an old answer is not taken for a new one.
    pub link_tries: u64,
}

impl Process {
    /// A process that has just been started, with an empty table.
    pub fn new(
        cluster: ClusterId,
        member: Member,
        address: SocketAddr,
        placement: Placement,
        bounds: Bounds,
        seed: u64,
    ) -> Process {
        let is_exhausted = Arc::new(AtomicBool::new(false));
        let shards = (0..placement.shards()).map(|shard| {
            let identity = Identity { cluster, shard: ShardId(shard), placement, bounds };
            Shard::new(member, identity, seed, &is_exhausted)
        });
        let shards = shards.collect();
        Process {
            member,
            cluster,
            place: usize::from(member.server.0),
            address,
            alive: true,
            left: false,
            term: 0,
            last_order: 0,
            alone_since: None,
            paused_until: 0,
            sleep: LastSleep::default(),
            out_of_reach_until: 0,
            stall_next: None,
            node: Node::new(NodeConfig { cluster, me: member, shards: placement.shards() }),
            shards,
            is_exhausted,
            link: None,
            link_tries: 0,
        }
    }

    /// Whether nothing keeps it or one of its executors from working.
    pub fn is_at_work(&self, now: u64) -> bool {
        self.paused_until <= now
            && self.stall_next.is_none()
            && self.shards.iter().all(|shard| shard.stopped_until <= now)
    }

    /// What it reports of its replicas: what an executor that stands has not said for a while, it has not heard. Time
    /// for which all of the process slept is none of that.
    pub fn reports(&mut self, now: u64) -> Vec<ReplicaReport> {
        let now = Time::from_nanos(now);
        self.sleep.look(now, HEARTBEAT_INTERVAL);
        let aged_report = |report: &ReplicaReport| {
            let published_at = self.shards[usize::from(report.shard.0)].published_at();
            let age = self.sleep.age(Time::from_nanos(published_at), now);
            aged(report, age, FailureTimeout::DEFAULT)
        };
        self.node.reports().map(aged_report).collect()
    }

    /// The replica of a group's shard.
    pub fn replica(&self, group: GroupId, shard: usize) -> Option<&Replica> {
        let hosted = self.shards[shard].hosted.iter();
        hosted.map(|hosted| &hosted.replica).find(|replica| replica.group() == group)
    }
}
