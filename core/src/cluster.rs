//! The coordinator's state machine. It tracks which servers are up and which of them hold each group, and it
//! controls the start, recovery and stop of the cluster.
//!
//! ```text
//!   STARTED, HEARTBEAT, REPORT,      +---------+      store, spawn, dial, order, kill,
//!   lost links, exits, stored,  ---> | Cluster | ---> events to show (Effect)
//!   the time                         +---------+
//!
//!   start    every STARTED -> first view of every group -> stored -> SET-SECONDARY -> every report
//!            -> stored -> serving                                                     (start.rs)
//!   recover  facts -> reconcile: the next view of a group -> stored -> orders         (views.rs)
//!            a process that no view names: kill, proof, a new process in its place  (respawn.rs)
//!   leave    views without the server that must stop -> SHUTDOWN                        (leave.rs)
//!   replace  the same for a place that moves to another host; no proof if it is silent (moving.rs)
//!   flush    FLUSH to the primary of every group, until every shard reports its end       (flush.rs)
//!   stop     DRAIN to all -> dumps at all -> SHUTDOWN to all -> all have exited         (stop.rs)
//! ```
//!
//! The caller passes the time and every input, and carries out the effects of one input before it passes the next.
//! Messages from servers are validated (links.rs). An order is kept until its report arrives or a newer order replaces
//! it, and is sent again whenever the connection for orders is re-established (orders.rs). No order and no map contains
//! a view that is not durable (durable.rs). A silent server is suspected until it reports again. Meanwhile an inquiry
//! in each of its groups decides whether it must leave that group (suspicion.rs). A server process that has exited
//! never counts as alive again.

use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::control_message::Started;
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::{
    ClusterId, Epoch, FailureTimeout, GroupId, Incarnation, MapRevision, Member, OrderId, Peer,
    ServerId, Time, View, ViewVersion,
};

use crate::failure_detector::FailureDetector;
use crate::mutations::{self, Mutation};

mod alarms;
mod double_fault;
mod durable;
mod effect;
mod flush;
mod history;
mod leave;
mod links;
mod moving;
mod orders;
pub mod reconcile;
mod recovery;
mod respawn;
mod server;
mod start;
mod status;
mod stop;
mod suspicion;
#[cfg(test)]
mod tests;
mod verdict;
mod views;

use alarms::Alarms;
pub use alarms::DUMP_ADVICE;
pub use double_fault::DoubleFault;
use durable::Memory;
pub use durable::{DurableServer, DurableState, Founding, LastHolders, STORE_AGAIN};
pub use effect::{
    DownCause, Effect, Ignored, KillReason, LeaveReason, StartFailure, StartedRefused,
};
use flush::Flush;
pub use flush::{FlushRefused, FlushedShard};
use history::History;
pub use leave::LEAVE_TIMEOUT;
pub use links::LinkId;
pub use moving::ReplaceRefused;
use respawn::draw;
use server::Server;
use start::Start;
pub use stop::{
    DUMP_BYTES_PER_SECOND, DUMP_RETRY_PAUSE, DumpProgress, LAST_DUMP_RETRY_PAUSE, NO_PROGRESS,
    StopOutcome, StopPhase, StopWait,
};
use stop::{Stop, StopClock};
use views::Group;

/// The configuration of a cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// The id of the cluster.
    pub cluster: ClusterId,
    /// The epoch of this coordinator process.
    pub epoch: Epoch,
    /// The number of servers of the ring.
    pub servers: u16,
    /// The number of shards of every group.
    pub shards: u16,
    /// True if only the hash tag of a key, if it has one, determines its place.
    pub hash_tags: bool,
    /// A random seed from which the incarnations of processes are drawn.
    pub seed: u64,
    /// The reaction to a second fault.
    pub on_double_fault: DoubleFault,
    /// The silence after which a server is suspected. Leases and graces follow from it, so the servers must be started
    /// with the same value.
    pub failure_timeout: FailureTimeout,
    /// The timeout for the whole start.
    pub start_timeout: Duration,
    /// The timeout of each server in an orderly stop: for its drain, its silence while it dumps, its exit, and the
    /// proof of its death after a kill. While it reports, its dumps have no timeout.
    pub stop_timeout: Duration,
}

