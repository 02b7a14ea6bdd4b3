//! 5: a version of a group is one view, whichever coordinator of a cluster told it and whoever installed
//! it.

use std::collections::HashMap;

use kv_protocol::View;
use kv_protocol::ids::{ClusterId, GroupId, ViewVersion};

use crate::invariants::Violation;

/// Every view that was ever told or installed. A cluster that is restored has versions of its own: its
/// start may fail, and another one be made of the same dumps.
pub type Views = HashMap<(ClusterId, GroupId, ViewVersion), View>;

/// A view is told, or has been installed.
pub fn check(views: &mut Views, cluster: ClusterId, view: &View) -> Result<(), Violation> {
    let known = *views.entry((cluster, view.group, view.version)).or_insert(*view);
    if known == *view {
        return Ok(());
    }
    let words = format_args!("view {} is {known:?}, and it is {view:?}", view.version);
    Err(Violation::of(view.group, 5, words))
}

/// A replica was ordered to install another view under the version that it has installed.
pub fn contradiction(group: GroupId, version: ViewVersion) -> Violation {
    let words = format_args!("view {version} was ordered with other members than it has");
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
    fn two_views_of_one_version_are_found_whoever_tells_them() {
        let mut views = Views::default();
        let mut tell = |cluster, view| check(&mut views, ClusterId(cluster), &view);
        assert_eq!(tell(1, view(3, 7)), Ok(()));
        assert_eq!(tell(1, view(4, 8)), Ok(()));
        assert_eq!(tell(1, view(3, 7)), Ok(()));
        assert_eq!(tell(2, view(3, 8)), Ok(()), "another cluster");
        assert_eq!(tell(1, view(3, 8)).unwrap_err().invariant, 5);
    }
}
