//! Writes from the point of view of clients: each executes at most once, in one order, in its session.

use std::collections::HashMap;

use kv_history::object::judge_object;
use kv_history::{Verdict, judge};
use kv_protocol::Eviction;
use kv_protocol::client_message::Status;
use kv_protocol::ids::{ClientId, GroupId};

use crate::checks::{Place, Question};
use crate::client::Flight;
use crate::invariants::Violation;
use crate::invariants::evictions::as_cached;
use crate::invariants::flushes::{as_flushed, as_flushed_object};
use crate::server::SentResponse;
use crate::world::World;

/// The write that has a sequence number, by place and sequence number.
pub type Numbers = HashMap<(Place, u64), Question>;

/// The definite response to each write, as status, version, and hash of its value and deadline.
pub type Responses = HashMap<Question, (Status, u64, u64)>;

/// The latest start of a write with a final response, by session. The write was executed at this time or later. A retry
/// does not change the start.
pub type Used = HashMap<(Place, ClientId), u64>;

/// Checks that a sequence number belongs to one write forever (invariant 4).
///
/// The function is called for a write that was acknowledged with OK under this sequence number.
pub fn numbers_are_unique(
    numbers: &mut Numbers,
    place: Place,
    version: u64,
    question: Question,
) -> Result<(), Violation> {
    let known = *numbers.entry((place, version)).or_insert(question);
    if known == question {
        return Ok(());
    }
    let words = format_args!(
        "shard {}: sequence number {version} belongs to the writes {known:?} and {question:?}",
        place.1
    );
    Err(Violation::of(place.0, 4, words))
}

/// Checks that the version of a key never decreases, for all clients together (invariant 12).
///
/// The function is called for an operation that ended with a version. `flight.floor` is the newest version in any
/// response before the operation began.
pub fn newest_wins(flight: &Flight, version: u64) -> Result<(), Violation> {
    let (group, _): (GroupId, _) = flight.place;
    if version >= flight.floor {
        return Ok(());
    }
    let words = format_args!(
        "key {:?} is at version {version} after it was at {}",
        String::from_utf8_lossy(&flight.key),
        flight.floor
    );
    Err(Violation::of(group, 12, words))
}

/// Checks that each write of a session executes at most once, and that all responses to it are equal (invariant
/// 13).
///
/// The function is called for a definite response to a write.
pub fn once_only(
    responses: &mut Responses,
    place: Place,
    question: Question,
    responded: &SentResponse,
) -> Result<(), Violation> {
    let now = (responded.status, responded.version.0, responded.rest);
    let first = *responses.entry(question).or_insert(now);
    if first == now {
        return Ok(());
    }
    let words = format_args!("write {question:?} got {first:?} before, and {now:?} now");
    Err(Violation::of(place.0, 13, words))
}

/// Checks that every object behaves as one object for all clients together (invariant 16).
///
/// The function checks the history of every object. Wall clocks differ from true time by at most the bound of the run,
/// plus the error of a reading that is used later.
pub fn objects_linearizable(world: &World) -> Result<(), Violation> {
    let placement = world.config.placement();
    let bound = world.config.wall_bound + world.wall_slack;
    for (key, history) in &world.workload.objects.histories {
        let entries = as_flushed_object(world, &history.keys, &history.entries);
        let verdict = judge_object(&entries, bound);
        if verdict != Verdict::Linearizable {
            let name = String::from_utf8_lossy(key);
            let mut words = format!(
                "object {name:?} fails the linearizability check ({verdict:?}, clocks within {bound} ms):"
            );
            let mut entries = entries;
            entries.sort_by_key(|entry| entry.start);
            for entry in &entries {
                words += &format!("\n    {}", entry.in_words());
            }
            let (group, _) = placement.locate(key);
            return Err(Violation::of(group, 16, format_args!("{words}")));
        }
    }
    Ok(())
}

/// Checks that every key behaves as one register for all clients together (invariant 16, and with it 13 and 17).
///
/// The function checks the history of every key. If entries may be evicted, a key may be absent at any time. Objects are
/// not checked then. Flushes are deletes.
pub fn linearizable(world: &World) -> Result<(), Violation> {
    let policy = world.config.bounds.eviction;
    if policy == Eviction::None {
        objects_linearizable(world)?;
    }
    let placement = world.config.placement();
    for (key, history) in &world.workload.histories {
        // Entries without a deadline are evicted only under this policy, and those of registers have none.
        let verdict = match policy {
            Eviction::Lfu => judge(&as_cached(history)),
            Eviction::None | Eviction::Ttl => judge(&as_flushed(world, key, history)),
        };
        if verdict != Verdict::Linearizable {
            let mut words = format!(
                "key {:?} fails the linearizability check ({verdict:?}):",
                String::from_utf8_lossy(key)
            );
            let mut history = as_flushed(world, key, history);
            history.sort_by_key(|entry| entry.start);
            for entry in &history {
                words += &format!("\n    {entry:?}");
            }
            let (group, _) = placement.locate(key);
            return Err(Violation::of(group, 16, format_args!("{words}")));
        }
    }
    Ok(())
}

/// Records the final response to a write.
pub fn note_use(used: &mut Used, world: &World, place: Place, client: ClientId, asked_at: u64) {
    // If machines were suspended since then, the recorded time is too early, never too late.
    let at = asked_at.saturating_sub(world.slept);
    let last = used.entry((place, client)).or_default();
    *last = (*last).max(at);
}

/// Checks that a recently used session is kept wherever its group is served: none of its writes gets SESSION_EXPIRED
/// (invariant 23). Time in which all machines were suspended does not count.
///
/// The function is called for a SESSION_EXPIRED response to a client's write in flight.
pub fn sessions_are_kept(
    used: &Used,
    world: &World,
    place: Place,
    client: ClientId,
) -> Result<(), Violation> {
    let Some(last) = used.get(&(place, client)) else { return Ok(()) };
    let ago = awake(world).saturating_sub(*last);
    let idle = world.config.bounds.session_idle.as_nanos();
    // The clocks of the servers drift, so only four fifths of the idle timeout are required.
    if u128::from(ago) * 10 >= idle * 8 {
        return Ok(());
    }
    let words = format_args!("a session expired although it wrote {} ms before", ago / 1_000_000);
    Err(Violation::of(place.0, 23, words))
}

/// Returns the total time in which the machines were not suspended.
fn awake(world: &World) -> u64 {
    world.now.saturating_sub(world.slept)
}
