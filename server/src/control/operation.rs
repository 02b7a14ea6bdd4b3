//! The process as a whole: the coordinator that it accepts, and the long operations (drain and dump) that run by order
//! or by signal. It runs on plain threads and reaches the executors by mailbox.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv_core::dump::DumpOrigin;
use kv_core::node::{HelloRefused, NodeConfig, NodeEffect};
use kv_protocol::FailureTimeout;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::{DumpedBytes, OrderFailure, OrdersHello, Report, Settings};
use kv_protocol::exit_code::ServerExit;
use kv_protocol::ids::{ClusterId, ClusterKey, Epoch, GroupId, Member, ServerId, Time};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::map::Map;
use kv_protocol::placement::Placement;
use kv_shard::Identity;

use crate::aside;
use crate::clock;
use crate::descriptors::DumpReserve;
use crate::dump::{self, DumpFileError, Wanted};
use crate::known_map::{KnownMap, MapRefused};
use crate::mailbox;
use crate::memory::limit::{MemoryLimit, parse_memory_limit};
use crate::message::ShardMessage;
use crate::mutex::lock;
use crate::statistics::Statistics;

/// A long operation, carried out on a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Accept no new writes, and wait until none is pending.
    Drain,
    /// Write the dump of a role.
    Dump(ReplicaRole),
}

/// The process: its identity, its executors, and the state of its relation to the coordinator.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) cluster: ClusterId,
    /// The key by which processes of the cluster authenticate each other.
    pub(crate) key: ClusterKey,
    pub(crate) me: Member,
    pub(crate) placement: Placement,
    /// The groups whose tables of the roles primary and secondary are at home here.
    groups: [GroupId; 2],
    /// The cluster's failure timeout, from which lease durations follow.
    pub(crate) failure_timeout: FailureTimeout,
    pub(crate) statistics: Arc<Statistics>,
    /// The newest map that the coordinator sent.
    pub(crate) map: Arc<KnownMap>,
    pub(crate) shards: Vec<mailbox::Sender<ShardMessage>>,
    /// The directory of the dumps, unless [`Node::dump_to`] sets another, and its absolute path at the start. If the
    /// directory was deleted, a new one may exist at that path.
    pub(crate) directory: PathBuf,
    absolute_directory: Option<PathBuf>,
    /// The directory that the coordinator has set for the dumps, and whether dumps of an earlier run were set aside
    /// there.
    dump_to: Mutex<Option<DumpTo>>,
    /// Bytes of keys and values in the dump of each role: of the current attempt, or of the last one.
    written: [AtomicU64; 2],
    /// The time since which the dump of each role fails.
    failing: Mutex<[Option<Time>; 2]>,
    /// The state machine that decides which coordinator to accept and tracks every order.
    machine: Mutex<kv_core::node::Node>,
    /// Held while a dump is written: two dumps of one table must not write to one file at the same time.
    dumping: Mutex<DumpReserve>,
    running: AtomicUsize,
    /// The time at which an order last began or ended, in nanoseconds of the boot clock.
    last_order: AtomicU64,
    is_stopping: AtomicBool,
    is_linked: AtomicBool,
    /// The coordinator's address, if it has sent one since the start.
    coordinator: Mutex<Option<SocketAddr>>,
    is_orphaned: AtomicBool,
}

impl Node {
    /// Creates the state of a process whose executors are started.
    pub(crate) fn new(
        identity: Identity,
        statistics: Arc<Statistics>,
        map: Arc<KnownMap>,
        shards: Vec<mailbox::Sender<ShardMessage>>,
        directory: PathBuf,
    ) -> Arc<Node> {
        let machine = kv_core::node::Node::new(NodeConfig {
            cluster: identity.cluster,
            me: identity.me,
            shards: identity.placement.shards(),
        });
        Arc::new(Node {
            cluster: identity.cluster,
            key: identity.key,
            me: identity.me,
            placement: identity.placement,
            groups: [identity.primary_group(), identity.secondary_group()],
            failure_timeout: identity.failure_timeout,
            statistics,
            map,
            shards,
            absolute_directory: std::path::absolute(&directory).ok(),
            directory,
            dump_to: Mutex::default(),
            written: Default::default(),
            failing: Mutex::default(),
            machine: Mutex::new(machine),
            dumping: Mutex::default(),
            running: AtomicUsize::new(0),
            last_order: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            is_linked: AtomicBool::new(false),
            coordinator: Mutex::default(),
            is_orphaned: AtomicBool::new(false),
        })
    }

