//! The statistics: state that executors publish for other threads.
//!
//! Each executor records at every tick that it is running ([`Pulse`]). It publishes its state every 100 ms, and after
//! each change for which other threads may wait. The control thread, the orders thread and the watchdog read this
//! state.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kv_core::awake::LastSleep;
use kv_core::replica::{RemovalCounts, aged};
use kv_protocol::FailureTimeout;
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::ids::{Member, ShardId, Time};
use kv_protocol::limits::{GRACE, HEARTBEAT_INTERVAL, MAX_SERVERS};
use kv_protocol::view::View;
use kv_shard::{Address, ConnectionMemory, Counters, Port};

use crate::admission::{Admission, Permit};
use crate::clock;
use crate::descriptors::ConnectionBounds;
use crate::mutex::lock;
use crate::watchdog::{Activity, Pulse, Watched};

/// The interval at which waiting threads check again without an announcement.
const RECHECK: Duration = Duration::from_millis(50);
/// The interval at which the process's resident memory is read.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The state that the threads of the process publish for each other.
#[derive(Debug)]
pub(crate) struct Statistics {
    shards: Vec<ShardStatistics>,
    /// The pulse of the thread that holds the link to the coordinator.
    pub(crate) control: Pulse,
    /// The pulse of the thread that receives orders.
    pub(crate) orders: Pulse,
    /// The numbers of open connections, and the limits on connections.
    pub(crate) admission: Arc<Admission>,
    /// Connections rejected before they reached a shard, and invalid maps.
    rejected: AtomicU64,
    /// For each group: true if the coordinator has ordered a view that names this server as the only holder.
    ordered_sole: Box<[AtomicBool]>,
    /// The time, in milliseconds, for which a thread has been hung without being ended by the watchdog; 0 if no thread
    /// is hung.
    stood_ms: AtomicU32,
    resident_bytes: AtomicU64,
    /// The last suspension of this process, as detected from the times of the heartbeats.
    sleep: Mutex<LastSleep>,
    changes: Mutex<u64>,
    changed: Condvar,
    /// The additional time, beyond the shortest grace ([`GRACE`]), for which executors may be hung. The cluster's
    /// failure timeout determines it.
    beyond_grace: OnceLock<Duration>,
    /// The eventfd that every announcement signals, for a thread that polls.
    bell: OnceLock<Arc<OwnedFd>>,
}

/// The statistics of one shard.
#[derive(Debug, Default)]
struct ShardStatistics {
    pulse: Pulse,
    requests: AtomicU64,
    refused: AtomicU64,
    out_of_space: AtomicU64,
    evicted: AtomicU64,
    expired: AtomicU64,
    is_drained: AtomicBool,
    /// True if the shard is the primary of a group without a secondary.
    is_sole: AtomicBool,
    replicas: Mutex<Published>,
}

/// The state of a shard as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Condition {
    /// True if no write is pending after a drain.
    pub(crate) is_drained: bool,
    /// True if the shard is the primary of a group without a secondary.
    pub(crate) is_sole: bool,
}

/// The last reports of a shard's replicas, and their time.
#[derive(Debug, Default)]
struct Published {
    at: Time,
    replicas: Vec<ReplicaReport>,
}

impl Published {
    /// Returns the reports as of `now`. The age of a report is added to the silence of the other holder. It raises the
    /// silence to at most one lease, because the executor itself may be hung.
    fn as_of(&self, now: Time, sleep: &LastSleep, times: FailureTimeout) -> Vec<ReplicaReport> {
        let age = sleep.age(self.at, now);
        self.replicas.iter().map(|replica| aged(replica, age, times)).collect()
    }
}

