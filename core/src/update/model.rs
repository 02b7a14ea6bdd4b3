//! A model of updates, written from their specification: a map that executes one update after the other on a copy of
//! itself. The copy replaces the map if the request succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kv_protocol::change::CHANGE_FIXED_BYTES;
use kv_protocol::client_message::Status;
use kv_protocol::limits::{MAX_CHANGES_BYTES, MAX_VALUE_BYTES};
use kv_protocol::update::{Action, Expiry, Precondition, Update, UpdateResult};

use crate::number::{NumberError, add_float};

/// An entry. Copies share its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: Rc<Vec<u8>>,
    /// The deadline in milliseconds since 1970.
    pub(crate) deadline: Option<u64>,
    /// The sequence number of the last write; zero within the request that makes the change.
    pub(crate) version: u64,
}

/// The result of one update: the status, the value and the deadline.
pub(crate) type Outcome = (Status, Option<Vec<u8>>, Option<u64>);

/// The response to a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    /// The results of the updates; of a batch that failed, none.
    pub(crate) results: Vec<Outcome>,
    /// The index of the update with which a batch failed.
    pub(crate) failed_at: Option<usize>,
    pub(crate) is_done: bool,
    /// The version of the key of the update that ended the request, or else of the first one.
    pub(crate) found: u64,
    /// True if an entry counted as absent because its deadline had passed.
    pub(crate) saw_expired: bool,
}

/// The entries of a shard at a wall time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
    /// The wall time in milliseconds since 1970.
    pub(crate) wall: u64,
}

/// The copy on which a request is executed.
struct Attempt {
    entries: BTreeMap<Vec<u8>, Entry>,
    wall: u64,
    expired: BTreeSet<Vec<u8>>,
    is_done: bool,
    /// The bytes of all changes so far, as servers send them.
    changed_bytes: usize,
}

