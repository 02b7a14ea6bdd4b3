//! 27: a value that is being sent does not change after its request, whatever is written, deleted or moved
//! meanwhile.

use kv_protocol::ids::GroupId;

use crate::invariants::Violation;

/// Checks the value of a held pin.
pub fn check(group: GroupId, value: &[u8], pinned: Option<&[u8]>) -> Result<(), Violation> {
    match pinned {
        Some(pinned) if pinned == value => Ok(()),
        Some(_) => Err(Violation::of(group, 27, format_args!("a pinned value has changed"))),
        None => Err(Violation::of(group, 27, format_args!("a pinned value is gone"))),
    }
}
