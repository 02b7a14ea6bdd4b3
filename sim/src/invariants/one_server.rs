//! 1: at most one member may answer reads of a group's shard at any instant.

use kv_core::replica::Serves;

use crate::checks::Place;
use crate::invariants::Violation;
use crate::world::World;

/// Looks at every process that holds the place.
pub fn check(world: &World, (group, shard): Place) -> Result<(), Violation> {
    let mut serving = None;
    for process in world.processes.iter().filter(|process| process.alive) {
        let Some(replica) = process.replica(group, shard) else { continue };
        let now = world.clocks[process.place].read(world.now);
        let may_serve = match replica.inspect().serves {
            Serves::Never => false,
            Serves::Always => true,
            Serves::Before(end) => now < end,
        };
        if may_serve && let Some(other) = serving.replace(process.member) {
            let words =
                format_args!("shard {shard}: {other} and {} may both serve", process.member);
            return Err(Violation::of(group, 1, words));
        }
    }
    Ok(())
}
