//! What the executors publish for other threads to see: the board.
//!
//! Each executor writes its own place at every tick and when something changes; heartbeats, the orders'
//! waits and the watchdog read it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kv_core::awake::LastSleep;
use kv_core::replica::aged;
use kv_protocol::FailureTimeout;
use kv_protocol::control_message::{CrowdReport, ReplicaReport};
use kv_protocol::ids::{Member, ShardId, Time};
use kv_protocol::limits::{GRACE, HEARTBEAT_INTERVAL, MAX_SERVERS};
use kv_protocol::view::View;

use crate::clock;
use crate::connection_memory::ConnectionMemory;
use crate::crowd::{Address, Crowd};
use crate::descriptors::ConnectionBounds;
use crate::net::listener::Port;
use crate::service::Counters;
use crate::watchdog::{Activity, Pulse, Watched};

/// Waiters look again after this long even if nobody called.
const RECHECK: Duration = Duration::from_millis(50);
/// How often the process's resident memory is asked for.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// All that the process publishes to itself.
#[derive(Debug)]
pub(crate) struct Board {
    shards: Vec<ShardBoard>,
    /// Of the thread that holds the link to the coordinator.
    pub(crate) control: Pulse,
    /// Of the thread that takes its orders.
    pub(crate) orders: Pulse,
    bounds: ConnectionBounds,
    memory: Arc<ConnectionMemory>,
    clients: AtomicUsize,
    /// Whose they are.
    crowd: Mutex<Crowd>,
    peers: AtomicUsize,
    /// Connections refused before they reached a shard.
    turned_away: AtomicU64,
    /// By group: a view was ordered by which this server is its only holder.
    ordered_sole: Box<[AtomicBool]>,
    /// How long a thread has stood that the watchdog leaves alone, in milliseconds; 0: none does.
    stood_ms: AtomicU32,
    resident_bytes: AtomicU64,
    /// As the heartbeats show it.
    sleep: Mutex<LastSleep>,
    changes: Mutex<u64>,
    changed: Condvar,
    /// How much longer than the shortest grace its executors may stand, by the cluster's failure timeout.
    beyond_grace: OnceLock<Duration>,
    /// Rung at every announcement, for the thread that polls.
    bell: OnceLock<Arc<OwnedFd>>,
}

/// One shard's place.
#[derive(Debug, Default)]
struct ShardBoard {
    pulse: Pulse,
    requests: AtomicU64,
    refused: AtomicU64,
    out_of_space: AtomicU64,
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
    fn as_of(&self, now: Time, sleep: &LastSleep, times: FailureTimeout) -> Vec<ReplicaReport> {
        let age = sleep.age(self.at, now);
        self.replicas.iter().map(|replica| aged(replica, age, times)).collect()
    }
}

impl Board {
    /// An empty board for this many shards, which may have so many connections together, with so much memory.
    pub(crate) fn new(
        shards: u16,
        bounds: ConnectionBounds,
        memory: Arc<ConnectionMemory>,
    ) -> Arc<Board> {
        Arc::new(Board {
            shards: (0..shards).map(|_| ShardBoard::default()).collect(),
            control: Pulse::default(),
            orders: Pulse::default(),
            bounds,
            memory,
            clients: AtomicUsize::new(0),
            crowd: Mutex::default(),
            peers: AtomicUsize::new(0),
            turned_away: AtomicU64::new(0),
            ordered_sole: (0..MAX_SERVERS).map(|_| AtomicBool::new(false)).collect(),
            stood_ms: AtomicU32::new(0),
            resident_bytes: AtomicU64::new(0),
            sleep: Mutex::default(),
            changes: Mutex::new(0),
            changed: Condvar::new(),
            beyond_grace: OnceLock::new(),
            bell: OnceLock::new(),
        })
    }

    /// Notes that a shard is alive.
    pub(crate) fn tick(&self, shard: usize) {
        let beyond_grace = self.beyond_grace.get().copied().unwrap_or_default();
        self.shards[shard].pulse.beat_before(beyond_grace);
    }

    /// Lets executors stand for as long as the grace of this failure timeout. Called once, before they run.
    pub(crate) fn set_failure_timeout(&self, times: FailureTimeout) {
        let _ = self.beyond_grace.set(times.grace().saturating_sub(GRACE));
    }

    /// Notes what a shard's executor begins with; what it was at before.
    pub(crate) fn begin(&self, shard: usize, activity: Activity) -> Activity {
        self.shards[shard].pulse.begin(activity)
    }

