//! The operations of a history, by key. Each pairs the line of its beginning with the line of its end, if there is one.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::record::{Function, Kind, Payload, Reason, Record};
use crate::register::{Asked, Entry, Returned, Verdict, judge};

/// One operation.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// The operation as input of [`judge`]; `None` if it certainly changed nothing and observed nothing.
    pub entry: Option<Entry>,
    /// The requested operation.
    pub asked: Asked,
    /// The time of its beginning.
    pub start: i64,
    /// The time of its end; `i64::MAX` if it never ended or its result is unknown.
    pub end: i64,
    /// The kind of its end; [`Kind::Info`] if it never ended.
    pub kind: Kind,
    /// The reason why the operation was not done or its result is unknown; `None` if it was done or the history gives
    /// no reason.
    pub error: Option<Reason>,
    /// The version in its response; `None` if the history has none.
    pub version: Option<u64>,
}

/// The operations of a history.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    /// The operations on each key, in the order of their beginnings.
    pub by_key: BTreeMap<String, Vec<Operation>>,
}

/// The error if the lines do not form a valid history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid history: process {process} at {time_ns} ns: {reason}; check its recorder")]
pub struct HistoryError {
    /// The process of the inconsistent lines.
    pub process: u32,
    /// The time of the inconsistent line.
    pub time_ns: i64,
    /// The inconsistency.
    pub reason: &'static str,
}

impl Operations {
    /// Pairs beginnings and ends. The lines of one process must be in chronological order.
    ///
    /// # Errors
    /// [`HistoryError`] if a process has two operations in flight at once, or continues after an operation in doubt.
    /// Also if an end does not match its beginning, or the values do not fit the operation.
    pub fn pair(records: &[Record]) -> Result<Operations, HistoryError> {
        let mut open: HashMap<u32, &Record> = HashMap::new();
        let mut retired: HashSet<u32> = HashSet::new();
        let mut operations = Operations::default();
        for record in records {
            let Record { process, time_ns, .. } = *record;
            let refuse = |reason| Err(HistoryError { process, time_ns, reason });
            if retired.contains(&process) {
                return refuse("it continues after an operation in doubt");
            }
            if record.kind == Kind::Invoke {
                if open.insert(process, record).is_some() {
                    return refuse("it begins an operation before its previous one has ended");
                }
                continue;
            }
            let Some(begin) = open.remove(&process) else {
                return refuse("it ends an operation that it has not begun");
            };
            if (begin.f, &begin.key) != (record.f, &record.key) || time_ns < begin.time_ns {
                return refuse("the function, key or time of the end does not match the beginning");
            }
            if record.kind == Kind::Info {
                retired.insert(process);
            }
            let Some(operation) = join(begin, Some(record)) else {
                return refuse("the values do not fit the operation");
            };
            operations.add(&begin.key, operation);
        }
        for begin in open.into_values() {
            let Some(operation) = join(begin, None) else {
                let Record { process, time_ns, .. } = *begin;
                let reason = "the values do not fit the operation";
                return Err(HistoryError { process, time_ns, reason });
            };
            operations.add(&begin.key, operation);
        }
        for list in operations.by_key.values_mut() {
            list.sort_by_key(|operation| operation.start);
        }
        Ok(operations)
    }

    fn add(&mut self, key: &str, operation: Operation) {
        match self.by_key.get_mut(key) {
            Some(list) => list.push(operation),
            None => drop(self.by_key.insert(key.to_owned(), vec![operation])),
        }
    }

    /// Iterates over the operations of all keys.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Operation)> {
        self.by_key.iter().flat_map(|(key, list)| list.iter().map(move |one| (&key[..], one)))
    }

    /// Returns the entries of one key for [`judge`]; none for an unknown key.
    pub fn entries(&self, key: &str) -> Vec<Entry> {
        let list = self.by_key.get(key).map_or(&[][..], |list| list);
        list.iter().filter_map(|operation| operation.entry).collect()
    }

    /// Returns the keys whose history is not linearizable, or for which the check timed out.
    pub fn judge(&self) -> Vec<(&str, Verdict)> {
        let judged = self.by_key.keys().map(|key| (&key[..], judge(&self.entries(key))));
        judged.filter(|(_, verdict)| *verdict != Verdict::Linearizable).collect()
    }
}

