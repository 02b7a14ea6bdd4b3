//! The response to STATUS: a JSON document for tools. Later versions may add fields, which older readers ignore.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::health::Health;
use crate::ids::{ClusterId, Epoch, GroupId, Incarnation, Member, ServerId, ViewVersion};
use crate::map::ServerState;

/// The version of the document. It increases when a field changes its meaning or is removed, not for new fields.
pub const STATUS_VERSION: u32 = 1;

/// The status of the whole cluster, according to its coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The [`STATUS_VERSION`] of the writer.
    #[serde(default)]
    pub version: u32,
    /// The result of [`ClusterStatus::assess`].
    #[serde(default)]
    pub health: Health,
    /// The reasons for the health, in one line.
    #[serde(default)]
    pub why: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The coordinator's epoch.
    pub epoch: Epoch,
    /// `starting`, `serving`, `degraded` (some group lacks a copy) or `stopping`.
    pub state: ClusterState,
    /// The number of shards of every group.
    pub shards: u16,
    /// True if the cluster has hash tags (`coord --hash-tags`).
    #[serde(default)]
    pub hash_tags: bool,
    /// The servers, by place in the ring.
    pub servers: Vec<ServerStatus>,
    /// The groups, by number.
    pub groups: Vec<GroupStatus>,
    /// The conditions that need an operator's attention, the oldest first.
    #[serde(default)]
    pub alarms: Vec<AlarmStatus>,
    /// The settings stored by the coordinator, by the names of their flags without dashes, in readable form. A setting
    /// that was never given and has no default is omitted.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// The activity of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// Some server has not reported or is not connected yet.
    Starting,
    /// Every group has two copies on servers that are up.
    Serving,
    /// Some group lacks a copy on a server that is up.
    Degraded,
    /// An orderly stop is in progress.
    Stopping,
}

/// The status of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Its place in the ring.
    pub id: ServerId,
    /// The host, as the cluster file writes it.
    pub host: String,
    /// Its state, according to the coordinator.
    pub state: ServerState,
    /// The step of its recovery, 0 to 5; `None` when there is nothing to recover.
    pub recovery_step: Option<u8>,
    /// Its process; `None` before it started.
    pub incarnation: Option<Incarnation>,
    /// Its process id on its host.
    pub pid: Option<u32>,
    /// Its address for clients (`ip:port`).
    pub clients: Option<String>,
    /// Its address for servers.
    pub servers: Option<String>,
    /// Its address for the coordinator.
    pub coord: Option<String>,
    /// The number of entries in its primary table.
    pub primary_entries: u64,
    /// The number of entries in its secondary table.
    pub secondary_entries: u64,
    /// The memory of all its tables, in bytes, including a table that is being filled or dropped.
    pub table_bytes: u64,
    /// The part of `table_bytes` that belongs to its primary table.
    #[serde(default)]
    pub primary_bytes: u64,
    /// The part of `table_bytes` that belongs to its secondary table.
    #[serde(default)]
    pub secondary_bytes: u64,
    /// The bytes that entries of the primary table use. The rest of the table's memory is available for other
    /// entries. If it is fragmented, it is available after compaction.
    #[serde(default)]
    pub primary_used_bytes: u64,
    /// The bytes that entries of the secondary table use.
    #[serde(default)]
    pub secondary_used_bytes: u64,
    /// The limit of its tables, in bytes (`--memory-limit`, or the default for its machine). 0 if there is no limit, or
    /// if the limit is not known yet.
    #[serde(default)]
    pub memory_limit: u64,
    /// Resident memory of the process, in bytes.
    pub resident_bytes: u64,
    /// The memory of its client connections, in bytes.
    #[serde(default)]
    pub connection_bytes: u64,
    /// The limit on the memory of its client connections, in bytes; 0 while it is not known.
    #[serde(default)]
    pub connection_limit: u64,
    /// The number of open client connections.
    pub client_connections: u32,
    /// The number of requests served since its start.
    pub requests: u64,
    /// The number of frames, connections and maps that it has rejected since its start, because they were invalid or a
    /// limit was reached.
    pub refused: u64,
    /// The number of writes rejected since its start because its tables were full.
    #[serde(default)]
    pub out_of_space: u64,
    /// The number of entries that it has evicted since its start to make room (`--eviction`).
    #[serde(default)]
    pub evicted: u64,
    /// The number of entries that it has removed since its start because they had expired.
    #[serde(default)]
    pub expired: u64,
    /// Milliseconds since its last heartbeat; `None` before the first.
    pub heartbeat_age_ms: Option<u64>,
    /// The longest time in milliseconds for which one of its shards received no message from the other holder, under
    /// the group's present view.
    #[serde(default)]
    pub longest_gap_ms: u64,
    /// The last recoveries of its place in the ring, the newest first.
    #[serde(default)]
    pub recoveries: Vec<RecoveryStatus>,
}

