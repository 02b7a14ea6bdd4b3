//! The check that each write takes effect at most once and that each version belongs to one write.
//!
//! The linearizability check does not detect every fault: a write that is executed twice in a row leaves the expected
//! value. The versions show the fault. If a value has two versions, it was written twice. If two writes of a place
//! have the same version in their responses, the version was assigned twice.
//!
//! The highest version of a place lies between the number of writes that certainly took a version and the number of
//! writes that may have taken one. A write takes a version if the store evaluated it, even if its condition failed
//! or there was nothing to delete: the response is recorded under this version for retries. A write settled as not
//! done takes a version for the record of the settlement. A write that never reached the store takes none.
//!
//! A primary also takes versions for writes that no client has requested: those that remove expired entries. Each of them
//! removes at least one entry, to which a client has given a deadline, or which is a copy of such an entry. So the number
//! of such requests is an upper bound ([`Effects::expiring`]). Evictions have no such bound; a cluster with `--eviction`
//! must not be checked.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::object::{Answer, ObjectRecord};
use crate::operations::Operations;
use crate::record::{Kind, Reason};
use crate::register::{Asked, Returned, Value};

/// Counts of the effects at one place (one shard of a group).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The number of writes that certainly took a version: those with a definite response, including failed
    /// conditions and writes settled as not done.
    pub returned: u64,
    /// The number of writes that may have taken a version: those in `returned` and those in doubt.
    pub possible: u64,
    /// The maximum number of versions that the primary took by itself to remove expired entries.
    pub expiring: u64,
    /// The highest version in any response; 0 if there is none.
    pub highest: u64,
}

/// A value with two versions, or a version with two writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Twice {
    /// One value under two versions.
    #[error("key {key:?}: value {value}, written once, has versions {first} and {second}")]
    Write {
        /// The key.
        key: String,
        /// The value.
        value: Value,
        /// The lower version.
        first: u64,
        /// The higher version.
        second: u64,
    },
    /// Two writes under one version.
    #[error("version {version} belongs to two writes: {first} and {second}")]
    Version {
        /// The version.
        version: u64,
        /// One write.
        first: String,
        /// The other write.
        second: String,
    },
}

/// Counts the effects of the operations on registers and on objects at every place.
///
/// # Errors
/// [`Twice`] if a value has two versions, or if two writes have the same version.
pub fn effects<P: Hash + Eq + Copy>(
    operations: &Operations,
    objects: &[ObjectRecord],
    place_of: impl Fn(&str) -> P,
) -> Result<HashMap<P, Effects>, Twice> {
    let mut places: HashMap<P, Effects> = HashMap::new();
    let mut versions: HashMap<(P, u64), (&str, Option<Value>)> = HashMap::new();
    let mut written: HashSet<(P, u64)> = HashSet::new();
    for (key, list) in &operations.by_key {
        let place = place_of(key);
        let found = places.entry(place).or_default();
        let mut seen: HashMap<Value, u64> = HashMap::new();
        for operation in list {
            let is_write = operation.asked != Asked::Read;
            let is_settled = operation.error == Some(Reason::NotDone);
            let is_possible = is_write && (operation.entry.is_some() || is_settled);
            found.possible += u64::from(is_possible);
            found.returned += u64::from(is_possible && operation.kind != Kind::Info);
            let (Some(version), Some(entry)) = (operation.version, operation.entry) else {
                continue;
            };
            found.highest = found.highest.max(version);
            let value = match (operation.asked, entry.returned) {
                (Asked::Read, Returned::Value(Some(value))) => Some(value),
                (Asked::Write(value) | Asked::Swap { new: value, .. }, _) => Some(value),
                (Asked::Delete, Returned::Done { changed: true }) => None,
                _ => continue,
            };
            if let Some(value) = value {
                let before = *seen.entry(value).or_insert(version);
                if before != version {
                    let (first, second) = (before.min(version), before.max(version));
                    return Err(Twice::Write { key: key.clone(), value, first, second });
                }
            }
            let now = (&key[..], value);
            let before = *versions.entry((place, version)).or_insert(now);
            // Each write takes a version of its own. Without this check, two deletes of one key with the same
            // version would not be distinguished.
            let is_taken = is_write && !written.insert((place, version));
            if before != now || is_taken {
                let [first, second] = [before, now].map(in_words);
                return Err(Twice::Version { version, first, second });
            }
        }
    }
    let mut of_objects: HashMap<(P, u64), String> = HashMap::new();
    for record in objects {
        let Some(key) = record.keys.first() else { continue };
        let place = place_of(key);
        let found = places.entry(place).or_default();
        found.highest = found.highest.max(record.version().unwrap_or(0));
        let was_evaluated =
            !matches!(record.answer, Answer::Refused(reason) if reason != Reason::NotDone);
        if record.is_read || !was_evaluated {
            continue;
        }
        found.possible += 1;
        found.returned += u64::from(!matches!(record.answer, Answer::InDoubt | Answer::Undecided));
        found.expiring += record.expiring();
        let Some(version) = record.written_version() else { continue };
        let second = format!("a request to {key:?} at {} ns", record.start);
        let of_register = versions.get(&(place, version)).map(|before| in_words(*before));
        let before = of_objects.insert((place, version), second.clone());
        if let Some(first) = of_register.or(before) {
            return Err(Twice::Version { version, first, second });
        }
    }
    Ok(places)
}

