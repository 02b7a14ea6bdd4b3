//! Moves of places to other hosts, from processes that serve and from unreachable ones.
//!
//! A process on an unreachable host pauses for seconds, and is killed late, if ever. It resumes with its old
//! views long after its successor has started on another host, and tries to serve.

use kv_protocol::ServerId;

use crate::event::Happening;
use crate::world::World;

/// The name under which a move is counted.
pub const MOVE: &str = "move";
/// The share of faults at rest that are a move, per mille.
const MOVES: u64 = 400;

/// Begins a move with some probability. Returns whether it did.
pub(super) fn strike(world: &mut World) -> bool {
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
            // The move begins at any moment of the removal of the silent process, or long after it.
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
