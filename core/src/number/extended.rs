//! 80-bit floats: the double-extended format of the x87, which is C's `long double` on x86-64 (Intel SDM volume 1,
//! section 4.2.2).
//!
//! ```text
//!   text -> exact quotient of big integers -> 128 bits, the last one sticky -> round -> Finite
//!   Finite + Finite ------------------------> 128 bits, the last one sticky -> round -> Finite -> text
//! ```
//!
//! A sticky bit is set if any bit below it was set. It is enough to round to the nearest float, with halves to even.

use std::cmp::Ordering;

use num_bigint::BigUint;

/// The number of bits in a significand.
const PRECISION: i32 = 64;
/// The exponent of the last bit of the smallest floats, which may have fewer than 64 bits.
const LEAST_EXPONENT: i32 = -16_445;
/// The exponent of the last bit of the largest floats.
const GREATEST_EXPONENT: i32 = 16_320;

/// The smallest difference between two texts is the inverse of this number: 17 decimal places.
const SCALE: u128 = 10_u128.pow(17);

/// A float that is not NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extended {
    Infinite,
    Finite(Finite),
}

/// A finite float. Its absolute value is `significand * 2^exponent`.
///
/// The first bit of the significand is set, except that floats of the least exponent may be smaller. The sign of zero
/// is arbitrary, because no text shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finite {
    negative: bool,
    significand: u64,
    exponent: i32,
}

impl Extended {
    /// Parses a text with the rules of `strtold` in the C locale, if it consumes the whole text. Returns `None` for
    /// NaN, and for a number that overflows or that rounds to zero without being zero (`ERANGE`).
    pub(super) fn parse(text: &[u8]) -> Option<Extended> {
        let (negative, text) = sign(text);
        if text.eq_ignore_ascii_case(b"inf") || text.eq_ignore_ascii_case(b"infinity") {
            return Some(Extended::Infinite);
        }
        Literal::parse(text)?.round(negative).map(Extended::Finite)
    }
}

impl Finite {
    pub(super) const ZERO: Finite =
        Finite { negative: false, significand: 0, exponent: LEAST_EXPONENT };

    /// Rounds `significand * 2^exponent` to the nearest float; returns `None` if it overflows. If the last bit of the
    /// significand is sticky, it has at least 66 bits.
    fn round(negative: bool, significand: u128, exponent: i32) -> Option<Finite> {
        if significand == 0 {
            return Some(Finite::ZERO);
        }
        let bits = 128 - significand.leading_zeros().cast_signed();
        let shift = (bits - PRECISION).max(LEAST_EXPONENT - exponent);
        let mut exponent = exponent + shift;
        let significand = if shift < 0 {
            significand << shift.unsigned_abs()
        } else {
            shift_right_rounded(significand, shift.unsigned_abs())
        };
        let significand = u64::try_from(significand).unwrap_or_else(|_| {
            // All 64 bits were set, and the number was rounded up to the next power of two.
            exponent += 1;
            1 << 63
        });
        (exponent <= GREATEST_EXPONENT).then_some(Finite { negative, significand, exponent })
    }

    /// Returns the rounded sum, or `None` if it overflows.
    pub(super) fn add(self, other: Finite) -> Option<Finite> {
        // If the exponents differ by more than these places, all 64 bits of the higher number are used. So the sum has
        // enough bits above the sticky one.
        const PLACES: i32 = PRECISION - 1;
        let (high, low) =
            if self.exponent < other.exponent { (other, self) } else { (self, other) };
        let distance = high.exponent.abs_diff(low.exponent);
        let high_bits = u128::from(high.significand) << PLACES;
        let low_bits = shift_right_sticky(u128::from(low.significand) << PLACES, distance);
        let exponent = high.exponent - PLACES;
        if high.negative == low.negative {
            return Finite::round(high.negative, high_bits + low_bits, exponent);
        }
        match high_bits.cmp(&low_bits) {
            Ordering::Less => Finite::round(low.negative, low_bits - high_bits, exponent),
            Ordering::Equal => Some(Finite::ZERO),
            Ordering::Greater => Finite::round(high.negative, high_bits - low_bits, exponent),
        }
    }

    /// Returns the text of `printf("%.17Lf")`, without trailing zeros after the point, without a trailing point, and
    /// with `0` in place of `-0`.
    pub(super) fn to_text(self) -> String {
        let sign = if self.negative { "-" } else { "" };
        if self.exponent > 0 {
            return format!("{sign}{}", BigUint::from(self.significand) << self.exponent);
        }
        let scaled =
            shift_right_rounded(u128::from(self.significand) * SCALE, self.exponent.unsigned_abs());
        let mut text = format!("{sign}{}.{:017}", scaled / SCALE, scaled % SCALE);
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
        if text == "-0" { "0".to_owned() } else { text }
    }
}

/// A number as it is written: its absolute value is `digits * radix^exponent`, or `digits * 2^exponent` in radix 16.
struct Literal {
    radix: u8,
    /// The values of the digits, without leading zeros. It is empty if the number is zero.
    digits: Vec<u8>,
    exponent: i64,
}

