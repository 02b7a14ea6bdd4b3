//! A part of the exhaustive search (docs/recovery.md): all sequences of events of one group within small bounds.

use std::time::Duration;

use kv_sim::exhaustive::scope::{self, Scope};
use kv_sim::exhaustive::search::{End, Found, Limits, search};
use kv_sim::exhaustive::step::Judged;

const LIMITS: Limits =
    Limits { depth: 100, states: 200_000, time: Duration::from_secs(300), is_audited: false };

fn named(name: &str) -> Scope {
    scope::all().into_iter().find(|scope| scope.name == name).expect("there is such a scope")
}

fn visited(name: &str, limits: Limits) -> Found {
    search(&named(name), Judged::Everything, limits, |_, _, _| {})
}

/// Checks every invariant in small scopes. The state counts are lower bounds: with fewer states, some event no longer
/// occurs.
#[test]
fn every_promise_holds_in_every_state_of_the_small_scopes() {
    for (name, states) in [
        ("writes", 6_000),
        ("deaths", 15_000),
        ("copy and delete", 2_500),
        ("copy that breaks", 8_000),
        ("copy, then a death", 60_000),
        ("terms", 100_000),
    ] {
        let found = visited(name, LIMITS);
        assert_eq!(found.broken, None, "{name}");
        assert_eq!(found.end, End::Exhausted, "{name}");
        assert!(found.states >= states, "{name}: only {} states", found.states);
    }
}

#[test]
fn machines_with_equal_descriptions_behave_equally() {
    for name in ["writes", "copy and delete", "copy that breaks"] {
        let found = visited(name, Limits { is_audited: true, ..LIMITS });
        assert_eq!(found.broken, None, "{name}");
        assert!(found.audits > 100, "{name}: only {} steps were compared", found.audits);
    }
}

#[cfg(feature = "mutations")]
mod mutations {
    use kv_core::mutations::{self, Mutation};

    use super::*;

    fn steps_to(mutation: Mutation, name: &str) -> (u8, usize) {
        mutations::open(mutation);
        let found = visited(name, LIMITS);
        mutations::close();
        let (violation, way) = found.broken.expect("a rule is left out");
        (violation.invariant, way.len())
    }

    #[test]
    fn a_mutation_is_detected_by_its_shortest_trace() {
        assert_eq!(steps_to(Mutation::OlderEntryApplied, "copy"), (11, 10));
        assert_eq!(steps_to(Mutation::TombstonesForgotten, "copy and delete"), (11, 10));
        assert_eq!(steps_to(Mutation::PromoteWithoutGrace, "leases"), (1, 11));
        assert_eq!(steps_to(Mutation::ResponseBeforeAck, "writes"), (6, 1));
        assert_eq!(steps_to(Mutation::CandidateNotWiped, "copy again"), (11, 15));
    }
}
