//! 28: no load of clients moves a view or delays a beacon for long, and the memory of their connections is bounded.

use kv_core::replica::Replica;
use kv_protocol::FailureTimeout;
use kv_protocol::limits::MAX_OUTPUT_BYTES;

use crate::invariants::Violation;
use crate::world::World;

/// The memory that a connection may hold beside its bounded output: the response that exceeded the bound, and input.
const BESIDE_OUTPUT: usize = 256 << 10;

/// The maximum error of a process's shared memory count, for each shard.
const UNREPORTED: usize = 64 << 10;

/// Checks a replica while the only fault is load.
pub fn check(world: &World, process: usize, replica: &Replica) -> Result<(), Violation> {
    let group = replica.group();
    let Some(version) = world.floods.views.get(&group) else { return Ok(()) };
    let installed = replica.view_version();
    if installed > *version {
        let words = format_args!("load moved view {version} to {installed}");
        return Err(Violation::of(group, 28, words));
    }
    let now = world.clocks[world.processes[process].place].read(world.now);
    let gap = replica.report(now).map_or(0, |report| u128::from(report.longest_gap_ms));
    let most = (FailureTimeout::DEFAULT.lease() / 2).as_millis();
    if gap >= most {
        let words = format_args!("under load, no message of the other holder for {gap} ms");
        return Err(Violation::of(group, 28, words));
    }
    Ok(())
}

/// Returns the violation of a connection that was closed although its client reads all responses.
pub fn closed() -> Violation {
    let words = "the connection of a client that reads was closed under load".to_owned();
    Violation::new(28, words)
}

/// Checks the memory of a process's connections.
pub fn check_memory(world: &World, process: usize) -> Result<(), Violation> {
    let process = &world.processes[process];
    let connections: usize = process.shards.iter().map(|executor| executor.clients()).sum();
    let unreported = process.shards.len() * UNREPORTED;
    let most = (connections * (MAX_OUTPUT_BYTES + BESIDE_OUTPUT) + unreported) as u64;
    let (held, most) = (process.memory.held(), most.min(process.memory.limit()));
    if held <= most {
        return Ok(());
    }
    let words = format!("{connections} connections hold {held} B, which is more than {most} B");
    Err(Violation::new(28, words))
}
