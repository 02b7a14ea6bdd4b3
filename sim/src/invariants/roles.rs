//! Roles in a recovery (invariant 20): no holder is killed, no last copy is wiped, and no leaving server gets a role.

use kv_core::cluster::DurableState;
use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::view::{Peer, View};
use kv_protocol::{Member, ViewVersion};

use crate::checks::{Checks, Place};
use crate::invariants::Violation;
use crate::world::World;

/// Checks that recovery does not kill a process that a durable view names, in particular a primary (invariant 20).
///
/// The function is called when the coordinator decides to kill a process.
pub fn holders_are_spared(world: &World, member: Member) -> Result<(), Violation> {
    let cluster = world.coordinator.cluster.as_ref();
    let named = cluster.is_some_and(|cluster| cluster.durable().names(member));
    if !named {
        return Ok(());
    }
    Err(Violation::new(20, format!("{member} is to be killed although a durable view names it")))
}

/// Checks the same invariant when a kill takes effect, which may be much later and under another coordinator
/// (invariant 20).
pub fn kill_spares_holders(world: &World, member: Member) -> Result<(), Violation> {
    match &world.coordinator.disk {
        Some(disk) if disk.names(member) => {
            let words = format!("{member} is killed, and by now a durable view names it");
            Err(Violation::new(20, words))
        }
        _ => Ok(()),
    }
}

/// Checks that a server whose request to leave was accepted does not become a candidate, a sole holder or the target of
/// a hand-over (invariant 20). Groups whose other holder is proven dead or is leaving too are exempt.
///
/// The function compares the coordinator's next state with the current views.
pub fn leavers_get_nothing(world: &World, next: &DurableState) -> Result<(), Violation> {
    let Some(cluster) = &world.coordinator.cluster else { return Ok(()) };
    let views = cluster.views().iter().zip(&next.views);
    let changed = views.filter(|(before, view)| before.version != view.version);
    changed.filter(|(before, _)| before.version > ViewVersion(0)).try_for_each(|(before, view)| {
        let Some(leaver) = given(before, view) else { return Ok(()) };
        let asked = |member: Member| world.asked.contains(&member);
        let holders = [before.primary, before.secondary()];
        let other = holders.into_iter().flatten().find(|holder| *holder != leaver);
        let goes_before =
            other.is_some_and(|other| cluster.has_exited(other.server) || asked(other));
        if !asked(leaver) || goes_before {
            return Ok(());
        }
        let words = format_args!("{leaver} is leaving, but {view:?} follows {before:?}");
        Err(Violation::of(view.group, 20, words))
    })
}

/// Checks that no complete copy is wiped unless another one exists, in memory or in a valid dump (invariant 20).
///
/// The function is called for a replica after its wake-up. Runs in which two servers may crash are exempt, because
/// the other copy may just have been lost.
pub fn copies_are_spared(
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

/// Returns the member that a view makes the candidate, the sole holder or the target of a hand-over, if there is one.
fn given(before: &View, view: &View) -> Option<Member> {
    match (view.primary, view.peer) {
        (_, Peer::Candidate(candidate)) => Some(candidate),
        (Some(sole), Peer::None) if before.secondary().is_some() => Some(sole),
        (Some(target), Peer::Secondary(_)) if view.handover => Some(target),
        _ => None,
    }
}

/// Returns whether a replica in this state has a complete copy.
fn is_full(state: ReplicaState) -> bool {
    !matches!(state, ReplicaState::Out | ReplicaState::Candidate)
}
