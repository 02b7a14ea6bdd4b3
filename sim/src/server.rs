//! One server process: its link to the coordinator, and an executor for each shard.
//!
//! The executor drives the shipped shard ([`kv_shard::Shard`]) like an engine. Sockets are connections of the
//! simulated network, and time is virtual. Work takes virtual time.
//!
//! ```text
//!   a wake-up of a shard:  take all inputs -> read the clock -> (a pause may strike here)
//!       -> timers -> orders -> streams of other servers -> their output
//!       -> clients, for a limited time -> all output -> long values -> dials -> reports
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kv_core::awake::LastSleep;
use kv_core::node::{Node, NodeConfig};
use kv_core::replica::{Replica, aged};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{ClusterId, ClusterKey, GroupId, Member, ShardId, Time};
use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::map::Map;
use kv_protocol::placement::Placement;
use kv_protocol::{Eviction, FailureTimeout, RedisMulti};
use kv_shard::{ConnectionMemory, Identity};

use crate::network::ConnectionNumber;

mod engine;
mod executor;
mod socket;
mod tap;

pub use executor::{Executor, Input, Output};
pub use socket::Reader;
pub use tap::SentResponse;

/// The key of the cluster.
const KEY: ClusterKey = ClusterKey(0x51);
/// A memory limit in bytes that exceeds the data of any run.
pub const MEMORY: u64 = 64 << 20;

/// The limits and settings of a server.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The memory limit of a table in bytes, above which writes are rejected.
    pub memory: u64,
    /// The policy by which full tables make room.
    pub eviction: Eviction,
    /// The idle timeout of a session.
    pub session_idle: Duration,
    /// The length in bytes above which a value is sent directly from the table.
    pub long_value: usize,
    /// The treatment of transactions of Redis clients with keys of several shards.
    pub redis_multi: RedisMulti,
}

impl Bounds {
    /// Returns whether writes may be rejected for lack of memory.
    pub fn has_little_memory(&self) -> bool {
        self.memory < MEMORY
    }
}

/// One process.
pub struct Process {
    /// The identity of the process.
    pub member: Member,
    /// The cluster of the process.
    pub cluster: ClusterId,
    /// The place of the process.
    pub place: usize,
    /// The address; the port is unique.
    pub address: SocketAddr,
    /// True while the process runs.
    pub alive: bool,
    /// True if the process has made an orderly exit, with complete dumps of all its replicas.
    pub left: bool,
    /// The true time at which the process last received an order.
    pub last_order: u64,
    /// The true time since which the process has received nothing from a coordinator.
    pub alone_since: Option<u64>,
    /// The time until which the process is paused.
    pub paused_until: u64,
    /// The time until which the process cannot be killed and its exit cannot be observed.
    pub out_of_reach_until: u64,
    /// The last suspension of the process. It does not count towards the age of reports.
    sleep: LastSleep,
    /// The length of a pause that begins in the next wake-up with inputs, after the shard has read the clock.
    pub stall_next: Option<u64>,
    /// The state machine that serves the coordinator.
    pub node: Node,
    /// The memory of the clients' connections, and its limit.
    pub memory: Arc<ConnectionMemory>,
    /// The executors.
    pub shards: Vec<Executor>,
    /// True while the process cannot allocate memory.
    pub is_exhausted: Arc<AtomicBool>,
    /// The heartbeat link, and whether it is admitted.
    pub link: Option<(ConnectionNumber, bool)>,
    /// The newest map that the coordinator has sent.
    pub map: Option<Arc<Map>>,
    /// The number of dials to the coordinator, which identifies late results.
    pub link_tries: u64,
}

impl Process {
    /// Creates a new process with empty tables.
    pub fn new(
        cluster: ClusterId,
        member: Member,
        address: SocketAddr,
        placement: Placement,
        bounds: Bounds,
        seed: u64,
    ) -> Process {
        let is_exhausted = Arc::new(AtomicBool::new(false));
        let tables = 2 * u64::from(placement.shards());
        let memory = ConnectionMemory::new(None, Some(bounds.memory * tables), tables);
        memory.set_eviction(bounds.eviction);
        let shards = (0..placement.shards()).map(|shard| {
            let identity = Identity {
                cluster,
                key: KEY,
                me: member,
                shard: ShardId(shard),
                placement,
                failure_timeout: FailureTimeout::DEFAULT,
                session_idle: bounds.session_idle,
                long_value: bounds.long_value,
            };
            Executor::new(identity, &memory, bounds.redis_multi, seed, &is_exhausted)
        });
        let shards = shards.collect();
        Process {
            member,
            cluster,
            place: usize::from(member.server.0),
            address,
            alive: true,
            left: false,
            last_order: 0,
            alone_since: None,
            paused_until: 0,
            sleep: LastSleep::default(),
            out_of_reach_until: 0,
            stall_next: None,
            node: Node::new(NodeConfig { cluster, me: member, shards: placement.shards() }),
            memory,
            shards,
            is_exhausted,
            link: None,
            map: None,
            link_tries: 0,
        }
    }

    /// Returns whether neither the process nor any of its executors is stopped, and no pause is prepared.
    pub fn is_at_work(&self, now: u64) -> bool {
        self.paused_until <= now
            && self.stall_next.is_none()
            && self.shards.iter().all(|shard| shard.stopped_until <= now)
    }

    /// Returns the reports on the replicas, each aged by the time since its executor last published. Time in which the
    /// whole process was suspended does not count.
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

    /// Returns the replica of a group's shard.
    pub fn replica(&self, group: GroupId, shard: usize) -> Option<&Replica> {
        self.shards[shard].shard.service.replica(group)
    }
}
