//! The newest map for the servers. They send it to clients while no coordinator is running. A server receives the map
//! in response to a heartbeat. Changes within one heartbeat interval are therefore sent as one map, and a silent server
//! receives nothing.

use std::cell::RefCell;
use std::rc::Rc;

use kv_core::cluster::Cluster;
use kv_protocol::MapRevision;
use kv_protocol::control_message::write_cluster_map;
use kv_protocol::map::Map;

/// The encoded frame of a map, shared by all connections that send it.
#[derive(Clone, Debug)]
pub(super) struct MapFrame {
    pub(super) revision: MapRevision,
    pub(super) bytes: Rc<Vec<u8>>,
}

/// The cached frame of the newest map.
#[derive(Debug, Default)]
pub(super) struct NewestMap {
    kept: RefCell<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// The newest revision of the cluster that was compared with `map` and found equal apart from the revision.
    checked: u64,
    map: Map,
    frame: MapFrame,
}

impl NewestMap {
    /// Returns the newest map. Returns `None` if its revision is `sent`, or if the cluster has not served yet.
    pub(super) fn later_than(
        &self,
        sent: Option<MapRevision>,
        cluster: &Cluster,
    ) -> Option<MapFrame> {
        if !cluster.has_served() {
            return None;
        }
        let mut kept = self.kept.borrow_mut();
        if kept.as_ref().is_none_or(|kept| kept.checked != cluster.revision()) {
            Kept::renew(&mut kept, cluster);
        }
        let frame = &kept.as_ref()?.frame;
        (sent != Some(frame.revision)).then(|| frame.clone())
    }
}

impl Kept {
    /// Updates the frame only if the map has changed apart from its revision. Many revisions of the cluster do not
    /// affect clients. Then the cached map stays the newest.
    fn renew(kept: &mut Option<Kept>, cluster: &Cluster) {
        let map = cluster.map();
        if let Some(kept) = kept
            && (Map { revision: kept.map.revision, ..map.clone() }) == kept.map
        {
            kept.checked = cluster.revision();
            return;
        }
        let mut bytes = Vec::new();
        write_cluster_map(&mut bytes, &map);
        let frame = MapFrame { revision: map.revision, bytes: Rc::new(bytes) };
        *kept = Some(Kept { checked: cluster.revision(), map, frame });
    }
}
