//! 7: a member that starts to serve has every acknowledged write.

use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;

use crate::checks::{Checks, Place};
use crate::invariants::Violation;
use crate::world::World;

/// Checks a replica that has just begun to serve.
pub fn check(
    checks: &Checks,
    process: usize,
    place: Place,
    sight: &Inspection,
    serves: bool,
) -> Result<(), Violation> {
    let served = checks.seen.get(&(process, place)).is_some_and(|seen| seen.served);
    let acked = checks.acked.get(&place).copied().unwrap_or(0);
    if serves && !served && sight.last.0 < acked {
        let words = format_args!(
            "shard {}: process {process} starts to serve at write {}, though write {acked} was \
             acknowledged",
            place.1, sight.last
        );
        return Err(Violation::of(place.0, 7, words));
    }
    Ok(())
}

/// Checks the primary of a hand-over view that has just taken over. If the old primary is alive, every write
/// that it logged has arrived, because it counts all of them as committed.
pub fn after_handover(
    checks: &Checks,
    world: &World,
    process: usize,
    (group, shard): Place,
    sight: &Inspection,
) -> Result<(), Violation> {
    let was_taking = checks
        .seen
        .get(&(process, (group, shard)))
        .is_some_and(|seen| seen.state == ReplicaState::TakingOver);
    let Some(view) = sight.view.filter(|_| was_taking && sight.state == ReplicaState::Active)
    else {
        return Ok(());
    };
    let old = view.secondary().filter(|_| view.handover).and_then(|old| world.process_of(old));
    let Some(old) = old.map(|old| &world.processes[old]).filter(|old| old.alive) else {
        return Ok(());
    };
    // A member that has installed a later view no longer counts its writes as committed in this one.
    let logged = old.replica(group, shard).map(|replica| replica.inspect());
    let logged = logged.filter(|logged| logged.view == Some(view));
    let Some(last) = logged.map(|logged| logged.last).filter(|last| *last > sight.last) else {
        return Ok(());
    };
    let words = format_args!(
        "shard {shard}: process {process} has taken over at write {}, though {}, which lives, has \
         logged write {last}",
        sight.last, old.member
    );
    Err(Violation::of(group, 7, words))
}
