//! 20: if servers are only slow, one after the other, no view changes without a fault, and no server loses its
//! place because of another.
//!
//! A fault is an executor that stalls for longer than the failure timeout, or exhausted memory. Because of
//! clock drift, four fifths of that timeout in true time count. No process dies in such runs. So there is no
//! second fault, a process is replaced only after several failures, and every operation ends within its
//! deadline.

use std::collections::BTreeMap;

use kv_history::Returned;
use kv_protocol::ids::GroupId;
use kv_protocol::limits::LEASE;
use kv_protocol::{Member, Peer, View};

use crate::client::{DEADLINE, Flight};
use crate::invariants::Violation;
use crate::world::World;

/// The longest stall that is no fault on any drifting clock, in nanoseconds.
#[allow(clippy::cast_possible_truncation)] // Half a second.
pub const NO_FAULT: u64 = 4 * (LEASE.as_millis() / 5) as u64 * 1_000_000;
/// The most time between the end of a fault and a view that follows from it: complaint, probes, two stores.
const FOLLOWS_WITHIN: u64 = 3_000_000_000;
/// The longest inquiry after a fault: a complaint, and the timeout of its probes, twice.
const JUDGED_WITHIN: u64 = 800_000_000;
/// The number of failures after which a process may be replaced.
const FAILURES: u32 = 3;

/// Injected slowness, and its consequences.
#[derive(Debug, Default)]
pub struct Slowness {
    /// The end of a place's last fault, by place.
    faults: BTreeMap<u16, u64>,
    /// The number of times that a process was dropped as a candidate or as a secondary that could not follow.
    failures: BTreeMap<Member, u32>,
}

impl Slowness {
    /// Records a fault of a place that lasts until `until`.
    pub fn note_fault(&mut self, place: u16, until: u64) {
        let end = self.faults.entry(place).or_default();
        *end = (*end).max(until);
    }

    /// Returns whether another place suffers a fault, or did a moment ago.
    pub fn is_judged(&self, place: u16, now: u64) -> bool {
        let mut others = self.faults.iter().filter(|(other, _)| **other != place);
        others.any(|(_, until)| now < until + JUDGED_WITHIN)
    }

    /// Counts a failure of a process.
    pub fn note_failure(&mut self, member: Member) {
        *self.failures.entry(member).or_default() += 1;
    }
}

/// Checks the view that follows another.
pub fn check(world: &mut World, before: &View, view: &View) -> Result<(), Violation> {
    if !world.config.slow {
        return Ok(());
    }
    if let Peer::Candidate(candidate) = before.peer
        && view.other() != Some(candidate)
    {
        world.slowness.note_failure(candidate);
    }
    for holder in [before.primary, before.secondary()].into_iter().flatten() {
        let stays = view.primary == Some(holder) || view.secondary() == Some(holder);
        let fault = world.slowness.faults.get(&holder.server.0).copied();
        if !stays && fault.is_none_or(|until| world.now > until + FOLLOWS_WITHIN) {
            let words = format_args!("{holder} had no fault, but {view:?} follows {before:?}");
            return Err(Violation::of(view.group, 20, words));
        }
    }
    Ok(())
}

/// Checks a second fault that the coordinator counts.
pub fn double_fault(world: &World) -> Result<(), Violation> {
    match world.config.slow {
        true => Err(Violation::new(20, "slow servers are taken for a second fault".to_owned())),
        false => Ok(()),
    }
}

/// Checks the replacement of a process.
pub fn is_replaced(world: &World, member: Member) -> Result<(), Violation> {
    let failures = world.slowness.failures.get(&member).copied().unwrap_or(0);
    match world.config.slow && failures < FAILURES {
        true => Err(Violation::new(20, format!("{member} is alive, but is replaced"))),
        false => Ok(()),
    }
}

/// Returns the violation of a candidate that was given up as silent although its messages had arrived.
pub fn unheard(group: GroupId) -> Violation {
    let words =
        format_args!("a candidate was given up whose messages had arrived and were not read");
    Violation::of(group, 20, words)
}

/// Checks an operation that has ended for its client.
pub fn ended(world: &World, flight: &Flight, responded: Returned) -> Result<(), Violation> {
    let is_late = responded == Returned::InDoubt && world.now >= flight.start + DEADLINE;
    if !world.config.slow || !is_late {
        return Ok(());
    }
    let (group, shard) = flight.place;
    let words =
        format_args!("an operation of shard {shard} was not served although servers are only slow");
    Err(Violation::of(group, 20, words))
}
