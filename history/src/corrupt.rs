//! A copy of a history with one impossible response. It tests the checker: a checker that accepts the copy is
//! broken.
//!
//! ```text
//!   write u      |---|
//!   write w               |---|
//!   read                           |---|   w or newer; in the copy: u, which was overwritten before
//! ```
//!
//! Values are unique, so u cannot have been written again. If no read is suitable, the copy has a read with a value
//! that was never written.

use std::collections::HashMap;

use crate::operations::Operations;
use crate::record::{Function, Kind, Payload, Record};
use crate::register::{Asked, Value};

/// A value that no client ever writes.
const NEVER_WRITTEN: Value = Value::MAX;

/// Returns the corrupted copy and the key whose read was changed, or `None` if the history has no successful
/// read.
pub fn corrupted(records: &[Record], operations: &Operations) -> Option<(Vec<Record>, String)> {
    let mut began: HashMap<u32, i64> = HashMap::new();
    let mut fallback = None;
    // The latest suitable read is chosen, because the longest history precedes it.
    let mut best = None;
    for (at, record) in records.iter().enumerate() {
        if record.kind == Kind::Invoke {
            began.insert(record.process, record.time_ns);
            continue;
        }
        if (record.kind, record.f) != (Kind::Ok, Function::Read) {
            continue;
        }
        fallback = Some((at, NEVER_WRITTEN));
        let start = *began.get(&record.process)?;
        if let Some(old) = overwritten_before(operations, &record.key, start) {
            best = Some((at, old));
        }
    }
    let (at, value) = best.or(fallback)?;
    let mut copy = records.to_vec();
    copy[at].value = Payload::One(Some(value));
    copy[at].version = None;
    Some((copy, records[at].key.clone()))
}

/// Returns a value of a key that was certainly overwritten before `moment`, if there is one. Its write ended before a
/// later write began, and both ended before `moment`.
fn overwritten_before(operations: &Operations, key: &str, moment: i64) -> Option<Value> {
    let list = operations.by_key.get(key)?;
    let writes = || {
        list.iter().filter_map(|one| match one.asked {
            Asked::Write(value) if one.kind == Kind::Ok && one.end < moment => {
                Some((one.start, one.end, value))
            }
            _ => None,
        })
    };
    let (newest, ..) = writes().max_by_key(|(start, ..)| *start)?;
    writes().find(|(_, end, _)| *end < newest).map(|(.., value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::register::Verdict;

    fn pair(process: u32, f: Function, value: Option<Value>, time: i64) -> [Record; 2] {
        let record = |kind, time_ns| Record {
            process,
            kind,
            f,
            key: "k".into(),
            value: Payload::One(value),
            time_ns,
            version: None,
            error: None,
        };
        [record(Kind::Invoke, time), record(Kind::Ok, time + 1)]
    }

    fn rejects(records: &[Record]) -> Value {
        let operations = Operations::pair(records).unwrap();
        assert_eq!(operations.judge(), []);
        let (copy, key) = corrupted(records, &operations).unwrap();
        let verdicts = Operations::pair(&copy).unwrap();
        assert_eq!(verdicts.judge(), [(&key[..], Verdict::Illegal)]);
        let changed = copy.iter().zip(records).find(|(ours, theirs)| ours != theirs).unwrap().0;
        match changed.value {
            Payload::One(Some(value)) => value,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_read_of_an_overwritten_value_is_rejected() {
        let all = [
            pair(1, Function::Write, Some(1), 0),
            pair(1, Function::Write, Some(2), 10),
            pair(2, Function::Read, Some(2), 20),
        ];
        assert_eq!(rejects(all.as_flattened()), 1);
    }

    #[test]
    fn a_read_of_a_value_that_was_never_written_is_rejected() {
        let all = [pair(1, Function::Write, Some(1), 0), pair(2, Function::Read, Some(1), 20)];
        assert_eq!(rejects(all.as_flattened()), NEVER_WRITTEN);
    }
}
