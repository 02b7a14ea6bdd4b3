//! 18: a table stays within its memory limit.

use kv_core::replica::Replica;

use crate::invariants::Violation;
use crate::server::MEMORY_LIMIT;

/// What copies under way, and followers that must take what their primary took, may add.
const SLACK: u64 = 4 << 20;

/// Looks at one replica.
pub fn check(replica: &Replica) -> Result<(), Violation> {
    let bytes = replica.reserved_bytes();
    if bytes <= MEMORY_LIMIT + SLACK {
        return Ok(());
    }
    let words = format_args!("a table of {bytes} B, though the limit is {MEMORY_LIMIT} B");
    Err(Violation::of(replica.group(), 18, words))
}