    /// Opens the descriptors that a dump will need.
    ///
    /// # Errors
    /// No descriptor is available.
    pub(crate) fn reserve_for_dumps(&self) -> io::Result<()> {
        lock(&self.dumping).fill()
    }

    /// Carries out a long order to its end; returns the number of entries dumped (0 for a drain), or the failure.
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

    /// Sends an order to every shard. A shard whose mailbox is full does not keep it from the others.
    pub(crate) fn tell_all(&self, order: impl Fn() -> ShardMessage) -> Result<(), String> {
        let told = self.shards.iter().map(|mailbox| mailbox.push_order(order()).is_ok());
        let told: Vec<bool> = told.collect();
        match told.iter().position(|is_told| !is_told) {
            None => Ok(()),
            Some(shard) => Err(format!("shard {shard} has too many orders waiting; does it run?")),
        }
    }

    /// Stops accepting new writes and waits until none is pending, at most for `timeout`.
    pub(crate) fn drain(&self, timeout: Duration) -> Result<u64, String> {
        self.tell_all(|| ShardMessage::Drain)?;
        if self.statistics.wait(timeout, Statistics::is_drained) {
            return Ok(0);
        }
        let replicas = self.statistics.replicas(self.failure_timeout);
        let pending: u64 = replicas.iter().map(|r| r.last.0.saturating_sub(r.committed.0)).sum();
        Err(format!(
            "{pending} writes still wait for their second copy after {timeout:?}; is the \
             other holder alive?"
        ))
    }

    /// Writes the dump of a role; returns how many entries it holds.
    pub(crate) fn dump(&self, role: ReplicaRole) -> Result<u64, DumpFileError> {
        let mut reserve = lock(&self.dumping);
        reserve.release();
        let start = Instant::now();
        let origin = DumpOrigin {
            cluster: self.cluster,
            writer: self.me,
            group: self.group_of(role),
            shards: self.placement.shards(),
        };
        let result = self.write_dump(&Wanted { origin, role });
        let name = dump::file_name(self.me.server, role);
        let failing = &mut lock(&self.failing)[place_of(role)];
        match &result {
            Ok((directory, entries)) => {
                *failing = None;
                let (directory, took) = (directory.display(), start.elapsed());
                tracing::info!(
                    "wrote {name}: {entries} entries in {took:?}, directory {directory}"
                );
            }
            Err(error) if error.is_no_copy() => {
                *failing = None;
                tracing::info!("no {name}: {error}");
            }
            Err(error) => {
                failing.get_or_insert_with(clock::now);
                tracing::error!("{error}; the table stays in memory");
            }
        }
        // A descriptor that cannot be reserved again now may be available when it is needed.
        let _ = reserve.fill();
        result.map(|(_, entries)| entries)
    }

    /// Writes a dump to the current directory for dumps; returns that directory and how many entries the dump holds.
    fn write_dump(&self, wanted: &Wanted) -> Result<(PathBuf, u64), DumpFileError> {
        let written = &self.written[place_of(wanted.role)];
        let write = |directory: &Path| {
            let entries = dump::write(directory, wanted, &self.shards, written)?;
            Ok((directory.to_owned(), entries))
        };
        // The orders thread sets the directory, and must never wait for a dump in progress.
        let dump_to = lock(&self.dump_to).clone();
        if let Some(mut to) = dump_to {
            to.prepare(self.me.server)?;
            if let Some(known) = &mut *lock(&self.dump_to)
                && known.directory == to.directory
            {
                known.is_prepared = true;
            }
            return write(&to.directory);
        }
        match (write(&self.directory), &self.absolute_directory) {
            (Err(error), Some(path)) if error.is_not_found() => write(path),
            (result, _) => result,
        }
    }

