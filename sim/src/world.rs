//! The whole simulated world: true time, hosts, processes, and all events.
//!
//! ```text
//!   heap of events, by true time -> dispatch to the actor concerned, unless it is paused
//!                                     -> its effects become further events
//!                                -> the checks examine the affected state
//! ```

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use kv_core::cluster::{DoubleFault, Effect, KillReason};
use kv_core::node::NodeEffect;
use kv_protocol::client_message::{Hello, Response, Welcome, opcode as client_opcode};
use kv_protocol::control_message::{
    Admission, DumpedBytes, Heartbeat, Order, OrderFailure, OrdersHello, Report, ServerMessage,
    Started, opcode, write_orders_welcome,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClusterId, Epoch, GroupId, Member, OrderId, ServerId, ShardId, Time};
use kv_protocol::key::{Link, Nonce, Seal};
use kv_protocol::limits::{MAX_CONTROL_BODY, MAX_RESPONSE_BODY, SESSION_IDLE};
use kv_protocol::placement::Placement;
use kv_protocol::{ClusterKey, Eviction, RedisMulti};
use kv_shard::LONG_VALUE;
use kv_testkit::random::Random;

use crate::checks::Checks;
use crate::client::{Client, Flight, Wish};
use crate::clock::{Clock, WallClock};
use crate::coordinator::{Coordinator, Shape};
use crate::counts::Counts;
use crate::event::{Event, Happening, Purpose, Target};
use crate::invariants::{Violation, slowness};
use crate::nemesis::Nemesis;
use crate::network::{Actor, ConnectionNumber, Host, Network};
use crate::redis::RedisClient;
use crate::server::{Bounds, Input, MEMORY, Output, Process};
use crate::trace::{About, Trace};
use crate::workload::{Objects, Workload};

mod brain;
mod clients;
mod dispatch;
mod floods;
pub mod flushes;
mod orphans;
mod redis;
mod rest;
mod restore;
pub mod scans;
mod servers;
mod sleep;
mod stop;
mod wire;

pub use restore::Operator;
pub use stop::Temptation;

/// The parameters of a run.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The seed, which determines everything.
    pub seed: u64,
    /// The number of servers.
    pub servers: u16,
    /// The number of shards of a group.
    pub shards: u16,
    /// True if the cluster has hash tags. Then the keys of a family share a tag.
    pub hash_tags: bool,
    /// The number of clients.
    pub clients: usize,
    /// The number of Redis clients.
    pub redis: usize,
    /// The duration of the faults, in nanoseconds of true time.
    pub faulty: u64,
    /// The time after the faults within which every group must be home again, in nanoseconds.
    pub timeout: u64,
    /// The time between two operations of a client, in nanoseconds.
    pub think: u64,
    /// True if two servers may die at the same time. Groups without a holder become LOST, and stay LOST.
    pub double: bool,
    /// True if a second fault or the operator stops the cluster, which is then restored.
    pub shutdown: bool,
    /// True if one, some or all servers receive stop signals. Servers without a signal continue.
    pub leaves: bool,
    /// True if, with `leaves`, some servers receive a second signal. Then they do not wait for orders.
    pub impatient: bool,
    /// True if, with `leaves`, there are no other faults.
    pub calm: bool,
    /// True if the coordinator is cut off or paused for so long that servers leave without it. There are no
    /// other faults.
    pub orphans: bool,
    /// True if the only faults are pauses of all servers together. They must not change a view.
    pub stands: bool,
    /// True if, with `stands`, the coordinator is paused too.
    pub coordinator_stands: bool,
    /// True if servers are only slow, one after the other: their executors stall, or they cannot allocate memory. A
    /// slow server must not cost another one its place.
    pub slow: bool,
    /// True if the only fault is load: more requests than the executors can serve. No view may change.
    pub floods: bool,
    /// True if places are moved to other hosts.
    pub moves: bool,
    /// True if clients alternate between writing many short values and deleting most of them, with a few long
    /// ones, so that tables are compacted.
    pub has_waves: bool,
    /// The limits of a replica.
    pub bounds: Bounds,
    /// The maximum deviation of a server's wall clock from true wall time, in milliseconds.
    pub wall_bound: i64,
    /// The probability, per mille, that an operation is one on an object ([`crate::object`]).
    pub objects: u64,
    /// True if there are many keys with deadlines.
    pub many_deadlines: bool,
    /// True if a client scans the cluster.
    pub scans: bool,
    /// True if an administrator flushes the cluster.
    pub flushes: bool,
}

