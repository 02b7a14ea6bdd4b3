//! 3: where primary and secondary have applied the same writes, they hold the same.

use kv_core::replica::Inspection;
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::GroupId;

use crate::invariants::Violation;
use crate::world::World;

/// Compares both copies of every group's every shard.
pub fn check(world: &World) -> Result<(), Violation> {
    for group in (0..world.config.servers).map(GroupId) {
        for shard in 0..usize::from(world.config.shards) {
            let Some((primary, secondary)) = copies(world, group, shard) else { continue };
            let is_level = primary.last == primary.committed && primary.last == secondary.last;
            if is_level && primary.content != secondary.content {
                let words = format_args!(
                    "shard {shard}, write {}: {:?} at the primary, {:?} at the secondary",
                    primary.last, primary.content, secondary.content
                );
                return Err(Violation::of(group, 3, words));
            }
        }
    }
    Ok(())
}

/// The active primary of a shard, and its secondary of the same view.
fn copies(world: &World, group: GroupId, shard: usize) -> Option<(Inspection, Inspection)> {
    let sights = || {
        let alive = world.processes.iter().filter(|process| process.alive);
        alive.filter_map(|process| process.replica(group, shard)).map(|replica| replica.inspect())
    };
    let primary = sights().find(|sight| sight.state == ReplicaState::Active)?;
    let is_copy =
        |sight: &Inspection| sight.state == ReplicaState::Secondary && sight.view == primary.view;
    sights().find(is_copy).map(|secondary| (primary, secondary))
}
