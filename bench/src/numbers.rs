//! Human-readable numbers.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Parses a count or size such as `1000`, `10k`, `1M`, `16KiB`.
pub(crate) fn parse_count(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("`{text}` is not a number (examples: 1000, 10k, 1M, 16KiB)");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"))
}

/// Parses one number, or two separated by a dash.
pub(crate) fn parse_range(text: &str) -> Result<RangeInclusive<u64>, String> {
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let (low, high) = (parse_count(low)?, parse_count(high)?);
    match low <= high {
        true => Ok(low..=high),
        false => Err(format!("`{text}`: MIN exceeds MAX (expected MIN-MAX)")),
    }
}

/// Parses seconds, with an optional fraction, up to a day.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    const DAY: f64 = 86_400.0;
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=DAY).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("`{text}` is not a number of seconds from 0 to {DAY}"))
}

/// Formats a count or rate with a unit and three or four digits.
pub(crate) fn short(number: f64) -> String {
    let (scaled, unit) = match number {
        n if n >= 1e6 => (n / 1e6, " M"),
        n if n >= 1e4 => (n / 1e3, " k"),
        n => (n, ""),
    };
    let digits = if scaled >= 100.0 || (unit.is_empty() && scaled.fract() == 0.0) {
        0
    } else if scaled >= 10.0 {
        1
    } else {
        2
    };
    format!("{scaled:.digits$}{unit}")
}

/// Formats microseconds with three or more digits.
pub(crate) fn micros(us: f64) -> String {
    match us {
        n if n >= 100.0 => format!("{n:.0}"),
        n if n >= 10.0 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

/// Converts a number to an index.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("indices fit a usize on 64-bit Linux")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_units() {
        assert_eq!(parse_count("1000"), Ok(1_000));
        assert_eq!(parse_count("10k"), Ok(10_000));
        assert_eq!(parse_count("16KiB"), Ok(16_384));
        for bad in ["", "k", "1x", "-1", "1.5", "99999999999G"] {
            assert!(parse_count(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_range_is_one_number_or_two() {
        assert_eq!(parse_range("64"), Ok(64..=64));
        assert_eq!(parse_range("64-1KiB"), Ok(64..=1_024));
        assert!(parse_range("2-1").unwrap_err().contains("MIN exceeds MAX"));
    }

    #[test]
    fn seconds_are_neither_negative_nor_infinite() {
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["-1", "inf", "nan", "1e9", "soon"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
