//! Compares additions with those of a real redis-server, over random pairs of values and amounts. `KV_TEST_SEED`
//! repeats a run.
//!
//! ```text
//!   pair (value, amount) --> SET, INCRBY or INCRBYFLOAT --> redis-server --> text or error --\
//!                      \---> add_integer or add_float -------------------> text or error ----- equal?
//! ```
//!
//! It runs only on x86-64, because Redis computes with C's `long double`, which has other sizes elsewhere.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)] // The crate does no I/O, but this test does.

mod redis;

use std::io::Write as _;

use kv_core::number::{NumberError, add_float, add_integer, format_integer};
use kv_testkit::random::Random;
use redis::{Redis, Response, push_request};

/// The number of pairs of each kind.
const PAIRS: usize = 50_000;
/// The number of pairs that are sent before the responses are read.
const BATCH: usize = 500;

/// Executes a command for each pair, after its value was stored, and returns the responses.
fn add_in(redis: &mut Redis, command: &[u8], pairs: &[Pair]) -> std::io::Result<Vec<Response>> {
    let mut requests = Vec::new();
    for pair in pairs {
        match &pair.value {
            Some(value) => push_request(&mut requests, &[b"SET", b"k", value]),
            None => push_request(&mut requests, &[b"DEL", b"k"]),
        }
        push_request(&mut requests, &[command, b"k", &pair.amount]);
    }
    redis.stream.get_mut().write_all(&requests)?;
    let mut responses = Vec::new();
    for _ in pairs {
        redis.response()?.expect("the value is stored");
        responses.push(redis.response()?);
    }
    Ok(responses)
}

/// A stored value, which may be absent, and an amount.
struct Pair {
    value: Option<Vec<u8>>,
    amount: Vec<u8>,
}

#[test]
#[ignore = "needs redis-server; `make sim` runs it"]
fn integers_are_added_as_redis_does() -> anyhow::Result<()> {
    let messages = [
        (NumberError::NotANumber, "ERR value is not an integer or out of range"),
        (NumberError::Overflow, "ERR increment or decrement would overflow"),
    ];
    let pair = |random: &mut Random| Pair {
        value: (!random.per_mille(20)).then(|| integer_text(random)),
        amount: format_integer(integer(random)).to_vec(),
    };
    let add = |pair: &Pair| {
        let amount = std::str::from_utf8(&pair.amount).expect("digits");
        let amount = amount.parse().expect("an integer");
        let sum = add_integer(pair.value.as_deref(), amount)?;
        Ok(format_integer(sum).to_vec())
    };
    compare(b"INCRBY", messages, pair, add)
}

#[test]
#[ignore = "needs redis-server; `make sim` runs it"]
fn floats_are_added_as_redis_does() -> anyhow::Result<()> {
    let messages = [
        (NumberError::NotANumber, "ERR value is not a valid float"),
        (NumberError::Overflow, "ERR increment would produce NaN or Infinity"),
    ];
    compare(b"INCRBYFLOAT", messages, float_pair, |pair| {
        add_float(pair.value.as_deref(), &pair.amount)
    })
}

/// Executes an addition for random pairs, here and in Redis, and compares the results.
fn compare(
    command: &[u8],
    messages: [(NumberError, &str); 2],
    mut pair: impl FnMut(&mut Random) -> Pair,
    add: impl Fn(&Pair) -> Result<Vec<u8>, NumberError>,
) -> anyhow::Result<()> {
    let mut random = Random::announced();
    let mut redis = Redis::start()?;
    let (mut sums, mut errors) = (0, [0; 2]);
    for _ in 0..PAIRS / BATCH {
        let pairs: Vec<Pair> = (0..BATCH).map(|_| pair(&mut random)).collect();
        for (pair, theirs) in pairs.iter().zip(add_in(&mut redis, command, &pairs)?) {
            let ours = add(pair).map_err(|error| {
                let kind = messages.iter().position(|(kind, _)| *kind == error).expect("a message");
                errors[kind] += 1;
                messages[kind].1.to_owned()
            });
            sums += usize::from(ours.is_ok());
            anyhow::ensure!(
                ours == theirs,
                "{} of {:?} and {:?}: {} here, {} in Redis",
                command.escape_ascii(),
                pair.value.as_deref().map(|value| value.escape_ascii().to_string()),
                pair.amount.escape_ascii().to_string(),
                shown(&ours),
                shown(&theirs)
            );
        }
    }
    let command = command.escape_ascii();
    eprintln!(
        "{command}: {sums} equal sums, {} rejected texts, {} overflows",
        errors[0], errors[1]
    );
    assert!(
        sums > PAIRS / 2 && errors.iter().all(|count| *count > PAIRS / 100),
        "the pairs are varied"
    );
    Ok(())
}

