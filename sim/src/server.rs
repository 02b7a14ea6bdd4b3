//! One server process: its link to the coordinator, and an executor for each shard.
//!
//! The executor drives the shard that ships ([`kv_shard::Shard`]) as an engine does: sockets are connections of the
//! simulated network, time is virtual, and work takes time.
//!
//! ```text
//!   a wake-up of a shard:  take all inputs -> read the clock -> (a pause may strike here)
//!       -> timers -> orders -> streams of other servers -> their output
//!       -> clients, for a limited time -> all output -> long values -> dials -> reports
//! ```

mod engine;
mod executor;
mod process;
mod socket;
mod tap;

pub use executor::{Executor, Input, Output};
pub use process::{Bounds, MEMORY, Process};
pub use socket::Reader;
pub use tap::SentResponse;
