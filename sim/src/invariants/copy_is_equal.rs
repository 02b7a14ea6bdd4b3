//! 11: at the marker, the digests of source and copy are equal.

use kv_protocol::ids::{GroupId, SequenceNumber};

use crate::invariants::Violation;

/// Returns the violation of a candidate's copy that differs from its primary.
pub fn differs(group: GroupId, sn: SequenceNumber) -> Violation {
    Violation::of(group, 11, format_args!("the copy differs from its source at write {sn}"))
}
