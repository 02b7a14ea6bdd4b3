//! Counting of effects: each write takes effect once, and each version is of one write.
//!
//! A register alone does not see everything: a write that is executed twice in a row leaves the value
//! that it should. The versions tell. A value that was seen under two versions was written twice; a
//! version that two writes of a place were answered with was given twice. And the last number of a place
//! lies between how many writes took one for certain and how many may have: a write that the store has
//! looked at takes one, also when its condition was refused or there was nothing to delete (the answer is
//! kept under that number for a retry). A write that was settled as not done takes one for the record that
//! says so. A write that the store has not seen takes none.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use crate::operations::Operations;
use crate::record::{Kind, Reason};
use crate::register::{Answered, Asked, Value};

/// What a history says of one place (a group's shard).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Writes that the store has answered, refused conditions and settled doubts among them: each took a number.
    pub answered: u64,
    /// These, and those in doubt: no other write can have taken a number.
    pub possible: u64,
    /// The highest version that anybody was told.
    pub highest: u64,
}

/// An effect that came twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Twice {
    /// One value under two versions.
    #[error("key {key:?}: the one write of {value} was seen as version {first} and as {second}")]
    Write {
        /// The key.
        key: String,
        /// The value.
        value: Value,
        /// The lower version.
        first: u64,
        /// The higher one.
        second: u64,
    },
    /// Two writes under one version.
    #[error("version {version} is of a write of {first:?} and of one of {second:?}")]
    Version {
        /// The version.
        version: u64,
        /// Key, and value unless it was a delete.
        first: (String, Option<Value>),
        /// The other.
        second: (String, Option<Value>),
    },
}

/// Counts the effects at every place.
///
/// # Errors
/// [`Twice`]: something took effect twice.
pub fn effects<P: Hash + Eq + Copy>(
    operations: &Operations,
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
            found.answered += u64::from(is_possible && operation.kind != Kind::Info);
            let (Some(version), Some(entry)) = (operation.version, operation.entry) else {
                continue;
            };
            found.highest = found.highest.max(version);
            let value = match (operation.asked, entry.answered) {
                (Asked::Read, Answered::Value(Some(value))) => Some(value),
                (Asked::Write(value) | Asked::Swap { new: value, .. }, _) => Some(value),
                (Asked::Delete, Answered::Done { changed: true }) => None,
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
            // Each write takes a version of its own; two deletes of a key look alike otherwise.
            let is_taken = is_write && !written.insert((place, version));
            if before != now || is_taken {
                let owned = |(key, value): (&str, Option<Value>)| (key.to_owned(), value);
                return Err(Twice::Version { version, first: owned(before), second: owned(now) });
            }
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Function, Payload, Record};

    /// Operations one after the other: what, of which key, with which value, answered with which version.
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
        effects(&history(list), |_| ()).map(|places| places[&()])
    }

    use Function::{Cas, Delete, Read, Write};

    #[test]
    fn writes_and_what_was_read_of_them_are_counted() {
        let found = count(&[
            (Write, "a", Some(1), 1),
            (Read, "a", Some(1), 1),
            (Write, "b", Some(2), 2),
            (Delete, "a", None, 3),
        ]);
        assert_eq!(found, Ok(Effects { answered: 3, possible: 3, highest: 3 }));
    }

    /// What one write counts that ended like this.
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
        let found = effects(&Operations::pair(&records).unwrap(), |_| ()).unwrap()[&()];
        (found.answered, found.possible)
    }

    #[test]
    fn a_write_that_nobody_has_looked_at_takes_no_number() {
        for reason in [Reason::Lost, Reason::Unavailable, Reason::Refused] {
            for f in [Write, Cas, Delete] {
                assert_eq!(one(f, Kind::Fail, Some(reason)), (0, 0), "{f:?} {reason:?}");
            }
        }
    }

    #[test]
    fn a_refused_condition_takes_a_number() {
        assert_eq!(one(Cas, Kind::Fail, Some(Reason::Conflict)), (1, 1));
        assert_eq!(one(Delete, Kind::Fail, Some(Reason::NotFound)), (1, 1));
    }

    #[test]
    fn a_write_that_was_settled_as_not_done_takes_the_number_of_the_record_that_says_so() {
        for f in [Write, Cas, Delete] {
            assert_eq!(one(f, Kind::Fail, Some(Reason::NotDone)), (1, 1), "{f:?}");
        }
    }

    #[test]
    fn a_write_in_doubt_may_have_taken_a_number() {
        assert_eq!(one(Write, Kind::Info, Some(Reason::InDoubt)), (0, 1));
    }

    #[test]
    fn a_write_that_was_executed_again_is_found_by_its_version() {
        let found = count(&[(Write, "a", Some(1), 1), (Read, "a", Some(1), 2)]);
        let key = "a".to_owned();
        assert_eq!(found, Err(Twice::Write { key, value: 1, first: 1, second: 2 }));
    }

    #[test]
    fn a_version_that_was_given_again_is_found() {
        assert!(count(&[(Write, "a", Some(1), 1), (Write, "b", Some(2), 1)]).is_err());
        assert!(count(&[(Write, "a", Some(1), 1), (Delete, "a", None, 1)]).is_err());
        assert!(count(&[(Delete, "a", None, 1), (Delete, "a", None, 1)]).is_err());
    }
}
