//! The evaluation of updates: the changes that a request makes, and its response, from the newest state of its keys.
//!
//! ```text
//!   newest state of each key, wall time --+
//!                                         +--> evaluate --> changes (at most one a key), response
//!   updates of the request ---------------+
//! ```
//!
//! The primary evaluates a request when it arrives, against the state that all pending writes will leave, and logs the
//! changes. So replicas only apply.
//!
//! An entry whose deadline has passed counts as absent. A client that receives a response that depends on this must never
//! receive the entry again. So the changes then remove the entry, even if the request itself changes nothing.

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Deref;

use foldhash::fast::FixedState;
use kv_protocol::change::{CHANGE_FIXED_BYTES, RetainedResponse};
use kv_protocol::client_message::Status;
use kv_protocol::ids::{SequenceNumber, WallTime};
use kv_protocol::limits::{MAX_CHANGES_BYTES, MAX_VALUE_BYTES};
use kv_protocol::update::{Action, Expiry, Precondition, Update, UpdateResult, Updates};

use smallvec::SmallVec;

use crate::number::{self, IntegerText, NumberError};
use crate::retained_bytes::RetainedBytes;

/// The newest entry of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current<'a> {
    /// The value.
    pub value: &'a [u8],
    /// The sequence number of the entry's last write; zero if an earlier update of the request has changed the entry.
    pub version: SequenceNumber,
    /// The deadline; `None` for an entry that does not expire.
    pub deadline: Option<WallTime>,
}

impl Current<'_> {
    /// Returns whether the deadline has passed.
    pub fn is_expired(&self, wall: WallTime) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= wall)
    }
}

/// The value that a change stores.
#[derive(Clone, Debug)]
pub enum NewValue<'r> {
    /// Bytes of the request.
    Requested(&'r [u8]),
    /// An integer.
    Integer(IntegerText),
    /// A value that is made from the old one.
    Made(Vec<u8>),
}

impl Deref for NewValue<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            NewValue::Requested(bytes) => bytes,
            NewValue::Integer(text) => text,
            NewValue::Made(bytes) => bytes,
        }
    }
}

impl PartialEq for NewValue<'_> {
    fn eq(&self, other: &NewValue<'_>) -> bool {
        **self == **other
    }
}

impl Eq for NewValue<'_> {}

/// The entry that a change stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored<'r> {
    /// The value.
    pub value: NewValue<'r>,
    /// The deadline; `None` for an entry that does not expire.
    pub deadline: Option<WallTime>,
}

/// The change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange<'r> {
    /// The key.
    pub key: &'r [u8],
    /// The new entry; `None` if the entry is removed.
    pub stored: Option<Stored<'r>>,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation<'r> {
    /// The status of the response.
    pub status: Status,
    /// The changes, at most one of each key. If `status` is an error, they only remove expired entries.
    pub changes: Changes<'r>,
    /// True if the request changes an entry. The response then has the sequence number of the
    /// write as its version; otherwise it has `found`.
    pub is_done: bool,
    /// The version of the key of the update that ended the request, or else of the first one; zero if the key is
    /// absent or an earlier update of the request has changed it.
    pub found: SequenceNumber,
    /// The rest of the response, encoded as a [`RetainedResponse`], if there is one.
    pub response: Option<RetainedBytes>,
    /// The number of bytes that were made for changes and results, also for those that were dropped because the request
    /// failed; zero for a single update, which drops none.
    pub made_bytes: usize,
}

/// The changes of a request. Most requests have one.
pub type Changes<'r> = SmallVec<[KeyChange<'r>; 1]>;

/// Evaluates the updates of a request for `request_key`. `newest` returns the newest entry of a key, whether or not its
/// deadline has passed.
#[inline]
pub fn evaluate<'r, 't>(
    request_key: &'r [u8],
    updates: &Updates<'r>,
    wall: WallTime,
    newest: impl Fn(&[u8]) -> Option<Current<'t>>,
) -> Evaluation<'r> {
    if let Some(update) = updates.single() {
        return evaluate_one(update.key.unwrap_or(request_key), &update, wall, newest);
    }
    let places = HashMap::with_hasher(FixedState::default());
    let state = State { wall, newest, changes: Changes::new(), places, expired: Vec::new() };
    state.evaluate_all(request_key, updates)
}

