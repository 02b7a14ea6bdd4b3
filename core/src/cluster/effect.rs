//! What comes out of the cluster's brain: effects for its caller, and why inputs are refused.

use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::control_message::{Following, Order, Started};
use kv_protocol::{ClusterId, GroupId, Incarnation, Member, ServerId, View, ViewVersion};

use super::{DurableState, StopOutcome, StopPhase, StopWait};

/// What the caller is to do, or to tell people.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// Make this durable (file and directory synced), and say so by [`Cluster::on_stored`]. There is
    /// never more than one under way.
    ///
    /// [`Cluster::on_stored`]: super::Cluster::on_stored
    Store {
        /// Names it.
        number: u64,
        /// What to store.
        state: Box<DurableState>,
    },
    /// Start a process of this name at its place of the ring, and say when it has exited, or could not
    /// be started.
    Spawn {
        /// Its name.
        member: Member,
    },
    /// Watch this process, which an earlier coordinator has started, and say when it has exited.
    Adopt {
        /// What it said of itself.
        started: Started,
    },
    /// A group has a new view, and it is durable.
    ViewChanged {
        /// The view before.
        before: View,
        /// The new one.
        view: View,
    },
    /// The recovery of a place of the ring is in this step (0 to 5), or over.
    Recovery {
        /// The place.
        server: ServerId,
        /// The step.
        step: Option<u8>,
    },
    /// A place of the ring could not be filled again and again; it is tried on.
    KeepsFailing {
        /// The place.
        server: ServerId,
    },
    /// The members of this group do not hear each other, and neither answers here.
    Unanswered {
        /// The group.
        group: GroupId,
    },
    /// The secondary of a group was removed because it did not keep up; it is tried again after a pause.
    CannotFollow {
        /// The secondary.
        server: ServerId,
        /// The group.
        group: GroupId,
        /// What was reported of it.
        reason: Following,
    },
    /// A second server is gone before the first was back.
    DoubleFault {
        /// The first.
        first: ServerId,
        /// The second.
        second: ServerId,
    },
    /// Keep a connection for orders to this server, and say when it stands.
    Dial {
        /// The process meant.
        member: Member,
        /// Its port for the coordinator.
        address: SocketAddr,
    },
    /// Send this order over the connection that stands.
    Order {
        /// The process meant.
        to: Member,
        /// What it is to do.
        order: Order,
    },
    /// Every group has both its copies: clients are welcome.
    Serving,
    /// The start has failed for good.
    StartFailed {
        /// At which server.
        server: ServerId,
        /// Why.
        reason: StartFailure,
    },
    /// A server is down.
    Down {
        /// Which.
        member: Member,
        /// How that was noticed.
        cause: DownCause,
    },
    /// A server that was down is heard again.
    Back {
        /// Which.
        member: Member,
    },
    /// A server could not do what it was ordered to.
    OrderFailed {
        /// Which.
        member: Member,
        /// What it was ordered.
        order: &'static str,
        /// Why not, in its words.
        reason: String,
        /// Whether it is given the order once more.
        again: bool,
    },
    /// An orderly stop waits for a server for longer than usual. It goes on waiting.
    StopWaits {
        /// Which.
        member: Member,
        /// Why.
        why: StopWait,
    },
    /// A dump of a replica has failed, and is not tried again: the operator insists.
    GivenUp {
        /// Whose table is given up.
        member: Member,
        /// The group that it holds.
        group: GroupId,
        /// Whether another replica has dumped the same group.
        is_dumped: bool,
    },
    /// One server is stopped in order, at its own request.
    Leaving {
        /// Which.
        member: Member,
    },
    /// No holder of any group stays: all were told to stop, or have left. The cluster is stopped in order.
    AllLeave,
    /// The orderly stop of the cluster enters this phase.
    Stopping(StopPhase),
    /// End this process, and only this process.
    Kill {
        /// Which.
        member: Member,
        /// Why.
        reason: KillReason,
    },
    /// The orderly stop is over.
    Stopped(StopOutcome),
    /// A server knows of a newer view than the memory that this coordinator began with. Nothing is
    /// decided or told any more: end, and leave the servers as they are.
    Outdated {
        /// Who knows of it.
        server: ServerId,
        /// Of which group.
        group: GroupId,
        /// The view in the memory.
        known: ViewVersion,
        /// The one that was reported.
        reported: ViewVersion,
    },
}