fn shown(response: &Response) -> String {
    match response {
        Ok(text) => format!("\"{}\"", text.escape_ascii()),
        Err(message) => message.clone(),
    }
}

fn float_pair(random: &mut Random) -> Pair {
    if random.per_mille(50) {
        return near_half(random);
    }
    let value = float_text(random);
    let mut amount = if random.per_mille(50) { value.clone() } else { float_text(random) };
    if random.per_mille(50) {
        // Most of the digits cancel, or the halves are equal.
        amount.splice(..usize::from(amount.starts_with(b"-")), *b"-");
    }
    Pair { value: (!random.per_mille(100)).then_some(value), amount }
}

/// Returns two floats whose exact sum or difference is halfway between two floats, or nearly so.
fn near_half(random: &mut Random) -> Pair {
    let exponent = random.below(300).cast_signed() - 50;
    let bits = if random.per_mille(300) { 1 << 63 } else { random.any() | 1 << 63 };
    let value = hexadecimal(bits, exponent, random);
    let places = random.between(63, 66).cast_signed();
    let mut amount = hexadecimal(1 << 63 | random.below(3), exponent - places, random);
    if random.per_mille(500) {
        amount.insert(0, b'-');
    }
    Pair { value: Some(value), amount }
}

/// Returns an integer whose magnitude has any number of bits, or one near the ends of the range.
fn integer(random: &mut Random) -> i64 {
    let bits = random.any().cast_signed() >> random.below(64);
    match random.below(10) {
        0 => i64::MAX - (bits & 7),
        1 => i64::MIN + (bits & 7),
        _ => bits,
    }
}

fn integer_text(random: &mut Random) -> Vec<u8> {
    let text = format_integer(integer(random)).to_vec();
    match random.below(20) {
        0 => vary(text, b"0123456789-+ .", random),
        1 => random.any().to_string().into_bytes(),
        2 => format!("-{}", random.any()).into_bytes(),
        3 => digits(18, 22, random),
        _ => text,
    }
}

