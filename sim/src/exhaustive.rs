//! An exhaustive search over the states of one group, which runs the shipped state machines.
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
//! The simulator runs long executions of whole clusters. This search runs every short execution of one group. These
//! events are separate steps, and the search explores every order of them: the arrival of a frame on a stream, an
//! order, a report, a wake-up, a tick of time (300 ms), a request, a death, a silence, a proof, and the break of a
//! connection. Some sequences are a single step: an order reaches a node and, with one shard, its executor; a wake-up
//! handles one input; the two ends of a stream prove the cluster's key; a store completes, except in a scope with a
//! slow disk.
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
