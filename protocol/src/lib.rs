//! The wire format, and the placement of keys: the messages between the programs, and the group and shard of each key.
//!
//! ```text
//!            frame  (length, version, opcode, body, checksum)
//!              |
//!   +----------+-----------+------------------+
//!   |                      |                  |
//! client_message      peer_message      control_message
//! client <-> server   server <-> server  coordinator <-> server
//! client <-> coord    (one per shard)
//!   |                  copy_message           |
//!   +------ codec, ids, view, map, status, limits ------+
//! ```
//!
//! Everything here is a function of its arguments: no I/O, no clock, no randomness. Readers borrow keys and values from
//! the received bytes and never copy them. `docs/protocol.md` specifies the layout; the tests of this crate check that
//! the code conforms to it.

pub mod aside;
pub mod change;
pub mod client_message;
pub mod cluster_file;
pub mod codec;
pub mod control_message;
pub mod copy_message;
pub mod error;
pub mod escape;
pub mod eviction;
pub mod exit_code;
pub mod failure_timeout;
pub mod frame;
pub mod glob;
pub mod health;
pub mod ids;
pub mod key;
pub mod limits;
pub mod map;
mod md5_lanes;
pub mod peer_message;
pub mod placement;
pub mod redis_multi;
pub mod request_hash;
pub mod scan_token;
pub mod session;
pub mod size;
pub mod status;
pub mod unix;
pub mod update;
pub mod view;

pub use error::{DecodeError, FrameError};
pub use eviction::Eviction;
pub use failure_timeout::FailureTimeout;
pub use ids::*;
pub use placement::{Digest, Placement};
pub use redis_multi::RedisMulti;
pub use view::{Peer, View};
