//! Leases and graces: one member at a time serves reads, and a successor waits no longer than necessary.
//!
//! ```text
//!   primary       |------ lease: it serves reads ------|
//!   other member  |------ grace: it does not take over ------|   or until the primary is known to be dead
//! ```

use kv_core::replica::Inspection;
use kv_protocol::Time;
use kv_protocol::client_message::Status;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::GroupId;

use crate::checks::Place;
use crate::invariants::{Violation, may_serve};
use crate::world::World;

/// Checks that at most one member may serve reads of a group's shard at any time (invariant 1).
///
/// The function examines all processes with a replica of the place.
pub fn one_server(world: &World, (group, shard): Place) -> Result<(), Violation> {
    let mut serving = None;
    for process in world.processes.iter().filter(|process| process.alive) {
        let Some(replica) = process.replica(group, shard) else { continue };
        let now = world.clocks[process.place].read(world.now);
        if may_serve(&replica.inspect(), now)
            && let Some(other) = serving.replace(process.member)
        {
            let words =
                format_args!("shard {shard}: {other} and {} may both serve", process.member);
            return Err(Violation::of(group, 1, words));
        }
    }
    Ok(())
}

/// Checks that a primary's lease ends before the grace of the member that granted it (invariant 2).
///
/// The function compares the lease and the grace of the two members of a place, in true time.
pub fn lease_before_grace(world: &World, (group, shard): Place) -> Result<(), Violation> {
    let holders = || world.processes.iter().filter(|process| process.alive);
    for primary in holders() {
        let Some(sight) = primary.replica(group, shard).map(|r| r.inspect()) else { continue };
        let Some(lease) = sight.lease_until else { continue };
        let Some(other) = sight.view.and_then(|view| view.other()) else { continue };
        let Some(follower) = holders().find(|process| process.member == other) else { continue };
        let Some(replica) = follower.replica(group, shard) else { continue };
        let lease = world.clocks[primary.place].true_time(lease);
        let Some((to, grace)) = replica.inspect().grace else {
            // An unreachable primary may still have the record of a lease that has ended. The follower may have
            // sent ACKs to other primaries since, and it forgets its last ACK once the receiver is proven dead.
            if lease <= world.now {
                continue;
            }
            let words = format_args!("shard {shard}: a lease is valid, but {other} has no grace");
            return Err(Violation::of(group, 2, words));
        };
        let grace = world.clocks[follower.place].true_time(grace);
        if to == primary.member && lease >= grace {
            let words = format_args!(
                "shard {shard}: the lease of {} ends at {lease} ns, the grace of {other} at {grace} ns",
                primary.member
            );
            return Err(Violation::of(group, 2, words));
        }
    }
    Ok(())
}

/// Checks that no read succeeds without a valid lease (invariant 8).
///
/// The function is called for a response to a read that a replica has sent at this reading of its clock.
pub fn lease_is_checked(
    group: GroupId,
    sight: &Inspection,
    now: Time,
    status: Status,
) -> Result<(), Violation> {
    if may_serve(sight, now) || !matches!(status, Status::Ok | Status::NotFound) {
        return Ok(());
    }
    let words = format_args!("a read gets {status:?} at {now:?}; lease: {:?}", sight.serves);
    Err(Violation::of(group, 8, words))
}

/// Checks that no replica waits for the end of its grace after the proof that the receiver of its last ACK is dead
/// (invariant 21).
///
/// The function is called for a replica after a wake-up of its process.
pub fn dead_are_not_waited_for(
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
