//! 6: an acknowledged write is held by all members of the view that acknowledged it.

use kv_protocol::ids::GroupId;

use crate::checks::Place;
use crate::invariants::Violation;
use crate::server::SentResponse;
use crate::world::World;

/// Checks the secondary of a replica that has just acknowledged a write with two copies.
pub fn check(
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

/// Checks that a member holds a write, or has installed a later view, in which it may have been wiped.
pub fn holds(
    world: &World,
    member: kv_protocol::Member,
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
    member: kv_protocol::Member,
    last: u64,
) -> Violation {
    let words = format_args!(
        "shard {shard}: write {} was acknowledged with {} copies, but {member} is at write {last}",
        responded.version, responded.copies
    );
    Violation::of(group, 6, words)
}
