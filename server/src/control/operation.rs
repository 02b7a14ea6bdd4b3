//! The state and the operations of the process as a whole: the coordinator that it accepts, and the long operations
//! (drain and dump) that an order or a signal starts. They run on plain threads, and send messages to the mailboxes of
//! the executors.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kv_core::node::{HelloRefused, NodeConfig, NodeEffect};
use kv_protocol::FailureTimeout;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::{OrderFailure, OrdersHello, Report, Settings};
use kv_protocol::exit_code::ServerExit;
use kv_protocol::ids::{ClusterId, ClusterKey, Epoch, Member, Time};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::map::Map;
use kv_protocol::placement::Placement;
use kv_shard::Identity;

use super::dumps::Dumps;
use crate::clock;
use crate::dump::DumpFileError;
use crate::known_map::{KnownMap, MapRefused};
use crate::mailbox;
use crate::memory::limit::{MemoryLimit, parse_memory_limit};
use crate::message::ShardMessage;
use crate::mutex::lock;
use crate::statistics::Statistics;

/// A long operation, which is carried out on a separate thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The drain: new writes are rejected until no write is pending.
    Drain,
    /// The dump of the table of this role.
    Dump(ReplicaRole),
}

/// The process: its identity, its executors, its dumps, and the coordinator that it accepts.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    pub(crate) cluster: ClusterId,
    /// The key by which processes of the cluster authenticate each other.
    pub(crate) key: ClusterKey,
    pub(crate) me: Member,
    pub(crate) placement: Placement,
    /// The cluster's failure timeout, which determines the leases.
    pub(crate) failure_timeout: FailureTimeout,
    pub(crate) statistics: Arc<Statistics>,
    /// The newest map that the coordinator sent.
    pub(crate) map: Arc<KnownMap>,
    pub(crate) shards: Vec<mailbox::Sender<ShardMessage>>,
    /// The dumps of the tables of this server.
    pub(crate) dumps: Dumps,
    /// The state machine that decides which coordinator is accepted and tracks every order.
    machine: Mutex<kv_core::node::Node>,
    running: AtomicUsize,
    /// The time at which an order last began or ended, in nanoseconds of the boot clock.
    last_order: AtomicU64,
    is_stopping: AtomicBool,
    is_linked: AtomicBool,
    /// The last address that the coordinator has sent; `None` if it has sent none since the start.
    coordinator: Mutex<Option<SocketAddr>>,
    is_orphaned: AtomicBool,
}

impl ServerProcess {
    /// Creates the state of a process whose executors are started.
    pub(crate) fn new(
        identity: Identity,
        statistics: Arc<Statistics>,
        map: Arc<KnownMap>,
        shards: Vec<mailbox::Sender<ShardMessage>>,
        directory: PathBuf,
    ) -> Arc<ServerProcess> {
        let machine = kv_core::node::Node::new(NodeConfig {
            cluster: identity.cluster,
            me: identity.me,
            shards: identity.placement.shards(),
        });
        Arc::new(ServerProcess {
            cluster: identity.cluster,
            key: identity.key,
            me: identity.me,
            placement: identity.placement,
            failure_timeout: identity.failure_timeout,
            statistics,
            map,
            shards,
            dumps: Dumps::new(&identity, directory),
            machine: Mutex::new(machine),
            running: AtomicUsize::new(0),
            last_order: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            is_linked: AtomicBool::new(false),
            coordinator: Mutex::default(),
            is_orphaned: AtomicBool::new(false),
        })
    }

