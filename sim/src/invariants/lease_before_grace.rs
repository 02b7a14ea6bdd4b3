//! 2: a primary's lease ends before the grace of the member that granted it.

use crate::checks::Place;
use crate::invariants::Violation;
use crate::world::World;

/// Compares lease and grace of the two members of a place, in true time.
pub fn check(world: &World, (group, shard): Place) -> Result<(), Violation> {
    let holders = || world.processes.iter().filter(|process| process.alive);
    for primary in holders() {
        let Some(sight) = primary.replica(group, shard).map(|r| r.inspect()) else { continue };
        let Some(lease) = sight.lease_until else { continue };
        let Some(other) = sight.view.and_then(|view| view.other()) else { continue };
        let Some(follower) = holders().find(|process| process.member == other) else { continue };
        let Some(replica) = follower.replica(group, shard) else { continue };
        let lease = world.clocks[primary.place].true_time(lease);
        let Some((to, grace)) = replica.inspect().grace else {
            // An unreachable primary keeps a lease that has ended. The follower may have sent ACKs to other
            // primaries since, and it forgets its last ACK once the receiver is proven dead.
            if lease <= world.now {
                continue;
            }
            let words = format_args!("shard {shard}: the follower of a lease owes no grace");
            return Err(Violation::of(group, 2, words));
        };
        let grace = world.clocks[follower.place].true_time(grace);
        if to == primary.member && lease >= grace {
            let words = format_args!(
                "shard {shard}: the lease of {} ends at {lease} ns, the grace of {other} at {grace} ns",
                primary.member
            );
            return Err(Violation::of(group, 2, words));
        }
    }
    Ok(())
}
