//! The contents of a state: all data that the next coordinator needs.

use kv_core::cluster::{DurableServer, DurableState};
use kv_protocol::cluster_file::{ClusterFile, Host, ServerLine};
use kv_protocol::control_message::Started;
use kv_protocol::limits::{MAX_ANCESTORS, MAX_SERVERS, MAX_SHARDS, MIN_SERVERS};
use kv_protocol::{ClusterKey, Member, ServerId};
use serde::{Deserialize, Serialize};

use crate::place::{Elsewhere, Place};
use crate::settings::Settings;

/// All data that the next coordinator needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The key with which the cluster's processes authenticate each other.
    pub(crate) key: ClusterKey,
    /// The hosts, ports and addresses.
    pub(crate) place: Place,
    /// The settings of the cluster.
    #[serde(default)]
    pub(crate) settings: Settings,
    /// The directory of `coord stop --dump-dir` for a stop in progress.
    #[serde(default)]
    pub(crate) dump_dir: Option<String>,
    /// True if the cluster was stopped in an orderly way and every table is in a dump. Then another cluster may follow
    /// without loss.
    #[serde(default)]
    pub(crate) has_ended_well: bool,
    /// The durable state of the cluster.
    #[serde(flatten)]
    pub(crate) state: DurableState,
}

impl Record {
    /// Returns the current process of each place, with its host, if the process has reported.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (&Host, Started)> {
        let started = self.state.servers.iter().map(|server| server.started);
        self.place.hosts.iter().zip(started).filter_map(|(host, started)| {
            let started = started?;
            let is_its = |other: &&Elsewhere| other.started.member == started.member;
            let other = self.place.elsewhere.iter().find(is_its);
            Some((other.map_or(host, |other| &other.host), started))
        })
    }

    /// Returns a cluster file with the hosts of this cluster and the current ports of its servers; 0 for a server that
    /// has not reported.
    pub(crate) fn cluster_file(&self) -> ClusterFile {
        let lines = self.place.hosts.iter().zip(&self.state.servers).zip(0..);
        let line = |((host, server), n): ((&Host, &DurableServer), u16)| {
            let port = |of: fn(&Started) -> u16| server.started.as_ref().map_or(0, of);
            ServerLine {
                id: ServerId(n),
                host: host.clone(),
                clients_port: port(|started| started.clients_port),
                servers_port: port(|started| started.servers_port),
                coord_port: port(|started| started.coord_port),
            }
        };
        ClusterFile { servers: lines.map(line).collect() }
    }
}

/// Checks that every part is complete, and that every member belongs to the ring.
pub(super) fn check(record: &Record) -> Result<(), &'static str> {
    let Record { place, state, .. } = record;
    let count = state.servers.len();
    if !(usize::from(MIN_SERVERS)..=usize::from(MAX_SERVERS)).contains(&count) {
        return Err("its number of servers is out of range");
    }
    if [state.views.len(), place.hosts.len(), place.routes.len()] != [count; 3]
        || ![0, count].contains(&state.foundings.len())
        || state.ancestors.len() > MAX_ANCESTORS
    {
        return Err("its numbers of servers, views, hosts and routes do not match");
    }
    if !(1..=MAX_SHARDS).contains(&state.shards) || state.epoch.number == u64::MAX {
        return Err("its number of shards or its epoch is out of range");
    }
    let is_in_ring = |member: Member| usize::from(member.server.0) < count;
    for (n, (view, server)) in state.views.iter().zip(&state.servers).enumerate() {
        let members = view.primary.into_iter().chain(view.other());
        let members = members.chain(state.holders(view.group)).collect::<Vec<_>>();
        if usize::from(view.group.0) != n || !members.into_iter().all(is_in_ring) {
            return Err("a view names a server or group that the ring does not have");
        }
        let id = ServerId(u16::try_from(n).map_err(|_| "its ring is too large")?);
        if server.started.is_some_and(|started| started.member != state.member(id)) {
            return Err("the member of a process does not match its place");
        }
    }
    Ok(())
}
