//! 26: in an orderly stop no process is ordered to exit, or exits by itself, before all its replicas are
//! dumped. No process is killed before another replica has dumped the same contents, or while its heartbeats
//! arrive. A forced stop is exempt.

use kv_protocol::Member;
use kv_protocol::ids::{GroupId, ServerId};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::view::View;

use crate::invariants::Violation;
use crate::world::World;

const NUMBER: u8 = 26;

/// Returns the views in which a process is a replica by the last durable state, and holds a full copy.
fn held(world: &World, member: Member) -> Vec<View> {
    let Some(cluster) = &world.coordinator.cluster else { return Vec::new() };
    let is_full = |view: &View| {
        let process = world.process_of(member).map(|process| &world.processes[process]);
        process.is_some_and(|process| {
            let mut shards = 0..usize::from(world.config.shards);
            shards.all(|shard| {
                process.replica(view.group, shard).is_some_and(|replica| replica.dumped().is_ok())
            })
        })
    };
    let is_replica =
        |view: &&View| view.primary == Some(member) || view.secondary() == Some(member);
    cluster.views().iter().filter(is_replica).copied().filter(is_full).collect()
}

/// Checks that a process that is ordered to exit has complete dumps.
pub fn is_shut_down(world: &World, member: Member) -> Result<(), Violation> {
    if world.operator.insists() {
        return Ok(());
    }
    let has_dumped = |group: GroupId| world.operator.has_complete(member, group);
    match held(world, member).into_iter().find(|view| !has_dumped(view.group)) {
        None => Ok(()),
        Some(view) => {
            let words = format_args!("{member} is ordered to exit without a complete dump");
            Err(Violation::of(view.group, NUMBER, words))
        }
    }
}

/// Checks that a process that exits without orders has complete dumps.
pub fn leaves(world: &World, process: usize) -> Result<(), Violation> {
    let process = &world.processes[process];
    let (member, servers) = (process.member, world.config.servers);
    let before = ServerId((member.server.0 + servers - 1) % servers);
    for group in [member.server.home_group(), before.home_group()] {
        let mut shards = 0..usize::from(world.config.shards);
        let is_full = shards.all(|shard| {
            process.replica(group, shard).is_some_and(|replica| replica.dumped().is_ok())
        });
        if is_full && !world.operator.has_complete(member, group) {
            let words = format_args!("{member} leaves without a complete dump");
            return Err(Violation::of(group, NUMBER, words));
        }
    }
    Ok(())
}

/// Checks the kill of a process that has not responded to this order.
pub fn is_killed(world: &World, member: Member, order: &str) -> Result<(), Violation> {
    if world.operator.insists() {
        return Ok(());
    }
    let is_dumped = |view: &View| {
        let replicas = view.primary.into_iter().chain(view.secondary());
        replicas.into_iter().any(|writer| world.operator.has_complete(writer, view.group))
    };
    if let Some(view) = held(world, member).into_iter().find(|view| !is_dumped(view)) {
        let words = format_args!("{member} is killed, and no replica has a complete dump");
        return Err(Violation::of(view.group, NUMBER, words));
    }
    let heard = world.heard_at.get(&member).copied().unwrap_or(0);
    let silent = world.coordinator_awake().saturating_sub(heard);
    // Clocks drift by up to a tenth, so 85 % of the deadline must have passed.
    let least = u64::try_from(DRAIN_DEADLINE.as_nanos()).unwrap_or(u64::MAX) / 100 * 85;
    if order != "SHUTDOWN" && silent < least {
        let words = format!(
            "{member} is killed during {order}, but its last heartbeat is only {silent} ns old"
        );
        return Err(Violation::new(NUMBER, words));
    }
    Ok(())
}