    /// Sets the directory of the following dumps.
    pub(crate) fn dump_to(&self, directory: PathBuf) {
        let mut dump_to = lock(&self.dump_to);
        if dump_to.as_ref().is_none_or(|known| known.directory != directory) {
            tracing::info!("dumps go to {} from now on", directory.display());
            *dump_to = Some(DumpTo { directory, is_prepared: false });
        }
    }

    /// Applies the settings that the coordinator changes while this process runs.
    ///
    /// # Errors
    /// The memory limit cannot be parsed; returns the reason as text.
    pub(crate) fn take_settings(&self, settings: &Settings) -> Result<(), String> {
        let Settings { coordinator, memory_limit } = settings;
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
            tracing::info!("memory limit: {memory_limit}, by the coordinator");
        }
        Ok(())
    }

    /// Returns the coordinator's address, if it has sent one since the start.
    pub(crate) fn coordinator(&self) -> Option<SocketAddr> {
        *lock(&self.coordinator)
    }

    /// Returns the bytes of keys and values in the dumps.
    pub(crate) fn dumped(&self) -> DumpedBytes {
        let [primary, secondary] = [&self.written[0], &self.written[1]];
        DumpedBytes {
            primary: primary.load(Ordering::Relaxed),
            secondary: secondary.load(Ordering::Relaxed),
        }
    }

    /// Returns the roles whose dumps have failed and are not complete, and since when.
    pub(crate) fn failing_dumps(&self) -> Vec<(ReplicaRole, Time)> {
        let failing = *lock(&self.failing);
        let roles = [ReplicaRole::Primary, ReplicaRole::Secondary];
        roles.into_iter().zip(failing).filter_map(|(role, since)| Some((role, since?))).collect()
    }

    /// Returns the exit status of a stop, which shows whether a table was not dumped.
    pub(crate) fn exit(&self) -> ServerExit {
        match self.failing_dumps().is_empty() {
            true => ServerExit::Stopped,
            false => ServerExit::NotDumped,
        }
    }

    /// Returns the group whose table of this role is at home here.
    pub(crate) fn group_of(&self, role: ReplicaRole) -> GroupId {
        match role {
            ReplicaRole::Primary => self.groups[0],
            ReplicaRole::Secondary => self.groups[1],
        }
    }

    // --- The coordinator ---------------------------------------------------------------------

    /// Returns the highest coordinator epoch accepted.
    pub(crate) fn epoch(&self) -> Epoch {
        lock(&self.machine).epoch()
    }

    /// Accepts the coordinator of this hello from now on.
    pub(crate) fn obey(&self, hello: &OrdersHello) -> Result<(), HelloRefused> {
        lock(&self.machine).on_orders_hello(hello)
    }

    /// Stores a map from the accepted coordinator.
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

    /// Returns the name that the manual gives the report of an order.
    pub(crate) fn report_name(&self, report: &Report) -> &'static str {
        let machine = lock(&self.machine);
        machine.order(report.id).map_or("REPORT", |order| order.report_name(report.outcome.is_ok()))
    }

    /// Records that the process is to end, so that an orderly stop is requested from the coordinator.
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

    /// Records that there has been no coordinator for the orphan timeout.
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

    /// Returns when an order last began or ended; `None` while one is carried out.
    pub(crate) fn last_order(&self) -> Option<Time> {
        let is_running = self.running.load(Ordering::Relaxed) > 0;
        (!is_running).then(|| Time::from_nanos(self.last_order.load(Ordering::Relaxed)))
    }
}

