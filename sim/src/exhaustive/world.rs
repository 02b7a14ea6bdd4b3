//! One state of the whole group: the numbers of the machines' states, the messages in transit, and the observations
//! of clients.

use std::collections::VecDeque;

use kv_protocol::ids::{Epoch, Member, OrderId};
use kv_protocol::view::View;

use super::brain::Coordinating;
use super::client::{Clients, Script};
use super::driven::Driven;
use super::machine::{Numbered, StateId, Unfolding};
use super::node::{Papers, Served};
use super::replica::{FrameId, Frames};
use super::scope::Scope;

/// The known states of all machines, and the objects to which inputs and outputs refer by number.
#[derive(Default)]
pub struct Machines {
    /// Shards with their drivers.
    pub replicas: Unfolding<Driven>,
    /// The parts of servers that serve the coordinator.
    pub nodes: Unfolding<Served>,
    /// The coordinator.
    pub brains: Unfolding<Coordinating>,
    /// Frames on streams.
    pub frames: Frames,
    /// Orders and reports.
    pub papers: Papers,
    /// The views that shards are ordered to install, with the ids of the orders.
    pub installs: Numbered<(OrderId, View)>,
}

/// One state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The time, equal for all processes.
    pub tick: u8,
    /// The processes in the order of their start.
    pub processes: Vec<Process>,
    /// The streams between the processes.
    pub connections: Vec<Connection>,
    /// The coordinator.
    pub brain: StateId,
    /// The number of the coordinator's store in progress.
    pub storing: Option<u64>,
    /// The processes that the coordinator has started and that have not reported yet.
    pub spawning: Vec<Member>,
    /// The number of links to the coordinator so far.
    pub links: u64,
    /// The observations of clients.
    pub clients: Clients,
    /// The bounds on further events.
    pub left: Left,
    /// The view version under which a candidate was reported as caught up, by process and shard of the primary.
    pub caught_up: Vec<(u8, u8, u64)>,
}

/// The bounds on further events: the number of times that each may still occur.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Ticks of time.
    pub ticks: u8,
    /// Reads.
    pub reads: u8,
    /// Retries of a write.
    pub retries: u8,
    /// Kills of processes.
    pub kills: u8,
    /// Starts of processes.
    pub spawns: u8,
    /// Breaks of connections.
    pub breaks: u8,
    /// Links to the coordinator that end without the death of the process.
    pub suspicions: u8,
    /// Heartbeats that count as votes.
    pub votes: u8,
    /// Reconnections of servers after the end of their links to the coordinator.
    pub returns: u8,
    /// Restarts of the coordinator.
    pub restarts: u8,
    /// Heartbeats from dead processes.
    pub ghosts: u8,
    /// Late duplicates of reports.
    pub late_reports: u8,
}

/// One server process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// The identity of the process.
    pub member: Member,
    /// True while the process runs.
    pub alive: bool,
    /// True if the coordinator has ordered the kill of the process. The kill takes effect later.
    pub is_condemned: bool,
    /// True if the current coordinator has received the proof of the process's exit.
    pub proven: bool,
    /// The state of the process's node.
    pub node: StateId,
    /// The states of the replicas, by shard.
    pub shards: Vec<StateId>,
    /// Messages from the node, by shard, if their delivery is a separate step.
    pub inboxes: Vec<VecDeque<Told>>,
    /// Orders in transit to the process.
    pub orders: VecDeque<Paper>,
    /// Orders of a dead coordinator, which arrive on a separate connection.
    pub late: VecDeque<Paper>,
    /// Reports in transit from the process.
    pub reports: VecDeque<u32>,
    /// The link to the coordinator: its number, and whether it is up.
    pub link: (u64, bool),
}

/// A message on an order connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Paper {
    /// The coordinator's hello.
    Hello(Epoch),
    /// An order.
    Order(u32),
}

/// A message from a node to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Install the view of this order.
    Install(u32),
    /// A process has died.
    Exited(Member),
}

/// A connection between two replicas of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// The shard.
    pub shard: u8,
    /// The dialling process and the dialled one, with the state of each side.
    pub ends: [(u8, End); 2],
    /// Frames in transit to each end.
    pub to: [VecDeque<FrameId>; 2],
}

/// The frame number that marks the end of a connection.
pub const CLOSED: FrameId = 0;

/// The state of one side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The connection was dialled, and the hello has not arrived yet.
    Pending,
    /// The replica on this side uses the connection as its stream.
    Attached,
    /// Closed.
    Gone,
}

/// A possible next event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A node receives the next order.
    Order(u8),
    /// A node receives the next message of a dead coordinator.
    LateOrder(u8),
    /// The coordinator receives a server's next report.
    Report(u8),
    /// The coordinator receives a server's next report. The same report will arrive once more later.
    ReportTwice(u8),
    /// A shard receives the next message of its node.
    Inbox(u8, u8),
    /// An end of a connection receives the next frame: connection, side.
    Frame(u8, u8),
    /// A shard wakes for a timer that is due.
    Wake(u8, u8),
    /// A tick passes.
    Tick,
    /// A process is killed.
    Kill(u8),
    /// The coordinator receives the proof of a process's exit.
    Proof(u8),
    /// The link of a process to the coordinator ends.
    Suspect(u8),
    /// A heartbeat of a live process arrives.
    Heartbeat(u8),
    /// A process connects to the coordinator again.
    Back(u8),
    /// A heartbeat of a dead process arrives.
    Ghost(u8),
    /// A connection breaks.
    Break(u8),
    /// A process receives the request of a write: write, process.
    Ask(u8, u8),
    /// A process receives a read: key, process.
    Read(u8, u8),
    /// The next started process reports.
    Spawned,
    /// The store in progress becomes durable.
    Stored,
    /// The coordinator dies, and another one starts.
    Restart,
}

impl Process {
    /// Creates a process.
    pub fn new(machines: &mut Machines, scope: &Scope, member: Member) -> Process {
        let shards = scope.shards;
        let placement = kv_protocol::placement::Placement::new(super::replica::SERVERS, shards);
        let make =
            |shard| machines.replicas.make((member, kv_protocol::ids::ShardId(shard), placement));
        Process {
            member,
            alive: true,
            is_condemned: false,
            proven: false,
            shards: (0..shards).map(make).collect(),
            node: machines.nodes.make((member, shards)),
            inboxes: vec![VecDeque::new(); usize::from(shards)],
            orders: VecDeque::new(),
            late: VecDeque::new(),
            reports: VecDeque::new(),
            link: (0, false),
        }
    }
}

impl World {
    /// Creates the state before any event.
    pub fn new(machines: &mut Machines, scope: &Scope, script: &Script) -> World {
        World {
            tick: 0,
            processes: Vec::new(),
            connections: Vec::new(),
            brain: machines.brains.make(scope.shards),
            storing: None,
            spawning: Vec::new(),
            links: 0,
            clients: Clients::new(script),
            left: Left::default(),
            caught_up: Vec::new(),
        }
    }

    /// Returns the process of a member.
    pub fn process_of(&self, member: Member) -> Option<usize> {
        self.processes.iter().position(|process| process.member == member)
    }
}
