//! The whole simulated world: true time, hosts, processes, and everything that happens to them.
//!
//! ```text
//!   heap of events, by true time -> dispatch to the actor concerned, unless it is paused
//!                                     -> what it wants done becomes further events
//!                                -> the checks look at what was touched
//! ```

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use kv_core::cluster::{DoubleFault, Effect, KillReason};
use kv_core::node::NodeEffect;
use kv_protocol::ClusterKey;
use kv_protocol::client_message::{Answer, Hello, Welcome, opcode as client_opcode};
use kv_protocol::control_message::{
    Admission, DumpedBytes, Heartbeat, Order, OrderFailure, OrdersHello, Report, ServerMessage,
    Started, opcode, write_orders_welcome,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{ClusterId, Epoch, GroupId, Member, OrderId, ServerId, ShardId, Time};
use kv_protocol::key::{Link, Nonce, Seal};
use kv_protocol::limits::{MAX_ANSWER_BODY, MAX_CONTROL_BODY, SESSION_IDLE};
use kv_protocol::placement::Placement;

use crate::checks::Checks;
use crate::client::{Client, Flight, Wish};
use crate::clock::Clock;
use crate::coordinator::{Coordinator, Shape};
use crate::counts::Counts;
use crate::event::{Event, Happening, Purpose, Target};
use crate::invariants::{Violation, slow_are_spared};
use crate::nemesis::Nemesis;
use crate::network::{Actor, ConnectionNumber, Host, Network};
use crate::random::Random;
use crate::server::{Bounds, Input, MEMORY, Output, Process};
use crate::trace::{About, Trace};
use crate::workload::Workload;

mod brain;
mod clients;
mod dispatch;
mod orphans;
mod rest;
mod restore;
mod servers;
mod sleep;
mod stop;
mod wire;

pub use restore::Operator;
pub use stop::Temptation;

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Everything follows from it.
    pub seed: u64,
    /// Servers.
    pub servers: u16,
    /// Shards of a group.
    pub shards: u16,
    /// Clients.
    pub clients: usize,
    /// Nanoseconds of true time with faults.
    pub faulty: u64,
    /// Nanoseconds within which all must be home again afterwards.
    pub patience: u64,
    /// Nanoseconds between two operations of a client.
    pub think: u64,
    /// Two servers may die at the same time: groups without a holder are LOST, and stay so.
    pub double: bool,
    /// A second fault stops the cluster, and so does its operator; then it is restored.
    pub shutdown: bool,
    /// Servers are told to stop, one, some or all, while others go on.
    pub leaves: bool,
    /// Of those: some are told twice, and wait for no orders then.
    pub impatient: bool,
    /// Of those: nothing else goes wrong.
    pub calm: bool,
    /// The coordinator is cut off or paused for so long that servers leave without it. Nothing else goes wrong.
    pub orphans: bool,
    /// Nothing happens but that all servers are paused together: nobody is the worse for it.
    pub stands: bool,
    /// With the coordinator.
    pub coordinator_stands: bool,
    /// Nothing happens but that executors stand for a moment, and memory runs out, at one server after another:
    /// nobody else is the worse for it.
    pub slow: bool,
    /// Places are given to other hosts.
    pub moves: bool,
    /// Clients write many short values, then delete most of them and write a few long ones, over and over, so that
    /// tables are compacted.
    pub has_waves: bool,
    /// What a replica may take, and keep.
    pub bounds: Bounds,
}

/// So little memory, for one copy of everything, that writes are refused in some runs.
const LITTLE_MEMORY: u64 = 2 << 20;
/// In some runs sessions are forgotten so soon. No request is under way for so long.
const SHORT_IDLE: Duration = Duration::from_secs(12);

impl Config {
    /// The run of a seed.
    pub fn of(seed: u64) -> Config {
        let mut random = Random::new(seed ^ 0xc0f1);
        let servers = u16::try_from(random.between(3, 5)).expect("it is small");
        let shards = u16::try_from(random.between(1, 2)).expect("it is small");
        // Some of the clients rest there; another one makes up for it.
        let forgets_soon = seed % 5 == 2;
        // Few tables, so that each has many entries.
        let has_waves = seed % 10 == 1 || seed % 20 == 4;
        let (servers, shards) = if has_waves { (3, 1) } else { (servers, shards) };
        Config {
            seed,
            servers,
            shards,
            clients: random.index(4) + 3 + usize::from(forgets_soon),
            faulty: 40_000_000_000,
            patience: 60_000_000_000,
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
            moves: seed % 16 == 6,
            has_waves,
            bounds: Bounds {
                memory: match seed % 5 {
                    1 => LITTLE_MEMORY / u64::from(servers * shards),
                    _ => MEMORY,
                },
                session_idle: if forgets_soon { SHORT_IDLE } else { SESSION_IDLE },
                has_slow_readers: has_waves,
            },
        }
    }
}

impl Config {
    /// Returns whether sessions are forgotten during the run: machines sleep for longer then, and clients are cloned.
    pub fn forgets_soon(&self) -> bool {
        self.bounds.session_idle < SESSION_IDLE && !self.stands && !self.slow
    }
}

