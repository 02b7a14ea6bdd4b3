//! An operation on an object as it is written to a history.

use serde::{Deserialize, Serialize};

use super::{Answer, Change, Lifetime, ObjectEntry, Outcome, Span, Update};
use crate::operations::Operation;
use crate::record::{Kind, Reason};
use crate::register::{Asked, Value};

/// One operation, with the names of the keys of its object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectRecord {
    /// The keys of the object. All of them are in one shard.
    pub keys: Vec<String>,
    /// The process number.
    pub client: u32,
    /// The time of the beginning, in nanoseconds.
    pub start: i64,
    /// The time of the end, in nanoseconds; `i64::MAX` for an operation in doubt.
    pub end: i64,
    /// The wall time of the operation, from its beginning to its end, in milliseconds.
    pub wall: Span,
    /// True for a read.
    pub is_read: bool,
    /// False if the response has no deadline.
    pub shows_deadline: bool,
    /// The updates.
    pub updates: Vec<Update>,
    /// The response.
    pub answer: Answer,
}

impl ObjectRecord {
    /// Returns the operation as input of [`super::judge_object`].
    pub fn entry(&self) -> ObjectEntry {
        let ObjectRecord { client, start, end, wall, is_read, shows_deadline, .. } = *self;
        let (updates, answer) = (self.updates.clone().into(), self.answer.clone());
        let shows_version = true;
        ObjectEntry {
            client,
            start,
            end,
            wall,
            is_read,
            shows_deadline,
            shows_version,
            updates,
            answer,
        }
    }

    /// Returns the operation without its values, as one on the first key of the object.
    pub fn operation(&self) -> Operation {
        let ObjectRecord { start, end, .. } = *self;
        let unmet = |outcome| match outcome {
            Outcome::NotFound => Reason::NotFound,
            _ => Reason::Conflict,
        };
        let (kind, error) = match &self.answer {
            Answer::Shown { updates, .. } => match updates.first().map(|shown| shown.outcome) {
                Some(outcome) if updates.len() == 1 && outcome != Outcome::Done => {
                    let kind = if self.is_read { Kind::Ok } else { Kind::Fail };
                    (kind, Some(unmet(outcome)))
                }
                _ => (Kind::Ok, None),
            },
            Answer::Failed { outcome, .. } => (Kind::Fail, Some(unmet(*outcome))),
            Answer::InDoubt | Answer::Undecided => (Kind::Info, Some(Reason::InDoubt)),
            Answer::Refused(reason) => (Kind::Fail, Some(*reason)),
        };
        let asked = if self.is_read { Asked::Read } else { Asked::Write(Value::MAX) };
        Operation { entry: None, asked, start, end, kind, error, version: self.version() }
    }

    /// Returns the version in the response.
    pub(crate) fn version(&self) -> Option<u64> {
        match self.answer {
            Answer::Shown { version, .. } => Some(version),
            _ => None,
        }
    }

    /// Returns the version in the response if it is certainly that of this write.
    pub(crate) fn written_version(&self) -> Option<u64> {
        let Answer::Shown { version, updates } = &self.answer else { return None };
        let is_single = updates.len() == 1;
        let is_certain = self.updates.iter().zip(updates).any(|(update, shown)| {
            let stores = match update.change {
                Change::Put(_)
                | Change::Add(_)
                | Change::AddQuarters(_)
                | Change::Append(_)
                | Change::SetRange(..) => true,
                Change::Delete => return is_single && shown.outcome == Outcome::Done,
                _ => false,
            };
            let may_pass = match update.lifetime {
                Lifetime::At(_) => true,
                Lifetime::After(millis) | Lifetime::KeepOrAfter(millis) => millis <= 0,
                Lifetime::Never | Lifetime::Keep => false,
            };
            stores && !may_pass && shown.outcome == Outcome::Done
        });
        is_certain.then_some(*version)
    }

    /// Returns the maximum number of entries that the primary removes because this request gave them a deadline.
    pub(crate) fn expiring(&self) -> u64 {
        let expires = |update: &&Update| match (&update.change, update.lifetime) {
            // The copy has the deadline of the entry.
            (Change::Copy(_), _) => true,
            (_, Lifetime::After(_) | Lifetime::At(_) | Lifetime::KeepOrAfter(_)) => true,
            (_, Lifetime::Never | Lifetime::Keep) => false,
        };
        self.updates.iter().filter(expires).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Guard, Shown, Text};
    use super::*;

    fn record(change: Change, answer: Answer) -> ObjectRecord {
        let mut update = Update::new(0, change);
        update.guard = Guard::Value(Text::from(&b"\0\xff7"[..]));
        ObjectRecord {
            keys: vec!["k".to_owned()],
            client: 1,
            start: 2,
            end: 3,
            wall: Span { from: 4, to: 5 },
            is_read: false,
            shows_deadline: true,
            updates: vec![update],
            answer,
        }
    }

    fn shown(outcome: Outcome, value: Option<&[u8]>) -> Answer {
        let updates = vec![Shown { outcome, value: value.map(Text::from), deadline: Some(9) }];
        Answer::Shown { version: 7, updates }
    }

    #[test]
    fn a_record_is_read_back_as_it_was_written() {
        let change = Change::SetRange(3, Text::from(&b"a\"\\\n\xe9"[..]));
        for value in [None, Some(&b""[..]), Some(b"\0\xc3\xbc")] {
            let record = record(change.clone(), shown(Outcome::Done, value));
            let line = serde_json::to_string(&record).unwrap();
            assert_eq!(serde_json::from_str::<ObjectRecord>(&line).unwrap(), record, "{line}");
        }
    }

    #[test]
    fn only_a_write_that_was_certainly_done_has_a_version_of_its_own() {
        let put = || Change::Put(Text::from(&b"1"[..]));
        let done = || shown(Outcome::Done, None);
        assert_eq!(record(put(), done()).written_version(), Some(7));
        assert_eq!(record(Change::Delete, done()).written_version(), Some(7));
        assert_eq!(record(put(), shown(Outcome::Conflict, None)).written_version(), None);
        assert_eq!(record(Change::Check, done()).written_version(), None);
        assert_eq!(record(put(), Answer::InDoubt).written_version(), None);
        let mut late = record(put(), done());
        late.updates[0].lifetime = Lifetime::At(1);
        assert_eq!(late.written_version(), None, "the deadline may have passed");
        assert_eq!(late.expiring(), 1);
    }

    #[test]
    fn a_response_that_shows_an_unmet_condition_is_a_response() {
        let end = |answer| {
            let Operation { kind, error, .. } = record(Change::Delete, answer).operation();
            (kind, error)
        };
        assert_eq!(end(shown(Outcome::Done, None)), (Kind::Ok, None));
        let conflict = (Kind::Fail, Some(Reason::Conflict));
        assert_eq!(end(shown(Outcome::Conflict, None)), conflict);
        assert_eq!(end(Answer::Failed { index: 1, outcome: Outcome::Overflow }), conflict);
        assert_eq!(end(Answer::Refused(Reason::Lost)), (Kind::Fail, Some(Reason::Lost)));
        assert_eq!(end(Answer::InDoubt), (Kind::Info, Some(Reason::InDoubt)));
    }
}