/// How a server was found to be down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// No heartbeat for the configured time.
    Silent,
    /// Its connection to the coordinator ended.
    LinkLost,
    /// Its process has ended: proven.
    Exited,
}

/// Why a process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KillReason {
    /// It has not reported yet: it holds nothing, and nobody can talk to it.
    #[error("it had not reported yet")]
    NotStarted,
    /// It did not answer these orders in time; no data is lost with it.
    #[error("it did not answer {0} in time")]
    Unanswered(&'static str),
    /// No view names it any more, and it is silent or of no use.
    #[error("it is to be replaced")]
    Replaced,
    /// Whoever stops the cluster does not want to wait.
    #[error("the stop was not to wait for it")]
    Hurry,
}

/// Why a cluster cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// Its process ended.
    #[error("its process ended before the cluster served")]
    Exited,
    /// It did not report in time.
    #[error("it did not report within {} s", .0.as_secs())]
    NotStarted(Duration),
    /// It did not connect to its secondary in time.
    #[error("it did not connect to its secondary within {} s", .0.as_secs())]
    NotConnected(Duration),
    /// It could not do what it was ordered to.
    #[error("it could not carry out {order}: {reason}")]
    OrderFailed {
        /// The order.
        order: &'static str,
        /// Why not, in the server's words.
        reason: String,
    },
}

/// Why a STARTED is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartedRefused {
    /// Another cluster's server.
    #[error("this is cluster {ours}, not {theirs}; check -h and -m")]
    OtherCluster {
        /// This cluster.
        ours: ClusterId,
        /// The one it was started for.
        theirs: ClusterId,
    },
    /// A place that the ring does not have.
    #[error("there is no server {server} in a ring of {servers}; check -S and -n")]
    NoSuchServer {
        /// The place it claims.
        server: ServerId,
        /// Places of the ring.
        servers: u16,
    },
    /// A process that this coordinator did not start.
    #[error(
        "incarnation {incarnation} of server {server} was not started by this coordinator; \
         servers are started by coord alone, not by hand"
    )]
    UnknownIncarnation {
        /// The place it claims.
        server: ServerId,
        /// The process it claims to be.
        incarnation: Incarnation,
    },
    /// Another number of shards than the cluster's.
    #[error("it runs with --shards {theirs}, the cluster with --shards {ours}")]
    OtherShards {
        /// The cluster's.
        ours: u16,
        /// The server's.
        theirs: u16,
    },
    /// It has obeyed a later coordinator.
    #[error("it has obeyed epoch {theirs}, this coordinator's is {ours}")]
    LaterEpoch {
        /// This coordinator's.
        ours: u64,
        /// The one it has obeyed.
        theirs: u64,
    },
    /// The same process with other ports: one of the two is not what it says.
    #[error("incarnation {incarnation} of server {server} has already reported other ports")]
    OtherPorts {
        /// The place it claims.
        server: ServerId,
        /// The process it claims to be.
        incarnation: Incarnation,
    },
    /// The process reports on another connection at this moment.
    #[error("incarnation {incarnation} of server {server} reports on another connection")]
    Linked {
        /// The place it claims.
        server: ServerId,
        /// The process it claims to be.
        incarnation: Incarnation,
    },
    /// A process that is proven dead cannot report.
    #[error("incarnation {incarnation} of server {server} is known to have exited")]
    Exited {
        /// The place it claims.
        server: ServerId,
        /// The process it claims to be.
        incarnation: Incarnation,
    },
}

/// Why a message changed nothing. Each is counted by the caller; none is an error of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ignored {
    /// It speaks for another process than the one that this connection was admitted for.
    #[error("it speaks for another incarnation")]
    OtherIncarnation,
    /// It came over a connection that a newer one has replaced.
    #[error("it came over a connection that was replaced")]
    OldLink,
    /// It says what cannot be.
    #[error("it reports on {0} that the cluster does not have")]
    Impossible(&'static str),
    /// A report of an order that is not outstanding: late or repeated.
    #[error("it reports on an order that is not outstanding")]
    NotOutstanding,
}
