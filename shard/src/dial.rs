//! The targets of a shard's outgoing connections.

use kv_protocol::ids::GroupId;

use crate::Port;

/// The target of an outgoing connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DialTarget {
    /// The stream of a group.
    Stream(GroupId),
    /// A link to a shard of another server, for the requests of Redis clients.
    Link(LinkId),
}

/// The number of a link in its shard. It is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

impl DialTarget {
    /// Returns the port of the other server to which the connection goes.
    pub fn port(self) -> Port {
        match self {
            DialTarget::Stream(_) => Port::Servers,
            DialTarget::Link(_) => Port::Clients,
        }
    }
}

impl From<GroupId> for DialTarget {
    fn from(group: GroupId) -> DialTarget {
        DialTarget::Stream(group)
    }
}