/// A memory limit in bytes, for one copy of all data, that is so low that writes are rejected in some runs.
const LITTLE_MEMORY: u64 = 2 << 20;
/// The length in bytes above which a value is sent directly from the table, in runs with waves.
const SHORT_LONG_VALUE: usize = 400;
/// The short idle timeout of sessions in some runs. No request is in flight for longer.
const SHORT_IDLE: Duration = Duration::from_secs(12);

/// Returns whether a run has a scenario that limits its faults. Moves do not limit the faults. Runs with floods are
/// not included, because they have a separate duration.
fn has_scenario(seed: u64) -> bool {
    !seed.is_multiple_of(2)
}

impl Config {
    /// Derives the parameters of a run from its seed.
    pub fn of(seed: u64) -> Config {
        let mut random = Random::new(seed ^ 0xc0f1);
        let servers = u16::try_from(random.between(3, 5)).expect("at most 5");
        let shards = u16::try_from(random.between(1, 2)).expect("at most 2");
        // In runs in which sessions expire, some clients rest, so there is an additional client.
        let forgets_soon = seed % 5 == 2;
        let floods = seed % 16 == 14;
        let has_waves = !floods && (seed % 10 == 1 || seed % 20 == 4);
        // There are only few tables, so that each has many entries.
        let (servers, shards) = if has_waves || floods { (3, 1) } else { (servers, shards) };
        // Another generator, so that the other parameters do not depend on the choice.
        let mut choice = Random::new(seed ^ 0x0b7e);
        let wall_bound = [0, 5, 300, 2_000][choice.index(4)];
        let many_deadlines = choice.per_mille(400);
        let objects = match has_waves {
            true => 60,
            false => [250, 400, 600][choice.index(3)],
        };
        // A separate generator for the same reason.
        let hash_tags = Random::new(seed ^ 0x7a65).per_mille(400);
        let mut doors = Random::new(seed ^ 0x4ed15);
        let redis = if !floods && doors.per_mille(400) { 1 + doors.index(3) } else { 0 };
        let redis_multi =
            if doors.per_mille(500) { RedisMulti::Ordered } else { RedisMulti::Refuse };
        Config {
            seed,
            servers,
            shards,
            hash_tags,
            clients: random.index(4) + 3 + usize::from(forgets_soon),
            redis,
            faulty: match floods {
                true => 4_000_000_000,
                // Runs without a scenario are longer, because most faults by recovery step are counted in them.
                false if has_scenario(seed) => 40_000_000_000,
                false => 100_000_000_000,
            },
            timeout: 60_000_000_000,
            think: if random.per_mille(300) { BUSY_THINK } else { THINK },
            double: seed % 8 == 7 || seed % 16 == 3,
            shutdown: seed % 8 == 3,
            leaves: seed % 16 == 9,
            impatient: seed % 64 == 41 || seed % 64 == 57,
            calm: seed % 32 == 9,
            orphans: seed % 16 == 1,
            stands: seed % 16 == 13,
            coordinator_stands: seed % 32 == 13,
            slow: seed % 16 == 5,
            floods,
            moves: seed % 16 == 6,
            has_waves,
            bounds: Bounds {
                memory: match seed % 5 {
                    1 => LITTLE_MEMORY / u64::from(servers * shards),
                    _ => MEMORY,
                },
                eviction: match seed % 20 {
                    6 => Eviction::Ttl,
                    16 => Eviction::Lfu,
                    _ => Eviction::None,
                },
                session_idle: if forgets_soon { SHORT_IDLE } else { SESSION_IDLE },
                // Only values of at most a kibibyte are moved by compaction, because the chunks of a run are small.
                long_value: if has_waves { SHORT_LONG_VALUE } else { LONG_VALUE },
                redis_multi,
            },
            wall_bound,
            objects,
            many_deadlines,
            scans: !floods && seed % 4 == 2,
            // Clients cannot distinguish an evicted entry from a flushed one.
            flushes: !floods && seed % 20 != 16 && (seed % 6 == 4 || seed % 9 == 7),
        }
    }
}