/// The world. See the module's description.
pub struct World {
    /// What it is made of.
    pub config: Config,
    /// True time, in nanoseconds.
    pub now: u64,
    heap: BinaryHeap<Event>,
    made: u64,
    /// Chance.
    pub random: Random,
    /// Connections and cuts.
    pub network: Network,
    /// By host.
    pub clocks: Vec<Clock>,
    /// Every process that ever ran.
    pub processes: Vec<Process>,
    /// Those whose places were given to other hosts.
    pub moved: BTreeSet<Member>,
    /// By process: what came while it was paused.
    backlogs: BTreeMap<usize, Vec<Happening>>,
    coordinator_backlog: Vec<Happening>,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// Clients.
    pub clients: Vec<Client>,
    client_wakes: Vec<Option<u64>>,
    /// By client, the time until which it sleeps.
    asleep_until: Vec<u64>,
    /// The total time for which all machines have slept.
    pub slept: u64,
    /// The time until which all machines sleep.
    pub all_asleep_until: u64,
    /// Frame buffers of control connections, by connection and end.
    inputs: BTreeMap<(ConnectionNumber, usize), FrameBuffer>,
    /// What clients do.
    pub workload: Workload,
    /// Whoever stops and restores the cluster, and the dumps that he has.
    pub operator: Operator,
    /// By place: until when the disk of the host is full.
    pub full_until: Vec<u64>,
    /// When the coordinator last took a heartbeat of a process, in nanoseconds for which it was awake.
    pub heard_at: BTreeMap<Member, u64>,
    /// Faults.
    pub nemesis: Nemesis,
    /// The promises.
    pub checks: Checks,
    /// What happened last.
    pub trace: Trace,
    /// What is counted.
    pub counts: Counts,
    /// Faults have stopped.
    pub is_healing: bool,
    /// All is at rest, and clients look back.
    pub is_looking_back: bool,
    /// Of groups whose view names nobody: whom the view before named.
    pub last_holders: BTreeMap<(ClusterId, GroupId), Vec<Member>>,
    /// Who has asked the coordinator of this term to be led out.
    pub asked: Vec<Member>,
    /// Since when groups of which cluster are LOST.
    pub lost_at: BTreeMap<(ClusterId, GroupId), u64>,
    /// What was done to servers in a run in which they are only slow.
    pub slowness: slow_are_spared::Slowness,
    violation: Option<Violation>,
}

const FIRST_CLUSTER: ClusterId = ClusterId(0x51);
/// The handshake of every connection: nothing here lacks the key, so none is simulated.
pub(crate) const SEAL: Seal = Seal::new(ClusterKey(0x51), Link::Stream, Nonce(1), Nonce(2));
const BEAT: u64 = 100_000_000;
/// Between two operations of a client, mostly, and in busy runs; of the reader; and of all when they look
/// back.
const THINK: u64 = 3_500_000;
const BUSY_THINK: u64 = 800_000;
const READER_THINKS: u64 = 3_500_000;
const LOOKING_BACK_THINK: u64 = 50_000;

impl World {
    /// A world just founded.
    pub fn new(config: Config) -> World {
        let mut random = Random::new(config.seed);
        let hosts = usize::from(config.servers) + 1 + config.clients;
        let clocks: Vec<Clock> = (0..hosts).map(|_| Clock::new(&mut random)).collect();
        let shape = Shape {
            cluster: FIRST_CLUSTER,
            servers: config.servers,
            shards: config.shards,
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
            network: Network::new(hosts, config.stands || config.slow),
            clocks,
            processes: Vec::new(),
            moved: BTreeSet::new(),
            backlogs: BTreeMap::new(),
            coordinator_backlog: Vec::new(),
            coordinator,
            clients: (0..config.clients).map(|n| Client::new(n as u128 + 1)).collect(),
            client_wakes: vec![None; config.clients],
            asleep_until: vec![0; config.clients],
            slept: 0,
            all_asleep_until: 0,
            inputs: BTreeMap::new(),
            workload: Workload::new(config.has_waves),
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
        world
    }

    /// Runs to the end: the faulty time, the healing, the look back.
    ///
    /// # Errors
    /// The first promise that was broken.
    pub fn run(&mut self) -> Result<(), Violation> {
        self.run_until(self.config.faulty)?;
        self.is_healing = true;
        crate::nemesis::stop(self);
        self.come_to_rest()?;
        self.look_back()?;
        self.check(|checks, world| checks.at_end(world));
        self.violation.take().map_or(Ok(()), Err)
    }

    /// Lets the promises be looked at; the first that is broken ends the run.
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
            let Event { at, happening, .. } = self.heap.pop().expect("it was just seen");
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

    /// Notes something about a place of the ring.
    pub fn note_place(&mut self, place: usize, words: fmt::Arguments<'_>) {
        self.trace.note(self.now, About::Place(place, self.config.servers), words);
    }

    /// Something will happen.
    pub fn after(&mut self, delay: u64, happening: Happening) {
        self.at(self.now + delay, happening);
    }

    fn at(&mut self, at: u64, happening: Happening) {
        self.made += 1;
        self.heap.push(Event { at, number: self.made, happening });
    }

    /// The name of the cluster of this time.
    pub fn cluster(&self) -> ClusterId {
        self.coordinator.shape().cluster
    }

    /// For how long the coordinator was awake so far, in nanoseconds of true time.
    pub fn coordinator_awake(&self) -> u64 {
        let asleep = self.coordinator.paused_until.saturating_sub(self.now);
        (self.now + asleep).saturating_sub(self.coordinator.slept)
    }

    /// The coordinator's host.
    pub fn coordinator_host(&self) -> Host {
        Host(usize::from(self.config.servers))
    }

    /// What an actor's own clock shows.
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
        }
    }

    /// The process of a member, if it ever ran.
    pub fn process_of(&self, member: Member) -> Option<usize> {
        self.processes.iter().rposition(|process| process.member == member)
    }

    /// The process that runs at a place.
    pub fn running_at(&self, place: usize) -> Option<usize> {
        self.processes.iter().rposition(|process| process.place == place && process.alive)
    }
}

fn shard_id(shard: usize) -> ShardId {
    ShardId(u16::try_from(shard).expect("shards are few"))
}
