//! 21: whoever was told that a process is dead waits for no grace that it owes that process.

use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;

use crate::checks::Place;
use crate::invariants::Violation;
use crate::world::World;

/// After a wake-up of a process that was told of these deaths.
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
            format_args!("shard {shard}: {me} waits for {owed_to}, and was told that it is dead");
        return Err(Violation::of(group, 21, words));
    }
    Ok(())
}
