//! Commands that are lines of words, as people type them.
//!
//! Words are separated by spaces. Double quotes surround a text with the escapes `\n`, `\r`, `\t`, `\b`, `\a` and `\xHH`;
//! before any other byte, a backslash stands for nothing. Single quotes surround a text in which only `\'` is an escape.
//! A quote may begin within a word, but ends it.

use super::{ParseError, Span};

/// Splits a line without its end into words, and appends the decoded words and their places.
pub(super) fn split(
    line: &[u8],
    decoded: &mut Vec<u8>,
    spans: &mut Vec<Span>,
) -> Result<(), ParseError> {
    let mut rest = line;
    loop {
        while let [first, after @ ..] = rest
            && is_space(*first)
        {
            rest = after;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let start = decoded.len();
        rest = word(rest, decoded)?;
        spans.push(Span::new(start, decoded.len()));
    }
}

/// Decodes the word with which a text begins, and returns the rest of the text.
fn word<'a>(mut rest: &'a [u8], decoded: &mut Vec<u8>) -> Result<&'a [u8], ParseError> {
    loop {
        match rest {
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Ok(rest),
            [b'"', after @ ..] => return closed(double_quoted(after, decoded)?),
            [b'\'', after @ ..] => return closed(single_quoted(after, decoded)?),
            [byte, after @ ..] => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
}

/// Decodes the text up to a closing double quote, and returns what follows the quote.
fn double_quoted<'a>(mut rest: &'a [u8], decoded: &mut Vec<u8>) -> Result<&'a [u8], ParseError> {
    loop {
        let (byte, after) = match rest {
            [] => return Err(ParseError::UnbalancedQuotes),
            [b'"', after @ ..] => return Ok(after),
            [b'\\', b'x', high, low, after @ ..]
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                (16 * nibble(*high) + nibble(*low), after)
            }
            [b'\\', escaped, after @ ..] => (unescaped(*escaped), after),
            [byte, after @ ..] => (*byte, after),
        };
        decoded.push(byte);
        rest = after;
    }
}

/// Decodes the text up to a closing single quote, and returns what follows the quote.
fn single_quoted<'a>(mut rest: &'a [u8], decoded: &mut Vec<u8>) -> Result<&'a [u8], ParseError> {
    loop {
        let (byte, after) = match rest {
            [] => return Err(ParseError::UnbalancedQuotes),
            [b'\\', b'\'', after @ ..] => (b'\'', after),
            [b'\'', after @ ..] => return Ok(after),
            [byte, after @ ..] => (*byte, after),
        };
        decoded.push(byte);
        rest = after;
    }
}

/// Checks that a closing quote ends the word.
fn closed(rest: &[u8]) -> Result<&[u8], ParseError> {
    match rest.first() {
        Some(byte) if !is_space(*byte) => Err(ParseError::UnbalancedQuotes),
        _ => Ok(rest),
    }
}

/// Returns whether a byte is a space in C's sense.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn nibble(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit.to_ascii_lowercase() - b'a' + 10,
    }
}

fn unescaped(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}
