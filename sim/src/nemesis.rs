//! Faults: one place of the ring at a time, and the coordinator beside it.
//!
//! A new place is struck only when everything is home with two copies. While it is recovered, the
//! same place may be struck again, and so may the coordinator, in whatever step that is: what a
//! cluster of two copies must bear. The last holder of a group is never struck.

use kv_protocol::{Member, Peer, View};

use crate::event::Happening;
use crate::history::Asked;
use crate::network::Host;
use crate::random::Random;
use crate::world::World;

/// What is under way.
#[derive(Debug, Default)]
pub struct Nemesis {
    /// The place that is struck.
    target: Option<usize>,
    /// A link is cut.
    pub is_cut: bool,
}

const KINDS: [&str; 8] = [
    "crash",
    "pause",
    "stall",
    "break streams",
    "cut both ways",
    "cut one way",
    "coordinator crash",
    "coordinator pause",
];

/// How long a store takes, in nanoseconds of true time; now and then very long.
pub fn store_delay(random: &mut Random, is_healing: bool) -> u64 {
    match random.below(100) {
        0..=11 if !is_healing => random.between(20_000_000, 700_000_000),
        _ => random.between(100_000, 3_000_000),
    }
}

/// Thinks of the next fault, and strikes.
pub fn strike(world: &mut World) {
    if world.is_healing {
        return;
    }
    let Some(cluster) = &world.coordinator.cluster else {
        return world.after(20_000_000, Happening::Nemesis);
    };
    let is_calm = !world.nemesis.is_cut && !anyone_is_paused(world);
    let is_whole = cluster.is_whole() && is_calm;
    // Every group has two copies, though not every one is home: another place may be struck.
    let has_copies = is_calm && world.coordinator.storing.is_none() && {
        let holders = |view: &View| [view.primary, view.secondary()];
        let mut members = cluster.views().iter().flat_map(holders);
        members.all(|member| member.is_some_and(|member| works(world, member)))
    };
    // A copy is worst off while it is made.
    let copying = cluster.views().iter().find_map(|view| match view.peer {
        Peer::Candidate(member) => Some(usize::from(member.server.0)),
        Peer::None | Peer::Secondary(_) => None,
    });
    let pause = match is_whole {
        true => world.random.between(1_000_000, 150_000_000),
        false => world.random.between(1_000_000, 25_000_000),
    };
    world.after(pause, Happening::Nemesis);
    if has_copies || (world.config.double && world.random.per_mille(10)) {
        world.nemesis.target = Some(world.random.index(usize::from(world.config.servers)));
    }
    let Some(target) = world.nemesis.target else { return };
    // A recovery is struck now and then, not all the time: it must come to its later steps too.
    if !is_whole && !world.random.per_mille(250) {
        return;
    }
    let is_storing = world.coordinator.storing.is_some();
    let kind = match is_whole {
        _ if copying.is_some() && world.random.per_mille(400) => 3,
        // A coordinator is worst off while it stores.
        _ if is_storing && world.random.per_mille(300) => 6,
        true => world.random.index(KINDS.len()),
        false => [0, 1, 2, 3, 6, 7][world.random.index(6)],
    };
    let is_deadly = kind < 3 && !world.config.double;
    if is_deadly && (world.nemesis.is_cut || is_last_holder(world, target)) {
        return;
    }
    // Connections may break anywhere at any time.
    let target = match KINDS[kind] {
        "break streams" => match copying {
            Some(place) => place,
            None => world.random.index(usize::from(world.config.servers)),
        },
        _ => target,
    };
    if is_whole && !has_write_in_flight(world, target) && !world.random.per_mille(100) {
        return;
    }
    if apply(world, target, kind) {
        let cluster = world.coordinator.cluster.as_ref();
        let step = cluster.and_then(|cluster| {
            let id = kv_protocol::ServerId(u16::try_from(target).expect("places are few"));
            cluster.recovery_step(id)
        });
        let with_write = has_write_in_flight(world, target);
        world.counts.note_fault(KINDS[kind], step.filter(|_| !is_whole), with_write);
        let now = world.now;
        world.trace.note(now, format_args!("fault: {} at place {target}", KINDS[kind]));
        if KINDS[kind] == "coordinator crash" {
            world.kill_coordinator();
            let delay = world.random.between(1_000_000, 900_000_000);
            world.after(delay, Happening::RestartCoordinator);
        }
    }
}

