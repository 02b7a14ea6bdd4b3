//! The minimum of injected events in a run. A run with fewer events fails, because it does not test enough.

use std::collections::BTreeMap;

use crate::objects::kinds::{KINDS, SCANS};
use crate::objects::verdict::Tallies;

/// The number of faults in a full run. In a full run every kind must have occurred.
pub(crate) const FULL: u64 = 200;
/// The number of ordinary days in a full run. In a full run every kind must have occurred.
pub(crate) const FULL_ORDINARY: u64 = 100;
/// The number of faults below which the share of those with a write in flight is not significant.
const FEW: u64 = 10;

/// The number of operations from which on every kind of operation must have been done.
const MANY_OPERATIONS: u64 = 10_000;

/// Returns a description of the kinds of operations on objects of which none was done.
pub(crate) fn missed_kinds(tallies: &Tallies) -> Option<String> {
    let ran: u64 = KINDS.iter().filter_map(|kind| tallies.get(kind)).map(|tally| tally.ran).sum();
    let was_done = |kind: &&&str| tallies.get(**kind).is_some_and(|tally| tally.ok > 0);
    let kinds = || KINDS.iter().chain(&SCANS);
    if ran < MANY_OPERATIONS && kinds().any(|kind| was_done(&kind)) {
        return None;
    }
    let missed: Vec<&str> = kinds().filter(|kind| !was_done(kind)).copied().collect();
    (!missed.is_empty()).then(|| format!("operations that never succeeded: {}", missed.join("; ")))
}

/// The minimum number and kinds of events of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Demand {
    /// The word for the counted events, such as "faults".
    pub(crate) what: &'static str,
    pub(crate) faults: u64,
    /// The number of events of a full run.
    pub(crate) full: u64,
    /// The kinds that must each have occurred in a full run.
    pub(crate) kinds: Vec<String>,
    /// True if at least half of the faults must have struck while a write was in flight.
    pub(crate) in_flight: bool,
}

impl Demand {
    /// Returns a description of each requirement that a run has not met. `struck` has, for each kind, the number of
    /// events and the number of those with a write in flight.
    pub(crate) fn missed(&self, struck: &BTreeMap<String, (u64, u64)>) -> Vec<String> {
        let faults: u64 = struck.values().map(|(count, _)| count).sum();
        let in_flight: u64 = struck.values().map(|(_, count)| count).sum();
        let mut missed = Vec::new();
        if faults < self.faults {
            missed.push(format!(
                "only {faults} {} were injected, at least {} are required",
                self.what, self.faults
            ));
        }
        let never: Vec<&str> = self
            .kinds
            .iter()
            .filter(|kind| faults >= self.full && !struck.contains_key(*kind))
            .map(|kind| &kind[..])
            .collect();
        if !never.is_empty() {
            missed.push(format!("kinds that never occurred: {}", never.join("; ")));
        }
        if self.in_flight && faults >= FEW && in_flight * 2 < faults {
            missed.push(format!(
                "only {in_flight} of {faults} {} struck while a write was in flight",
                self.what
            ));
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::verdict::Tally;

    fn demand(faults: u64) -> Demand {
        let kinds = vec!["kill".into(), "cut".into()];
        Demand { what: "faults", faults, full: FULL, kinds, in_flight: true }
    }

    fn misses(faults: u64, struck: &[(&str, u64, u64)]) -> usize {
        let struck = struck.iter().map(|(name, count, aimed)| ((*name).into(), (*count, *aimed)));
        demand(faults).missed(&struck.collect()).len()
    }

    #[test]
    fn every_kind_of_operation_must_have_succeeded_in_a_long_run() {
        let of = |kinds: &[&'static str], ok| -> Tallies {
            let tally = Tally { ran: MANY_OPERATIONS, ok, ..Tally::default() };
            kinds.iter().map(|kind| (*kind, tally)).collect()
        };
        let all: Vec<&str> = KINDS.iter().chain(&SCANS).copied().collect();
        assert_eq!(missed_kinds(&of(&all, 1)), None);
        assert!(missed_kinds(&of(&all[1..], 1)).is_some_and(|words| words.contains(all[0])));
        assert!(missed_kinds(&of(&all, 0)).is_some());
        assert!(missed_kinds(&Tallies::new()).is_some(), "a run without operations");
        let few = Tally { ran: 10, ok: 1, ..Tally::default() };
        assert_eq!(missed_kinds(&[(KINDS[0], few)].into()), None);
    }

    #[test]
    fn too_few_faults_are_not_enough() {
        assert_eq!(misses(14, &[("kill", 13, 13)]), 1);
        assert_eq!(misses(14, &[("kill", 14, 14)]), 0);
    }

    #[test]
    fn in_a_full_run_every_kind_must_have_struck() {
        assert_eq!(misses(1, &[("kill", 200, 200)]), 1);
        assert_eq!(misses(1, &[("kill", 199, 199), ("cut", 1, 1)]), 0);
        assert_eq!(misses(1, &[("kill", 199, 199)]), 0, "too short to demand it");
    }

    #[test]
    fn half_of_the_faults_must_meet_a_write_in_flight() {
        assert_eq!(misses(1, &[("kill", 20, 9)]), 1);
        assert_eq!(misses(1, &[("kill", 20, 10)]), 0);
        assert_eq!(misses(1, &[("kill", 9, 0)]), 0, "too few to demand it");
    }
}
