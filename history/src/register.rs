//! The linearizability check of one key: its operations must be those of a single register.

use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation, check_operations, check_operations_timeout};

/// A value. It is unique: no two writes of a run write the same value.
pub type Value = u64;

/// The requested operation on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Reads the value.
    Read,
    /// Writes this value.
    Write(Value),
    /// Deletes the key.
    Delete,
    /// Writes `new` if the current value is `old` (`None`: if the key is absent).
    Swap {
        /// The expected value.
        old: Option<Value>,
        /// The new value.
        new: Value,
    },
}

/// The response to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returned {
    /// The value; `None` if the key is absent.
    Value(Option<Value>),
    /// The write was done, or its condition failed, or there was nothing to delete.
    Done {
        /// True if the operation changed the value.
        changed: bool,
    },
    /// Nothing was done: the store rejected the operation, no server could execute it, or it was settled as not done.
    Refused,
    /// Nothing was done, because the key's group has no replica left.
    Lost,
    /// The result is unknown. The operation may still take effect at any later time.
    InDoubt,
    /// The result is unknown. The write took effect before its end, or it never will.
    Undecided,
}

/// One operation of one client.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The process number. It is never reused after an operation in doubt.
    pub client: u32,
    /// The time of the beginning, in nanoseconds.
    pub start: i64,
    /// The time of the end, in nanoseconds; `i64::MAX` for an operation in doubt.
    pub end: i64,
    /// The requested operation.
    pub asked: Asked,
    /// The response.
    pub returned: Returned,
}

/// The sequential model of one key: a register.
#[derive(Clone, Debug)]
struct Register;

impl Model for Register {
    type State = Option<Value>;
    type Op = (Asked, Returned);
    type Metadata = ();

    fn init() -> Self::State {
        None
    }

    fn step(state: &Self::State, (asked, returned): &Self::Op) -> (bool, Self::State) {
        match (*asked, *returned) {
            (Asked::Read, Returned::Value(value)) => (value == *state, *state),
            (Asked::Read, _) => (true, *state),
            (_, Returned::Refused | Returned::Lost) => (true, *state),
            (Asked::Write(value), _) => (true, Some(value)),
            (Asked::Delete, Returned::Done { changed }) => (changed == state.is_some(), None),
            (Asked::Delete, _) => (true, None),
            (Asked::Swap { old, new }, Returned::Done { changed }) => {
                (changed == (*state == old), if changed { Some(new) } else { *state })
            }
            (Asked::Swap { old, new }, _) => (true, if *state == old { Some(new) } else { *state }),
        }
    }
}

/// The result of checking one key's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The history is linearizable.
    Linearizable,
    /// The history is not linearizable.
    Illegal,
    /// The search timed out; this counts as a failure too.
    Unknown,
}

/// The maximum length of a history that is checked without a time limit, in operations.
const FEW: usize = 10;
/// The time limit of a search.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Checks the history of one key.
pub fn judge(history: &[Entry]) -> Verdict {
    let undecided = |entry: &Entry| entry.returned == Returned::Undecided;
    let Some(at) = history.iter().position(undecided) else { return judge_decided(history) };
    // The history without the write is checked first, then the history with the write.
    let mut decided = history.to_vec();
    let entry = decided.remove(at);
    let verdict = judge(&decided);
    if verdict == Verdict::Linearizable || entry.asked == Asked::Read {
        return verdict;
    }
    decided.push(Entry { returned: Returned::InDoubt, ..entry });
    judge(&decided)
}

fn judge_decided(history: &[Entry]) -> Verdict {
    // A read without a response carries no information.
    let says_something =
        |entry: &&Entry| entry.asked != Asked::Read || matches!(entry.returned, Returned::Value(_));
    let operations: Vec<Operation<Register>> = history
        .iter()
        .filter(says_something)
        .map(|entry| Operation {
            client_id: Some(entry.client),
            call_time: entry.start,
            return_time: entry.end,
            op: (entry.asked, entry.returned),
            metadata: None,
        })
        .collect();
    check(&operations)
}

