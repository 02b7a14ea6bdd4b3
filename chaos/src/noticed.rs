//! The effects of the faults on clients: stalls, and operations that were not served.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_history::{Asked, Kind, Operation, Operations, Reason};
use kv_protocol::GroupId;
use kv_protocol::placement::Placement;

use crate::strike::Struck;

/// The longest time for which an operation can be in flight.
const DEADLINE_NS: i64 = 5_000_000_000;

/// Returns whether a write to a fault's groups was in flight when the fault struck.
pub(crate) fn was_in_flight(operations: &Operations, placement: Placement, fault: &Struck) -> bool {
    operations.all().any(|(key, operation)| {
        operation.asked != Asked::Read
            && operation.start <= fault.time_ns
            && fault.time_ns < end_of(operation)
            && fault.groups.contains(&group_of(placement, key).0)
    })
}

/// Returns, for each operation, its start and the time from its start until an operation of the same place was served.
/// Operations for which `place_of` returns `None` are ignored.
pub(crate) fn stalls<P: Ord + Copy>(
    operations: &Operations,
    place_of: impl Fn(&str) -> Option<P>,
) -> Vec<(i64, i64)> {
    let mut places: BTreeMap<P, (Vec<i64>, Vec<i64>)> = BTreeMap::new();
    for (key, list) in &operations.by_key {
        let Some(place) = place_of(key) else { continue };
        let (starts, ends) = places.entry(place).or_default();
        for operation in list {
            starts.push(operation.start);
            if is_served(operation) {
                ends.push(operation.end);
            }
        }
    }
    let mut stalls = Vec::new();
    for (starts, ends) in places.values_mut() {
        ends.sort_unstable();
        for start in starts {
            let next = ends.partition_point(|end| end < start);
            // Operations after the last success are omitted, because the end of the round interrupted them.
            stalls.extend(ends.get(next).map(|end| (*start, end - *start)));
        }
    }
    stalls
}

/// Returns the longest of the stalls that end within an interval; zero if there is none.
pub(crate) fn longest(stalls: &[(i64, i64)], from: i64, to: i64) -> Duration {
    let those = stalls.iter().filter(|(start, length)| (from..to).contains(&(start + length)));
    let longest = those.map(|(_, length)| *length).max().unwrap_or(0);
    Duration::from_nanos(u64::try_from(longest).unwrap_or(0))
}

/// Describes the faults whose stall was longer than their limit.
pub(crate) fn too_long(struck: &[Struck], stalls: &[Duration]) -> Vec<String> {
    let those = struck.iter().zip(stalls).filter(|(fault, stall)| **stall > fault.limit);
    those
        .map(|(fault, stall)| {
            format!(
                "{}, server {}: clients waited for {} ms, but the limit is {} ms",
                fault.name,
                fault.victim,
                stall.as_millis(),
                fault.limit.as_millis()
            )
        })
        .collect()
}

/// Returns the operations on the groups that satisfy `is_watched` that were not served, or whose result is unknown.
pub(crate) fn unserved(
    operations: &Operations,
    placement: Placement,
    is_watched: impl Fn(GroupId) -> bool,
) -> Vec<(&str, &Operation)> {
    let all = operations.all();
    all.filter(|(key, one)| !is_served(one) && is_watched(group_of(placement, key))).collect()
}

/// Returns the operations that were not served, or whose result is unknown, although at most one server was struck. The
/// deadline of an operation, five seconds, is longer than every recovery. Operations on the victim's own group are
/// exempt while only clients are cut off from the victim. All operations are exempt while the cluster is stopped or has
/// no room.
pub(crate) fn not_carried_through<'a>(
    operations: &'a Operations,
    placement: Placement,
    struck: &[Struck],
) -> Vec<(&'a str, &'a Operation)> {
    let mut bad = unserved(operations, placement, |_| true);
    bad.retain(|(key, operation)| {
        let group = group_of(placement, key);
        !struck.iter().any(|fault| {
            let is_between = |until: Option<i64>| {
                until.is_some_and(|until| {
                    operation.start < until && fault.began_ns < end_of(operation)
                })
            };
            // Faults begin when every group is at home, so the victim is the primary of the group with its id.
            group.0 == fault.victim && is_between(fault.apart_until_ns)
                || is_between(fault.away_until_ns)
        })
    });
    bad
}

/// Returns whether no operation succeeded, so the round tested nothing.
pub(crate) fn is_idle(operations: &Operations) -> bool {
    !operations.all().any(|(_, operation)| operation.kind == Kind::Ok)
}

/// Returns whether an operation got a definite response, which may be a failed condition or an absent key.
pub(crate) fn is_served(operation: &Operation) -> bool {
    let is_response = matches!(operation.error, None | Some(Reason::Conflict | Reason::NotFound));
    is_response && operation.kind != Kind::Info
}

/// Returns the time at which the operation ended. For an operation in doubt, this is the end of its deadline.
fn end_of(operation: &Operation) -> i64 {
    operation.end.min(operation.start.saturating_add(DEADLINE_NS))
}

