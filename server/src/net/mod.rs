//! Connections: machines over bytes, and the engine that moves the bytes.
//!
//! ```text
//!   engine (uring, epoll)       bytes in            bytes out
//!      |                           |                    ^
//!      v                           v                    |
//!   listener::Greeting ---> connection::Connection ---> output::Outputs
//!                      +--> peer::Peer -----------------^
//! ```
//!
//! The machines know no socket and no runtime; the engines know no message. All that an engine needs is
//! [`crate::shard::Shard`], in its [`hub::Hub`]. Both treat sockets alike ([`socket`]) and give clients the same part of a
//! turn ([`budget`]).

pub(crate) mod budget;
pub(crate) mod connection;
pub(crate) mod engine;
pub(crate) mod epoll;
pub(crate) mod hub;
pub(crate) mod listener;
pub(crate) mod output;
pub(crate) mod peer;
pub(crate) mod socket;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod uring;

use kv_protocol::ids::Time;

use crate::service::Service;
use connection::Connection;
use listener::Greeting;
use peer::Peer;

/// The input side of one connection.
#[derive(Debug)]
pub(crate) enum Machine {
    /// It has not said which shard it wants.
    Greeting(Greeting),
    /// A client's.
    Client(Connection),
    /// A stream to or from another server.
    Peer(Peer),
}

impl Machine {
    /// Takes received bytes.
    pub(crate) fn on_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        match self {
            Machine::Greeting(greeting) => {
                let identity = service.identity;
                greeting.on_bytes(received, identity.shard, identity.placement.shards());
            }
            Machine::Client(connection) => connection.on_bytes(now, service, received),
            Machine::Peer(peer) => peer.on_bytes(now, service, received),
        }
    }

    /// Lends its input buffer, if it waits for at least so many bytes of one frame; with their number.
    pub(crate) fn lend_input(&mut self, least: usize) -> Option<(Vec<u8>, usize)> {
        match self {
            Machine::Client(connection) => connection.lend_input(least),
            Machine::Greeting(_) | Machine::Peer(_) => None,
        }
    }

    /// Whether [`Machine::lend_input`] would lend it.
    pub(crate) fn lacks(&self, least: usize) -> bool {
        matches!(self, Machine::Client(connection) if connection.missing() >= least)
    }

    /// Takes the input buffer back, with what was received behind what it held.
    pub(crate) fn take_input_back(&mut self, now: Time, service: &mut Service, buffer: Vec<u8>) {
        if let Machine::Client(connection) = self {
            connection.take_input_back(now, service, buffer);
        }
    }

    /// Has the memory for its frame reserved, if it waits for that and there is some now; whether it waits on.
    pub(crate) fn still_waits(&mut self, now: Time, service: &mut Service) -> bool {
        match self {
            Machine::Client(connection) => connection.still_waits(now, service),
            Machine::Greeting(_) | Machine::Peer(_) => false,
        }
    }

    /// Whether it has memory that others wait for, and sends nothing.
    pub(crate) fn is_stalled_under_pressure(&self, now: Time) -> bool {
        matches!(self, Machine::Client(connection) if connection.is_stalled_under_pressure(now))
    }

    /// Does what is to be done when its socket is gone.
    pub(crate) fn on_closed(&mut self, now: Time, service: &mut Service) {
        match self {
            Machine::Greeting(_) => {}
            Machine::Client(connection) => connection.on_closed(service),
            Machine::Peer(peer) => peer.on_closed(now, service),
        }
    }

    /// Goes on with what was kept back while the output was full.
    pub(crate) fn on_output_drained(&mut self, now: Time, service: &mut Service) {
        if let Machine::Client(connection) = self {
            connection.on_output_drained(now, service);
        }
    }

    /// Whether more bytes may be read.
    pub(crate) fn wants_input(&self, service: &mut Service) -> bool {
        match self {
            Machine::Greeting(greeting) => greeting.wanted().is_none(),
            Machine::Client(connection) => connection.wants_input(service),
            Machine::Peer(_) => true,
        }
    }

    /// When to close the connection for what its input lacks.
    pub(crate) fn deadline(&self, service: &mut Service) -> Option<Time> {
        match self {
            Machine::Greeting(greeting) => Some(greeting.deadline()),
            Machine::Client(connection) => connection.deadline(service),
            Machine::Peer(peer) => peer.deadline(),
        }
    }

    /// Whether it was accepted and is neither a client that said hello nor another server for certain.
    pub(crate) fn is_stranger(&self) -> bool {
        match self {
            Machine::Greeting(_) => true,
            Machine::Client(_) => false,
            Machine::Peer(peer) => peer.is_stranger(),
        }
    }

    /// Whether answers still go out after the other side has sent all it will. A frame cut by that
    /// is dropped, nothing of it applied.
    pub(crate) fn is_served_after_end_of_input(&self) -> bool {
        matches!(self, Machine::Client(_))
    }
}
