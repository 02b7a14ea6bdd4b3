//! The numbers of connections that the limit on open files allows.
//!
//! ```text
//!   RLIMIT_NOFILE = reserve: logs, listeners, links, dumps, rings, the shards' own streams
//!                 + connections that other servers open (unauthenticated ones can be replaced)
//!                 + clients
//! ```
//!
//! An orderly stop must always get descriptors for its dumps, however many connections are open.

use std::fs::File;
use std::io;

use kv_protocol::limits::{MAX_CLIENT_CONNECTIONS, MAX_PEER_CONNECTIONS};
use kv_shard::{HelloBounds, MAX_AWAITING_HELLO};

use crate::fatal::Fatal;

/// The maximum number of connections that one turn accepts at a port.
pub(crate) const ACCEPTS_AT_ONCE: usize = 16;
/// The maximum number of connections to the orders' port.
pub(crate) const MAX_ORDERS_CONNECTIONS: usize = 16;
/// The number of descriptors for standard streams, log, listeners, the link to the coordinator, /proc, a dump and its
/// directory. It includes just accepted connections of both ports, and connections to the orders' port; the rest is
/// slack.
const RESERVED: u64 = 48 + 2 * ACCEPTS_AT_ONCE as u64 + MAX_ORDERS_CONNECTIONS as u64;
/// The number of descriptors for an executor's rings and eventfds (9), its own stream and that stream's replacement,
/// and sockets being handed over to it; the rest is slack.
const RESERVED_PER_SHARD: u64 = 16;
/// The number of descriptors for a shard's stream from the predecessor, and for that stream's replacement.
const PEERS_PER_SHARD: u64 = 2;
/// The divisor that gives the share of the remaining descriptors for connections at the servers' port.
const PEERS_SHARE: u64 = 8;
/// The divisor that gives the share of the clients' descriptors reserved for addresses with few connections.
const SPARE_SHARE: u64 = 16;
/// The maximum number of reserved connections for addresses with few connections.
const MOST_SPARE_CLIENTS: usize = 64;
/// The minimum number of client connections; a server that cannot allow them does not start.
const FEWEST_CLIENTS: u64 = 16;
/// The minimum number of unauthenticated peers; a server that cannot allow them does not start.
const FEWEST_STRANGERS: u64 = 8;

/// The limits on a server's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionBounds {
    /// Connections accepted at the clients' port.
    pub(crate) clients: usize,
    /// Connections beyond `clients`, accepted from addresses with few connections while others are closed to make room.
    pub(crate) spare_clients: usize,
    /// Connections accepted at the servers' port.
    pub(crate) peers: usize,
    /// The maximum numbers of connections without a completed hello, at both ports.
    pub(crate) hello: HelloBounds,
}

impl ConnectionBounds {
    /// The limits if descriptors are plentiful.
    #[cfg(test)]
    pub(crate) const WIDEST: ConnectionBounds = ConnectionBounds {
        clients: MAX_CLIENT_CONNECTIONS,
        spare_clients: MOST_SPARE_CLIENTS,
        peers: MAX_PEER_CONNECTIONS,
        hello: HelloBounds::WIDEST,
    };

    /// Returns the limits of a server that may have `limit` descriptors open.
    pub(crate) fn within(limit: u64, shards: u16) -> Result<ConnectionBounds, Fatal> {
        let reserve = RESERVED + RESERVED_PER_SHARD * u64::from(shards);
        let true_peers = PEERS_PER_SHARD * u64::from(shards);
        let fewest_peers = true_peers + FEWEST_STRANGERS;
        let need = reserve + fewest_peers + FEWEST_CLIENTS;
        if limit < need {
            return Err(Fatal::OpenFiles { have: limit, need, shards });
        }
        let left = limit - reserve;
        let peers = (left / PEERS_SHARE).max(fewest_peers);
        let at_most =
            |count: u64, most: usize| usize::try_from(count).map_or(most, |n| n.min(most));
        let spare = ((left - peers) / SPARE_SHARE).clamp(1, MOST_SPARE_CLIENTS as u64);
        let clients = at_most(left - peers - spare, MAX_CLIENT_CONNECTIONS);
        Ok(ConnectionBounds {
            clients,
            spare_clients: at_most(spare, MAX_CLIENT_CONNECTIONS),
            peers: at_most(peers, MAX_PEER_CONNECTIONS),
            hello: HelloBounds {
                clients: (clients / 2).min(MAX_AWAITING_HELLO),
                servers: at_most(peers - true_peers, MAX_AWAITING_HELLO),
            },
        })
    }
}

/// The number of descriptors that a dump needs at the same time: one for its file, one for its directory.
const DUMP_DESCRIPTORS: usize = 2;

/// Descriptors that are kept open, so that a dump has them even if other processes use up all those of the system.
#[derive(Debug, Default)]
pub(crate) struct DumpReserve {
    kept: Vec<File>,
}

impl DumpReserve {
    /// Opens the missing descriptors.
    pub(crate) fn fill(&mut self) -> io::Result<()> {
        while self.kept.len() < DUMP_DESCRIPTORS {
            self.kept.push(File::open("/dev/null")?);
        }
        Ok(())
    }

    /// Closes the descriptors for a dump that begins.
    pub(crate) fn release(&mut self) {
        self.kept.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_hard_limits_do_not_narrow_the_bounds() {
        let wide = ConnectionBounds::within(1 << 20, 4).unwrap();
        assert_eq!(wide, ConnectionBounds::WIDEST);
        assert_eq!(ConnectionBounds::within(u64::MAX, 1).unwrap(), ConnectionBounds::WIDEST);
        let usual = ConnectionBounds::within(20_000, 4).unwrap();
        assert_eq!(usual.clients, MAX_CLIENT_CONNECTIONS);
    }

    #[test]
    fn under_every_limit_the_connections_the_reserve_and_the_streams_have_room() {
        for shards in [1u16, 2, 4, 64, 256] {
            let enough = (0..).find(|limit| ConnectionBounds::within(*limit, shards).is_ok());
            for limit in enough.unwrap()..20_000 {
                let bounds = ConnectionBounds::within(limit, shards).unwrap();
                let all = (bounds.clients + bounds.spare_clients + bounds.peers) as u64;
                let reserve = RESERVED + RESERVED_PER_SHARD * u64::from(shards);
                assert!(all + reserve <= limit, "{limit}: {bounds:?}");
                assert!(bounds.hello.clients < bounds.clients, "{limit}: {bounds:?}");
                let room = bounds.peers - bounds.hello.servers;
                assert!(room as u64 >= PEERS_PER_SHARD * u64::from(shards), "{limit}: {bounds:?}");
            }
        }
    }

    #[test]
    fn the_reserve_for_dumps_can_be_released_and_refilled() {
        let mut reserve = DumpReserve::default();
        for _ in 0..3 {
            reserve.fill().unwrap();
            assert_eq!(reserve.kept.len(), DUMP_DESCRIPTORS);
            reserve.release();
            assert!(reserve.kept.is_empty());
        }
    }

    #[test]
    fn the_error_for_a_low_limit_has_the_required_limit() {
        let error = ConnectionBounds::within(64, 2).unwrap_err();
        let Fatal::OpenFiles { need, .. } = error else { panic!("{error}") };
        assert!(error.to_string().contains(&format!("ulimit -n {need}")), "{error}");
        assert!(ConnectionBounds::within(need, 2).is_ok());
        assert!(ConnectionBounds::within(need - 1, 2).is_err());
    }
}
