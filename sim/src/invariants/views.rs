//! Views and epochs: versions only grow, and each version names one view (invariant 5).

use std::collections::HashMap;

use kv_core::replica::Inspection;
use kv_protocol::ids::{ClusterId, GroupId, ViewVersion};
use kv_protocol::{Epoch, View};

use crate::checks::{Checks, Place};
use crate::invariants::Violation;

/// All views that were ever sent or installed. The cluster id is part of the key. If the start of a restored cluster
/// fails, another cluster is founded from the same dumps, and uses the same versions.
pub type Views = HashMap<(ClusterId, GroupId, ViewVersion), View>;

/// Checks that the versions that a replica installs only grow (invariant 5).
///
/// The function compares the installed version with that of the previous check.
pub fn versions_grow(
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

/// Checks that the epochs that a server accepts only grow (invariant 5).
///
/// A server accepts either the same coordinator as before, or one with a higher epoch.
pub fn epochs_grow(before: Epoch, after: Epoch) -> Result<(), Violation> {
    if after.number > before.number || after == before {
        return Ok(());
    }
    Err(Violation::new(5, format!("epoch {before:?} was followed by {after:?}")))
}

/// Checks that a version of a group names one view, for all coordinators and replicas of a cluster (invariant 5).
///
/// The function is called for each view that is sent or installed.
pub fn version_names_one_view(
    views: &mut Views,
    cluster: ClusterId,
    view: &View,
) -> Result<(), Violation> {
    let known = *views.entry((cluster, view.group, view.version)).or_insert(*view);
    if known == *view {
        return Ok(());
    }
    let words = format_args!("view {} differs: {known:?} and {view:?}", view.version);
    Err(Violation::of(view.group, 5, words))
}

/// Returns the violation of an order that names other members under the installed version (invariant 5).
pub fn order_contradicts(group: GroupId, version: ViewVersion) -> Violation {
    let words = format_args!("view {version} was ordered with other members than before");
    Violation::of(group, 5, words)
}

#[cfg(test)]
mod tests {
    use kv_protocol::ids::{BootId, Incarnation, Member, ServerId};
    use kv_protocol::view::Peer;

    use super::*;

    fn view(version: u64, primary: u64) -> View {
        View {
            group: GroupId(0),
            version: ViewVersion(version),
            primary: Some(Member { server: ServerId(0), incarnation: Incarnation(primary) }),
            peer: Peer::None,
            handover: false,
        }
    }

    #[test]
    fn two_views_with_one_version_are_detected_from_any_source() {
        let mut views = Views::default();
        let mut tell =
            |cluster, view| version_names_one_view(&mut views, ClusterId(cluster), &view);
        assert_eq!(tell(1, view(3, 7)), Ok(()));
        assert_eq!(tell(1, view(4, 8)), Ok(()));
        assert_eq!(tell(1, view(3, 7)), Ok(()));
        assert_eq!(tell(2, view(3, 8)), Ok(()), "another cluster");
        assert_eq!(tell(1, view(3, 8)).unwrap_err().invariant, 5);
    }

    #[test]
    fn a_coordinator_with_the_same_epoch_number_and_another_boot_id_is_detected() {
        let epoch = |number, boot| Epoch { number, boot: BootId(boot) };
        assert_eq!(epochs_grow(epoch(1, 5), epoch(2, 4)), Ok(()));
        assert_eq!(epochs_grow(epoch(2, 4), epoch(2, 4)), Ok(()));
        assert_eq!(epochs_grow(epoch(2, 4), epoch(2, 5)).unwrap_err().invariant, 5);
        assert_eq!(epochs_grow(epoch(2, 4), epoch(1, 5)).unwrap_err().invariant, 5);
    }
}
