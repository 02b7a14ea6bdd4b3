//! The coordinator's brain: who is up, who holds which group, how the cluster starts, recovers and
//! stops.
//!
//! ```text
//!   STARTED, HEARTBEAT, REPORT,      +---------+      store, spawn, dial, order, kill,
//!   lost links, exits, stored,  ---> | Cluster | ---> what happened (Effect)
//!   the time                         +---------+
//!
//!   start    every STARTED -> view 1 of every group -> stored -> SET-SECONDARY -> every report
//!            -> stored -> serving
//!   recover  facts -> reconcile: the next view of a group -> stored -> orders         (views.rs)
//!            nobody names it any more: kill, proof, a new process in its place      (respawn.rs)
//!   stop     DRAIN to all -> dumps at all -> SHUTDOWN to all -> everyone has exited     (stop.rs)
//! ```
//!
//! The caller drives it: it passes the time and every input, and carries out the effects of one
//! input before it gives the next. Orders are kept until they are reported, and repeated whenever
//! the connection for orders comes back. Nothing is told, by order or by map, before it is durable
//! (durable.rs). A silent server is suspected until it is heard again, or judged by the other member of
//! a group (suspicion.rs); one whose process has exited is dead for good.

use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::control_message::{Heartbeat, Order, OrderKind, Report, Started};
use kv_protocol::limits::GRACE;
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::{
    ClusterId, Epoch, GroupId, Incarnation, Member, OrderId, Peer, ServerId, Time, View,
    ViewVersion,
};

use crate::failure_detector::FailureDetector;
use crate::holes::{self, Hole};

mod double_fault;
mod durable;
mod effect;
pub mod reconcile;
mod recovery;
mod respawn;
mod status;
mod stop;
mod suspicion;
#[cfg(test)]
mod tests;
mod views;

pub use double_fault::DoubleFault;
use durable::Memory;
pub use durable::{DurableServer, DurableState, Founding};
pub use effect::{DownCause, Effect, Ignored, KillReason, StartFailure, StartedRefused};
use respawn::{Backoff, draw};
pub use stop::{DUMP_BYTES_PER_SECOND, DUMP_RETRY_PAUSE, StopOutcome, StopPhase};
use stop::{Stage, Stop};
use views::Group;

/// How long a process that replaces another may take to report.
const REPLACEMENT_PATIENCE: Duration = Duration::from_secs(20);

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name.
    pub cluster: ClusterId,
    /// The coordinator's term.
    pub epoch: Epoch,
    /// Servers of the ring.
    pub servers: u16,
    /// Shards of every group.
    pub shards: u16,
    /// Random; the names of processes are drawn from it.
    pub seed: u64,
    /// What to do about a second fault.
    pub on_double_fault: DoubleFault,
    /// After how long a silence a server is suspected.
    pub silence: Duration,
    /// How long the whole start may take.
    pub start_patience: Duration,
    /// How long an orderly stop waits for an answer of each server.
    pub stop_patience: Duration,
}

/// Names one connection of a server to the coordinator, so that the end of an old one is not taken
/// for the end of its successor. The caller hands them out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// The whole cluster. See the module's description.
#[derive(Debug)]
pub struct Cluster {
    config: ClusterConfig,
    servers: Vec<Server>,
    groups: Vec<Group>,
    memory: Memory,
    detector: FailureDetector,
    start: Start,
    stop: Option<Stop>,
    next_order: OrderId,
    revision: u64,
    /// The latest time that it was told.
    now: Time,
    /// Nobody is judged without proof before this.
    judge_from: Time,
    /// Names drawn from the seed.
    drawn: u64,
    /// The place that is being recovered, and the two places of a double fault.
    recovering: Option<ServerId>,
    double_fault: Option<(ServerId, ServerId)>,
}

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Until(Time),
    Done,
    Failed,
}

