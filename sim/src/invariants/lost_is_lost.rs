//! 17: a group is LOST only when every holder of it is dead. (That it then never says NOT_FOUND is for
//! the histories to tell.)

use kv_protocol::{Member, View};

use crate::invariants::Violation;
use crate::world::World;

/// A view is durable.
pub fn check(world: &World, before: &View, view: &View) -> Result<(), Violation> {
    let is_dead = |member: Member| {
        world.process_of(member).is_none_or(|process| !world.processes[process].alive)
    };
    let mut holders = [before.primary, before.secondary()].into_iter().flatten();
    if view.primary.is_some() || (world.config.double && holders.all(is_dead)) {
        return Ok(());
    }
    Err(Violation::of(view.group, 17, format_args!("it is LOST though it need not be")))
}
