//! A line with a bar for the bottom of a terminal.

use console::{measure_text_width, truncate_str};

use crate::units;

/// The width of a bar in columns.
const BAR: std::ops::RangeInclusive<usize> = 8..=30;

/// Returns the percentage by bytes or, if there are no bytes, by count.
pub(super) fn percent_of_bytes(bytes: u64, of_bytes: u64, count: u64, of_count: u64) -> u64 {
    match of_bytes {
        0 => units::percent(count, of_count),
        all => units::percent(bytes, all),
    }
}

/// Returns a line with a bar that fits into this many columns. Each part after the bar has a weight; if space is
/// short, the parts with the lowest weights are dropped.
pub(crate) fn with_bar(
    head: &str,
    percent: u64,
    mut parts: Vec<(u8, String)>,
    width: usize,
) -> String {
    // The last column stays empty, because some terminals wrap after it.
    let width = width.saturating_sub(1);
    loop {
        let tail: Vec<&str> = parts.iter().map(|(_, part)| &**part).collect();
        let tail = tail.join(", ");
        let used = measure_text_width(head) + measure_text_width(&tail) + " [] ".len();
        let room = width.saturating_sub(used);
        if room >= *BAR.start() || parts.len() <= 1 {
            let bar = bar(percent, room.clamp(*BAR.start(), *BAR.end()));
            let line = format!("{head} [{bar}] {tail}");
            return truncate_str(&line, width, "…").into_owned();
        }
        let least = parts.iter().enumerate().min_by_key(|(_, (worth, _))| *worth);
        let least = least.map_or(0, |(at, _)| at);
        parts.remove(least);
    }
}

/// Returns a bar of this many columns.
pub(super) fn bar(percent: u64, columns: usize) -> String {
    let full = columns * usize::try_from(percent.min(100)).unwrap_or(100) / 100;
    format!("{}{}", "#".repeat(full), "-".repeat(columns - full))
}
