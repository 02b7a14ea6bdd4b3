//! 20: if all servers are paused together, however often, none of them is replaced. A server that was paused
//! received nothing from the others meanwhile, which proves nothing against them. A coordinator paused with
//! them suspects none.

use kv_core::cluster::DownCause;
use kv_protocol::{Member, View};

use crate::invariants::Violation;
use crate::world::World;

/// Checks the view that follows another.
pub fn check(world: &World, before: &View, view: &View) -> Result<(), Violation> {
    if !world.config.stands || before.version.0 == 0 {
        return Ok(());
    }
    let words = format_args!("servers were only paused, but {view:?} follows {before:?}");
    Err(Violation::of(view.group, 20, words))
}

/// Checks the coordinator's decision that a server is down.
pub fn is_down(world: &World, member: Member, cause: &DownCause) -> Result<(), Violation> {
    if !world.config.coordinator_stands || *cause != DownCause::Silent {
        return Ok(());
    }
    Err(Violation::new(
        20,
        format!("{member} is judged silent by a coordinator that was paused as well"),
    ))
}
