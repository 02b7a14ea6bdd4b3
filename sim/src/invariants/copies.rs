//! Copies: the replicas of a shard have equal contents, only keys of their group and shard, and bounded memory.
//!
//! The incremental digests of primary and secondary are compared often. Less often, and at the end, every entry and
//! every record of both are compared. The full comparison also verifies that the digests match the contents.

use std::collections::HashMap;

use kv_core::replica::Replica;
use kv_core::session::LoggedRecord;
use kv_core::table::{WalkBudget, WalkCursor};
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::{ClientId, GroupId, RequestSeq, SequenceNumber, ShardId, WallTime};
use kv_protocol::limits::MAX_RETAINED_BYTES;

use crate::checks::Place;
use crate::clock::wall_millis;
use crate::invariants::Violation;
use crate::world::World;

/// The allowed excess over the memory limit. It covers writes of the primary that a follower must accept, copies in
/// progress, and reserved but unused memory: some values of maximum length, and some chunks.
const SLACK: u64 = 512 << 10;
/// The time within which an idle primary removes expired entries, in milliseconds.
const REMOVED_WITHIN: u64 = 200;

/// Checks that primary and secondary have equal contents if they have applied the same writes (invariant 3).
///
/// The function compares the digests of both replicas of every shard. Returns the number of comparisons made.
pub fn digests_agree(world: &World) -> Result<u64, Violation> {
    let mut compared = 0;
    for place in places(world) {
        let Some((primary, secondary)) = copies(world, place) else { continue };
        let (primary, secondary) = (primary.inspect(), secondary.inspect());
        if primary.last != primary.committed || primary.last != secondary.last {
            continue;
        }
        compared += 1;
        if primary.content != secondary.content {
            let words = format_args!(
                "shard {}, write {}: {:?} at the primary, {:?} at the secondary",
                place.1, primary.last, primary.content, secondary.content
            );
            return Err(Violation::of(place.0, 3, words));
        }
    }
    Ok(compared)
}

/// Compares the whole contents of both replicas of a shard (invariant 3). Returns whether there were two replicas.
pub fn contents_agree(world: &World, place: Place) -> Result<bool, Violation> {
    let Some((primary, secondary)) = copies(world, place) else { return Ok(false) };
    let broken =
        |words: String| Err(Violation::of(place.0, 3, format_args!("shard {}: {words}", place.1)));
    for replica in [primary, secondary] {
        let (kept, found) = (replica.content(), replica.recount());
        if kept != found {
            let state = replica.state();
            return broken(format!("{state:?}: digest {kept:?}, but contents {found:?}"));
        }
    }
    let (mine, its) = (primary.inspect(), secondary.inspect());
    let level = mine.committed.min(its.last);
    let (here, there) = (entries(primary), entries(secondary));
    let found = difference(&here, &there, level, its.last > level)
        .or_else(|| difference(&there, &here, level, mine.committed > level));
    if let Some(key) = found {
        return broken(format!(
            "key {:?} at write {level}: {:?} at the primary, which has committed {}, {:?} at the \
             secondary, which is at {}",
            String::from_utf8_lossy(key),
            here.get(key).map(in_words),
            mine.committed,
            there.get(key).map(in_words),
            its.last
        ));
    }
    let is_level = mine.last == mine.committed && mine.last == its.last;
    if is_level && records(primary) != records(secondary) {
        return broken(format!("the sessions differ at write {level}"));
    }
    Ok(true)
}

/// Returns the violation of a candidate's copy that differs from its primary.
///
/// Invariant 11: at the end of a copy the digests of source and copy are equal.
pub fn copy_differs(group: GroupId, sn: SequenceNumber) -> Violation {
    Violation::of(group, 11, format_args!("the copy differs from its source at write {sn}"))
}

