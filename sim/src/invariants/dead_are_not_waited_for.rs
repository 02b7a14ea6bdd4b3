//! 21: a process that was informed of a death waits for no grace that it owes to the dead process.

use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;

use crate::checks::Place;
use crate::invariants::Violation;
use crate::world::World;

/// Checks a replica after a wake-up of its process.
pub fn check(
    world: &World,
    process: usize,
    (group, shard): Place,
    sight: &Inspection,
) -> Result<(), Violation> {
    let process = &world.processes[process];
    let Some((owed_to, _)) = sight.grace else { return Ok(()) };
    if sight.state == ReplicaState::InGrace && process.shards[shard].told_dead.contains(&owed_to) {
        let me = process.member;
        let words =
            format_args!("shard {shard}: {me} waits for {owed_to}, which is known to be dead");
        return Err(Violation::of(group, 21, words));
    }
    Ok(())
}
