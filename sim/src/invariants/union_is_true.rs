//! 10: a candidate counts for every commit from the moment it joins the union, during the copy and after it. It
//! is reported to have caught up only when it has.

use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::view::{Peer, View};

use crate::checks::{Checks, Place};
use crate::invariants::{Violation, acked_is_held};
use crate::server::SentResponse;
use crate::world::World;

/// Checks that a primary enters no union before it may serve. A candidate that it has reported as caught up
/// does not fail under the same view.
pub fn check(
    checks: &Checks,
    process: usize,
    place: Place,
    sight: &Inspection,
) -> Result<(), Violation> {
    if sight.in_union && sight.state == ReplicaState::InGrace {
        let words =
            format_args!("shard {}: a union was entered before the grace was over", place.1);
        return Err(Violation::of(place.0, 10, words));
    }
    let version = sight.view.map_or(0, |view| view.version.0);
    let told = checks.caught_up.get(&(process, place)) == Some(&version);
    if told && sight.state == ReplicaState::CopyFailed {
        let words = format_args!(
            "shard {}: a candidate of view {version} fails after it had caught up",
            place.1
        );
        return Err(Violation::of(place.0, 10, words));
    }
    Ok(())
}

/// Checks a write that a primary in a union acknowledged with OK: the candidate holds it. A write older than
/// the union, acknowledged again now, may not have been copied yet.
pub fn on_acked(
    world: &World,
    process: usize,
    place: Place,
    responded: &SentResponse,
) -> Result<(), Violation> {
    let (group, shard) = place;
    let Some(replica) = world.processes[process].replica(group, shard) else { return Ok(()) };
    let sight = replica.inspect();
    let is_bound = sight.in_union && responded.version > sight.copied_from;
    let Some(view) = sight.view.filter(|_| is_bound) else { return Ok(()) };
    match view.other() {
        Some(candidate) => acked_is_held::holds(world, candidate, place, responded, view.version.0)
            .map_err(|violation| Violation { invariant: 10, ..violation }),
        None => Ok(()),
    }
}

/// Checks that a candidate that becomes secondary has a complete copy of every shard.
pub fn on_view(world: &World, before: &View, view: &View) -> Result<(), Violation> {
    let (Peer::Candidate(candidate), Peer::Secondary(secondary)) = (before.peer, view.peer) else {
        return Ok(());
    };
    let process = world.process_of(candidate).filter(|process| world.processes[*process].alive);
    let Some(process) = process.filter(|_| candidate == secondary) else { return Ok(()) };
    for shard in 0..usize::from(world.config.shards) {
        let replica = world.processes[process].replica(view.group, shard);
        let Some(sight) = replica.map(|replica| replica.inspect()) else { continue };
        let is_candidate = sight.view.is_some_and(|installed| installed.version >= before.version);
        let is_partial = sight.state == ReplicaState::Candidate && !sight.is_complete;
        if !is_candidate || is_partial {
            let words = format_args!(
                "shard {shard}: {candidate} is made secondary in view {} without a complete copy",
                view.version
            );
            return Err(Violation::of(view.group, 10, words));
        }
    }
    Ok(())
}
