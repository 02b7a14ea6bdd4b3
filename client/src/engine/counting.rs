//! The engine's counters, which are summed up on request, and the events that are reported with them.

use kv_protocol::ids::ServerId;
use kv_protocol::map::ServerState;

use super::Engine;
use crate::address::Address;
use crate::connection::{Connection, Target};
use crate::error::Error;
use crate::events::Event;
use crate::operation::{Notify, Operation};
use crate::statistics::{ServerStatistics, Statistics};

/// The way in which a connection ended, with the reason.
pub(super) enum End<'a> {
    /// The connection failed or could not be opened.
    Lost(&'a str),
    /// The client closed a connection that it no longer needs.
    Closed(&'a str),
}

impl Engine {
    pub(crate) fn statistics(&self) -> Statistics {
        let counts = &self.counts;
        let mut servers = self.server_statistics();
        let mut for_maps = counts.for_maps;
        for connection in self.connections.values() {
            let traffic = connection.traffic();
            match connection.target {
                Target::Map { .. } => for_maps.add(&traffic),
                Target::Shard { member, .. } => {
                    // The server of a connection is in every later map too, because the number of servers never
                    // changes.
                    let Some(server) = servers.get_mut(usize::from(member.server.0)) else {
                        continue;
                    };
                    server.add_traffic(&traffic);
                    server.outstanding += connection.outstanding.len() as u64;
                    server.connections_open += u64::from(connection.is_open);
                }
            }
        }
        let sum = |of: fn(&ServerStatistics) -> u64| servers.iter().map(of).sum::<u64>();
        let sums = Statistics {
            operations: self.operations.inserted() - counts.resolvers,
            in_flight: self.in_flight() as u64,
            bytes_in_flight: self.bytes_in_flight as u64,
            unserved: counts.unserved,
            in_doubt: counts.in_doubt,
            unsettled: self.doubts.count() as u64,
            given_up: counts.given_up,
            retries: counts.retries,
            requests: sum(|server| server.requests),
            responses: sum(|server| server.responses),
            bytes_sent: for_maps.bytes_sent + sum(|server| server.bytes_sent),
            bytes_received: for_maps.bytes_received + sum(|server| server.bytes_received),
            connections_opened: sum(|server| server.connections_opened),
            connections_lost: sum(|server| server.connections_lost),
            connections_open: sum(|server| server.connections_open),
            maps: counts.maps,
            map_revision: self.router.revision().map(|(_, revision)| revision),
            sessions_begun_anew: counts.sessions_begun_anew,
            heard_at: self.heard_at,
            servers: Vec::new(),
        };
        Statistics { servers, ..sums }
    }

    /// Returns the counters of each server of the map, excluding those of its open connections.
    fn server_statistics(&self) -> Vec<ServerStatistics> {
        let servers = self.router.all_servers().iter().map(|known| {
            let mut server = ServerStatistics::new(known.id);
            server.is_up = known.state == ServerState::Up;
            server.address = known.clients;
            if let Some(counts) = self.counts.get(known.id) {
                server.retries = counts.retries;
                server.connections_opened = counts.opened;
                server.connections_lost = counts.lost;
                server.add_traffic(&counts.traffic);
            }
            server
        });
        servers.collect()
    }

    /// Counts a retry of an operation, in total and for the server to which it was last routed, if any.
    pub(super) fn note_retry(&mut self, server: Option<ServerId>) {
        self.counts.retries += 1;
        // A view may name a server that is not in the map.
        if let Some(server) =
            server.filter(|id| usize::from(id.0) < self.router.all_servers().len())
        {
            self.counts.of(server).retries += 1;
        }
    }

    /// Counts a failed operation of the program by the kind of its error, and reports a write in doubt.
    pub(super) fn note_failure(&mut self, operation: &Operation, error: &Error) {
        if operation.notify == Notify::None {
            return;
        }
        match error {
            Error::Timeout { .. } | Error::Unavailable { .. } | Error::Busy { .. } => {
                self.counts.unserved += 1;
            }
            Error::Interrupted { .. } | Error::Cancelled { .. } => self.counts.given_up += 1,
            Error::InDoubt { .. } if operation.kind.is_write() => {
                self.counts.in_doubt += 1;
                let server = operation.server;
                self.options.events.tell(&Event::InDoubt { server, error });
            }
            _ => {}
        }
    }

    /// Counts and reports a connection to a shard that has received WELCOME. Ignores a connection for the map.
    pub(super) fn note_opened(&mut self, target: Target, address: Address) {
        if let Target::Shard { member, .. } = target {
            let server = member.server;
            self.counts.of(server).opened += 1;
            self.options.events.tell(&Event::ConnectionOpened { server, address });
        }
    }

    /// Adds the counters of an ended connection to those of its server, and reports the end. For a connection for the
    /// map, only adds its counters to those for the map.
    pub(super) fn note_closed(&mut self, connection: &Connection, end: &End<'_>) {
        let traffic = connection.traffic();
        let Target::Shard { member, .. } = connection.target else {
            return self.counts.for_maps.add(&traffic);
        };
        let (server, address) = (member.server, connection.address.clone());
        let counts = self.counts.of(server);
        counts.traffic.add(&traffic);
        let event = match *end {
            End::Lost(why) => {
                counts.lost += 1;
                Event::ConnectionLost { server, address, why }
            }
            End::Closed(why) => Event::ConnectionClosed { server, address, why },
        };
        self.options.events.tell(&event);
    }
}
