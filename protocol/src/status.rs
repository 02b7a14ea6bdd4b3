//! The answer to STATUS: a JSON document for people's tools, so it can grow without a new layout.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Epoch, GroupId, Incarnation, Member, ServerId, ViewVersion};
use crate::map::ServerState;

/// The whole cluster as its coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The cluster.
    pub cluster: ClusterId,
    /// The coordinator's term.
    pub epoch: Epoch,
    /// `starting`, `serving`, `degraded` (some server is down) or `stopping`.
    pub state: ClusterState,
    /// Shards of every group.
    pub shards: u16,
    /// In ring order.
    pub servers: Vec<ServerStatus>,
    /// In group order.
    pub groups: Vec<GroupStatus>,
}

/// What the cluster is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// Not every server has reported and been connected yet.
    Starting,
    /// Every group has both its copies.
    Serving,
    /// A server is down; the groups it held are not whole.
    Degraded,
    /// An orderly stop is under way.
    Stopping,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its place in the ring.
    pub id: ServerId,
    /// The host, as the cluster file writes it.
    pub host: String,
    /// What the coordinator thinks of it.
    pub state: ServerState,
    /// The step of its recovery, 0 to 5; `None` when there is nothing to recover.
    pub recovery_step: Option<u8>,
    /// Its process; `None` before it started.
    pub incarnation: Option<Incarnation>,
    /// Its process id on its host.
    pub pid: Option<u32>,
    /// Where clients reach it (`ip:port`).
    pub clients: Option<String>,
    /// Where servers reach it.
    pub servers: Option<String>,
    /// Where the coordinator reaches it.
    pub coord: Option<String>,
    /// Entries in its primary table.
    pub primary_entries: u64,
    /// Entries in its secondary table.
    pub secondary_entries: u64,
    /// Bytes that both tables take.
    pub table_bytes: u64,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// Client connections open.
    pub client_connections: u32,
    /// Requests served since its start.
    pub requests: u64,
    /// Frames and connections refused as malformed since its start.
    pub refused: u64,
    /// Milliseconds since its last heartbeat; `None` before the first.
    pub heartbeat_age_ms: Option<u64>,
}

/// How a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupCondition {
    /// It has no view yet.
    Starting,
    /// Two copies.
    Whole,
    /// One copy, or one that cannot be relied upon.
    Degraded,
    /// Its only holder is silent; clients wait.
    Unreachable,
    /// Every holder is dead.
    Lost,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The version of its view; 0 before the first.
    pub view: ViewVersion,
    /// Who serves it.
    pub primary: Option<Member>,
    /// Who holds the other copy.
    pub secondary: Option<Member>,
    /// Who is being given a copy.
    pub candidate: Option<Member>,
    /// How it is.
    pub condition: GroupCondition,
    /// Copies on servers that are up and connected.
    pub copies: u8,
    /// Entries in the table of the primary, or of the secondary where the primary is down.
    pub entries: u64,
    /// Bytes of that table.
    pub bytes: u64,
}