impl Config {
    /// Returns the placement of keys.
    pub fn placement(&self) -> Placement {
        Placement::new(self.servers, self.shards).with_hash_tags(self.hash_tags)
    }

    /// Returns whether the run tests expired sessions: machines are suspended for longer than sessions are kept, and a
    /// client may be cloned.
    pub fn forgets_soon(&self) -> bool {
        let is_suspended = !(self.stands || self.slow || self.floods);
        self.bounds.session_idle < SESSION_IDLE && is_suspended
    }
}

/// The simulated world.
pub struct World {
    /// The parameters of the run.
    pub config: Config,
    /// True time, in nanoseconds.
    pub now: u64,
    heap: BinaryHeap<Event>,
    made: u64,
    /// The source of randomness.
    pub random: Random,
    /// Connections and cuts.
    pub network: Network,
    /// Clocks, by host.
    pub clocks: Vec<Clock>,
    /// The wall clocks of the servers' hosts, by place.
    pub walls: Vec<WallClock>,
    /// The maximum error of a reading of a wall clock at its use, besides the deviation of that clock, in milliseconds.
    pub wall_slack: i64,
    /// All processes that ever ran.
    pub processes: Vec<Process>,
    /// Processes whose places were moved to other hosts.
    pub moved: BTreeSet<Member>,
    /// The events that arrived at a process while it was paused, by process.
    backlogs: BTreeMap<usize, Vec<Happening>>,
    coordinator_backlog: Vec<Happening>,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The clients.
    pub clients: Vec<Client>,
    client_wakes: Vec<Option<u64>>,
    /// The Redis clients.
    pub redis: Vec<RedisClient>,
    /// The time until which a client's machine is suspended, by client.
    asleep_until: Vec<u64>,
    /// The total time for which all machines were suspended.
    pub slept: u64,
    /// The time until which all machines are suspended.
    pub all_asleep_until: u64,
    /// Frame buffers of control connections, by connection and end.
    inputs: BTreeMap<(ConnectionNumber, usize), FrameBuffer>,
    /// The clients' operations.
    pub workload: Workload,
    /// The operator, which stops and restores the cluster, with all dumps.
    pub operator: Operator,
    /// The time until which a host's disk is full, by place.
    pub full_until: Vec<u64>,
    /// The time at which the coordinator last accepted a heartbeat, in nanoseconds without its pauses, by
    /// process.
    pub heard_at: BTreeMap<Member, u64>,
    /// The faults.
    pub nemesis: Nemesis,
    /// The invariant checks.
    pub checks: Checks,
    /// The most recent events.
    pub trace: Trace,
    /// The statistics.
    pub counts: Counts,
    /// True once faults have stopped.
    pub is_healing: bool,
    /// True during the final check, when the cluster is at rest.
    pub is_looking_back: bool,
    /// The holders of each group without a primary, from its last view that had one.
    pub last_holders: BTreeMap<(ClusterId, GroupId), Vec<Member>>,
    /// The members whose requests to leave the current coordinator has accepted.
    pub asked: Vec<Member>,
    /// The time since which a group is LOST, by cluster and group.
    pub lost_at: BTreeMap<(ClusterId, GroupId), u64>,
    /// The injected slowness, in runs in which servers are only slow.
    pub slowness: slowness::Slowness,
    /// The load in progress.
    pub floods: floods::Floods,
    /// The scans of the run.
    pub scans: scans::Scans,
    /// The flushes of the run.
    pub flushes: flushes::Flushes,
    /// The number of writes with a wrong digest so far.
    forged: u64,
    violation: Option<Violation>,
}

