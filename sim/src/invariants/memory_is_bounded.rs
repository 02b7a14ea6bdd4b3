//! 18: a table stays within its memory limit.

use kv_core::replica::Replica;

use crate::invariants::Violation;

/// The excess allowed for followers that must accept their primary's writes, for copies in progress, and for
/// reserved but unused memory: some values of maximum length, and some chunks.
const SLACK: u64 = 512 << 10;

/// Checks one replica.
pub fn check(replica: &Replica, limit: u64) -> Result<(), Violation> {
    let bytes = replica.reserved_bytes();
    if bytes <= limit + SLACK {
        return Ok(());
    }
    let words = format_args!("a table of {bytes} B, though the limit is {limit} B");
    Err(Violation::of(replica.group(), 18, words))
}
