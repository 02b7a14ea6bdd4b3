//! Flushes from the point of view of clients: each removes every key that existed at its beginning, once.
//!
//! A completed flush is a delete of each key between its start and its end. If it began again at another primary, it may
//! have been several. A flush that was not completed may have deleted a key, now or later.

use std::sync::Arc;

use kv_history::object::{Answer, Change, ObjectEntry, Span, Update};
use kv_history::{Asked, Entry, Returned};

use crate::clock::wall_millis;
use crate::world::World;

/// The first process number of deletes by flushes.
const FIRST_CLIENT: u32 = 1 << 31;

/// A delete of a key by a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Removal {
    start: u64,
    end: Option<u64>,
    /// True if the delete may be missing.
    is_optional: bool,
}

/// Returns the deletes of a key by the flushes of a run.
fn removals(world: &World, key: &[u8]) -> Vec<Removal> {
    let (group, _) = world.config.placement().locate(key);
    let mut removals = Vec::new();
    for flush in world.flushes.all() {
        let (start, end) = (flush.start, flush.end);
        let passes = match end {
            Some(_) => flush.passes(group).max(1),
            None => flush.passes(group),
        };
        removals.extend((0..passes).map(|pass| {
            let is_optional = pass > 0 || end.is_none();
            Removal { start, end, is_optional }
        }));
    }
    removals
}

fn client(number: usize) -> u32 {
    FIRST_CLIENT + u32::try_from(number).expect("flushes are few")
}

/// Returns the end of a delete in a history.
fn end_of(removal: Removal) -> i64 {
    removal.end.map_or(i64::MAX, u64::cast_signed)
}

/// Adds the deletes of a key by flushes to its history.
pub fn as_flushed(world: &World, key: &[u8], history: &[Entry]) -> Vec<Entry> {
    let entry = |(number, removal): (usize, Removal)| Entry {
        client: client(number),
        start: removal.start.cast_signed(),
        end: end_of(removal),
        asked: Asked::Delete,
        returned: match removal.is_optional && removal.end.is_some() {
            true => Returned::Undecided,
            false => Returned::InDoubt,
        },
    };
    let flushed = removals(world, key).into_iter().enumerate().map(entry);
    history.iter().copied().chain(flushed).collect()
}

/// Adds the deletes of the keys of an object by flushes to its history.
pub fn as_flushed_object(
    world: &World,
    keys: &[Vec<u8>],
    history: &[ObjectEntry],
) -> Vec<ObjectEntry> {
    let mut all = history.to_vec();
    for (at, key) in keys.iter().enumerate() {
        let updates: Arc<[Update]> = [Update::new(at, Change::Delete)].into();
        for removal in removals(world, key) {
            let to = removal.end.map_or(i64::MAX, wall_millis);
            all.push(ObjectEntry {
                client: client(all.len()),
                start: removal.start.cast_signed(),
                end: end_of(removal),
                wall: Span { from: wall_millis(removal.start), to },
                is_read: false,
                shows_deadline: false,
                shows_version: true,
                updates: Arc::clone(&updates),
                answer: match removal.is_optional && removal.end.is_some() {
                    true => Answer::Undecided,
                    false => Answer::InDoubt,
                },
            });
        }
    }
    all
}

/// Returns whether a flush may have removed keys between two times.
pub fn may_remove(world: &World, from: u64, to: u64) -> bool {
    world.flushes.all().any(|flush| flush.start <= to && flush.end.is_none_or(|end| end >= from))
}