    /// Carries out a long operation to its end. Returns the number of entries dumped (0 for a drain), or the failure.
    pub(crate) fn carry_out(&self, work: Work) -> Result<u64, OrderFailure> {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.note_order();
        let outcome = match work {
            Work::Drain => self.drain(DRAIN_DEADLINE).map_err(OrderFailure::from),
            Work::Dump(role) => self.dump(role).map_err(|error| OrderFailure {
                is_no_copy: error.is_no_copy(),
                reason: error.to_string(),
            }),
        };
        self.note_order();
        self.running.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    /// Sends an order to every shard. If the mailbox of one shard is full, the other shards still receive the order.
    pub(crate) fn tell_all(&self, order: impl Fn() -> ShardMessage) -> Result<(), String> {
        let told = self.shards.iter().map(|mailbox| mailbox.push_order(order()).is_ok());
        let told: Vec<bool> = told.collect();
        match told.iter().position(|is_told| !is_told) {
            None => Ok(()),
            Some(shard) => {
                Err(format!("too many orders wait for shard {shard}; its executor may be hung"))
            }
        }
    }

    /// Rejects new writes from now on and waits until none is pending, at most for `timeout`. Returns 0, the number of
    /// entries dumped.
    pub(crate) fn drain(&self, timeout: Duration) -> Result<u64, String> {
        self.tell_all(|| ShardMessage::Drain)?;
        if self.statistics.wait(timeout, Statistics::is_drained) {
            return Ok(0);
        }
        let replicas = self.statistics.replicas(self.failure_timeout);
        let pending: u64 = replicas.iter().map(|r| r.last.0.saturating_sub(r.committed.0)).sum();
        Err(format!(
            "{pending} writes still have no second copy after {timeout:?}; check whether the other holder \
             runs"
        ))
    }

    /// Writes the dump of the table of this role; returns the number of entries in the dump.
    pub(crate) fn dump(&self, role: ReplicaRole) -> Result<u64, DumpFileError> {
        self.dumps.write(role, &self.shards)
    }

    /// Applies the settings that the coordinator changes while this process runs. An empty memory limit leaves the
    /// limit as it is.
    ///
    /// # Errors
    /// The reason why the memory limit cannot be parsed, as text. Then no setting is applied.
    pub(crate) fn take_settings(&self, settings: &Settings) -> Result<(), String> {
        let Settings { coordinator, eviction, memory_limit } = settings;
        let limit = match memory_limit.as_str() {
            "" => None,
            text => Some(parse_memory_limit(text)?),
        };
        *lock(&self.coordinator) = Some(*coordinator);
        let memory = self.statistics.admission.memory();
        let bytes = limit.map(|limit| match limit {
            MemoryLimit::Bytes(bytes) => Some(bytes),
            MemoryLimit::None => None,
        });
        if let Some(bytes) = bytes.filter(|bytes| *bytes != memory.memory_limit()) {
            memory.set_memory_limit(bytes);
            tracing::info!("memory limit: {memory_limit}, set by the coordinator");
        }
        if *eviction != memory.eviction() {
            memory.set_eviction(*eviction);
            tracing::info!("eviction: {eviction}, set by the coordinator");
        }
        Ok(())
    }

    /// Returns the last address that the coordinator has sent; `None` if it has sent none since the start.
    pub(crate) fn coordinator(&self) -> Option<SocketAddr> {
        *lock(&self.coordinator)
    }

    /// Returns the exit status after a stop. It shows whether a table was not dumped.
    pub(crate) fn exit(&self) -> ServerExit {
        match self.dumps.failing().is_empty() {
            true => ServerExit::Stopped,
            false => ServerExit::NotDumped,
        }
    }

    // --- The coordinator ---------------------------------------------------------------------

    /// Returns the highest coordinator epoch accepted.
    pub(crate) fn epoch(&self) -> Epoch {
        lock(&self.machine).epoch()
    }

    /// Accepts orders from the coordinator that sent this hello. Rejects a hello of another cluster, for another
    /// process, or of an earlier, conflicting or implausible epoch.
    pub(crate) fn obey(&self, hello: &OrdersHello) -> Result<(), HelloRefused> {
        lock(&self.machine).on_orders_hello(hello)
    }

    /// Stores a map from the accepted coordinator if it is newer than the stored one.
    pub(crate) fn take_map(&self, map: Map) -> Result<(), MapRefused> {
        self.map.take(map, self.cluster, self.placement, self.epoch())
    }

    /// Passes an input to the process's state machine; returns its effects.
    pub(crate) fn input(
        &self,
        give: impl FnOnce(&mut kv_core::node::Node, &mut Vec<NodeEffect>),
    ) -> Vec<NodeEffect> {
        let mut sink = Vec::new();
        give(&mut lock(&self.machine), &mut sink);
        sink
    }

    /// Returns the documented name of the report of an order; `REPORT` if the order is no longer known.
    pub(crate) fn report_name(&self, report: &Report) -> &'static str {
        let machine = lock(&self.machine);
        machine.order(report.id).map_or("REPORT", |order| order.report_name(report.outcome.is_ok()))
    }

    /// Records that the process is to end. The link then requests an orderly stop from the coordinator.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Returns whether the process is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Records whether the link to the coordinator is established.
    pub(crate) fn set_linked(&self, is_linked: bool) {
        self.is_linked.store(is_linked, Ordering::Relaxed);
    }

    /// Returns whether the link to the coordinator is established.
    pub(crate) fn is_linked(&self) -> bool {
        self.is_linked.load(Ordering::Relaxed)
    }

    /// Records that no coordinator was reachable for the orphan timeout.
    pub(crate) fn orphan(&self) {
        self.is_orphaned.store(true, Ordering::Relaxed);
    }