/// Evaluates the only update of a request.
#[inline]
fn evaluate_one<'r, 't>(
    key: &'r [u8],
    update: &Update<'r>,
    wall: WallTime,
    newest: impl Fn(&[u8]) -> Option<Current<'t>>,
) -> Evaluation<'r> {
    let current = newest(key);
    let is_expired = current.is_some_and(|current| current.is_expired(wall));
    let found = current.filter(|_| !is_expired);
    let outcome = execute(found, wall, key, update, Status::NotFound);
    let Outcome { status, value, deadline, found, step } = outcome;
    let is_done = !matches!(step, Step::Nothing);
    let response = retained(value.bytes(), deadline);
    let one = |key, stored| Changes::from_buf([KeyChange { key, stored }]);
    let changes = match step {
        Step::Nothing if is_expired => one(key, None),
        Step::Nothing => Changes::new(),
        Step::Store(stored) => one(key, Some(stored)),
        Step::Remove => one(key, None),
        Step::Transfer { to, stored, moves } => {
            let mut changes = one(to, Some(stored));
            if moves {
                changes.push(KeyChange { key, stored: None });
            }
            changes
        }
    };
    Evaluation { status, changes, is_done, found, response, made_bytes: 0 }
}

/// Encodes the rest of a response, if there is one.
#[inline]
fn retained(value: Option<&[u8]>, deadline: Option<WallTime>) -> Option<RetainedBytes> {
    let head = RetainedResponse { value, deadline }.head()?;
    Some(RetainedBytes::concat(&head, value.unwrap_or(&[])))
}

/// The state of the keys of a request while its updates are evaluated.
struct State<'r, F> {
    wall: WallTime,
    newest: F,
    changes: Changes<'r>,
    /// The index of each key's change.
    places: HashMap<&'r [u8], usize, FixedState>,
    /// The keys that counted as absent because their deadlines had passed.
    expired: Vec<&'r [u8]>,
}

/// The effect of one update.
enum Step<'r> {
    Nothing,
    Store(Stored<'r>),
    Remove,
    /// Stores the entry under another key, and removes it from its own key if `moves`.
    Transfer {
        to: &'r [u8],
        stored: Stored<'r>,
        moves: bool,
    },
}

/// The value in the response to an update.
enum Returned {
    Nothing,
    Number(IntegerText),
    Value(Vec<u8>),
}

impl Returned {
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Returned::Nothing => None,
            Returned::Number(text) => Some(text),
            Returned::Value(value) => Some(value),
        }
    }
}

/// The outcome of one update.
struct Outcome<'r> {
    /// OK or NOT_FOUND; with any other status the update was not executed.
    status: Status,
    step: Step<'r>,
    value: Returned,
    /// The deadline in the response.
    deadline: Option<WallTime>,
    /// The version that the update found; zero if the key is absent.
    found: SequenceNumber,
}

impl<'r, 't, F: Fn(&[u8]) -> Option<Current<'t>>> State<'r, F> {
    fn evaluate_all(mut self, request_key: &'r [u8], updates: &Updates<'r>) -> Evaluation<'r> {
        let (mut results, mut is_done, mut first) = (Vec::new(), false, None);
        let mut changed_bytes = 0;
        for (index, update) in updates.iter().enumerate() {
            let key = update.key.unwrap_or(request_key);
            let expired_before = self.expired.len();
            let outcome = self.execute(key, &update);
            let Outcome { mut status, value, deadline, found, step } = outcome;
            let is_executed = matches!(status, Status::Ok | Status::NotFound);
            let value = value.bytes();
            let bytes = results.len() + UpdateResult::FIXED_BYTES + value.map_or(0, <[u8]>::len);
            // An expired entry that the update does not replace is removed, which is a change too.
            changed_bytes += match step {
                Step::Nothing if self.expired.len() > expired_before => Step::Remove.bytes(key),
                _ => step.bytes(key),
            };
            let is_beyond = bytes > MAX_VALUE_BYTES || changed_bytes > MAX_CHANGES_BYTES;
            if is_beyond {
                status = Status::TooBig;
            }
            if is_beyond || (!is_executed && !update.is_optional) {
                let response = retained(Some(index.to_string().as_bytes()), None);
                let changes = self.all_changes(false);
                let made_bytes = changed_bytes + bytes;
                return Evaluation { status, changes, is_done: false, found, response, made_bytes };
            }
            UpdateResult { status, value, deadline }.write(&mut results);
            is_done |= !matches!(step, Step::Nothing);
            first = first.or(Some(found));
            self.take_step(key, step);
        }
        let response = retained(Some(&results), None);
        let found = first.unwrap_or(SequenceNumber::ZERO);
        Evaluation {
            status: Status::Ok,
            changes: self.all_changes(true),
            is_done,
            found,
            response,
            made_bytes: changed_bytes + results.len(),
        }
    }

    /// Returns the entry of a key after the updates so far. The second result is true if there is none because its
    /// deadline has passed.
    fn find<'s>(&'s self, key: &[u8]) -> (Option<Current<'s>>, bool)
    where
        't: 's,
    {
        if let Some(&at) = self.places.get(key) {
            let stored = self.changes[at].stored.as_ref();
            let version = SequenceNumber::ZERO;
            let found = stored.map(|Stored { value, deadline }| Current {
                value,
                version,
                deadline: *deadline,
            });
            return (found, false);
        }
        match (self.newest)(key) {
            Some(current) if current.is_expired(self.wall) => (None, true),
            current => (current, false),
        }
    }

    fn execute(&mut self, key: &'r [u8], update: &Update<'r>) -> Outcome<'r> {
        let (found, is_expired) = self.find(key);
        let outcome = execute(found, self.wall, key, update, Status::Conflict);
        if is_expired && !self.expired.contains(&key) {
            self.expired.push(key);
        }
        outcome
    }

    fn take_step(&mut self, key: &'r [u8], step: Step<'r>) {
        match step {
            Step::Nothing => {}
            Step::Store(stored) => self.change(key, Some(stored)),
            Step::Remove => self.change(key, None),
            Step::Transfer { to, stored, moves } => {
                self.change(to, Some(stored));
                if moves {
                    self.change(key, None);
                }
            }
        }
    }

    fn change(&mut self, key: &'r [u8], stored: Option<Stored<'r>>) {
        let next = self.changes.len();
        let at = *self.places.entry(key).or_insert(next);
        match self.changes.get_mut(at) {
            Some(change) => change.stored = stored,
            None => self.changes.push(KeyChange { key, stored }),
        }
    }

    /// Returns the changes, with the removals of entries that have counted as absent. Without `is_executed`, returns
    /// only these removals.
    fn all_changes(mut self, is_executed: bool) -> Changes<'r> {
        if !is_executed {
            self.changes.clear();
        }
        for key in std::mem::take(&mut self.expired) {
            if !self.changes.iter().any(|change| change.key == key) {
                self.changes.push(KeyChange { key, stored: None });
            }
        }
        self.changes
    }
}

