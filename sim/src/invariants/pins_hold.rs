//! 27: a value that is being sent does not change after its request, even if its key is written or deleted, or
//! its entry moves, meanwhile.

use kv_protocol::ids::GroupId;

use crate::invariants::Violation;

/// Returns the violation of a value that was lost although its replica has kept its table.
pub fn gone(group: GroupId) -> Violation {
    Violation::of(group, 27, format_args!("a value that is being sent is gone"))
}

/// Returns the violation of a response whose bytes are not those of one value.
pub fn mixed(group: GroupId) -> Violation {
    Violation::of(group, 27, format_args!("the bytes that were read are not one written value"))
}
