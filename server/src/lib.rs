//! The storage server: one executor thread for each shard, which drives the shard's replicas.
//!
//! ```text
//!   main thread          boot: arguments, probes, sockets; then signals and the watchdog
//!   control thread       STARTED, HEARTBEAT ----------------------> coordinator
//!   orders thread        <------------ views, PROBE, EXITED, DRAIN, DUMP-*, SHUTDOWN
//!      |  mailbox (bounded, eventfd)            ^ statistics (the latest state of each shard)
//!      v                                        |
//!   executor of shard 0 .. S-1:   net engine <-> kv_shard::Shard <-> kv_core::replica
//!      ^ clients' and peers' sockets, handed over to the executor of the requested shard
//! ```
//!
//! The executors never block: plain threads handle files, name look-ups and the links to the coordinator. A separate
//! thread writes log lines (log.rs). Nothing here uses tokio.

mod admission;
mod args;
mod aside;
mod boot;
mod clock;
mod control;
mod crowd;
mod descriptors;
mod dump;
mod dumped;
mod executor;
mod fatal;
mod key_file;
mod known_map;
mod load;
mod log;
mod mailbox;
mod memory;
mod message;
mod mutex;
mod net;
mod nonce;
mod probe;
mod slice;
mod statistics;
mod supervisor;
mod unix_socket;
mod watch;
mod watchdog;

pub use args::{Args, Invocation, NetEngine};
pub use boot::main;
pub use fatal::{Fatal, NoUring};
pub use memory::limit::MemoryLimit;
pub use watch::Question;

#[cfg(test)]
mod cluster_tests;
