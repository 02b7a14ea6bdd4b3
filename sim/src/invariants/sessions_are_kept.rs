//! 23: a session that was used lately is known, wherever its group is served: no write of it is told that it has
//! expired. Time in which all machines slept does not count.

use std::collections::HashMap;

use kv_protocol::ids::ClientId;

use crate::checks::Place;
use crate::invariants::Violation;
use crate::world::World;

/// By session: the latest time by which a write was begun that is known to be done. It was done then or later; a retry
/// that gets the first answer prolongs nothing.
pub type Used = HashMap<(Place, ClientId), u64>;

/// What the machines have been awake for.
fn awake(world: &World) -> u64 {
    world.now.saturating_sub(world.slept)
}

/// A write was answered for good.
pub fn note(used: &mut Used, world: &World, place: Place, client: ClientId, asked_at: u64) {
    // Machines may have slept since then; that makes it earlier, never later.
    let at = asked_at.saturating_sub(world.slept);
    let last = used.entry((place, client)).or_default();
    *last = (*last).max(at);
}

/// A client was told that the session of a write that is under way has expired.
pub fn check(used: &Used, world: &World, place: Place, client: ClientId) -> Result<(), Violation> {
    let Some(last) = used.get(&(place, client)) else { return Ok(()) };
    let ago = awake(world).saturating_sub(*last);
    let idle = world.config.bounds.session_idle.as_nanos();
    // The servers' clocks drift.
    if u128::from(ago) * 10 >= idle * 8 {
        return Ok(());
    }
    let words =
        format_args!("a session was forgotten that had written {} ms before", ago / 1_000_000);
    Err(Violation::of(place.0, 23, words))
}
