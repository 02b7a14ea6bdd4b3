//! Code that the tests over real processes, the chaos runner and the simulator share. No program that ships depends on
//! this crate.
//!
//! ```text
//!   process    processes by pid: find, signal
//!   programs   one run of a program from its start to its exit
//!   coord      the program `coord`: its command line, its start, its status
//!   dumps      the dumps of a stopped cluster: read, compare
//!   sshd       an ssh server on a loopback port, with temporary keys
//!   threads    one stopped thread of another process
//!   silent     addresses that do not respond
//!   random     seeded random numbers
//!   objects    operations on objects: keys, updates, requests
//!   resp       commands and replies of the Redis protocol
//! ```
//!
//! The callers pass the paths of executables: tests use those that cargo built for them, and the chaos runner uses
//! those in its own directory.

pub mod coord;
pub mod dumps;
pub mod objects;
pub mod process;
pub mod programs;
pub mod random;
pub mod resp;
pub mod silent;
pub mod sshd;
pub mod threads;

pub use anyhow::Error;

use std::time::{Duration, Instant};

use kv_protocol::placement::Placement;
use kv_protocol::{GroupId, ShardId};

/// Time limit for events that should happen soon. It is long because the machine may be busy.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Interval between two checks of a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Polls `look` until it returns a value.
///
/// # Errors
/// `look` returned no value within `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    look: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    poll(limit, look).ok_or_else(|| anyhow::anyhow!("timeout after {limit:?}: {what}"))
}

/// Calls `look` repeatedly until it returns a value or the limit passes.
pub fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Returns a key of this group and shard that begins with `prefix`.
pub fn key_at(placement: Placement, group: u16, shard: u16, prefix: &str) -> String {
    (0u32..)
        .map(|n| format!("{prefix}-{n}"))
        .find(|key| placement.locate(key.as_bytes()) == (GroupId(group), ShardId(shard)))
        .expect("every place has keys")
}
