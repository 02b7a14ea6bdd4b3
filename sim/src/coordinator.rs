//! The coordinator of a simulated cluster: the shipped state machine (the brain), a disk, and connections.

use std::collections::BTreeMap;

use kv_core::cluster::{Cluster, ClusterConfig, DoubleFault, DurableState, Effect, LinkId, Origin};
use kv_protocol::ids::{BootId, ClusterId, Epoch, Member, ServerId, Time};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::map::Map;

use crate::network::ConnectionNumber;

/// The coordinator's host: process, disk and connections.
#[derive(Debug)]
pub struct Coordinator {
    /// The brain; `None` while the process is dead.
    pub cluster: Option<Cluster>,
    /// The number of the coordinator's process. Events for one term do not reach the process of the next term.
    pub term: u64,
    /// The state on its disk.
    pub disk: Option<DurableState>,
    /// The store in progress, with its number.
    pub storing: Option<(u64, DurableState)>,
    /// True if the store in progress began on a full disk, and will fail.
    pub is_doomed: bool,
    /// The time until which its disk is full.
    pub disk_full_until: u64,
    /// The time until which the process is paused.
    pub paused_until: u64,
    /// The total time for which the process was paused, including the current pause.
    pub slept: u64,
    /// Admitted heartbeat connections, with the server that sends on each.
    pub links: BTreeMap<ConnectionNumber, (LinkId, Option<ServerId>)>,
    next_link: u64,
    /// The revision of the last map that was sent on each heartbeat connection.
    maps_sent: BTreeMap<ConnectionNumber, u64>,
    /// Open order connections, by process.
    pub orders: BTreeMap<Member, ConnectionNumber>,
    /// The time of the next wake-up for a timer; `None` if none is scheduled.
    pub wake_at: Option<u64>,
    shape: Shape,
    /// The origin of a restored cluster.
    origin: Origin,
}

/// The parameters of a run's cluster.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The id of the cluster.
    pub cluster: ClusterId,
    /// The number of servers.
    pub servers: u16,
    /// The number of shards of a group.
    pub shards: u16,
    /// True if the cluster has hash tags.
    pub hash_tags: bool,
    /// The policy on a double fault.
    pub on_double_fault: DoubleFault,
    /// The seed from which each coordinator process derives the incarnations of the servers that it starts.
    pub seed: u64,
}

impl Coordinator {
    /// Creates a coordinator that founds a cluster.
    pub fn found(shape: Shape, now: Time, effects: &mut Vec<Effect>) -> Coordinator {
        let mut coordinator = Coordinator {
            cluster: None,
            term: 1,
            disk: None,
            storing: None,
            is_doomed: false,
            disk_full_until: 0,
            paused_until: 0,
            slept: 0,
            links: BTreeMap::new(),
            next_link: 0,
            maps_sent: BTreeMap::new(),
            orders: BTreeMap::new(),
            wake_at: None,
            shape,
            origin: Origin::default(),
        };
        coordinator.cluster = Some(Cluster::found(now, coordinator.config(1), effects));
        coordinator
    }

    fn config(&self, number: u64) -> ClusterConfig {
        ClusterConfig {
            cluster: self.shape.cluster,
            epoch: Epoch { number, boot: BootId(self.term) },
            servers: self.shape.servers,
            shards: self.shape.shards,
            hash_tags: self.shape.hash_tags,
            seed: self.shape.seed ^ self.term,
            on_double_fault: self.shape.on_double_fault,
            failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
            start_timeout: std::time::Duration::from_secs(60),
            stop_timeout: DRAIN_DEADLINE,
        }
    }

    /// Starts the next coordinator process with an empty disk. It founds another cluster from the dumps of the
    /// previous one.
    pub fn restore(
        &mut self,
        cluster: ClusterId,
        origin: Origin,
        now: Time,
        effects: &mut Vec<Effect>,
    ) {
        (self.shape.cluster, self.origin) = (cluster, origin);
        (self.disk, self.storing) = (None, None);
        self.restart(now, effects);
    }

    /// Returns the parameters of the cluster.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Ends the process. A store in progress succeeds only if `stored` is true and its disk was not full.
    pub fn die(&mut self, stored: bool) {
        if let Some((_, state)) = self.storing.take()
            && stored
            && !self.is_doomed
        {
            self.disk = Some(state);
        }
        self.cluster = None;
        self.links.clear();
        self.maps_sent.clear();
        self.orders.clear();
        self.wake_at = None;
        self.paused_until = 0;
    }

    /// Starts the next coordinator process from the state on disk. Without a state, it founds the cluster again.
    pub fn restart(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.term += 1;
        let restarted = match self.disk.clone() {
            Some(durable) => {
                let config = self.config(durable.epoch.number + 1);
                Cluster::restart(now, config, durable, effects)
            }
            None if self.origin.foundings.is_empty() => {
                Cluster::found(now, self.config(1), effects)
            }
            None => Cluster::found_restored(now, self.config(1), self.origin.clone(), effects),
        };
        self.cluster = Some(restarted);
    }

    /// Returns the map to send in response to a heartbeat; `None` if the last one on this connection is the newest, or
    /// if the cluster has not served yet.
    pub fn map_for(&mut self, number: ConnectionNumber) -> Option<Map> {
        let cluster = self.cluster.as_ref().filter(|cluster| cluster.has_served())?;
        let revision = cluster.revision();
        let last = self.maps_sent.insert(number, revision);
        (last != Some(revision)).then(|| cluster.map())
    }

    /// Returns the id of a new link.
    pub fn next_link(&mut self) -> LinkId {
        self.next_link += 1;
        LinkId(self.next_link)
    }
}
