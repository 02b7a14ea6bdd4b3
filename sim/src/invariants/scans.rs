//! Scans: every key that exists throughout comes, and no other than a key that was written.

use std::collections::BTreeSet;

use kv_history::{existed_throughout, may_have_existed};

use crate::invariants::{Violation, flushes};
use crate::world::World;
use crate::world::scans::EndedScan;

/// Checks that a scan has returned every key that existed from its start to its end, and only keys that a client had
/// begun to write before its end (invariant 30).
///
/// The function checks all scans of a run, by the histories of the keys. Keys of objects may expire, so they need not
/// come. Neither need the own keys of Redis clients, which have no history.
pub fn every_key_comes(world: &World) -> Result<(), Violation> {
    let of_objects = world.workload.objects.histories.values().flat_map(|object| &object.keys);
    let of_objects: BTreeSet<&Vec<u8>> = of_objects.collect();
    for scan in &world.scans.ended {
        let [start, end] = [scan.start, scan.end].map(u64::cast_signed);
        for (key, history) in &world.workload.histories {
            let is_found = scan.found.contains(key);
            let flushed = flushes::as_flushed(world, key, history);
            if !is_found && existed_throughout(&flushed, start, end) {
                return Err(violation(world, scan, key, "did not come, although it existed"));
            }
            if is_found && !may_have_existed(history, end) {
                return Err(violation(world, scan, key, "came before it was written"));
            }
        }
        let is_known = |key: &&Vec<u8>| {
            let is_own = || world.redis.iter().any(|client| client.owns(key));
            world.workload.histories.contains_key(*key) || of_objects.contains(*key) || is_own()
        };
        if let Some(key) = scan.found.iter().find(|key| !is_known(key)) {
            return Err(violation(world, scan, key, "came, but was never written"));
        }
    }
    Ok(())
}

fn violation(world: &World, scan: &EndedScan, key: &[u8], what: &str) -> Violation {
    let placement = world.config.placement();
    let (group, shard) = placement.locate(key);
    let words = format_args!(
        "shard {shard}: key {:?} {what}, in the scan from {} to {} ms",
        String::from_utf8_lossy(key),
        scan.start / 1_000_000,
        scan.end / 1_000_000
    );
    Violation::of(group, 30, words)
}