fn in_words((key, value): (&str, Option<Value>)) -> String {
    match value {
        Some(value) => format!("value {value} of key {key:?}"),
        None => format!("the delete of key {key:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{Change, Lifetime, Outcome, Shown, Span, Update};
    use crate::record::{Function, Payload, Record};

    /// Builds a history of consecutive operations. Each is given as its function, key, value, and the version in
    /// the response.
    fn history(list: &[(Function, &str, Option<Value>, u64)]) -> Operations {
        let mut records = Vec::new();
        for (at, (f, key, value, version)) in list.iter().enumerate() {
            let time = i64::try_from(at).unwrap() * 10;
            let record = |kind, time_ns, version| Record {
                process: 1,
                kind,
                f: *f,
                key: (*key).into(),
                value: Payload::One(*value),
                time_ns,
                version,
                error: None,
            };
            records.push(record(Kind::Invoke, time, None));
            records.push(record(Kind::Ok, time + 1, Some(*version)));
        }
        Operations::pair(&records).unwrap()
    }

    fn count(list: &[(Function, &str, Option<Value>, u64)]) -> Result<Effects, Twice> {
        effects(&history(list), &[], |_| ()).map(|places| places[&()])
    }

    use Function::{Cas, Delete, Read, Write};

    #[test]
    fn writes_and_the_versions_read_of_them_are_counted() {
        let found = count(&[
            (Write, "a", Some(1), 1),
            (Read, "a", Some(1), 1),
            (Write, "b", Some(2), 2),
            (Delete, "a", None, 3),
        ]);
        assert_eq!(found, Ok(Effects { returned: 3, possible: 3, expiring: 0, highest: 3 }));
    }

    /// Returns `(returned, possible)` for a single write that ended with this kind and reason.
    fn one(f: Function, kind: Kind, error: Option<Reason>) -> (u64, u64) {
        let asked = match f {
            Cas => Payload::Pair([Some(1), Some(2)]),
            Delete => Payload::One(None),
            _ => Payload::One(Some(2)),
        };
        let record = |kind, time_ns, error| Record {
            process: 1,
            kind,
            f,
            key: "a".into(),
            value: asked,
            time_ns,
            version: None,
            error,
        };
        let records = [record(Kind::Invoke, 0, None), record(kind, 1, error)];
        let found = effects(&Operations::pair(&records).unwrap(), &[], |_| ()).unwrap()[&()];
        (found.returned, found.possible)
    }

    #[test]
    fn a_write_that_the_store_did_not_evaluate_takes_no_version() {
        for reason in [Reason::Lost, Reason::Unavailable, Reason::Refused] {
            for f in [Write, Cas, Delete] {
                assert_eq!(one(f, Kind::Fail, Some(reason)), (0, 0), "{f:?} {reason:?}");
            }
        }
    }

    #[test]
    fn a_failed_condition_takes_a_version() {
        assert_eq!(one(Cas, Kind::Fail, Some(Reason::Conflict)), (1, 1));
        assert_eq!(one(Delete, Kind::Fail, Some(Reason::NotFound)), (1, 1));
    }

    #[test]
    fn a_write_settled_as_not_done_takes_a_version_for_its_record() {
        for f in [Write, Cas, Delete] {
            assert_eq!(one(f, Kind::Fail, Some(Reason::NotDone)), (1, 1), "{f:?}");
        }
    }

    #[test]
    fn a_write_in_doubt_may_have_taken_a_version() {
        assert_eq!(one(Write, Kind::Info, Some(Reason::InDoubt)), (0, 1));
    }

    #[test]
    fn a_write_executed_twice_is_detected_by_its_versions() {
        let found = count(&[(Write, "a", Some(1), 1), (Read, "a", Some(1), 2)]);
        let key = "a".to_owned();
        assert_eq!(found, Err(Twice::Write { key, value: 1, first: 1, second: 2 }));
    }

    #[test]
    fn a_version_assigned_twice_is_detected() {
        assert!(count(&[(Write, "a", Some(1), 1), (Write, "b", Some(2), 1)]).is_err());
        assert!(count(&[(Write, "a", Some(1), 1), (Delete, "a", None, 1)]).is_err());
        assert!(count(&[(Delete, "a", None, 1), (Delete, "a", None, 1)]).is_err());
    }

    /// Creates an ADD with a deadline that ended with this response.
    fn add(answer: Answer) -> ObjectRecord {
        let lifetime = Lifetime::After(5);
        ObjectRecord {
            keys: vec!["n".to_owned()],
            client: 1,
            start: 0,
            end: 1,
            wall: Span::at(0),
            is_read: false,
            shows_deadline: true,
            updates: vec![Update { lifetime, ..Update::new(0, Change::Add(1)) }],
            answer,
        }
    }

    fn done(version: u64) -> Answer {
        let updates = vec![Shown { outcome: Outcome::Done, value: None, deadline: None }];
        Answer::Shown { version, updates }
    }

    fn of_objects(objects: &[ObjectRecord]) -> Result<Effects, Twice> {
        let written = history(&[(Write, "a", Some(1), 1)]);
        effects(&written, objects, |_| ()).map(|places| places[&()])
    }

    #[test]
    fn each_request_with_a_deadline_permits_one_write_of_the_primary() {
        let requests =
            [add(done(2)), add(Answer::InDoubt), add(Answer::Refused(Reason::Unavailable))];
        let found = of_objects(&requests);
        assert_eq!(found, Ok(Effects { returned: 2, possible: 3, expiring: 2, highest: 2 }));
        let settled = of_objects(&[add(Answer::Refused(Reason::NotDone))]);
        assert_eq!(settled.map(|found| (found.returned, found.possible)), Ok((2, 2)));
    }

    #[test]
    fn a_version_of_an_update_belongs_to_no_other_write() {
        assert!(of_objects(&[add(done(2)), add(done(3))]).is_ok());
        assert!(of_objects(&[add(done(2)), add(done(2))]).is_err(), "two updates");
        assert!(of_objects(&[add(done(1))]).is_err(), "an update and a PUT");
    }
}