/// Checks that every table holds only keys of its group and shard (invariant 15).
///
/// The function examines every table of every live process.
pub fn keys_are_at_home(world: &World) -> Result<(), Violation> {
    let placement = world.config.placement();
    for process in world.processes.iter().filter(|process| process.alive) {
        for (shard, executor) in process.shards.iter().enumerate() {
            let shard = ShardId(u16::try_from(shard).expect("shards are few"));
            for replica in executor.replicas() {
                let home = (replica.group(), shard);
                let mut stray = None;
                let mut cursor = Some(WalkCursor::START);
                while let Some(at) = cursor {
                    let budget = WalkBudget { entries: 1_024, bytes: 1 << 20 };
                    cursor = replica.walk(at, budget, |entry| {
                        if placement.locate(entry.key) != home {
                            stray = Some(String::from_utf8_lossy(entry.key).into_owned());
                        }
                    });
                }
                if let Some(key) = stray {
                    let member = process.member;
                    let words = format_args!("{member}, shard {shard} holds the stray key {key}");
                    return Err(Violation::of(home.0, 15, words));
                }
            }
        }
    }
    Ok(())
}

/// Checks that the table of a replica stays within its memory limit (invariant 18).
pub fn memory_is_bounded(replica: &Replica, limit: u64) -> Result<(), Violation> {
    let bytes = replica.reserved_bytes();
    if bytes <= limit + SLACK {
        return Ok(());
    }
    let words = format_args!("a table of {bytes} B, though the limit is {limit} B");
    Err(Violation::of(replica.group(), 18, words))
}

/// Checks that the responses that a replica keeps for retries stay within their limit (invariant 18).
pub fn responses_are_bounded(replica: &Replica) -> Result<(), Violation> {
    let bytes = replica.retained_bytes();
    if bytes <= MAX_RETAINED_BYTES {
        return Ok(());
    }
    let words = format_args!("{bytes} B of responses are kept for retries");
    Err(Violation::of(replica.group(), 18, words))
}

/// Checks that primaries have removed every entry whose deadline has certainly passed for a while (invariant 18).
///
/// The function is called at the end of a run, when the cluster has been at rest for longer than this while.
pub fn expired_are_removed(world: &World) -> Result<(), Violation> {
    let latest = wall_millis(world.now) - world.config.wall_bound - world.wall_slack;
    let overdue = WallTime::from_millis(u64::try_from(latest).unwrap_or(0) - REMOVED_WITHIN);
    for place in places(world) {
        let alive = world.processes.iter().filter(|process| process.alive);
        let mut replicas = alive.filter_map(|process| process.replica(place.0, place.1));
        let Some(primary) = replicas.find(|replica| replica.state() == ReplicaState::Active) else {
            continue;
        };
        let is_left = |content: &Content| content.2.is_some_and(|deadline| deadline < overdue);
        if let Some((key, content)) = entries(primary).iter().find(|(_, content)| is_left(content))
        {
            let words = format_args!(
                "shard {}: key {:?} has expired, but is not removed at {overdue:?}: {}",
                place.1,
                String::from_utf8_lossy(key),
                in_words(content)
            );
            return Err(Violation::of(place.0, 18, words));
        }
    }
    Ok(())
}

/// Iterates over every shard of every group.
pub fn places(world: &World) -> impl Iterator<Item = Place> {
    let (groups, shards) = (world.config.servers, usize::from(world.config.shards));
    (0..groups).map(GroupId).flat_map(move |group| (0..shards).map(move |shard| (group, shard)))
}

/// Returns the active primary of a shard and its secondary of the same view.
fn copies(world: &World, (group, shard): Place) -> Option<(&Replica, &Replica)> {
    let replicas = || {
        let alive = world.processes.iter().filter(|process| process.alive);
        alive.filter_map(move |process| process.replica(group, shard))
    };
    let primary = replicas().find(|replica| replica.state() == ReplicaState::Active)?;
    let is_copy = |replica: &&Replica| {
        replica.state() == ReplicaState::Secondary && replica.view() == primary.view()
    };
    replicas().find(is_copy).map(|secondary| (primary, secondary))
}

