//! An update that a line requests, and its result as text.

use std::time::Duration;

use kv_client::update::Action;
use kv_client::{Expiry, Precondition, SequenceNumber, Status, Update, WallTime};
use kv_protocol::escape::readable;

use super::text::{not_found, says};

/// An update with its own memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) condition: Condition,
    pub(crate) expiry: Expiry,
    /// True if the result has the value: before a put or delete, and after any other update.
    pub(crate) returns_value: bool,
    /// True if the other updates of a batch are executed even if this one cannot be.
    pub(crate) is_optional: bool,
}

/// The kind of an update, like [`Action`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Check,
    Put(Vec<u8>),
    Delete,
    Add(i64),
    AddFloat(Vec<u8>),
    Append(Vec<u8>),
    SetRange { offset: u32, bytes: Vec<u8> },
    Rename(Vec<u8>),
    Copy(Vec<u8>),
    SetExpiry,
}

/// The condition of an update, like [`Precondition`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    None,
    Absent,
    Present,
    Version(u64),
    Value(Vec<u8>),
    NoDeadline,
    HasDeadline,
    Later,
    Earlier,
}

impl Change {
    /// Creates an update without condition.
    pub(crate) fn new(key: Vec<u8>, kind: Kind) -> Change {
        let expiry = if matches!(kind, Kind::Put(_)) { Expiry::Never } else { Expiry::Keep };
        let condition = Condition::None;
        Change { key, kind, condition, expiry, returns_value: false, is_optional: false }
    }

    /// Returns the update in the form of the library.
    pub(crate) fn update(&self) -> Update<'_> {
        let action = match self.kind {
            Kind::Check => Action::Check,
            Kind::Put(ref value) => Action::Put(value),
            Kind::Delete => Action::Delete,
            Kind::Add(amount) => Action::Add(amount),
            Kind::AddFloat(ref amount) => Action::AddFloat(amount),
            Kind::Append(ref bytes) => Action::Append(bytes),
            Kind::SetRange { offset, ref bytes } => Action::SetRange { offset, bytes },
            Kind::Rename(ref to) => Action::Rename(to),
            Kind::Copy(ref to) => Action::Copy(to),
            Kind::SetExpiry => Action::SetExpiry,
        };
        let condition = match self.condition {
            Condition::None => Precondition::None,
            Condition::Absent => Precondition::Absent,
            Condition::Present => Precondition::Present,
            Condition::Version(version) => Precondition::Version(SequenceNumber(version)),
            Condition::Value(ref value) => Precondition::Value(value),
            Condition::NoDeadline => Precondition::NoDeadline,
            Condition::HasDeadline => Precondition::HasDeadline,
            Condition::Later => Precondition::Later,
            Condition::Earlier => Precondition::Earlier,
        };
        let Change { ref key, expiry, returns_value, is_optional, .. } = *self;
        Update { key: Some(key), action, condition, expiry, returns_value, is_optional }
    }

    /// Returns the keys of the update.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let second = match &self.kind {
            Kind::Rename(to) | Kind::Copy(to) => Some(&to[..]),
            _ => None,
        };
        std::iter::once(&self.key[..]).chain(second)
    }

    /// Returns whether the update reads a value, or needs an entry. Then it fails if the key does not exist.
    pub(crate) fn needs_entry(&self) -> bool {
        !matches!(self.kind, Kind::Delete) || self.returns_value
    }

    /// Returns whether the update removes a deadline, and requires that there is one.
    pub(crate) fn only_persists(&self) -> bool {
        let removes = self.kind == Kind::SetExpiry && self.expiry == Expiry::Never;
        removes && self.condition == Condition::HasDeadline
    }

    /// Returns the text of an update that was executed. `value` is the value in its result. A deadline counts as passed
    /// if it is not after `now`.
    pub(crate) fn done_text(&self, value: Option<&[u8]>, now: WallTime) -> String {
        let key = &self.key[..];
        let shown = readable(key);
        if let Expiry::At(at) = self.expiry
            && at <= now
        {
            return self.removed_text(value, at);
        }
        let result = || readable(value.unwrap_or_default());
        match &self.kind {
            Kind::Check | Kind::SetExpiry if self.returns_value => match value {
                Some(value) => match self.expiry_text() {
                    Some(expires) => says(key, "==", value) + &format!(" ({expires})"),
                    None => says(key, "==", value),
                },
                None => not_found(key),
            },
            Kind::Check => format!("check passed: key \"{shown}\""),
            Kind::Put(put) if self.returns_value => match value {
                Some(old) => says(key, "<-", put) + &format!(" (before: \"{}\")", readable(old)),
                None => says(key, "<-", put) + " (before: nothing)",
            },
            Kind::Put(put) => says(key, "<-", put),
            Kind::Delete if self.returns_value => {
                says(key, "==", value.unwrap_or_default()) + " (deleted)"
            }
            Kind::Delete => format!("key \"{shown}\" deleted"),
            Kind::Add(_) | Kind::AddFloat(_) => says(key, "<-", value.unwrap_or_default()),
            Kind::Append(_) | Kind::SetRange { .. } => {
                format!("length[\"{shown}\"] == {}", result())
            }
            Kind::Rename(to) => format!("key \"{shown}\" renamed to \"{}\"", readable(to)),
            Kind::Copy(to) => format!("key \"{shown}\" copied to \"{}\"", readable(to)),
            Kind::SetExpiry => {
                let expires = self.expiry_text();
                let expires = expires.unwrap_or_else(|| "does not expire any more".to_owned());
                format!("key \"{shown}\" {expires}")
            }
        }
    }

    /// Returns the text of an update that has removed its key, because the new deadline has passed.
    fn removed_text(&self, value: Option<&[u8]>, deadline: WallTime) -> String {
        let before = match value {
            _ if !self.returns_value => String::new(),
            None => " (before: nothing)".to_owned(),
            Some(value) => format!(" (before: \"{}\")", readable(value)),
        };
        let (key, at) = (readable(&self.key), deadline.millis());
        format!("key \"{key}\" removed: its deadline {at} has passed{before}")
    }

    /// Returns the new deadline as text; `None` if the update sets none.
    fn expiry_text(&self) -> Option<String> {
        match self.expiry {
            Expiry::After(millis) | Expiry::KeepOrAfter(millis) => {
                Some(format!("expires in {}", seconds(millis)))
            }
            Expiry::At(at) => Some(format!("expires at {}", at.millis())),
            Expiry::Never | Expiry::Keep => None,
        }
    }

    /// Returns the text of an optional update that was skipped with this status.
    pub(crate) fn skipped_text(&self, status: Status) -> String {
        let reason = match status {
            Status::Conflict => "its condition does not hold",
            Status::NotANumber => "the value or the amount is not a number of this kind",
            Status::Overflow => "the sum is out of range",
            Status::TooBig => "the value would be longer than 16 MiB",
            _ => "it could not be executed",
        };
        format!("update of key \"{}\" skipped: {reason}", readable(&self.key))
    }
}

