//! 3 and 11: where primary and secondary have applied the same writes, they hold the same.

use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::GroupId;

use crate::world::{Violation, World};

/// Compares both copies of every group's every shard.
pub fn check(world: &World) -> Result<(), Violation> {
    for group in (0..world.config.servers).map(GroupId) {
        for shard in 0..usize::from(world.config.shards) {
            let sights: Vec<_> = world
                .processes
                .iter()
                .filter(|process| process.alive)
                .filter_map(|process| process.replica(group, shard))
                .map(|replica| replica.inspect())
                .collect();
            let Some(primary) = sights.iter().find(|s| s.state == ReplicaState::Active) else {
                continue;
            };
            let is_copy = |s: &&kv_core::replica::Inspection| {
                s.state == ReplicaState::Secondary && s.view == primary.view
            };
            let Some(secondary) = sights.iter().find(is_copy) else { continue };
            let is_level = primary.last == primary.committed && primary.last == secondary.last;
            if is_level && primary.content != secondary.content {
                let words = format!(
                    "group {group}, shard {shard}, write {}: {:?} at the primary, {:?} at the \
                     secondary",
                    primary.last, primary.content, secondary.content
                );
                return Err(Violation { invariant: 3, words });
            }
        }
    }
    Ok(())
}
