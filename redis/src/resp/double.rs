//! The text of floating-point numbers in replies.

/// Returns the shortest text that is read as this number, in the form of Redis 7.2 and later: digits alone or with a
/// point if the exponent is small, and otherwise an exponent, which always has a sign.
pub(super) fn text(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    // The standard library has the same digits, as `d.ddde-7`.
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = mantissa.replace('.', "");
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let size = exponent.unsigned_abs() as usize;
    // The number is `digits` × 10^`scale`.
    let scale = exponent + 1 - i32::try_from(digits.len()).unwrap_or(0);
    let zeros = |count: usize| "0".repeat(count);
    if scale >= 0 && size < digits.len() + 7 {
        format!("{sign}{digits}{}", zeros(scale.unsigned_abs() as usize))
    } else if scale < 0 && (scale > -7 || size < 4) {
        if exponent < 0 {
            format!("{sign}0.{}{digits}", zeros(size - 1))
        } else {
            format!("{sign}{}.{}", &digits[..=size], &digits[size + 1..])
        }
    } else {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        let direction = if exponent < 0 { '-' } else { '+' };
        format!("{sign}{first}{point}{rest}e{direction}{size}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_have_an_exponent_only_if_it_is_large() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (3.0, "3"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (123.456, "123.456"),
            (0.0001, "0.0001"),
            (0.000001, "0.000001"),
            (1e-7, "1e-7"),
            (1.5e-9, "1.5e-9"),
            (1e7, "10000000"),
            (1e8, "1e+8"),
            (12345e7, "123450000000"),
            (1e21, "1e+21"),
            (1.7976931348623157e308, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ];
        for (number, expected) in cases {
            assert_eq!(text(number), expected);
        }
    }

    proptest! {
        #[test]
        fn a_text_is_read_as_the_same_number(number in any::<f64>(), small in -1e6..1e6) {
            for number in [number, small, small.round(), small / 1e9] {
                prop_assert_eq!(text(number).parse::<f64>().unwrap().to_bits(), number.to_bits());
            }
        }
    }
}