/// Formats the time until a deadline.
pub(crate) fn time_left(deadline: WallTime, now: WallTime) -> String {
    seconds(deadline.millis().saturating_sub(now.millis()))
}

/// Formats milliseconds as seconds.
fn seconds(millis: u64) -> String {
    format!("{} s", Duration::from_millis(millis).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_has_passed_is_reported_as_the_removal_of_the_key() {
        let at = WallTime::from_millis;
        let text = |kind: Kind, returns_value, value: Option<&[u8]>, now| {
            let change = Change::new(b"k".to_vec(), kind);
            Change { expiry: Expiry::At(at(5)), returns_value, ..change }.done_text(value, at(now))
        };
        let put = || Kind::Put(b"v".to_vec());
        let removed = "key \"k\" removed: its deadline 5 has passed";
        assert_eq!(text(put(), false, None, 5), removed);
        assert_eq!(text(put(), false, None, 4), "value[\"k\"] <- \"v\"");
        assert_eq!(text(put(), true, None, 5), format!("{removed} (before: nothing)"));
        assert_eq!(text(put(), true, Some(b"w"), 5), format!("{removed} (before: \"w\")"));
        assert_eq!(text(Kind::SetExpiry, false, None, 5), removed);
        assert_eq!(text(Kind::SetExpiry, false, None, 4), "key \"k\" expires at 5");
        assert_eq!(
            text(Kind::SetExpiry, true, Some(b"w"), 5),
            format!("{removed} (before: \"w\")")
        );
    }

    #[test]
    fn times_are_shown_in_seconds() {
        let at = WallTime::from_millis;
        assert_eq!(time_left(at(12_500), at(10_000)), "2.5 s");
        assert_eq!(time_left(at(9), at(10)), "0 s");
        assert_eq!(time_left(at(60_000), at(0)), "60 s");
    }
}
