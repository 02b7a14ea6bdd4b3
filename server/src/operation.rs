//! What the process as a whole can be told to do, by the coordinator or by a signal: install a
//! view, drain, dump. Runs on plain threads; the executors are spoken to by mailbox.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use kv_core::dump::DumpHeader;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::control_message::OrderKind;
use kv_protocol::ids::{ClusterId, Epoch, GroupId, Member, Time, ViewVersion};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::placement::Placement;
use kv_protocol::view::View;

use crate::clock;
use crate::dump;
use crate::mailbox;
use crate::message::ShardMessage;
use crate::service::Identity;
use crate::stats::{Board, lock};

/// How long an executor may take to install a view.
const INSTALL_DEADLINE: Duration = Duration::from_secs(5);
/// How long the streams of a view may take to stand before the order is reported as failed.
const STREAMS_DEADLINE: Duration = Duration::from_secs(30);

/// The process: its identity, its executors, and how it is doing with its coordinator.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) cluster: ClusterId,
    pub(crate) me: Member,
    pub(crate) placement: Placement,
    pub(crate) board: Arc<Board>,
    pub(crate) shards: Vec<mailbox::Sender<ShardMessage>>,
    /// Where the dumps go.
    pub(crate) directory: PathBuf,
    /// The highest coordinator epoch obeyed.
    epoch: Mutex<Epoch>,
    /// Two dumps of one table must not write to one file at the same time.
    dumping: Mutex<()>,
    running: AtomicUsize,
    /// When an order last began or ended, in nanoseconds of the boot clock.
    last_order: AtomicU64,
    is_stopping: AtomicBool,
    is_linked: AtomicBool,
}

impl Node {
    /// A process whose executors are started.
    pub(crate) fn new(
        identity: Identity,
        board: Arc<Board>,
        shards: Vec<mailbox::Sender<ShardMessage>>,
        directory: PathBuf,
    ) -> Arc<Node> {
        Arc::new(Node {
            cluster: identity.cluster,
            me: identity.me,
            placement: identity.placement,
            board,
            shards,
            directory,
            epoch: Mutex::default(),
            dumping: Mutex::default(),
            running: AtomicUsize::new(0),
            last_order: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            is_linked: AtomicBool::new(false),
        })
    }

