//! 12: the version of a key only grows, over all clients together.

use kv_protocol::ids::GroupId;

use crate::client::Flight;
use crate::invariants::Violation;

/// Checks an operation that ended with a version. `flight.floor` is the newest version in any response before
/// it began.
pub fn check(flight: &Flight, version: u64) -> Result<(), Violation> {
    let (group, _): (GroupId, _) = flight.place;
    if version >= flight.floor {
        return Ok(());
    }
    let words = format_args!(
        "key {:?} is at version {version} after it was at {}",
        String::from_utf8_lossy(&flight.key),
        flight.floor
    );
    Err(Violation::of(group, 12, words))
}
