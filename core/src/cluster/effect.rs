//! The output of the cluster state machine: effects for its caller, and reasons for rejected inputs.

use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::control_message::{Following, Order, Started};
use kv_protocol::{ClusterId, GroupId, Incarnation, Member, ServerId, View, ViewVersion};

use super::{DurableState, StopOutcome, StopPhase, StopWait};

/// An action for the caller, or an event to show to the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// Make this state durable (file and directory synced), then call [`Cluster::on_stored`]. At most one store is in
    /// progress.
    ///
    /// [`Cluster::on_stored`]: super::Cluster::on_stored
    Store {
        /// The number of the store.
        number: u64,
        /// The state to store.
        state: Box<DurableState>,
    },
    /// Start a process with this incarnation at its place of the ring. Report when it has exited or could not be
    /// started.
    Spawn {
        /// The process.
        member: Member,
    },
    /// Watch this process of an earlier coordinator, and report when it has exited.
    Adopt {
        /// The STARTED report of the process.
        started: Started,
    },
    /// A group has a new durable view.
    ViewChanged {
        /// The previous view.
        before: View,
        /// The new view.
        view: View,
    },
    /// The recovery of a place of the ring has reached a step, or is over.
    Recovery {
        /// The place.
        server: ServerId,
        /// The step, 0 to 5; `None` if the recovery is over.
        step: Option<u8>,
    },
    /// Several attempts in a row to fill a place of the ring have failed; attempts continue.
    KeepsFailing {
        /// The place.
        server: ServerId,
    },
    /// The members of this group do not receive each other's messages, and neither responds to the coordinator.
    Unanswered {
        /// The group.
        group: GroupId,
    },
    /// The secondary of a group was removed because it did not keep up. After a back-off it gets a new copy.
    CannotFollow {
        /// The secondary.
        server: ServerId,
        /// The group.
        group: GroupId,
        /// The reported reason.
        reason: Following,
    },
    /// A second server has failed before the recovery of the first one was over.
    DoubleFault {
        /// The first.
        first: ServerId,
        /// The second.
        second: ServerId,
    },
    /// Keep a connection for orders to this server, and report when it is up.
    Dial {
        /// The process to connect to.
        member: Member,
        /// The address at which the process accepts the coordinator's connection.
        address: SocketAddr,
    },
    /// Send this order over the current connection.
    Order {
        /// The process that gets the order.
        to: Member,
        /// The order.
        order: Order,
    },
    /// Every group has both copies; clients may be served.
    Serving,
    /// The start has failed and is not retried.
    StartFailed {
        /// The server that caused the failure.
        server: ServerId,
        /// The reason.
        reason: StartFailure,
    },
    /// A server is down.
    Down {
        /// The server.
        member: Member,
        /// The observation that showed that it is down.
        cause: DownCause,
    },
    /// A server that was down reports again.
    Back {
        /// The server.
        member: Member,
    },
    /// A server could not carry out an order.
    OrderFailed {
        /// The server.
        member: Member,
        /// The order.
        order: &'static str,
        /// The reason given by the server.
        reason: String,
        /// True if the order is given again.
        again: bool,
    },
    /// An orderly stop has waited for a server for longer than usual, and continues to wait.
    StopWaits {
        /// The server.
        member: Member,
        /// The reason.
        why: StopWait,
    },
    /// A dump of a replica has failed and is not retried: the operator has forced the stop.
    GivenUp {
        /// The server whose dump is abandoned.
        member: Member,
        /// The group of the table.
        group: GroupId,
        /// True if another replica has dumped the same group.
        is_dumped: bool,
    },
    /// One server leaves in an orderly way, at its own request.
    Leaving {
        /// The server.
        member: Member,
    },
    /// Every holder of every group was told to stop or has left. So the cluster is stopped in an orderly way.
    AllLeave,
    /// The orderly stop of the cluster has entered this phase.
    Stopping(StopPhase),
    /// End this process, and only this process.
    Kill {
        /// The process.
        member: Member,
        /// The reason.
        reason: KillReason,
    },
    /// The orderly stop is over.
    Stopped(StopOutcome),
    /// A server has a newer view than the state with which this coordinator began. The state machine stops deciding and
    /// giving orders. The caller must exit and leave the servers running.
    Outdated {
        /// The server with the newer view.
        server: ServerId,
        /// The group of the view.
        group: GroupId,
        /// The version in the state.
        known: ViewVersion,
        /// The version reported.
        reported: ViewVersion,
    },
}

