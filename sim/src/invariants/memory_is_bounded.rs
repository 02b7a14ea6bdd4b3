//! 18: a table stays within its memory limit.

use kv_core::replica::Replica;

use crate::invariants::Violation;

/// What followers that must take what their primary took, copies under way, and memory that is held and
/// not in use may add: some of the longest values, and some chunks.
const SLACK: u64 = 512 << 10;

/// Looks at one replica.
pub fn check(replica: &Replica, limit: u64) -> Result<(), Violation> {
    let bytes = replica.reserved_bytes();
    if bytes <= limit + SLACK {
        return Ok(());
    }
    let words = format_args!("a table of {bytes} B, though the limit is {limit} B");
    Err(Violation::of(replica.group(), 18, words))
}