/// Does it; the crash of the coordinator is left to the caller, who asks it something before.
fn apply(world: &mut World, target: usize, kind: usize) -> bool {
    let running = world.running_at(target);
    match (KINDS[kind], running) {
        ("crash", Some(process)) => world.kill(process),
        ("pause", Some(process)) => {
            let pause = pause_length(&mut world.random);
            world.pause(process, pause);
        }
        ("stall", Some(process)) => {
            let pause = pause_length(&mut world.random);
            world.processes[process].stall_next = Some(pause);
        }
        ("break streams", Some(_)) => {
            let host = Host(target);
            for number in world.network.live(|connection| connection.hosts().contains(&host)) {
                if world.random.per_mille(400) {
                    world.break_connection(number);
                }
            }
        }
        (cut @ ("cut both ways" | "cut one way"), Some(_)) => {
            let servers = usize::from(world.config.servers);
            // With one other server, with all, or with the coordinator alone.
            let others: Vec<usize> = match world.random.below(3) {
                0 => vec![(target + 1 + world.random.index(servers - 1)) % servers],
                1 => (0..=servers).filter(|other| *other != target).collect(),
                _ => vec![servers],
            };
            let outward = world.random.per_mille(500);
            for other in others {
                if outward || cut == "cut both ways" {
                    world.network.cut(Host(target), Host(other));
                }
                if !outward || cut == "cut both ways" {
                    world.network.cut(Host(other), Host(target));
                }
            }
            world.nemesis.is_cut = true;
            let heal = world.random.between(20_000_000, 2_500_000_000);
            world.after(heal, Happening::Heal);
            // The coordinator, too, loses sight of it for a moment, while its lease still holds.
            if world.random.per_mille(500) {
                let delay = world.random.between(250_000_000, 500_000_000);
                world.after(delay, Happening::BreakLink(target));
            }
        }
        ("coordinator crash", _) => {}
        ("coordinator pause", _) => {
            let pause = world.random.between(10_000_000, 1_500_000_000);
            world.coordinator.paused_until = world.now + pause;
            world.after(pause, Happening::Resume(None));
        }
        _ => return false,
    }
    true
}

fn pause_length(random: &mut Random) -> u64 {
    match random.below(3) {
        0 => random.between(1_000_000, 200_000_000),
        1 => random.between(200_000_000, 800_000_000),
        _ => random.between(800_000_000, 3_000_000_000),
    }
}

fn anyone_is_paused(world: &World) -> bool {
    world.coordinator.paused_until > world.now
        || world
            .processes
            .iter()
            .any(|p| p.alive && (p.paused_until > world.now || p.stall_next.is_some()))
}

/// Whether a group would be lost with this place: by any view that is durable, or may be so in a
/// moment, no other full copy lives and works.
fn is_last_holder(world: &World, target: usize) -> bool {
    let Some(cluster) = &world.coordinator.cluster else { return true };
    let stored = world.coordinator.storing.as_ref().map(|(_, state)| state.views.as_slice());
    let mut views = cluster.views().iter().chain(stored.unwrap_or_default());
    views.any(|view| {
        let holders = [view.primary, view.secondary()].into_iter().flatten();
        let (here, elsewhere): (Vec<Member>, Vec<Member>) =
            holders.partition(|member| usize::from(member.server.0) == target);
        !here.is_empty() && !elsewhere.into_iter().any(|member| works(world, member))
    })
}

fn works(world: &World, member: Member) -> bool {
    world.process_of(member).is_some_and(|process| {
        let process = &world.processes[process];
        process.alive && process.paused_until <= world.now && process.stall_next.is_none()
    })
}

/// Whether a client waits for a write in a group that this place holds.
fn has_write_in_flight(world: &World, target: usize) -> bool {
    let servers = usize::from(world.config.servers);
    let held = [target, (target + servers - 1) % servers];
    world
        .clients
        .iter()
        .flat_map(|client| client.flights.values())
        .any(|flight| flight.asked != Asked::Read && held.contains(&usize::from(flight.place.0.0)))
}

/// Breaks the connection for heartbeats of whoever runs at a place.
pub fn break_link(world: &mut World, place: usize) {
    let link = world.running_at(place).and_then(|process| world.processes[process].link);
    if let Some((number, _)) = link {
        world.break_connection(number);
    }
}

/// Faults stop: whatever was broken is whole again, and whoever is dead comes back.
pub fn stop(world: &mut World) {
    world.heal();
    for process in &mut world.processes {
        process.stall_next = None;
    }
    world.restart_coordinator();
}
