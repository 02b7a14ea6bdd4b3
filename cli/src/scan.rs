//! The lines that concern all keys: `scan` and `count`.
//!
//! ```text
//!   scan   page -> page -> ... -> end      each with the keys of the page as a part of the output
//!          └ GET of each value that is too long for a page
//!   count  first page of every place -> the sum
//! ```

use std::collections::VecDeque;

use kv_client::{Error, Landing, Op, Outcome, Page, ScanEntry, ScanOptions};
use kv_protocol::escape::readable;

/// A pattern that no key matches.
const NO_KEY: &[u8] = b"[]";

/// A `scan` line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) pattern: Vec<u8>,
    /// True if the output has values.
    pub(crate) values: bool,
    /// The maximum number of keys.
    pub(crate) limit: Option<u64>,
}

impl Scan {
    fn options(&self) -> ScanOptions<'_> {
        ScanOptions { pattern: &self.pattern, values: self.values, ..ScanOptions::default() }
    }
}

/// The number of completed places, and of all places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) done: u32,
    pub(super) all: u32,
}

/// The state of a line between its operations.
#[derive(Debug, Default)]
pub(super) struct Progress {
    token: u64,
    places: Places,
    /// The entries of the last page that are not in the output.
    waiting: VecDeque<ScanEntry>,
    /// The number of keys in the output, or the number of entries that were counted.
    found: u64,
}

/// The output after an operation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A part of the output, which may be empty; another operation follows.
    Part(String, Places),
    /// The rest of the output.
    End(String),
}

impl Progress {
    /// Returns the next operation of a scan.
    pub(super) fn op<'a>(&'a self, scan: &'a Scan) -> Op<'a> {
        match self.waiting.front() {
            Some(ScanEntry { key, .. }) => Op::Read { key, part: None, landing: Landing::Buffer },
            None => Op::Scan { token: self.token, options: scan.options() },
        }
    }

    /// Returns the next operation of a count.
    pub(super) fn op_of_count(&self) -> Op<'static> {
        let options = ScanOptions { pattern: NO_KEY, ..ScanOptions::default() };
        Op::Scan { token: self.token, options }
    }

    /// Handles the result of an operation of a scan.
    ///
    /// # Errors
    /// The error of the operation, which ends the line.
    pub(super) fn on_result(
        &mut self,
        scan: &Scan,
        result: Result<Outcome, Error>,
    ) -> Result<Found, Error> {
        match (self.waiting.front_mut(), result) {
            // The entry was removed after its page was read.
            (Some(_), Err(Error::NotFound { .. })) => {
                self.waiting.pop_front();
            }
            (_, Err(error)) => return Err(error),
            (Some(entry), Ok(outcome)) => entry.value = Some(outcome.value),
            (None, Ok(outcome)) => {
                let page = Page::of(outcome.reply(), &scan.options());
                self.token = page.next;
                self.places = Places { done: page.places_done, all: page.places };
                self.waiting = page.entries.into();
            }
        }
        let mut lines = Vec::new();
        while !self.is_enough(scan)
            && self.waiting.front().is_some_and(|entry| has_all(entry, scan))
            && let Some(entry) = self.waiting.pop_front()
        {
            self.found += 1;
            lines.push(line(&entry));
        }
        let text = lines.join("\n");
        let is_last = self.token == 0 && self.waiting.is_empty();
        Ok(match is_last || self.is_enough(scan) {
            true if self.found == 0 => Found::End("no key found".to_owned()),
            true => Found::End(text),
            false => Found::Part(text, self.places),
        })
    }

    fn is_enough(&self, scan: &Scan) -> bool {
        scan.limit.is_some_and(|limit| self.found >= limit)
    }

    /// Handles the result of an operation of a count.
    ///
    /// # Errors
    /// The error of the operation, which ends the line.
    pub(super) fn on_result_of_count(
        &mut self,
        result: Result<Outcome, Error>,
    ) -> Result<Found, Error> {
        let outcome = result?;
        self.found += Page::of(outcome.reply(), &ScanOptions::default()).entries_of_place;
        let progress = outcome.scan.unwrap_or_default();
        self.token = progress.next_place;
        let places = Places { done: progress.places_done, all: progress.places };
        Ok(match self.token {
            0 => Found::End(format!("{} keys", self.found)),
            _ => Found::Part(String::new(), places),
        })
    }
}

/// Returns whether an entry has what the output needs.
fn has_all(entry: &ScanEntry, scan: &Scan) -> bool {
    !scan.values || entry.value.is_some()
}

/// Returns the output for an entry: its key, and its value if there is one.
fn line(entry: &ScanEntry) -> String {
    let key = readable(&entry.key);
    match &entry.value {
        None => format!("\"{key}\""),
        Some(value) => format!("\"{key}\" \"{}\"", readable(value)),
    }
}
