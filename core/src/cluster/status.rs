//! The status of the cluster: the response to STATUS.

use std::collections::BTreeMap;

use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::health::Health;
use kv_protocol::map::ServerState;
use kv_protocol::status::{
    ClusterState, ClusterStatus, CopyStatus, GroupCondition, GroupStatus, STATUS_VERSION,
    ServerStatus,
};
use kv_protocol::{GroupId, Member, Peer, Time, View, ViewVersion};

use super::Cluster;
use super::server::{BEATS_UNTIL_DISCONNECTED, Server};
use super::start::Start;

impl Cluster {
    /// Returns the full status as of `now`. `hosts` are the host names of the servers, in ring order; a missing one is
    /// shown as empty.
    pub fn status(&self, now: Time, hosts: &[String]) -> ClusterStatus {
        let servers = self.servers.iter().enumerate().map(|(n, server)| {
            let host = hosts.get(n).cloned().unwrap_or_default();
            let step = self.recovery_step(server.member.server);
            let recoveries = self.histories[n].status(now);
            ServerStatus { recovery_step: step, recoveries, ..server_status(now, server, host) }
        });
        let mut status = ClusterStatus {
            version: STATUS_VERSION,
            health: Health::default(),
            why: String::new(),
            cluster: self.config.cluster,
            epoch: self.config.epoch,
            state: self.state(),
            shards: self.config.shards,
            hash_tags: self.config.hash_tags,
            servers: servers.collect(),
            groups: self.views().iter().map(|view| self.group_status(view)).collect(),
            alarms: self.alarms.status(now),
            settings: BTreeMap::new(),
        };
        (status.health, status.why) = status.assess();
        status
    }

    /// Returns the overall state of the cluster.
    pub fn state(&self) -> ClusterState {
        if self.stop.is_some() {
            ClusterState::Stopping
        } else if self.start != Start::Done {
            ClusterState::Starting
        } else if self.views().iter().all(|view| self.copies(view) == 2) {
            ClusterState::Serving
        } else {
            ClusterState::Degraded
        }
    }

    fn group_status(&self, view: &View) -> GroupStatus {
        let replicas = self.reports_of(view);
        GroupStatus {
            group: view.group,
            view: view.version,
            primary: view.primary,
            secondary: view.secondary(),
            candidate: match view.peer {
                Peer::Candidate(candidate) => Some(candidate),
                Peer::None | Peer::Secondary(_) => None,
            },
            condition: self.condition(view),
            copies: self.copies(view),
            entries: sum(replicas.iter().map(|r| r.entries)),
            bytes: sum(replicas.iter().map(|r| r.bytes)),
            copy: self.copy_status(view),
        }
    }

    /// Returns the progress of the copy to the candidate of a group, by the latest heartbeat of the primary. Until the
    /// primary reports on this view, nothing counts as copied. `None` if there is no candidate or the primary is down.
    pub fn copy_of(&self, group: GroupId) -> Option<CopyStatus> {
        self.views().get(usize::from(group.0)).and_then(|view| self.copy_status(view))
    }

    fn copy_status(&self, view: &View) -> Option<CopyStatus> {
        let Peer::Candidate(_) = view.peer else { return None };
        let primary = view.primary.filter(|member| self.is_up(*member))?;
        let mut copy = CopyStatus::default();
        for report in reports(self.server(primary.server)).iter().filter(|r| r.group == view.group)
        {
            let is_of_this = report.view == view.version;
            let copied = |count: u64, of: u64| if is_of_this { count.min(of) } else { 0 };
            copy.add(&CopyStatus {
                entries: copied(report.copied, report.entries),
                bytes: copied(report.copied_bytes, report.content_bytes),
                of_entries: report.entries,
                of_bytes: report.content_bytes,
            });
        }
        Some(copy)
    }

    pub(super) fn condition(&self, view: &View) -> GroupCondition {
        match self.copies(view) {
            _ if view.version == ViewVersion(0) => GroupCondition::Starting,
            _ if view.primary.is_none() => GroupCondition::Lost,
            _ if self.is_unreachable(view) => GroupCondition::Unreachable,
            2 => GroupCondition::Whole,
            _ => GroupCondition::Degraded,
        }
    }

    /// Returns the reports on a group from its primary, or from its secondary if the primary is down. Reports of a
    /// server that is down are outdated.
    fn reports_of(&self, view: &View) -> Vec<&ReplicaReport> {
        let mut holders = [view.primary, view.secondary()].into_iter().flatten();
        let Some(member) = holders.find(|member| self.is_up(*member)) else { return Vec::new() };
        let server = self.server(member.server);
        reports(server).iter().filter(|r| r.group == view.group).collect()
    }

