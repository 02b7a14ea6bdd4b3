//! The choice of faults: their times and victims.
//!
//! ```text
//!   at rest        every group home with two replicas: any place, any kind
//!   in recovery    sometimes, at the beginning of a step: the kind with the fewest faults in this step,
//!                  at the recovering place, its neighbours, or the coordinator
//! ```
//!
//! With two replicas, a cluster must survive any fault except the kill of a group's last working holder. So the
//! nemesis never injects this fault, except in runs with double faults; every other fault may strike any process.
//! In most runs the wall clocks of hosts are set, in addition to all other faults.
//! In some runs the only faults are pauses of all servers together. In others one server after the other is slow,
//! or cannot allocate memory.

pub mod clocks;
mod faults;
pub mod slow;

use std::sync::atomic::Ordering;

use kv_protocol::{Member, Peer, ServerId, View};

use crate::event::Happening;
use crate::world::{Config, World};
use kv_history::Asked;
use kv_testkit::random::Random;

pub use faults::{KINDS, Kind, break_link, give_place, pause_coordinator};

/// The faults in progress.
#[derive(Debug, Default)]
pub struct Nemesis {
    /// The current cut.
    cut: Option<faults::Cut>,
}

impl Nemesis {
    /// Records that no cut is left.
    pub fn note_healed(&mut self) {
        self.cut = None;
    }
}

/// The probability, per mille, that the beginning of a step causes a fault, by step. It is higher for steps that
/// few recoveries reach or that take little time.
const STRIKES_A_STEP: [u64; 6] = [580, 1_000, 1_000, 550, 1_000, 1_000];
/// The number of checks for a write in flight before a fault strikes anyway.
const TIMEOUT: u8 = 250;
/// The interval between two of these checks, in nanoseconds.
const LOOK_AGAIN: u64 = 250_000;

/// The probability, per mille, that the start of a copy causes an additional fault.
const STRIKES_A_COPY: u64 = 100;
/// The probability, per mille, that a hand-over causes an additional fault.
const STRIKES_A_HANDOVER: u64 = 300;
/// The number of checks before such a fault, which is small because a copy or hand-over is over soon.
const SHORT_TIMEOUT: u8 = 10;

/// The probability, per mille, that the beginning of a step suspends the whole machine instead.
const SUSPENDS_A_STEP: u64 = 25;
/// The name under which suspensions of the whole machine are counted.
pub const SUSPEND: &str = "suspend";

/// The name under which pauses of all servers together are counted.
pub const MACHINE_PAUSE: &str = "machine pause";
/// The time within which all servers resume after such a pause, in nanoseconds.
const WAKES_WITHIN: u64 = 10_000_000;

/// Returns a random duration of a store, in nanoseconds of true time. Some stores take very long.
pub fn store_delay(random: &mut Random, is_healing: bool) -> u64 {
    match random.below(100) {
        0..=5 if !is_healing => random.between(20_000_000, 700_000_000),
        _ => random.between(100_000, 3_000_000),
    }
}

/// Returns whether ordinary faults are disabled, in this run or from now on.
fn is_quiet(world: &World) -> bool {
    let Config { calm, slow, stands, orphans, floods, .. } = world.config;
    world.is_healing || calm || slow || stands || orphans || floods
}

/// Chooses the next fault at rest, and injects it.
pub fn strike_at_rest(world: &mut World) {
    let config = &world.config;
    if world.is_healing || config.calm || config.orphans || config.floods {
        return;
    }
    if world.config.stands {
        return stand(world);
    }
    if world.config.slow {
        return slow::strike(world);
    }
    let pause = world.random.between(1_000_000, 60_000_000);
    world.after(pause, Happening::Nemesis);
    let Some(cluster) = &world.coordinator.cluster else { return };
    if !cluster.has_served() {
        // During the start the death of a server would only make the start fail, and there is no data to lose yet.
        // So only the coordinator may crash, once every group has a view.
        let is_founded = cluster.views().iter().all(|view| view.version.0 > 0);
        if is_founded && world.random.per_mille(300) {
            let place = world.random.index(usize::from(world.config.servers));
            strike(world, place, Kind::CoordinatorCrash, None, 0);
        }
        return;
    }
    let is_calm = world.nemesis.cut.is_none() && !anyone_is_paused(world);
    let is_whole = cluster.is_whole() && is_calm;
    // Every group has two replicas, although not all are at home, so another place may be struck.
    let has_copies = is_calm && world.coordinator.storing.is_none() && {
        let holders = |view: &View| [view.primary, view.secondary()];
        let mut members = cluster.views().iter().flat_map(holders);
        members.all(|member| member.is_some_and(|member| works(world, member)))
    };
    let may_double = world.config.double && world.random.per_mille(20);
    if !(is_whole || has_copies && world.random.per_mille(200) || may_double) {
        return strike_a_copy(world);
    }
    if faults::begin_move(world) {
        return;
    }
    let target = world.random.index(usize::from(world.config.servers));
    let kind = KINDS[world.random.index(KINDS.len())];
    strike(world, target, kind, None, TIMEOUT);
}

