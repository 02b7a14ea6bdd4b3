//! An exhaustive search over the states of one group, which runs the shipped state machines.
//!
//! ```text
//!   scope        the initial state, and the bounds on further events
//!   search       breadth-first over states; the first violation has a shortest trace
//!     step         the effect of an action: the drivers of all machines
//!       machine      a machine as a table from (state, input) to (state, output)
//!         driven       a shard with its connections     (kv_shard)
//!         node         the part of a server that serves the coordinator (kv_core::node)
//!         brain        the coordinator                  (kv_core::cluster)
//!     world        a state: machines, messages in transit, observations of clients
//!     client       all histories of an atomic store that agree with the responses so far
//!     properties   the invariants
//!   trace        a path as text
//! ```
//!
//! The simulator runs long executions of whole clusters. This search runs every short execution of one group. It
//! explores every order of these steps:
//!
//! - the arrival of a frame on a stream, an order, a report, a request, or the proof of a death
//! - a wake-up for a timer, and a tick of time (300 ms)
//! - the death of a process, the end of its link to the coordinator, and the break of a stream
//!
//! These sequences are a single step:
//!
//! - An order reaches a node and, with one shard, its executor.
//! - A wake-up handles one input.
//! - The two ends of a stream prove the cluster's key.
//! - A store completes, except in a scope with a slow disk.
//!
//! A paused process is modelled as one whose steps do not occur for a while. Clocks do not drift in this search.
//! The ring has two servers, and a stub immediately executes the orders for the other group.

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
