//! 13: each write of a session executes at most once, and all its answers are equal.

use std::collections::HashMap;

use kv_protocol::client_message::Status;

use crate::checks::{Place, Question};
use crate::invariants::Violation;
use crate::server::Answered;

/// By write: what it was answered.
pub type Answers = HashMap<Question, (Status, u64)>;

/// A write was answered for good.
pub fn check(
    answers: &mut Answers,
    place: Place,
    question: Question,
    answered: &Answered,
) -> Result<(), Violation> {
    let now = (answered.status, answered.version.0);
    let first = *answers.entry(question).or_insert(now);
    if first == now {
        return Ok(());
    }
    let words = format_args!("the write {question:?} was answered {first:?}, and now {now:?}");
    Err(Violation::of(place.0, 13, words))
}
