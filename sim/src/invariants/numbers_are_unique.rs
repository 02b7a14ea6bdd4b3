//! 4: a sequence number belongs to one write for ever.

use std::collections::HashMap;

use crate::checks::{Place, Question};
use crate::invariants::Violation;

/// By place and number: whose write it is.
pub type Numbers = HashMap<(Place, u64), Question>;

/// A write was answered OK under this number.
pub fn check(
    numbers: &mut Numbers,
    place: Place,
    version: u64,
    question: Question,
) -> Result<(), Violation> {
    let known = *numbers.entry((place, version)).or_insert(question);
    if known == question {
        return Ok(());
    }
    let words = format_args!(
        "shard {}: number {version} is the write {known:?} and the write {question:?}",
        place.1
    );
    Err(Violation::of(place.0, 4, words))
}
