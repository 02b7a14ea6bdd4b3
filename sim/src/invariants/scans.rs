//! Scans: every key that exists throughout comes, and no other than a key that was written.

use std::collections::BTreeSet;

use kv_history::{Asked, Entry, Returned};

use crate::invariants::{Violation, flushes};
use crate::world::World;
use crate::world::scans::EndedScan;

/// Checks that a scan has returned every key that existed from its start to its end, and only keys that a client had
/// begun to write before its end (invariant 30).
///
/// The function checks all scans of a run, by the histories of the keys. Keys of objects may expire, so they need not
/// come.
pub fn every_key_comes(world: &World) -> Result<(), Violation> {
    let of_objects = world.workload.objects.histories.values().flat_map(|object| &object.keys);
    let of_objects: BTreeSet<&Vec<u8>> = of_objects.collect();
    for scan in &world.scans.ended {
        for (key, history) in &world.workload.histories {
            let is_found = scan.found.contains(key);
            if !is_found && existed_throughout(world, history, scan) {
                return Err(violation(world, scan, key, "did not come, although it existed"));
            }
            if is_found && !history.iter().any(|entry| may_have_written(entry, scan)) {
                return Err(violation(world, scan, key, "came before it was written"));
            }
        }
        let is_known = |key: &&Vec<u8>| {
            world.workload.histories.contains_key(*key) || of_objects.contains(*key)
        };
        if let Some(key) = scan.found.iter().find(|key| !is_known(key)) {
            return Err(violation(world, scan, key, "came, but was never written"));
        }
    }
    Ok(())
}

/// Returns whether a key certainly existed from the start of the scan to its end: a write has created it before, and
/// no delete or flush can have been executed after this write and before the end of the scan.
fn existed_throughout(world: &World, history: &[Entry], scan: &EndedScan) -> bool {
    let [start, end] = [scan.start, scan.end].map(u64::cast_signed);
    let created = |entry: &&Entry| {
        matches!(entry.asked, Asked::Write(_) | Asked::Swap { .. })
            && entry.returned == (Returned::Done { changed: true })
            && entry.end < start
    };
    let may_remove = |since: i64| {
        history
            .iter()
            .any(|entry| entry.asked == Asked::Delete && entry.end >= since && entry.start <= end)
    };
    let is_flushed = |since: i64| flushes::may_remove(world, since.cast_unsigned(), scan.end);
    let mut created = history.iter().filter(created);
    created.any(|write| !may_remove(write.start) && !is_flushed(write.start))
}

/// Returns whether an operation may have created the key before the end of the scan.
fn may_have_written(entry: &Entry, scan: &EndedScan) -> bool {
    matches!(entry.asked, Asked::Write(_) | Asked::Swap { .. })
        && entry.start <= scan.end.cast_signed()
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