    /// Returns whether the process is to end because it has no coordinator.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.is_orphaned.load(Ordering::Relaxed)
    }

    pub(crate) fn note_order(&self) {
        self.last_order.store(clock::now().nanos, Ordering::Relaxed);
    }

    /// Returns the time at which an order last began or ended; `None` while one is in progress.
    pub(crate) fn last_order(&self) -> Option<Time> {
        let is_running = self.running.load(Ordering::Relaxed) > 0;
        (!is_running).then(|| Time::from_nanos(self.last_order.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::descriptors::ConnectionBounds;
    use crate::statistics::Condition;
    use kv_protocol::ids::{Incarnation, ServerId, ShardId};
    use kv_protocol::limits::SESSION_IDLE;
    use kv_shard::ConnectionMemory;
    use kv_shard::Counters;

    const SHARDS: u16 = 2;
    type Inboxes = Vec<mailbox::Receiver<ShardMessage>>;

    /// Creates a node whose executors read nothing from their mailboxes, and have drained.
    fn node() -> (Arc<ServerProcess>, Inboxes, tempfile::TempDir) {
        let statistics =
            Statistics::new(SHARDS, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
        for shard in 0..usize::from(SHARDS) {
            let now = Time::default();
            let drained = Condition { is_drained: true, is_sole: false };
            statistics.publish(shard, now, Counters::default(), drained, std::iter::empty());
        }
        let (mailboxes, inboxes) = (0..SHARDS).map(|_| mailbox::mailbox().unwrap()).unzip();
        let me = Member { server: ServerId(0), incarnation: Incarnation(1) };
        let placement = Placement::new(3, SHARDS);
        let identity = Identity {
            cluster: ClusterId(5),
            key: ClusterKey(6),
            me,
            shard: ShardId(0),
            placement,
            failure_timeout: FailureTimeout::DEFAULT,
            session_idle: SESSION_IDLE,
            long_value: kv_shard::LONG_VALUE,
        };
        let directory = tempfile::tempdir().unwrap();
        (
            ServerProcess::new(
                identity,
                statistics,
                Arc::default(),
                mailboxes,
                directory.path().to_owned(),
            ),
            inboxes,
            directory,
        )
    }

    fn drains(inbox: &mailbox::Receiver<ShardMessage>) -> usize {
        std::iter::from_fn(|| inbox.pop()).filter(|m| matches!(m, ShardMessage::Drain)).count()
    }

    #[test]
    fn orders_reach_every_shard_despite_a_mailbox_full_of_connections() {
        let (node, inboxes, _directory) = node();
        // `push` uses the queue of connections, not the queue of orders.
        while node.shards[0].push(ShardMessage::Drain).is_ok() {}
        assert_eq!(node.drain(DRAIN_DEADLINE), Ok(0));
        assert_eq!(drains(&inboxes[0]), mailbox::MAILBOX_CAPACITY + 1);
        assert_eq!(drains(&inboxes[1]), 1);
    }

    #[test]
    fn the_directory_for_dumps_can_be_set_while_a_dump_is_written() {
        let (node, inboxes, directory) = node();
        let first = directory.path().join("first");
        node.dumps.set_directory(first.clone());
        let dumping = Arc::clone(&node);
        let dump = std::thread::spawn(move || dumping.dump(ReplicaRole::Primary).is_ok());
        let partial = first.join("server_0.primary.tmp");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !partial.exists() {
            assert!(Instant::now() < deadline, "the dump did not begin");
            std::thread::yield_now();
        }
        // The shards do not reply, so the dump stays in progress.
        let (told, heard) = std::sync::mpsc::channel();
        let ordering = Arc::clone(&node);
        let order = std::thread::spawn(move || {
            ordering.dumps.set_directory(first);
            let _ = told.send(());
        });
        let is_taken = heard.recv_timeout(Duration::from_secs(2)).is_ok();
        // Dropping the inboxes ends the dump.
        drop(inboxes);
        order.join().unwrap();
        assert!(!dump.join().unwrap());
        assert!(is_taken, "setting the directory waited for the dump");
    }

    #[test]
    fn a_shard_without_room_for_an_order_is_named_and_the_others_receive_it() {
        let (node, inboxes, _directory) = node();
        while node.shards[0].push_order(ShardMessage::Drain).is_ok() {}
        let reason = node.drain(DRAIN_DEADLINE).unwrap_err();
        assert!(reason.contains("shard 0"), "{reason}");
        assert_eq!(drains(&inboxes[1]), 1);
        let reason = node.dump(ReplicaRole::Primary).unwrap_err().to_string();
        assert!(reason.contains("shard 0") && reason.contains("orders"), "{reason}");
    }
}
