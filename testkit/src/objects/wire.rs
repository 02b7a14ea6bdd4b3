//! The conversion of updates to requests, and of statuses to outcomes.

use kv_history::object::{Change, Guard, Lifetime, Outcome, Update};
use kv_protocol::client_message::Status;
use kv_protocol::ids::{SequenceNumber, WallTime};
use kv_protocol::update::{self as wire, Action, Expiry, Precondition};

/// Returns the outcome of a definite response to a valid request.
pub fn outcome_of(status: Status) -> Option<Outcome> {
    match status {
        Status::Ok => Some(Outcome::Done),
        Status::NotFound => Some(Outcome::NotFound),
        Status::Conflict => Some(Outcome::Conflict),
        Status::NotANumber => Some(Outcome::NotANumber),
        Status::Overflow => Some(Outcome::Overflow),
        _ => None,
    }
}

/// Converts an update of an object with these keys. `key` is the key of the update if it differs from that of the
/// request. `amount` is memory for the text of an amount.
pub fn to_wire<'a>(
    keys: &'a [Vec<u8>],
    update: &'a Update,
    key: Option<&'a [u8]>,
    amount: &'a mut String,
) -> wire::Update<'a> {
    let time = |millis: i64| WallTime::from_millis(u64::try_from(millis).unwrap_or(0));
    let length = |millis: i64| u64::try_from(millis).unwrap_or(0);
    let action = match &update.change {
        Change::Check | Change::CheckPart { .. } => Action::Check,
        Change::Put(value) => Action::Put(value),
        Change::Delete => Action::Delete,
        Change::Add(amount) => Action::Add(*amount),
        Change::AddQuarters(count) => {
            *amount = (f64::from(*count) / 4.0).to_string();
            Action::AddFloat(amount.as_bytes())
        }
        Change::Append(bytes) => Action::Append(bytes),
        Change::SetRange(offset, bytes) => {
            Action::SetRange { offset: u32::try_from(*offset).expect("texts are short"), bytes }
        }
        Change::Rename(to) => Action::Rename(&keys[*to]),
        Change::Copy(to) => Action::Copy(&keys[*to]),
        Change::SetExpiry => Action::SetExpiry,
    };
    let condition = match &update.guard {
        Guard::Always => Precondition::None,
        Guard::Absent => Precondition::Absent,
        Guard::Present => Precondition::Present,
        Guard::Version(version) => Precondition::Version(SequenceNumber(*version)),
        Guard::Value(value) => Precondition::Value(value),
        Guard::NoDeadline => Precondition::NoDeadline,
        Guard::HasDeadline => Precondition::HasDeadline,
        Guard::Later => Precondition::Later,
        Guard::Earlier => Precondition::Earlier,
    };
    let expiry = match update.lifetime {
        Lifetime::Never => Expiry::Never,
        Lifetime::Keep => Expiry::Keep,
        Lifetime::After(millis) => Expiry::After(length(millis)),
        Lifetime::At(millis) => Expiry::At(time(millis)),
        Lifetime::KeepOrAfter(millis) => Expiry::KeepOrAfter(length(millis)),
    };
    let (returns_value, is_optional) = (update.returns_value, update.is_optional);
    wire::Update { key, action, condition, expiry, returns_value, is_optional }
}