/// Searches for a legal order of operations.
pub(crate) fn check<M: Model + 'static>(operations: &[Operation<M>]) -> Verdict {
    // A search with a time limit needs a separate thread, which is too costly for a short history.
    let result = match operations.len() <= FEW {
        true if check_operations(operations) => CheckResult::Ok,
        true => CheckResult::Illegal,
        false => check_operations_timeout(operations, TIMEOUT),
    };
    match result {
        CheckResult::Ok => Verdict::Linearizable,
        CheckResult::Illegal => Verdict::Illegal,
        _ => Verdict::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(client: u32, start: i64, end: i64, asked: Asked, returned: Returned) -> Entry {
        Entry { client, start, end, asked, returned }
    }

    const DONE: Returned = Returned::Done { changed: true };

    fn read(client: u32, start: i64, end: i64, value: Option<Value>) -> Entry {
        entry(client, start, end, Asked::Read, Returned::Value(value))
    }

    fn write(client: u32, start: i64, end: i64, value: Value) -> Entry {
        entry(client, start, end, Asked::Write(value), DONE)
    }

    #[test]
    fn reads_that_follow_writes_are_linearizable() {
        let history = [write(1, 0, 10, 7), read(2, 11, 12, Some(7)), read(1, 1, 2, None)];
        assert_eq!(judge(&history), Verdict::Linearizable);
    }

    #[test]
    fn a_stale_read_is_illegal() {
        let history = [write(1, 0, 1, 7), write(1, 2, 3, 8), read(2, 4, 5, Some(7))];
        assert_eq!(judge(&history), Verdict::Illegal);
    }

    #[test]
    fn an_acknowledged_write_that_vanishes_is_illegal() {
        assert_eq!(judge(&[write(1, 0, 1, 7), read(2, 2, 3, None)]), Verdict::Illegal);
    }

    #[test]
    fn a_value_that_was_read_cannot_be_absent_later() {
        let in_doubt = entry(1, 0, i64::MAX, Asked::Write(7), Returned::InDoubt);
        let history = [in_doubt, read(2, 1, 2, Some(7)), read(2, 3, 4, None)];
        assert_eq!(judge(&history), Verdict::Illegal);
        assert_eq!(judge(&history[..2]), Verdict::Linearizable);
        assert_eq!(judge(&[in_doubt, read(2, 1, 2, None)]), Verdict::Linearizable);
    }

    #[test]
    fn an_undecided_write_took_effect_before_its_end_or_never() {
        let undecided = entry(1, 0, 10, Asked::Write(7), Returned::Undecided);
        for seen in [None, Some(7)] {
            let at_once = [undecided, read(2, 11, 12, seen), read(2, 13, 14, seen)];
            assert_eq!(judge(&at_once), Verdict::Linearizable);
        }
        let late = [undecided, read(2, 11, 12, None), read(2, 13, 14, Some(7))];
        assert_eq!(judge(&late), Verdict::Illegal);
    }

    #[test]
    fn a_swap_that_took_effect_twice_is_illegal() {
        let swap = |client, start, end, old, new| {
            entry(client, start, end, Asked::Swap { old, new }, DONE)
        };
        let history =
            [swap(1, 0, 1, None, 7), swap(2, 2, 3, Some(7), 8), swap(1, 4, 5, Some(7), 9)];
        assert_eq!(judge(&history), Verdict::Illegal);
    }

    #[test]
    fn a_rejected_or_lost_write_is_never_read() {
        for returned in [Returned::Refused, Returned::Lost] {
            let refused = entry(1, 2, 3, Asked::Write(8), returned);
            assert_eq!(
                judge(&[write(1, 0, 1, 7), refused, read(2, 4, 5, Some(8))]),
                Verdict::Illegal
            );
            let kept = [write(1, 0, 1, 7), refused, read(2, 4, 5, Some(7))];
            assert_eq!(judge(&kept), Verdict::Linearizable);
        }
    }

    #[test]
    fn a_failed_swap_shows_that_the_value_was_another_one() {
        let refused =
            entry(2, 2, 3, Asked::Swap { old: Some(7), new: 9 }, Returned::Done { changed: false });
        assert_eq!(judge(&[write(1, 0, 1, 7), refused]), Verdict::Illegal);
        assert_eq!(judge(&[write(1, 0, 1, 8), refused]), Verdict::Linearizable);
    }
}
