//! 20: where servers are only slow, one after the other, no view changes without a fault, and no server loses its
//! place for another.
//!
//! A fault is an executor that stands for longer than the failure timeout, or memory that has run out. The drift of
//! the clocks makes that four fifths of it in true time. Nobody dies there: so there is no second fault, a process
//! is replaced only when it has failed several times, and every operation ends within its deadline.

use std::collections::BTreeMap;

use kv_history::Answered;
use kv_protocol::limits::LEASE;
use kv_protocol::{Member, Peer, View};

use crate::client::{DEADLINE, Flight};
use crate::invariants::Violation;
use crate::world::World;

/// A stall that is shorter is no fault, whatever the clocks drift, in nanoseconds.
#[allow(clippy::cast_possible_truncation)] // Half a second.
pub const NO_FAULT: u64 = 4 * (LEASE.as_millis() / 5) as u64 * 1_000_000;
/// A view that follows from a fault comes at most so long after its end: complaint, probes, two stores.
const FOLLOWS_WITHIN: u64 = 3_000_000_000;
/// The longest time for which an inquiry goes on after a fault: a complaint, and the timeout of its probes, twice.
const JUDGED_WITHIN: u64 = 800_000_000;
/// A process may be replaced after so many failures.
const FAILURES: u32 = 3;

/// What was done to servers, and what became of them.
#[derive(Debug, Default)]
pub struct Slowness {
    /// By place: when its last fault ended.
    faults: BTreeMap<u16, u64>,
    /// By process: how often it was dropped as candidate, or as one that could not follow.
    failures: BTreeMap<Member, u32>,
}

impl Slowness {
    /// A place suffers a fault until then.
    pub fn note_fault(&mut self, place: u16, until: u64) {
        let end = self.faults.entry(place).or_default();
        *end = (*end).max(until);
    }

    /// Returns whether a place other than this one suffers a fault, or did a moment ago.
    pub fn is_judged(&self, place: u16, now: u64) -> bool {
        let mut others = self.faults.iter().filter(|(other, _)| **other != place);
        others.any(|(_, until)| now < until + JUDGED_WITHIN)
    }

    /// A process has failed once more.
    pub fn note_failure(&mut self, member: Member) {
        *self.failures.entry(member).or_default() += 1;
    }
}

/// A view follows another.
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
            let words = format_args!("{holder} was well, and {before:?} is followed by {view:?}");
            return Err(Violation::of(view.group, 20, words));
        }
    }
    Ok(())
}

/// The coordinator counts a second fault.
pub fn double_fault(world: &World) -> Result<(), Violation> {
    match world.config.slow {
        true => Err(Violation::new(20, "slow servers are taken for a second fault".to_owned())),
        false => Ok(()),
    }
}

/// A process is to be replaced.
pub fn is_replaced(world: &World, member: Member) -> Result<(), Violation> {
    let failures = world.slowness.failures.get(&member).copied().unwrap_or(0);
    match world.config.slow && failures < FAILURES {
        true => Err(Violation::new(20, format!("{member} lives and is replaced"))),
        false => Ok(()),
    }
}

/// An operation has ended for its client.
pub fn ended(world: &World, flight: &Flight, answered: Answered) -> Result<(), Violation> {
    let is_late = answered == Answered::InDoubt && world.now >= flight.start + DEADLINE;
    if !world.config.slow || !is_late {
        return Ok(());
    }
    let (group, shard) = flight.place;
    let words =
        format_args!("an operation of shard {shard} was not served, and servers are only slow");
    Err(Violation::of(group, 20, words))
}