const FIRST_CLUSTER: ClusterId = ClusterId(0x51);
/// The seal of every link of the coordinator, and of every stream of the exhaustive search. Every process has the
/// cluster's key, so a failed handshake is not simulated.
pub(crate) const SEAL: Seal = Seal::new(ClusterKey(0x51), Link::Stream, Nonce(1), Nonce(2));
const BEAT: u64 = 100_000_000;
/// The time between two operations of an ordinary client, in nanoseconds.
const THINK: u64 = 8_000_000;
/// The time between two operations of a client in a busy run, in nanoseconds.
const BUSY_THINK: u64 = 2_000_000;
/// The time between two operations of the reader, in nanoseconds.
const READER_THINKS: u64 = 8_000_000;
/// The time between two operations of a client during the final check, in nanoseconds.
const LOOKING_BACK_THINK: u64 = 50_000;

impl World {
    /// Creates a world whose cluster is being founded.
    pub fn new(config: Config) -> World {
        let mut random = Random::new(config.seed);
        let hosts = usize::from(config.servers) + 1 + config.clients;
        let clocks: Vec<Clock> = (0..hosts).map(|_| Clock::new(&mut random)).collect();
        let (bound, servers) = (config.wall_bound, usize::from(config.servers));
        let walls = (0..servers).map(|_| WallClock::new(bound, 0, &mut random)).collect();
        let placement = config.placement();
        let shape = Shape {
            cluster: FIRST_CLUSTER,
            servers: config.servers,
            shards: config.shards,
            hash_tags: config.hash_tags,
            on_double_fault: match config.shutdown || config.leaves || config.orphans {
                true => DoubleFault::Shutdown,
                false => DoubleFault::Isolate,
            },
            seed: random.any(),
        };
        let mut effects = Vec::new();
        let here = clocks[usize::from(config.servers)].read(0);
        let coordinator = Coordinator::found(shape, here, &mut effects);
        let mut world = World {
            config,
            now: 0,
            heap: BinaryHeap::new(),
            made: 0,
            random,
            network: Network::new(hosts, config.stands || config.slow || config.floods),
            clocks,
            walls,
            wall_slack: WallClock::error_after(0),
            processes: Vec::new(),
            moved: BTreeSet::new(),
            backlogs: BTreeMap::new(),
            coordinator_backlog: Vec::new(),
            coordinator,
            clients: (0..config.clients).map(|n| Client::new(n as u128 + 1)).collect(),
            client_wakes: vec![None; config.clients],
            redis: Vec::new(),
            asleep_until: vec![0; config.clients],
            slept: 0,
            all_asleep_until: 0,
            inputs: BTreeMap::new(),
            workload: Workload::new(
                config.has_waves,
                Objects::new(placement, config.objects, config.many_deadlines),
            ),
            operator: Operator::default(),
            full_until: vec![0; usize::from(config.servers)],
            heard_at: BTreeMap::new(),
            nemesis: Nemesis::default(),
            checks: Checks::default(),
            trace: Trace::default(),
            counts: Counts::default(),
            is_healing: false,
            is_looking_back: false,
            last_holders: BTreeMap::new(),
            asked: Vec::new(),
            lost_at: BTreeMap::new(),
            slowness: Default::default(),
            floods: Default::default(),
            scans: Default::default(),
            flushes: Default::default(),
            forged: 0,
            violation: None,
        };
        world.clients[0].is_reader = true;
        world.carry_out(effects);
        for client in 0..config.clients {
            world.after(1_000_000 * client as u64, Happening::WakeClient(client));
        }
        world.after(10_000_000, Happening::Nemesis);
        world.plan_stops();
        world.plan_sleep();
        world.plan_flood();
        world.plan_scans();
        world.plan_flushes();
        world.plan_redis();
        crate::nemesis::clocks::plan(&mut world);
        world
    }

