//! The newest map that the coordinator sent to this server, for clients that cannot reach the coordinator.
//!
//! ```text
//!   control thread: CLUSTER-MAP -> take: this cluster? the current epoch? newer? -> kept
//!   executors:      at every wake-up: newer_than -> the shard, which responds to MAP
//! ```

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use kv_protocol::ids::{ClusterId, Epoch, MapRevision};
use kv_protocol::map::Map;
use kv_protocol::placement::Placement;

use crate::mutex::lock;

/// The reason why a map was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MapRefused {
    #[error("it belongs to cluster {theirs}, but this server belongs to cluster {ours}")]
    OtherCluster { ours: ClusterId, theirs: ClusterId },
    #[error("it describes {theirs}, but this cluster has {ours}")]
    OtherShape { ours: Placement, theirs: Placement },
    #[error(
        "it comes from epoch {} (boot {}), but this server has accepted epoch {} (boot {})",
        .theirs.number, .theirs.boot, .ours.number, .ours.boot
    )]
    OtherEpoch { ours: Epoch, theirs: Epoch },
    #[error("its revision {theirs} is earlier than the stored revision {ours}")]
    Older { ours: MapRevision, theirs: MapRevision },
    #[error("the view version of group {0} is implausibly far above the stored one")]
    ImpossibleView(kv_protocol::ids::GroupId),
}

/// The newest map; see the module documentation.
#[derive(Debug, Default)]
pub(crate) struct KnownMap {
    newest: Mutex<Option<Arc<Map>>>,
    /// The number of maps that were accepted so far.
    kept: AtomicU64,
}

impl KnownMap {
    /// Stores a map that is newer than the stored one, and ignores one that is equal. Rejects a map of another cluster,
    /// placement or epoch, an older map, and a map with an impossible view version.
    pub(crate) fn take(
        &self,
        map: Map,
        cluster: ClusterId,
        placement: Placement,
        epoch: Epoch,
    ) -> Result<(), MapRefused> {
        if map.cluster != cluster {
            return Err(MapRefused::OtherCluster { ours: cluster, theirs: map.cluster });
        }
        if map.placement() != placement {
            return Err(MapRefused::OtherShape { ours: placement, theirs: map.placement() });
        }
        if map.epoch != epoch {
            return Err(MapRefused::OtherEpoch { ours: epoch, theirs: map.epoch });
        }
        let mut newest = lock(&self.newest);
        if let Some(known) = &*newest {
            if known.is_newer_than(&map) {
                let (ours, theirs) = (known.revision, map.revision);
                return Err(MapRefused::Older { ours, theirs });
            }
            if !map.is_newer_than(known) {
                // The map is known already: the coordinator sends its map on every new link.
                return Ok(());
            }
            for (view, before) in map.views.iter().zip(&known.views) {
                if view.version.0.saturating_sub(before.version.0)
                    > kv_protocol::limits::MAX_VIEW_STEP
                {
                    return Err(MapRefused::ImpossibleView(view.group));
                }
            }
        }
        *newest = Some(Arc::new(map));
        self.kept.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Returns the newest map if the caller does not have it yet. `had` is the caller's counter of maps, initially 0,
    /// which this function updates. If there is no newer map, the call costs one atomic load.
    pub(crate) fn newer_than(&self, had: &Cell<u64>) -> Option<Arc<Map>> {
        let kept = self.kept.load(Ordering::Acquire);
        if had.replace(kept) == kept {
            return None;
        }
        lock(&self.newest).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::ids::{BootId, GroupId, Incarnation, Member, ServerId, ViewVersion};
    use kv_protocol::map::{MapServer, ServerState};
    use kv_protocol::view::{Peer, View};

    const CLUSTER: ClusterId = ClusterId(7);

    fn epoch(number: u64) -> Epoch {
        Epoch { number, boot: BootId(number) }
    }

    fn shape() -> Placement {
        Placement::new(3, 2)
    }

    fn view(group: u16, version: u64) -> View {
        let primary = Member { server: ServerId(group), incarnation: Incarnation(1) };
        View {
            group: GroupId(group),
            version: ViewVersion(version),
            primary: Some(primary),
            peer: Peer::None,
            handover: false,
        }
    }

    fn map(number: u64, revision: u64, version: u64) -> Map {
        map_of(CLUSTER, shape(), number, revision, version)
    }

    /// Returns a map in which every group is at home and all views have one version.
    fn map_of(
        cluster: ClusterId,
        placement: Placement,
        number: u64,
        revision: u64,
        version: u64,
    ) -> Map {
        let server = |n| MapServer {
            id: ServerId(n),
            incarnation: Incarnation(1),
            state: ServerState::Up,
            clients: None,
        };
        Map {
            cluster,
            ancestors: Vec::new(),
            epoch: epoch(number),
            revision: MapRevision(revision),
            shards: placement.shards(),
            servers: (0..placement.servers()).map(server).collect(),
            views: (0..placement.servers()).map(|group| view(group, version)).collect(),
            hash_tags: placement.hash_tags(),
        }
    }

    fn newest(known: &KnownMap) -> Option<Map> {
        known.newer_than(&Cell::new(0)).map(|map| (*map).clone())
    }

    #[test]
    fn each_map_is_passed_on_once() {
        let (known, had) = (KnownMap::default(), Cell::new(0));
        assert_eq!(known.newer_than(&had), None);
        for revision in [1, 2] {
            known.take(map(1, revision, 1), CLUSTER, shape(), epoch(1)).unwrap();
            assert_eq!(known.newer_than(&had).as_deref(), Some(&map(1, revision, 1)));
            assert_eq!(known.newer_than(&had), None);
        }
    }

    #[test]
    fn maps_are_ordered_by_epoch_and_then_by_revision() {
        let known = KnownMap::default();
        let take = |map: Map| {
            let epoch = map.epoch;
            known.take(map, CLUSTER, shape(), epoch)
        };
        assert_eq!(newest(&known), None);
        take(map(1, 5, 1)).unwrap();
        take(map(1, 5, 9)).unwrap();
        assert_eq!(newest(&known), Some(map(1, 5, 1)), "the same map once more");
        let replayed = take(map(1, 4, 9)).unwrap_err();
        assert!(matches!(replayed, MapRefused::Older { .. }), "{replayed}");
        take(map(1, 6, 2)).unwrap();
        take(map(2, 1, 2)).unwrap();
        assert!(take(map(1, 9, 9)).is_err(), "of an epoch that is over");
        assert_eq!(newest(&known), Some(map(2, 1, 2)));
    }

    #[test]
    fn a_map_of_another_cluster_shape_or_coordinator_changes_nothing() {
        let known = KnownMap::default();
        known.take(map(2, 1, 1), CLUSTER, shape(), epoch(2)).unwrap();
        let mut foreign = map(2, 2, 9);
        foreign.cluster = ClusterId(8);
        let mut misshapen = map(2, 2, 9);
        misshapen.shards = 3;
        let mut placed_by_tags = map(2, 2, 9);
        placed_by_tags.hash_tags = true;
        for wrong in [foreign, misshapen, placed_by_tags, map(1, 2, 9), map(3, 2, 9)] {
            assert!(known.take(wrong, CLUSTER, shape(), epoch(2)).is_err());
        }
        let forged = known.take(map(2, 2, u64::MAX), CLUSTER, shape(), epoch(2)).unwrap_err();
        assert_eq!(forged, MapRefused::ImpossibleView(GroupId(0)));
        assert_eq!(newest(&known), Some(map(2, 1, 1)));
    }
}