    /// Carries out an order to its end; the entries concerned, or what went wrong in words.
    pub(crate) fn carry_out(&self, order: &OrderKind) -> Result<u64, String> {
        self.running.fetch_add(1, Ordering::Relaxed);
        self.note_order();
        let outcome = match order {
            OrderKind::SetSecondary { view, secondary } => self.set_secondary(*view, *secondary),
            OrderKind::Drain => self.drain(DRAIN_DEADLINE),
            OrderKind::DumpPrimary => self.dump(ReplicaRole::Primary),
            OrderKind::DumpSecondary => self.dump(ReplicaRole::Secondary),
            OrderKind::Shutdown => Ok(0),
        };
        self.note_order();
        self.running.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    /// Gives an order to every shard; those that take none keep it from no other.
    fn tell_all(&self, order: impl Fn() -> ShardMessage) -> Result<(), String> {
        let told = self.shards.iter().map(|mailbox| mailbox.push_order(order()).is_ok());
        let told: Vec<bool> = told.collect();
        match told.iter().position(|is_told| !is_told) {
            None => Ok(()),
            Some(shard) => Err(format!("shard {shard} has too many orders waiting; does it run?")),
        }
    }

    fn set_secondary(&self, view: View, secondary: std::net::SocketAddr) -> Result<u64, String> {
        let (done, results) = bounded(self.shards.len());
        self.tell_all(|| ShardMessage::Install { view, secondary, done: done.clone() })?;
        for _ in &self.shards {
            let result = results.recv_timeout(INSTALL_DEADLINE);
            result.map_err(|_| "a shard did not answer in time".to_owned())??;
        }
        let shards = self.shards.len();
        let stand = move |board: &Board| streams_of(board, view.group, view.version) == shards;
        if view.other().is_some() && !self.board.wait(STREAMS_DEADLINE, stand) {
            let standing = streams_of(&self.board, view.group, view.version);
            return Err(format!(
                "{standing} of {shards} streams to {secondary} stand after {STREAMS_DEADLINE:?}; \
                 see this server's log"
            ));
        }
        Ok(self.entries_of(view.group))
    }

    /// Takes no new writes and waits until none is pending, at most for `patience`.
    pub(crate) fn drain(&self, patience: Duration) -> Result<u64, String> {
        self.tell_all(|| ShardMessage::Drain)?;
        if self.board.wait(patience, Board::is_drained) {
            return Ok(0);
        }
        let replicas = self.board.replicas();
        let pending: u64 = replicas.iter().map(|r| r.last.0.saturating_sub(r.committed.0)).sum();
        Err(format!(
            "{pending} writes still wait for their second copy after {patience:?}; is the \
             other holder alive?"
        ))
    }

    /// Writes the dump of a role; returns how many entries it holds.
    pub(crate) fn dump(&self, role: ReplicaRole) -> Result<u64, String> {
        let _alone = lock(&self.dumping);
        let start = Instant::now();
        let identity = self.identity();
        let group = identity.group_of(role);
        let views = self.board.replicas().into_iter().filter(|replica| replica.group == group);
        let header = DumpHeader {
            cluster: self.cluster,
            server: self.me.server,
            group,
            role,
            shards: self.placement.shards(),
            view: views.map(|replica| replica.view).max().unwrap_or(ViewVersion(0)),
        };
        let written = dump::write(&self.directory, &header, &self.shards);
        let name = dump::file_name(self.me.server, role);
        match written {
            Ok(entries) => {
                tracing::info!("wrote {name}: {entries} entries in {:?}", start.elapsed());
                Ok(entries)
            }
            Err(error) => {
                tracing::error!("{error}");
                Err(error.to_string())
            }
        }
    }

    fn identity(&self) -> Identity {
        let shard = kv_protocol::ids::ShardId(0);
        Identity { cluster: self.cluster, me: self.me, shard, placement: self.placement }
    }

    fn entries_of(&self, group: GroupId) -> u64 {
        let replicas = self.board.replicas();
        replicas
            .iter()
            .filter(|replica| replica.group == group)
            .map(|replica| replica.entries)
            .sum()
    }

    // --- The coordinator ---------------------------------------------------------------------

    /// The highest coordinator epoch obeyed.
    pub(crate) fn epoch(&self) -> Epoch {
        *lock(&self.epoch)
    }

    /// Obeys an epoch from now on, unless a newer one was obeyed before; then that one is returned.
    pub(crate) fn obey(&self, epoch: Epoch) -> Result<(), Epoch> {
        let mut obeyed = lock(&self.epoch);
        let is_older = epoch.number < obeyed.number;
        let is_rival = epoch.number == obeyed.number && epoch.boot != obeyed.boot;
        if *obeyed != Epoch::default() && (is_older || is_rival) {
            return Err(*obeyed);
        }
        *obeyed = epoch;
        Ok(())
    }

    /// Notes that the process is to end, so that the coordinator is asked for an orderly stop.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the process is to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Notes whether the link to the coordinator stands.
    pub(crate) fn set_linked(&self, is_linked: bool) {
        self.is_linked.store(is_linked, Ordering::Relaxed);
    }

    /// Whether the link to the coordinator stands.
    pub(crate) fn is_linked(&self) -> bool {
        self.is_linked.load(Ordering::Relaxed)
    }

    fn note_order(&self) {
        self.last_order.store(clock::now().nanos, Ordering::Relaxed);
    }

    /// How long no order was carried out; zero while one is.
    pub(crate) fn quiet_for(&self, now: Time) -> Duration {
        if self.running.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        now.since(Time::from_nanos(self.last_order.load(Ordering::Relaxed)))
    }
}

/// How many shards of a group have their stream under this view.
fn streams_of(board: &Board, group: GroupId, view: ViewVersion) -> usize {
    let replicas = board.replicas();
    replicas.iter().filter(|r| r.group == group && r.view == view && r.connected).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptors::ConnectionBounds;
    use crate::service::Counters;
    use kv_protocol::ids::{Incarnation, ServerId, ShardId};
    use kv_protocol::view::Peer;

    const SHARDS: u16 = 2;
    type Inboxes = Vec<mailbox::Receiver<ShardMessage>>;

    /// A node whose executors take nothing out of their mailboxes, and have drained.
    fn node() -> (Arc<Node>, Inboxes, tempfile::TempDir) {
        let board = Board::new(SHARDS, ConnectionBounds::WIDEST);
        for shard in 0..usize::from(SHARDS) {
            board.publish(shard, Counters::default(), true, std::iter::empty());
        }
        let (mailboxes, inboxes) = (0..SHARDS).map(|_| mailbox::mailbox().unwrap()).unzip();
        let me = Member { server: ServerId(0), incarnation: Incarnation(1) };
        let placement = Placement::new(3, SHARDS);
        let identity = Identity { cluster: ClusterId(5), me, shard: ShardId(0), placement };
        let directory = tempfile::tempdir().unwrap();
        (Node::new(identity, board, mailboxes, directory.path().to_owned()), inboxes, directory)
    }

    fn drains(inbox: &mailbox::Receiver<ShardMessage>) -> usize {
        std::iter::from_fn(|| inbox.pop()).filter(|m| matches!(m, ShardMessage::Drain)).count()
    }

    #[test]
    fn a_mailbox_full_of_connections_keeps_no_order_from_any_shard() {
        let (node, inboxes, _directory) = node();
        // Whatever lies there, it came by the connections' way.
        while node.shards[0].push(ShardMessage::Drain).is_ok() {}
        assert_eq!(node.drain(DRAIN_DEADLINE), Ok(0));
        assert_eq!(drains(&inboxes[0]), mailbox::MAILBOX_CAPACITY + 1);
        assert_eq!(drains(&inboxes[1]), 1);
    }

    #[test]
    fn a_shard_that_takes_no_more_orders_is_named_and_the_others_are_told_all_the_same() {
        let (node, inboxes, _directory) = node();
        while node.shards[0].push_order(ShardMessage::Drain).is_ok() {}
        let reason = node.drain(DRAIN_DEADLINE).unwrap_err();
        assert!(reason.contains("shard 0"), "{reason}");
        assert_eq!(drains(&inboxes[1]), 1);
        let other = Member { server: ServerId(1), incarnation: Incarnation(2) };
        let view = View {
            group: GroupId(0),
            version: ViewVersion(1),
            primary: Some(node.me),
            peer: Peer::Secondary(other),
            handover: false,
        };
        let order = OrderKind::SetSecondary { view, secondary: "127.0.0.1:1".parse().unwrap() };
        let reason = node.carry_out(&order).unwrap_err();
        assert!(reason.contains("shard 0"), "{reason}");
        assert!(matches!(inboxes[1].pop(), Some(ShardMessage::Install { .. })));
        let reason = node.dump(ReplicaRole::Primary).unwrap_err();
        assert!(reason.contains("shard 0") && reason.contains("orders"), "{reason}");
    }
}
