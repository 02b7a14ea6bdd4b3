//! One shard of a server as a pure state machine: its connections and its replicas. Bytes, time and orders go in; bytes
//! and requests to the engine come out.
//!
//! The machine owns no socket, reads no clock, draws no random number, and logs nothing. Its driver, an engine of the
//! server or the simulator, passes every input with the time, and carries out every output.
//!
//! ```text
//!   driver                          Shard
//!   inputs
//!     accepted a socket        ->   open_accepted, set_address
//!     got a socket handed over ->   adopt, set_address, handle_bytes
//!     dialled a server         ->   open_dialled; if that failed, handle_dial_failed
//!     received bytes, an end   ->   handle_bytes (or lend_input, take_input_back), handle_end_of_input
//!     a socket has failed      ->   handle_failure
//!     an order                 ->   service.install, handle_exited, drain, begin_flush, freeze, load, set_map
//!     a tick                   ->   handle_tick; a few times a second: enforce_deadlines
//!     descriptors run short    ->   close_idle
//!   outputs, at the end of every wake-up, in this order
//!     finish_wake_up                the replicas' messages are appended to their streams
//!     next_dirty_stream        ->   send unsent (or take_unsent, recycle), handle_sent; carry out its fate
//!     next_dirty               ->   the same for all other connections
//!     poll_transmit            ->   send the parts at once, handle_transmitted; until None
//!     postponed                ->   if there are any, wake up again at once, and call serve_postponed
//!     has_readers              ->   if so, wake up again at once, and serve all other work first
//!     due_dials                ->   connect
//!     service.take_news        ->   publish reports and conditions
//!     service.take_events      ->   log
//! ```
//!
//! - [`turn::run`] carries out a turn in this order, up to `poll_transmit`; dials, news and events follow.
//! - Call `begin_wake_up` first, with a time that was read after the bytes of the wake-up were received, because lease
//!   checks rely on it.
//! - Any call that concerns a connection may change its [`Fate`], so the driver checks `fate` after each call. A call
//!   may also change the fates of other connections, which then become dirty. The driver carries out the fate: read, do
//!   not read, shut down, close the socket (then `close`), or hand the socket over. For this shard it calls
//!   `adopt_accepted`; for another, it passes the bytes of `take_handshake` along.
//! - If `shows_ends` is true, a driver that knows the addresses of both ends calls `set_ends` before `adopt_accepted`, or
//!   between `adopt` and `handle_bytes`.
//! - Inputs that can affect a lease, a deadline or a back-off take `now`. The others only set a value.
//! - `service.poll_timeout` and `service.poll_dial` return when `handle_tick` and `due_dials` have work next.
//! - [`Transmit`] borrows the shard: the bytes must be sent before any other call.
//!
//! ```text
//!   shard            the connections of a shard, as the engine drives them
//!     handshake      the first frame of an accepted connection, which names the requested shard
//!     input          the input side of a connection, one of:
//!       connection   a client's
//!       peer         a stream between two servers
//!       redis        a client's connection that speaks Redis, and its requests to other shards
//!     output         the output side of all connections
//!   turn             the order and the bounds of an engine's work
//!   service          the replicas of a shard, as a service to its connections
//!   connection_table   the ids of connections, and tables by id
//!   connection_memory  the budget of all shards for their connections
//!   load             parts of a dump in memory
//!   event            events for the log       log_limit: their rate
//!   address          the origin of a client's connection
//! ```

mod address;
mod connection;
mod connection_memory;
mod connection_table;
mod dial;
mod event;
mod handshake;
mod input;
mod load;
mod log_limit;
mod output;
mod peer;
mod redis;
mod service;
mod shard;
#[cfg(test)]
mod testing;
pub mod turn;

pub use address::Address;
pub use connection_memory::ConnectionMemory;
pub use connection_table::ConnectionTable;
pub use dial::{DialTarget, LinkId};
pub use event::{Event, EventKind};
pub use handshake::{HelloBounds, MAX_AWAITING_HELLO, Port};
pub use kv_redis::client::End;
pub use load::{DumpedEntries, LoadPiece};
pub use log_limit::LogLimit;
pub use output::LONG_VALUE;
pub use service::{Counters, Identity, InstallRefused, Nonces, Service};
pub use shard::{Fate, Shard, Transmit};