/// The recovery of a place of the ring. It begins with the loss of its server, and ends when all
/// its groups are back at their home servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryStatus {
    /// Milliseconds since it began.
    pub began_ms_ago: u64,
    /// Its duration in milliseconds; `None` while it is in progress.
    pub took_ms: Option<u64>,
    /// Its last steps, in order.
    pub steps: Vec<StepStatus>,
}

/// A step of a recovery. A recovery that fails begins again with step 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepStatus {
    /// The number, 0 to 5.
    pub step: u8,
    /// Milliseconds since it began.
    pub began_ms_ago: u64,
    /// Its duration in milliseconds; `None` while it is in progress.
    pub took_ms: Option<u64>,
}

/// A condition that needs an operator's attention. It is listed while it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmStatus {
    /// The kind of the condition.
    pub kind: AlarmKind,
    /// The server concerned.
    pub server: Option<ServerId>,
    /// The group concerned.
    pub group: Option<GroupId>,
    /// A description.
    pub text: String,
    /// Milliseconds since it began.
    pub age_ms: u64,
}

/// The kind of an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlarmKind {
    /// A group has no holder left.
    Lost,
    /// The only holder of a group is silent.
    Unreachable,
    /// A server is silent to the coordinator. It stays in its groups because other servers receive its messages.
    KeptThoughSilent,
    /// The holders of a group do not receive messages from each other, and neither responds to the coordinator's probe.
    Unanswered,
    /// Several attempts in a row to replace a server have failed.
    KeepsFailing,
    /// A secondary was removed because it did not keep up with its primary.
    CannotFollow,
    /// A server could not carry out an order.
    OrderFailed,
    /// One address has so many connections that too few are left for other clients.
    Crowded,
    /// The coordinator cannot store its state, so no failover takes effect.
    StateNotStored,
    /// The coordinator's state was stored, but the next store may fail.
    StateAtRisk,
    /// A thread of a server is hung, and the server keeps running as the only holder of a group.
    Stuck,
    /// An orderly stop waits for a server that is silent, or makes no progress.
    StopWaits,
    /// The host of a server does not report whether its process has ended.
    HostUnreachable,
    /// A server executes orders, but the coordinator does not receive its heartbeats.
    CannotReport,
    /// A server rejects writes because its tables are full.
    OutOfSpace,
    /// A kind that a later version added.
    #[serde(other)]
    Other,
}

impl AlarmKind {
    /// All kinds of this version.
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

/// The condition of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupCondition {
    /// No view yet.
    Starting,
    /// Two copies.
    Whole,
    /// Fewer than two copies on servers that are up. A second copy that may be stale is not counted.
    Degraded,
    /// Its only holder is silent, or has made an orderly exit with a complete dump. Clients wait.
    Unreachable,
    /// Every holder is dead.
    Lost,
}

/// The status of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group.
    pub group: GroupId,
    /// The version of its view; 0 before the first.
    pub view: ViewVersion,
    /// The primary.
    pub primary: Option<Member>,
    /// The secondary.
    pub secondary: Option<Member>,
    /// The candidate, which is receiving a copy.
    pub candidate: Option<Member>,
    /// The condition.
    pub condition: GroupCondition,
    /// The number of copies on servers that are up. A secondary without a stream from a live primary is not counted.
    pub copies: u8,
    /// The number of entries in the table of the primary, or of the secondary if the primary is down; 0 if both are
    /// down.
    pub entries: u64,
    /// Bytes of that table.
    pub bytes: u64,
    /// The progress of the copy to the candidate; `None` if there is no candidate or the primary is down.
    #[serde(default)]
    pub copy: Option<CopyStatus>,
}

/// The progress of a copy: the amount sent, and the approximate total.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// Entries sent.
    pub entries: u64,
    /// Bytes of keys and values sent.
    pub bytes: u64,
    /// Entries in total.
    pub of_entries: u64,
    /// Bytes of keys and values in total.
    pub of_bytes: u64,
}

impl CopyStatus {
    /// Adds the progress of another shard. The sums saturate, because a server may report any
    /// number.
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

    /// A document of the first version.
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

    /// Returns the name of a kind. If a kind is added, this function does not compile; add the kind here, to `ALL`
    /// and to the manual.
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
