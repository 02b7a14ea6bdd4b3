//! The hosts, ports and addresses of a cluster's processes, as they are stored.

use std::net::IpAddr;

use kv_protocol::ServerId;
use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::control_message::Started;
use serde::{Deserialize, Serialize};

use crate::machine::Boot;

/// The hosts, ports and addresses of the coordinator and of the servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The coordinator's own ports.
    #[serde(flatten)]
    pub(crate) ports: Ports,
    /// The address that the coordinator listens on.
    pub(crate) listen: IpAddr,
    /// The machine that `localhost` denotes. `None`, as in states of earlier versions, counts as this machine.
    #[serde(default)]
    pub(crate) machine: Option<Boot>,
    /// The servers' hosts in ring order.
    pub(crate) hosts: Vec<Host>,
    /// The addresses by which each server and the other processes reach each other.
    pub(crate) routes: Vec<Route>,
    /// The places that moved to hosts other than those in the cluster file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) moved: Vec<Moved>,
    /// The processes that run, or may run, on hosts other than those of their places.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) elsewhere: Vec<Elsewhere>,
}

/// The ports that the coordinator has bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    #[serde(rename = "clients_port")]
    pub(crate) clients: u16,
    #[serde(rename = "servers_port")]
    pub(crate) servers: u16,
}

/// The addresses by which one server and the other processes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    /// The address at which the server reaches the coordinator.
    pub(crate) coordinator: IpAddr,
    /// The address that the server listens on.
    pub(crate) bind: IpAddr,
    /// The address at which other processes reach the server.
    pub(crate) advertise: IpAddr,
}

/// A place that `coord replace` moved to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moved {
    pub(crate) server: ServerId,
    /// The host that the cluster file named at that time.
    pub(crate) from: Host,
    /// The current host.
    pub(crate) host: Host,
    /// The ports for clients, servers and the coordinator; 0 selects any free port.
    pub(crate) ports: [u16; 3],
}

/// A process that runs, or may run, on a host other than the host of its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Elsewhere {
    pub(crate) host: Host,
    pub(crate) started: Started,
    /// True if it ran on an earlier coordinator's machine, which cannot be reached from this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) is_out_of_reach: bool,
}

impl Moved {
    /// Returns the line that the cluster file should have for this place.
    pub(crate) fn line(&self) -> ServerLine {
        let [clients_port, servers_port, coord_port] = self.ports;
        let (id, host) = (self.server, self.host.clone());
        ServerLine { id, host, clients_port, servers_port, coord_port }
    }

    /// Returns the host and the ports of that line, as an operator writes them.
    pub(crate) fn words(&self) -> String {
        let [clients, servers, coord] = self.ports;
        format!("{} {clients} {servers} {coord}", self.host)
    }
}
