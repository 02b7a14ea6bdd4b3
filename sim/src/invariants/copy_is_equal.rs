//! 11: at the marker the digests are equal.

use kv_protocol::ids::{GroupId, SequenceNumber};

use crate::invariants::Violation;

/// A primary has found its candidate's copy to differ.
pub fn differs(group: GroupId, sn: SequenceNumber) -> Violation {
    Violation::of(group, 11, format_args!("the copy differs from its source at write {sn}"))
}
