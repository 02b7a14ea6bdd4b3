//! What the executors publish for other threads to see: the board.
//!
//! Each executor writes its own place at every tick and when something changes; heartbeats, the orders'
//! waits and the watchdog read it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{ShardId, Time};
use kv_protocol::limits::LEASE;

use crate::clock;
use crate::descriptors::ConnectionBounds;
use crate::net::listener::Port;
use crate::service::Counters;
use crate::watchdog::{Pulse, Watched};

/// Waiters look again after this long even if nobody called.
const RECHECK: Duration = Duration::from_millis(50);

/// All that the process publishes to itself.
#[derive(Debug)]
pub(crate) struct Board {
    shards: Vec<ShardBoard>,
    /// Of the thread that holds the link to the coordinator.
    pub(crate) control: Pulse,
    /// Of the thread that takes its orders.
    pub(crate) orders: Pulse,
    bounds: ConnectionBounds,
    clients: AtomicUsize,
    peers: AtomicUsize,
    /// Connections refused before they reached a shard.
    turned_away: AtomicU64,
    changes: Mutex<u64>,
    changed: Condvar,
    /// Rung at every announcement, for the thread that polls.
    bell: OnceLock<Arc<OwnedFd>>,
}

/// One shard's place.
#[derive(Debug, Default)]
struct ShardBoard {
    pulse: Pulse,
    requests: AtomicU64,
    refused: AtomicU64,
    is_drained: AtomicBool,
    /// Whether it is primary of a group whose view names no secondary.
    is_sole: AtomicBool,
    replicas: Mutex<Published>,
}

/// What a shard says of itself as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Condition {
    /// No write is pending after a drain.
    pub(crate) is_drained: bool,
    /// It is primary of a group whose view names no secondary.
    pub(crate) is_sole: bool,
}

/// What a shard said of its replicas, and when.
#[derive(Debug, Default)]
struct Published {
    at: Time,
    replicas: Vec<ReplicaReport>,
}

impl Published {
    /// The replicas as of `now`: what their executor has not said for a while, it has not heard either. But whoever
    /// stands can complain of nobody, which a silence of more than a lease would be.
    fn as_of(&self, now: Time) -> Vec<ReplicaReport> {
        let age = u32::try_from(now.since(self.at).as_millis()).unwrap_or(u32::MAX);
        let aged = |replica: &ReplicaReport| {
            let no_complaint = u32::try_from(LEASE.as_millis()).expect("half a second");
            let aged = replica.silent_ms.saturating_add(age).min(no_complaint);
            ReplicaReport { silent_ms: replica.silent_ms.max(aged), ..*replica }
        };
        self.replicas.iter().map(aged).collect()
    }
}

impl Board {
    /// An empty board for this many shards, which may have so many connections together.
    pub(crate) fn new(shards: u16, bounds: ConnectionBounds) -> Arc<Board> {
        Arc::new(Board {
            shards: (0..shards).map(|_| ShardBoard::default()).collect(),
            control: Pulse::default(),
            orders: Pulse::default(),
            bounds,
            clients: AtomicUsize::new(0),
            peers: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
            changes: Mutex::new(0),
            changed: Condvar::new(),
            bell: OnceLock::new(),
        })
    }

    /// Notes that a shard is alive.
    pub(crate) fn tick(&self, shard: usize) {
        self.shards[shard].pulse.beat();
    }

    /// All that the watchdog looks at.
    pub(crate) fn pulses(&self) -> impl Iterator<Item = (Watched, &Pulse)> {
        let executors = self.shards.iter().map(|shard| &shard.pulse);
        let executors = (0..).map(Watched::Executor).zip(executors);
        executors.chain([(Watched::Control, &self.control), (Watched::Orders, &self.orders)])
    }

    /// Publishes a shard's state.
    pub(crate) fn publish(
        &self,
        shard: usize,
        now: Time,
        counters: Counters,
        condition: Condition,
        replicas: impl Iterator<Item = ReplicaReport>,
    ) {
        let place = &self.shards[shard];
        place.requests.store(counters.requests, Ordering::Relaxed);
        place.refused.store(counters.refused, Ordering::Relaxed);
        let mut published = lock(&place.replicas);
        published.at = now;
        published.replicas.clear();
        published.replicas.extend(replicas);
        drop(published);
        place.is_sole.store(condition.is_sole, Ordering::Release);
        place.is_drained.store(condition.is_drained, Ordering::Release);
    }