impl Model {
    /// Executes a request as the write with the number `version`.
    pub(crate) fn execute(
        &mut self,
        request_key: &[u8],
        updates: &[Update<'_>],
        version: u64,
    ) -> Reply {
        let mut attempt = Attempt {
            entries: self.entries.clone(),
            wall: self.wall,
            expired: BTreeSet::new(),
            is_done: false,
            changed_bytes: 0,
        };
        let mut reply = attempt.execute_all(request_key, updates);
        reply.saw_expired = !attempt.expired.is_empty();
        if matches!(reply.status, Status::Ok | Status::NotFound) {
            self.entries = attempt.entries;
            for entry in self.entries.values_mut().filter(|entry| entry.version == 0) {
                entry.version = version;
            }
        } else {
            self.entries.retain(|key, _| !attempt.expired.contains(key));
        }
        reply
    }

    /// Removes all entries whose deadline has passed.
    pub(crate) fn remove_expired(&mut self) {
        let wall = self.wall;
        self.entries.retain(|_, entry| entry.deadline.is_none_or(|deadline| deadline > wall));
    }
}

impl Attempt {
    fn execute_all(&mut self, request_key: &[u8], updates: &[Update<'_>]) -> Reply {
        let is_batch = updates.len() > 1;
        let mut reply = Reply {
            status: Status::Ok,
            results: Vec::new(),
            failed_at: None,
            is_done: false,
            found: 0,
            saw_expired: false,
        };
        let mut result_bytes = 0;
        for (index, update) in updates.iter().enumerate() {
            let key = update.key.unwrap_or(request_key);
            let bytes_before = self.changed_bytes;
            let expired_before = self.expired.len();
            let before = self.look_up(key);
            let found = before.as_ref().map_or(0, |entry| entry.version);
            let outcome = self.execute_one(key, before, update, is_batch);
            if !is_batch {
                reply.status = outcome.0;
                reply.found = found;
                reply.results.push(outcome);
                break;
            }
            result_bytes += UpdateResult::FIXED_BYTES + outcome.1.as_ref().map_or(0, Vec::len);
            // The removal of an expired entry is a change, unless the update makes another one.
            if self.expired.len() > expired_before && self.changed_bytes == bytes_before {
                self.changed_bytes += CHANGE_FIXED_BYTES + key.len();
            }
            let is_executed = [Status::Ok, Status::NotFound].contains(&outcome.0);
            let failure =
                if result_bytes > MAX_VALUE_BYTES || self.changed_bytes > MAX_CHANGES_BYTES {
                    Some(Status::TooBig)
                } else if is_executed || update.is_optional {
                    None
                } else {
                    Some(outcome.0)
                };
            if let Some(status) = failure {
                reply.status = status;
                reply.results.clear();
                reply.failed_at = Some(index);
                reply.found = found;
                return reply;
            }
            if index == 0 {
                reply.found = found;
            }
            reply.results.push(outcome);
        }
        reply.is_done = self.is_done;
        reply
    }

    /// Returns the entry of a key, after removing it if it has expired.
    fn look_up(&mut self, key: &[u8]) -> Option<Entry> {
        let entry = self.entries.get(key)?.clone();
        if entry.deadline.is_some_and(|deadline| deadline <= self.wall) {
            self.entries.remove(key);
            self.expired.insert(key.to_vec());
            return None;
        }
        Some(entry)
    }

    fn store(&mut self, key: &[u8], value: Vec<u8>, deadline: Option<u64>) {
        if deadline.is_some_and(|deadline| deadline <= self.wall) {
            if self.entries.contains_key(key) {
                self.remove(key);
            }
            return;
        }
        self.is_done = true;
        self.changed_bytes += CHANGE_FIXED_BYTES + key.len() + value.len();
        self.entries.insert(key.to_vec(), Entry { value: Rc::new(value), deadline, version: 0 });
    }

    fn remove(&mut self, key: &[u8]) {
        self.is_done = true;
        self.changed_bytes += CHANGE_FIXED_BYTES + key.len();
        self.entries.remove(key).expect("the caller has found it");
    }

    /// Returns the deadline that an update sets.
    fn new_deadline(&self, old: Option<u64>, expiry: Expiry) -> Option<u64> {
        let last = (1 << 48) - 1;
        let after = |millis: u64| Some(self.wall.saturating_add(millis).min(last));
        match (expiry, old) {
            (Expiry::Never, _) => None,
            (Expiry::Keep, old) => old,
            (Expiry::After(millis), _) | (Expiry::KeepOrAfter(millis), None) => after(millis),
            (Expiry::KeepOrAfter(_), Some(old)) => Some(old),
            (Expiry::At(time), _) => Some(time.millis()),
        }
    }

    /// Returns the status with which the condition ends the update, or `None` if it holds.
    fn obstacle(
        before: Option<&Entry>,
        condition: Precondition<'_>,
        deadline: Option<u64>,
        is_batch: bool,
    ) -> Option<Status> {
        let (is_needed, holds) = match (condition, before) {
            (Precondition::None, _) => (false, true),
            (Precondition::Absent, before) => (false, before.is_none()),
            (Precondition::Present | Precondition::Version(_) | Precondition::Value(_), None) => {
                (false, false)
            }
            (Precondition::Present, Some(_)) => (false, true),
            // Zero is the version of no write.
            (Precondition::Version(version), Some(entry)) => {
                (false, version.0 != 0 && entry.version == version.0)
            }
            (Precondition::Value(value), Some(entry)) => (false, **entry.value == *value),
            (_, None) => (true, false),
            (Precondition::NoDeadline, Some(entry)) => (true, entry.deadline.is_none()),
            (Precondition::HasDeadline, Some(entry)) => (true, entry.deadline.is_some()),
            (Precondition::Later, Some(entry)) => {
                (true, entry.deadline.is_some_and(|old| deadline.expect("validated") > old))
            }
            (Precondition::Earlier, Some(entry)) => {
                (true, entry.deadline.is_none_or(|old| deadline.expect("validated") < old))
            }
        };
        match (holds, is_needed && before.is_none() && !is_batch) {
            (true, _) => None,
            (false, true) => Some(Status::NotFound),
            (false, false) => Some(Status::Conflict),
        }
    }

    fn execute_one(
        &mut self,
        key: &[u8],
        before: Option<Entry>,
        update: &Update<'_>,
        is_batch: bool,
    ) -> Outcome {
        let is_shown = update.returns_value;
        // The value and deadline that the update returns if it is not executed.
        let unchanged = |status| match &before {
            Some(entry) if is_shown => (status, Some(entry.value.to_vec()), entry.deadline),
            _ => (status, None, None),
        };
        let old_deadline = before.as_ref().and_then(|entry| entry.deadline);
        let deadline = self.new_deadline(old_deadline, update.expiry);
        if let Some(status) = Self::obstacle(before.as_ref(), update.condition, deadline, is_batch)
        {
            return unchanged(status);
        }
        let old = before.as_ref().map(|entry| entry.value.to_vec());
        match (update.action, old) {
            (Action::Check, None) if update.condition == Precondition::Absent => {
                return unchanged(Status::Ok);
            }
            (Action::Put(_) | Action::Add(_) | Action::AddFloat(_), _)
            | (Action::Append(_) | Action::SetRange { .. }, _) => {}
            (_, None) => return unchanged(Status::NotFound),
            (Action::Check, Some(_)) => return unchanged(Status::Ok),
            (Action::SetExpiry, Some(_)) if update.expiry == Expiry::Keep => {
                return unchanged(Status::Ok);
            }
            (Action::Copy(to), Some(value)) => {
                if to != key {
                    self.store(to, value, old_deadline);
                }
                return unchanged(Status::Ok);
            }
            (Action::Rename(to), Some(_)) if to == key => return unchanged(Status::Ok),
            (Action::Rename(to), Some(value)) => {
                self.remove(key);
                self.store(to, value, old_deadline);
                return (Status::Ok, None, None);
            }
            (Action::Delete, Some(value)) => {
                self.remove(key);
                return (Status::Ok, is_shown.then_some(value), None);
            }
            (Action::SetExpiry, Some(_)) => {}
        }
        let old = before.as_ref().map(|entry| entry.value.to_vec());
        let length = |value: &Vec<u8>| Some(value.len().to_string().into_bytes());
        let (value, result) = match update.action {
            Action::Put(value) => (value.to_vec(), old.filter(|_| is_shown)),
            Action::SetExpiry => {
                let value = old.expect("checked above");
                (value.clone(), is_shown.then_some(value))
            }
            Action::Add(amount) => match sum(old.as_deref(), amount) {
                Ok(text) => (text.clone(), Some(text)),
                Err(status) => return unchanged(status),
            },
            // The sums of floats are compared with those of Redis elsewhere.
            Action::AddFloat(amount) => match add_float(old.as_deref(), amount) {
                Ok(text) => (text.clone(), Some(text)),
                Err(NumberError::NotANumber) => return unchanged(Status::NotANumber),
                Err(NumberError::Overflow) => return unchanged(Status::Overflow),
            },
            Action::Append(bytes) => {
                let value = [&old.unwrap_or_default(), bytes].concat();
                if value.len() > MAX_VALUE_BYTES {
                    return unchanged(Status::TooBig);
                }
                let length = length(&value);
                (value, length)
            }
            Action::SetRange { offset, bytes } => {
                let mut value = old.unwrap_or_default();
                if bytes.is_empty() {
                    let shown = old_deadline.filter(|_| is_shown);
                    return (Status::Ok, length(&value), shown);
                }
                let offset = offset as usize;
                if offset + bytes.len() > MAX_VALUE_BYTES {
                    return unchanged(Status::TooBig);
                }
                if value.len() < offset {
                    value.resize(offset, 0);
                }
                let rest = value.split_off(offset);
                value.extend(bytes);
                value.extend(rest.iter().skip(bytes.len()));
                let length = length(&value);
                (value, length)
            }
            _ => unreachable!("executed above"),
        };
        self.store(key, value, deadline);
        // An entry that is not stored, because its deadline has passed, has none to show.
        let shown = deadline.filter(|deadline| is_shown && *deadline > self.wall);
        (Status::Ok, result, shown)
    }
}

/// Returns the text of the sum of an integer text and an amount.
fn sum(text: Option<&[u8]>, amount: i64) -> Result<Vec<u8>, Status> {
    let text = std::str::from_utf8(text.unwrap_or(b"0")).map_err(|_| Status::NotANumber)?;
    let number: i128 = text.parse().map_err(|_| Status::NotANumber)?;
    let fits = |number: i128| (i64::MIN.into()..=i64::MAX.into()).contains(&number);
    if number.to_string() != text || !fits(number) {
        return Err(Status::NotANumber);
    }
    let sum = number + i128::from(amount);
    if fits(sum) { Ok(sum.to_string().into_bytes()) } else { Err(Status::Overflow) }
}
