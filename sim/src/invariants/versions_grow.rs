//! 5: the versions that a replica installs and the epochs that a server obeys only grow.

use kv_core::replica::Inspection;
use kv_protocol::Epoch;

use crate::checks::{Checks, Place};
use crate::invariants::Violation;

/// Checks the installed version against that of the previous check.
pub fn check(
    checks: &Checks,
    process: usize,
    place: Place,
    sight: &Inspection,
) -> Result<(), Violation> {
    let version = sight.view.map_or(0, |view| view.version.0);
    match checks.seen.get(&(process, place)) {
        Some(before) if before.version > version => {
            let words = format_args!(
                "shard {}: view {version} was installed after {}",
                place.1, before.version
            );
            Err(Violation::of(place.0, 5, words))
        }
        _ => Ok(()),
    }
}

/// Checks that a server obeys either the same coordinator as before, or one with a higher epoch.
pub fn epochs(before: Epoch, after: Epoch) -> Result<(), Violation> {
    if after.number > before.number || after == before {
        return Ok(());
    }
    Err(Violation::new(5, format!("epoch {before:?} was followed by {after:?}")))
}

#[cfg(test)]
mod tests {
    use kv_protocol::ids::BootId;

    use super::*;

    #[test]
    fn a_coordinator_with_the_same_epoch_number_and_another_boot_id_is_detected() {
        let epoch = |number, boot| Epoch { number, boot: BootId(boot) };
        assert_eq!(epochs(epoch(1, 5), epoch(2, 4)), Ok(()));
        assert_eq!(epochs(epoch(2, 4), epoch(2, 4)), Ok(()));
        assert_eq!(epochs(epoch(2, 4), epoch(2, 5)).unwrap_err().invariant, 5);
        assert_eq!(epochs(epoch(2, 4), epoch(1, 5)).unwrap_err().invariant, 5);
    }
}