    /// Wakes those who wait for a change.
    pub(crate) fn announce(&self) {
        *lock(&self.changes) += 1;
        self.changed.notify_all();
        if let Some(bell) = self.bell.get() {
            // A bell that cannot ring is rung already.
            let _ = rustix::io::write(&**bell, &1u64.to_ne_bytes());
        }
    }

    /// From now on every announcement rings this bell too. There is one.
    pub(crate) fn set_bell(&self, bell: Arc<OwnedFd>) {
        let _ = self.bell.set(bell);
    }

    /// Waits until `is_so`, at most for `patience`; whether it came to be.
    pub(crate) fn wait(&self, patience: Duration, is_so: impl Fn(&Board) -> bool) -> bool {
        let start = Instant::now();
        let mut changes = lock(&self.changes);
        while !is_so(self) {
            let left = patience.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(changes, left.min(RECHECK));
            changes = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The lines of all replicas.
    pub(crate) fn replicas(&self) -> Vec<ReplicaReport> {
        let now = clock::now();
        self.shards.iter().flat_map(|shard| lock(&shard.replicas).as_of(now)).collect()
    }

    /// The lines of one shard's replicas.
    pub(crate) fn replicas_of(&self, shard: ShardId) -> Vec<ReplicaReport> {
        lock(&self.shards[usize::from(shard.0)].replicas).as_of(clock::now())
    }

    /// Whether every shard has drained.
    pub(crate) fn is_drained(&self) -> bool {
        self.shards.iter().all(|shard| shard.is_drained.load(Ordering::Acquire))
    }

    /// Whether this server is primary of a group whose view names no secondary: nobody else may have
    /// all of its keys.
    pub(crate) fn is_sole_primary(&self) -> bool {
        self.shards.iter().any(|shard| shard.is_sole.load(Ordering::Acquire))
    }

    /// The sums over all shards.
    pub(crate) fn counters(&self) -> Counters {
        let sum = |count: fn(&ShardBoard) -> &AtomicU64| {
            self.shards.iter().map(|shard| count(shard).load(Ordering::Relaxed)).sum::<u64>()
        };
        Counters {
            requests: sum(|shard| &shard.requests),
            refused: sum(|shard| &shard.refused) + self.turned_away.load(Ordering::Relaxed),
        }
    }

    /// Client connections open.
    pub(crate) fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// How many connections there may be.
    pub(crate) fn bounds(&self) -> ConnectionBounds {
        self.bounds
    }

    /// Counts a connection in, unless there are as many as may be.
    pub(crate) fn admit(self: &Arc<Board>, port: Port) -> Option<Permit> {
        let (count, most) = self.bound(port);
        if count.fetch_add(1, Ordering::Relaxed) >= most {
            count.fetch_sub(1, Ordering::Relaxed);
            self.turn_away();
            return None;
        }
        Some(Permit { board: Arc::clone(self), port })
    }

    /// Counts a connection that was refused before it reached a shard.
    pub(crate) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    fn bound(&self, port: Port) -> (&AtomicUsize, usize) {
        match port {
            Port::Clients => (&self.clients, self.bounds.clients),
            Port::Servers => (&self.peers, self.bounds.peers),
        }
    }
}

/// The right of one connection to be there; counted out when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    board: Arc<Board>,
    port: Port,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.board.bound(self.port).0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A panic ends the process, so a poisoned lock is never seen; its content is sound all the same.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_limit_are_refused_until_one_ends() {
        let board = Board::new(1, ConnectionBounds::WIDEST);
        let mut permits: Vec<Permit> =
            (0..board.bounds().peers).map(|_| board.admit(Port::Servers).unwrap()).collect();
        assert!(board.admit(Port::Servers).is_none());
        assert!(board.admit(Port::Clients).is_some(), "clients' slots are others");
        permits.pop();
        assert!(board.admit(Port::Servers).is_some());
        assert_eq!(board.counters().refused, 1);
    }

    #[test]
    fn a_wait_ends_when_what_is_awaited_is_announced() {
        let board = Board::new(1, ConnectionBounds::WIDEST);
        let other = Arc::clone(&board);
        let thread = std::thread::spawn(move || {
            let condition = Condition { is_drained: true, is_sole: false };
            other.publish(0, Time::default(), Counters::default(), condition, std::iter::empty());
            other.announce();
        });
        assert!(board.wait(Duration::from_secs(10), Board::is_drained));
        thread.join().unwrap();
        assert!(!board.wait(Duration::ZERO, |board| board.clients() == 1));
    }
}
