//! Groups: a group is LOST only if it has no holder (invariant 17). Every other group comes home and serves
//! (invariant 19).

use kv_history::{Asked, Returned};
use kv_protocol::client_message::Status;
use kv_protocol::ids::{ClusterId, GroupId};
use kv_protocol::status::ClusterState;
use kv_protocol::{Member, ServerId, View, ViewVersion};

use crate::client::Flight;
use crate::invariants::Violation;
use crate::server::SentResponse;
use crate::world::World;

/// Checks that a group is LOST only when all its holders are dead, and stays LOST (invariant 17). Under the policy
/// `shutdown` the cluster must stop then.
///
/// The function is called for a view that has become durable.
pub fn lost_is_lost(world: &World, before: &View, view: &View) -> Result<(), Violation> {
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
    let is_given_up =
        before.primary.is_none() && world.operator.has_given_up(world.cluster(), view.group);
    let may_be = world.config.double || is_given_up;
    if view.primary.is_some() || (may_be && holders.all(is_dead)) {
        return Ok(());
    }
    Err(Violation::of(view.group, 17, format_args!("LOST although it has a holder or a dump")))
}

/// Checks that orderly exits do not count as faults (invariant 17). The function is called when the coordinator
/// counts a second fault. If every exit of the run is orderly, this is a violation.
pub fn orderly_exit_is_no_fault(
    world: &World,
    first: ServerId,
    second: ServerId,
) -> Result<(), Violation> {
    if !(world.config.calm || world.config.orphans) {
        return Ok(());
    }
    let words = format!("servers {first} and {second} count as two faults after orderly exits");
    Err(Violation::new(17, words))
}

/// Checks that a client receives LOST only if the group is LOST (invariant 17).
///
/// The function is called for an operation that ended with LOST.
pub fn response_of_lost_is_true(
    world: &World,
    cluster: Option<ClusterId>,
    group: GroupId,
) -> Result<(), Violation> {
    match durable(world, cluster, group) {
        Some(view) if view.primary.is_some() => {
            let words = format_args!("a client gets LOST, but the group is in {view:?}");
            Err(Violation::of(group, 17, words))
        }
        _ => Ok(()),
    }
}

/// Checks that a server does not serve a LOST group (invariant 17).
///
/// The function is called for a response of a process of this cluster. `read_at` is the time at which the process
/// read its clock, at the start of the wake-up. Work that is done later, after a pause, counts as done at this time.
/// A response with two copies is exempt, because it may be much delayed. Its ACK may wait in the inbox of a paused
/// primary while the other members continue and the group becomes LOST. A response whose request came in an earlier
/// wake-up is exempt too: it may have waited in the output because its client read slowly.
pub fn lost_is_not_served(
    world: &World,
    cluster: ClusterId,
    read_at: u64,
    responded: &SentResponse,
) -> Result<(), Violation> {
    let (group, status) = (responded.group, responded.status);
    let is_response =
        matches!(status, Status::Ok | Status::NotFound | Status::Conflict | Status::NotDone);
    let is_service = is_response && responded.copies < 2 && responded.is_fresh;
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

/// Checks that every group that is not LOST is back home with two replicas within a bounded time after the last fault
/// (invariant 19).
///
/// The function is called when this time is over, or earlier if the cluster has come to rest.
pub fn home_again(world: &World) -> Result<(), Violation> {
    if world.is_at_rest() {
        return Ok(());
    }
    let views = world.coordinator.cluster.as_ref().map(|cluster| cluster.views().to_vec());
    let waiting: usize = world.clients.iter().map(|client| client.flights.len()).sum();
    let words = format!(
        "{} s after the last fault, not every group is home: {waiting} operations wait; {views:?}",
        world.config.timeout / 1_000_000_000
    );
    Err(Violation::new(19, words))
}

/// Checks that once every group is home, every group that is neither LOST nor at rest in dumps serves with two
/// replicas (invariant 19).
///
/// The function is called for an operation that began at rest and has ended. The checks of invariant 17 decide
/// whether LOST is justified.
pub fn served_at_rest(
    world: &World,
    flight: &Flight,
    responded: Returned,
) -> Result<(), Violation> {
    let (group, _): (GroupId, _) = flight.place;
    let has_little_memory = world.config.bounds.has_little_memory();
    let words = match (responded, flight.asked) {
        (Returned::Lost, _) | (Returned::Value(_), _) => return Ok(()),
        (Returned::Refused, Asked::Write(_)) if has_little_memory => return Ok(()),
        (Returned::Done { .. }, _) if flight.copies == 2 => return Ok(()),
        (Returned::Done { .. }, _) => format!("copies: {}, not 2", flight.copies),
        (Returned::Refused | Returned::InDoubt | Returned::Undecided, _) => {
            format!("not done: {responded:?}")
        }
    };
    let key = String::from_utf8_lossy(&flight.key);
    let words = format_args!("every group is home, but {:?} of key {key:?}: {words}", flight.asked);
    Err(Violation::of(group, 19, words))
}

/// Checks that a holder of a group that rests in dumps has left a complete dump (invariant 19).
pub fn resting_has_a_dump(world: &World, view: &View) -> Result<(), Violation> {
    let mut holders = [view.primary, view.secondary()].into_iter().flatten();
    let has_dumped = |holder| world.operator.has_complete(holder, view.group);
    if holders.any(has_dumped) {
        return Ok(());
    }
    let words = format_args!("it rests in dumps, but no holder has a complete one: {view:?}");
    Err(Violation::of(view.group, 19, words))
}

fn is_lost(view: &View) -> bool {
    view.primary.is_none() && view.version > ViewVersion(0)
}

/// Returns the newest view of a group on the coordinator's disk, if the disk belongs to this cluster.
fn durable(world: &World, cluster: Option<ClusterId>, group: GroupId) -> Option<View> {
    let disk = world.coordinator.disk.as_ref().filter(|disk| Some(disk.cluster) == cluster)?;
    disk.views.get(usize::from(group.0)).copied()
}
