//! The state that all tasks share, with the method that passes inputs to the cluster's state machine. Each file of the
//! driver adds the methods of its topic to [`Driver`].

use std::cell::{Cell, Ref, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use kv_core::cluster::{Cluster, Effect, StopOutcome};
use kv_protocol::control_message::Order;
use kv_protocol::{ClusterKey, ServerId, Time};
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::callers::Callers;
use super::places::Places;
use super::process_table::Processes;
use super::repeats::Repeats;
use crate::clock;
use crate::logs::Console;
use crate::place::Ports;
use crate::plan::Plan;
use crate::ready::Ready;
use crate::restore::Restoration;
use crate::snapshot::Snapshots;
use crate::store::StateFile;

/// The state that all tasks share.
pub(super) struct Driver {
    pub(super) cluster: RefCell<Cluster>,
    /// The map and the status for clients.
    pub(super) snapshots: Arc<Snapshots>,
    /// Notified when the main loop has something to check.
    pub(super) changed: Notify,

    // Persistence.
    /// The directory of the coordinator's files.
    pub(super) dir: PathBuf,
    /// The state file in that directory.
    pub(super) state_file: Arc<StateFile>,
    /// Notified when a store has completed.
    pub(super) stored: Notify,
    /// True until the first store completes, if this coordinator takes over the cluster of an earlier one.
    pub(super) takes_over: Cell<bool>,

    // Processes.
    pub(super) places: Places,
    pub(super) processes: Processes,
    /// Limits the number of ssh connections that are being established, or that run a short script.
    pub(super) turn: Rc<Semaphore>,
    /// The dumps that the first processes load, if the cluster is restored.
    pub(super) restoration: Option<Restoration>,

    // Announcements.
    pub(super) console: Console,
    /// The callers that wait for the end of the stop.
    pub(super) callers: Callers,
    /// The failed orders that were reported.
    pub(super) told_orders: Repeats<(ServerId, &'static str)>,
    /// The failed starts of processes that were reported.
    pub(super) told_starts: Repeats<ServerId>,
    /// The failed stores that were reported.
    pub(super) told_stores: Repeats<()>,
    /// Notified when a recovery reaches another step, or when the servers begin to load or to dump.
    pub(super) recovering: Notify,
    pub(super) ready: RefCell<Option<Ready>>,

    // Links.
    /// The key with which the cluster's processes authenticate each other.
    pub(super) key: ClusterKey,
    pub(super) ports: Ports,
    /// The number of descriptors available for connections.
    pub(super) descriptors: usize,
    pub(super) next_link: Cell<u64>,
    /// The channel for the orders to each server, by server id; `None` while it has no connection.
    pub(super) orders: RefCell<Vec<Option<mpsc::Sender<Order>>>>,
    /// Counts the changes of the settings that running servers receive, and notifies their connections.
    pub(super) settings_told: watch::Sender<u64>,
    /// The directory for dumps, if it differs from the servers' own directories.
    pub(super) dump_dir: RefCell<Option<String>>,

    // The end.
    /// The first server that could not be started, and the reason.
    pub(super) failure: RefCell<Option<(ServerId, String)>>,
    /// The reason why this coordinator must end and leave the servers running.
    pub(super) outdated: RefCell<Option<String>>,
    pub(super) outcome: RefCell<Option<StopOutcome>>,
    /// The command that restores this cluster after its stop.
    pub(super) restore_command: String,
}

impl Driver {
    /// Passes one input to the cluster, carries out its effects before the next input, and publishes the map if it has
    /// changed.
    pub(super) fn input<R>(
        self: &Rc<Driver>,
        give: impl FnOnce(&mut Cluster, Time, &mut Vec<Effect>) -> R,
    ) -> R {
        let mut effects = Vec::new();
        let result = give(&mut self.cluster.borrow_mut(), clock::now(), &mut effects);
        self.carry_out(effects);
        self.snapshots.publish_map(&self.cluster());
        self.changed.notify_one();
        result
    }

    /// Returns the cluster for reading. The reference must not be held across an await.
    pub(super) fn cluster(&self) -> Ref<'_, Cluster> {
        self.cluster.borrow()
    }

    /// Returns the current plan. The plan changes when a place moves to another host, and with `coord set`.
    pub(super) fn plan(&self) -> Rc<Plan> {
        self.places.plan()
    }

    /// Returns the directory for dumps, if it differs from the servers' own directories.
    pub(super) fn dump_dir(&self) -> Option<String> {
        self.dump_dir.borrow().clone()
    }

    /// Makes the main loop end this coordinator with this reason. The servers keep running.
    pub(super) fn end(&self, reason: String) {
        *self.outdated.borrow_mut() = Some(reason);
        self.changed.notify_one();
    }
}
