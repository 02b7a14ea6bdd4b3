//! 19: once every group is home, every group that is neither LOST nor at rest in dumps serves, and has two replicas.

use kv_protocol::View;
use kv_protocol::ids::GroupId;

use crate::client::Flight;
use crate::invariants::Violation;
use crate::world::World;
use kv_history::{Asked, Returned};

/// Checks that a holder of a group that rests in dumps has left a complete dump.
pub fn rests(world: &World, view: &View) -> Result<(), Violation> {
    let mut holders = [view.primary, view.secondary()].into_iter().flatten();
    let has_dumped = |holder| world.operator.has_complete(holder, view.group);
    if holders.any(has_dumped) {
        return Ok(());
    }
    let words = format_args!("it rests in dumps, but no holder has a complete one: {view:?}");
    Err(Violation::of(view.group, 19, words))
}

/// Checks an operation that began at rest and has ended. The checks of `lost_is_lost` decide whether LOST is
/// justified.
pub fn check(world: &World, flight: &Flight, responded: Returned) -> Result<(), Violation> {
    let (group, _): (GroupId, _) = flight.place;
    let has_little_memory = world.config.bounds.has_little_memory();
    let words = match (responded, flight.asked) {
        (Returned::Lost, _) | (Returned::Value(_), _) => return Ok(()),
        (Returned::Refused, Asked::Write(_)) if has_little_memory => return Ok(()),
        (Returned::Done { .. }, _) if flight.copies == 2 => return Ok(()),
        (Returned::Done { .. }, _) => format!("copies: {}, not 2", flight.copies),
        (Returned::Refused | Returned::InDoubt | Returned::Undecided, _) => {
            format!("not done: {responded:?}")
        }
    };
    let key = String::from_utf8_lossy(&flight.key);
    let words = format_args!("every group is home, but {:?} of key {key:?}: {words}", flight.asked);
    Err(Violation::of(group, 19, words))
}
