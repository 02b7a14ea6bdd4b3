//! Events of a shard that are reported to the log.

use std::fmt;
use std::net::SocketAddr;

use kv_core::replica::{ConnectionId, StreamError};
use kv_protocol::ids::{GroupId, Member, SequenceNumber, ViewVersion};

/// An event for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event, with its details.
    pub kind: EventKind,
    /// The number of similar events that were suppressed since the last logged one. It is `None` for events that are
    /// not logged: [`EventKind::ValueLost`], and [`EventKind::StreamBroken`], for which a rejection is logged.
    pub to_log: Option<u64>,
}

/// The kinds of events, with their details. `Display` is the text of the log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A malformed frame, or a connection that was rejected or closed.
    Refused {
        /// The kind of rejected input, such as "request".
        what: &'static str,
        /// The reason, as text for the log.
        reason: String,
    },
    /// The stream of a group is established.
    StreamEstablished {
        /// The group.
        group: GroupId,
        /// The server that dialled; `None` if this server dialled.
        from: Option<Member>,
        /// The view under which the stream is established.
        view: ViewVersion,
        /// The last write that the accepting end has.
        last: SequenceNumber,
    },
    /// The stream of a group is closed because a message of the other holder could not be applied.
    StreamBroken {
        /// The group.
        group: GroupId,
        /// The reason why the message could not be applied.
        error: StreamError,
    },
    /// A connection is closed because the replica's table was cleared while the connection was receiving a value from
    /// it.
    ValueLost {
        /// The group.
        group: GroupId,
        /// The connection.
        connection: ConnectionId,
    },
    /// The stream of a group was lost.
    StreamDown {
        /// The group.
        group: GroupId,
    },
    /// The other holder of a group cannot be reached.
    DialFailed {
        /// The group.
        group: GroupId,
        /// The address that was dialled.
        address: SocketAddr,
        /// The error that the operating system reported.
        error: String,
    },
}

impl EventKind {
    /// Returns whether the event is logged as a warning; the other events are logged as information.
    pub fn is_warning(&self) -> bool {
        !matches!(self, EventKind::StreamEstablished { .. } | EventKind::ValueLost { .. })
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventKind::Refused { what, reason } => write!(f, "rejected a {what}: {reason}"),
            EventKind::StreamEstablished { group, from: Some(from), view, last } => write!(
                f,
                "the stream of group {group} from {from} is established under view {view}; it continues \
                 after write {last}"
            ),
            EventKind::StreamEstablished { group, from: None, view, last } => write!(
                f,
                "the stream of group {group} to its other holder is established under view {view}; it \
                 continues after write {last}"
            ),
            EventKind::StreamBroken { group, error } => {
                write!(f, "the stream of group {group} was closed: {error}")
            }
            EventKind::ValueLost { group, .. } => {
                write!(
                    f,
                    "closed a connection that was receiving a value of group {group}: the table was cleared"
                )
            }
            EventKind::StreamDown { group } => write!(f, "the stream of group {group} is down"),
            EventKind::DialFailed { group, address, error } => write!(
                f,
                "cannot connect to the other holder of group {group} at {address}: {error}; will retry"
            ),
        }
    }
}
