//! Human-readable numbers: bytes, ages, durations and percentages.

use std::time::Duration;

const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Formats a number of bytes with at most four digits before the point.
pub(crate) fn bytes(count: u64) -> String {
    let unit = unit_of(count);
    format!("{} {}", in_unit(count, unit), UNITS[unit])
}

/// Formats a number of bytes and a total in one unit.
pub(crate) fn bytes_of(count: u64, all: u64) -> String {
    let unit = unit_of(all.max(count));
    format!("{} of {} {}", in_unit(count, unit), in_unit(all, unit), UNITS[unit])
}

fn unit_of(count: u64) -> usize {
    // Rounding down to tenths never shows a number below 1024 as 1024.0.
    (usize::try_from(count.max(1).ilog2()).unwrap_or(0) / 10).min(UNITS.len() - 1)
}

fn in_unit(count: u64, unit: usize) -> String {
    if unit == 0 {
        return count.to_string();
    }
    // The number in tenths of the unit. A u128 can hold ten times any count.
    let tenths = (u128::from(count) * 10) >> (10 * unit);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Returns `count` as a percentage of `all`, at most 100.
pub(crate) fn percent(count: u64, all: u64) -> u64 {
    match all {
        0 => 100,
        all => u64::try_from(u128::from(count.min(all)) * 100 / u128::from(all)).unwrap_or(100),
    }
}

/// Formats the duration of an operation.
pub(crate) fn took(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        _ => left(Duration::from_millis(millis)),
    }
}

/// Formats an age.
pub(crate) fn age(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{millis} ms"),
        _ => left(Duration::from_millis(millis)),
    }
}

/// Formats a duration in whole seconds, with at most two units.
pub(crate) fn left(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min {} s", seconds / 60, seconds % 60),
        7_200..172_800 => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_count_of_bytes_has_a_short_form() {
        for (count, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1.0 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes_of(1_536, 3 << 20), "0.0 of 3.0 MiB");
        assert_eq!(bytes_of(7, 900), "7 of 900 B");
    }

    #[test]
    fn all_percentages_and_durations_have_a_short_form() {
        assert_eq!((percent(0, 0), percent(1, 3), percent(9, 3)), (100, 33, 100));
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_250, "1.2 s"),
            (119_000, "119 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (u64::MAX, "213503982334 days"),
        ] {
            assert_eq!(took(millis), text);
        }
    }
}
