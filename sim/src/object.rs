//! Operations on objects: the encoding of requests, and the decoding of responses.
//!
//! An object is one key, or a family of keys of one shard that are used together ([`kv_history::object`]). Its values
//! are decimal numbers, or texts of whole pieces, so a mixture of two values is detected.

use std::sync::Arc;

use crate::redis::command::Command;
use kv_history::object::{Answer, Change, Guard, Lifetime, Outcome, Shown, Text, Update};
use kv_protocol::client_message::{Condition, Operation, Part, Response, Status, WriteHeader};
use kv_protocol::ids::{SequenceNumber, WallTime};
use kv_protocol::update::{self as wire, Action, Expiry, Precondition, UpdateResult, Updates};
use kv_testkit::objects::{self, is_whole, to_wire};

/// An operation on an object.
#[derive(Clone, Debug)]
pub struct ObjectAsk {
    /// The keys of the object.
    pub keys: Arc<[Vec<u8>]>,
    /// The updates, or the one update that stands for a read.
    pub updates: Arc<[Update]>,
    /// True for a GET.
    pub is_read: bool,
    /// False for a GET without deadline.
    pub shows_deadline: bool,
    /// True for a PUT or DELETE request instead of an UPDATE.
    is_plain: bool,
    /// The encoded updates.
    bytes: Vec<u8>,
}

/// A response whose bytes are not those of one written value.
#[derive(Debug)]
pub struct Mixed;

impl ObjectAsk {
    /// Creates a GET of a key, with or without its deadline.
    pub fn read(keys: Arc<[Vec<u8>]>, key: usize, shows_deadline: bool) -> ObjectAsk {
        let update = Update { returns_value: true, ..Update::new(key, Change::Check) };
        let updates = [update].into();
        let (is_read, is_plain, bytes) = (true, false, Vec::new());
        ObjectAsk { keys, updates, is_read, shows_deadline, is_plain, bytes }
    }

    /// Creates the operation that a Redis command stands for.
    pub fn of_command(keys: Arc<[Vec<u8>]>, command: &Command) -> ObjectAsk {
        let (updates, is_read) = (Arc::clone(&command.updates), command.is_read);
        let (shows_deadline, is_plain, bytes) = (false, false, Vec::new());
        ObjectAsk { keys, updates, is_read, shows_deadline, is_plain, bytes }
    }

    /// Creates an UPDATE; with `is_plain` a PUT or DELETE if one of these can express it.
    pub fn update(keys: Arc<[Vec<u8>]>, updates: Vec<Update>, is_plain: bool) -> ObjectAsk {
        let mut bytes = Vec::new();
        for update in &updates {
            let key = (update.key != updates[0].key).then(|| &keys[update.key][..]);
            let mut amount = String::new();
            let update = to_wire(&keys, update, key, &mut amount);
            update.validate().expect("the workload makes valid updates");
            update.write(&mut bytes);
        }
        let is_plain = is_plain && updates.len() == 1 && is_simple(&updates[0]);
        let (updates, is_read, shows_deadline) = (updates.into(), false, true);
        ObjectAsk { keys, updates, is_read, shows_deadline, is_plain, bytes }
    }

    /// Returns the key of the request.
    pub fn key(&self) -> &[u8] {
        &self.keys[self.updates[0].key]
    }

    /// Returns the request's operation.
    pub fn operation(&self, header: WriteHeader) -> Operation<'_> {
        if self.is_read {
            let part = Part { with_deadline: true, ..Part::new(0, u32::MAX) };
            return if self.shows_deadline { Operation::GetPart(part) } else { Operation::Get };
        }
        if !self.is_plain {
            return Operation::Update(header, Updates::read(&self.bytes).expect("encoded here"));
        }
        let condition = match self.updates[0].guard {
            Guard::Version(version) => Condition::IfVersion(SequenceNumber(version)),
            Guard::Absent => Condition::IfAbsent,
            _ => Condition::Always,
        };
        let header = WriteHeader { condition, ..header };
        match &self.updates[0].change {
            Change::Put(value) => Operation::Put(header, value),
            _ => Operation::Delete(header),
        }
    }

    /// Returns whether the request changes an entry whenever its response is OK. The version in the response is then
    /// that of this write.
    pub fn changes_surely(&self) -> bool {
        self.is_plain
            || !self.is_read && {
                Updates::read(&self.bytes).is_ok_and(|updates| changes_surely(&updates))
            }
    }

    /// Returns the content of a response; `None` if the response is not definite.
    ///
    /// # Errors
    /// The response is a value that is not whole.
    pub fn answer(&self, response: &Response<'_>) -> Result<Option<Answer>, Mixed> {
        let Some(outcome) = outcome_of(response.status) else { return Ok(None) };
        let version = response.version.0;
        let millis = |deadline: WallTime| deadline.millis().cast_signed();
        if self.updates.len() > 1 {
            return Ok(Some(match outcome {
                Outcome::Done => {
                    let results = UpdateResult::read_all(response.value).map_err(|_| Mixed)?;
                    let shown = |result: &UpdateResult<'_>| Shown {
                        outcome: outcome_of(result.status).expect("a status of an update"),
                        value: result.value.map(Text::from),
                        deadline: result.deadline.map(millis),
                    };
                    Answer::Shown { version, updates: results.iter().map(shown).collect() }
                }
                outcome => {
                    let index = str::from_utf8(response.value).ok();
                    let index = index.and_then(|index| index.parse().ok()).ok_or(Mixed)?;
                    Answer::Failed { index, outcome }
                }
            }));
        }
        let has_value = response.has_value || self.is_read && outcome == Outcome::Done;
        if has_value && !is_whole(response.value) {
            return Err(Mixed);
        }
        let value = has_value.then(|| Text::from(response.value));
        let shown = Shown { outcome, value, deadline: response.deadline.map(millis) };
        Ok(Some(Answer::Shown { version, updates: vec![shown] }))
    }
}

/// Returns whether a PUT or DELETE request can express an update.
fn is_simple(update: &Update) -> bool {
    let is_guarded = matches!(update.guard, Guard::Absent | Guard::Version(_));
    let has_form = match update.change {
        Change::Put(_) => update.lifetime == Lifetime::Never,
        Change::Delete => !is_guarded,
        _ => false,
    };
    has_form && (is_guarded || update.guard == Guard::Always) && !update.returns_value
}

/// Returns whether updates change an entry whenever all are executed.
pub fn changes_surely(updates: &Updates<'_>) -> bool {
    // Without an entry, a condition on its deadline is not met, but does not end the request.
    let may_pass = |update: &wire::Update<'_>| {
        matches!(
            update.condition,
            Precondition::NoDeadline
                | Precondition::HasDeadline
                | Precondition::Later
                | Precondition::Earlier
        )
    };
    updates.iter().filter(|update| !update.is_optional && !may_pass(update)).any(|update| {
        let is_kept = !matches!(update.expiry, Expiry::At(_) | Expiry::After(0));
        match update.action {
            Action::Put(_) | Action::Add(_) | Action::Append(_) | Action::SetRange { .. } => {
                is_kept
            }
            _ => false,
        }
    })
}

/// Returns the outcome of a definite response.
fn outcome_of(status: Status) -> Option<Outcome> {
    match status {
        Status::TooBig | Status::CrossShard | Status::Unsupported => {
            unreachable!("{status:?} in response to a valid request")
        }
        status => objects::outcome_of(status),
    }
}