/// Pauses all servers and, in half of these runs, the coordinator. They resume one after the other and run for a
/// moment.
fn stand(world: &mut World) {
    let works = world.random.between(20_000_000, 300_000_000);
    let is_served = world.coordinator.cluster.as_ref().is_some_and(|cluster| cluster.has_served());
    if !is_served {
        return world.after(works, Happening::Nemesis);
    }
    let with_write = (0..usize::from(world.config.servers)).any(|n| has_write_in_flight(world, n));
    let pause = world.random.between(30_000_000, 900_000_000);
    for process in 0..world.processes.len() {
        let wakes_after = world.random.between(0, WAKES_WITHIN);
        world.pause(process, pause + wakes_after);
    }
    if world.config.coordinator_stands {
        let wakes_after = world.random.between(0, WAKES_WITHIN);
        faults::pause_coordinator(world, pause + wakes_after);
    }
    world.counts.note_fault(MACHINE_PAUSE, None, with_write);
    world.after(pause + WAKES_WITHIN + works, Happening::Nemesis);
}

/// Strikes a copy in progress with some probability: the stream breaks, or a fault of the recovery step strikes.
fn strike_a_copy(world: &mut World) {
    let Some(cluster) = &world.coordinator.cluster else { return };
    let copying = cluster.views().iter().find_map(|view| match view.peer {
        Peer::Candidate(member) => Some(usize::from(member.server.0)),
        Peer::None | Peer::Secondary(_) => None,
    });
    if let Some(place) = copying
        && world.random.per_mille(60)
    {
        match step_of(world, place) {
            Some(step) if world.random.per_mille(750) => strike_in_step(world, place, step),
            step => strike(world, place, Kind::BreakStreams, step, SHORT_TIMEOUT),
        }
    }
}

/// Handles the beginning of a recovery step at a place.
pub fn on_step(world: &mut World, server: ServerId, step: Option<u8>) {
    let Some(step) = step else { return };
    if is_quiet(world) || !world.random.per_mille(STRIKES_A_STEP[usize::from(step)]) {
        return;
    }
    if world.random.per_mille(SUSPENDS_A_STEP) {
        let delay = world.random.between(1_000, 300_000);
        return world.after(delay, Happening::SuspendInStep(usize::from(server.0), step));
    }
    // Step 0 ends as soon as the views are stored, so faults in this step strike early.
    let quick = if step == 0 { 9 } else { 6 };
    let delay = match world.random.below(10) {
        n if n < quick => world.random.between(1_000, 300_000),
        n if n < 9 => world.random.between(1_000, 3_000_000),
        _ => world.random.between(1_000, 120_000_000),
    };
    world.after(delay, Happening::Strike(usize::from(server.0), step));
}

/// Pauses the process at a place whose neighbour received a stop signal, for about as long as an inquiry takes, or
/// longer. So only the leaving process responds.
pub fn strike_neighbour(world: &mut World, place: usize) {
    let Some(process) = world.running_at(place).filter(|_| !world.is_healing) else { return };
    let with_write = has_write_in_flight(world, place);
    let pause = world.random.between(700_000_000, 2_500_000_000);
    world.pause(process, pause);
    note(world, place, Kind::Pause, step_of(world, place), with_write);
}

