//! 18: a table stays within its memory limit.

use kv_core::replica::Replica;

use crate::invariants::Violation;

/// What copies under way, and followers that must take what their primary took, may add.
const SLACK: u64 = 4 << 20;

/// Looks at one replica.
pub fn check(replica: &Replica, limit: u64) -> Result<(), Violation> {
    let bytes = replica.reserved_bytes();
    if bytes <= limit + SLACK {
        return Ok(());
    }
    let words = format_args!("a table of {bytes} B, though the limit is {limit} B");
    Err(Violation::of(replica.group(), 18, words))
}
