//! The numbers that values hold as text, exactly as Redis 7 keeps them on x86-64.
//!
//! ```text
//!   integer   canonical decimal, 64 bits, signed       "-42"      Redis: string2ll, INCRBY
//!   float     what C's strtold reads, as 80 bits       "1e-3"     Redis: string2ld, INCRBYFLOAT
//!             with at most 17 decimal places           "0.001"    Redis: ld2string (LD_STR_HUMAN)
//! ```
//!
//! The results are the same on every machine, because no function here uses the machine's floating-point unit. So all
//! replicas that execute the same operation store the same text.

mod extended;
#[cfg(test)]
mod tests;

use std::ops::Deref;

use extended::{Extended, Finite};

/// The length of the longest integer text, `-9223372036854775808`.
const MAX_INTEGER_LENGTH: usize = 20;

/// The length of the longest text that is read as a float. Redis copies the text and a final zero byte into a buffer of
/// 5 KiB (`MAX_LONG_DOUBLE_CHARS`) and rejects longer texts.
const MAX_FLOAT_LENGTH: usize = 5 * 1024 - 1;

/// The reason why an amount cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// The stored value or the amount is not a number of the required kind, or it is out of range.
    #[error(
        "the value or the amount is not a number, or is out of range; store a number, or use another key"
    )]
    NotANumber,
    /// Both are numbers, but their sum is not a 64-bit integer or not a finite float.
    #[error("the sum is out of range; the value is unchanged")]
    Overflow,
}

/// Returns the integer that a text represents, or `None` if the text is not canonical or exceeds 64 bits. A canonical
/// text has an optional `-` and decimal digits, without leading zeros, `+`, spaces or `-0`.
#[inline]
pub fn parse_integer(text: &[u8]) -> Option<i64> {
    if text == b"0" {
        return Some(0);
    }
    let (digits, is_negative) = match text.strip_prefix(b"-") {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    // So many digits fit into an u64.
    if digits.is_empty() || digits.len() >= MAX_INTEGER_LENGTH || digits[0] == b'0' {
        return None;
    }
    let mut number = 0u64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    match is_negative {
        true => 0i64.checked_sub_unsigned(number),
        false => i64::try_from(number).ok(),
    }
}

/// The canonical text of an integer. It dereferences to its bytes.
#[derive(Clone, Copy)]
pub struct IntegerText {
    bytes: [u8; MAX_INTEGER_LENGTH],
    length: u8,
}

impl Deref for IntegerText {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl std::fmt::Debug for IntegerText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.escape_ascii(), f)
    }
}

/// Returns the canonical text of an integer, which [`parse_integer`] reads back. It uses no heap memory.
pub fn format_integer(number: i64) -> IntegerText {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(number).as_bytes();
    let mut bytes = [0; MAX_INTEGER_LENGTH];
    bytes[..text.len()].copy_from_slice(text);
    #[allow(clippy::cast_possible_truncation)] // At most 20.
    let length = text.len() as u8;
    IntegerText { bytes, length }
}

/// Returns the sum of a stored integer and an amount. An absent value counts as zero.
///
/// # Errors
/// The value is not an integer in canonical text, or the sum exceeds 64 bits.
#[inline]
pub fn add_integer(value: Option<&[u8]>, amount: i64) -> Result<i64, NumberError> {
    let value = match value {
        Some(text) => parse_integer(text).ok_or(NumberError::NotANumber)?,
        None => 0,
    };
    value.checked_add(amount).ok_or(NumberError::Overflow)
}

/// Returns the text of the sum of a stored float and an amount, both given as text. An absent value counts as zero.
///
/// Both texts are rounded to 80-bit floats (64 bits of precision), and so is their sum, always to the nearest float and
/// halves to even. The result has at most 17 decimal places, without trailing zeros and without an exponent. It has up
/// to 4,933 digits, so it may be much longer than the value and the amount.
///
/// # Errors
/// A text is not a float that C's `strtold` reads completely, starts with a space, has more than 5,119 bytes, is `nan`,
/// exceeds the range of an 80-bit float, or is not zero but so small that it rounds to zero. Or the sum is not finite;
/// this includes each sum with `inf`, which is a valid text.
pub fn add_float(value: Option<&[u8]>, amount: &[u8]) -> Result<Vec<u8>, NumberError> {
    let value = match value {
        Some(text) => parse_float(text)?,
        None => Extended::Finite(Finite::ZERO),
    };
    match (value, parse_float(amount)?) {
        (Extended::Finite(value), Extended::Finite(amount)) => {
            let sum = value.add(amount).ok_or(NumberError::Overflow)?;
            Ok(sum.to_text().into_bytes())
        }
        _ => Err(NumberError::Overflow),
    }
}

fn parse_float(text: &[u8]) -> Result<Extended, NumberError> {
    if text.len() > MAX_FLOAT_LENGTH {
        return Err(NumberError::NotANumber);
    }
    Extended::parse(text).ok_or(NumberError::NotANumber)
}
