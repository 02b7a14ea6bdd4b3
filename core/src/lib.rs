//! The pure state machines of the store and their parts. The caller passes the time and every input,
//! and carries out every effect.
//!
//! ```text
//!   replica    one shard of one group at one server: roles, writes, reads, the stream
//!     session    completion records: a retried write takes effect once
//!     table      segmented hash table over an arena in huge pages
//!       arena      one allocation per entry
//!   cluster    the coordinator's state machine: views, failure detection, orderly stop
//!     failure_detector   heartbeats and silence
//!   node       the coordinator's orders to one server process, and their completion
//!   awake      a clock that excludes time in which this process was suspended
//!   frequency  a sketch of how often keys are used, for eviction
//!   number     numbers that values hold as text: add an amount
//!   dump       text format of both tables: writer and reader
//!   restore    choice of the dumps from which a cluster is rebuilt
//! ```
//!
//! The calling contract: `machine.on_x(now, input, &mut sink)`. The machine writes its effects into
//! the caller's sink; the caller carries out all effects of one input before it passes the next.
//! `next_timeout()` returns the time at which the machine needs to be called again.

pub mod arena;
pub mod awake;
pub mod cluster;
pub mod dump;
pub mod failure_detector;
pub mod frequency;
pub mod hash;
pub mod mutations;
pub mod node;
pub mod number;
mod prefetch;
pub mod replica;
pub mod restore;
pub mod retained_bytes;
pub mod session;
pub mod table;
pub mod update;
