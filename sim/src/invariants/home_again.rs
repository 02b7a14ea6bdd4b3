//! 19: once faults stop, every group that is not LOST is back home with two replicas within a bounded time.

use crate::invariants::Violation;
use crate::world::World;

/// Checks the cluster when the bound has passed.
pub fn check(world: &World) -> Result<(), Violation> {
    if world.is_at_rest() {
        return Ok(());
    }
    let views = world.coordinator.cluster.as_ref().map(|cluster| cluster.views().to_vec());
    let waiting: usize = world.clients.iter().map(|client| client.flights.len()).sum();
    let words = format!(
        "{} s after the last fault, not every group is home: {waiting} operations wait; {views:?}",
        world.config.timeout / 1_000_000_000
    );
    Err(Violation::new(19, words))
}
