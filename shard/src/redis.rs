//! The Redis protocol at a shard.
//!
//! ```text
//!   Redis client
//!        |  commands                       replies, in order
//!        v                                       ^
//!   connection  -- asks -->  gateway  -- answers --+
//!                              |
//!          this shard's replica, or a link to another shard or server, as a client of the native protocol
//! ```
//!
//! A connection stays at the shard that accepted it, whatever its keys. The gateway sends each request to the primary of
//! its key. It has sessions of its own, so a write that is sent again after a failover takes effect once. A client
//! therefore sees a failover as latency, until the deadline of its command.
//!
//! - [`connection`]: the commands of a connection and the order of their replies.
//! - [`gateway`]: the requests in flight, their routes, retries and deadlines.
//! - [`host`]: what commands know of the server.
//! - [`lanes`]: the sessions of the gateway.
//! - [`link`]: a connection to another shard, as its client.

pub(crate) mod connection;
pub(crate) mod gateway;
mod host;
mod lanes;
pub(crate) mod link;

#[cfg(test)]
#[path = "redis_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "redis_multi_tests.rs"]
mod multi_tests;
