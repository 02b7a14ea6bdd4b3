//! The answer to STATUS: a JSON document for people's tools, so it can grow without a new layout.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::ids::{ClusterId, Epoch, GroupId, Incarnation, Member, ServerId, ViewVersion};
use crate::map::ServerState;

/// The layout of the document. It grows when a field changes its meaning or goes; new fields do not change it.
pub const STATUS_VERSION: u32 = 1;

/// The whole cluster as its coordinator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// [`STATUS_VERSION`] of whoever wrote it.
    #[serde(default)]
    pub version: u32,
    /// How well it serves, as [`ClusterStatus::assess`] says.
    #[serde(default)]
    pub health: Health,
    /// Why not better, in one line.
    #[serde(default)]
    pub why: String,
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
    /// What a person should look at, the oldest first.
    #[serde(default)]
    pub alarms: Vec<AlarmStatus>,
    /// The settings that the coordinator keeps, by the names of their flags without dashes, as a person reads them.
    /// One that was never given and has no default of the coordinator's is not there.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
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
    /// Bytes that all its tables hold, one that is being filled or given up included.
    pub table_bytes: u64,
    /// Bytes that its primary table holds of them.
    #[serde(default)]
    pub primary_bytes: u64,
    /// Bytes that its secondary table holds of them.
    #[serde(default)]
    pub secondary_bytes: u64,
    /// Bytes that entries use of what the primary table holds; the rest is free for others, after compaction
    /// where it is scattered.
    #[serde(default)]
    pub primary_used_bytes: u64,
    /// As for the primary table.
    #[serde(default)]
    pub secondary_used_bytes: u64,
    /// The limit of its tables, in bytes (`--memory-limit`, or the default for its machine). 0 if there is no limit, or
    /// if it is not known yet.
    #[serde(default)]
    pub memory_limit: u64,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// Memory that its clients' connections hold, in bytes.
    #[serde(default)]
    pub connection_bytes: u64,
    /// Memory that they may hold; 0 while it is not known.
    #[serde(default)]
    pub connection_limit: u64,
    /// Client connections open.
    pub client_connections: u32,
    /// Requests served since its start.
    pub requests: u64,
    /// Frames and connections refused as malformed since its start.
    pub refused: u64,
    /// Writes refused since its start, as its tables were full.
    #[serde(default)]
    pub out_of_space: u64,
    /// Milliseconds since its last heartbeat; `None` before the first.
    pub heartbeat_age_ms: Option<u64>,
    /// The longest time that one of its shards was without a message of the other holder of a group, under the
    /// group's present view, in milliseconds. A view changes when it exceeds a lease.
    #[serde(default)]
    pub longest_gap_ms: u64,
    /// The last recoveries of its place in the ring, the newest first.
    #[serde(default)]
    pub recoveries: Vec<RecoveryStatus>,
}

/// A recovery: the way of a place of the ring from the loss of its server to all being home again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Milliseconds since it began.
    pub began_ms_ago: u64,
    /// How long it took; `None`: it lasts.
    pub took_ms: Option<u64>,
    /// Its last steps, in order.
    pub steps: Vec<StepStatus>,
}

/// A step of a recovery. One that fails begins again with step 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// 0 to 5.
    pub step: u8,
    /// Milliseconds since it began.
    pub began_ms_ago: u64,
    /// How long it took; `None`: it lasts.
    pub took_ms: Option<u64>,
}

/// Something that a person should look at, for as long as it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmStatus {
    /// What kind of thing it is.
    pub kind: AlarmKind,
    /// The server concerned.
    pub server: Option<ServerId>,
    /// The group concerned.
    pub group: Option<GroupId>,
    /// What it is, in words.
    pub text: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlarmKind {
    /// A group has no holder left.
    Lost,
    /// The only holder of a group is silent.
    Unreachable,
    /// A server is silent to the coordinator, and kept because others hear it.
    KeptThoughSilent,
    /// The holders of a group do not hear each other, and neither answers the coordinator.
    Unanswered,
    /// A server could not be replaced several times in a row.
    KeepsFailing,
    /// A secondary was removed because it did not keep up with its primary.
    CannotFollow,
    /// A server could not carry out an order.
    OrderFailed,
    /// One address has so many connections that others wait for room.
    Crowded,
    /// The coordinator cannot store its state, so no failover takes effect.
    StateNotStored,
    /// The coordinator's state was stored, and the next store may fail.
    StateAtRisk,
    /// A part of a server is stuck, and the server lives on as the only holder of a group.
    Stuck,
    /// An orderly stop waits for a server that is silent, or makes no progress.
    StopWaits,
    /// The host of a server does not say whether its process has ended.
    HostUnreachable,
    /// A server takes orders, and its heartbeats do not come.
    CannotReport,
    /// A server refuses writes, as its tables are full.
    OutOfSpace,
    /// One that a later version knows.
    #[serde(other)]
    Other,
}