/// The origin of a restored cluster.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// The founding of each group.
    pub foundings: Vec<Founding>,
    /// The clusters from which this one is restored, the latest first.
    pub ancestors: Vec<ClusterId>,
}

/// The coordinator's state machine for one cluster; see the module documentation.
#[derive(Debug)]
pub struct Cluster {
    config: ClusterConfig,
    servers: Vec<Server>,
    groups: Vec<Group>,
    memory: Memory,
    detector: FailureDetector,
    /// The clock for the deadlines of stops and leaves. It excludes time in which the coordinator was suspended.
    awake: StopClock,
    start: Start,
    stop: Option<Stop>,
    flush: Option<Flush>,
    next_order: OrderId,
    revision: u64,
    /// The time of the latest input.
    now: Time,
    /// The time before which no member is removed without proof of its death.
    judge_from: Time,
    /// The number of the last incarnation drawn from the seed. A coordinator that takes over starts at a random number.
    drawn: u64,
    /// The two places of a double fault.
    double_fault: Option<(ServerId, ServerId)>,
    /// True if a server has a newer view than the stored state; no more decisions are made then.
    is_outdated: bool,
    /// The last recoveries of each place, for display only.
    histories: Vec<History>,
    /// The current alarms, for display only.
    alarms: Alarms,
    store_risk: Option<String>,
}

/// Construction and durable state.
impl Cluster {
    /// Creates a new cluster with empty tables. The servers are spawned when the first store is durable.
    pub fn found(now: Time, config: ClusterConfig, sink: &mut Vec<Effect>) -> Cluster {
        Cluster::found_from(now, config, Origin::default(), sink)
    }

    /// Creates a restored cluster, which has a new cluster id. While the cluster [is being
    /// founded](Cluster::is_founding), the caller spawns processes that load the sources given by [`Plan`] before they
    /// report. Both home servers of a group load the same sources. View versions continue above those of the earlier
    /// cluster. LOST groups stay LOST.
    ///
    /// # Panics
    /// If `origin` does not have one founding for each group.
    ///
    /// [`Plan`]: crate::restore::Plan
    pub fn found_restored(
        now: Time,
        config: ClusterConfig,
        origin: Origin,
        sink: &mut Vec<Effect>,
    ) -> Cluster {
        let groups = origin.foundings.len();
        assert_eq!(groups, usize::from(config.servers), "a ring has one group per server");
        Cluster::found_from(now, config, origin, sink)
    }

    fn found_from(
        now: Time,
        config: ClusterConfig,
        Origin { foundings, ancestors }: Origin,
        sink: &mut Vec<Effect>,
    ) -> Cluster {
        let servers = (1..=u64::from(config.servers)).map(|n| DurableServer {
            incarnation: Incarnation(draw(config.seed, n)),
            started: None,
        });
        let decided = DurableState {
            cluster: config.cluster,
            ancestors,
            epoch: config.epoch,
            shards: config.shards,
            hash_tags: config.hash_tags,
            has_served: false,
            servers: servers.collect(),
            views: (0..config.servers).map(|group| no_view(GroupId(group))).collect(),
            foundings,
            last_holders: Vec::new(),
            is_stopping: false,
            recovering: None,
            moving: Vec::new(),
        };
        let nothing = DurableState { epoch: Epoch::default(), ..decided.clone() };
        let mut cluster = Cluster::of(now, config, Memory::new(decided, nothing));
        cluster.store(sink);
        cluster
    }

    /// Takes over a cluster from an earlier coordinator. The epoch becomes `config.epoch`. No server is contacted
    /// before the new epoch is durable.
    ///
    /// # Panics
    /// If `config.epoch` does not exceed the stored epoch.
    pub fn restart(
        now: Time,
        config: ClusterConfig,
        durable: DurableState,
        sink: &mut Vec<Effect>,
    ) -> Cluster {
        assert!(config.epoch.number > durable.epoch.number, "a new epoch exceeds all earlier ones");
        let decided = DurableState { epoch: config.epoch, ..durable.clone() };
        let has_served = durable.has_served;
        let mut cluster = Cluster::of(now, config, Memory::new(decided, durable));
        cluster.drawn = draw(cluster.config.seed, 0);
        let times = cluster.config.failure_timeout;
        cluster.judge_from = now + times.grace() + times.timeout();
        for id in (0..cluster.count()).map(ServerId) {
            let known = cluster.memory.durable().servers[usize::from(id.0)];
            if known.started.is_none() {
                // It is unknown whether a process was spawned. Such a process holds no data, and its reports are
                // rejected because the place gets a new incarnation.
                cluster.decide_process(id);
                continue;
            }
            // An earlier coordinator may have ordered the kill of a process that no view names, and that kill may
            // still be pending. So the process must not become a candidate; it is killed and replaced.
            let is_unnamed =
                has_served && !cluster.memory.durable().names(cluster.server(id).member);
            let server = cluster.server_mut(id);
            (server.started, server.state) = (known.started, ServerState::Down);
            server.is_condemned = is_unnamed;
        }
        if has_served {
            cluster.start = Start::Done;
            cluster.resume_recovery();
        }
        cluster.store(sink);
        cluster
    }