impl Statistics {
    /// Creates the empty statistics of `shards` shards, with the limits on all their connections and the connections'
    /// memory.
    pub(crate) fn new(
        shards: u16,
        bounds: ConnectionBounds,
        memory: Arc<ConnectionMemory>,
    ) -> Arc<Statistics> {
        Arc::new(Statistics {
            shards: (0..shards).map(|_| ShardStatistics::default()).collect(),
            control: Pulse::default(),
            orders: Pulse::default(),
            admission: Admission::new(bounds, memory),
            rejected: AtomicU64::new(0),
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

    /// Records that a shard's executor is running.
    pub(crate) fn tick(&self, shard: usize) {
        let beyond_grace = self.beyond_grace.get().copied().unwrap_or_default();
        self.shards[shard].pulse.beat_before(beyond_grace);
    }

    /// Sets the time for which executors may be hung to the grace of this failure timeout. Only the first call has an
    /// effect; it must precede the start of the executors.
    pub(crate) fn set_failure_timeout(&self, times: FailureTimeout) {
        let _ = self.beyond_grace.set(times.grace().saturating_sub(GRACE));
    }

    /// Records the activity that a shard's executor begins; returns its previous activity.
    pub(crate) fn begin(&self, shard: usize, activity: Activity) -> Activity {
        self.shards[shard].pulse.begin(activity)
    }

    /// Records that the calling thread is the executor of a shard.
    pub(crate) fn own(&self, shard: usize) {
        self.shards[shard].pulse.own();
    }

    /// Returns all pulses that the watchdog checks.
    pub(crate) fn pulses(&self) -> impl Iterator<Item = (Watched, &Pulse)> {
        let executors = self.shards.iter().map(|shard| &shard.pulse);
        let executors = (0..).map(Watched::Executor).zip(executors);
        executors.chain([(Watched::Control, &self.control), (Watched::Orders, &self.orders)])
    }

    /// Publishes a shard's state, without waking the threads that wait for a change ([`Statistics::announce`]).
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
        place.evicted.store(counters.removals.evicted, Ordering::Relaxed);
        place.expired.store(counters.removals.expired, Ordering::Relaxed);
        let mut published = lock(&place.replicas);
        published.at = now;
        published.replicas.clear();
        published.replicas.extend(replicas);
        drop(published);
        place.is_sole.store(condition.is_sole, Ordering::Release);
        place.is_drained.store(condition.is_drained, Ordering::Release);
    }

    /// Wakes the threads that wait for a change of the state, and signals the eventfd of the thread that polls.
    pub(crate) fn announce(&self) {
        *lock(&self.changes) += 1;
        self.changed.notify_all();
        if let Some(bell) = self.bell.get() {
            // The write fails only if the eventfd is signalled already.
            let _ = rustix::io::write(&**bell, &1u64.to_ne_bytes());
        }
    }

    /// Sets the eventfd that every announcement signals. Only the first call has an effect.
    pub(crate) fn set_bell(&self, bell: Arc<OwnedFd>) {
        let _ = self.bell.set(bell);
    }

    /// Waits until `is_so` returns true, at most for `timeout`. Returns whether it did.
    pub(crate) fn wait(&self, timeout: Duration, is_so: impl Fn(&Statistics) -> bool) -> bool {
        let start = Instant::now();
        let mut changes = lock(&self.changes);
        while !is_so(self) {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(changes, left.min(RECHECK));
            changes = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Returns the reports of all replicas, for a heartbeat. It must be called at least every [`HEARTBEAT_INTERVAL`]: a
    /// longer gap counts as a suspension of this process.
    pub(crate) fn replicas(&self, times: FailureTimeout) -> Vec<ReplicaReport> {
        let now = clock::now();
        let sleep = {
            let mut sleep = lock(&self.sleep);
            sleep.look(now, HEARTBEAT_INTERVAL);
            *sleep
        };
        let of_shard = |shard: &ShardStatistics| lock(&shard.replicas).as_of(now, &sleep, times);
        self.shards.iter().flat_map(of_shard).collect()
    }

    /// Returns the reports of one shard's replicas.
    pub(crate) fn replicas_of(&self, shard: ShardId, times: FailureTimeout) -> Vec<ReplicaReport> {
        let sleep = *lock(&self.sleep);
        lock(&self.shards[usize::from(shard.0)].replicas).as_of(clock::now(), &sleep, times)
    }

    /// Returns whether every shard has drained.
    pub(crate) fn is_drained(&self) -> bool {
        self.shards.iter().all(|shard| shard.is_drained.load(Ordering::Acquire))
    }

    /// Returns whether this server is the primary of a group without a secondary. Then it is possible that no other
    /// server has all keys of the group.
    pub(crate) fn is_sole_primary(&self) -> bool {
        self.shards.iter().any(|shard| shard.is_sole.load(Ordering::Acquire))
    }

    /// Records a view that was ordered, before any shard has installed it.
    pub(crate) fn note_ordered(&self, me: Member, view: &View) {
        let is_sole = view.primary == Some(me) && view.secondary().is_none();
        if let Some(known) = self.ordered_sole.get(usize::from(view.group.0)) {
            known.store(is_sole, Ordering::Release);
        }
    }

    /// Returns whether this server may be the only holder of a group, according to an installed or an ordered view. A
    /// hung shard cannot install the view that makes it the only holder.
    pub(crate) fn is_sole_holder(&self) -> bool {
        self.is_sole_primary() || self.ordered_sole.iter().any(|sole| sole.load(Ordering::Acquire))
    }

    /// Records for how long a tolerated thread has been hung; zero if there is none.
    pub(crate) fn note_stood(&self, stood: Duration) {
        let millis = u32::try_from(stood.as_millis()).unwrap_or(u32::MAX);
        self.stood_ms.store(millis, Ordering::Relaxed);
    }

    /// Returns for how long a tolerated thread has been hung, in milliseconds; 0 if there is none.
    pub(crate) fn stood_ms(&self) -> u32 {
        self.stood_ms.load(Ordering::Relaxed)
    }

    /// Returns the resident memory of the process in bytes, as last sampled; 0 if it is unknown.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident_bytes.load(Ordering::Relaxed)
    }

    /// Returns the sums over all shards. `refused` also counts what was rejected before it reached a shard.
    pub(crate) fn counters(&self) -> Counters {
        let sum = |count: fn(&ShardStatistics) -> &AtomicU64| {
            self.shards.iter().map(|shard| count(shard).load(Ordering::Relaxed)).sum::<u64>()
        };
        Counters {
            requests: sum(|shard| &shard.requests),
            refused: sum(|shard| &shard.refused) + self.rejected.load(Ordering::Relaxed),
            out_of_space: sum(|shard| &shard.out_of_space),
            removals: RemovalCounts {
                evicted: sum(|shard| &shard.evicted),
                expired: sum(|shard| &shard.expired),
            },
        }
    }

    /// Admits a connection, or counts it as rejected if the limit is reached.
    pub(crate) fn admit(&self, port: Port, from: Address) -> Option<Permit> {
        let permit = self.admission.admit(port, from);
        if permit.is_none() {
            self.reject();
        }
        permit
    }

    /// Counts a connection that was rejected before it reached a shard, or an invalid map.
    pub(crate) fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }
}

/// Samples the resident memory until the process ends. This needs a separate thread, because a thread that serves must
/// not open files of /proc.
pub(crate) fn sample(statistics: &Statistics) -> ! {
    loop {
        statistics.resident_bytes.store(read_resident_bytes(), Ordering::Relaxed);
        std::thread::sleep(SAMPLE_INTERVAL);
    }
}

/// Reads the resident memory, the second number of proc_pid_statm(5), in pages. Returns 0 if it cannot be read.
fn read_resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Address = Address::LOOPBACK;

    #[test]
    fn connections_beyond_the_limit_are_rejected_until_one_ends() {
        let statistics =
            Statistics::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
        let mut permits: Vec<Permit> = (0..statistics.admission.bounds().peers)
            .map(|_| statistics.admit(Port::Servers, HERE).unwrap())
            .collect();
        assert!(statistics.admit(Port::Servers, HERE).is_none());
        assert!(statistics.admit(Port::Clients, HERE).is_some(), "clients have slots of their own");
        permits.pop();
        assert!(statistics.admit(Port::Servers, HERE).is_some());
        assert_eq!(statistics.counters().refused, 1);
    }

    #[test]
    fn resident_memory_is_known() {
        assert!(read_resident_bytes() > 100_000);
    }

    #[test]
    fn a_server_is_sole_holder_from_the_order_until_a_later_view_is_installed() {
        use kv_protocol::ids::{GroupId, Incarnation, ServerId, ViewVersion};
        use kv_protocol::view::Peer;
        let statistics =
            Statistics::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
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
            statistics.publish(
                0,
                Time::default(),
                Counters::default(),
                condition,
                std::iter::empty(),
            );
        };
        assert!(!statistics.is_sole_holder());
        for peer in [Peer::None, Peer::Candidate(member(2))] {
            statistics.note_ordered(member(0), &view(0, peer));
            assert!(statistics.is_sole_holder(), "though its shard has not installed it");
        }
        publish(true);
        statistics.note_ordered(member(0), &view(0, Peer::Secondary(member(2))));
        assert!(statistics.is_sole_holder(), "its shard has not installed it");
        publish(false);
        assert!(!statistics.is_sole_holder());
        statistics.note_ordered(member(0), &view(1, Peer::None));
        assert!(!statistics.is_sole_holder(), "another server is the only holder");
    }