impl Literal {
    /// Parses digits with an optional point and an optional exponent, in radix 10 or, after `0x`, in radix 16.
    fn parse(text: &[u8]) -> Option<Literal> {
        let (radix, mark, text) = match text {
            [b'0', b'x' | b'X', text @ ..] => (16, b'p', text),
            _ => (10, b'e', text),
        };
        let mut parts = text.splitn(2, |byte| byte.eq_ignore_ascii_case(&mark));
        let number = parts.next()?;
        let exponent = parts.next().map_or(Some(0), exponent)?;

        let mut halves = number.splitn(2, |byte| *byte == b'.');
        let (whole, fraction) = (halves.next()?, halves.next().unwrap_or_default());
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mut digits = Vec::with_capacity(whole.len() + fraction.len());
        for byte in whole.iter().chain(fraction) {
            let digit = char::from(*byte).to_digit(u32::from(radix))?;
            if digit != 0 || !digits.is_empty() {
                digits.push(u8::try_from(digit).ok()?);
            }
        }
        let places = i64::try_from(fraction.len()).ok()? * if radix == 16 { 4 } else { 1 };
        Some(Literal { radix, digits, exponent: exponent - places })
    }

    /// Returns the nearest float, or `None` if the number overflows or rounds to zero without being zero.
    fn round(&self, negative: bool) -> Option<Finite> {
        if self.digits.is_empty() {
            return Some(Finite::ZERO);
        }
        let exponent = self.exponent_in_range()?;
        let digits = BigUint::from_radix_be(&self.digits, u32::from(self.radix))?;
        let power = || BigUint::from(5_u8).pow(exponent.unsigned_abs());
        let float = if self.radix == 16 {
            round_quotient(negative, &digits, &BigUint::from(1_u8), exponent)
        } else if exponent < 0 {
            round_quotient(negative, &digits, &power(), exponent)
        } else {
            round_quotient(negative, &(digits * power()), &BigUint::from(1_u8), exponent)
        };
        float.filter(|float| float.significand != 0)
    }

    /// Returns the exponent, or `None` if the number certainly overflows or rounds to zero. This bounds the size of the
    /// integers: the largest float is 1.2e4932, and half of the smallest one is 1.8e-4951 or 2^-16446.
    fn exponent_in_range(&self) -> Option<i32> {
        let length = i64::try_from(self.digits.len()).ok()?;
        // The number is below radix^length or 2^(4 * length), and at least 1/10 or 1/16 of this bound.
        let (bound, range) = match self.radix {
            16 => (self.exponent + 4 * length, -16_446..=16_388),
            _ => (self.exponent + length, -4_950..=4_933),
        };
        if range.contains(&bound) { i32::try_from(self.exponent).ok() } else { None }
    }
}

/// Splits off an optional sign; returns true if it is `-`.
fn sign(text: &[u8]) -> (bool, &[u8]) {
    match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    }
}

/// Parses the decimal exponent after `e` or `p`. One that is out of every range becomes a number that is, too, even
/// after the length of the longest text is added or subtracted.
fn exponent(text: &[u8]) -> Option<i64> {
    const GREATEST: i64 = 1 << 32;
    let (negative, digits) = sign(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: i64, digit: &u8| (sum * 10 + i64::from(digit - b'0')).min(GREATEST);
    let exponent = digits.iter().fold(0, add);
    Some(if negative { -exponent } else { exponent })
}

/// Rounds `numerator / denominator * 2^exponent` to the nearest float; returns `None` if it overflows.
fn round_quotient(
    negative: bool,
    numerator: &BigUint,
    denominator: &BigUint,
    exponent: i32,
) -> Option<Finite> {
    // With this shift, the quotient has at least 127 bits.
    let shift = (127 + denominator.bits()).saturating_sub(numerator.bits());
    let numerator = numerator << shift;
    let mut quotient = &numerator / denominator;
    let mut is_inexact = &quotient * denominator != numerator;
    let excess = quotient.bits().saturating_sub(128);
    if excess > 0 {
        is_inexact |= quotient.trailing_zeros() < Some(excess);
        quotient >>= excess;
    }
    let significand = u128::try_from(quotient).ok()? | u128::from(is_inexact);
    let exponent = i64::from(exponent) + i64::try_from(excess).ok()? - i64::try_from(shift).ok()?;
    Finite::round(negative, significand, i32::try_from(exponent).ok()?)
}

/// Divides by `2^shift` and rounds to the nearest integer, halves to even.
fn shift_right_rounded(bits: u128, shift: u32) -> u128 {
    if shift == 0 {
        return bits;
    }
    // Beyond 128 places, every number is below one half.
    let Some(half) = 1_u128.checked_shl(shift - 1) else { return 0 };
    let kept = bits.checked_shr(shift).unwrap_or(0);
    let rest = bits & (half | (half - 1));
    let is_up = match rest.cmp(&half) {
        Ordering::Less => false,
        Ordering::Equal => kept & 1 == 1,
        Ordering::Greater => true,
    };
    kept + u128::from(is_up)
}

/// Divides by `2^shift`, and sets the last bit if the division is inexact.
fn shift_right_sticky(bits: u128, shift: u32) -> u128 {
    let kept = bits.checked_shr(shift).unwrap_or(0);
    kept | u128::from(kept.checked_shl(shift).unwrap_or(0) != bits)
}