/// The version, the value and the deadline of an entry.
type Content = (SequenceNumber, Vec<u8>, Option<WallTime>);

/// The entries of a replica, by key.
type Entries = HashMap<Vec<u8>, Content>;

fn entries(replica: &Replica) -> Entries {
    let mut entries = Entries::new();
    let mut cursor = Some(WalkCursor::START);
    while let Some(at) = cursor {
        let budget = WalkBudget { entries: 1_024, bytes: 1 << 20 };
        cursor = replica.walk(at, budget, |entry| {
            let content = (entry.version, entry.value.to_vec(), entry.deadline);
            entries.insert(entry.key.to_vec(), content);
        });
    }
    entries
}

/// Returns a key whose entry has a version up to `level` and is missing or different on the other side. If the
/// other side is ahead, it may have written or deleted the key since.
fn difference<'a>(
    here: &'a Entries,
    there: &Entries,
    level: SequenceNumber,
    is_ahead: bool,
) -> Option<&'a [u8]> {
    let differs = |(key, entry): &(&Vec<u8>, &Content)| match there.get(*key) {
        _ if entry.0 > level => false,
        Some(other) => other != *entry && !(is_ahead && other.0 > level),
        None => !is_ahead,
    };
    here.iter().find(differs).map(|(key, _)| key.as_slice())
}

fn in_words((version, value, deadline): &Content) -> String {
    let start = &value[..value.len().min(8)];
    format!("write {version}, {} B, {start:?}..., deadline {deadline:?}", value.len())
}

/// Returns every completion record with the part of the response that is kept with it.
fn records(replica: &Replica) -> HashMap<(ClientId, RequestSeq), (LoggedRecord, Vec<u8>)> {
    let records = replica.completion_records(0..replica.session_count());
    let with_response = |logged: LoggedRecord| {
        let name = (logged.record.client, logged.record.seq);
        (name, (logged, replica.response_of(name.0, name.1).to_vec()))
    };
    records.map(with_response).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: SequenceNumber = SequenceNumber(10);

    fn table(entries: &[(&str, u64, u8)]) -> Entries {
        let entry = |&(key, version, value): &(&str, u64, u8)| {
            (key.as_bytes().to_vec(), (SequenceNumber(version), vec![value], None))
        };
        entries.iter().map(entry).collect()
    }

    fn found(primary: &Entries, secondary: &Entries, is_ahead: bool) -> bool {
        difference(primary, secondary, LEVEL, is_ahead).is_some()
            || difference(secondary, primary, LEVEL, false).is_some()
    }

    #[test]
    fn copies_with_the_same_writes_hold_the_same_keys_values_and_versions() {
        let primary = table(&[("a", 3, 1), ("b", 10, 2)]);
        assert!(!found(&primary, &primary, false));
        for other in [
            table(&[("a", 3, 1)]),
            table(&[("a", 3, 1), ("b", 9, 2)]),
            table(&[("a", 3, 1), ("b", 10, 3)]),
            table(&[("a", 3, 1), ("b", 10, 2), ("c", 4, 1)]),
        ] {
            assert!(found(&primary, &other, false), "{other:?}");
        }
    }

    #[test]
    fn a_secondary_that_is_ahead_may_differ_only_in_newer_writes() {
        let primary = table(&[("a", 3, 1), ("b", 10, 2)]);
        for ahead in [table(&[("a", 11, 9), ("c", 12, 1)]), table(&[("a", 3, 1), ("b", 10, 2)])] {
            assert!(!found(&primary, &ahead, true), "{ahead:?}");
        }
        for wrong in [table(&[("a", 3, 7)]), table(&[("a", 3, 1), ("d", 5, 1)])] {
            assert!(found(&primary, &wrong, true), "{wrong:?}");
        }
    }
}