/// Returns a text that Redis reads as a float, or a similar one that it rejects.
fn float_text(random: &mut Random) -> Vec<u8> {
    let text = match random.below(100) {
        0..=34 => decimal(1, 20, random),
        35..=44 => decimal(1, 60, random),
        45 => decimal(100, 5_115, random),
        // Halfway between two integers of 64 bits, or nearly so.
        46..=50 => {
            let odd = u128::from(random.any() >> random.below(4)) * 2 + 1;
            let near = (odd << random.below(63)) + u128::from(random.below(3)) - 1;
            near.to_string().into_bytes()
        }
        // The same with differences after many zeros.
        51..=53 => {
            let (odd, zeros) = (u128::from(random.any()) * 2 + 1, "0".repeat(random.length(0, 60)));
            let last = ["", "1"][random.index(2)];
            match random.below(3) {
                0 => format!("{odd}.{zeros}{last}"),
                1 => format!("0x{odd:x}{zeros}{last}"),
                _ => format!("0x{odd:x}.{zeros}{last}"),
            }
            .into_bytes()
        }
        // Halves of the 17th decimal place: multiples of 2^-18 and of smaller powers of two.
        54..=61 => {
            let places = random.between(17, 24);
            hexadecimal(random.any() >> random.between(4, 60), -places.cast_signed(), random)
        }
        62..=71 => {
            let exponent = random.between(0, 200).cast_signed() - 100;
            hexadecimal(random.any() >> random.below(64), exponent, random)
        }
        // The ends of the range, and of that of normal numbers.
        72..=79 => {
            let end = [16_320, 16_384, -16_382, -16_445, -16_446, -16_509][random.index(6)];
            let exponent = end + random.below(9).cast_signed() - 4;
            hexadecimal(random.any() >> random.below(64), exponent, random)
        }
        80..=84 => {
            let end: &[u8] = [
                b"1.18973149535723176502".as_slice(),
                b"1.189731495357231765085759326628007",
                b"1.18973149535723176502126385303097020516906332229462420044032373389",
                b"3.36210314311209350626267781732175260",
                b"3.6451995318824746025e-4951",
                b"1.82259976594123730126420",
            ][random.index(6)];
            let mut text = end.to_vec();
            if !text.contains(&b'e') {
                text.extend_from_slice(
                    [b"e4932".as_slice(), b"e-4932", b"e-4951"][random.index(3)],
                );
            }
            if random.per_mille(500) { text } else { vary(text, b"0123456789", random) }
        }
        85..=92 => format_integer(integer(random)).to_vec(),
        93..=95 => [
            b"inf".as_slice(),
            b"INFINITY",
            b"+Inf",
            b"nan",
            b"NaN(1)",
            b"0",
            b"-0",
            b"0x0p-99999",
            b"0e9999999",
        ][random.index(9)]
        .to_vec(),
        96 => (0..random.below(6)).map(|_| random.bytes(1)[0]).collect(),
        _ => {
            let text = decimal(1, 12, random);
            vary(text, b"0123456789.eEpPxX+-_infaty \t\n\0", random)
        }
    };
    if random.per_mille(250) { [b"-".as_slice(), &text].concat() } else { text }
}

fn digits(low: usize, high: usize, random: &mut Random) -> Vec<u8> {
    (0..random.length(low, high)).map(|_| b"0123456789"[random.index(10)]).collect()
}

/// Returns a decimal number with this many digits, often with a point and with an exponent.
fn decimal(low: usize, high: usize, random: &mut Random) -> Vec<u8> {
    let mut text = digits(low, high, random);
    if random.per_mille(700) {
        text.insert(random.index(text.len() + 1), b'.');
    }
    let exponent = match random.below(20) {
        0..=11 => return text,
        12..=16 => random.below(60).cast_signed() - 30,
        17..=18 => random.below(10_000).cast_signed() - 5_000,
        _ => random.any().cast_signed() >> random.below(64),
    };
    let mark = ["e", "E"][random.index(2)];
    let sign = if exponent >= 0 && random.per_mille(300) { "+" } else { "" };
    text.extend_from_slice(format!("{mark}{sign}{exponent}").as_bytes());
    text
}

/// Returns the text of `bits * 2^exponent` with hexadecimal digits, often with a point.
fn hexadecimal(bits: u64, exponent: i64, random: &mut Random) -> Vec<u8> {
    let digits = if random.per_mille(500) { format!("{bits:x}") } else { format!("{bits:X}") };
    let (whole, fraction) = digits.split_at(random.index(digits.len() + 1));
    let exponent = exponent + 4 * i64::try_from(fraction.len()).expect("a few digits");
    let point = if fraction.is_empty() && random.per_mille(700) { "" } else { "." };
    format!("0x{whole}{point}{fraction}p{exponent}").into_bytes()
}

/// Inserts, replaces or removes a byte.
fn vary(mut text: Vec<u8>, alphabet: &[u8], random: &mut Random) -> Vec<u8> {
    let (at, byte) = (random.index(text.len()), alphabet[random.index(alphabet.len())]);
    match random.below(3) {
        0 => text.insert(at, byte),
        1 => text[at] = byte,
        _ => drop(text.remove(at)),
    }
    text
}
