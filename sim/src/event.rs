//! The events of a run, ordered by true time.

use std::cmp::Ordering;
use std::net::SocketAddr;

use kv_core::cluster::KillReason;
use kv_protocol::Member;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::OrderId;

use kv_shard::DialTarget;

use crate::nemesis::Kind;
use crate::network::{Actor, ConnectionNumber};
use crate::world::Temptation;

/// The content of an event.
#[derive(Debug)]
pub enum Happening {
    /// Bytes arrive at one side of a connection.
    Arrive(ConnectionNumber, usize, Vec<u8>),
    /// One side of a connection observes the end of input: the other side has shut down its sending direction.
    EndOfInput(ConnectionNumber, usize),
    /// Bytes that a cut held back arrive at one side of a connection.
    Release(ConnectionNumber, usize),
    /// One side of a connection observes that the connection was closed.
    End(ConnectionNumber, usize),
    /// A dial arrives at its target address. Possibly no process listens at this address.
    Dial {
        /// The dialling process.
        from: Actor,
        /// The target.
        to: Target,
        /// The purpose of the connection.
        purpose: Purpose,
    },
    /// A dial has failed.
    DialFailed(Actor, Purpose),
    /// An executor wakes up: process, shard.
    WakeShard(usize, usize),
    /// The heartbeat timer of a process fires: it sends a heartbeat, or dials the coordinator if it has no link.
    Beat(usize),
    /// A timer of the coordinator of this term is due.
    WakeCoordinator(u64),
    /// A store ends at the coordinator of a term: term, number of the store. It fails if the disk is full.
    Stored(u64, u64),
    /// A spawned process starts.
    Spawned(Member),
    /// A process is killed.
    Killed(Member, KillReason),
    /// The coordinator of this term receives the proof that a process has exited.
    Proof(u64, Member),
    /// The coordinator of this term dials a process for orders.
    DialOrders(u64, Member, SocketAddr),
    /// A new coordinator process starts after the previous one has died.
    RestartCoordinator,
    /// A paused process resumes; `None` stands for the paused coordinator.
    Resume(Option<usize>),
    /// A client wakes up.
    WakeClient(usize),
    /// A Redis client wakes up.
    WakeRedis(usize),
    /// A client's machine is suspended for this time.
    SleepClient(usize, u64),
    /// A client's machine resumes after a suspension of this length.
    ClientSlept(usize, u64),
    /// All machines are suspended for this time.
    SleepAll(u64),
    /// A client becomes a clone of another.
    Clone,
    /// The response to a client's map request arrives.
    Map(usize, Box<kv_protocol::map::Map>),
    /// A client's map request arrives at the coordinator.
    AskMap(usize),
    /// A process can allocate memory again.
    MemoryIsBack(usize),
    /// The nemesis chooses the next fault.
    Nemesis,
    /// A fault strikes in this step of the recovery of a place.
    Strike(usize, u8),
    /// The nemesis checks again whether a write is in flight, and then injects a fault: place, kind, step, further
    /// checks.
    StrikeAgain(usize, Kind, Option<u8>, u8),
    /// The operator moves this place to another host.
    Move(usize),
    /// Two places in a hand-over are cut off from each other once a write is in flight: the places, further checks.
    Part(usize, usize, u8),
    /// All cuts are healed.
    Heal,
    /// The link between the process at this place and the coordinator breaks.
    BreakLink(usize),
    /// A delayed hello of an earlier coordinator with this epoch arrives at a process.
    Zombie(kv_protocol::Epoch, Member),
    /// The process at this place receives a stop signal.
    SignalAt(usize),
    /// Neighbouring processes receive stop signals: the number of processes, and the time span in nanoseconds.
    SignalMany(usize, u64),
    /// A process receives a stop signal.
    Signal(usize),
    /// The process at this place is paused, because one of its neighbours received a stop signal.
    StrikeNeighbour(usize),
    /// A starved executor stalls: process, shard, number of stalls including this one.
    StandAgain(usize, usize, u8),
    /// The coordinator becomes unreachable from every server for a while.
    Orphan,
    /// A process that received a stop signal has waited for its coordinator until the timeout.
    LeaveAlone(usize),
    /// A process that received a stop signal receives a second one and waits no longer.
    LeaveNow(usize),
    /// The progress of a process that was ordered to drain is checked.
    LookAtDrain(usize, OrderId, u64),
    /// The dump with this number is durable on the disk of its process's host.
    DumpWritten(usize, u64),
    /// The coordinator's dump order has failed at a process.
    DumpFailed(usize, OrderId),
    /// A process that leaves by itself retries a dump.
    DumpAgain(usize, ReplicaRole),
    /// All processes are suspended, during a stop or a restore.
    Suspend,
    /// All processes are suspended for a shorter time, in this step of the recovery of a place.
    SuspendInStep(usize, u8),
    /// The operator forces the end of a stop.
    Force,
    /// The operator stops the cluster.
    Stop,
    /// The coordinator of this term has completed the stop, or the start of its restored cluster has failed.
    Stopped(u64),
    /// The operator restores the cluster.
    Restore,
    /// The process at this place crashes.
    Crash(usize),
    /// The wall clock of a host is set once a write is in flight, or after this number of further checks.
    StepClock(u8),
    /// The load of a run begins.
    Flood,
    /// The next page of a scan is due.
    Scan,
    /// The administrator begins a flush, or checks its progress.
    Flush,
    /// Crashes the remaining holder of a group if it has acknowledged a write alone.
    Tempt(Temptation),
}

/// The target of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The current process of the coordinator.
    Coordinator,
    /// An executor of the process at this address.
    Process(SocketAddr),
    /// The order port of the process at this address.
    Orders(SocketAddr),
}

/// The purpose of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The heartbeat link of a process; the number of the attempt.
    Link(u64),
    /// A connection that a shard needs.
    Shard(DialTarget),
    /// The coordinator's orders to this process.
    Orders(Member),
}

/// An event with its time. Events with equal times are ordered by their creation.
#[derive(Debug)]
pub struct Event {
    /// True time, in nanoseconds.
    pub at: u64,
    /// The creation number, which orders events with equal times.
    pub number: u64,
    /// The event.
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
    /// Orders the earliest event as the greatest, for a max-heap.
    fn cmp(&self, other: &Event) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