    /// Notes that the calling thread is the executor of a shard.
    pub(crate) fn own(&self, shard: usize) {
        self.shards[shard].pulse.own();
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
        place.out_of_space.store(counters.out_of_space, Ordering::Relaxed);
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

    /// The lines of all replicas, for a heartbeat: asked for at least every [`HEARTBEAT_INTERVAL`] while this process is
    /// awake.
    pub(crate) fn replicas(&self, times: FailureTimeout) -> Vec<ReplicaReport> {
        let now = clock::now();
        let sleep = {
            let mut sleep = lock(&self.sleep);
            sleep.look(now, HEARTBEAT_INTERVAL);
            *sleep
        };
        let of_shard = |shard: &ShardBoard| lock(&shard.replicas).as_of(now, &sleep, times);
        self.shards.iter().flat_map(of_shard).collect()
    }

    /// The lines of one shard's replicas.
    pub(crate) fn replicas_of(&self, shard: ShardId, times: FailureTimeout) -> Vec<ReplicaReport> {
        let sleep = *lock(&self.sleep);
        lock(&self.shards[usize::from(shard.0)].replicas).as_of(clock::now(), &sleep, times)
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

    /// Notes a view that was ordered, before any shard has installed it.
    pub(crate) fn note_ordered(&self, me: Member, view: &View) {
        let is_sole = view.primary == Some(me) && view.secondary().is_none();
        if let Some(known) = self.ordered_sole.get(usize::from(view.group.0)) {
            known.store(is_sole, Ordering::Release);
        }
    }

    /// Whether this server may be the only holder of a group: by a view that a shard has installed, or by
    /// one that was ordered. A shard that stands cannot install the view that makes it the only holder.
    pub(crate) fn is_sole_holder(&self) -> bool {
        self.is_sole_primary() || self.ordered_sole.iter().any(|sole| sole.load(Ordering::Acquire))
    }

    /// Notes how long a thread has stood that is left alone; zero: none stands.
    pub(crate) fn note_stood(&self, stood: Duration) {
        let millis = u32::try_from(stood.as_millis()).unwrap_or(u32::MAX);
        self.stood_ms.store(millis, Ordering::Relaxed);
    }

    /// How long a thread has stood that is left alone, in milliseconds.
    pub(crate) fn stood_ms(&self) -> u32 {
        self.stood_ms.load(Ordering::Relaxed)
    }

    /// Resident memory of the process, as of a moment ago.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    /// The sums over all shards.
    pub(crate) fn counters(&self) -> Counters {
        let sum = |count: fn(&ShardBoard) -> &AtomicU64| {
            self.shards.iter().map(|shard| count(shard).load(Ordering::Relaxed)).sum::<u64>()
        };
        Counters {
            requests: sum(|shard| &shard.requests),
            refused: sum(|shard| &shard.refused) + self.turned_away.load(Ordering::Relaxed),
            out_of_space: sum(|shard| &shard.out_of_space),
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

    /// The memory that connections may hold.
    pub(crate) fn memory(&self) -> &Arc<ConnectionMemory> {
        &self.memory
    }

    /// Counts a connection in, unless there are as many as may be. A client beyond that is taken in while another
    /// address has more connections than its own: idle ones of that address are closed then ([`Board::crowding`]).
    pub(crate) fn admit(self: &Arc<Board>, port: Port, from: Address) -> Option<Permit> {
        let is_admitted = match port {
            Port::Clients => self.admit_client(from),
            Port::Servers => {
                let is_admitted = self.peers.fetch_add(1, Ordering::Relaxed) < self.bounds.peers;
                if !is_admitted {
                    self.peers.fetch_sub(1, Ordering::Relaxed);
                }
                is_admitted
            }
        };
        if !is_admitted {
            self.turn_away();
            return None;
        }
        Some(Permit { board: Arc::clone(self), port, from })
    }

    fn admit_client(&self, from: Address) -> bool {
        let mut crowd = lock(&self.crowd);
        // Only this function, which holds the lock, counts up.
        let clients = self.clients();
        let is_full = clients >= self.bounds.clients;
        let has_spare = clients < self.bounds.clients + self.bounds.spare_clients;
        if is_full && !(has_spare && crowd.is_smaller(from)) {
            crowd.note(clock::now(), 0);
            return false;
        }
        crowd.enter(from);
        self.clients.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The address of whose idle connections so many are to be closed, as there are more than may be.
    pub(crate) fn crowding(&self) -> Option<(Address, usize)> {
        let excess =
            self.clients().checked_sub(self.bounds.clients).filter(|excess| *excess > 0)?;
        let (address, _) = lock(&self.crowd).largest()?;
        Some((address, excess))
    }

    /// Notes that so many connections were closed to make room.
    pub(crate) fn note_closed(&self, now: Time, closed: usize) {
        lock(&self.crowd).note(now, closed);
    }

    /// What the heartbeat says of an address that has too many connections.
    pub(crate) fn crowd_report(&self, now: Time) -> Option<CrowdReport> {
        lock(&self.crowd).report(now)
    }

    /// Counts a connection that was refused before it reached a shard.
    pub(crate) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }
}

/// Asks the system again and again what only a file of /proc says, for the life of the process: no thread
/// that serves opens one.
pub(crate) fn sample(board: &Board) -> ! {
    loop {
        board.resident_bytes.store(read_resident_bytes(), Ordering::Relaxed);
        std::thread::sleep(SAMPLE_INTERVAL);
    }
}

/// Resident memory: the second number of proc_pid_statm(5), in pages. 0 if it cannot be read.
fn read_resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// The right of one connection to be there; counted out when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    board: Arc<Board>,
    port: Port,
    from: Address,
}

impl Permit {
    /// Where the connection comes from.
    pub(crate) fn from(&self) -> Address {
        self.from
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.port {
            Port::Clients => {
                lock(&self.board.crowd).leave(self.from);
                self.board.clients.fetch_sub(1, Ordering::Relaxed);
            }
            Port::Servers => {
                self.board.peers.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

/// A panic ends the process, so a poisoned lock is never seen; its content is sound all the same.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Address = Address::LOOPBACK;

    #[test]
    fn connections_beyond_the_limit_are_refused_until_one_ends() {
        let board = Board::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
        let mut permits: Vec<Permit> =
            (0..board.bounds().peers).map(|_| board.admit(Port::Servers, HERE).unwrap()).collect();
        assert!(board.admit(Port::Servers, HERE).is_none());
        assert!(board.admit(Port::Clients, HERE).is_some(), "clients' slots are others");
        permits.pop();
        assert!(board.admit(Port::Servers, HERE).is_some());
        assert_eq!(board.counters().refused, 1);
    }

    #[test]
    fn resident_memory_is_known() {
        assert!(read_resident_bytes() > 100_000);
    }

    #[test]
    fn a_server_is_the_only_holder_from_the_order_on_until_another_is_ordered_and_installed() {
        use kv_protocol::ids::{GroupId, Incarnation, ServerId, ViewVersion};
        use kv_protocol::view::Peer;
        let board = Board::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
        let member = |server| Member { server: ServerId(server), incarnation: Incarnation(9) };
        let view = |primary, peer| View {
            group: GroupId(1),
            version: ViewVersion(1),
            primary: Some(member(primary)),
            peer,
            handover: false,
        };
        let publish = |is_sole| {
            let condition = Condition { is_drained: false, is_sole };
            board.publish(0, Time::default(), Counters::default(), condition, std::iter::empty());
        };
        assert!(!board.is_sole_holder());
        for peer in [Peer::None, Peer::Candidate(member(2))] {
            board.note_ordered(member(0), &view(0, peer));
            assert!(board.is_sole_holder(), "though its shard has not installed it");
        }
        publish(true);
        board.note_ordered(member(0), &view(0, Peer::Secondary(member(2))));
        assert!(board.is_sole_holder(), "its shard has not installed it");
        publish(false);
        assert!(!board.is_sole_holder());
        board.note_ordered(member(0), &view(1, Peer::None));
        assert!(!board.is_sole_holder(), "somebody else is");
    }

    #[test]
    fn a_raised_failure_timeout_lets_executors_stand_for_its_grace() {
        let times = FailureTimeout::new(Duration::from_secs(2));
        for (is_raised, limit) in [(false, GRACE), (true, times.grace())] {
            let board =
                Board::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
            if is_raised {
                board.set_failure_timeout(times);
            }
            board.tick(0);
            let mut watchdog = crate::watchdog::Watchdog::default();
            let interval = crate::watchdog::LOOK_INTERVAL;
            let ended = (1..=100)
                .find(|n| watchdog.look(Time::default() + interval * *n, board.pulses()).is_some());
            let stood = interval * ended.expect("it stands for ever");
            assert!(stood > limit && stood < limit + interval * 3, "{stood:?} for {limit:?}");
        }
    }

    #[test]
    fn when_all_is_full_an_address_with_fewer_connections_gets_in_and_the_largest_is_to_give_way() {
        let bounds = ConnectionBounds { clients: 10, spare_clients: 2, ..ConnectionBounds::WIDEST };
        let board = Board::new(1, bounds, ConnectionMemory::new(None, None, 2));
        let other = Address::UNKNOWN;
        let mut crowd: Vec<Permit> =
            (0..10).map(|_| board.admit(Port::Clients, HERE).unwrap()).collect();
        assert_eq!(board.crowding(), None);
        assert!(board.admit(Port::Clients, HERE).is_none(), "it has all there are");
        let _first = board.admit(Port::Clients, other).unwrap();
        let _second = board.admit(Port::Clients, other).unwrap();
        assert!(board.admit(Port::Clients, other).is_none(), "the spare places are taken");
        assert_eq!(board.crowding(), Some((HERE, 2)));
        crowd.truncate(8);
        assert_eq!(board.crowding(), None);
        assert!(board.admit(Port::Clients, HERE).is_none());
        assert!(board.admit(Port::Clients, other).is_some());
        assert_eq!(board.crowd_report(clock::now()).unwrap().connections, 8);
    }

    #[test]
    fn a_wait_ends_when_what_is_awaited_is_announced() {
        let board = Board::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
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
