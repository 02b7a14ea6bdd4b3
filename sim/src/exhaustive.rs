//! An exhaustive search over one group, built from the machines that ship.
//!
//! ```text
//!   scope        the initial state, and the bounds on further events
//!   search       breadth-first over states; the first broken promise has a shortest trace
//!     step         the effect of an action: the drivers of all machines
//!       machine      a machine as a table from (state, input) to (state, output)
//!         driven       a shard with its connections     (kv_shard)
//!         node         a server towards its coordinator (kv_core::node)
//!         brain        the coordinator                  (kv_core::cluster)
//!     world        a state: machines, messages in transit, observations of clients
//!     client       all histories that an atomic store could have so far
//!     properties   the promises
//!   trace        a path as text
//! ```
//!
//! The simulator runs long executions of whole clusters; this search runs every short one of one group. These
//! events interleave freely: each frame on each stream, order, report, wake-up, tick of time (300 ms), request,
//! death, silence, proof and break. These happen in one step: an order reaches a node and (with one shard) its
//! executor; a wake-up handles one input; the two ends of a stream prove the cluster's key; a store completes, except in
//! a scope with a slow disk.
//!
//! A pause of a process is modelled by steps of it that do not occur. Clocks do not drift here. The ring has
//! two servers, and a stub executes the orders of its other group at once.

pub mod brain;
pub mod client;
pub mod driven;
pub mod machine;
pub mod node;
pub mod properties;
pub mod replica;
pub mod scope;
pub mod search;
pub mod step;
pub mod trace;
pub mod world;
