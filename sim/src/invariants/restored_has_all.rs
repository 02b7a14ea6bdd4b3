//! 17, for a restore: the restored data has every acknowledged write and equals what was dumped. A group is
//! LOST only if none of its last holders has left a complete dump. If every server ended in order, no group is
//! LOST.

use kv_core::cluster::DurableState;
use kv_core::dump::Dump;
use kv_core::replica::Replica;
use kv_core::restore::Plan;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{GroupId, ShardId, ViewVersion};

use crate::checks::Checks;
use crate::invariants::Violation;
use crate::world::World;

/// Checks a restore plan.
pub fn check(
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

/// Checks a group that is LOST by the plan.
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
        let words = format_args!("it is LOST although every holder left in order");
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

/// Checks that a replica has loaded the contents that the writer of the dump held.
pub fn is_equal(replica: &Replica, dumped: Option<ContentDigest>) -> Result<(), Violation> {
    let loaded = replica.content();
    match dumped {
        Some(dumped) if dumped != loaded => {
            let words = format_args!("the dump has {dumped:?}, but {loaded:?} was loaded");
            Err(Violation::of(replica.group(), 17, words))
        }
        _ => Ok(()),
    }
}
