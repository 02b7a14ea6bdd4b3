//! Compares the parser of commands with the crate `redis-protocol`, over commands and damaged commands. `KV_TEST_SEED`
//! repeats a run.
//!
//! ```text
//!   random commands --> damaged --> whole ----> CommandParser --\
//!                              \--> in parts -> CommandParser ----- equal?
//!                               \-> whole ----> redis-protocol -/
//! ```
//!
//! The crate parses replies, of which a command is one form: an array of bulk strings. The two differ by design:
//! - Only the parser knows lines of words, and only the crate knows other kinds of elements and null.
//! - An empty array is no command. The crate returns it.
//! - The crate accepts numbers with a plus sign or leading zeros. Redis and the parser do not.
//! - The crate searches for `\r\n` behind a number. Redis and the parser search for `\r` and skip the byte behind it.
//! - The parser has the limits of Redis.

#![allow(clippy::disallowed_macros)] // The crate does no output, but this test does.

use kv_redis::resp::{CommandParser, MAX_COMMAND_BYTES, ParseError, Parsed};
use kv_testkit::random::Random;
use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

type Args = Vec<Vec<u8>>;

/// The result of one call of the parser.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Command(Args, usize),
    Nothing(usize),
    Incomplete,
    Error(ParseError),
}

/// The number of times that each result occurred.
#[derive(Debug, Default)]
struct Seen {
    commands: u64,
    lax: u64,
    nothing: u64,
    incomplete: u64,
    errors: u64,
    differences: u64,
}

fn event(parser: &mut CommandParser, bytes: &[u8]) -> Event {
    match parser.parse(bytes) {
        Ok(Parsed::Command { args, consumed }) => {
            Event::Command(args.iter().map(<[u8]>::to_vec).collect(), consumed)
        }
        Ok(Parsed::Nothing { consumed }) => Event::Nothing(consumed),
        Ok(Parsed::Incomplete { missing }) => {
            assert!(missing > 0);
            Event::Incomplete
        }
        Err(error) => Event::Error(error),
    }
}

fn encode(args: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Returns the command with which the bytes begin, and its length, according to the oracle.
fn oracle(bytes: &[u8]) -> Option<(Args, usize)> {
    let Ok(Some((OwnedFrame::Array(frames), consumed))) = decode(bytes) else { return None };
    let bulk = |frame| match frame {
        OwnedFrame::BulkString(bytes) => Some(bytes),
        _ => None,
    };
    let args: Args = frames.into_iter().map(bulk).collect::<Option<_>>()?;
    (!args.is_empty()).then_some((args, consumed))
}

/// Returns one or more commands, usually damaged, without an inline command at the start.
fn input(random: &mut Random) -> Vec<u8> {
    const PARTS: [&[u8]; 16] = [
        b"*",
        b"$",
        b"\r\n",
        b"\r",
        b"\n",
        b"0",
        b"1",
        b"-1",
        b"+",
        b"*0\r\n",
        b"*-1\r\n",
        b"$0\r\n\r\n",
        b"*1\r\n",
        b"$1\r\n",
        b"x",
        b"\0",
    ];
    let mut bytes = Vec::new();
    for _ in 0..random.length(1, 3) {
        let args: Args = (0..random.length(1, 4))
            .map(|_| (0..random.length(0, 12)).map(|_| b"ab\r\n*$1 "[random.index(8)]).collect())
            .collect();
        bytes.extend(encode(&args));
    }
    for _ in 0..random.length(0, 3) {
        let at = random.index(bytes.len() + 1);
        let end = (at + random.index(4)).min(bytes.len());
        let part = PARTS[random.index(PARTS.len())];
        match random.below(4) {
            0 => drop(bytes.splice(at..end, part.iter().copied())),
            1 => drop(bytes.splice(at..at, part.iter().copied())),
            2 => drop(bytes.drain(at..end)),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

/// Compares one call of the parser with the oracle.
fn check(bytes: &[u8], event: &Event, seen: &mut Seen) {
    let shown = bytes.escape_ascii();
    let expected = oracle(bytes);
    if let Event::Command(args, consumed) = event {
        let exact = encode(args);
        assert_eq!(exact.len(), *consumed, "{shown}");
        assert_eq!(oracle(&exact), Some((args.clone(), *consumed)), "{shown}");
        seen.commands += 1;
        if bytes[..*consumed] != exact {
            seen.lax += 1;
            return;
        }
    }
    match (expected, event) {
        // Every other form of a number is longer.
        (Some((args, consumed)), event) if encode(&args).len() == consumed => {
            assert_eq!(*event, Event::Command(args, consumed), "{shown}");
        }
        (Some(_), Event::Error(_)) => seen.differences += 1,
        (Some(_), event) => panic!("{shown}: {event:?}"),
        (None, Event::Command(..)) => panic!("the oracle sees no command: {shown}"),
        (None, _) => {}
    }
}

fn compare(inputs: u64) {
    let mut random = Random::announced();
    let mut seen = Seen::default();
    for _ in 0..inputs {
        let bytes = input(&mut random);
        let (mut parser, mut parts) =
            (CommandParser::new(MAX_COMMAND_BYTES), CommandParser::new(MAX_COMMAND_BYTES));
        let mut rest = &bytes[..];
        while let [b'*', ..] = rest {
            let result = event(&mut parser, rest);
            check(rest, &result, &mut seen);
            // The same bytes in parts. The parser may stop before it has them all.
            let mut end = 0;
            let in_parts = loop {
                end = (end + random.length(1, 8)).min(rest.len());
                let result = event(&mut parts, &rest[..end]);
                if result != Event::Incomplete || end == rest.len() {
                    break result;
                }
            };
            assert_eq!(in_parts, result, "{}", rest.escape_ascii());
            match result {
                Event::Command(_, consumed) => rest = &rest[consumed..],
                Event::Nothing(consumed) => {
                    seen.nothing += 1;
                    rest = &rest[consumed..];
                }
                Event::Incomplete => {
                    seen.incomplete += 1;
                    break;
                }
                Event::Error(_) => {
                    seen.errors += 1;
                    break;
                }
            }
        }
    }
    eprintln!("{inputs} inputs: {seen:?}");
    let Seen { commands, lax, nothing, incomplete, errors, differences } = seen;
    let kinds = [commands, lax, nothing, incomplete, errors, differences];
    assert!(kinds.iter().all(|count| *count > 0), "the inputs are too uniform: {seen:?}");
}

#[test]
fn commands_and_damaged_commands_are_parsed_as_the_oracle_does() {
    compare(20_000);
}

#[test]
#[ignore = "takes minutes; `make sim` runs it"]
fn ten_million_inputs_are_parsed_as_the_oracle_does() {
    compare(10_000_000);
}
