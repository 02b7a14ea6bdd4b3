//! The state of a Redis connection that commands read and change, and what they know of the server.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use kv_protocol::RedisMulti;
use kv_protocol::eviction::Eviction;
use kv_protocol::ids::{ClusterId, WallTime};
use kv_protocol::placement::Placement;

use crate::resp::Version;
use crate::transaction::{Running, Transaction, Watched};

/// The version of Redis whose commands and error texts this crate has.
pub const REDIS_VERSION: &str = "7.2.4";

/// The state of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The version of the protocol in which replies are written.
    pub version: Version,
    /// The selected database.
    pub database: u8,
    /// The name that CLIENT SETNAME has set.
    pub name: Vec<u8>,
    /// The library that CLIENT SETINFO has named, and its version.
    pub library: (Vec<u8>, Vec<u8>),
    /// The number of the connection in this process.
    pub id: u64,
    /// The number of replicas that hold the last write.
    pub copies: u8,
    /// The replies that the connection sends.
    pub replies: Replies,
    /// The commands since MULTI.
    pub transaction: Option<Box<Transaction>>,
    /// The transaction that is executed in several steps. No other command begins before its end.
    pub running: Option<Box<Running>>,
    /// The keys since WATCH.
    pub watched: Vec<Watched>,
    /// The address of the client; `None` for a connection without one.
    pub peer: Option<End>,
    /// The address of the server's side.
    pub local: Option<End>,
    /// The time when the connection began.
    pub connected: WallTime,
    /// True after CLIENT NO-EVICT ON. It is only shown.
    pub is_kept: bool,
    /// True after CLIENT NO-TOUCH ON. It is only shown.
    pub touches_nothing: bool,
}

/// The address of one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// The path of a Unix-domain socket; both ends have the same.
    Unix(Arc<str>),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Ip(address) => write!(f, "{address}"),
            End::Unix(path) => write!(f, "{path}:0"),
        }
    }
}

/// The replies that a connection sends (CLIENT REPLY).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Replies {
    /// All.
    #[default]
    On,
    /// None.
    Off,
    /// All after that of the current command.
    Skip,
    /// All after that of the next command.
    SkipNext,
}

impl Client {
    /// Begins the next command. The connection calls it before [`perform`](crate::command::perform).
    pub fn begin_command(&mut self) {
        self.replies = match self.replies {
            Replies::SkipNext => Replies::Skip,
            Replies::Skip => Replies::On,
            other => other,
        };
    }

    /// Returns the memory of queued commands, their replies so far, watched keys and names, in bytes.
    pub fn held_bytes(&self) -> usize {
        let queued = self.transaction.as_ref().map_or(0, |transaction| transaction.bytes());
        let queued = queued + self.running.as_ref().map_or(0, |running| running.bytes());
        let watched = self.watched.iter().map(|watched| watched.key.len() + size_of::<Watched>());
        let names = self.name.len() + self.library.0.len() + self.library.1.len();
        queued + watched.sum::<usize>() + names
    }

    /// Returns whether the reply of the command that was just performed is not sent.
    pub fn is_silent(&self) -> bool {
        matches!(self.replies, Replies::Off | Replies::Skip)
    }

    /// Returns the state of a new connection to the state that a client can change.
    pub fn reset(&mut self) {
        *self = Client {
            id: self.id,
            copies: self.copies,
            peer: self.peer.take(),
            local: self.local.take(),
            connected: self.connected,
            library: std::mem::take(&mut self.library),
            ..Client::default()
        };
    }
}

/// The server and its cluster, as commands see them.
pub trait Server {
    /// Returns the rule that gives each key its group and shard.
    fn placement(&self) -> Placement;

    /// Returns the wall clock.
    fn wall(&self) -> WallTime;

    /// Returns the id of the cluster, which is part of the cursors of SCAN.
    fn cluster(&self) -> ClusterId;

    /// Returns a random number.
    fn random(&self) -> u64;

    /// Returns the facts that CONFIG GET and others show.
    fn facts(&self) -> Facts;

    /// Returns the load, which INFO shows.
    fn load(&self) -> Load;
}

/// The facts of a server that commands show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The limit on the memory of a server's tables, in bytes; 0 if there is none.
    pub memory_limit: u64,
    /// The policy at this limit.
    pub eviction: Eviction,
    /// The maximum number of client connections of this process.
    pub connections: usize,
    /// The port of Redis clients.
    pub port: u16,
    /// The time when the process began.
    pub started: WallTime,
    /// The treatment of transactions with keys of several shards.
    pub multi: RedisMulti,
}

/// The load of the shard that serves a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// The number of its client connections.
    pub connections: usize,
    /// The number of its client connections so far.
    pub accepted: u64,
    /// The memory that its tables have taken from the system, in bytes.
    pub memory: u64,
    /// The number of commands and requests so far.
    pub commands: u64,
    /// The number of entries that have expired.
    pub expired: u64,
    /// The number of entries that were removed to make room.
    pub evicted: u64,
    /// The number of rejected frames and connections.
    pub rejected: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_suppresses_the_reply_to_the_next_command_only() {
        let mut client = Client { replies: Replies::SkipNext, ..Client::default() };
        client.begin_command();
        assert!(client.is_silent());
        client.begin_command();
        assert!(!client.is_silent());
    }
}
