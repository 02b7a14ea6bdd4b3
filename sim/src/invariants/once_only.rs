//! 13: each write of a session executes at most once, and all responses to it are equal.

use std::collections::HashMap;

use kv_protocol::client_message::Status;

use crate::checks::{Place, Question};
use crate::invariants::Violation;
use crate::server::SentResponse;

/// The definite response to a write, by write.
pub type Responses = HashMap<Question, (Status, u64)>;

/// Checks a definite response to a write.
pub fn check(
    responses: &mut Responses,
    place: Place,
    question: Question,
    responded: &SentResponse,
) -> Result<(), Violation> {
    let now = (responded.status, responded.version.0);
    let first = *responses.entry(question).or_insert(now);
    if first == now {
        return Ok(());
    }
    let words = format_args!("write {question:?} got {first:?} before, and {now:?} now");
    Err(Violation::of(place.0, 13, words))
}
