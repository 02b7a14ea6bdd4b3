//! Commits: each acknowledged write is held by all members of its view, and by every member that takes over.

use kv_core::replica::Inspection;
use kv_protocol::Member;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::GroupId;
use kv_protocol::view::{Peer, View};

use crate::checks::{Checks, Place};
use crate::invariants::Violation;
use crate::server::SentResponse;
use crate::world::World;

/// Checks that an acknowledged write is held by all members of the view under which it was acknowledged (invariant
/// 6).
///
/// The function is called for a replica that has just acknowledged a write. If the response reports two copies, the
/// function checks the secondary.
pub fn acked_is_held(
    world: &World,
    process: usize,
    (group, shard): Place,
    responded: &SentResponse,
) -> Result<(), Violation> {
    let Some(replica) = world.processes[process].replica(group, shard) else { return Ok(()) };
    let Some(view) = replica.view().filter(|_| responded.copies == 2) else { return Ok(()) };
    match view.secondary() {
        Some(secondary) => holds(world, secondary, (group, shard), responded, view.version.0),
        None => Ok(()),
    }
}

/// Checks that a member that starts to serve has every acknowledged write (invariant 7).
///
/// The function is called for a replica after its wake-up. The replica starts to serve if it did not serve at the
/// previous check.
pub fn taker_has_all(
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

/// Checks the primary of a hand-over view that has just taken over (invariant 7). If the old primary is alive, the new
/// one must have every write that the old primary logged. The old primary counts all of them as committed.
pub fn taker_has_all_after_handover(
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
    // If the old primary has installed a later view, its log no longer counts for this hand-over.
    let logged = old.replica(group, shard).map(|replica| replica.inspect());
    let logged = logged.filter(|logged| logged.view == Some(view));
    let Some(last) = logged.map(|logged| logged.last).filter(|last| *last > sight.last) else {
        return Ok(());
    };
    let words = format_args!(
        "shard {shard}: process {process} has taken over at write {}, although {}, which is alive, \
         has logged write {last}",
        sight.last, old.member
    );
    Err(Violation::of(group, 7, words))
}

/// Checks that a primary enters no union before its grace is over. Also checks that a candidate reported as caught up
/// does not fail under the same view.
///
/// Invariant 10: every commit in the union needs the candidate's ACK, and the candidate is reported as caught up only
/// when it is.
pub fn union_is_true(
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

/// Checks that the candidate holds a write that a primary in a union acknowledged with OK (invariant 10). A write from
/// before the union is exempt: if it is acknowledged again now, it may not have been copied yet.
pub fn candidate_holds_acked(
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
        Some(candidate) => holds(world, candidate, place, responded, view.version.0)
            .map_err(|violation| Violation { invariant: 10, ..violation }),
        None => Ok(()),
    }
}

/// Checks that a candidate that a new view makes the secondary has a complete copy of every shard (invariant 10).
pub fn new_secondary_is_complete(
    world: &World,
    before: &View,
    view: &View,
) -> Result<(), Violation> {
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

/// Checks that a member holds a write, or has installed a later view under which it may have been wiped.
fn holds(
    world: &World,
    member: Member,
    (group, shard): Place,
    responded: &SentResponse,
    view: u64,
) -> Result<(), Violation> {
    let Some(process) = world.process_of(member) else { return Ok(()) };
    let Some(replica) = world.processes[process].replica(group, shard) else { return Ok(()) };
    let sight = replica.inspect();
    let is_later = sight.view.is_some_and(|installed| installed.version.0 > view);
    if is_later || sight.last >= responded.version {
        return Ok(());
    }
    Err(missing(group, shard, responded, member, sight.last.0))
}

fn missing(
    group: GroupId,
    shard: usize,
    responded: &SentResponse,
    member: Member,
    last: u64,
) -> Violation {
    let words = format_args!(
        "shard {shard}: write {} was acknowledged with {} copies, but {member} is at write {last}",
        responded.version, responded.copies
    );
    Violation::of(group, 6, words)
}
