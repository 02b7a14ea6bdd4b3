//! Runs in which servers are only slow: an executor stalls, receives nothing from other servers, or cannot allocate
//! memory.

use std::sync::atomic::Ordering;

use super::has_write_in_flight;
use crate::event::Happening;
use crate::invariants::slowness::NO_FAULT;
use crate::world::World;

/// The name under which stalls that are faults are counted.
pub const LONG_STALL: &str = "long stall";
/// The name under which stalls that are no faults are counted.
pub const SHORT_STALL: &str = "short stall";
/// The maximum duration of one stall of a starved executor, including the work after it, in nanoseconds.
const STARVED_WITHIN: u64 = 840_000_000;
/// The name under which a lack of memory is counted.
pub const NO_MEMORY: &str = "no memory";

/// Slows one server down. Often the next server is slowed down before every group is home again.
pub fn strike(world: &mut World) {
    let again = match world.random.per_mille(400) {
        true => world.random.between(300_000_000, 900_000_000),
        false => world.random.between(1_500_000_000, 4_000_000_000),
    };
    world.after(again, Happening::Nemesis);
    let is_served = world.coordinator.cluster.as_ref().is_some_and(|cluster| cluster.has_served());
    let is_whole = world.coordinator.cluster.as_ref().is_some_and(|cluster| cluster.is_whole());
    let place = world.random.index(usize::from(world.config.servers));
    let Some(process) = world.running_at(place).filter(|_| is_served) else { return };
    let with_write = has_write_in_flight(world, place);
    let id = world.processes[process].member.server.0;
    let kind = match world.random.below(10) {
        0..=4 => {
            let stall = world.random.between(100_000_000, NO_FAULT);
            stand(world, process, stall);
            // If a process stalls during the inquiry after another's fault, it does not respond, so it looks like
            // the faulty one. Then two processes are slow at once, and a healthy one between them may become the
            // suspect.
            if world.slowness.is_judged(id, world.now) {
                for place in 0..world.config.servers {
                    world.slowness.note_fault(place, world.now + stall);
                }
            }
            SHORT_STALL
        }
        5 => {
            let shard = world.random.index(usize::from(world.config.shards));
            let more = 3;
            world.slowness.note_fault(id, world.now + u64::from(more) * STARVED_WITHIN);
            stand_again(world, process, shard, more);
            LONG_STALL
        }
        // If the executor were deaf for much longer, its process would also fail as a candidate in both groups, and
        // its replacement would be correct.
        6 if is_whole => {
            let lasts = world.random.between(700_000_000, 1_200_000_000);
            let shard = world.random.index(usize::from(world.config.shards));
            world.processes[process].shards[shard].deaf_until = world.now + lasts;
            world.slowness.note_fault(id, world.now + lasts);
            LONG_STALL
        }
        6..=7 => {
            let stall = world.random.between(NO_FAULT, 900_000_000);
            stand(world, process, stall);
            world.slowness.note_fault(id, world.now + stall);
            LONG_STALL
        }
        // If two servers had no memory, a group could be left without a working replica.
        _ if is_whole && !anyone_is_exhausted(world) => {
            let lasts = world.random.between(500_000_000, 9_000_000_000);
            world.processes[process].is_exhausted.store(true, Ordering::Relaxed);
            world.slowness.note_fault(id, world.now + lasts);
            world.after(lasts, Happening::MemoryIsBack(process));
            NO_MEMORY
        }
        _ => return,
    };
    world.counts.note_fault(kind, None, with_write);
    world.note_place(place, format_args!("fault: {kind} at place {place}"));
}

/// Starves an executor: it stalls for about the time until a complaint, runs for a moment, and stalls again, `more`
/// times in all. So it responds to the probe, but does not receive the messages of the others.
pub fn stand_again(world: &mut World, process: usize, shard: usize, more: u8) {
    if world.is_healing || !world.processes[process].alive || more == 0 {
        return;
    }
    let stall = world.random.between(560_000_000, 780_000_000);
    let works = world.random.between(2_000_000, 60_000_000);
    let until = world.now + stall;
    let stopped = &mut world.processes[process].shards[shard].stopped_until;
    *stopped = (*stopped).max(until);
    world.after(stall + works, Happening::StandAgain(process, shard, more - 1));
}

/// Stalls a random executor of a process, unless this executor has stalled a short time ago.
fn stand(world: &mut World, process: usize, stall: u64) {
    let shard = world.random.index(usize::from(world.config.shards));
    let until = world.now + stall;
    // Two stalls without a pause between them would add up to a longer stall, which is a fault.
    let is_standing =
        world.processes[process].shards[shard].stopped_until + 2 * NO_FAULT > world.now;
    if !is_standing {
        world.processes[process].shards[shard].stopped_until = until;
    }
}

fn anyone_is_exhausted(world: &World) -> bool {
    let mut processes = world.processes.iter();
    processes.any(|process| process.alive && process.is_exhausted.load(Ordering::Relaxed))
}