fn place_of(role: ReplicaRole) -> usize {
    match role {
        ReplicaRole::Primary => 0,
        ReplicaRole::Secondary => 1,
    }
}

/// A directory that the coordinator has set for the dumps.
#[derive(Clone, Debug)]
struct DumpTo {
    directory: PathBuf,
    is_prepared: bool,
}

impl DumpTo {
    /// Creates the directory if it does not exist, and sets dumps of an earlier run aside, once.
    fn prepare(&mut self, server: ServerId) -> Result<(), DumpFileError> {
        if !self.is_prepared {
            dump::make_directory(&self.directory)?;
            aside::set_aside(&self.directory, server);
            self.is_prepared = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::ConnectionBounds;
    use crate::statistics::Condition;
    use kv_protocol::ids::{Incarnation, ShardId};
    use kv_protocol::limits::SESSION_IDLE;
    use kv_shard::ConnectionMemory;
    use kv_shard::Counters;

    const SHARDS: u16 = 2;
    type Inboxes = Vec<mailbox::Receiver<ShardMessage>>;

    /// Creates a node whose executors read nothing from their mailboxes, and have drained.
    fn node() -> (Arc<Node>, Inboxes, tempfile::TempDir) {
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
        };
        let directory = tempfile::tempdir().unwrap();
        (
            Node::new(identity, statistics, Arc::default(), mailboxes, directory.path().to_owned()),
            inboxes,
            directory,
        )
    }

    fn drains(inbox: &mailbox::Receiver<ShardMessage>) -> usize {
        std::iter::from_fn(|| inbox.pop()).filter(|m| matches!(m, ShardMessage::Drain)).count()
    }

    #[test]
    fn a_mailbox_full_of_connections_keeps_no_order_from_any_shard() {
        let (node, inboxes, _directory) = node();
        // These messages arrive by the queue of connections.
        while node.shards[0].push(ShardMessage::Drain).is_ok() {}
        assert_eq!(node.drain(DRAIN_DEADLINE), Ok(0));
        assert_eq!(drains(&inboxes[0]), mailbox::MAILBOX_CAPACITY + 1);
        assert_eq!(drains(&inboxes[1]), 1);
    }

    #[test]
    fn a_directory_for_dumps_is_taken_while_a_dump_is_being_written() {
        let (node, inboxes, directory) = node();
        let first = directory.path().join("first");
        node.dump_to(first.clone());
        let dumping = Arc::clone(&node);
        let dump = std::thread::spawn(move || dumping.dump(ReplicaRole::Primary).is_ok());
        let partial = first.join("server_0.primary.tmp");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !partial.exists() {
            assert!(Instant::now() < deadline, "the dump begins");
            std::thread::yield_now();
        }
        // Its shards do not reply, so the dump stays in progress.
        let (told, heard) = std::sync::mpsc::channel();
        let ordering = Arc::clone(&node);
        let order = std::thread::spawn(move || {
            ordering.dump_to(first);
            let _ = told.send(());
        });
        let is_taken = heard.recv_timeout(Duration::from_secs(2)).is_ok();
        // Dropping the inboxes ends the dump.
        drop(inboxes);
        order.join().unwrap();
        assert!(!dump.join().unwrap());
        assert!(is_taken, "whoever takes orders waits for the dump");
    }

    #[test]
    fn a_shard_that_takes_no_more_orders_is_named_and_the_others_are_told_all_the_same() {
        let (node, inboxes, _directory) = node();
        while node.shards[0].push_order(ShardMessage::Drain).is_ok() {}
        let reason = node.drain(DRAIN_DEADLINE).unwrap_err();
        assert!(reason.contains("shard 0"), "{reason}");
        assert_eq!(drains(&inboxes[1]), 1);
        let reason = node.dump(ReplicaRole::Primary).unwrap_err().to_string();
        assert!(reason.contains("shard 0") && reason.contains("orders"), "{reason}");
    }
}
