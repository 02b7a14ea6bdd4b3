//! What happens at some true time, in order.

use std::cmp::Ordering;
use std::net::SocketAddr;

use kv_core::cluster::KillReason;
use kv_protocol::Member;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{GroupId, OrderId};

use crate::nemesis::Kind;
use crate::network::{Actor, ConnectionNumber};
use crate::world::Temptation;

/// What happens.
#[derive(Debug)]
pub enum Happening {
    /// Bytes come to an end of a connection.
    Arrive(ConnectionNumber, usize, Vec<u8>),
    /// What a cut held back from an end comes to it.
    Release(ConnectionNumber, usize),
    /// An end learns that its connection is over.
    End(ConnectionNumber, usize),
    /// A dial comes to its address, or to nobody.
    Dial {
        /// Who dials.
        from: Actor,
        /// Whom.
        to: Target,
        /// What for.
        purpose: Purpose,
    },
    /// A dial has failed.
    DialFailed(Actor, Purpose),
    /// An executor wakes up.
    WakeShard(usize, usize),
    /// A process beats, or tries its link again.
    Beat(usize),
    /// The coordinator wakes up by time.
    WakeCoordinator(u64),
    /// The store of this number is on the disk of the coordinator of this term.
    Stored(u64, u64),
    /// A process that was spawned runs.
    Spawned(Member),
    /// A process is killed.
    Killed(Member, KillReason),
    /// The coordinator of this term learns that a process has ended.
    Proof(u64, Member),
    /// The coordinator of this term dials a process for orders.
    DialOrders(u64, Member, SocketAddr),
    /// The dead coordinator is followed by another.
    RestartCoordinator,
    /// A paused process, or the paused coordinator, goes on.
    Resume(Option<usize>),
    /// A client wakes up.
    WakeClient(usize),
    /// A client's machine sleeps for this time.
    SleepClient(usize, u64),
    /// A client's machine has slept for this time.
    ClientSlept(usize, u64),
    /// All machines sleep for this time.
    SleepAll(u64),
    /// A client goes on as a copy of another.
    Clone,
    /// The answer to a client's question for the map.
    Map(usize, Box<kv_protocol::map::Map>),
    /// A question for the map comes to the coordinator.
    AskMap(usize),
    /// A process gets memory again.
    MemoryIsBack(usize),
    /// The next fault is thought of.
    Nemesis,
    /// A fault in this step of the recovery of a place.
    Strike(usize, u8),
    /// A fault that waits for a write to be in flight, so many times more.
    StrikeAgain(usize, Kind, Option<u8>, u8),
    /// The operator gives this place to another host.
    Move(usize),
    /// Two places, in the moment of a hand-over, lose sight of each other, once a write is in flight;
    /// looked for so many times more.
    Part(usize, usize, u8),
    /// What was cut is healed.
    Heal,
    /// The link of whoever runs at this place to the coordinator breaks.
    BreakLink(usize),
    /// A hello of this term, long under way, comes to a process.
    Zombie(kv_protocol::Epoch, Member),
    /// Whoever runs at this place is told to stop by a signal.
    SignalAt(usize),
    /// So many neighbours, from a place that chance chooses, are told to stop within so many nanoseconds.
    SignalMany(usize, u64),
    /// A process is told to stop.
    Signal(usize),
    /// The process at this place is paused: a neighbour of it was told to stop.
    StrikeNeighbour(usize),
    /// An executor of a starved process stands again, and then this many more times.
    StandAgain(usize, usize, u8),
    /// The coordinator is out of reach of every server.
    Orphan,
    /// A process that was told to stop has waited long enough for its coordinator.
    LeaveAlone(usize),
    /// A process that was told to stop is told again, and waits no longer.
    LeaveNow(usize),
    /// Whether a process has drained by now, since it was ordered to.
    LookAtDrain(usize, OrderId, u64),
    /// A dump of this number is on the disk of its process's host.
    DumpWritten(usize, u64),
    /// The coordinator's order to dump has failed at a process.
    DumpFailed(usize, OrderId),
    /// A process that leaves alone tries a dump again.
    DumpAgain(usize, ReplicaRole),
    /// All processes are suspended, in a stop or a restore.
    Suspend,
    /// All processes are suspended for a shorter time, in this step of the recovery of a place.
    SuspendInStep(usize, u8),
    /// The operator insists on the end of a stop.
    Force,
    /// The operator stops the cluster.
    Stop,
    /// The coordinator of this term has seen the stop to its end.
    Stopped(u64),
    /// The operator restores the cluster.
    Restore,
    /// Whoever runs at this place ends.
    Crash(usize),
    /// Whether what is left of a group is to crash now.
    Tempt(Temptation),
}

/// Whom a dial means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The coordinator, whoever that is.
    Coordinator,
    /// The executor of this number at the process of this address.
    Process(SocketAddr, usize),
    /// The port for orders of the process of this address.
    Orders(SocketAddr),
}

/// What a dial is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A process's heartbeats; the number of the try.
    Link(u64),
    /// A group's stream.
    Stream(GroupId),
    /// The coordinator's orders to this process.
    Orders(Member),
}

/// A happening and its time; equal times go by the order in which they were made.
#[derive(Debug)]
pub struct Event {
    /// True time, in nanoseconds.
    pub at: u64,
    /// Makes the order total.
    pub number: u64,
    /// What.
    pub happening: Happening,
}

impl PartialEq for Event {
    fn eq(&self, other: &Event) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Event) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    /// The earliest is the greatest, for a heap.
    fn cmp(&self, other: &Event) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
