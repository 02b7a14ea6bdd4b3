//! 8: no read succeeds after a failed lease check.

use kv_core::replica::Inspection;
use kv_protocol::Time;
use kv_protocol::client_message::Status;
use kv_protocol::ids::GroupId;

use crate::invariants::{Violation, may_serve};

/// Checks a response to a read that a replica has sent at this reading of its clock.
pub fn check(
    group: GroupId,
    sight: &Inspection,
    now: Time,
    status: Status,
) -> Result<(), Violation> {
    if may_serve(sight, now) || !matches!(status, Status::Ok | Status::NotFound) {
        return Ok(());
    }
    let words = format_args!("a read gets {status:?} at {now:?}; lease: {:?}", sight.serves);
    Err(Violation::of(group, 8, words))
}
