//! 9: nothing is accepted from an old view or an old process.

use kv_protocol::ids::{GroupId, ViewVersion};
use kv_protocol::{Incarnation, Member};

use crate::invariants::Violation;

/// Checks a message that a replica has accepted.
pub fn message(group: GroupId, got: ViewVersion, installed: ViewVersion) -> Result<(), Violation> {
    if got == installed {
        return Ok(());
    }
    let words = format_args!("a message of view {got} was accepted under view {installed}");
    Err(Violation::of(group, 9, words))
}

/// Checks a heartbeat that the coordinator has attributed to a member.
pub fn heartbeat(speaks: Incarnation, member: Member) -> Result<(), Violation> {
    if member.incarnation == speaks {
        return Ok(());
    }
    Err(Violation::new(9, format!("a heartbeat of {speaks} was attributed to {member}")))
}
