//! The first stage of an accepted connection, which determines the requested shard.
//!
//! ```text
//!   accept -> Handshake: received bytes -> the hello, or a server's challenge, names a shard
//!                           | this shard:    the connection continues here
//!                           +- another shard: socket and bytes go to that shard's executor
//! ```
//!
//! This stage checks only the shard. The executor that takes the connection reads the hello again, and rejects the
//! connection if the hello is invalid.

use std::fmt;

use kv_protocol::client_message::{Hello, opcode as client_opcode};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{ShardId, Time};
use kv_protocol::key::{self, Challenge};
use kv_protocol::limits::{HELLO_DEADLINE, MAX_HELLO_BODY};
use kv_redis::client::End;

/// The maximum number of connections of one port and shard that have not completed their hello. When another one
/// arrives, the oldest is closed, so that silent connections cannot block others.
pub const MAX_AWAITING_HELLO: usize = 1_024;

/// The maximum number of connections without a hello, for each port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloBounds {
    /// Connections accepted at the clients' port.
    pub clients: usize,
    /// Connections accepted at the servers' port.
    pub servers: usize,
}

impl HelloBounds {
    /// The limits for a process with enough file descriptors.
    pub const WIDEST: HelloBounds =
        HelloBounds { clients: MAX_AWAITING_HELLO, servers: MAX_AWAITING_HELLO };
}

/// The server port at which a connection was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// The port for clients.
    Clients,
    /// The port for other servers.
    Servers,
    /// A port for Redis clients. A connection at the clients' port that speaks Redis is moved here by its first byte.
    Redis,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Port::Clients => "the clients' port",
            Port::Servers => "the servers' port",
            Port::Redis => "the port for Redis clients",
        })
    }
}

/// An accepted connection that has not yet named the shard that it requests.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) port: Port,
    received: Vec<u8>,
    deadline: Time,
    wanted: Option<ShardId>,
    next: ShardId,
    /// The addresses of both ends, if a Redis client may ask for them.
    pub(crate) ends: Option<Box<Ends>>,
}

/// The addresses of both ends of a connection, the peer's first; `None` if one is unknown.
pub(crate) type Ends = (Option<End>, Option<End>);

impl Handshake {
    /// Creates the state of a connection accepted at `now`. `next` is the shard that takes the next Redis client: each
    /// serves all keys of such a client.
    pub(crate) fn new(now: Time, port: Port, next: ShardId) -> Handshake {
        let deadline = now + HELLO_DEADLINE;
        let wanted = (port == Port::Redis).then_some(next);
        Handshake { port, received: Vec::new(), deadline, wanted, next, ends: None }
    }

    /// Processes received bytes. If the first frame names no existing shard, the shard `here` takes the connection and
    /// rejects it.
    pub(crate) fn handle_bytes(&mut self, received: &[u8], here: ShardId, shards: u16) {
        self.received.extend_from_slice(received);
        if self.port == Port::Clients && is_redis(&self.received) {
            self.port = Port::Redis;
        }
        if self.port == Port::Redis {
            self.wanted = Some(self.next);
            return;
        }
        self.wanted = match wanted_shard(self.port, &self.received) {
            Wanted::Unknown => None,
            Wanted::Shard(shard) if shard.0 < shards => Some(shard),
            Wanted::Shard(_) | Wanted::Nonsense => Some(here),
        };
    }

    /// Returns the shard whose executor takes this connection, once it is known.
    pub(crate) fn wanted(&self) -> Option<ShardId> {
        self.wanted
    }

    /// Returns when to close the connection if its hello is incomplete.
    pub(crate) fn deadline(&self) -> Time {
        self.deadline
    }

    /// Takes all received bytes, including the hello.
    pub(crate) fn take_received(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.received)
    }
}

/// Returns whether the first bytes of a client's connection are of the Redis protocol. A command begins with an asterisk, a
/// letter or a line end. The first byte of a HELLO is the low byte of its length, and none of these.
fn is_redis(received: &[u8]) -> bool {
    received.first().is_some_and(|first| {
        *first == b'*' || first.is_ascii_alphabetic() || matches!(first, b'\r' | b'\n')
    })
}

