//! 5: a version of a group names one view, for all coordinators and replicas of a cluster.

use std::collections::HashMap;

use kv_protocol::View;
use kv_protocol::ids::{ClusterId, GroupId, ViewVersion};

use crate::invariants::Violation;

/// All views that were ever sent or installed. Each restored cluster has versions of its own: its start may
/// fail, and another cluster be founded from the same dumps.
pub type Views = HashMap<(ClusterId, GroupId, ViewVersion), View>;

/// Checks a view that is sent, or has been installed.
pub fn check(views: &mut Views, cluster: ClusterId, view: &View) -> Result<(), Violation> {
    let known = *views.entry((cluster, view.group, view.version)).or_insert(*view);
    if known == *view {
        return Ok(());
    }
    let words = format_args!("view {} differs: {known:?} and {view:?}", view.version);
    Err(Violation::of(view.group, 5, words))
}

/// Returns the violation of an order that names other members under the installed version.
pub fn contradiction(group: GroupId, version: ViewVersion) -> Violation {
    let words = format_args!("view {version} was ordered with other members than before");
    Violation::of(group, 5, words)
}

#[cfg(test)]
mod tests {
    use kv_protocol::ids::{Incarnation, Member, ServerId};
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
        let mut tell = |cluster, view| check(&mut views, ClusterId(cluster), &view);
        assert_eq!(tell(1, view(3, 7)), Ok(()));
        assert_eq!(tell(1, view(4, 8)), Ok(()));
        assert_eq!(tell(1, view(3, 7)), Ok(()));
        assert_eq!(tell(2, view(3, 8)), Ok(()), "another cluster");
        assert_eq!(tell(1, view(3, 8)).unwrap_err().invariant, 5);
    }
}
