//! The newest map and status, as the brain publishes them for the thread that serves clients.
//!
//! ```text
//!   brain's thread                               clients' thread
//!   after each input: map, if it is a new one --> map()
//!   on request, every 50 ms at most: status  <--> status()
//! ```
//!
//! What clients ask for therefore costs the brain's thread next to nothing, however many ask.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kv_core::cluster::Cluster;
use kv_protocol::client_message::write_map_answer;
use kv_protocol::status::ClusterStatus;
use kv_protocol::{ClusterId, Time};
use tokio::sync::{Notify, watch};

use crate::clock;

/// A status that is shown may be this old.
pub(crate) const STATUS_AGE: Duration = Duration::from_millis(50);

/// The cluster's shape and name, which never change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) cluster: ClusterId,
    pub(crate) servers: u16,
    pub(crate) shards: u16,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Snapshots {
    pub(crate) shape: Shape,
    map: Mutex<Arc<Vec<u8>>>,
    /// The newest revision of the cluster.
    revision: AtomicU64,
    status: watch::Sender<Option<Shown>>,
    status_is_wanted: Notify,
}

/// A status and when it was true.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    pub(crate) at: Time,
    revision: u64,
    pub(crate) status: Arc<ClusterStatus>,
}

impl Snapshots {
    /// Those of a cluster, with its map.
    pub(crate) fn new(cluster: &Cluster) -> Arc<Snapshots> {
        let config = cluster.config();
        let shape =
            Shape { cluster: config.cluster, servers: cluster.count(), shards: config.shards };
        Arc::new(Snapshots {
            shape,
            map: Mutex::new(map_of(cluster)),
            revision: AtomicU64::new(cluster.revision()),
            status: watch::Sender::new(None),
            status_is_wanted: Notify::new(),
        })
    }

    /// Publishes the map of a cluster, if it is another than the last one. At the brain's thread.
    pub(crate) fn publish_map(&self, cluster: &Cluster) {
        let revision = cluster.revision();
        if self.revision.load(Ordering::Relaxed) != revision {
            *self.map.lock().unwrap_or_else(PoisonError::into_inner) = map_of(cluster);
            self.revision.store(revision, Ordering::Release);
        }
    }

    /// Waits until a status is wanted. At the brain's thread.
    pub(crate) async fn status_is_wanted(&self) {
        self.status_is_wanted.notified().await;
    }

    /// Publishes a status, with the settings of the cluster. At the brain's thread.
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

    /// The bytes of the newest MAP-ANSWER.
    pub(crate) fn map(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.map.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A status of the newest revision that is no older than [`STATUS_AGE`]. Waits for the brain if there is
    /// none.
    pub(crate) async fn status(&self) -> Shown {
        let mut newest = self.status.subscribe();
        loop {
            let shown = newest.borrow_and_update().clone();
            match shown {
                Some(shown) if self.is_fresh(&shown) => return shown,
                _ => self.status_is_wanted.notify_one(),
            }
            // The sender lives as long as this.
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
    write_map_answer(&mut bytes, &cluster.map());
    Arc::new(bytes)
}
