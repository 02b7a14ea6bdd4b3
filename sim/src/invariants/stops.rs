//! Stops and restores: no process ends before its data is dumped (invariant 26), and a restore loses nothing that the
//! dumps contain (invariant 17).

use kv_core::cluster::DurableState;
use kv_core::dump::Dump;
use kv_core::replica::Replica;
use kv_core::restore::Plan;
use kv_protocol::Member;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{GroupId, ServerId, ShardId, ViewVersion};
use kv_protocol::limits::DRAIN_DEADLINE;
use kv_protocol::view::View;

use crate::checks::Checks;
use crate::invariants::Violation;
use crate::world::World;

/// Checks that in an orderly stop no process is ordered to exit before all its replicas are dumped (invariant 26). A
/// forced stop is exempt.
///
/// The function is called for a process that is ordered to exit.
pub fn dumped_before_shutdown(world: &World, member: Member) -> Result<(), Violation> {
    if world.operator.insists() {
        return Ok(());
    }
    let has_dumped = |group: GroupId| world.operator.has_complete(member, group);
    match held(world, member).into_iter().find(|view| !has_dumped(view.group)) {
        None => Ok(()),
        Some(view) => {
            let words = format_args!("{member} is ordered to exit without a complete dump");
            Err(Violation::of(view.group, 26, words))
        }
    }
}

/// Checks that no process exits by itself before all its replicas are dumped (invariant 26).
///
/// The function is called for a process that exits without orders.
pub fn dumped_before_leaving(world: &World, process: usize) -> Result<(), Violation> {
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
            return Err(Violation::of(group, 26, words));
        }
    }
    Ok(())
}

/// Checks that no process is killed before a replica of each of its groups is dumped, or while its heartbeats arrive
/// (invariant 26). A process that was ordered to exit may be killed despite its heartbeats. A forced stop is exempt.
///
/// The function is called for the kill of a process that has not responded to this order.
pub fn dumped_before_kill(world: &World, member: Member, order: &str) -> Result<(), Violation> {
    if world.operator.insists() {
        return Ok(());
    }
    let is_dumped = |view: &View| {
        let replicas = view.primary.into_iter().chain(view.secondary());
        replicas.into_iter().any(|writer| world.operator.has_complete(writer, view.group))
    };
    if let Some(view) = held(world, member).into_iter().find(|view| !is_dumped(view)) {
        let words = format_args!("{member} is killed, and no replica has a complete dump");
        return Err(Violation::of(view.group, 26, words));
    }
    let heard = world.heard_at.get(&member).copied().unwrap_or(0);
    let silent = world.coordinator_awake().saturating_sub(heard);
    // Clocks drift by up to a tenth, so 85 % of the deadline must have passed.
    let least = u64::try_from(DRAIN_DEADLINE.as_nanos()).unwrap_or(u64::MAX) / 100 * 85;
    if order != "SHUTDOWN" && silent < least {
        let words = format!(
            "{member} is killed during {order}, but its last heartbeat is only {silent} ns old"
        );
        return Err(Violation::new(26, words));
    }
    Ok(())
}

/// Checks that the restored data has every acknowledged write (invariant 17). A group is LOST only if none of its
/// last holders has left a complete dump. If every server made an orderly exit, no group is LOST.
///
/// The function is called for a restore plan.
pub fn restored_has_all(
    checks: &Checks,
    world: &World,
    durable: &DurableState,
    dumps: &[Dump],
    plan: &Plan,
) -> Result<(), Violation> {
    for group in (0..).map(GroupId).take(plan.groups.len()) {
        for shard in (0..durable.shards).map(ShardId) {
            let place = (group, usize::from(shard.0));
            let acked = checks.acked.get(&place).copied().unwrap_or(0);
            let Some(source) = plan.source(group, shard) else { continue };
            if source.last.0 < acked {
                let writer = dumps[source.dump.0].header.origin.writer;
                let words = format_args!(
                    "shard {shard}: restored from the dump of {writer}, which ends at write {}, \
                     though write {acked} was acknowledged",
                    source.last
                );
                return Err(Violation::of(group, 17, words));
            }
        }
    }
    plan.lost().try_for_each(|group| lost(world, durable, dumps, group))
}

/// Checks that restored data equals the dumped data (invariant 17).
///
/// The function compares the contents that a replica has loaded with those of the writer of the dump. If `dumped` is
/// `None`, there is nothing to compare.
pub fn restored_equals_dump(
    replica: &Replica,
    dumped: Option<ContentDigest>,
) -> Result<(), Violation> {
    let loaded = replica.content();
    match dumped {
        Some(dumped) if dumped != loaded => {
            let words = format_args!("the dump has {dumped:?}, but {loaded:?} was loaded");
            Err(Violation::of(replica.group(), 17, words))
        }
        _ => Ok(()),
    }
}

/// Returns the views that name a process as primary or secondary of a group of which it holds a full copy.
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

/// Checks a group that the plan makes LOST.
fn lost(
    world: &World,
    durable: &DurableState,
    dumps: &[Dump],
    group: GroupId,
) -> Result<(), Violation> {
    let view = &durable.views[usize::from(group.0)];
    let mut holders = vec![view.primary, view.secondary()];
    if view.primary.is_none() {
        let last = world.last_holders.get(&(durable.cluster, group));
        holders.extend(last.into_iter().flatten().copied().map(Some));
    }
    // The group may be LOST if an earlier restore gave it up, the operator forced the stop, or two servers may
    // crash.
    let was_given_up = world.operator.has_given_up(durable.cluster, group);
    let may_be = was_given_up || world.operator.insists() || world.config.double;
    if !may_be && view.version > ViewVersion(0) {
        let words = format_args!("it is LOST although the exit of every holder was orderly");
        return Err(Violation::of(group, 17, words));
    }
    let whole = dumps.iter().map(|dump| &dump.header.origin).find(|origin| {
        let is_of_last = origin.cluster == durable.cluster && origin.group == group;
        is_of_last && holders.contains(&Some(origin.writer))
    });
    let Some(whole) = whole else { return Ok(()) };
    let words = format_args!("it is LOST although {} has left a complete dump", whole.writer);
    Err(Violation::of(group, 17, words))
}