/// Suspends the whole machine during the recovery of a place.
pub fn suspend_in_step(world: &mut World, place: usize, step: u8) {
    if world.is_healing || step_of(world, place) != Some(step) {
        return;
    }
    let with_write = has_write_in_flight(world, place);
    let pause = world.random.between(300_000_000, 3_000_000_000);
    world.suspend_for(pause);
    world.counts.note_fault(SUSPEND, Some(step), with_write);
}

/// Handles a new view. In a hand-over, the connection of the two members may break. A candidate may stall, so that
/// reports on an earlier copy arrive during the new copy.
pub fn on_view(world: &mut World, view: &View) {
    if is_quiet(world) {
        return;
    }
    let place = |member: Member| usize::from(member.server.0);
    match (view.primary, view.peer) {
        (Some(new), Peer::Secondary(old))
            if view.handover && world.random.per_mille(STRIKES_A_HANDOVER) =>
        {
            let delay = world.random.between(1_000, 400_000);
            world.after(delay, Happening::Part(place(new), place(old), SHORT_TIMEOUT));
        }
        (Some(_), Peer::Candidate(member)) if world.random.per_mille(STRIKES_A_COPY) => {
            let step = step_of(world, place(member));
            strike(world, place(member), Kind::Hiccup, step, SHORT_TIMEOUT);
        }
        _ => {}
    }
}

/// Cuts two places off from each other once a write of the first one is in flight, or after `timeout` more checks.
pub fn part(world: &mut World, place: usize, other: usize, timeout: u8) {
    let step = step_of(world, place);
    if world.is_healing || step.is_none() || !is_possible(world, place, Kind::CutBothWays) {
        return;
    }
    let with_write = has_write_in_flight(world, place);
    if !with_write && timeout > 0 {
        return world.after(LOOK_AGAIN / 4, Happening::Part(place, other, timeout - 1));
    }
    let kind = faults::part(world, place, other);
    world.counts.note_fault(kind.name(), step, with_write);
    world.note_place(place, format_args!("fault: {} between {place} and {other}", kind.name()));
}

/// Handles the start of a replacement process: it may crash before its first report.
pub fn on_spawned(world: &mut World, place: usize) {
    if !is_quiet(world) && world.random.per_mille(150) {
        let delay = world.random.between(1_000, 400_000);
        world.after(delay, Happening::StrikeAgain(place, Kind::Crash, Some(1), 0));
    }
}

/// Injects a fault in a step of a recovery: a random one of the kinds that have struck in this step least often.
pub fn strike_in_step(world: &mut World, place: usize, step: u8) {
    if world.is_healing || step_of(world, place) != Some(step) {
        return;
    }
    let seen =
        |kind: Kind| world.counts.faults.get(kind.name()).map_or(0, |n| n[usize::from(step)]);
    let least = KINDS.into_iter().filter(|kind| is_possible(world, place, *kind)).map(seen).min();
    let rarest: Vec<Kind> = KINDS
        .into_iter()
        .filter(|kind| is_possible(world, place, *kind) && Some(seen(*kind)) == least)
        .collect();
    if rarest.is_empty() {
        return;
    }
    let kind = rarest[world.random.index(rarest.len())];
    // With the long timeout the fault would strike after the hand-over.
    let timeout = if step == 4 { SHORT_TIMEOUT } else { TIMEOUT };
    strike(world, place, kind, Some(step), timeout);
}

/// Injects a fault once a write is in flight in an affected group, or after `timeout` more checks.
pub fn strike(world: &mut World, place: usize, kind: Kind, step: Option<u8>, timeout: u8) {
    if world.is_healing || !is_possible(world, place, kind) || step_of(world, place) != step {
        return;
    }
    let Some(victim) = faults::victim(world, place, kind) else { return };
    let with_write = has_write_in_flight(world, victim);
    if !with_write && timeout > 0 {
        let again = Happening::StrikeAgain(place, kind, step, timeout - 1);
        return world.after(LOOK_AGAIN, again);
    }
    if faults::apply(world, victim, kind) {
        note(world, victim, kind, step, with_write);
        faults::apply_late(world, kind);
    }
}

/// Counts a prepared stall when it strikes. It counts for the recovery step of this place or else of a neighbour.
pub fn on_stalled(world: &mut World, place: usize) {
    let servers = usize::from(world.config.servers);
    let around = [place, (place + 1) % servers, (place + servers - 1) % servers];
    let step = around.into_iter().find_map(|place| step_of(world, place));
    let with_write = has_write_in_flight(world, place);
    note(world, place, Kind::Stall, step, with_write);
}

