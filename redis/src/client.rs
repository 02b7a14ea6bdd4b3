//! The state of a Redis connection that commands read and change.

use kv_protocol::ids::WallTime;
use kv_protocol::placement::Placement;

use crate::resp::Version;

/// The state of a connection.
#[derive(Debug, Default)]
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
}

/// What commands know of the server and its cluster.
pub trait Server {
    /// Returns the rule that gives each key its group and shard.
    fn placement(&self) -> Placement;

    /// Returns the wall clock.
    fn wall(&self) -> WallTime;
}
