//! The counters of a client: plain integers, which only the thread that runs the engine changes.
//!
//! ```text
//!   connection: Traffic  --closed-->  ServerCounts  --read-->  ServerStatistics
//!   engine: Counts                                  --read-->  Statistics
//! ```
//!
//! So the counters cost an operation only a few additions. The sums are computed when the statistics are read.

use std::net::SocketAddr;
use std::time::Instant;

use kv_protocol::ids::{MapRevision, ServerId};

/// The counters of a client since it was opened. Values described as "current" may decrease; the other counters only
/// grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Operations started by the program.
    pub operations: u64,
    /// Current number of operations that have not ended.
    pub in_flight: u64,
    /// Current bytes of keys and values of operations in flight.
    pub bytes_in_flight: u64,
    /// Operations that ended with [`crate::Error::Timeout`], [`crate::Error::Unavailable`] or [`crate::Error::Busy`].
    pub unserved: u64,
    /// Writes that ended with [`crate::Error::InDoubt`].
    pub in_doubt: u64,
    /// Current number of writes in doubt that are not settled.
    pub unsettled: u64,
    /// Operations that ended with [`crate::Error::Interrupted`] or [`crate::Error::Cancelled`].
    pub given_up: u64,
    /// Retries of operations.
    pub retries: u64,
    /// Requests queued on connections; a retry adds another request.
    pub requests: u64,
    /// Responses to requests.
    pub responses: u64,
    /// Bytes sent, including requests for the map.
    pub bytes_sent: u64,
    /// Bytes received, including maps.
    pub bytes_received: u64,
    /// Connections to servers that completed the handshake.
    pub connections_opened: u64,
    /// Connections to servers that were lost, or failed before the handshake was complete.
    pub connections_lost: u64,
    /// Current number of open connections to servers.
    pub connections_open: u64,
    /// Maps received and accepted.
    pub maps: u64,
    /// The revision of the newest map; `None` before the first.
    pub map_revision: Option<MapRevision>,
    /// Sessions that replaced an earlier one, which had expired or whose client id another process uses.
    pub sessions_begun_anew: u64,
    /// The time at which bytes last arrived from any server or coordinator; `None` before the first.
    pub heard_at: Option<Instant>,
    /// The counters of each server of the map, in ring order. Empty before the first map.
    pub servers: Vec<ServerStatistics>,
}

/// The counters of one server, over all its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerStatistics {
    /// The server's place in the ring.
    pub server: ServerId,
    /// True if the newest map reports it as up.
    pub is_up: bool,
    /// The address of its clients port, according to the newest map.
    pub address: Option<SocketAddr>,
    /// See [`Statistics::retries`].
    pub retries: u64,
    /// See [`Statistics::requests`].
    pub requests: u64,
    /// See [`Statistics::responses`].
    pub responses: u64,
    /// Current number of requests without a response, including those whose operations have ended.
    pub outstanding: u64,
    /// See [`Statistics::bytes_sent`]; excludes requests for the map.
    pub bytes_sent: u64,
    /// See [`Statistics::bytes_received`]; excludes maps.
    pub bytes_received: u64,
    /// See [`Statistics::connections_opened`].
    pub connections_opened: u64,
    /// See [`Statistics::connections_lost`].
    pub connections_lost: u64,
    /// See [`Statistics::connections_open`].
    pub connections_open: u64,
    /// The time at which bytes last arrived over a connection for requests; `None` before the first.
    pub heard_at: Option<Instant>,
}

impl Statistics {
    /// Adds the counters of another engine of the same client.
    pub(crate) fn add(&mut self, other: &Statistics) {
        self.operations += other.operations;
        self.in_flight += other.in_flight;
        self.bytes_in_flight += other.bytes_in_flight;
        self.unserved += other.unserved;
        self.in_doubt += other.in_doubt;
        self.unsettled += other.unsettled;
        self.given_up += other.given_up;
        self.retries += other.retries;
        self.requests += other.requests;
        self.responses += other.responses;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.connections_opened += other.connections_opened;
        self.connections_lost += other.connections_lost;
        self.connections_open += other.connections_open;
        self.maps += other.maps;
        self.sessions_begun_anew += other.sessions_begun_anew;
        self.heard_at = self.heard_at.max(other.heard_at);
        let is_newer = other.map_revision > self.map_revision;
        self.map_revision = self.map_revision.max(other.map_revision);
        for (at, more) in other.servers.iter().enumerate() {
            match self.servers.get_mut(at) {
                Some(server) => server.add(more, is_newer),
                None => self.servers.push(*more),
            }
        }
    }
}

