//! The two state machines that ship, and their parts. Pure: the caller passes the time and every
//! input, and carries out every effect.
//!
//! ```text
//!   replica    one shard of one group at one server: roles, writes, reads, the stream
//!     session    completion records: a retried write takes effect once
//!     table      segmented hash table over arenas of huge pages
//!       arena      one allocation an entry
//!   cluster    the coordinator's brain: views, who is alive, orderly stop
//!     failure_detector   heartbeats and silence
//!   awake      the time that counts as others' silence
//!   dump       both tables as text, and back
//!   restore    which dumps a cluster is made of again
//! ```
//!
//! The calling contract: `machine.on_x(now, input, &mut sink)`. The machine writes its effects into
//! the caller's sink; the caller carries out all effects of one input before it gives the next.
//! `next_timeout()` says when the machine wants to be woken.

pub mod arena;
pub mod awake;
pub mod cluster;
pub mod dump;
pub mod failure_detector;
pub mod hash;
pub mod holes;
pub mod node;
mod prefetch;
pub mod replica;
pub mod restore;
pub mod session;
pub mod table;
