//! Evictions from the point of view of clients: an entry may disappear at any time, but no older value returns.
//!
//! ```text
//!   history of a key --> without what shows that the key is absent --> the check of a register
//! ```

use kv_history::{Asked, Entry, Returned, Value};

/// The value that stands for a deleted key. No client writes it.
const DELETED: Value = Value::MAX;

/// Returns the history of a register that is linearizable if and only if the given history is that of a register whose
/// value may disappear at any time.
///
/// - A read that found no value, and a write whose condition failed, prove nothing.
/// - A write on condition that the key is absent may succeed at any time, like one without a condition.
/// - A delete may find nothing to delete at any time. Afterwards no older value may be read. So it is a write of a value
///   that no read returns.
pub fn as_cached(history: &[Entry]) -> Vec<Entry> {
    let cached = |entry: &Entry| {
        let asked = match (entry.asked, entry.returned) {
            (Asked::Read, Returned::Value(Some(_))) => Asked::Read,
            (Asked::Read, _) | (Asked::Swap { .. }, Returned::Done { changed: false }) => {
                return None;
            }
            (Asked::Swap { old: None, new }, _) => Asked::Write(new),
            (Asked::Delete, _) => Asked::Write(DELETED),
            (asked, _) => asked,
        };
        let returned = match (asked, entry.returned) {
            (Asked::Write(_), Returned::Done { .. }) => Returned::Done { changed: true },
            (_, returned) => returned,
        };
        Some(Entry { asked, returned, ..*entry })
    };
    history.iter().filter_map(cached).collect()
}

#[cfg(test)]
mod tests {
    use kv_history::{Verdict, judge};

    use super::*;

    /// Operations of one client, one after the other.
    fn verdict(operations: &[(Asked, Returned)]) -> Verdict {
        let entry = |(n, &(asked, returned)): (usize, &(Asked, Returned))| {
            let start = i64::try_from(n).unwrap() * 10;
            Entry { client: 1, start, end: start + 5, asked, returned }
        };
        judge(&as_cached(&operations.iter().enumerate().map(entry).collect::<Vec<_>>()))
    }

    const DONE: Returned = Returned::Done { changed: true };
    const NOT_DONE: Returned = Returned::Done { changed: false };

    #[test]
    fn a_value_may_disappear_at_any_time() {
        let operations = [
            (Asked::Write(1), DONE),
            (Asked::Read, Returned::Value(Some(1))),
            (Asked::Read, Returned::Value(None)),
            (Asked::Delete, NOT_DONE),
            (Asked::Swap { old: None, new: 2 }, DONE),
            (Asked::Swap { old: Some(2), new: 3 }, NOT_DONE),
            (Asked::Read, Returned::Value(None)),
        ];
        assert_eq!(verdict(&operations), Verdict::Linearizable);
    }

    #[test]
    fn no_older_value_returns() {
        let older = |write| {
            let operations =
                [(Asked::Write(1), DONE), write, (Asked::Read, Returned::Value(Some(1)))];
            verdict(&operations)
        };
        for write in [
            (Asked::Write(2), DONE),
            (Asked::Delete, DONE),
            (Asked::Delete, NOT_DONE),
            (Asked::Swap { old: Some(1), new: 2 }, DONE),
        ] {
            assert_ne!(older(write), Verdict::Linearizable, "{write:?}");
        }
        assert_eq!(older((Asked::Write(2), Returned::Refused)), Verdict::Linearizable);
    }
}