impl KeyChange<'_> {
    /// Returns the number of bytes of key and value.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.stored.as_ref().map_or(0, |stored| stored.value.len())
    }
}

impl Step<'_> {
    /// Returns the number of bytes that the step adds to the changes of a request.
    fn bytes(&self, key: &[u8]) -> usize {
        match self {
            Step::Nothing => 0,
            Step::Store(stored) => CHANGE_FIXED_BYTES + key.len() + stored.value.len(),
            Step::Remove => CHANGE_FIXED_BYTES + key.len(),
            Step::Transfer { to, stored, moves } => {
                let removal = if *moves { Step::Remove.bytes(key) } else { 0 };
                removal + CHANGE_FIXED_BYTES + to.len() + stored.value.len()
            }
        }
    }
}

/// Executes one update of a key whose entry is `found`. `no_entry` is the status if the condition compares the deadline
/// of an entry, but there is none. As NOT_FOUND, it would not end a request with several updates.
#[inline(always)] // The caller uses the parts of the outcome without storing it.
fn execute<'r>(
    found: Option<Current<'_>>,
    wall: WallTime,
    key: &[u8],
    update: &Update<'r>,
    no_entry: Status,
) -> Outcome<'r> {
    let version = found.map_or(SequenceNumber::ZERO, |found| found.version);
    let current = || {
        let value = match found.filter(|_| update.returns_value) {
            Some(found) => Returned::Value(found.value.to_vec()),
            None => Returned::Nothing,
        };
        (value, found.filter(|_| update.returns_value).and_then(|found| found.deadline))
    };
    let nothing = |status| {
        let (value, deadline) = current();
        Outcome { status, step: Step::Nothing, value, deadline, found: version }
    };
    let old = found.and_then(|found| found.deadline);
    let deadline = match update.expiry {
        Expiry::Never => None,
        Expiry::Keep => old,
        Expiry::After(millis) => Some(wall.after(millis)),
        Expiry::At(time) => Some(time),
        Expiry::KeepOrAfter(millis) => old.or(Some(wall.after(millis))),
    };
    match holds(update.condition, found, deadline) {
        Ok(true) => {}
        Ok(false) => return nothing(Status::Conflict),
        Err(NoEntry) => return nothing(no_entry),
    }
    // An entry that would be stored with a deadline in the past is removed instead. Its value is not made.
    let has_passed = deadline.is_some_and(|deadline| deadline <= wall);
    let store = |value: &dyn Fn() -> NewValue<'r>| match (has_passed, found) {
        (false, _) => Step::Store(Stored { value: value(), deadline }),
        (true, Some(_)) => Step::Remove,
        (true, None) => Step::Nothing,
    };
    // The deadline in the response: that of the entry after the update, if there still is one.
    let shown = |deadline: Option<WallTime>| {
        deadline.filter(|deadline| update.returns_value && *deadline > wall)
    };
    let done = |step, value, deadline| Outcome {
        status: Status::Ok,
        step,
        value,
        deadline,
        found: version,
    };
    let old_value = found.map(|found| found.value);
    let length = |length: usize| {
        Returned::Number(number::format_integer(length.try_into().unwrap_or(i64::MAX)))
    };
    match update.action {
        Action::Check => match found {
            Some(_) => nothing(Status::Ok),
            None if update.condition == Precondition::Absent => nothing(Status::Ok),
            None => nothing(Status::NotFound),
        },
        Action::Put(value) => {
            let (old_value, _) = current();
            done(store(&|| NewValue::Requested(value)), old_value, shown(deadline))
        }
        Action::Delete if found.is_none() => nothing(Status::NotFound),
        Action::Delete => done(Step::Remove, current().0, None),
        Action::Add(amount) => match number::add_integer(old_value, amount) {
            Ok(sum) => {
                let text = number::format_integer(sum);
                done(store(&|| NewValue::Integer(text)), Returned::Number(text), shown(deadline))
            }
            Err(error) => nothing(status_of(error)),
        },
        Action::AddFloat(amount) => match number::add_float(old_value, amount) {
            Ok(text) => {
                let stored = store(&|| NewValue::Made(text.clone()));
                done(stored, Returned::Value(text), shown(deadline))
            }
            Err(error) => nothing(status_of(error)),
        },
        Action::Append(bytes) => {
            let old_value = old_value.unwrap_or(&[]);
            let total = old_value.len() + bytes.len();
            if total > MAX_VALUE_BYTES {
                return nothing(Status::TooBig);
            }
            let stored = store(&|| NewValue::Made([old_value, bytes].concat()));
            done(stored, length(total), shown(deadline))
        }
        Action::SetRange { bytes: [], .. } => {
            let length = length(old_value.map_or(0, <[u8]>::len));
            done(Step::Nothing, length, shown(old))
        }
        Action::SetRange { offset, bytes } => {
            let (start, end) = (offset as usize, offset as usize + bytes.len());
            if end > MAX_VALUE_BYTES {
                return nothing(Status::TooBig);
            }
            let old_value = old_value.unwrap_or(&[]);
            let total = old_value.len().max(end);
            let stored = store(&|| {
                let mut value = Vec::with_capacity(total);
                value.extend_from_slice(old_value);
                value.resize(total, 0);
                value[start..end].copy_from_slice(bytes);
                NewValue::Made(value)
            });
            done(stored, length(total), shown(deadline))
        }
        Action::Rename(to) | Action::Copy(to) => match found {
            None => nothing(Status::NotFound),
            Some(_) if to == key => nothing(Status::Ok),
            Some(Current { value, deadline, .. }) => {
                let moves = matches!(update.action, Action::Rename(_));
                let stored = Stored { value: NewValue::Made(value.to_vec()), deadline };
                // A copy leaves the entry, so it can return it.
                let (value, deadline) = if moves { (Returned::Nothing, None) } else { current() };
                done(Step::Transfer { to, stored, moves }, value, deadline)
            }
        },
        Action::SetExpiry => match found {
            None => nothing(Status::NotFound),
            Some(_) if matches!(update.expiry, Expiry::Keep) => nothing(Status::Ok),
            Some(Current { value, .. }) => {
                let (returned, _) = current();
                done(store(&|| NewValue::Made(value.to_vec())), returned, shown(deadline))
            }
        },
    }
}

