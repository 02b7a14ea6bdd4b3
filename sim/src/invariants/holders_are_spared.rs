//! 20: recovery kills no process that a durable view names, least of all a primary.

use kv_protocol::Member;

use crate::invariants::Violation;
use crate::world::World;

/// Checks the coordinator's decision to kill a process.
pub fn check(world: &World, member: Member) -> Result<(), Violation> {
    let cluster = world.coordinator.cluster.as_ref();
    let named = cluster.is_some_and(|cluster| cluster.durable().names(member));
    if !named {
        return Ok(());
    }
    Err(Violation::new(20, format!("{member} is to be killed though a durable view names it")))
}

/// Checks the kill when it takes effect, perhaps much later and under another coordinator.
pub fn strikes(world: &World, member: Member) -> Result<(), Violation> {
    match &world.coordinator.disk {
        Some(disk) if disk.names(member) => {
            let words = format!("{member} is killed, and by now a durable view names it");
            Err(Violation::new(20, words))
        }
        _ => Ok(()),
    }
}
