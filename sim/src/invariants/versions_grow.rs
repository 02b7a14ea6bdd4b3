//! 5: the versions that a replica installs only grow.

use kv_core::replica::Inspection;

use crate::checks::{Checks, Place};
use crate::world::Violation;

/// Compares with what was seen last.
pub fn check(
    checks: &Checks,
    process: usize,
    place: Place,
    sight: &Inspection,
) -> Result<(), Violation> {
    let version = sight.view.map_or(0, |view| view.version.0);
    match checks.seen.get(&(process, place)) {
        Some((before, _)) if *before > version => {
            let words = format!("{place:?}: view {version} was installed after {before}");
            Err(Violation { invariant: 5, words })
        }
        _ => Ok(()),
    }
}
