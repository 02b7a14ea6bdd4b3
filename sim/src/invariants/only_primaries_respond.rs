//! 14: a replica that is not the primary of its installed view accepts no write and serves no read.

use kv_core::replica::Inspection;
use kv_protocol::client_message::Status;
use kv_protocol::ids::GroupId;

use crate::invariants::Violation;

/// Checks a response that a replica has just sent.
pub fn check(group: GroupId, sight: &Inspection, status: Status) -> Result<(), Violation> {
    let is_response =
        matches!(status, Status::Ok | Status::NotFound | Status::Conflict | Status::NotDone);
    if sight.state.is_active() || !is_response {
        return Ok(());
    }
    let words = format_args!("{status:?} is sent by a replica in state {:?}", sight.state);
    Err(Violation::of(group, 14, words))
}