    fn of(now: Time, config: ClusterConfig, memory: Memory) -> Cluster {
        let count = config.servers;
        let ids = (0..count).map(ServerId);
        let servers: Vec<Server> = ids.map(|id| Server::new(memory.decided.member(id))).collect();
        Cluster {
            detector: FailureDetector::new(count, config.failure_timeout.timeout()),
            awake: StopClock::new(),
            start: Start::Until(now + config.start_timeout),
            stop: None,
            flush: None,
            next_order: OrderId::first_of(config.epoch),
            revision: 1,
            now,
            judge_from: Time::default(),
            drawn: u64::from(count),
            double_fault: None,
            is_outdated: false,
            histories: (0..count).map(|_| History::default()).collect(),
            alarms: Alarms::default(),
            store_risk: None,
            groups: vec![Group::default(); usize::from(count)],
            config,
            servers,
            memory,
        }
    }

    fn store(&mut self, sink: &mut Vec<Effect>) {
        if let Some((number, state)) = self.memory.next_store() {
            sink.push(Effect::Store { number, state: Box::new(state) });
        }
    }

    /// Records that the store with this number is durable: file and directory are synced. Then takes the steps that
    /// depend on it. Does nothing if another store is in progress.
    pub fn on_stored(&mut self, now: Time, number: u64, sink: &mut Vec<Effect>) {
        let Some(before) = self.memory.on_stored(number) else { return };
        if before.epoch != self.config.epoch {
            self.adopt(now, sink);
        }
        self.begin_to_serve(sink);
        self.spawn_decided(now, sink);
        self.tell_durable(now, &before.views, sink);
        self.finish_start();
        self.advance(now, sink);
    }

    /// Takes over the processes of earlier coordinators once the first store of this epoch is done: watches and dials
    /// each process. Then continues the stop that the state records, or else gives the orders of all durable views.
    fn adopt(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for server in &mut self.servers {
            if let Some(started) = server.started {
                server.spawned = Some(now);
                server.suspected = Some(now);
                sink.push(Effect::Adopt { started });
                let address = SocketAddr::new(started.address, started.coord_port);
                sink.push(Effect::Dial { member: server.member, address });
            }
        }
        if self.memory.durable().is_stopping {
            return self.on_stop(now, sink);
        }
        self.order_all_views(sink);
    }

    /// Takes every step that follows from the known facts and the time, unless the stored state is outdated.
    fn advance(&mut self, now: Time, sink: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.awake.0.look(now);
        if self.is_outdated {
            return;
        }
        self.memory.on_time(self.now);
        self.found_views();
        self.stop_if_all_leave(now, sink);
        self.move_out(now, sink);
        self.lead_out(now, sink);
        self.inquire(now, sink);
        self.order_again(now, sink);
        self.decide_views(now, sink);
        self.replace_processes(now, sink);
        self.order_flush(now, sink);
        self.store(sink);
        self.memory.end_trouble(self.now);
        self.note_settled();
        self.show_recovery(sink);
        self.advance_stop(now, sink);
        self.renew_alarms();
    }

    /// Returns whether lost copies and processes may be replaced. The cluster must serve and must not be stopping, and
    /// after a restart of the coordinator every server must have reported, be dead, or be late.
    fn recovers(&self) -> bool {
        self.has_served() && self.stop.is_none() && self.has_asked_all()
    }
}

