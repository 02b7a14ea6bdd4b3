//! The coordinator's brain: who is up, who holds which group, and how the cluster starts and stops.
//!
//! ```text
//!   STARTED, HEARTBEAT, REPORT,      +---------+      dial, order, kill,
//!   lost links, exits, stop,   ----> | Cluster | ---> what happened (Effect)
//!   the time                         +---------+
//!
//!   start   every STARTED -> view 1 of every group -> SET-SECONDARY to all -> reported -> serving
//!   stop    DRAIN to all -> dumps at all -> SHUTDOWN to all -> everyone has exited   (stop.rs)
//! ```
//!
//! The caller drives it: it passes the time and every input, and carries out the effects of one
//! input before it gives the next. Orders are kept until they are reported, and repeated whenever
//! the connection for orders comes back. A server's reports count only for the very process
//! (incarnation) that this cluster was started with. A silent server is down until it is heard
//! again; one whose process has exited stays down.

use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::{Heartbeat, Order, OrderKind, Report, Started};
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::{
    ClusterId, Epoch, GroupId, Incarnation, Member, OrderId, Peer, ServerId, Time, View,
    ViewVersion,
};

use crate::failure_detector::FailureDetector;

mod effect;
mod status;
mod stop;
#[cfg(test)]
mod tests;

pub use effect::{DownCause, Effect, Ignored, KillReason, StartFailure, StartedRefused};
pub use stop::{DUMP_BYTES_PER_SECOND, DUMP_RETRY_PAUSE, StopOutcome, StopPhase};
use stop::{Stage, Stop};

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name.
    pub cluster: ClusterId,
    /// The coordinator's term.
    pub epoch: Epoch,
    /// Shards of every group.
    pub shards: u16,
    /// The process started at each place of the ring.
    pub incarnations: Vec<Incarnation>,
    /// After how long a silence a server counts as down.
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
    views: Vec<View>,
    detector: FailureDetector,
    start: Start,
    stop: Option<Stop>,
    next_order: OrderId,
    revision: u64,
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
    exited: bool,
    started: Option<Started>,
    link: Option<LinkId>,
    orders_connected: bool,
    /// At most one SET-SECONDARY, one DRAIN, two dumps and one SHUTDOWN.
    outstanding: Vec<Order>,
    heartbeat: Option<(Time, Heartbeat)>,
    /// Heartbeats in a row that say that the stream to its secondary is down.
    beats_without_stream: u8,
    stage: Stage,
}

/// One heartbeat without a stream proves nothing: it may be older than the report that the stream
/// stands, which travels on another connection.
const BEATS_UNTIL_DISCONNECTED: u8 = 2;

impl Server {
    fn new(member: Member) -> Server {
        Server {
            member,
            state: ServerState::Starting,
            exited: false,
            started: None,
            link: None,
            orders_connected: false,
            outstanding: Vec::new(),
            heartbeat: None,
            beats_without_stream: 0,
            stage: Stage::Running,
        }
    }

    fn address(&self, port: fn(&Started) -> u16) -> Option<SocketAddr> {
        self.started.as_ref().map(|started| SocketAddr::new(started.address, port(started)))
    }

    fn is_up(&self) -> bool {
        self.state == ServerState::Up
    }
}

impl Cluster {
    /// A cluster whose servers have just been spawned.
    pub fn new(now: Time, config: ClusterConfig) -> Cluster {
        let members = (0..).map(ServerId).zip(config.incarnations.iter().copied());
        let servers: Vec<Server> = members
            .map(|(server, incarnation)| Server::new(Member { server, incarnation }))
            .collect();
        let count = u16::try_from(servers.len()).expect("a ring has at most 1,024 servers");
        let views = (0..count).map(|group| no_view(GroupId(group))).collect();
        Cluster {
            detector: FailureDetector::new(count, config.silence),
            start: Start::Until(now + config.start_patience),
            stop: None,
            next_order: OrderId(1),
            revision: 1,
            config,
            servers,
            views,
        }
    }

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
        self.heard(now, started.member.server, sink);
        self.revision += 1;
        self.connect_ring(sink);
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
        self.check_link(link, server)?;
        if heartbeat.incarnation != self.server(server).member.incarnation {
            return Err(Ignored::OtherIncarnation);
        }
        self.check_heartbeat(&heartbeat)?;
        let own_view = self.views[usize::from(server.0)].version;
        let without_stream = heartbeat
            .replicas
            .iter()
            .any(|r| r.role == ReplicaRole::Primary && r.view >= own_view && !r.connected);
        let known = self.server_mut(server);
        known.beats_without_stream =
            if without_stream { known.beats_without_stream.saturating_add(1) } else { 0 };
        known.heartbeat = Some((now, heartbeat));
        self.heard(now, server, sink);
        self.advance_stop(now, sink);
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
            let Some(view) = self.views.get(usize::from(replica.group.0)) else {
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
        self.set_down(server, DownCause::LinkLost, sink);
        self.advance_stop(now, sink);
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
        self.fail_start(member.server, StartFailure::Exited, sink);
        self.set_down(member.server, DownCause::Exited, sink);
        self.advance_stop(now, sink);
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
        let Some(at) = server.outstanding.iter().position(|order| order.id == report.id) else {
            return Err(Ignored::NotOutstanding);
        };
        let order = server.outstanding.remove(at);
        let again = self.note_stop_report(now, member.server, &order, report.outcome.is_ok());
        match report.outcome {
            Ok(_) if matches!(order.kind, OrderKind::SetSecondary { .. }) => {
                self.finish_start(sink);
            }
            Ok(_) => {}
            Err(reason) => {
                let order = order.name();
                sink.push(Effect::OrderFailed { member, order, reason: reason.clone(), again });
                self.fail_start(member.server, StartFailure::OrderFailed { order, reason }, sink);
            }
        }
        self.advance_stop(now, sink);
        Ok(())
    }