impl ServerStatistics {
    pub(crate) fn new(server: ServerId) -> ServerStatistics {
        ServerStatistics {
            server,
            is_up: false,
            address: None,
            retries: 0,
            requests: 0,
            responses: 0,
            outstanding: 0,
            bytes_sent: 0,
            bytes_received: 0,
            connections_opened: 0,
            connections_lost: 0,
            connections_open: 0,
            heard_at: None,
        }
    }

    /// Adds the counters of another engine. `is_newer`: its map is newer than this one.
    fn add(&mut self, other: &ServerStatistics, is_newer: bool) {
        if is_newer {
            (self.is_up, self.address) = (other.is_up, other.address);
        }
        self.retries += other.retries;
        self.requests += other.requests;
        self.responses += other.responses;
        self.outstanding += other.outstanding;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.connections_opened += other.connections_opened;
        self.connections_lost += other.connections_lost;
        self.connections_open += other.connections_open;
        self.heard_at = self.heard_at.max(other.heard_at);
    }

    /// Adds the counters of one connection.
    pub(crate) fn add_traffic(&mut self, traffic: &Traffic) {
        self.requests += traffic.requests;
        self.responses += traffic.responses;
        self.bytes_sent += traffic.bytes_sent;
        self.bytes_received += traffic.bytes_received;
        self.heard_at = self.heard_at.max(traffic.heard_at);
    }
}

/// The counters of one connection, or the sum over several.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) requests: u64,
    pub(crate) responses: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) heard_at: Option<Instant>,
}

impl Traffic {
    pub(crate) fn add(&mut self, other: &Traffic) {
        self.requests += other.requests;
        self.responses += other.responses;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.heard_at = self.heard_at.max(other.heard_at);
    }
}

/// The counters of a server, excluding those of its open connections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ServerCounts {
    pub(crate) retries: u64,
    pub(crate) opened: u64,
    pub(crate) lost: u64,
    pub(crate) traffic: Traffic,
}

/// The counters of an engine.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// RESOLVEs that the engine started itself.
    pub(crate) resolvers: u64,
    pub(crate) unserved: u64,
    pub(crate) in_doubt: u64,
    pub(crate) given_up: u64,
    pub(crate) retries: u64,
    pub(crate) maps: u64,
    pub(crate) sessions_begun_anew: u64,
    /// Counters of closed connections for the map.
    pub(crate) for_maps: Traffic,
    /// The counters by server id, at most one for each server of the map.
    servers: Vec<ServerCounts>,
}

impl Counts {
    pub(crate) fn of(&mut self, server: ServerId) -> &mut ServerCounts {
        let at = usize::from(server.0);
        if self.servers.len() <= at {
            self.servers.resize_with(at + 1, ServerCounts::default);
        }
        &mut self.servers[at]
    }

    pub(crate) fn get(&self, server: ServerId) -> Option<&ServerCounts> {
        self.servers.get(usize::from(server.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_two_engines_has_the_servers_of_the_newer_map() {
        let address = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
        let of = |revision, port, is_up| Statistics {
            requests: 3,
            map_revision: Some(MapRevision(revision)),
            servers: vec![ServerStatistics {
                is_up,
                address: address(port),
                requests: 3,
                ..ServerStatistics::new(ServerId(0))
            }],
            ..Statistics::default()
        };
        for (first, second) in
            [(of(1, 1, false), of(2, 2, true)), (of(2, 2, true), of(1, 1, false))]
        {
            let mut sum = Statistics::default();
            sum.add(&first);
            sum.add(&second);
            assert_eq!((sum.requests, sum.map_revision), (6, Some(MapRevision(2))));
            let server = sum.servers[0];
            assert_eq!((server.requests, server.is_up, server.address), (6, true, address(2)));
        }
    }
}
