//! 4: a sequence number belongs to one write forever.

use std::collections::HashMap;

use crate::checks::{Place, Question};
use crate::invariants::Violation;

/// The write that has a sequence number, by place and sequence number.
pub type Numbers = HashMap<(Place, u64), Question>;

/// Checks a write that was acknowledged with OK under this sequence number.
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
        "shard {}: sequence number {version} belongs to the writes {known:?} and {question:?}",
        place.1
    );
    Err(Violation::of(place.0, 4, words))
}
