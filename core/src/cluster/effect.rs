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
    /// started, with [`Cluster::on_left`] or [`Cluster::on_exited`].
    ///
    /// [`Cluster::on_left`]: super::Cluster::on_left
    /// [`Cluster::on_exited`]: super::Cluster::on_exited
    Spawn {
        /// The process to start.
        member: Member,
    },
    /// Watch this process of an earlier coordinator, and report when it has exited.
    Adopt {
        /// The STARTED report of the process.
        started: Started,
    },
    /// A group has a new durable view.
    ViewChanged {
        /// The view that was durable before.
        before: View,
        /// The view that is durable now.
        view: View,
    },
    /// The recovery of a place of the ring has reached a step, or is over.
    Recovery {
        /// The place that is being recovered.
        server: ServerId,
        /// The step, 0 to 5; `None` if the recovery is over.
        step: Option<u8>,
    },
    /// The processes at a place of the ring have failed three times in a row; attempts to fill it continue.
    KeepsFailing {
        /// The place that could not be filled.
        server: ServerId,
    },
    /// A member of this group complains about the other one, and no member that may stay responded to a probe.
    Unanswered {
        /// The group with the complaint.
        group: GroupId,
    },
    /// The secondary of a group was removed because it did not keep up. After a back-off it gets a new copy.
    CannotFollow {
        /// The server of the removed secondary.
        server: ServerId,
        /// The group from which it was removed.
        group: GroupId,
        /// The reason from the report of the secondary or its primary.
        reason: Following,
    },
    /// A second server has failed before the recovery of the first one was over, or the last holder of a group is dead.
    DoubleFault {
        /// The server that failed first, or the other home server of the group.
        first: ServerId,
        /// The server that failed now.
        second: ServerId,
    },
    /// Keep a connection for orders to this server, and report when it is up and when it is lost.
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
        /// The order to send.
        order: Order,
    },
    /// Every group has both copies, or is LOST in a restored cluster; clients may be served.
    Serving,
    /// The start has failed and is not retried.
    StartFailed {
        /// The server that caused the failure.
        server: ServerId,
        /// The reason why the start has failed.
        reason: StartFailure,
    },
    /// A server is down.
    Down {
        /// The process that is down.
        member: Member,
        /// The observation that showed that it is down.
        cause: DownCause,
    },
    /// A server that was down reports again.
    Back {
        /// The process that reports again.
        member: Member,
    },
    /// A server could not carry out an order.
    OrderFailed {
        /// The process that got the order.
        member: Member,
        /// The name of the order.
        order: &'static str,
        /// The reason given by the server.
        reason: String,
        /// True if the order is for a dump that is retried.
        again: bool,
    },
    /// An orderly stop has waited for a server for longer than usual, and continues to wait.
    StopWaits {
        /// The process for which the stop waits.
        member: Member,
        /// The reason why the stop waits.
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
    /// One server leaves in an orderly way.
    Leaving {
        /// The process that leaves.
        member: Member,
        /// The reason for the leave.
        why: LeaveReason,
    },
    /// No holder of any group stays: each is leaving, has left or is dead. So the cluster is stopped in an orderly way.
    AllLeave,
    /// The orderly stop of the cluster has entered this phase.
    Stopping(StopPhase),
    /// End this process, and only this process.
    Kill {
        /// The process to end.
        member: Member,
        /// The reason for the kill.
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
        /// The version in the heartbeat of the server.
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

/// The reason why a server leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaveReason {
    /// The server received a stop signal.
    StopSignal,
    /// The operator has requested a new process for its place, on the same host or on another one.
    Replaced,
}

/// The reason to kill a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KillReason {
    /// The process has not reported yet: it holds no data, and its address is unknown.
    #[error("it has not reported yet, so no data is lost")]
    NotStarted,
    /// The process did not report on these orders in time. No data is lost with it, unless the operator forced the
    /// stop.
    #[error("it did not respond to {0} in time")]
    Unanswered(&'static str),
    /// No view names the process, and it is silent, has not reported in time, has failed repeatedly, or was killed
    /// before.
    #[error("no view names it, and a new process takes its place")]
    Replaced,
    /// The operator requested a stop that does not wait for this process.
    #[error("the operator requested an immediate stop")]
    Hurry,
}

/// The reason why a cluster cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartFailure {
    /// A server whose process ended.
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
        /// The name of the order.
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
    /// The process is not the current one of its place.
    #[error(
        "incarnation {incarnation} of server {server} was replaced, or was not started by this coordinator; \
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
        "it has accepted a coordinator of epoch {theirs}, but this coordinator has the earlier epoch {ours}; \
         stop this coordinator"
    )]
    LaterEpoch {
        /// The epoch of this coordinator.
        ours: u64,
        /// The highest epoch that the server has accepted.
        theirs: u64,
    },
    /// The same incarnation has reported another process id, address or port before, so one of the reports is false.
    #[error(
        "incarnation {incarnation} of server {server} has already reported another process id, address or port: \
         earlier pid {} at {} with ports {} {} {}, now pid {} at {} with ports {} {} {}; check whether another \
         process uses this server's identity",
        .earlier.pid, .earlier.address, .earlier.clients_port, .earlier.servers_port, .earlier.coord_port,
        .later.pid, .later.address, .later.clients_port, .later.servers_port, .later.coord_port
    )]
    OtherPorts {
        /// The place that the sender claims.
        server: ServerId,
        /// The incarnation that the sender claims.
        incarnation: Incarnation,
        /// The first report.
        earlier: Box<Started>,
        /// The rejected report.
        later: Box<Started>,
    },
    /// The process currently reports on another connection.
    #[error("incarnation {incarnation} of server {server} already reports on another connection")]
    Linked {
        /// The place that the sender claims.
        server: ServerId,
        /// The incarnation that the sender claims.
        incarnation: Incarnation,
    },
    /// The process is proven dead.
    #[error("incarnation {incarnation} of server {server} is proven to have exited")]
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
    #[error(
        "the message names incarnation {named}, but the current incarnation of the server is {current}"
    )]
    OtherIncarnation {
        /// The incarnation that the message names.
        named: Incarnation,
        /// The current incarnation of the server.
        current: Incarnation,
    },
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