/// The condition compares an entry's deadline, but there is no entry.
struct NoEntry;

/// Returns whether a condition holds for an entry. `deadline` is the deadline that the update would set.
fn holds(
    condition: Precondition<'_>,
    found: Option<Current<'_>>,
    deadline: Option<WallTime>,
) -> Result<bool, NoEntry> {
    // No deadline is later than any.
    let or_never = |deadline: Option<WallTime>| deadline.map_or(u64::MAX, WallTime::millis);
    let entry = || found.ok_or(NoEntry);
    Ok(match condition {
        Precondition::None => true,
        Precondition::Absent => found.is_none(),
        Precondition::Present => found.is_some(),
        Precondition::Version(version) => {
            version > SequenceNumber::ZERO && found.is_some_and(|found| found.version == version)
        }
        Precondition::Value(value) => found.is_some_and(|found| found.value == value),
        Precondition::NoDeadline => entry()?.deadline.is_none(),
        Precondition::HasDeadline => entry()?.deadline.is_some(),
        Precondition::Later => or_never(deadline) > or_never(entry()?.deadline),
        Precondition::Earlier => or_never(deadline) < or_never(entry()?.deadline),
    })
}

fn status_of(error: NumberError) -> Status {
    match error {
        NumberError::NotANumber => Status::NotANumber,
        NumberError::Overflow => Status::Overflow,
    }
}
