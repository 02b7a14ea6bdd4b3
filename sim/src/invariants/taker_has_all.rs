//! 7: a member that starts to serve has every acknowledged write.

use kv_core::replica::Inspection;

use crate::checks::{Checks, Place};
use crate::invariants::Violation;

/// Looks at a replica that has just begun to serve.
pub fn check(
    checks: &Checks,
    process: usize,
    place: Place,
    sight: &Inspection,
    serves: bool,
) -> Result<(), Violation> {
    let served = checks.seen.get(&(process, place)).is_some_and(|(_, served)| *served);
    let acked = checks.acked.get(&place).copied().unwrap_or(0);
    if serves && !served && sight.last.0 < acked {
        let words = format_args!(
            "shard {}: process {process} starts to serve at write {}, though write {acked} was \
             acknowledged",
            place.1, sight.last
        );
        return Err(Violation::of(place.0, 7, words));
    }
    Ok(())
}