fn group_of(placement: Placement, key: &str) -> GroupId {
    placement.locate(key.as_bytes()).0
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_history::{Function, Payload, Record};

    fn line(process: u32, kind: Kind, time_ns: i64) -> Record {
        Record {
            process,
            kind,
            f: Function::Write,
            key: "k".into(),
            value: Payload::One(Some(u64::from(process))),
            time_ns,
            version: None,
            error: None,
        }
    }

    fn placement() -> Placement {
        Placement::new(3, 1)
    }

    fn own_group() -> u16 {
        group_of(placement(), "k").0
    }

    fn struck(time_ns: i64, group: u16, apart_until_ns: Option<i64>) -> Struck {
        Struck {
            name: String::new(),
            victim: group,
            time_ns,
            began_ns: time_ns,
            groups: vec![group],
            limit: Duration::ZERO,
            apart_until_ns,
            away_until_ns: None,
        }
    }

    #[test]
    fn a_stall_ends_with_the_first_success_of_any_client() {
        let records = [
            line(1, Kind::Invoke, 0),
            line(1, Kind::Ok, 10),
            line(2, Kind::Invoke, 20),
            line(3, Kind::Invoke, 100),
            line(3, Kind::Ok, 150),
            line(2, Kind::Ok, 900),
        ];
        let operations = Operations::pair(&records).unwrap();
        let stalls = stalls(&operations, |_| Some(()));
        assert_eq!(longest(&stalls, i64::MIN, i64::MAX), Duration::from_nanos(130));
        assert_eq!(longest(&stalls, 0, 150), Duration::from_nanos(10));
        assert_eq!(longest(&stalls, 150, i64::MAX), Duration::from_nanos(130));
        assert_eq!(longest(&stalls, 151, i64::MAX), Duration::ZERO);
    }

    #[test]
    fn a_stall_beyond_the_limit_of_its_fault_is_reported() {
        let limit = Duration::from_millis(500);
        let faults = [1, 2].map(|at| Struck { limit, ..struck(at, 0, None) });
        let stalls = [limit, limit + Duration::from_millis(1)];
        let told = too_long(&faults, &stalls);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("501 ms"), "{told:?}");
    }

    #[test]
    fn a_write_is_in_flight_between_its_beginning_and_its_end() {
        let operations =
            Operations::pair(&[line(1, Kind::Invoke, 10), line(1, Kind::Ok, 20)]).unwrap();
        let group = own_group();
        let at =
            |time_ns, group| was_in_flight(&operations, placement(), &struck(time_ns, group, None));
        assert!(at(10, group) && at(19, group));
        assert!(!at(9, group) && !at(20, group) && !at(15, group + 1));
    }

    #[test]
    fn a_round_in_which_nothing_was_acknowledged_is_idle() {
        let is_idle_after = |kind| {
            is_idle(&Operations::pair(&[line(1, Kind::Invoke, 1), line(1, kind, 2)]).unwrap())
        };
        assert!(is_idle_after(Kind::Fail) && is_idle_after(Kind::Info));
        assert!(!is_idle_after(Kind::Ok));
    }

    /// Returns whether it is an error that a write from 10 to 20 was not served.
    fn is_blamed(kind: Kind, error: Reason, struck: Struck) -> bool {
        let mut end = line(1, kind, 20);
        end.error = Some(error);
        let operations = Operations::pair(&[line(1, Kind::Invoke, 10), end]).unwrap();
        !not_carried_through(&operations, placement(), &[struck]).is_empty()
    }

    #[test]
    fn a_write_that_is_not_served_while_one_server_is_struck_is_an_error() {
        let killed = || struck(5, own_group(), None);
        assert!(is_blamed(Kind::Fail, Reason::Unavailable, killed()));
        assert!(is_blamed(Kind::Fail, Reason::Refused, killed()));
        assert!(is_blamed(Kind::Info, Reason::Timeout, killed()));
        assert!(!is_blamed(Kind::Fail, Reason::Conflict, killed()));
    }

    #[test]
    fn only_clients_that_are_cut_off_from_the_victim_itself_are_exempt() {
        let blamed = |cut| is_blamed(Kind::Fail, Reason::Unavailable, cut);
        assert!(!blamed(struck(15, own_group(), Some(18))));
        assert!(!blamed(struck(5, own_group(), Some(11))));
        assert!(blamed(struck(5, own_group(), Some(10))), "the link was whole when it began");
        assert!(blamed(struck(20, own_group(), Some(30))), "it was not cut before the end");
        assert!(blamed(struck(15, own_group() + 1, Some(18))), "another server was cut off");
    }

    #[test]
    fn operations_on_every_group_are_exempt_while_the_cluster_is_away() {
        let away =
            |until| Struck { away_until_ns: Some(until), ..struck(5, own_group() + 1, None) };
        assert!(!is_blamed(Kind::Fail, Reason::Unavailable, away(11)));
        assert!(is_blamed(Kind::Fail, Reason::Unavailable, away(10)), "it was back before");
    }
}
