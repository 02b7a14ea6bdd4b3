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

/// The number of bytes of an element of the table of lengths that Redis makes.
const CELL_BYTES: usize = size_of::<u32>();
/// The maximum length of a value. So a table, and the values for it, take less than a millisecond.
const BYTES_MAX: u32 = 128 << 10;
/// The number of bits of a word of a table.
const WORD: usize = u64::BITS as usize;
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
    let part = Part { all_or_nothing: true, ..Part::new(0, BYTES_MAX) };
    let ask = |at| Ok(Ask::part(&context.key(at)?, part).costly());
    let asks = vec![ask(1)?, ask(2)?];
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

/// The lengths of the longest common subsequences of all pairs of prefixes. A bit of each says whether it is one more than
/// that with the second prefix one byte shorter. The bits of 64 pairs are computed at once.
struct Table<'a> {
    first: &'a [u8],
    second: &'a [u8],
    /// The number of words of a row, which has the pairs with one prefix of the first value.
    width: usize,
    /// The inverted bits, without the row of the empty prefix.
    rows: Vec<u64>,
}

impl<'a> Table<'a> {
    fn new(first: &'a [u8], second: &'a [u8]) -> Result<Table<'a>, Error> {
        let cells = (first.len() + 1).saturating_mul(second.len() + 1);
        if cells.saturating_mul(CELL_BYTES) > MAX_VALUE_BYTES {
            return Err(TABLE_TOO_LARGE);
        }
        let width = second.len().div_ceil(WORD);
        let places = Places::new(first, second, width);
        let mut rows = Vec::with_capacity(first.len() * width);
        for (row, byte) in first.iter().enumerate() {
            let mut carry = false;
            for (column, equal) in places.of(*byte).iter().enumerate() {
                let above = match row {
                    0 => u64::MAX,
                    row => rows[(row - 1) * width + column],
                };
                // The lowest equal place after each increment gets the increment: a carry runs up to it.
                let (sum, first_carry) = above.overflowing_add(above & equal);
                let (sum, second_carry) = sum.overflowing_add(carry.into());
                carry = first_carry || second_carry;
                rows.push(sum | (above & !equal));
            }
        }
        Ok(Table { first, second, width, rows })
    }

    /// Returns whether the length for prefixes of these lengths, both positive, is one more than that with the second
    /// prefix one byte shorter.
    fn increments(&self, first: usize, second: usize) -> bool {
        let (word, bit) = ((second - 1) / WORD, (second - 1) % WORD);
        self.rows[(first - 1) * self.width + word] & (1 << bit) == 0
    }

    fn length(&self) -> usize {
        let increments = |second: &usize| self.increments(self.first.len(), *second);
        if self.first.is_empty() { 0 } else { (1..=self.second.len()).filter(increments).count() }
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
            // The bytes differ, so one of both shorter prefixes has the same length.
            match self.increments(first, second) {
                true => first -= 1,
                false => second -= 1,
            }
        }
        runs
    }
}

/// The places at which each byte of the first value occurs in the second one, as bits.
struct Places {
    /// The index of the bits of each byte, plus one; 0 for a byte that the first value does not have.
    indexes: [usize; 256],
    bits: Vec<u64>,
    width: usize,
}

impl Places {
    fn new(first: &[u8], second: &[u8], width: usize) -> Places {
        let (mut indexes, mut count) = ([0; 256], 0);
        for byte in first {
            let index = &mut indexes[usize::from(*byte)];
            if *index == 0 {
                count += 1;
                *index = count;
            }
        }
        let mut bits = vec![0; count * width];
        for (at, byte) in second.iter().enumerate() {
            if let Some(index) = indexes[usize::from(*byte)].checked_sub(1) {
                bits[index * width + at / WORD] |= 1 << (at % WORD);
            }
        }
        Places { indexes, bits, width }
    }

    /// Returns the bits of a byte that the first value has.
    fn of(&self, byte: u8) -> &[u64] {
        let index = self.indexes[usize::from(byte)].saturating_sub(1);
        &self.bits[index * self.width..][..self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Door;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_table_has_the_lengths_of_all_prefixes(
            first in prop::collection::vec(0u8..4, 0..150),
            second in prop::collection::vec(0u8..4, 0..150),
        ) {
            let table = Table::new(&first, &second).unwrap();
            let mut lengths = vec![vec![0; second.len() + 1]; first.len() + 1];
            for i in 1..=first.len() {
                for j in 1..=second.len() {
                    lengths[i][j] = match first[i - 1] == second[j - 1] {
                        true => lengths[i - 1][j - 1] + 1,
                        false => lengths[i - 1][j].max(lengths[i][j - 1]),
                    };
                    let expected = lengths[i][j] > lengths[i][j - 1];
                    prop_assert_eq!(table.increments(i, j), expected, "{} {}", i, j);
                }
            }
            prop_assert_eq!(table.length(), lengths[first.len()][second.len()]);
            let runs = table.runs();
            prop_assert_eq!(runs.iter().map(|run| run.length).sum::<usize>(), table.length());
            for Run { first: from, second: to, length } in runs {
                prop_assert_eq!(&first[from..from + length], &second[to..to + length]);
            }
        }
    }

    /// A shard serves several hundred commands in one wake-up. A server whose wake-up takes half a second ends.
    #[test]
    #[allow(clippy::disallowed_methods)] // Only the test reads the clock.
    fn many_tables_of_maximum_size_take_less_time_than_a_shard_may_stand_still() {
        let values = [(2_047, 2_047), (31, 131_071), (131_071, 31)];
        let values = values.map(|(first, second)| (vec![1; first], vec![1; second]));
        let begin = std::time::Instant::now();
        for (first, second) in values.iter().cycle().take(60) {
            let runs = Table::new(first, second).unwrap().runs();
            assert_eq!(runs[0].length, first.len().min(second.len()));
        }
        // The table of Redis takes ten times as long.
        assert!(begin.elapsed() < std::time::Duration::from_millis(300), "{:?}", begin.elapsed());
    }

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
