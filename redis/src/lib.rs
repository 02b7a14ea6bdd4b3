//! The Redis protocol: RESP, and the translation of commands to requests of the store.
//!
//! ```text
//!   received bytes -> resp::parser -> arguments -> table -> command::* -> Plan
//!                                                                          |
//!                      Reply written <------------------------------------+-- Replied, Close
//!                      Reply written <- finish <- responses <- Ask, Ask <-+-- Ask
//! ```
//!
//! A command is a function from its arguments to a [`plan::Plan`]: a reply, or requests to the store and a function that makes
//! the reply from their responses. The crate does not know connections, servers or retries; `kv_shard` sends the
//! requests and keeps the order of the replies.
//!
//! The crate does no I/O, reads no clock, draws no random number and logs nothing.

pub mod answer;
pub mod ask;
pub mod client;
pub mod command;
pub mod database;
#[cfg(test)]
mod differential;
pub mod error;
pub mod plan;
pub mod resp;
#[cfg(test)]
mod testing;
pub mod transaction;
