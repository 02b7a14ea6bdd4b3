//! 19: once faults stop, every group is back home with two copies within a bound, but for those that are
//! LOST.

use crate::invariants::Violation;
use crate::world::World;

/// The bound is over.
pub fn check(world: &World) -> Result<(), Violation> {
    if world.is_at_rest() {
        return Ok(());
    }
    let views = world.coordinator.cluster.as_ref().map(|cluster| cluster.views().to_vec());
    let waiting: usize = world.clients.iter().map(|client| client.flights.len()).sum();
    let words = format!(
        "{} s after the last fault not everything is home: {waiting} operations wait; {views:?}",
        world.config.patience / 1_000_000_000
    );
    Err(Violation::new(19, words))
}