fn join(begin: &Record, end: Option<&Record>) -> Option<Operation> {
    let asked = match (begin.f, begin.value) {
        (Function::Read, Payload::One(_)) => Asked::Read,
        (Function::Delete, Payload::One(None)) => Asked::Delete,
        (Function::Write, Payload::One(Some(value))) => Asked::Write(value),
        (Function::Cas, Payload::Pair([old, Some(new)])) => Asked::Swap { old, new },
        _ => return None,
    };
    let kind = end.map_or(Kind::Info, |end| end.kind);
    let error = end.and_then(|end| end.error);
    // A failed operation that the store did not evaluate had no effect and carries no information.
    let returned = match (kind, asked, error) {
        (Kind::Info, _, _) => Some(Returned::InDoubt),
        (Kind::Ok, Asked::Read, _) => match end?.value {
            Payload::One(value) => Some(Returned::Value(value)),
            Payload::Pair(_) => return None,
        },
        (Kind::Ok, _, _) => Some(Returned::Done { changed: true }),
        (_, Asked::Swap { .. }, Some(Reason::Conflict))
        | (_, Asked::Delete, Some(Reason::NotFound)) => Some(Returned::Done { changed: false }),
        _ => None,
    };
    let start = begin.time_ns;
    let end_ns = match kind {
        Kind::Info => i64::MAX,
        _ => end?.time_ns,
    };
    let entry = returned.map(|returned| Entry {
        client: begin.process,
        start,
        end: end_ns,
        asked,
        returned,
    });
    let version = end.and_then(|end| end.version);
    Some(Operation { entry, asked, start, end: end_ns, kind, error, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(process: u32, kind: Kind, f: Function, value: Payload, time_ns: i64) -> Record {
        Record { process, kind, f, key: "k".into(), value, time_ns, version: None, error: None }
    }

    const ONE: Payload = Payload::One(Some(1));
    const NONE: Payload = Payload::One(None);

    #[test]
    fn a_write_and_a_read_that_sees_it_are_linearizable() {
        let records = [
            line(1, Kind::Invoke, Function::Write, ONE, 1),
            line(2, Kind::Invoke, Function::Read, NONE, 2),
            line(2, Kind::Ok, Function::Read, ONE, 3),
            line(1, Kind::Ok, Function::Write, ONE, 4),
        ];
        let operations = Operations::pair(&records).unwrap();
        assert_eq!(operations.judge(), []);
        assert_eq!(operations.all().count(), 2);
    }

    #[test]
    fn a_lost_write_is_found() {
        let records = [
            line(1, Kind::Invoke, Function::Write, ONE, 1),
            line(1, Kind::Ok, Function::Write, ONE, 2),
            line(1, Kind::Invoke, Function::Read, NONE, 3),
            line(1, Kind::Ok, Function::Read, NONE, 4),
        ];
        let operations = Operations::pair(&records).unwrap();
        assert_eq!(operations.judge(), [("k", Verdict::Illegal)]);
    }

    #[test]
    fn an_operation_that_never_ended_may_have_been_done_or_not() {
        for seen in [ONE, NONE] {
            let records = [
                line(1, Kind::Invoke, Function::Write, ONE, 1),
                line(2, Kind::Invoke, Function::Read, NONE, 3),
                line(2, Kind::Ok, Function::Read, seen, 4),
            ];
            assert_eq!(Operations::pair(&records).unwrap().judge(), []);
        }
    }

    #[test]
    fn a_failed_operation_counts_only_if_the_store_evaluated_it() {
        let delete = |error| {
            let mut end = line(2, Kind::Fail, Function::Delete, NONE, 4);
            end.error = Some(error);
            let records = [
                line(1, Kind::Invoke, Function::Write, ONE, 1),
                line(1, Kind::Ok, Function::Write, ONE, 2),
                line(2, Kind::Invoke, Function::Delete, NONE, 3),
                end,
            ];
            Operations::pair(&records).unwrap().judge().len()
        };
        assert_eq!(delete(Reason::NotFound), 1);
        assert_eq!(delete(Reason::Unavailable), 0);
    }

    #[test]
    fn a_process_that_continues_after_an_operation_in_doubt_is_rejected() {
        let records = [
            line(1, Kind::Invoke, Function::Write, ONE, 1),
            line(1, Kind::Info, Function::Write, ONE, 2),
            line(1, Kind::Invoke, Function::Read, NONE, 3),
        ];
        assert!(Operations::pair(&records).unwrap_err().reason.contains("doubt"));
        let twice = [records[0].clone(), records[0].clone()];
        assert!(Operations::pair(&twice).is_err());
    }
}
