//! 17: a group is LOST only when all its holders are dead. Clients receive LOST only then, and a LOST group is
//! never served again. Under the policy `shutdown` the cluster then stops.

use kv_protocol::client_message::Status;
use kv_protocol::ids::{ClusterId, GroupId};
use kv_protocol::status::ClusterState;
use kv_protocol::{Member, ServerId, View, ViewVersion};

use crate::invariants::Violation;
use crate::server::SentResponse;
use crate::world::World;

/// Checks a view that has become durable.
pub fn check(world: &World, before: &View, view: &View) -> Result<(), Violation> {
    let is_dead = |member: Member| {
        world.process_of(member).is_none_or(|process| !world.processes[process].alive)
    };
    if is_lost(before) && view.primary.is_some() {
        return Err(Violation::of(
            view.group,
            17,
            format_args!("it was LOST, but has a primary again"),
        ));
    }
    // A restored cluster is founded without the groups that were LOST.
    let serves = world.coordinator.cluster.as_ref().is_some_and(|cluster| {
        !matches!(cluster.state(), ClusterState::Starting | ClusterState::Stopping)
    });
    if view.primary.is_none() && world.config.shutdown && serves {
        let words = format_args!("it is LOST, but the policy shutdown does not stop the cluster");
        return Err(Violation::of(view.group, 17, words));
    }
    let mut holders = [before.primary, before.secondary()].into_iter().flatten();
    // An orderly exit makes no group LOST. But a coordinator cannot read the exit status of a process that it
    // did not start. After a coordinator's crash, its successor therefore counts an orderly exit as a death.
    let is_unknown = |holder: Member| {
        let process = world.process_of(holder).map(|process| &world.processes[process]);
        process.is_some_and(|process| process.term != world.coordinator.term)
    };
    let mut last = [before.primary, before.secondary()].into_iter().flatten();
    let looks_dead = world.config.leaves && last.any(is_unknown);
    let is_given_up =
        before.primary.is_none() && world.operator.has_given_up(world.cluster(), view.group);
    let may_be = world.config.double || is_given_up || looks_dead;
    if view.primary.is_some() || (may_be && holders.all(is_dead)) {
        return Ok(());
    }
    Err(Violation::of(view.group, 17, format_args!("LOST although it has a holder or a dump")))
}

/// Checks a second fault that the coordinator counts: an exit after complete dumps is none.
pub fn second_fault(world: &World, first: ServerId, second: ServerId) -> Result<(), Violation> {
    if !(world.config.calm || world.config.orphans) {
        return Ok(());
    }
    let words = format!("servers {first} and {second} count as two faults, but both left in order");
    Err(Violation::new(17, words))
}

/// Checks an operation that ended for its client with LOST.
pub fn said(world: &World, cluster: Option<ClusterId>, group: GroupId) -> Result<(), Violation> {
    match durable(world, cluster, group) {
        Some(view) if view.primary.is_some() => {
            let words = format_args!("a client gets LOST, but the group is in {view:?}");
            Err(Violation::of(group, 17, words))
        }
        _ => Ok(()),
    }
}

/// Checks a response of a process of this cluster. The process read its clock at `read_at`, at the start of the
/// wake-up: work that is done late, after a pause, counts as done then. A response with two copies is exempt,
/// because it may be much delayed: the ACK may wait in the inbox of a paused primary while the other members
/// continue and then lose the group.
pub fn responded(
    world: &World,
    cluster: ClusterId,
    read_at: u64,
    responded: &SentResponse,
) -> Result<(), Violation> {
    let (group, status) = (responded.group, responded.status);
    let is_response =
        matches!(status, Status::Ok | Status::NotFound | Status::Conflict | Status::NotDone);
    let is_service = is_response && responded.copies < 2;
    match durable(world, Some(cluster), group).filter(|_| is_service) {
        Some(view)
            if is_lost(&view)
                && world.lost_at.get(&(cluster, group)).is_none_or(|since| read_at > *since) =>
        {
            Err(Violation::of(group, 17, format_args!("LOST, but a server sends {status:?}")))
        }
        _ => Ok(()),
    }
}

fn is_lost(view: &View) -> bool {
    view.primary.is_none() && view.version > ViewVersion(0)
}

/// Returns the newest view of a group on the coordinator's disk, if the disk belongs to this cluster.
fn durable(world: &World, cluster: Option<ClusterId>, group: GroupId) -> Option<View> {
    let disk = world.coordinator.disk.as_ref().filter(|disk| Some(disk.cluster) == cluster)?;
    disk.views.get(usize::from(group.0)).copied()
}