/// The observation that showed a server to be down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownCause {
    /// No heartbeat for the configured time.
    Silent,
    /// Its connection to the coordinator ended.
    LinkLost,
    /// Its process is proven to have ended.
    Exited,
}

/// The reason to kill a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KillReason {
    /// The process has not reported yet: it holds no data, and its address is unknown.
    #[error("it had not reported yet")]
    NotStarted,
    /// The process did not report on these orders in time. No data is lost with it.
    #[error("it did not respond to {0} in time")]
    Unanswered(&'static str),
    /// No view names the process any more, and it is silent, has not reported in time, or has failed repeatedly as
    /// a candidate.
    #[error("it is being replaced")]
    Replaced,
    /// The operator requested a stop that does not wait for this process.
    #[error("the operator requested an immediate stop")]
    Hurry,
}

/// The reason why a cluster cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// The end of a server's process.
    #[error("its process ended before the cluster served")]
    Exited,
    /// A server that did not report in time.
    #[error("it did not report within {} s", .0.as_secs())]
    NotStarted(Duration),
    /// A server that did not connect to its secondary in time.
    #[error("it did not connect to its secondary within {} s", .0.as_secs())]
    NotConnected(Duration),
    /// A server that could not carry out an order.
    #[error("it could not carry out {order}: {reason}")]
    OrderFailed {
        /// The order.
        order: &'static str,
        /// The reason given by the server.
        reason: String,
    },
}

/// The reason why a STARTED is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartedRefused {
    /// The server belongs to another cluster.
    #[error(
        "the server was started for cluster {theirs}, but this is cluster {ours}; check -h and -m"
    )]
    OtherCluster {
        /// This cluster.
        ours: ClusterId,
        /// The cluster for which the server was started.
        theirs: ClusterId,
    },
    /// The ring has no such place.
    #[error("there is no server {server} in a ring of {servers}; check -S and -n")]
    NoSuchServer {
        /// The place that the sender claims.
        server: ServerId,
        /// The number of places in the ring.
        servers: u16,
    },
    /// This coordinator did not start the process.
    #[error(
        "incarnation {incarnation} of server {server} was not started by this coordinator; \
         servers are started by coord alone, not by hand"
    )]
    UnknownIncarnation {
        /// The place that the sender claims.
        server: ServerId,
        /// The incarnation that the sender claims.
        incarnation: Incarnation,
    },
    /// The number of shards differs from the cluster's.
    #[error(
        "it runs with --shards {theirs}, the cluster with --shards {ours}; give both the same number"
    )]
    OtherShards {
        /// The number of shards of the cluster.
        ours: u16,
        /// The number of shards of the server.
        theirs: u16,
    },
    /// The server has accepted orders of a later coordinator.
    #[error(
        "it follows a coordinator of epoch {theirs}, but this coordinator has the earlier epoch {ours}"
    )]
    LaterEpoch {
        /// The epoch of this coordinator.
        ours: u64,
        /// The highest epoch that the server has accepted.
        theirs: u64,
    },
    /// The same process has reported other ports before, so one of the two reports is false.
    #[error("incarnation {incarnation} of server {server} has already reported other ports")]
    OtherPorts {
        /// The place that the sender claims.
        server: ServerId,
        /// The incarnation that the sender claims.
        incarnation: Incarnation,
    },
    /// The process currently reports on another connection.
    #[error("incarnation {incarnation} of server {server} reports on another connection")]
    Linked {
        /// The place that the sender claims.
        server: ServerId,
        /// The incarnation that the sender claims.
        incarnation: Incarnation,
    },
    /// The process is proven dead.
    #[error("incarnation {incarnation} of server {server} is known to have exited")]
    Exited {
        /// The place that the sender claims.
        server: ServerId,
        /// The incarnation that the sender claims.
        incarnation: Incarnation,
    },
}

/// The reason why a message was ignored. The caller counts such messages; none is an error of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ignored {
    /// The message names a process other than the one admitted on this connection.
    #[error("the message names another incarnation")]
    OtherIncarnation,
    /// The message arrived over a connection that a newer one has replaced.
    #[error("the message arrived over a connection that was replaced")]
    OldLink,
    /// The message names something that the cluster does not have.
    #[error("the message names {0} that the cluster does not have")]
    Impossible(&'static str),
    /// The report is on an order that is no longer outstanding: it is late or repeated.
    #[error("the report is on an order that is not outstanding")]
    NotOutstanding,
}
