//! 20: where all servers are paused alike, however often, none of them has to go: who slept did not hear the others,
//! and proves nothing against them.

use kv_protocol::View;

use crate::invariants::Violation;
use crate::world::World;

/// A view follows another.
pub fn check(world: &World, before: &View, view: &View) -> Result<(), Violation> {
    if !world.config.stands || before.version.0 == 0 {
        return Ok(());
    }
    let words =
        format_args!("nobody has done more than sleep, and {before:?} is followed by {view:?}");
    Err(Violation::of(view.group, 20, words))
}
