//! The driver of a cluster that is founded, restored or taken over: its creation, its first effects, and the
//! announcement that it serves.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use kv_core::cluster::{Cluster, ClusterConfig, Effect};
use kv_protocol::cluster_file::Host;
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::{BootId, ClusterId, ClusterKey, Epoch, FailureTimeout};
use tokio::sync::{Notify, Semaphore, watch};

use super::beginning::Beginning;
use super::callers::Callers;
use super::context::Driver;
use super::places::Places;
use super::process_table::Processes;
use super::repeats::Repeats;
use crate::args::Args;
use crate::failure::Failure;
use crate::logs::Console;
use crate::place::Ports;
use crate::plan::Plan;
use crate::ready::Ready;
use crate::restore::{self, Restoration, send};
use crate::snapshot::Snapshots;
use crate::store::StateFile;
use crate::survey::MAX_SSH_AT_ONCE;
use crate::{clock, own_limits, quote, random};

/// The timeout of the whole start, from the first process to the last stream.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The interval at which an order that fails for the same reason is reported again.
const FAILURE_TOLD_EVERY: Duration = Duration::from_secs(60);
/// The interval at which a failure to start a process for the same reason is reported again.
const START_TOLD_EVERY: Duration = Duration::from_secs(600);
/// The interval at which a store that fails for the same reason is logged again.
const STORE_WARNING_INTERVAL: Duration = Duration::from_secs(10);

impl Driver {
    /// Returns the driver, and the effects of the cluster's creation, which [`Driver::begin`] carries out.
    pub(super) fn new(
        args: &Args,
        plan: Plan,
        beginning: Beginning,
        console: Console,
        ready: Option<Ready>,
        ports: Ports,
    ) -> Result<(Driver, Vec<Effect>), Failure> {
        let mut key = ClusterKey(random::nonzero_u128().map_err(Failure::Failed)?);
        let mut dump_dir = None;
        let (mut moved, mut elsewhere) = (Vec::new(), Vec::new());
        let (earlier, restoration) = match beginning {
            Beginning::New => (None, None),
            Beginning::Earlier(earlier) => {
                key = earlier.key;
                (moved, elsewhere) = (earlier.place.moved, earlier.place.elsewhere);
                // The setting applies only to a stop in progress. Otherwise servers dump into their own directories.
                dump_dir = earlier.dump_dir.filter(|_| earlier.state.is_stopping);
                (Some(earlier.state), None)
            }
            Beginning::Restored(restoration) => {
                moved.clone_from(&restoration.moved);
                (None, Some(restoration))
            }
        };
        let count = plan.file.servers.len();
        let servers = plan.file.count();
        let config = ClusterConfig {
            cluster: match &earlier {
                Some(earlier) => earlier.cluster,
                None => ClusterId(random::nonzero_u128().map_err(Failure::Failed)?),
            },
            epoch: Epoch {
                number: earlier.as_ref().map_or(1, |earlier| earlier.epoch.number + 1),
                boot: BootId(random::nonzero_u64().map_err(Failure::Failed)?),
            },
            servers,
            shards: plan.shards,
            hash_tags: plan.hash_tags,
            seed: random::nonzero_u64().map_err(Failure::Failed)?,
            on_double_fault: plan.settings.on_double_fault.into(),
            failure_timeout: FailureTimeout::new(plan.settings.failure_timeout),
            start_timeout: START_TIMEOUT
                + restoration.as_ref().map_or(Duration::ZERO, |restored| restored.timeout),
            stop_timeout: DRAIN_DEADLINE,
        };
        let (mut first, takes_over) = (Vec::new(), earlier.is_some());
        let now = clock::now();
        let cluster = match (earlier, &restoration) {
            (Some(earlier), _) => Cluster::restart(now, config, earlier, &mut first),
            (None, Some(restored)) => {
                Cluster::found_restored(now, config, restored.origin.clone(), &mut first)
            }
            (None, None) => Cluster::found(now, config, &mut first),
        };
        let snapshots = Snapshots::new(&cluster);
        let own = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        let driver = Driver {
            cluster: RefCell::new(cluster),
            snapshots,
            restoration,
            restore_command: quote::words(&restore::command(own, &plan.dir)),
            dir: args.dir.clone(),
            state_file: Arc::new(
                StateFile::open(&args.dir).map_err(|error| Failure::Failed(error.to_string()))?,
            ),
            key,
            stored: Notify::new(),
            takes_over: Cell::new(takes_over),
            turn: Rc::new(Semaphore::new(MAX_SSH_AT_ONCE)),
            places: Places::new(plan, moved, elsewhere),
            processes: Processes::new(count),
            console,
            descriptors: own_limits::raise_descriptors(),
            orders: RefCell::new((0..count).map(|_| None).collect()),
            next_link: Cell::new(1),
            ready: RefCell::new(ready),
            ports,
            failure: RefCell::new(None),
            outdated: RefCell::new(None),
            outcome: RefCell::new(None),
            settings_told: watch::Sender::new(0),
            dump_dir: RefCell::new(dump_dir),
            callers: Callers::default(),
            told_orders: Repeats::every(FAILURE_TOLD_EVERY),
            told_starts: Repeats::every(START_TOLD_EVERY),
            told_stores: Repeats::every(STORE_WARNING_INTERVAL),
            changed: Notify::new(),
            recovering: Notify::new(),
        };
        Ok((driver, first))
    }

    /// Announces the start, and carries out the effects of the cluster's creation before any input. They include the
    /// first store, on which everything else depends.
    pub(super) fn begin(self: &Rc<Driver>, first: Vec<Effect>) {
        let plan = self.plan();
        let (file, dir) = (&plan.file, plan.dir.display());
        let host = plan.routes[0].coordinator;
        if self.takes_over.get() {
            self.tell_takes_over();
            return self.carry_out(first);
        }
        self.console.say(&format!(
            "starting {} servers with {} shard{} each{}; files in {dir}; servers connect to this coordinator at \
             {host}, port {}",
            file.count(),
            plan.shards,
            if plan.shards == 1 { "" } else { "s" },
            if plan.hash_tags { ", and hash tags" } else { "" },
            self.ports.servers
        ));
        self.carry_out(first);
        self.recovering.notify_one();
    }

    /// Announces that clients are served. This is also the end of a restore.
    pub(super) fn serve(&self) {
        let host = match self.plan().listen {
            address if address.is_loopback() => "localhost".to_owned(),
            _ => self.plan().routes[0].coordinator.to_string(),
        };
        let port = self.ports.clients;
        self.console.say(&format!("serving; clients connect with: client -h {host} -p {port}"));
        if let Some(restored) = &self.restoration {
            self.tell_restored(restored);
        }
        if let Some(ready) = self.ready.take() {
            ready.announce(self.cluster().config().cluster, self.ports);
        }
    }

    /// Reports the end of a restore, and removes the links to the dumps and the copies on hosts. They are no longer
    /// needed, because every group that is not LOST has two replicas.
    fn tell_restored(&self, restored: &Restoration) {
        let (old, new) = (restored.cluster, self.cluster().config().cluster);
        self.console.say(&format!("restored: cluster {old} continues as cluster {new}"));
        restored.finish();
        for line in &self.plan().file.servers {
            let count = restored.of(line.id).len();
            if line.host != Host::Local && count > 0 {
                let (ssh, host, id) = (self.plan().ssh.clone(), line.host.clone(), line.id);
                let turn = Rc::clone(&self.turn);
                tokio::task::spawn_local(async move {
                    let _permit = turn.acquire().await;
                    send::remove(&ssh, &host, id, count).await;
                });
            }
        }
    }
}
