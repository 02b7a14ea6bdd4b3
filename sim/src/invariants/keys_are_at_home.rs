//! 15: a table holds only keys of its group and shard.

use kv_core::table::{WalkBudget, WalkCursor};
use kv_protocol::ids::ShardId;
use kv_protocol::placement::{Digest, Placement};

use crate::invariants::Violation;
use crate::world::World;

/// Checks every table of every live process.
pub fn check(world: &World) -> Result<(), Violation> {
    let placement = Placement::new(world.config.servers, world.config.shards);
    for process in world.processes.iter().filter(|process| process.alive) {
        for (shard, executor) in process.shards.iter().enumerate() {
            let shard = ShardId(u16::try_from(shard).expect("shards are few"));
            for replica in executor.replicas() {
                let home = (replica.group(), shard);
                let mut stray = None;
                let mut cursor = Some(WalkCursor::START);
                while let Some(at) = cursor {
                    let budget = WalkBudget { entries: 1_024, bytes: 1 << 20 };
                    cursor = replica.walk(at, budget, |entry| {
                        if placement.locate(Digest::of(entry.key)) != home {
                            stray = Some(String::from_utf8_lossy(entry.key).into_owned());
                        }
                    });
                }
                if let Some(key) = stray {
                    let member = process.member;
                    let words = format_args!("{member}, shard {shard} holds the stray key {key}");
                    return Err(Violation::of(home.0, 15, words));
                }
            }
        }
    }
    Ok(())
}
