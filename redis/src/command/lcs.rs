//! The longest common subsequence of two values.

use kv_protocol::client_message::Part;
use kv_protocol::limits::MAX_VALUE_BYTES;

use super::{Command, Context, Keys, READ};
use crate::ask::Ask;
use crate::error::{self, Error};
use crate::plan::Plan;
use crate::resp::Reply;

/// The command.
pub(super) const COMMANDS: &[Command] = &[Command {
    name: "lcs",
    arity: -3,
    flags: READ,
    keys: Keys::TWO,
    group: "string",
    since: "7.0.0",
    summary: "Returns the longest common subsequence of two values.",
    perform: lcs,
    subcommands: &[],
}];

/// The number of bytes of an element of the table of lengths.
const CELL_BYTES: usize = size_of::<u32>();
/// Redis also limits the table to the length of a value.
const TABLE_TOO_LARGE: Error =
    Error::Stated("ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len");

/// The content of the reply.
#[derive(Clone, Copy, Debug, Default)]
struct Options {
    only_length: bool,
    matches: bool,
    match_length_min: i64,
    with_match_length: bool,
}

/// A run of equal bytes: where it begins in both values, and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: usize,
    second: usize,
    length: usize,
}

fn lcs(context: &mut Context<'_>, _: &mut Reply<'_>) -> Result<Plan, Error> {
    let options = options(context)?;
    // A longer value needs a table that is too large, with any other value.
    let most = u32::try_from(MAX_VALUE_BYTES / CELL_BYTES).unwrap_or(u32::MAX);
    let part = Part { all_or_nothing: true, ..Part::new(0, most) };
    let asks = vec![Ask::part(&context.key(1)?, part), Ask::part(&context.key(2)?, part)];
    Ok(Plan::all(asks, move |answers, reply| {
        let [first, second] = [0, 1].map(|index| answers[index].value.unwrap_or(&[]));
        let is_cut = |index: usize, value: &[u8]| {
            answers[index].is_done() && value.len() < answers[index].whole as usize
        };
        if is_cut(0, first) || is_cut(1, second) {
            return Err(TABLE_TOO_LARGE);
        }
        let table = Table::new(first, second)?;
        if options.only_length {
            reply.integer(integer(table.length()));
            return Ok(Plan::Replied);
        }
        let runs = table.runs();
        match options.matches {
            true => write_matches(options, &runs, table.length(), reply),
            false => {
                let parts = runs.iter().rev().map(|run| &first[run.first..][..run.length]);
                reply.bulk(&parts.collect::<Vec<_>>().concat());
            }
        }
        Ok(Plan::Replied)
    }))
}

fn options(context: &Context<'_>) -> Result<Options, Error> {
    let mut options = Options::default();
    let mut at = 3;
    while at < context.args.len() {
        if context.is(at, "idx") {
            options.matches = true;
        } else if context.is(at, "len") {
            options.only_length = true;
        } else if context.is(at, "withmatchlen") {
            options.with_match_length = true;
        } else if context.is(at, "minmatchlen") && at + 1 < context.args.len() {
            at += 1;
            options.match_length_min = context.integer(at)?;
        } else {
            return Err(error::SYNTAX);
        }
        at += 1;
    }
    match options.matches && options.only_length {
        true => {
            Err(Error::Stated("ERR If you want both the length and indexes, please just use IDX."))
        }
        false => Ok(options),
    }
}

/// Writes the runs, from the last to the first.
fn write_matches(options: Options, runs: &[Run], length: usize, reply: &mut Reply<'_>) {
    let is_shown = |run: &&Run| integer(run.length) >= options.match_length_min;
    reply.map(2);
    reply.bulk(b"matches");
    reply.array(runs.iter().filter(is_shown).count());
    for Run { first, second, length } in runs.iter().filter(is_shown) {
        reply.array(if options.with_match_length { 3 } else { 2 });
        for from in [first, second] {
            reply.array(2);
            reply.integer(integer(*from));
            reply.integer(integer(from + length - 1));
        }
        if options.with_match_length {
            reply.integer(integer(*length));
        }
    }
    reply.bulk(b"len");
    reply.integer(integer(length));
}

