//! The linearizability check of an object: one key with a value, a version and a deadline, or a small family of keys
//! that one request may change together.
//!
//! ```text
//!   request = updates of keys of the object, all or none    a read = one update that checks and returns the value
//!
//!   state   = every set of entries that agrees with the responses so far
//!                 |
//!                 +- a deadline is known, or a range if the primary's clock decided it
//!                 +- an entry may count as absent once a clock may have reached its deadline, and must once all have
//! ```
//!
//! The wall clock of a server differs from true time by at most a bound. So the clock that decides an operation shows a
//! time between the operation's start minus the bound and its end plus the bound. An entry that one operation finds
//! absent is absent for all later ones, until it is written again.
//!
//! Deletes in doubt, such as those of a flush that was not completed, may be many. They are part of the state: each may
//! take effect before any later request that reads its key. As operations of their own, they would have to be ordered
//! in every possible way.

use std::collections::BTreeMap;
use std::sync::Arc;

use porcupine_rs::{Model, Operation};
use serde::{Deserialize, Serialize};

use crate::record::Reason;
use crate::register::{Verdict, check};

mod evaluation;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod text;

use evaluation::successors;
pub use record::ObjectRecord;
use state::State;

/// The maximum number of keys of an object.
pub const KEYS_MAX: usize = 3;

/// A value.
pub type Text = Arc<[u8]>;

/// The change of an update; keys are numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Changes nothing.
    Check,
    /// Changes nothing, and returns at most `most` bytes of the value: from this offset on, counted from the start of
    /// the value or from its end.
    CheckPart {
        /// The offset.
        from: usize,
        /// The maximum number of bytes.
        most: usize,
        /// True if the offset counts from the end of the value.
        from_end: bool,
    },
    /// Sets the value.
    Put(#[serde(with = "text")] Text),
    /// Removes the entry.
    Delete,
    /// Adds to a decimal number; an absent entry counts as 0.
    Add(i64),
    /// Adds this number of quarters to a decimal number with a fraction; an absent entry counts as 0. The numbers must
    /// be below 2^50, where sums of quarters are exact.
    AddQuarters(i32),
    /// Appends to the value; an absent entry counts as empty.
    Append(#[serde(with = "text")] Text),
    /// Overwrites the value from this offset on; a gap is filled with zero bytes.
    SetRange(usize, #[serde(with = "text")] Text),
    /// Moves the entry to another key.
    Rename(usize),
    /// Copies the entry to another key.
    Copy(usize),
    /// Changes only the deadline.
    SetExpiry,
}

impl Change {
    /// Returns whether the change stores an entry under the key of its update.
    pub(crate) fn stores(&self) -> bool {
        match self {
            Change::Put(_)
            | Change::Add(_)
            | Change::AddQuarters(_)
            | Change::Append(_)
            | Change::SetRange(..)
            | Change::SetExpiry => true,
            Change::Check
            | Change::CheckPart { .. }
            | Change::Delete
            | Change::Rename(_)
            | Change::Copy(_) => false,
        }
    }
}

/// The condition of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Guard {
    /// No condition.
    Always,
    /// The key does not exist.
    Absent,
    /// The key exists.
    Present,
    /// The entry has this version.
    Version(u64),
    /// The entry has this value.
    Value(#[serde(with = "text")] Text),
    /// The entry exists and has no deadline.
    NoDeadline,
    /// The entry exists and has a deadline.
    HasDeadline,
    /// The new deadline is later than that of the entry.
    Later,
    /// The new deadline is earlier than that of the entry.
    Earlier,
}

/// The deadline of an entry after an update, in milliseconds of wall time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// No deadline.
    Never,
    /// The deadline that the entry has.
    Keep,
    /// This time after the execution.
    After(i64),
    /// This time.
    At(i64),
    /// The deadline that the entry has; if it has none, this time after the execution.
    KeepOrAfter(i64),
}

/// One update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The key.
    pub key: usize,
    /// The change.
    pub change: Change,
    /// The condition.
    pub guard: Guard,
    /// The deadline.
    pub lifetime: Lifetime,
    /// True if the response has the value: that before a PUT or DELETE, and that after any other change.
    pub returns_value: bool,
    /// True if the other updates are executed even if this one cannot be.
    pub is_optional: bool,
}

