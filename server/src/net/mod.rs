//! The network engines, which move bytes between sockets and the shard, and the other work of an executor's thread.
//!
//! ```text
//!   engine (uring, epoll) --- bytes, ends, time ---> kv_shard::Shard
//!        ^                                                |
//!        +--------- bytes to send, fates, dials ----------+
//! ```
//!
//! An engine interprets no message. A fate ([`kv_shard::Fate`]) determines whether a connection is read, shut down,
//! handed over or closed. The [`context::ShardContext`] of a shard connects it to the other threads. Both engines
//! handle sockets in the same way ([`socket`]), and serve them in the same order ([`kv_shard::turn`]). Both call the
//! same [`duties`] and the steps of the same [`jobs`].

pub(crate) mod context;
pub(crate) mod duties;
pub(crate) mod engine;
pub(crate) mod epoll;
pub(crate) mod jobs;
pub(crate) mod socket;
pub(crate) mod uring;
