//! One state of the whole group: machines by number, what is on its way, what clients know.

use std::collections::VecDeque;

use kv_protocol::ids::{Epoch, Member, OrderId};
use kv_protocol::view::View;

use super::brain::Coordinating;
use super::client::{Clients, Script};
use super::machine::{Numbered, StateId, Unfolding};
use super::node::{Papers, Served};
use super::replica::{Driven, FrameId, Frames};
use super::scope::Scope;

/// The machines of all states, and what their inputs and outputs name by number.
#[derive(Default)]
pub struct Machines {
    /// Replicas with their drivers.
    pub replicas: Unfolding<Driven>,
    /// Servers towards the coordinator.
    pub nodes: Unfolding<Served>,
    /// The coordinator.
    pub brains: Unfolding<Coordinating>,
    /// Bytes on streams.
    pub frames: Frames,
    /// Orders and reports.
    pub papers: Papers,
    /// Views that shards are told to install, and the orders they are of.
    pub installs: Numbered<(OrderId, View)>,
}

/// One state.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The time, for everybody.
    pub tick: u8,
    /// In order of birth.
    pub processes: Vec<Process>,
    /// Streams between them.
    pub connections: Vec<Connection>,
    /// The coordinator.
    pub brain: StateId,
    /// What it has given to its disk.
    pub storing: Option<u64>,
    /// Processes that the coordinator has started, and that have not reported.
    pub spawning: Vec<Member>,
    /// Numbers the links of processes to it.
    pub links: u64,
    /// What clients know.
    pub clients: Clients,
    /// What may still happen.
    pub left: Left,
    /// The version under which a primary was told to have its candidate caught up: process, shard.
    pub caught_up: Vec<(u8, u8, u64)>,
}

/// How often what may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Ticks of time.
    pub ticks: u8,
    /// Reads.
    pub reads: u8,
    /// Requests for a write beside its first.
    pub retries: u8,
    /// Processes that are killed.
    pub kills: u8,
    /// Processes that report for the first time.
    pub spawns: u8,
    /// Connections that break.
    pub breaks: u8,
    /// Links to the coordinator that end without a death.
    pub suspicions: u8,
    /// Heartbeats that count as votes.
    pub votes: u8,
    /// Returns of servers whose links to the coordinator had ended.
    pub returns: u8,
    /// Deaths of the coordinator.
    pub restarts: u8,
    /// Heartbeats of the dead.
    pub ghosts: u8,
    /// Copies of reports that arrive late.
    pub late_reports: u8,
}

/// One server process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Who it is.
    pub member: Member,
    /// Whether it runs.
    pub alive: bool,
    /// Whether the coordinator has it killed, which takes its time.
    pub is_condemned: bool,
    /// Whether the present coordinator has had the proof of its end.
    pub proven: bool,
    /// Towards the coordinator.
    pub node: StateId,
    /// By shard.
    pub shards: Vec<StateId>,
    /// By shard: what the node has told it, where that takes a step of its own.
    pub inboxes: Vec<VecDeque<Told>>,
    /// Orders on their way to it.
    pub orders: VecDeque<Paper>,
    /// Those of a dead coordinator, on a connection of their own.
    pub late: VecDeque<Paper>,
    /// Reports on their way from it.
    pub reports: VecDeque<u32>,
    /// Its link to the coordinator: the number, and whether it stands.
    pub link: (u64, bool),
}

/// What goes over a connection for orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Paper {
    /// The coordinator's first word.
    Hello(Epoch),
    /// An order.
    Order(u32),
}

/// What a node tells a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// To install the view of this order.
    Install(u32),
    /// Of a death.
    Exited(Member),
}

/// A connection between two replicas of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Of which shard.
    pub shard: u8,
    /// Who dialled, and who is dialled.
    pub ends: [(u8, End); 2],
    /// What is on its way to each end.
    pub to: [VecDeque<FrameId>; 2],
}

/// The end of a connection, for one side.
pub const CLOSED: FrameId = 0;

/// One side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Dialled; the hello has not come.
    Pending,
    /// It is the replica's stream.
    Attached,
    /// Closed.
    Gone,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A node takes the next order.
    Order(u8),
    /// A node takes the next of what a dead coordinator had sent.
    LateOrder(u8),
    /// The coordinator takes a server's next report.
    Report(u8),
    /// The same, and the same report arrives once more later.
    ReportTwice(u8),
    /// A shard takes what its node told it.
    Inbox(u8, u8),
    /// An end of a connection takes the next frame.
    Frame(u8, u8),
    /// A shard wakes, because it wanted to.
    Wake(u8, u8),
    /// A tick passes.
    Tick,
    /// A process is killed.
    Kill(u8),
    /// Its end is proven to the coordinator.
    Proof(u8),
    /// Its link to the coordinator ends.
    Suspect(u8),
    /// It sends a heartbeat.
    Heartbeat(u8),
    /// It connects again.
    Back(u8),
    /// A heartbeat of a dead process arrives.
    Ghost(u8),
    /// A connection breaks.
    Break(u8),
    /// A write is asked of a process.
    Ask(u8, u8),
    /// A key is read at a process.
    Read(u8, u8),
    /// The next process that was started reports.
    Spawned,
    /// What is being stored becomes durable.
    Stored,
    /// The coordinator dies, and another one goes on.
    Restart,
}

impl Process {
    /// A new process.
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
    /// Before anything has happened.
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

    /// The process of a member.
    pub fn process_of(&self, member: Member) -> Option<usize> {
        self.processes.iter().position(|process| process.member == member)
    }
}
