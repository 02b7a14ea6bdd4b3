//! The newest map as the servers get it, who answer clients with it when no coordinator does. A server
//! is given it in answer to a heartbeat: changes that come in one interval travel as one, and who does
//! not report is sent nothing.

use std::cell::RefCell;
use std::rc::Rc;

use kv_core::cluster::Cluster;
use kv_protocol::MapRevision;
use kv_protocol::control_message::write_cluster_map;
use kv_protocol::map::Map;

/// A map's frame, shared by all who are sent it.
#[derive(Clone, Debug)]
pub(crate) struct MapFrame {
    pub(crate) revision: MapRevision,
    pub(crate) bytes: Rc<Vec<u8>>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct NewestMap {
    kept: RefCell<Option<Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// The newest revision that says what `map` says.
    checked: u64,
    map: Map,
    frame: MapFrame,
}

impl NewestMap {
    /// The newest map, if it is another than the one of revision `sent`. A cluster that does not serve
    /// yet has none.
    pub(crate) fn later_than(
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
    /// Much that the coordinator counts as a change is none for clients: then the map that they have
    /// stays the newest.
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
