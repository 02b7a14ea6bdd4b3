//! A second opinion: an exhaustive search over one group, made of the machines that ship.
//!
//! ```text
//!   scope        where it begins, and what may happen from there
//!   search       breadth first over states; the first broken promise has a shortest trace
//!     step         what an action does: the drivers of all machines
//!       machine      a machine as a table from (state, input) to (state, output)
//!         replica      of a shard, with its stream      (kv_core::replica)
//!         node         a server towards its coordinator (kv_core::node)
//!         brain        the coordinator                  (kv_core::cluster)
//!     world        a state: machines, messages on their way, what clients know
//!     client       all that an atomic store could have done so far
//!     properties   the promises
//!   trace        a way in words
//! ```
//!
//! Where the simulator plays long games in whole clusters, this plays every short one in one group. What
//! may be interleaved is: each frame on each stream, each order, each report, each wake-up, each tick of
//! time (300 ms), each request, death, silence, proof and break. What is done at once: an order reaches a
//! node and (with one shard) its executor in one step; a wake-up takes one input; a request is answered
//! where it is asked; storing, except where a scope has a slow disk. A process that pauses is one whose
//! steps do not come. Clocks do not drift here. The ring has two servers, and its other group does every
//! order at once.

pub mod brain;
pub mod client;
pub mod machine;
pub mod node;
pub mod properties;
pub mod replica;
pub mod scope;
pub mod search;
pub mod step;
pub mod trace;
pub mod world;