    /// Executes the whole run: the faults, the healing, and the final check.
    ///
    /// # Errors
    /// The first violated invariant.
    pub fn run(&mut self) -> Result<(), Violation> {
        self.run_until(self.config.faulty)?;
        self.is_healing = true;
        crate::nemesis::stop(self);
        self.end_floods();
        self.come_to_rest()?;
        self.look_back()?;
        self.check(|checks, world| checks.at_end(world));
        self.violation.take().map_or(Ok(()), Err)
    }

    /// Runs a check; the first violation ends the run.
    fn check(&mut self, look: impl FnOnce(&mut Checks, &World) -> Result<(), Violation>) {
        let mut checks = std::mem::take(&mut self.checks);
        let result = look(&mut checks, self);
        self.checks = checks;
        if let Err(violation) = result {
            self.violation.get_or_insert(violation);
        }
    }

    fn run_until(&mut self, end: u64) -> Result<(), Violation> {
        while let Some(event) = self.heap.peek()
            && event.at <= end
        {
            let Event { at, happening, .. } = self.heap.pop().expect("the heap has an event");
            self.now = at;
            self.counts.events += 1;
            self.dispatch(happening);
            if self.counts.events.is_multiple_of(1_000) {
                self.check(|checks, world| checks.every_thousand(world));
            }
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
        }
        self.now = self.now.max(end);
        Ok(())
    }

    /// Records an event at a place of the ring in the trace.
    pub fn note_place(&mut self, place: usize, words: fmt::Arguments<'_>) {
        self.trace.note(self.now, About::Place(place, self.config.servers), words);
    }

    /// Schedules an event.
    pub fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.made += 1;
        self.heap.push(Event { at, number: self.made, happening });
    }

    /// Returns the id of the current cluster.
    pub fn cluster(&self) -> ClusterId {
        self.coordinator.shape().cluster
    }

    /// Returns the true time without the pauses of the coordinator, in nanoseconds.
    pub fn coordinator_awake(&self) -> u64 {
        let asleep = self.coordinator.paused_until.saturating_sub(self.now);
        (self.now + asleep).saturating_sub(self.coordinator.slept)
    }

    /// Returns the coordinator's host.
    pub fn coordinator_host(&self) -> Host {
        Host(usize::from(self.config.servers))
    }

    /// Returns the reading of a host's clock.
    pub fn clock_of(&self, host: Host) -> Time {
        self.clocks[host.0].read(self.now)
    }

    fn host_of(&self, actor: Actor) -> Host {
        match actor {
            Actor::Shard { process, .. } | Actor::Node { process } => {
                Host(self.processes[process].place)
            }
            Actor::Coordinator { .. } => self.coordinator_host(),
            Actor::Client { client } => Host(usize::from(self.config.servers) + 1 + client),
            // Each shares the host of a native client.
            Actor::Redis { client } => {
                Host(usize::from(self.config.servers) + 1 + client % self.config.clients)
            }
            Actor::Flooder { .. } | Actor::Scanner => Host(usize::from(self.config.servers) + 1),
        }
    }

    /// Returns the index of a member's process, if it ever ran.
    pub fn process_of(&self, member: Member) -> Option<usize> {
        self.processes.iter().rposition(|process| process.member == member)
    }

    /// Returns the index of the process that runs at a place, if there is one.
    pub fn running_at(&self, place: usize) -> Option<usize> {
        self.processes.iter().rposition(|process| process.place == place && process.alive)
    }
}

fn shard_id(shard: usize) -> ShardId {
    ShardId(u16::try_from(shard).expect("shards are few"))
}
