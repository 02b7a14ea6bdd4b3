//! 20: where all servers are paused together, however often, none of them has to go: who slept did not hear the others,
//! and proves nothing against them. A coordinator that slept with them does not even suspect them.

use kv_core::cluster::DownCause;
use kv_protocol::{Member, View};

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

/// The coordinator takes a server to be down.
pub fn is_down(world: &World, member: Member, cause: &DownCause) -> Result<(), Violation> {
    if !world.config.coordinator_stands || *cause != DownCause::Silent {
        return Ok(());
    }
    Err(Violation::new(
        20,
        format!("{member} is called silent by a coordinator that slept as well"),
    ))
}