    /// Returns the number of copies on servers that are up. If the primary is up but reports no stream to its
    /// secondary, the secondary is not counted, because its copy may be outdated.
    fn copies(&self, view: &View) -> u8 {
        let primary_up = view.primary.is_some_and(|member| self.is_up(member));
        let stream_up = view.primary.is_some_and(|member| self.stream_stands(member));
        let secondary_up = view.secondary().is_some_and(|member| self.is_up(member));
        u8::from(primary_up) + u8::from(secondary_up && (stream_up || !primary_up))
    }

    /// Returns whether this member is the current process of its server, and the server is up.
    pub(super) fn is_up(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member == member && server.is_up()
    }

    fn stream_stands(&self, primary: Member) -> bool {
        self.server(primary.server).beats_without_stream < BEATS_UNTIL_DISCONNECTED
    }
}

fn reports(server: &Server) -> &[ReplicaReport] {
    server.heartbeat.as_ref().map_or(&[], |(_, heartbeat)| &heartbeat.replicas)
}

/// Adds numbers. The sum saturates, because servers may report any numbers.
fn sum(numbers: impl Iterator<Item = u64>) -> u64 {
    numbers.fold(0, u64::saturating_add)
}

fn entries(server: &Server, role: ReplicaRole) -> u64 {
    sum(reports(server).iter().filter(|r| r.state.role() == Some(role)).map(|r| r.entries))
}

/// Returns the number of bytes that a server's tables of one role reserve.
fn bytes(server: &Server, role: ReplicaRole) -> u64 {
    sum(reports(server).iter().filter(|r| r.state.role() == Some(role)).map(|r| r.bytes))
}

/// Returns the number of bytes in use in a server's tables of one role.
fn used_bytes(server: &Server, role: ReplicaRole) -> u64 {
    sum(reports(server).iter().filter(|r| r.state.role() == Some(role)).map(|r| r.used_bytes))
}

/// Returns the bytes that the tables of a server reserve, by its last heartbeat.
pub(super) fn table_bytes(server: &Server) -> u64 {
    sum(reports(server).iter().map(|r| r.bytes))
}

fn server_status(now: Time, server: &Server, host: String) -> ServerStatus {
    let heartbeat = server.heartbeat.as_ref().map(|(_, heartbeat)| heartbeat);
    let address = |address: Option<std::net::SocketAddr>| address.map(|a| a.to_string());
    let age = server.heartbeat.as_ref().map(|(at, _)| now.since(*at).as_millis());
    ServerStatus {
        id: server.member.server,
        host,
        recovery_step: None,
        recoveries: Vec::new(),
        state: if server.exited { ServerState::Down } else { server.state },
        incarnation: server.started.map(|started| started.member.incarnation),
        pid: server.started.map(|started| started.pid),
        clients: address(server.address(|started| started.clients_port)),
        servers: address(server.address(|started| started.servers_port)),
        coord: address(server.address(|started| started.coord_port)),
        primary_entries: entries(server, ReplicaRole::Primary),
        secondary_entries: entries(server, ReplicaRole::Secondary),
        table_bytes: table_bytes(server),
        primary_bytes: bytes(server, ReplicaRole::Primary),
        secondary_bytes: bytes(server, ReplicaRole::Secondary),
        primary_used_bytes: used_bytes(server, ReplicaRole::Primary),
        secondary_used_bytes: used_bytes(server, ReplicaRole::Secondary),
        resident_bytes: heartbeat.map_or(0, |h| h.resident_bytes),
        memory_limit: heartbeat.map_or(0, |h| h.memory_limit),
        connection_bytes: heartbeat.map_or(0, |h| h.connection_bytes),
        connection_limit: heartbeat.map_or(0, |h| h.connection_limit),
        client_connections: heartbeat.map_or(0, |h| h.clients),
        requests: heartbeat.map_or(0, |h| h.requests),
        refused: heartbeat.map_or(0, |h| h.refused),
        out_of_space: heartbeat.map_or(0, |h| h.out_of_space),
        evicted: heartbeat.map_or(0, |h| h.evicted),
        expired: heartbeat.map_or(0, |h| h.expired),
        longest_gap_ms: reports(server)
            .iter()
            .map(|r| u64::from(r.longest_gap_ms))
            .max()
            .unwrap_or(0),
        heartbeat_age_ms: age.map(|millis| u64::try_from(millis).unwrap_or(u64::MAX)),
    }
}