impl Update {
    /// Creates an update without condition. A PUT removes the deadline; any other change keeps it.
    pub fn new(key: usize, change: Change) -> Update {
        let lifetime = match change {
            Change::Put(_) => Lifetime::Never,
            _ => Lifetime::Keep,
        };
        let guard = Guard::Always;
        Update { key, change, guard, lifetime, returns_value: false, is_optional: false }
    }
}

/// The outcome of an update or of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was executed.
    Done,
    /// There was no entry.
    NotFound,
    /// The condition did not hold.
    Conflict,
    /// The value is no number.
    NotANumber,
    /// The sum is too large.
    Overflow,
}

/// The response to one update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The outcome.
    pub outcome: Outcome,
    /// The value.
    #[serde(with = "text::option")]
    pub value: Option<Text>,
    /// The deadline, in milliseconds of wall time.
    pub deadline: Option<i64>,
}

/// The response to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Every update was executed, or skipped because it is optional; or the only update was not executed.
    Shown {
        /// The version of the write, or that of the entry if nothing was changed; 0 for an absent entry.
        version: u64,
        /// The responses to the updates.
        updates: Vec<Shown>,
    },
    /// An update was not executed, so none was, and the response shows nothing else.
    Failed {
        /// The index of the update.
        index: usize,
        /// Its outcome.
        outcome: Outcome,
    },
    /// The result is unknown. The request may still take effect at any later time.
    InDoubt,
    /// The result is unknown. The request took effect before its end, or it never will.
    Undecided,
    /// Nothing was done, for this reason.
    Refused(Reason),
}

/// One operation on an object.
#[derive(Clone, Debug)]
pub struct ObjectEntry {
    /// The process number.
    pub client: u32,
    /// The time of the beginning, in nanoseconds.
    pub start: i64,
    /// The time of the end, in nanoseconds; `i64::MAX` for an operation in doubt.
    pub end: i64,
    /// The true wall time of the operation, from its beginning to its end, in milliseconds.
    pub wall: Span,
    /// True for a read: it is never in the log, and it shows a deadline only if `shows_deadline`.
    pub is_read: bool,
    /// False for a read whose response has no deadline.
    pub shows_deadline: bool,
    /// False for an operation whose response has no version.
    pub shows_version: bool,
    /// The updates.
    pub updates: Arc<[Update]>,
    /// The response.
    pub answer: Answer,
}

impl ObjectEntry {
    /// Describes the operation in one line.
    pub fn in_words(&self) -> String {
        let text = |text: &Text| String::from_utf8_lossy(text).into_owned();
        let update = |update: &Update| {
            let Update { key, change, guard, lifetime, returns_value, is_optional } = update;
            let change = match change {
                Change::Put(value) => format!("Put({})", text(value)),
                Change::Append(bytes) => format!("Append({})", text(bytes)),
                Change::SetRange(offset, bytes) => format!("SetRange({offset}, {})", text(bytes)),
                other => format!("{other:?}"),
            };
            let guard = match guard {
                Guard::Value(value) => format!("Value({})", text(value)),
                other => format!("{other:?}"),
            };
            let flags = match (returns_value, is_optional) {
                (false, false) => "",
                (true, false) => " returns",
                (false, true) => " optional",
                (true, true) => " returns optional",
            };
            format!("key {key} {change} if {guard} for {lifetime:?}{flags}")
        };
        let answer = match &self.answer {
            Answer::Shown { version, updates } => {
                let shown = |shown: &Shown| {
                    let value = shown.value.as_ref().map(text);
                    format!("{:?} {value:?} {:?}", shown.outcome, shown.deadline)
                };
                let updates: Vec<String> = updates.iter().map(shown).collect();
                format!("version {version}: {}", updates.join("; "))
            }
            other => format!("{other:?}"),
        };
        let updates: Vec<String> = self.updates.iter().map(update).collect();
        let kind = if self.is_read { "read" } else { "update" };
        let Span { from, to } = self.wall;
        let (start, end) = (self.start, self.end);
        let updates = updates.join("; ");
        format!(
            "client {} {start}-{end} wall {from}-{to} {kind} [{updates}] -> {answer}",
            self.client
        )
    }
}

/// A range of times in milliseconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span {
    /// The earliest time.
    pub from: i64,
    /// The latest time.
    pub to: i64,
}

impl Span {
    /// Creates the range of one time.
    pub fn at(time: i64) -> Span {
        Span { from: time, to: time }
    }

