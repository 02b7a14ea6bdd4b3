//! The kinds of faults and their effects, and moves of places to other hosts.

use kv_protocol::ServerId;
use kv_testkit::random::Random;

use crate::event::Happening;
use crate::network::Host;
use crate::world::World;

/// The name under which a move is counted.
const MOVE: &str = "move";
/// The probability, per mille, that a fault at rest is a move.
const MOVES: u64 = 400;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process crashes.
    Crash,
    /// A process is paused.
    Pause,
    /// A process is paused between reading the clock and acting on it.
    Stall,
    /// One executor is paused; the other executors of its process continue.
    Hiccup,
    /// Connections break.
    BreakStreams,
    /// Nothing passes between hosts.
    CutBothWays,
    /// Nothing passes between hosts in one direction.
    CutOneWay,
    /// The coordinator crashes, and another starts.
    CoordinatorCrash,
    /// The coordinator is paused.
    CoordinatorPause,
    /// The coordinator's disk is full.
    DiskFull,
}

/// All kinds of faults.
pub const KINDS: [Kind; 10] = [
    Kind::Crash,
    Kind::Pause,
    Kind::Stall,
    Kind::Hiccup,
    Kind::BreakStreams,
    Kind::CutBothWays,
    Kind::CutOneWay,
    Kind::CoordinatorCrash,
    Kind::CoordinatorPause,
    Kind::DiskFull,
];

impl Kind {
    /// Returns the readable name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Crash => "crash",
            Kind::Pause => "pause",
            Kind::Stall => "stall",
            Kind::Hiccup => "hiccup",
            Kind::BreakStreams => "break streams",
            Kind::CutBothWays => "cut both ways",
            Kind::CutOneWay => "cut one way",
            Kind::CoordinatorCrash => "coordinator crash",
            Kind::CoordinatorPause => "coordinator pause",
            Kind::DiskFull => "disk full",
        }
    }
}

/// A cut in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// The place that is cut off from all hosts or from the coordinator; `None` for a cut between two servers.
    off: Option<usize>,
}

impl Cut {
    /// Returns whether the cut isolates exactly this place.
    pub(super) fn is_about(&self, place: usize) -> bool {
        self.off == Some(place)
    }
}

/// Returns the victim of a fault at a place. Pauses, stalls, hiccups and broken streams mostly strike the place itself,
/// else a random one of the place and its neighbours; `None` if no process runs there. Every other fault strikes the
/// place itself.
pub(super) fn victim(world: &mut World, place: usize, kind: Kind) -> Option<usize> {
    if !matches!(kind, Kind::Pause | Kind::Stall | Kind::Hiccup | Kind::BreakStreams) {
        return Some(place);
    }
    let servers = usize::from(world.config.servers);
    let neighbours = [place, (place + 1) % servers, (place + servers - 1) % servers];
    let other = neighbours[world.random.index(3)];
    let is_itself = world.running_at(place).is_some() && world.random.per_mille(700);
    let victim = if is_itself { place } else { other };
    world.running_at(victim).map(|_| victim)
}

/// Injects the fault at a place. Returns false if no fault has struck, because no process runs at the place or no
/// connection was broken. A stall returns false too: it strikes at the next wake-up with inputs. A coordinator crash is
/// left to [`apply_late`].
pub(super) fn apply(world: &mut World, place: usize, kind: Kind) -> bool {
    match (kind, world.running_at(place)) {
        (Kind::Crash, Some(process)) => world.kill(process),
        (Kind::Pause, Some(process)) => {
            let pause = pause_length(&mut world.random);
            world.pause(process, pause);
        }
        (Kind::Stall, Some(process)) => {
            let pause = pause_length(&mut world.random);
            world.processes[process].stall_next.get_or_insert(pause);
            return false;
        }
        (Kind::Hiccup, Some(process)) => {
            let shard = world.random.index(usize::from(world.config.shards));
            let pause = world.random.between(1_000_000, 600_000_000);
            world.processes[process].shards[shard].stopped_until = world.now + pause;
        }
        (Kind::BreakStreams, Some(process)) => return break_streams(world, process),
        (Kind::CutBothWays | Kind::CutOneWay, _) => cut(world, place, kind == Kind::CutOneWay),
        (Kind::CoordinatorCrash, _) => {}
        (Kind::DiskFull, _) => {
            // In runs in which sessions expire, some writes must stay pending for longer than the idle timeout.
            let is_long = world.config.forgets_soon() && world.random.per_mille(300);
            let (full, stands) = match is_long {
                true => ((14_000_000_000, 17_000_000_000), (12_500_000_000, 14_000_000_000)),
                false => ((5_000_000, 4_000_000_000), (600_000_000, 1_500_000_000)),
            };
            let lasts = world.random.between(full.0, full.1);
            world.coordinator.disk_full_until = world.now + lasts;
            // A full disk has an effect only if there is something to store. So a process is paused, which changes
            // views, and resumes afterwards.
            if let Some(process) = world.running_at(place) {
                let pause = world.random.between(stands.0, stands.1);
                world.pause(process, pause);
            }
        }
        (Kind::CoordinatorPause, _) => {
            let pause = pause_length(&mut world.random);
            pause_coordinator(world, pause);
        }
        _ => return false,
    }
    true
}

/// Pauses the coordinator.
pub fn pause_coordinator(world: &mut World, pause: u64) {
    let (before, until) = (world.coordinator.paused_until.max(world.now), world.now + pause);
    world.coordinator.slept = (world.coordinator.slept + until).saturating_sub(before);
    world.coordinator.paused_until = until;
    world.after(pause, Happening::Resume(None));
}

