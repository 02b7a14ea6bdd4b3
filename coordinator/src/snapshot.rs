//! The newest map and status, published for the thread that serves clients.
//!
//! ```text
//!   driver's thread                                            clients' thread
//!   after each input: map, if it has changed ----------------> map()
//!   on request: status, if it has changed or is 50 ms old <--> status()
//! ```
//!
//! So a map request costs the driver's thread nothing, and concurrent status requests share one status.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kv_core::cluster::Cluster;
use kv_protocol::client_message::write_map_response;
use kv_protocol::status::ClusterStatus;
use kv_protocol::{ClusterId, Placement, Time};
use tokio::sync::{Notify, watch};

use crate::clock;

/// The maximum age of a status that is served.
pub(crate) const STATUS_AGE: Duration = Duration::from_millis(50);

/// The cluster's id and its placement of keys, which never change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) cluster: ClusterId,
    pub(crate) placement: Placement,
}

/// The shared snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub(crate) shape: Shape,
    map: Mutex<Arc<Vec<u8>>>,
    /// The newest revision of the cluster.
    revision: AtomicU64,
    status: watch::Sender<Option<Shown>>,
    status_is_wanted: Notify,
}

/// A status and the time at which it was taken.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) at: Time,
    revision: u64,
    pub(crate) status: Arc<ClusterStatus>,
}

impl Snapshots {
    /// Returns the snapshots of a cluster, with its map.
    pub(crate) fn new(cluster: &Cluster) -> Arc<Snapshots> {
        let config = cluster.config();
        let placement =
            Placement::new(cluster.count(), config.shards).with_hash_tags(config.hash_tags);
        let shape = Shape { cluster: config.cluster, placement };
        Arc::new(Snapshots {
            shape,
            map: Mutex::new(map_of(cluster)),
            revision: AtomicU64::new(cluster.revision()),
            status: watch::Sender::new(None),
            status_is_wanted: Notify::new(),
        })
    }

    /// Publishes the map of a cluster if the revision has changed. Called on the driver's thread.
    pub(crate) fn publish_map(&self, cluster: &Cluster) {
        let revision = cluster.revision();
        if self.revision.load(Ordering::Relaxed) != revision {
            *self.map.lock().unwrap_or_else(PoisonError::into_inner) = map_of(cluster);
            self.revision.store(revision, Ordering::Release);
        }
    }

    /// Waits until a status is requested. Called on the driver's thread.
    pub(crate) async fn status_is_wanted(&self) {
        self.status_is_wanted.notified().await;
    }

    /// Publishes a status with the settings of the cluster. Called on the driver's thread.
    pub(crate) fn publish_status(
        &self,
        cluster: &Cluster,
        hosts: &[String],
        settings: BTreeMap<String, String>,
    ) {
        let at = clock::now();
        let status = Arc::new(ClusterStatus { settings, ..cluster.status(at, hosts) });
        let shown = Shown { at, revision: cluster.revision(), status };
        self.status.send_replace(Some(shown));
    }

    /// Returns the bytes of the newest MAP-RESPONSE.
    pub(crate) fn map(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns a status of the newest revision that is at most [`STATUS_AGE`] old. Waits for the driver if there is
    /// none.
    pub(crate) async fn status(&self) -> Shown {
        let mut newest = self.status.subscribe();
        loop {
            let shown = newest.borrow_and_update().clone();
            match shown {
                Some(shown) if self.is_fresh(&shown) => return shown,
                _ => self.status_is_wanted.notify_one(),
            }
            // The sender exists as long as this value, so waiting cannot fail.
            let _ = newest.changed().await;
        }
    }

    fn is_fresh(&self, shown: &Shown) -> bool {
        shown.revision == self.revision.load(Ordering::Acquire)
            && clock::now().since(shown.at) < STATUS_AGE
    }
}

fn map_of(cluster: &Cluster) -> Arc<Vec<u8>> {
    let mut bytes = Vec::new();
    write_map_response(&mut bytes, &cluster.map());
    Arc::new(bytes)
}