impl AlarmKind {
    /// All that this version knows.
    pub const ALL: [AlarmKind; 15] = [
        AlarmKind::Lost,
        AlarmKind::Unreachable,
        AlarmKind::KeptThoughSilent,
        AlarmKind::Unanswered,
        AlarmKind::KeepsFailing,
        AlarmKind::CannotFollow,
        AlarmKind::OrderFailed,
        AlarmKind::Crowded,
        AlarmKind::StateNotStored,
        AlarmKind::StateAtRisk,
        AlarmKind::Stuck,
        AlarmKind::StopWaits,
        AlarmKind::HostUnreachable,
        AlarmKind::CannotReport,
        AlarmKind::OutOfSpace,
    ];
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
    /// How far the copy to the candidate is; `None` without one.
    #[serde(default)]
    pub copy: Option<CopyStatus>,
}

/// How far a copy is: how much was sent, and about how much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Entries sent.
    pub entries: u64,
    /// Bytes of keys and values sent.
    pub bytes: u64,
    /// Entries there are.
    pub of_entries: u64,
    /// Bytes of keys and values there are.
    pub of_bytes: u64,
}

impl CopyStatus {
    /// Adds what is copied of another shard; no sum of what servers report overflows.
    pub fn add(&mut self, other: &CopyStatus) {
        self.entries = self.entries.saturating_add(other.entries);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.of_entries = self.of_entries.saturating_add(other.of_entries);
        self.of_bytes = self.of_bytes.saturating_add(other.of_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a coordinator of the first version said, and one of a version to come.
    const OLD: &str = r#"{"cluster":"0000000000000000000000000000feed",
        "epoch":{"number":1,"boot":"0000000000000001"},"state":"serving","shards":1,
        "servers":[{"id":0,"host":"localhost","state":"up","recovery_step":null,"incarnation":null,
        "pid":null,"clients":null,"servers":null,"coord":null,"primary_entries":0,
        "secondary_entries":0,"table_bytes":0,"resident_bytes":0,"client_connections":0,
        "requests":0,"refused":0,"heartbeat_age_ms":null}],
        "groups":[{"group":0,"view":1,"primary":null,"secondary":null,"candidate":null,
        "condition":"whole","copies":2,"entries":0,"bytes":0}]}"#;

    #[test]
    fn a_document_without_the_newer_fields_is_read() {
        let status: ClusterStatus = serde_json::from_str(OLD).unwrap();
        assert!(status.alarms.is_empty() && status.servers[0].recoveries.is_empty());
        assert_eq!(status.groups[0].copy, None);
    }

    #[test]
    fn a_document_with_fields_and_alarms_of_a_later_version_is_read() {
        let alarm = r#"{"kind":"of-tomorrow","server":null,"group":1,"text":"?","age_ms":7,"x":1}"#;
        let later = format!(r#"{{"tomorrow":[1],"alarms":[{alarm}],{}"#, &OLD[1..]);
        let status: ClusterStatus = serde_json::from_str(&later).unwrap();
        assert_eq!(status.alarms[0].kind, AlarmKind::Other);
    }

    /// Fails to compile when a kind is added: then it belongs into `ALL`, and into the manual.
    fn name(kind: AlarmKind) -> &'static str {
        match kind {
            AlarmKind::Lost => "lost",
            AlarmKind::Unreachable => "unreachable",
            AlarmKind::KeptThoughSilent => "kept-though-silent",
            AlarmKind::Unanswered => "unanswered",
            AlarmKind::KeepsFailing => "keeps-failing",
            AlarmKind::CannotFollow => "cannot-follow",
            AlarmKind::OrderFailed => "order-failed",
            AlarmKind::Crowded => "crowded",
            AlarmKind::StateNotStored => "state-not-stored",
            AlarmKind::StateAtRisk => "state-at-risk",
            AlarmKind::Stuck => "stuck",
            AlarmKind::StopWaits => "stop-waits",
            AlarmKind::HostUnreachable => "host-unreachable",
            AlarmKind::CannotReport => "cannot-report",
            AlarmKind::OutOfSpace => "out-of-space",
            AlarmKind::Other => "other",
        }
    }

    #[test]
    fn the_manual_has_one_row_for_each_alarm_with_what_to_do() {
        let manual = include_str!("../../docs/operations.md");
        let (_, section) = manual.split_once("\n## Alarms\n").expect("a section on alarms");
        let section = section.split("\n## ").next().unwrap_or_default();
        let rows: Vec<Vec<&str>> = section
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|row| row.split(" | ").collect())
            .collect();
        let mut names: Vec<&str> = rows.iter().map(|row| row[0].trim_end_matches('`')).collect();
        for row in &rows {
            assert!(row.len() == 3 && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        }
        let mut expected: Vec<&str> = AlarmKind::ALL.into_iter().map(name).collect();
        names.sort_unstable();
        expected.sort_unstable();
        assert_eq!(names, expected);
        for kind in AlarmKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), name(kind), "as in the JSON");
        }
    }
}