fn integer(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The lengths of the longest common subsequences of all pairs of prefixes.
struct Table<'a> {
    first: &'a [u8],
    second: &'a [u8],
    lengths: Vec<u32>,
}

impl<'a> Table<'a> {
    fn new(first: &'a [u8], second: &'a [u8]) -> Result<Table<'a>, Error> {
        let columns = second.len() + 1;
        let cells = (first.len() + 1).saturating_mul(columns);
        if cells.saturating_mul(CELL_BYTES) > MAX_VALUE_BYTES {
            return Err(TABLE_TOO_LARGE);
        }
        let mut lengths = vec![0; cells];
        for (row, byte) in first.iter().enumerate() {
            let (above, below) = lengths[row * columns..].split_at_mut(columns);
            for (column, other) in second.iter().enumerate() {
                below[column + 1] = match byte == other {
                    true => above[column] + 1,
                    false => above[column + 1].max(below[column]),
                };
            }
        }
        Ok(Table { first, second, lengths })
    }

    /// Returns the length for prefixes of these lengths.
    fn at(&self, first: usize, second: usize) -> u32 {
        self.lengths[first * (self.second.len() + 1) + second]
    }

    fn length(&self) -> usize {
        self.at(self.first.len(), self.second.len()) as usize
    }

    /// Returns the runs of a longest common subsequence, from the last to the first. Of several subsequences, it is the
    /// one that Redis finds: a byte of the second value is skipped first.
    fn runs(&self) -> Vec<Run> {
        let (mut first, mut second) = (self.first.len(), self.second.len());
        let mut runs: Vec<Run> = Vec::new();
        let mut extends = false;
        while first > 0 && second > 0 {
            if self.first[first - 1] == self.second[second - 1] {
                (first, second) = (first - 1, second - 1);
                match runs.last_mut().filter(|_| extends) {
                    Some(run) => *run = Run { first, second, length: run.length + 1 },
                    None => runs.push(Run { first, second, length: 1 }),
                }
                extends = true;
                continue;
            }
            extends = false;
            match self.at(first - 1, second) > self.at(first, second - 1) {
                true => first -= 1,
                false => second -= 1,
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Door;

    #[test]
    fn the_subsequence_is_that_of_redis() {
        let mut door = Door::new();
        door.say("mset a ohmytext b mynewtext");
        for (options, reply) in [
            ("", "$6 mytext"),
            (" LEN", ":6"),
            (" IDX", "*4 $7 matches *2 *2 *2 :4 :7 *2 :5 :8 *2 *2 :2 :3 *2 :0 :1 $3 len :6"),
            (" IDX MINMATCHLEN 4", "*4 $7 matches *1 *2 *2 :4 :7 *2 :5 :8 $3 len :6"),
            (
                " IDX MINMATCHLEN 4 WITHMATCHLEN",
                "*4 $7 matches *1 *3 *2 :4 :7 *2 :5 :8 :4 $3 len :6",
            ),
            (" LEN IDX", "-ERR If you want both the length and indexes, please just use IDX."),
            (" MINMATCHLEN", "-ERR syntax error"),
            (" MINMATCHLEN x", "-ERR value is not an integer or out of range"),
        ] {
            assert_eq!(door.say(&format!("lcs a b{options}")), reply, "{options}");
        }
        assert_eq!(door.say("lcs a absent"), "$0");
    }

    #[test]
    fn a_table_that_is_too_large_is_not_made() {
        let mut door = Door::new();
        door.run(&[b"set", b"fits", &[1; 2_047]]);
        door.run(&[b"set", b"large", &[1; 2_048]]);
        door.run(&[b"set", b"huge", &vec![1; (4 << 20) + 1]]);
        assert_eq!(door.say("lcs fits fits len"), ":2047");
        for other in ["fits", "huge", "absent"] {
            let large = if other == "absent" { "huge" } else { "large" };
            let reply = door.say(&format!("lcs {large} {other}"));
            assert!(reply.starts_with("-ERR Insufficient memory, transient memory"), "{reply}");
        }
    }
}