/// What is known of one server.
#[derive(Debug)]
struct Server {
    member: Member,
    state: ServerState,
    /// When its process was started, or taken over from an earlier coordinator.
    spawned: Option<Time>,
    exited: bool,
    /// Since when it is silent.
    suspected: Option<Time>,
    /// It lives, but is of no use: to be killed when no view names it.
    is_condemned: bool,
    /// When it was last killed.
    killed: Option<Time>,
    backoff: Backoff,
    started: Option<Started>,
    link: Option<LinkId>,
    orders_connected: bool,
    /// For each of its groups an order of a view and a proof, and a probe; or one DRAIN, two dumps and
    /// one SHUTDOWN.
    outstanding: Vec<Order>,
    heartbeat: Option<(Time, Heartbeat)>,
    /// Heartbeats in a row that say that the stream to its secondary is down.
    beats_without_stream: u8,
    stage: Stage,
    /// The step of its recovery that was shown last.
    shown: Option<u8>,
    /// Orders of updates that newer views have replaced.
    #[cfg(feature = "holes")]
    retired: std::collections::VecDeque<Order>,
}

/// One heartbeat without a stream proves nothing: it may be older than the report that the stream
/// stands, which travels on another connection.
const BEATS_UNTIL_DISCONNECTED: u8 = 2;

impl Server {
    fn new(member: Member) -> Server {
        Server {
            member,
            state: ServerState::Starting,
            spawned: None,
            exited: false,
            suspected: None,
            is_condemned: false,
            killed: None,
            backoff: Backoff::default(),
            started: None,
            link: None,
            orders_connected: false,
            outstanding: Vec::new(),
            heartbeat: None,
            beats_without_stream: 0,
            stage: Stage::Running,
            shown: None,
            #[cfg(feature = "holes")]
            retired: std::collections::VecDeque::new(),
        }
    }

    fn address(&self, port: fn(&Started) -> u16) -> Option<SocketAddr> {
        self.started.as_ref().map(|started| SocketAddr::new(started.address, port(started)))
    }

    fn is_up(&self) -> bool {
        self.state == ServerState::Up
    }

    /// Forgets the orders of a group's older views.
    fn retire(&mut self, group: GroupId) {
        let is_of_group = |order: &Order| order.view().is_some_and(|view| view.group == group);
        #[cfg(feature = "holes")]
        self.retired.extend(self.outstanding.iter().copied().filter(is_of_group));
        self.outstanding.retain(|order| !is_of_group(order));
    }
}

/// Making a cluster, and what it must remember.
impl Cluster {
    /// A new cluster, of empty tables. Its servers are spawned when the first store is done.
    pub fn found(now: Time, config: ClusterConfig, sink: &mut Vec<Effect>) -> Cluster {
        Cluster::found_from(now, config, Vec::new(), sink)
    }

    /// A cluster that is restored: it has a name of its own, and the processes that are spawned while it
    /// [is being founded](Cluster::is_founding) load what [`Plan`] says before they report. Both homes of
    /// a group load the same. Views go on above those that were; what is LOST stays so.
    ///
    /// [`Plan`]: crate::restore::Plan
    pub fn found_restored(
        now: Time,
        config: ClusterConfig,
        foundings: Vec<Founding>,
        sink: &mut Vec<Effect>,
    ) -> Cluster {
        assert_eq!(foundings.len(), usize::from(config.servers), "a ring has a group a server");
        Cluster::found_from(now, config, foundings, sink)
    }

    fn found_from(
        now: Time,
        config: ClusterConfig,
        foundings: Vec<Founding>,
        sink: &mut Vec<Effect>,
    ) -> Cluster {
        let servers = (1..=u64::from(config.servers)).map(|n| DurableServer {
            incarnation: Incarnation(draw(config.seed, n)),
            started: None,
        });
        let decided = DurableState {
            cluster: config.cluster,
            epoch: config.epoch,
            shards: config.shards,
            has_served: false,
            servers: servers.collect(),
            views: (0..config.servers).map(|group| no_view(GroupId(group))).collect(),
            foundings,
            is_stopping: false,
        };
        let nothing = DurableState { epoch: Epoch::default(), ..decided.clone() };
        let mut cluster = Cluster::of(now, config, Memory::new(decided, nothing));
        cluster.store(sink);
        cluster
    }

