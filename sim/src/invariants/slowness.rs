//! Slowness: no server loses its place because of pauses, stalls or load alone (invariants 20 and 28).
//!
//! | only faults of the run | invariant |
//! |---|---|
//! | all servers are paused together | [`sleepers_stay`] |
//! | one server after the other stalls, or cannot allocate memory | [`slow_are_spared`] |
//! | clients send more than servers can serve, or do not read | [`load_moves_no_view`] |

use std::collections::BTreeMap;

use kv_core::cluster::DownCause;
use kv_core::replica::Replica;
use kv_history::Returned;
use kv_protocol::ids::GroupId;
use kv_protocol::limits::{LEASE, MAX_OUTPUT_BYTES};
use kv_protocol::{FailureTimeout, Member, Peer, View};

use crate::client::{DEADLINE, Flight};
use crate::invariants::Violation;
use crate::world::World;

/// The longest stall that is no fault, whatever the clock drift, in nanoseconds.
#[allow(clippy::cast_possible_truncation)] // Half a second.
pub const NO_FAULT: u64 = 4 * (LEASE.as_millis() / 5) as u64 * 1_000_000;
/// The maximum time from the end of a fault to a view that is its consequence, in nanoseconds: a complaint, probes,
/// and two stores.
const FOLLOWS_WITHIN: u64 = 3_000_000_000;
/// The maximum duration of an inquiry after a fault, in nanoseconds: a complaint, and twice the timeout of a probe.
const JUDGED_WITHIN: u64 = 800_000_000;
/// The number of failures after which a process may be replaced.
const FAILURES: u32 = 3;
/// The memory of a connection besides its bounded output, in bytes: the response that exceeded the bound, and the
/// input.
const BESIDE_OUTPUT: usize = 256 << 10;
/// The maximum error of a process's shared memory count per shard, in bytes.
const UNREPORTED: usize = 64 << 10;

/// Injected slowness, and its consequences.
#[derive(Debug, Default)]
pub struct Slowness {
    /// The end of a place's last fault, by place.
    faults: BTreeMap<u16, u64>,
    /// The number of times that a process was dropped as a candidate, or as a secondary that did not keep up.
    failures: BTreeMap<Member, u32>,
}

impl Slowness {
    /// Records a fault of a place that lasts until `until`.
    pub fn note_fault(&mut self, place: u16, until: u64) {
        let end = self.faults.entry(place).or_default();
        *end = (*end).max(until);
    }

    /// Returns whether another place has a fault, or had one that may still be under inquiry.
    pub fn is_judged(&self, place: u16, now: u64) -> bool {
        let mut others = self.faults.iter().filter(|(other, _)| **other != place);
        others.any(|(_, until)| now < until + JUDGED_WITHIN)
    }

    /// Counts a failure of a process.
    pub fn note_failure(&mut self, member: Member) {
        *self.failures.entry(member).or_default() += 1;
    }
}

/// Checks that no view changes if all servers are only paused together, however often (invariant 20). A paused server
/// receives nothing from the others, but this does not show that they have failed.
///
/// The function is called for each new view, with the view before it.
pub fn sleepers_stay(world: &World, before: &View, view: &View) -> Result<(), Violation> {
    if !world.config.stands || before.version.0 == 0 {
        return Ok(());
    }
    let words = format_args!("servers were only paused, but {view:?} follows {before:?}");
    Err(Violation::of(view.group, 20, words))
}

/// Checks that a coordinator that is paused together with all servers suspects none of them (invariant 20).
///
/// The function is called when the coordinator decides that a server is down.
pub fn sleepers_suspect_none(
    world: &World,
    member: Member,
    cause: &DownCause,
) -> Result<(), Violation> {
    if !world.config.coordinator_stands || *cause != DownCause::Silent {
        return Ok(());
    }
    Err(Violation::new(
        20,
        format!("{member} is judged silent by a coordinator that was paused as well"),
    ))
}

/// Checks runs in which servers are only slow, one after the other (invariant 20): no view changes without a fault, and
/// no server loses its place because of another one.
///
/// A fault is exhausted memory, or the stall of an executor for longer than four fifths of the failure timeout. Because
/// of clock drift, such a stall may exceed the timeout. No process dies in such runs. So there is no second fault, a
/// process is replaced only after several failures, and every operation ends within its deadline.
///
/// The function is called for each new view, with the view before it.
pub fn slow_are_spared(world: &mut World, before: &View, view: &View) -> Result<(), Violation> {
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

/// Returns the violation if the coordinator counts a second fault in a run in which servers are only slow
/// (invariant 20).
pub fn slow_are_no_second_fault(world: &World) -> Result<(), Violation> {
    match world.config.slow {
        true => Err(Violation::new(20, "slow servers are taken for a second fault".to_owned())),
        false => Ok(()),
    }
}

/// Checks that a process is replaced only after several failures, in a run in which servers are only slow
/// (invariant 20).
pub fn slow_are_not_replaced(world: &World, member: Member) -> Result<(), Violation> {
    let failures = world.slowness.failures.get(&member).copied().unwrap_or(0);
    match world.config.slow && failures < FAILURES {
        true => Err(Violation::new(20, format!("{member} is alive, but is replaced"))),
        false => Ok(()),
    }
}

/// Returns the violation of a candidate that was dropped as silent although its messages had arrived (invariant 20).
pub fn candidate_went_unread(group: GroupId) -> Violation {
    let words = format_args!("a candidate was dropped although its messages had arrived, unread");
    Violation::of(group, 20, words)
}

/// Checks that an operation ended within its deadline, in a run in which servers are only slow (invariant 20).
pub fn slow_still_serve(
    world: &World,
    flight: &Flight,
    responded: Returned,
) -> Result<(), Violation> {
    let is_late = responded == Returned::InDoubt && world.now >= flight.start + DEADLINE;
    if !world.config.slow || !is_late {
        return Ok(());
    }
    let (group, shard) = flight.place;
    let words =
        format_args!("an operation of shard {shard} was not served although servers are only slow");
    Err(Violation::of(group, 20, words))
}

/// Checks that the load of clients does not change a view, or delay the messages of the other holder for half a lease
/// (invariant 28).
///
/// The function is called for a replica while load is the only fault.
pub fn load_moves_no_view(
    world: &World,
    process: usize,
    replica: &Replica,
) -> Result<(), Violation> {
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
        let words = format_args!(
            "under load, no message of the other holder for {gap} ms (limit {most} ms)"
        );
        return Err(Violation::of(group, 28, words));
    }
    Ok(())
}

/// Returns the violation of a connection that was closed although its client reads all responses (invariant 28).
pub fn reader_is_closed() -> Violation {
    let words = "the connection of a client that reads was closed under load".to_owned();
    Violation::new(28, words)
}

/// Checks that the memory of a process's connections is bounded under load (invariant 28).
pub fn connections_are_bounded(world: &World, process: usize) -> Result<(), Violation> {
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