    fn plus(self, millis: i64) -> Span {
        Span { from: self.from.saturating_add(millis), to: self.to.saturating_add(millis) }
    }

    fn widened(self, by: i64) -> Span {
        Span { from: self.from.saturating_sub(by), to: self.to.saturating_add(by) }
    }

    fn contains(self, time: i64) -> bool {
        (self.from..=self.to).contains(&time)
    }
}

/// A step of the model.
#[derive(Debug)]
enum Event {
    /// A request.
    Request(ObjectEntry),
    /// The start of this number of deletes in doubt of each key.
    Deletes([usize; KEYS_MAX]),
}

/// The sequential model of an object.
#[derive(Clone, Debug)]
struct Object;

impl Model for Object {
    type State = State;
    type Op = Arc<Event>;
    type Metadata = ();

    fn init() -> State {
        State::empty()
    }

    fn step(state: &State, event: &Arc<Event>) -> (bool, State) {
        let next = match &**event {
            Event::Request(entry) => {
                State::of(state.all().flat_map(|before| successors(before, entry)))
            }
            Event::Deletes(counts) => State::of(state.all().cloned().map(|mut after| {
                after.deletes.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
                after
            })),
        };
        (!next.is_impossible(), next)
    }
}

/// Returns a copy of the history of an object with one impossible response: the last read that found an entry returns a
/// value that was never written. `None` if no read found an entry. It tests the checker.
pub fn corrupted_object(history: &[ObjectEntry]) -> Option<Vec<ObjectEntry>> {
    let mut copy = history.to_vec();
    let reads = copy.iter_mut().filter(|entry| entry.is_read);
    let values = reads.filter_map(|entry| match &mut entry.answer {
        Answer::Shown { updates, .. } => Some((entry.end, updates.first_mut()?.value.as_mut()?)),
        _ => None,
    });
    let (_, value) = values.max_by_key(|(end, _)| *end)?;
    *value = Text::from(&b"never written"[..]);
    Some(copy)
}

/// Checks the history of an object. The clock of each server differs from true wall time by at most `bound`
/// milliseconds.
pub fn judge_object(history: &[ObjectEntry], bound: i64) -> Verdict {
    let undecided = |entry: &ObjectEntry| entry.answer == Answer::Undecided;
    if let Some(at) = history.iter().position(undecided) {
        // The history without the request is checked first, then the history with it.
        let mut decided = history.to_vec();
        let entry = decided.remove(at);
        let verdict = judge_object(&decided, bound);
        if verdict == Verdict::Linearizable || entry.is_read {
            return verdict;
        }
        decided.push(ObjectEntry { answer: Answer::InDoubt, ..entry });
        return judge_object(&decided, bound);
    }
    let says_something = |entry: &&ObjectEntry| match entry.answer {
        Answer::Refused(_) => false,
        Answer::InDoubt => !entry.is_read,
        _ => true,
    };
    let operation = |client, call_time, return_time, event| {
        let op = Arc::new(event);
        Operation { client_id: Some(client), call_time, return_time, op, metadata: None }
    };
    let mut operations: Vec<Operation<Object>> = Vec::new();
    // Deletes that begin at the same time are one event: several would have to be ordered in every possible way.
    let mut deletes: BTreeMap<i64, (u32, [usize; KEYS_MAX])> = BTreeMap::new();
    for entry in history.iter().filter(says_something) {
        if let Some(key) = deleted_in_doubt(entry) {
            let (_, counts) = deletes.entry(entry.start).or_insert((entry.client, [0; KEYS_MAX]));
            counts[key] += 1;
            continue;
        }
        let event =
            Event::Request(ObjectEntry { wall: entry.wall.widened(bound), ..entry.clone() });
        operations.push(operation(entry.client, entry.start, entry.end, event));
    }
    operations.extend(
        deletes.into_iter().map(|(start, (client, counts))| {
            operation(client, start, start, Event::Deletes(counts))
        }),
    );
    check(&operations)
}

/// Returns the key of a delete that may take effect at any time after its start, or never.
fn deleted_in_doubt(entry: &ObjectEntry) -> Option<usize> {
    let [update] = &entry.updates[..] else { return None };
    let is_in_doubt = entry.answer == Answer::InDoubt && entry.end == i64::MAX;
    let is_delete = update.change == Change::Delete && update.guard == Guard::Always;
    (is_in_doubt && is_delete).then_some(update.key)
}