    /// The cluster that an earlier coordinator has left. Its epoch becomes `config.epoch`, which is
    /// above the stored one; nobody is contacted before that is durable.
    pub fn restart(
        now: Time,
        config: ClusterConfig,
        durable: DurableState,
        sink: &mut Vec<Effect>,
    ) -> Cluster {
        assert!(config.epoch.number > durable.epoch.number, "an epoch is above all before it");
        let decided = DurableState { epoch: config.epoch, ..durable.clone() };
        let has_served = durable.has_served;
        let mut cluster = Cluster::of(now, config, Memory::new(decided, durable));
        cluster.drawn = draw(cluster.config.seed, 0);
        cluster.judge_from = now + GRACE + cluster.config.silence;
        for id in (0..cluster.count()).map(ServerId) {
            let known = cluster.memory.durable().servers[usize::from(id.0)];
            if known.started.is_none() {
                // Spawned or not, nobody knows. It holds nothing; under its old name it is refused.
                cluster.decide_process(id);
                continue;
            }
            let server = cluster.server_mut(id);
            (server.started, server.state) = (known.started, ServerState::Down);
        }
        if has_served {
            cluster.start = Start::Done;
        }
        cluster.store(sink);
        cluster
    }

    fn of(now: Time, config: ClusterConfig, memory: Memory) -> Cluster {
        let count = config.servers;
        let ids = (0..count).map(ServerId);
        let servers: Vec<Server> = ids.map(|id| Server::new(memory.decided.member(id))).collect();
        Cluster {
            detector: FailureDetector::new(count, config.silence),
            start: Start::Until(now + config.start_patience),
            stop: None,
            next_order: OrderId::first_of(config.epoch),
            revision: 1,
            now,
            judge_from: Time::default(),
            drawn: u64::from(count),
            recovering: None,
            double_fault: None,
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

    /// What was given to be stored under this number is durable: file and directory are synced.
    pub fn on_stored(&mut self, now: Time, number: u64, sink: &mut Vec<Effect>) {
        let Some(before) = self.memory.on_stored(number) else { return };
        if before.epoch != self.config.epoch {
            self.adopt(now, sink);
        }
        self.begin_to_serve(sink);
        self.spawn_decided(now, sink);
        self.tell_durable(&before.views, sink);
        self.finish_start();
        self.advance(now, sink);
    }

    /// The first store of this term is done: the processes that an earlier one has left are watched
    /// and dialled, and told their views again.
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

    /// Takes every step that follows from what is known. Called after each input.
    fn advance(&mut self, now: Time, sink: &mut Vec<Effect>) {
        self.now = self.now.max(now);
        self.found_views();
        self.inquire(now, sink);
        self.order_again(now, sink);
        self.decide_views(now, sink);
        self.replace_processes(now, sink);
        self.store(sink);
        self.note_settled();
        self.show_recovery(sink);
        self.advance_stop(now, sink);
    }

    /// Whether the first views are not yet decided: a process that is spawned now is a founder.
    pub fn is_founding(&self) -> bool {
        self.memory.decided.views.iter().all(|view| view.version == ViewVersion(0))
    }

    /// Whether the start is over: every holder had its first view then. Before that no client is told
    /// where anything is, so a start that fails loses nothing.
    pub fn has_served(&self) -> bool {
        self.start == Start::Done
    }

    /// Whether groups and processes are brought back to where they are at home.
    fn recovers(&self) -> bool {
        self.has_served() && self.stop.is_none()
    }
}

/// Inputs.
impl Cluster {
    /// A server says where it listens, over a new connection.
    ///
    /// # Errors
    /// Why it is not admitted, in words that it can log.
    pub fn on_started(
        &mut self,
        now: Time,
        link: LinkId,
        started: &Started,
        sink: &mut Vec<Effect>,
    ) -> Result<(), StartedRefused> {
        self.check_started(started)?;
        let server = self.server_mut(started.member.server);
        if server.started.is_none() {
            let address = SocketAddr::new(started.address, started.coord_port);
            sink.push(Effect::Dial { member: started.member, address });
        }
        server.started = Some(*started);
        server.link = Some(link);
        // What it has obeyed grows; where it listens does not change.
        let known = &mut self.memory.decided.servers[usize::from(started.member.server.0)];
        known.started.get_or_insert(*started);
        self.heard(now, started.member.server, sink);
        self.revision += 1;
        self.advance(now, sink);
        Ok(())
    }

    fn check_started(&self, started: &Started) -> Result<(), StartedRefused> {
        let Member { server, incarnation } = started.member;
        if started.cluster != self.config.cluster {
            let ours = self.config.cluster;
            return Err(StartedRefused::OtherCluster { ours, theirs: started.cluster });
        }
        let Some(known) = self.servers.get(usize::from(server.0)) else {
            return Err(StartedRefused::NoSuchServer { server, servers: self.count() });
        };
        if known.member != started.member {
            return Err(StartedRefused::UnknownIncarnation { server, incarnation });
        }
        if known.exited {
            return Err(StartedRefused::Exited { server, incarnation });
        }
        if started.shards != self.config.shards {
            let ours = self.config.shards;
            return Err(StartedRefused::OtherShards { ours, theirs: started.shards });
        }
        if started.epoch.number > self.config.epoch.number {
            let ours = self.config.epoch.number;
            return Err(StartedRefused::LaterEpoch { ours, theirs: started.epoch.number });
        }
        if known.started.is_some_and(|earlier| !same_process(&earlier, started)) {
            return Err(StartedRefused::OtherPorts { server, incarnation });
        }
        // A server dials again when its link is lost: whoever claims its name while it reports on
        // another connection is not that server, or will find that link silent soon.
        if known.link.is_some() && known.state == ServerState::Up {
            return Err(StartedRefused::Linked { server, incarnation });
        }
        Ok(())
    }

    /// The state of a server, over the connection it was admitted on.
    ///
    /// # Errors
    /// Why nothing is learned from it.
    pub fn on_heartbeat(
        &mut self,
        now: Time,
        link: LinkId,
        server: ServerId,
        heartbeat: Heartbeat,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        if !holes::is_open(Hole::OldIncarnationHeartbeat) {
            self.check_link(link, server)?;
            if heartbeat.incarnation != self.server(server).member.incarnation {
                return Err(Ignored::OtherIncarnation);
            }
        }
        self.check_heartbeat(&heartbeat)?;
        let views = self.views();
        let without_stream = heartbeat.replicas.iter().any(|r| {
            let view = &views[usize::from(r.group.0)];
            r.state.is_primary() && r.view == view.version && view.other().is_some() && !r.connected
        });
        let known = self.server_mut(server);
        known.beats_without_stream =
            if without_stream { known.beats_without_stream.saturating_add(1) } else { 0 };
        known.heartbeat = Some((now, heartbeat));
        self.heard(now, server, sink);
        self.advance(now, sink);
        Ok(())
    }

    fn check_link(&self, link: LinkId, server: ServerId) -> Result<(), Ignored> {
        if self.server(server).link == Some(link) { Ok(()) } else { Err(Ignored::OldLink) }
    }

    /// Nobody of this cluster can know groups, shards, views or epochs that it does not have.
    fn check_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), Ignored> {
        if heartbeat.epoch.number > self.config.epoch.number {
            return Err(Ignored::Impossible("an epoch"));
        }
        for replica in &heartbeat.replicas {
            let Some(view) = self.views().get(usize::from(replica.group.0)) else {
                return Err(Ignored::Impossible("a group"));
            };
            if replica.shard.0 >= self.config.shards {
                return Err(Ignored::Impossible("a shard"));
            }
            if replica.view > view.version {
                return Err(Ignored::Impossible("a view"));
            }
        }
        Ok(())
    }

    /// A connection of a server ended. That of an admitted one means that the server is down, until
    /// it connects again.
    pub fn on_link_lost(
        &mut self,
        now: Time,
        link: LinkId,
        server: ServerId,
        sink: &mut Vec<Effect>,
    ) {
        if self.check_link(link, server).is_err() {
            return;
        }
        self.server_mut(server).link = None;
        self.set_down(now, server, DownCause::LinkLost, sink);
        self.advance(now, sink);
    }

    /// The process of a server has ended: proven, and final.
    pub fn on_exited(&mut self, now: Time, member: Member, sink: &mut Vec<Effect>) {
        let server = self.server_mut(member.server);
        if server.member != member || server.exited {
            return;
        }
        server.exited = true;
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

    /// The connection for orders stands: what is outstanding is sent, again if need be.
    pub fn on_orders_connected(&mut self, member: Member, sink: &mut Vec<Effect>) {
        let server = self.server_mut(member.server);
        if server.member != member || server.exited {
            return;
        }
        server.orders_connected = true;
        sink.extend(server.outstanding.iter().map(|&order| Effect::Order { to: member, order }));
    }

    /// The connection for orders broke; what is outstanding waits for the next.
    pub fn on_orders_lost(&mut self, member: Member) {
        let server = self.server_mut(member.server);
        if server.member == member {
            server.orders_connected = false;
        }
    }

    /// A server says how an order ended.
    ///
    /// # Errors
    /// A late or repeated report, or one of another incarnation, changes nothing.
    pub fn on_report(
        &mut self,
        now: Time,
        member: Member,
        report: Report,
        sink: &mut Vec<Effect>,
    ) -> Result<(), Ignored> {
        let server = self.server_mut(member.server);
        if server.member != member {
            return Err(Ignored::OtherIncarnation);
        }
        let is_meant = |order: &Order| order.id == report.id && order.view_version() == report.view;
        let at = server.outstanding.iter().position(is_meant);
        let order = match at {
            Some(at) => server.outstanding.remove(at),
            None => server.retired_order(&report).ok_or(Ignored::NotOutstanding)?,
        };
        let done = report.outcome.is_ok();
        let again = self.note_stop_report(now, member.server, &order, done);
        match &order.kind {
            OrderKind::View(view) => self.note_view_report(now, member.server, view, done),
            OrderKind::Probe if done => self.note_probe(now, &order),
            _ => {}
        }
        if let Err(reason) = report.outcome {
            let order = order.name();
            sink.push(Effect::OrderFailed { member, order, reason: reason.clone(), again });
            self.fail_start(member.server, StartFailure::OrderFailed { order, reason }, sink);
        }
        self.finish_start();
        self.advance(now, sink);
        Ok(())
    }

    /// When to call [`Cluster::on_timeout`] next.
    pub fn next_timeout(&self) -> Option<Time> {
        if self.is_over() {
            return None;
        }
        let start = match self.start {
            Start::Until(deadline) if self.stop.is_none() => {
                Some(deadline).filter(|_| !self.memory.decided.has_served)
            }
            _ => None,
        };
        let judge = (self.judge_from > self.now).then_some(self.judge_from);
        let recovery = [self.next_inquiry_timeout(), self.next_order_again(), judge];
        let recovery = recovery.into_iter().chain([self.next_respawn_timeout()]).flatten().min();
        let recovery = recovery.filter(|_| self.stop.is_none());
        [start, self.detector.next_timeout(), self.next_stop_timeout(), recovery]
            .into_iter()
            .flatten()
            .min()
    }

    /// Time has passed.
    pub fn on_timeout(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for server in self.detector.silent(now) {
            self.set_down(now, server, DownCause::Silent, sink);
        }
        if let Start::Until(deadline) = self.start
            && deadline <= now
        {
            let late = self.servers.iter().find(|server| server.started.is_none());
            let patience = self.config.start_patience;
            let failure = match late {
                Some(server) => (server.member.server, StartFailure::NotStarted(patience)),
                None => (self.first_with_orders(), StartFailure::NotConnected(patience)),
            };
            self.fail_start(failure.0, failure.1, sink);
        }
        self.advance(now, sink);
    }

    fn first_with_orders(&self) -> ServerId {
        let waiting = self.servers.iter().find(|server| !server.outstanding.is_empty());
        waiting.map_or(ServerId(0), |server| server.member.server)
    }

    /// The map that clients route by.
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
            epoch: self.config.epoch,
            shards: self.config.shards,
            servers: servers.collect(),
            views: match self.has_served() {
                true => self.views().to_vec(),
                false => (0..self.count()).map(|group| no_view(GroupId(group))).collect(),
            },
        }
    }