/// Breaks some connections of a process. Returns false if none was broken.
fn break_streams(world: &mut World, process: usize) -> bool {
    let host = Host(world.processes[process].place);
    let mut is_any = false;
    for number in world.network.live(|connection| connection.hosts().contains(&host)) {
        if world.random.per_mille(400) {
            world.break_connection(number);
            is_any = true;
        }
    }
    is_any
}

/// Crashes the coordinator. It is called after the fault is counted, because the recovery step is unknown after the
/// crash.
pub(super) fn apply_late(world: &mut World, kind: Kind) {
    if kind == Kind::CoordinatorCrash {
        world.kill_coordinator();
        let delay = match world.random.per_mille(700) {
            true => world.random.between(1_000_000, 50_000_000),
            false => world.random.between(50_000_000, 900_000_000),
        };
        world.after(delay, Happening::RestartCoordinator);
    }
}

/// Cuts a place off from the other servers and the coordinator, or from the coordinator, or from one other server.
/// Sometimes also cuts it off from a client.
fn cut(world: &mut World, place: usize, one_way: bool) {
    let servers = usize::from(world.config.servers);
    let mut others: Vec<usize> = match world.random.below(4) {
        0 => vec![(place + 1 + world.random.index(servers - 1)) % servers],
        1 => vec![servers],
        _ => (0..=servers).filter(|other| *other != place).collect(),
    };
    let is_pair = others.len() == 1 && others[0] != servers;
    if world.random.per_mille(250) {
        others.push(servers + 1 + world.random.index(world.config.clients));
    }
    world.nemesis.cut = Some(Cut { off: (!is_pair).then_some(place) });
    let outward = world.random.per_mille(500);
    for other in others {
        if outward || !one_way {
            world.network.cut(Host(place), Host(other));
        }
        if !outward || !one_way {
            world.network.cut(Host(other), Host(place));
        }
    }
    let heal = match world.random.below(10) {
        0..=3 => world.random.between(2_000_000, 200_000_000),
        4..=6 => world.random.between(200_000_000, 1_000_000_000),
        _ => world.random.between(1_000_000_000, 3_000_000_000),
    };
    world.after(heal, Happening::Heal);
    // Sometimes the link to the coordinator breaks too, while the lease is still valid.
    if world.random.per_mille(500) {
        let delay = world.random.between(250_000_000, 500_000_000);
        world.after(delay, Happening::BreakLink(place));
    }
}

/// Cuts two places off from each other, one way or both, for about as long as leases and graces last.
pub(super) fn part(world: &mut World, place: usize, other: usize) -> Kind {
    world.nemesis.cut = Some(Cut { off: None });
    let kind = match world.random.below(3) {
        0 => Kind::CutBothWays,
        _ => Kind::CutOneWay,
    };
    let outward = world.random.per_mille(500);
    if outward || kind == Kind::CutBothWays {
        world.network.cut(Host(place), Host(other));
    }
    if !outward || kind == Kind::CutBothWays {
        world.network.cut(Host(other), Host(place));
    }
    let heal = world.random.between(400_000_000, 1_200_000_000);
    world.after(heal, Happening::Heal);
    kind
}

fn pause_length(random: &mut Random) -> u64 {
    match random.below(10) {
        0..=5 => random.between(1_000_000, 200_000_000),
        6..=7 => random.between(200_000_000, 800_000_000),
        _ => random.between(800_000_000, 2_500_000_000),
    }
}

/// Breaks the heartbeat connection of the process at a place.
pub fn break_link(world: &mut World, place: usize) {
    let link = world.running_at(place).and_then(|process| world.processes[process].link);
    if let Some((number, _)) = link {
        world.break_connection(number);
    }
}

/// Begins, with some probability, a move of a place to another host. The process at the place serves or is
/// unreachable. Returns whether a move was begun.
///
/// A process on an unreachable host is paused for seconds, and is killed late or never. When it resumes, its
/// successor has long since started on another host, and the old process tries to serve with its old views.
pub(super) fn begin_move(world: &mut World) -> bool {
    if !world.config.moves || !world.random.per_mille(MOVES) {
        return false;
    }
    let place = world.random.index(usize::from(world.config.servers));
    let Some(process) = world.running_at(place) else { return false };
    let with_write = super::has_write_in_flight(world, place);
    let delay = match world.random.per_mille(600) {
        true => {
            let pause = world.random.between(1_500_000_000, 8_000_000_000);
            world.pause(process, pause);
            world.keep_alive_until(process, world.now + pause);
            // The move begins at any time during the removal of the silent process, or long after it.
            world.random.between(1_000_000, 3_000_000_000)
        }
        false => 1_000,
    };
    world.after(delay, Happening::Move(place));
    world.counts.note_fault(MOVE, super::step_of(world, place), with_write);
    world.note_place(place, format_args!("fault: {MOVE} of place {place}"));
    true
}

/// Moves the place to another host.
pub fn give_place(world: &mut World, place: usize) {
    if world.is_healing {
        return;
    }
    let id = ServerId(u16::try_from(place).expect("places are few"));
    let old = world.coordinator.cluster.as_ref().map(|cluster| cluster.member(id));
    let given = world.brain(|cluster, now, sink| cluster.on_replace(now, id, sink));
    if let (Some(Ok(())), Some(old)) = (given, old) {
        world.moved.insert(old);
    }
}
