//! 20: no process that a durable view names is killed by recovery, a primary least of all.

use kv_protocol::Member;

use crate::invariants::Violation;
use crate::world::World;

/// The coordinator wants a process killed.
pub fn check(world: &World, member: Member) -> Result<(), Violation> {
    let cluster = world.coordinator.cluster.as_ref();
    let named = cluster.is_some_and(|cluster| cluster.durable().names(member));
    if !named {
        return Ok(());
    }
    Err(Violation::new(20, format!("{member} is to be killed though a durable view names it")))
}

/// The kill strikes, perhaps long afterwards, and whoever is coordinator by then.
pub fn strikes(world: &World, member: Member) -> Result<(), Violation> {
    match &world.coordinator.disk {
        Some(disk) if disk.names(member) => {
            let words = format!("{member} is killed, and by now a durable view names it");
            Err(Violation::new(20, words))
        }
        _ => Ok(()),
    }
}