    /// Grows whenever the map or a server's state changes, so that the caller knows whether what it
    /// made of them is still true.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Servers of the ring.
    pub fn count(&self) -> u16 {
        u16::try_from(self.servers.len()).expect("a ring has at most 1,024 servers")
    }

    /// The durable views of all groups, in group order.
    pub fn views(&self) -> &[View] {
        &self.memory.durable().views
    }

    /// What is durable.
    pub fn durable(&self) -> &DurableState {
        self.memory.durable()
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &ClusterConfig {
        &self.config
    }

    /// The process that this cluster has at a place of the ring.
    pub fn member(&self, server: ServerId) -> Member {
        self.server(server).member
    }

    /// What a server said of itself; `None` before it started.
    pub fn started(&self, server: ServerId) -> Option<&Started> {
        self.server(server).started.as_ref()
    }

    /// Whether the process of a server is proven to have ended.
    pub fn has_exited(&self, server: ServerId) -> bool {
        self.server(server).exited
    }

    /// Whether this very process may still run.
    pub fn may_run(&self, member: Member) -> bool {
        !self.is_dead(member)
    }

    fn server(&self, id: ServerId) -> &Server {
        &self.servers[usize::from(id.0)]
    }

    fn server_mut(&mut self, id: ServerId) -> &mut Server {
        &mut self.servers[usize::from(id.0)]
    }

    fn heard(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        self.detector.heard(now, id);
        let server = self.server_mut(id);
        let member = server.member;
        server.suspected = None;
        match std::mem::replace(&mut server.state, ServerState::Up) {
            ServerState::Up => return,
            ServerState::Starting => {}
            ServerState::Down => sink.push(Effect::Back { member }),
        }
        self.revision += 1;
    }

    /// Marks a server down. The end of one that was told to leave is no news.
    fn set_down(&mut self, now: Time, id: ServerId, cause: DownCause, sink: &mut Vec<Effect>) {
        self.detector.forget(id);
        let server = self.server_mut(id);
        server.suspected.get_or_insert(now);
        let (member, leaves) = (server.member, server.stage.is_leaving());
        let was = std::mem::replace(&mut server.state, ServerState::Down);
        // That a silent server turns out to have exited is news: now it cannot come back.
        if !leaves && (was != ServerState::Down || cause == DownCause::Exited) {
            sink.push(Effect::Down { member, cause });
        }
        self.revision += 1;
    }

    /// Gives an order: sent at once where the connection stands, otherwise when it does.
    fn give(&mut self, to: ServerId, kind: OrderKind, sink: &mut Vec<Effect>) -> OrderId {
        let order = Order { id: self.next_order, kind };
        self.next_order.0 += 1;
        let server = self.server_mut(to);
        server.outstanding.push(order);
        if server.orders_connected {
            sink.push(Effect::Order { to: server.member, order });
        }
        order.id
    }

    /// Every first view is confirmed, so every holder has it: that is remembered, and then told.
    fn finish_start(&mut self) {
        let connected = self
            .views()
            .iter()
            .all(|view| view.version > ViewVersion(0) && self.is_confirmed_or_lost(view));
        if matches!(self.start, Start::Until(_)) && connected && self.stop.is_none() {
            self.memory.decided.has_served = true;
        }
    }

    /// A store is done: if it says that every first view is confirmed, the start is over.
    fn begin_to_serve(&mut self, sink: &mut Vec<Effect>) {
        let is_starting = matches!(self.start, Start::Until(_)) && self.stop.is_none();
        if is_starting && self.memory.durable().has_served {
            self.start = Start::Done;
            self.revision += 1;
            sink.push(Effect::Serving);
        }
    }

    /// A start that is being stopped anyway, or that everybody has done his part for, cannot fail any
    /// more.
    fn fail_start(&mut self, server: ServerId, reason: StartFailure, sink: &mut Vec<Effect>) {
        let is_starting = matches!(self.start, Start::Until(_)) && self.stop.is_none();
        if is_starting && !self.memory.decided.has_served {
            self.start = Start::Failed;
            sink.push(Effect::StartFailed { server, reason });
        }
    }
}

impl Server {
    /// A stale report, taken all the same: a hole for the simulator to notice.
    fn retired_order(&mut self, report: &Report) -> Option<Order> {
        #[cfg(feature = "holes")]
        if holes::is_open(Hole::StaleUpdatedAccepted) {
            return self.retired.iter().copied().find(|order| order.id == report.id);
        }
        let _ = report;
        None
    }
}

fn no_view(group: GroupId) -> View {
    View { group, version: ViewVersion(0), primary: None, peer: Peer::None, handover: false }
}

fn same_process(one: &Started, other: &Started) -> bool {
    let place = |s: &Started| (s.pid, s.start_time, s.address, s.clients_port, s.servers_port);
    place(one) == place(other) && one.coord_port == other.coord_port
}
