//! The coordinator: its brain as it ships, its disk, and its connections.

use std::collections::BTreeMap;

use kv_core::cluster::{Cluster, ClusterConfig, DoubleFault, DurableState, Effect, LinkId, Origin};
use kv_protocol::ids::{BootId, ClusterId, Epoch, Member, ServerId, Time};
use kv_protocol::limits::DRAIN_DEADLINE;

use crate::network::ConnectionNumber;

/// The coordinator's machine.
#[derive(Debug)]
pub struct Coordinator {
    /// The brain; `None` while the process is dead.
    pub cluster: Option<Cluster>,
    /// Counts its processes: one that died gets nothing meant for its successor.
    pub term: u64,
    /// What the disk holds.
    pub disk: Option<DurableState>,
    /// A store that is under way.
    pub storing: Option<(u64, DurableState)>,
    /// The store that is under way was begun on a full disk, and will fail.
    pub is_doomed: bool,
    /// Until when its disk takes nothing.
    pub disk_full_until: u64,
    /// Until when it does nothing.
    pub paused_until: u64,
    /// For how long it did nothing so far, the pause that lasts included.
    pub slept: u64,
    /// Connections for heartbeats: who speaks there.
    pub links: BTreeMap<ConnectionNumber, (LinkId, Option<ServerId>)>,
    next_link: u64,
    /// Connections for orders that stand, by process.
    pub orders: BTreeMap<Member, ConnectionNumber>,
    /// When it is woken by time alone.
    pub wake_at: Option<u64>,
    shape: Shape,
    /// The origin of a restored cluster.
    origin: Origin,
}

/// What a cluster of this run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its name.
    pub cluster: ClusterId,
    /// Servers.
    pub servers: u16,
    /// Shards of a group.
    pub shards: u16,
    /// What a second fault leads to.
    pub on_double_fault: DoubleFault,
    /// Names are drawn from it.
    pub seed: u64,
}

impl Coordinator {
    /// One that founds a cluster.
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
            seed: self.shape.seed ^ self.term,
            on_double_fault: self.shape.on_double_fault,
            failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
            start_patience: std::time::Duration::from_secs(60),
            stop_patience: DRAIN_DEADLINE,
        }
    }

    /// One that founds another cluster, of what was left of the one before. Its disk is empty.
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

    /// What its cluster is made of.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The process ends. A store that was under way is done or not, as chance has it.
    pub fn die(&mut self, stored: bool) {
        if let Some((_, state)) = self.storing.take()
            && stored
            && !self.is_doomed
        {
            self.disk = Some(state);
        }
        self.cluster = None;
        self.links.clear();
        self.orders.clear();
        self.wake_at = None;
        self.paused_until = 0;
    }

    /// Another process goes on from the disk.
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

    /// A name for a new link.
    pub fn next_link(&mut self) -> LinkId {
        self.next_link += 1;
        LinkId(self.next_link)
    }
}