fn note(world: &mut World, place: usize, kind: Kind, step: Option<u8>, with_write: bool) {
    world.counts.note_fault(kind.name(), step, with_write);
    world.note_place(place, format_args!("fault: {} at place {place}", kind.name()));
}

/// Returns the recovery step of a place.
fn step_of(world: &World, place: usize) -> Option<u8> {
    let id = ServerId(u16::try_from(place).expect("places are few"));
    world.coordinator.cluster.as_ref().and_then(|cluster| cluster.recovery_step(id))
}

/// Returns whether a kind of fault may strike a place now; see the module documentation.
fn is_possible(world: &World, place: usize, kind: Kind) -> bool {
    // While the coordinator is dead, no other fault strikes.
    let Some(_) = &world.coordinator.cluster else { return false };
    match kind {
        Kind::Crash => {
            let is_two_faults = world.nemesis.cut.as_ref().is_some_and(|cut| !cut.is_about(place));
            world.running_at(place).is_some()
                && (world.config.double || !(is_two_faults || is_last_holder(world, place)))
        }
        Kind::CutBothWays | Kind::CutOneWay => world.nemesis.cut.is_none(),
        Kind::CoordinatorCrash | Kind::CoordinatorPause => {
            world.coordinator.paused_until <= world.now
        }
        Kind::DiskFull => world.coordinator.disk_full_until <= world.now,
        Kind::Pause | Kind::Stall | Kind::Hiccup | Kind::BreakStreams => true,
    }
}

fn anyone_is_paused(world: &World) -> bool {
    let mut processes = world.processes.iter().filter(|process| process.alive);
    world.coordinator.paused_until > world.now
        || processes.any(|process| !process.is_at_work(world.now))
}

/// Returns whether the loss of this place would lose a group. It would if the group's durable view, or the view being
/// stored, names no other full replica that is alive and working.
fn is_last_holder(world: &World, target: usize) -> bool {
    let Some(cluster) = &world.coordinator.cluster else { return true };
    // If the disk is full, the state being stored will be withdrawn, so its views do not count.
    let storing = world.coordinator.storing.as_ref().filter(|_| !world.coordinator.is_doomed);
    let stored = storing.map(|(_, state)| state.views.as_slice());
    let mut views = cluster.views().iter().chain(stored.unwrap_or_default());
    views.any(|view| {
        let holders = [view.primary, view.secondary()].into_iter().flatten();
        let (here, elsewhere): (Vec<Member>, Vec<Member>) =
            holders.partition(|member| usize::from(member.server.0) == target);
        !here.is_empty() && !elsewhere.into_iter().any(|member| works(world, member))
    })
}

fn works(world: &World, member: Member) -> bool {
    world.process_of(member).is_some_and(|at| {
        let process = &world.processes[at];
        // A process that received a stop signal counts as exited.
        let leaves = world.config.leaves && world.operator.told(at);
        process.alive && process.is_at_work(world.now) && !leaves
    })
}

/// Returns whether a write is in flight in a group that this place holds by a view, or whose home it is.
fn has_write_in_flight(world: &World, target: usize) -> bool {
    let servers = usize::from(world.config.servers);
    let is_here =
        |member: Option<Member>| member.is_some_and(|m| usize::from(m.server.0) == target);
    let views = world.coordinator.cluster.as_ref().map_or(&[][..], |cluster| cluster.views());
    let holds = |group: usize| {
        let is_home = group == target || group == (target + servers - 1) % servers;
        is_home
            || views.get(group).is_some_and(|view| is_here(view.primary) || is_here(view.other()))
    };
    world.clients.iter().flat_map(|client| client.flights.values()).any(|flight| {
        flight.asked != Asked::Read && flight.is_waiting() && holds(usize::from(flight.place.0.0))
    })
}

/// Ends all faults: cuts are healed, and a dead coordinator is restarted.
pub fn stop(world: &mut World) {
    world.heal();
    world.coordinator.disk_full_until = 0;
    for process in &mut world.processes {
        process.stall_next = None;
        process.is_exhausted.store(false, Ordering::Relaxed);
    }
    world.restart_coordinator();
}
