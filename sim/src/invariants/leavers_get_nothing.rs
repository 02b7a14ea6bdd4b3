//! 20: a server that received a stop signal becomes neither candidate nor sole holder nor the target of a
//! hand-over. Exempt are groups whose other holder is proven dead or is leaving too.

use kv_core::cluster::DurableState;
use kv_protocol::view::{Peer, View};
use kv_protocol::{Member, ViewVersion};

use crate::invariants::Violation;
use crate::world::World;

/// Checks the coordinator's next state against the current views.
pub fn check(world: &World, next: &DurableState) -> Result<(), Violation> {
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
        let words =
            format_args!("{leaver} received a stop signal, but {view:?} follows {before:?}");
        Err(Violation::of(view.group, 20, words))
    })
}

/// Returns the member that a view gives a role that it did not have.
fn given(before: &View, view: &View) -> Option<Member> {
    match (view.primary, view.peer) {
        (_, Peer::Candidate(candidate)) => Some(candidate),
        (Some(sole), Peer::None) if before.secondary().is_some() => Some(sole),
        (Some(target), Peer::Secondary(_)) if view.handover => Some(target),
        _ => None,
    }
}
