//! 20: no complete copy is wiped unless another exists, in memory or in a dump that counts.

use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;

use crate::checks::{Checks, Place};
use crate::invariants::Violation;
use crate::world::World;

/// Checks a replica that has just woken. Runs in which two servers may crash are exempt, because the other copy
/// may have died a moment ago.
pub fn check(
    checks: &Checks,
    world: &World,
    process: usize,
    place: Place,
    sight: &Inspection,
) -> Result<(), Violation> {
    let Some(before) = checks.seen.get(&(process, place)) else { return Ok(()) };
    if world.config.double || !is_full(before.state) || is_full(sight.state) {
        return Ok(());
    }
    let (group, shard) = place;
    let acked = checks.acked.get(&place).copied().unwrap_or(0);
    let cluster = world.processes[process].cluster;
    let mut others = world
        .processes
        .iter()
        .enumerate()
        .filter(|(at, other)| *at != process && other.alive && other.cluster == cluster);
    let has_it = |inside: Inspection| {
        (is_full(inside.state) || inside.is_complete) && inside.last.0 >= acked
    };
    let is_held = others.any(|(_, other)| {
        other.replica(group, shard).is_some_and(|replica| has_it(replica.inspect()))
    });
    if is_held || world.operator.has_dump(cluster, group, shard, acked) {
        return Ok(());
    }
    let words = format_args!(
        "shard {shard}: process {process} wipes the only copy; write {acked} was acknowledged"
    );
    Err(Violation::of(group, 20, words))
}

/// Returns whether a replica in this state has a complete copy.
fn is_full(state: ReplicaState) -> bool {
    !matches!(state, ReplicaState::Out | ReplicaState::Candidate)
}
