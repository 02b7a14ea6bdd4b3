//! A deterministic simulator of a whole cluster: the state machines that ship ([`kv_core`]) and the
//! bytes that travel ([`kv_protocol`]), in a world where time, network, disks and processes do what a
//! seed says.
//!
//! ```text
//!   world        true time, a heap of events, dispatch
//!     server       a process: a node, and executors with replicas
//!     dump         what a process leaves on its host's disk, and a process that begins with it
//!     coordinator  the brain and its disk
//!     client       operations, sessions, retries       workload: what they do
//!     network      ordered bytes, cuts, breaks         clock: drift
//!     nemesis      faults
//!   checks       invariants (one a file); kv_history: is each key one register?
//!   counts, trace
//! ```
//!
//! The same seed gives the same run, so a failure is repeated by its number.

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
pub mod random;
pub mod run;
pub mod server;
pub mod trace;
pub mod workload;
pub mod world;
