//! A deterministic simulator of a whole cluster. It runs the shards and state machines that ship ([`kv_shard`],
//! [`kv_core`]) over bytes of the real wire format ([`kv_protocol`]), in a world whose time, network, disks and
//! processes follow a seed.
//!
//! ```text
//!   world        true time, a heap of events, dispatch
//!     server       a process: a node, and executors that drive shards as an engine does
//!     dump         dumps on a host's disk, and their loading into a new process
//!     coordinator  the brain and its disk
//!     client       operations, sessions, retries       workload: their choice
//!     network      ordered bytes, cuts, breaks         clock: drift
//!     nemesis      faults
//!   checks       invariants (one a file); kv_history: is each key one register?
//!   counts, trace
//! ```
//!
//! The same seed gives the same run, so a seed reproduces a failure.

pub mod checks;
pub mod client;
pub mod clock;
pub mod coordinator;
pub mod counts;
pub mod dump;
pub mod event;
pub mod exhaustive;
pub mod invariants;
pub mod nemesis;
pub mod network;
pub mod run;
pub mod server;
pub mod trace;
pub mod workload;
pub mod world;
