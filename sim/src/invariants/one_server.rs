//! 1: at most one member may serve reads of a group's shard at any instant.

use crate::checks::Place;
use crate::invariants::{Violation, may_serve};
use crate::world::World;

/// Checks all processes with a replica of the place.
pub fn check(world: &World, (group, shard): Place) -> Result<(), Violation> {
    let mut serving = None;
    for process in world.processes.iter().filter(|process| process.alive) {
        let Some(replica) = process.replica(group, shard) else { continue };
        let now = world.clocks[process.place].read(world.now);
        if may_serve(&replica.inspect(), now)
            && let Some(other) = serving.replace(process.member)
        {
            let words =
                format_args!("shard {shard}: {other} and {} may both serve", process.member);
            return Err(Violation::of(group, 1, words));
        }
    }
    Ok(())
}