enum Wanted {
    /// The hello is incomplete.
    Unknown,
    Shard(ShardId),
    /// The bytes are not a hello.
    Nonsense,
}

fn wanted_shard(port: Port, received: &[u8]) -> Wanted {
    let rules = match port {
        Port::Clients | Port::Redis => FrameRules::unchecked(MAX_HELLO_BODY),
        Port::Servers => FrameRules::checked(MAX_HELLO_BODY),
    };
    let frame = match split_frame(received, &rules) {
        Ok(Some(frame)) => frame,
        Ok(None) => return Wanted::Unknown,
        Err(_) => return Wanted::Nonsense,
    };
    let shard = match (port, frame.opcode) {
        (Port::Clients, client_opcode::HELLO) => {
            Hello::read(frame.body).map(|hello| hello.shard).ok()
        }
        (Port::Servers, key::opcode::CHALLENGE) => {
            Challenge::read(frame.body).map(|challenge| challenge.shard).ok()
        }
        _ => None,
    };
    shard.map_or(Wanted::Nonsense, Wanted::Shard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::ids::{ClientId, ClusterId};
    use proptest::prelude::*;

    const HERE: ShardId = ShardId(0);

    fn hello(shard: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        Hello::new(ClusterId(1), ClientId(2), ShardId(shard)).write(&mut bytes);
        bytes
    }

    #[test]
    fn a_hello_in_single_bytes_finds_its_shard_and_keeps_all_bytes() {
        let mut handshake = Handshake::new(Time::from_nanos(1), Port::Clients, HERE);
        let mut bytes = hello(3);
        let length = bytes.len();
        bytes.extend_from_slice(b"pipelined");
        for byte in &bytes[..length - 1] {
            handshake.handle_bytes(&[*byte], HERE, 4);
            assert_eq!(handshake.wanted(), None);
        }
        handshake.handle_bytes(&bytes[length - 1..], HERE, 4);
        assert_eq!(handshake.wanted(), Some(ShardId(3)));
        assert_eq!(handshake.take_received(), bytes);
    }

    #[test]
    fn a_hello_for_an_unknown_shard_stays_here_to_be_rejected() {
        let mut handshake = Handshake::new(Time::from_nanos(1), Port::Clients, HERE);
        handshake.handle_bytes(&hello(4), HERE, 4);
        assert_eq!(handshake.wanted(), Some(HERE));
    }

    #[test]
    fn a_client_at_the_servers_port_stays_here_to_be_rejected() {
        let mut handshake = Handshake::new(Time::from_nanos(1), Port::Servers, HERE);
        handshake.handle_bytes(&hello(1), HERE, 4);
        assert_eq!(handshake.wanted(), Some(HERE));
    }

    #[test]
    fn a_redis_client_is_recognised_by_its_first_byte_and_goes_to_the_next_shard() {
        for first in [&b"*"[..], b"PING", b"get", b"\r\n"] {
            let mut handshake = Handshake::new(Time::from_nanos(1), Port::Clients, ShardId(2));
            handshake.handle_bytes(first, HERE, 4);
            assert_eq!((handshake.wanted(), handshake.port), (Some(ShardId(2)), Port::Redis));
            assert_eq!(handshake.take_received(), first);
        }
        let silent = Handshake::new(Time::from_nanos(1), Port::Redis, ShardId(2));
        assert_eq!(silent.wanted(), Some(ShardId(2)), "it may wait for its first command");
        for version in [1, 2] {
            let mut bytes = Vec::new();
            Hello { version, ..Hello::new(ClusterId(1), ClientId(2), ShardId(0)) }
                .write(&mut bytes);
            assert!(!is_redis(&bytes), "version {version}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_are_bounded(
            bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        ) {
            for port in [Port::Clients, Port::Servers] {
                let mut handshake = Handshake::new(Time::from_nanos(1), port, HERE);
                handshake.handle_bytes(&bytes, HERE, 1);
                // The handshake does not wait for more bytes than the longest hello.
                prop_assert!(handshake.wanted().is_some() || bytes.len() < MAX_HELLO_BODY + 12);
            }
        }
    }
}