    /// When to call [`Cluster::on_timeout`] next.
    pub fn next_timeout(&self) -> Option<Time> {
        if self.is_over() {
            return None;
        }
        let start = match self.start {
            Start::Until(deadline) if self.stop.is_none() => Some(deadline),
            _ => None,
        };
        [start, self.detector.next_timeout(), self.next_stop_timeout()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn on_timeout(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for server in self.detector.silent(now) {
            self.set_down(server, DownCause::Silent, sink);
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
        self.advance_stop(now, sink);
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
            views: self.views.clone(),
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
        match std::mem::replace(&mut server.state, ServerState::Up) {
            ServerState::Up => return,
            ServerState::Starting => {}
            ServerState::Down => sink.push(Effect::Back { member }),
        }
        self.revision += 1;
    }

    /// Marks a server down. The end of one that was told to leave is no news.
    fn set_down(&mut self, id: ServerId, cause: DownCause, sink: &mut Vec<Effect>) {
        self.detector.forget(id);
        let server = self.server_mut(id);
        let (member, leaves) = (server.member, server.stage.is_leaving());
        let was = std::mem::replace(&mut server.state, ServerState::Down);
        // That a silent server turns out to have exited is news: now it cannot come back.
        if !leaves && (was != ServerState::Down || cause == DownCause::Exited) {
            sink.push(Effect::Down { member, cause });
        }
        self.revision += 1;
    }

    /// Once all have started: the first view of every group, and the order that makes it true.
    fn connect_ring(&mut self, sink: &mut Vec<Effect>) {
        let is_new = self.views.iter().all(|view| view.version == ViewVersion(0));
        let complete = self.servers.iter().all(|server| server.started.is_some());
        if !is_new || !complete || self.stop.is_some() {
            return;
        }
        for n in 0..self.count() {
            let group = GroupId(n);
            let secondary = self.member(group.home_secondary(self.count()));
            let view = View {
                group,
                version: ViewVersion(1),
                primary: Some(self.member(group.home_primary())),
                peer: Peer::Secondary(secondary),
                handover: false,
            };
            self.views[usize::from(n)] = view;
            let address = self
                .server(secondary.server)
                .address(|started| started.servers_port)
                .expect("every server of the ring has started");
            let order = OrderKind::SetSecondary { view, secondary: address };
            self.give(group.home_primary(), order, sink);
        }
        self.revision += 1;
    }

    /// Gives an order: sent at once where the connection stands, otherwise when it does.
    fn give(&mut self, to: ServerId, kind: OrderKind, sink: &mut Vec<Effect>) {
        let order = Order { id: self.next_order, kind };
        self.next_order.0 += 1;
        let server = self.server_mut(to);
        server.outstanding.push(order);
        if server.orders_connected {
            sink.push(Effect::Order { to: server.member, order });
        }
    }

    fn finish_start(&mut self, sink: &mut Vec<Effect>) {
        let connected = self.servers.iter().all(|server| server.outstanding.is_empty());
        if matches!(self.start, Start::Until(_)) && connected && self.stop.is_none() {
            self.start = Start::Done;
            self.revision += 1;
            sink.push(Effect::Serving);
        }
    }

    /// A start that is being stopped anyway cannot fail any more.
    fn fail_start(&mut self, server: ServerId, reason: StartFailure, sink: &mut Vec<Effect>) {
        if matches!(self.start, Start::Until(_)) && self.stop.is_none() {
            self.start = Start::Failed;
            sink.push(Effect::StartFailed { server, reason });
        }
    }
}

fn no_view(group: GroupId) -> View {
    View { group, version: ViewVersion(0), primary: None, peer: Peer::None, handover: false }
}

fn same_process(one: &Started, other: &Started) -> bool {
    let place = |s: &Started| (s.pid, s.start_time, s.address, s.clients_port, s.servers_port);
    place(one) == place(other) && one.coord_port == other.coord_port
}