/// Other inputs, and status.
impl Cluster {
    /// Handles the orderly exit of a server's process after a request to stop or the orphan timeout. Complete dumps
    /// hold all its data. The exit is a proof of death, but not a fault.
    pub fn on_left(&mut self, now: Time, member: Member, sink: &mut Vec<Effect>) {
        let server = self.server_mut(member.server);
        if server.member == member && !server.exited {
            server.left = !mutations::is_open(Mutation::OrderlyExitIsDeath);
        }
        self.on_exited(now, member, sink);
    }

    /// Handles the proven end of a server's process.
    pub fn on_exited(&mut self, now: Time, member: Member, sink: &mut Vec<Effect>) {
        let server = self.server_mut(member.server);
        if server.member != member || server.exited {
            return;
        }
        server.exited = true;
        server.left |= server.stage.has_complete_dumps();
        server.orders_connected = false;
        server.outstanding.clear();
        let was_useless = server.started.is_none() && server.spawned.is_some();
        if was_useless && self.has_served() {
            self.note_failure(now, member.server, sink);
        }
        self.fail_start(member.server, StartFailure::Exited, sink);
        self.set_down(now, member.server, DownCause::Exited, sink);
        self.tell_proofs(member, sink);
        self.advance(now, sink);
    }

    /// Returns the time at which [`Cluster::on_timeout`] must be called next; `None` if no step depends on time.
    pub fn next_timeout(&self) -> Option<Time> {
        if self.is_over() {
            return None;
        }
        let start = self.next_start_timeout();
        let judge = (self.judge_from > self.now).then_some(self.judge_from);
        let recovery = [self.next_inquiry_timeout(), self.next_order_again(), judge];
        let others = [self.next_respawn_timeout(), self.next_leave_timeout()];
        let recovery = recovery.into_iter().chain(others).flatten().min();
        let recovery = recovery.filter(|_| self.stop.is_none());
        let store = self.memory.again_at();
        [start, self.detector.next_timeout(), self.next_stop_timeout(), recovery, store]
            .into_iter()
            .flatten()
            .min()
    }

    /// Handles the passage of time.
    pub fn on_timeout(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for server in self.detector.silent(now) {
            self.set_down(now, server, DownCause::Silent, sink);
        }
        self.fail_late_start(now, sink);
        self.advance(now, sink);
    }

    /// Returns the map that clients use to route requests. Until the cluster serves, its views name no server.
    pub fn map(&self) -> Map {
        let servers = self.servers.iter().map(|server| MapServer {
            id: server.member.server,
            incarnation: match server.started {
                Some(_) => server.member.incarnation,
                None => Incarnation(0),
            },
            state: server.state,
            clients: server.address(|started| started.clients_port),
        });
        Map {
            cluster: self.config.cluster,
            ancestors: self.memory.durable().ancestors.clone(),
            epoch: self.config.epoch,
            revision: MapRevision(self.revision),
            shards: self.config.shards,
            servers: servers.collect(),
            views: match self.has_served() {
                true => self.views().to_vec(),
                false => (0..self.count()).map(|group| no_view(GroupId(group))).collect(),
            },
            hash_tags: self.config.hash_tags,
        }
    }

    /// Returns a number that increases whenever the map or a server's state changes. The caller can use it to validate
    /// cached data.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Returns the number of servers of the ring.
    pub fn count(&self) -> u16 {
        u16::try_from(self.servers.len()).expect("a ring has at most 1,024 servers")
    }

    /// Returns the durable views of all groups, by group.
    pub fn views(&self) -> &[View] {
        &self.memory.durable().views
    }

    /// Returns the durable state.
    pub fn durable(&self) -> &DurableState {
        self.memory.durable()
    }

    /// Returns the configuration of the cluster.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// Returns the process at a place of the ring.
    pub fn member(&self, server: ServerId) -> Member {
        self.server(server).member
    }

    /// Returns the STARTED report of a server; `None` before the report arrives.
    pub fn started(&self, server: ServerId) -> Option<&Started> {
        self.server(server).started.as_ref()
    }

    /// Returns whether the process of a server is proven to have ended.
    pub fn has_exited(&self, server: ServerId) -> bool {
        self.server(server).exited
    }

    /// Returns whether this process is the current one of its place and is not proven to have ended.
    pub fn may_run(&self, member: Member) -> bool {
        !self.is_dead(member)
    }
}

fn no_view(group: GroupId) -> View {
    View { group, version: ViewVersion(0), primary: None, peer: Peer::None, handover: false }
}