    #[test]
    fn a_raised_failure_timeout_extends_the_grace_of_executors() {
        let times = FailureTimeout::new(Duration::from_secs(2));
        for (is_raised, limit) in [(false, GRACE), (true, times.grace())] {
            let statistics =
                Statistics::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
            if is_raised {
                statistics.set_failure_timeout(times);
            }
            statistics.tick(0);
            let mut watchdog = crate::watchdog::Watchdog::default();
            let interval = crate::watchdog::LOOK_INTERVAL;
            let ended = (1..=100).find(|n| {
                watchdog.look(Time::default() + interval * *n, statistics.pulses()).is_some()
            });
            let stood = interval * ended.expect("the watchdog reports the thread");
            assert!(stood > limit && stood < limit + interval * 3, "{stood:?}, not {limit:?}");
        }
    }

    #[test]
    fn a_wait_ends_when_its_condition_is_announced() {
        let statistics =
            Statistics::new(1, ConnectionBounds::WIDEST, ConnectionMemory::new(None, None, 2));
        let other = Arc::clone(&statistics);
        let thread = std::thread::spawn(move || {
            let condition = Condition { is_drained: true, is_sole: false };
            other.publish(0, Time::default(), Counters::default(), condition, std::iter::empty());
            other.announce();
        });
        assert!(statistics.wait(Duration::from_secs(10), Statistics::is_drained));
        thread.join().unwrap();
        assert!(!statistics.wait(Duration::ZERO, |statistics| statistics.admission.clients() == 1));
    }
}
