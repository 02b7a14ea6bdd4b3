//! What happened last, in words, for whoever reads a failure.

use std::collections::VecDeque;
use std::fmt;

/// Lines that are kept.
const LINES: usize = 400;

/// The last lines.
#[derive(Debug, Default)]
pub struct Trace {
    lines: VecDeque<String>,
}

impl Trace {
    /// Notes something; `now` is true time in nanoseconds.
    pub fn note(&mut self, now: u64, words: fmt::Arguments<'_>) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>12.6} s  {words}", now as f64 / 1e9));
    }

    /// The lines that have any of these words, or all when there are none.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}
