//! Parts of values.

use std::ops::Range;

use kv_protocol::client_message::Part;
use kv_protocol::limits::MAX_VALUE_BYTES;
use kv_protocol::update::{Action, Update};

use super::counters::number;
use super::{Command, Context, FAST_GROWING, FAST_READ, GROWING, Keys, Perform, READ};
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The commands of the family.
pub(super) const COMMANDS: &[Command] = &[
    of("append", 3, FAST_GROWING, "2.0.0", "Appends to the value of a key.", append),
    of("strlen", 2, FAST_READ, "2.2.0", "Returns the length of the value of a key.", strlen),
    of("getrange", 4, READ, "2.4.0", "Returns a part of the value of a key.", getrange),
    of("substr", 4, READ, "1.0.0", "Returns a part of the value, as GETRANGE.", getrange),
    of("setrange", 4, GROWING, "2.2.0", "Overwrites a part of the value of a key.", setrange),
];

const fn of(
    name: &'static str,
    arity: i32,
    flags: &'static [&'static str],
    since: &'static str,
    summary: &'static str,
    perform: Perform,
) -> Command {
    let (keys, group) = (Keys::ONE, "string");
    Command { name, arity, flags, keys, group, since, summary, perform, subcommands: &[] }
}

/// The part of a value without bytes. The response has the length of the value.
const LENGTH: Part = Part::new(0, 0);

fn append(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let update = Update::new(Action::Append(context.args[2]));
    Ok(Plan::one(Ask::try_update(&context.key(1)?, &[update])?, number))
}

fn strlen(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    length(&context.key(1)?)
}

fn length(key: &[u8]) -> Result<Plan, Error> {
    Ok(Plan::one(Ask::part(key, LENGTH), |answer, reply| {
        reply.integer(if answer.is_done() { answer.whole.into() } else { 0 });
        Ok(Plan::Replied)
    }))
}

fn setrange(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let (key, bytes) = (context.key(1)?, context.args[3]);
    let offset = match context.integer(2)? {
        ..0 => return Err(Error::Stated("ERR offset is out of range")),
        offset => u32::try_from(offset).ok(),
    };
    if bytes.is_empty() {
        return length(&key);
    }
    let offset = offset.filter(|offset| *offset as usize <= MAX_VALUE_BYTES);
    let offset = offset.ok_or(error::TOO_LONG)?;
    let update = Update::new(Action::SetRange { offset, bytes });
    Ok(Plan::one(Ask::try_update(&key, &[update])?, number))
}

fn getrange(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let (start, end) = (context.integer(2)?, context.integer(3)?);
    let part = part(start, end);
    Ok(Plan::one(Ask::part(&context.key(1)?, part), move |answer, reply| {
        let whole = answer.whole as usize;
        let (wanted, received) = (range(start, end, whole), part.of(whole));
        let bytes = answer.value.filter(|_| answer.is_done()).unwrap_or(&[]);
        let from = wanted.start.saturating_sub(received.start);
        reply.bulk(bytes.get(from..from + wanted.len()).unwrap_or(&[]));
        Ok(Plan::Replied)
    }))
}

/// Returns a part of the value that contains the bytes from `start` to `end`, both of which count from the end of the
/// value if they are negative.
fn part(start: i64, end: i64) -> Part {
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let count = end.saturating_sub(start).saturating_add(1);
    let most = match (start < 0, end < 0) {
        (is_first, is_last) if is_first == is_last => u64::try_from(count).unwrap_or(0),
        (true, _) => end.unsigned_abs().saturating_add(1),
        (false, _) => u64::MAX,
    };
    Part { from_end: start < 0, ..Part::new(short(start.unsigned_abs()), short(most)) }
}

/// Returns the range of a value of this length from `start` to `end`, as Redis counts: an end before the value is its
/// first byte.
fn range(start: i64, end: i64, length: usize) -> Range<usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    if (start < 0 && end < 0 && start > end) || length == 0 {
        return 0..0;
    }
    let at = |at: i64| if at < 0 { at.saturating_add(length).max(0) } else { at };
    let (start, end) = (at(start), at(end).min(length - 1));
    match (usize::try_from(start), usize::try_from(end)) {
        (Ok(start), Ok(end)) if start <= end => start..end + 1,
        _ => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_part_that_is_read_contains_the_range(
            start in prop_oneof![-12i64..12, any::<i64>()],
            end in prop_oneof![-12i64..12, any::<i64>()],
            length in 0usize..10,
        ) {
            let (range, part) = (range(start, end, length), part(start, end).of(length));
            let is_within = part.start <= range.start && range.end <= part.end;
            prop_assert!(range.is_empty() || is_within, "{:?} {:?}", range, part);
        }
    }

    #[test]
    fn ranges_are_those_of_redis() {
        assert_eq!(range(0, -1, 3), 0..3);
        assert_eq!(range(0, -10, 3), 0..1);
        assert_eq!(range(-1, -2, 3), 0..0);
        assert_eq!(range(5, 9, 3), 0..0);
        assert_eq!(range(-100, 100, 3), 0..3);
    }
}
