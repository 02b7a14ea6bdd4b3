//! 23: a recently used session is known wherever its group is served: no write of it gets SESSION_EXPIRED. Time
//! in which all machines were suspended does not count.

use std::collections::HashMap;

use kv_protocol::ids::ClientId;

use crate::checks::Place;
use crate::invariants::Violation;
use crate::world::World;

/// The latest start of a write that is known to be done, by session. The write was done then or later. A retry
/// that gets the first response prolongs nothing.
pub type Used = HashMap<(Place, ClientId), u64>;

/// Returns the time so far in which the machines were not suspended.
fn awake(world: &World) -> u64 {
    world.now.saturating_sub(world.slept)
}

/// Records the final response to a write.
pub fn note(used: &mut Used, world: &World, place: Place, client: ClientId, asked_at: u64) {
    // Machines may have been suspended since then. That makes the result earlier, never later.
    let at = asked_at.saturating_sub(world.slept);
    let last = used.entry((place, client)).or_default();
    *last = (*last).max(at);
}

/// Checks a SESSION_EXPIRED response to a client's write in flight.
pub fn check(used: &Used, world: &World, place: Place, client: ClientId) -> Result<(), Violation> {
    let Some(last) = used.get(&(place, client)) else { return Ok(()) };
    let ago = awake(world).saturating_sub(*last);
    let idle = world.config.bounds.session_idle.as_nanos();
    // The servers' clocks drift, so only four fifths of the idle time are required.
    if u128::from(ago) * 10 >= idle * 8 {
        return Ok(());
    }
    let words = format_args!("a session expired although it wrote {} ms before", ago / 1_000_000);
    Err(Violation::of(place.0, 23, words))
}
