//! 6: an acknowledged write is held by all members of the view that acknowledged it.

use crate::server::Acked;
use crate::world::{Violation, World};

/// Looks at the secondary of whoever has just answered.
pub fn check(world: &World, process: usize, shard: usize, acked: &Acked) -> Result<(), Violation> {
    let Some(replica) = world.processes[process].replica(acked.group, shard) else {
        return Ok(());
    };
    let Some(view) = replica.view().filter(|_| acked.copies == 2) else { return Ok(()) };
    let Some(secondary) = view.secondary().and_then(|member| world.process_of(member)) else {
        return Ok(());
    };
    let held = world.processes[secondary].replica(acked.group, shard).map(|r| r.inspect());
    let has_it = held.is_none_or(|sight| {
        // One that has gone on to a later view may have been wiped by then.
        sight.last.0 >= acked.version || sight.view.is_some_and(|v| v.version > view.version)
    });
    if has_it {
        return Ok(());
    }
    let words = format!(
        "group {}, shard {shard}: write {} was answered with two copies, the secondary is at {:?}",
        acked.group,
        acked.version,
        held.map(|sight| sight.last)
    );
    Err(Violation { invariant: 6, words })
}
