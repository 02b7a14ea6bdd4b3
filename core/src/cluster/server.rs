//! The coordinator's state of one server: its process, its last sign of life, and its outstanding orders.

use std::fmt;
use std::net::SocketAddr;

use kv_protocol::control_message::{Heartbeat, Order, Started};
use kv_protocol::map::ServerState;
use kv_protocol::{Member, ServerId, Time};

use super::respawn::Backoff;
use super::stop::{Stage, StopTime};
use super::{Cluster, DownCause, Effect, LinkId};

/// The number of consecutive heartbeats without a stream after which the stream counts as down. A single one may be
/// older than the report that the stream is up, because that report travels on another connection.
pub(super) const BEATS_UNTIL_DISCONNECTED: u8 = 2;

/// Facts that are used only for alarms.
#[derive(Default)]
pub(super) struct Signs {
    /// The reason why the host does not report whether the process has ended.
    pub(super) unreachable: Option<String>,
    /// The last output of a process that ended, or could not be started, at this place.
    pub(super) failure: Option<String>,
    /// The time since which the server accepts orders although no heartbeat arrives.
    pub(super) orders_since: Option<Time>,
    /// The time of the last heartbeat that reported further writes rejected for lack of space.
    pub(super) refused_at: Option<Time>,
}

/// Like alarms, these facts affect no decision, so the `Debug` output omits them.
impl fmt::Debug for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signs")
    }
}

/// The known state of one server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) member: Member,
    pub(super) state: ServerState,
    /// The time at which the process was started, or taken over from an earlier coordinator.
    pub(super) spawned: Option<Time>,
    pub(super) exited: bool,
    /// True if the process has made an orderly exit: complete dumps hold all its data.
    pub(super) left: bool,
    /// The time of the last notice to a leaving server that its request is in progress.
    pub(super) kept_waiting: Option<Time>,
    /// True if the server itself has requested to leave.
    pub(super) wants_to_leave: bool,
    /// The time at which the server was marked down or was taken over; `None` once it reports.
    pub(super) suspected: Option<Time>,
    /// True if the process must be replaced: it has failed repeatedly, or an earlier coordinator may have ordered its
    /// kill. It is killed once no view names it.
    pub(super) is_condemned: bool,
    /// True if a verdict on a complaint removed the server from a group. Until its groups are home again, this counts
    /// against it in any further complaint.
    pub(super) was_judged: bool,
    /// The time of the last kill; `kills` is the number of kills.
    pub(super) killed: Option<Time>,
    pub(super) kills: u32,
    /// The number of failures of this process as a candidate or as a secondary that did not keep up.
    pub(super) failures: u32,
    pub(super) backoff: Backoff,
    pub(super) started: Option<Started>,
    pub(super) link: Option<LinkId>,
    pub(super) orders_connected: bool,
    /// Outstanding orders. An order that carries a view is dropped when its group gets a newer view. There is at most
    /// one proof of death for each place. In a stop there are at most one DRAIN, two dumps and one SHUTDOWN.
    pub(super) outstanding: Vec<Order>,
    pub(super) heartbeat: Option<(Time, Heartbeat)>,
    /// The time of the last sign of life, by the stop's clock.
    pub(super) beat: StopTime,
    /// The number of consecutive heartbeats that report its stream to the secondary as down.
    pub(super) beats_without_stream: u8,
    pub(super) stage: Stage,
    pub(super) signs: Signs,
    /// The last recovery step shown.
    pub(super) shown: Option<u8>,
    /// Orders that newer views have replaced. A mutation accepts reports on them.
    #[cfg(feature = "mutations")]
    pub(super) retired: std::collections::VecDeque<Order>,
}

impl Server {
    pub(super) fn new(member: Member) -> Server {
        Server {
            member,
            state: ServerState::Starting,
            spawned: None,
            exited: false,
            left: false,
            kept_waiting: None,
            wants_to_leave: false,
            suspected: None,
            is_condemned: false,
            was_judged: false,
            killed: None,
            kills: 0,
            failures: 0,
            backoff: Backoff::default(),
            started: None,
            link: None,
            orders_connected: false,
            outstanding: Vec::new(),
            heartbeat: None,
            beat: StopTime::default(),
            beats_without_stream: 0,
            stage: Stage::Running,
            signs: Signs::default(),
            shown: None,
            #[cfg(feature = "mutations")]
            retired: std::collections::VecDeque::new(),
        }
    }

    pub(super) fn address(&self, port: fn(&Started) -> u16) -> Option<SocketAddr> {
        self.started.as_ref().map(|started| SocketAddr::new(started.address, port(started)))
    }

    pub(super) fn is_up(&self) -> bool {
        self.state == ServerState::Up
    }
}

impl Cluster {
    pub(super) fn server(&self, id: ServerId) -> &Server {
        &self.servers[usize::from(id.0)]
    }

    pub(super) fn server_mut(&mut self, id: ServerId) -> &mut Server {
        &mut self.servers[usize::from(id.0)]
    }

    /// Records a sign of life of a server.
    pub(super) fn heard(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        self.detector.heard(now, id);
        let beat = self.stop_clock(now);
        let server = self.server_mut(id);
        server.beat = StopTime(beat);
        let member = server.member;
        server.suspected = None;
        match std::mem::replace(&mut server.state, ServerState::Up) {
            ServerState::Up => return,
            ServerState::Starting => {}
            ServerState::Down => sink.push(Effect::Back { member }),
        }
        self.revision += 1;
    }

    /// Marks a server down. No effect reports the end of a server that was ordered to exit or killed in a stop.
    pub(super) fn set_down(
        &mut self,
        now: Time,
        id: ServerId,
        cause: DownCause,
        sink: &mut Vec<Effect>,
    ) {
        self.detector.forget(id);
        let server = self.server_mut(id);
        server.suspected.get_or_insert(now);
        let (member, leaves) = (server.member, server.stage.is_leaving());
        let was = std::mem::replace(&mut server.state, ServerState::Down);
        // The exit of a silent server is reported too, because it shows that the process cannot report again.
        if !leaves && (was != ServerState::Down || cause == DownCause::Exited) {
            sink.push(Effect::Down { member, cause });
        }
        self.revision += 1;
    }
}
