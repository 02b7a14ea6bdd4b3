//! The input side of one connection, for every protocol.

use kv_protocol::ids::Time;

use crate::connection::Connection;
use crate::handshake::Handshake;
use crate::peer::Peer;
use crate::redis::connection::RedisConnection;
use crate::redis::link::Link;
use crate::service::Service;

/// The input side of one connection.
pub(crate) enum Input {
    /// An accepted connection that has not yet named the shard that it requests.
    Handshake(Handshake),
    /// A client's connection.
    Client(Connection),
    /// A Redis client's connection.
    Redis(Box<RedisConnection>),
    /// A stream to or from another server.
    Peer(Peer),
    /// A connection to another shard, for the requests of Redis clients.
    Link(Link),
}

impl Input {
    /// Processes received bytes.
    pub(crate) fn handle_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        match self {
            Input::Handshake(handshake) => {
                let identity = service.identity;
                handshake.handle_bytes(received, identity.shard, identity.placement.shards());
            }
            Input::Client(connection) => connection.handle_bytes(now, service, received),
            Input::Redis(connection) => connection.handle_bytes(now, service, received),
            Input::Peer(peer) => peer.handle_bytes(now, service, received),
            Input::Link(link) => link.handle_bytes(now, service, received),
        }
    }

    /// Lends the input buffer, with the number of missing bytes, if at least `least` bytes of one frame are missing.
    pub(crate) fn lend_input(&mut self, least: usize) -> Option<(Vec<u8>, usize)> {
        match self {
            Input::Client(connection) => connection.lend_input(least),
            Input::Handshake(_) | Input::Redis(_) | Input::Peer(_) | Input::Link(_) => None,
        }
    }

    /// Returns whether [`Input::lend_input`] would lend the buffer.
    pub(crate) fn lacks(&self, least: usize) -> bool {
        matches!(self, Input::Client(connection) if connection.missing() >= least)
    }

    /// Takes the input buffer back and processes the bytes that were received into it.
    pub(crate) fn take_input_back(&mut self, now: Time, service: &mut Service, buffer: Vec<u8>) {
        if let Input::Client(connection) = self {
            connection.take_input_back(now, service, buffer);
        }
    }

    /// Reserves memory for the connection's frame if the connection waits for memory and some is available. Returns
    /// whether the connection still waits.
    pub(crate) fn still_waits(&mut self, now: Time, service: &mut Service) -> bool {
        match self {
            Input::Client(connection) => connection.still_waits(now, service),
            Input::Handshake(_) | Input::Redis(_) | Input::Peer(_) | Input::Link(_) => false,
        }
    }

    /// Returns whether the connection holds reserved memory but makes no progress. It is closed if others wait for
    /// memory.
    pub(crate) fn is_stalled_under_pressure(&self, now: Time) -> bool {
        matches!(self, Input::Client(connection) if connection.is_stalled_under_pressure(now))
    }

    /// Handles the end of the connection.
    pub(crate) fn handle_closed(&mut self, now: Time, service: &mut Service) {
        match self {
            Input::Handshake(_) => {}
            Input::Client(connection) => connection.handle_closed(service),
            Input::Redis(connection) => connection.handle_closed(service),
            Input::Peer(peer) => peer.handle_closed(now, service),
            Input::Link(link) => link.handle_closed(now, service),
        }
    }

    /// Continues with frames that were held back while the output was full.
    pub(crate) fn handle_output_drained(&mut self, now: Time, service: &mut Service) {
        match self {
            Input::Client(connection) => connection.handle_output_drained(now, service),
            Input::Redis(connection) => connection.go_on(now, service),
            Input::Handshake(_) | Input::Peer(_) | Input::Link(_) => {}
        }
    }

    /// Returns whether more bytes may be read.
    pub(crate) fn wants_input(&self, service: &mut Service) -> bool {
        match self {
            Input::Handshake(handshake) => handshake.wanted().is_none(),
            Input::Client(connection) => connection.wants_input(service),
            Input::Redis(connection) => connection.wants_input(service),
            Input::Peer(_) | Input::Link(_) => true,
        }
    }

    /// Returns when to close the connection because its input is incomplete.
    pub(crate) fn deadline(&self, service: &mut Service) -> Option<Time> {
        match self {
            Input::Handshake(handshake) => Some(handshake.deadline()),
            Input::Client(connection) => connection.deadline(service),
            Input::Redis(_) => None,
            Input::Peer(peer) => peer.deadline(),
            Input::Link(link) => link.deadline(),
        }
    }

    /// Returns whether the connection was accepted but has neither completed a client's hello nor authenticated as a
    /// server.
    pub(crate) fn is_stranger(&self) -> bool {
        match self {
            Input::Handshake(_) => true,
            Input::Client(_) | Input::Redis(_) | Input::Link(_) => false,
            Input::Peer(peer) => peer.is_stranger(),
        }
    }

    /// Returns whether responses are still sent after the end of input. If the end of input truncates a frame, the
    /// frame is dropped and no part of it is applied.
    pub(crate) fn is_served_after_end_of_input(&self) -> bool {
        matches!(self, Input::Client(_) | Input::Redis(_))
    }
}
