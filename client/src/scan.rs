//! Scans: all keys of the cluster, or those that match a pattern, page by page.
//!
//! ```text
//!   token 0 -> page -> token -> page -> ... -> token 0      one place (a shard of a group) after the other
//! ```
//!
//! Every key that exists from the first page to the last comes exactly once, also if servers fail meanwhile: a token is
//! a position in an order that all servers share. A key that is written or removed meanwhile may come or not. Pages are
//! read at different times, so a scan is no snapshot.

use std::collections::VecDeque;

use kv_protocol::client_message::{Part, SCAN_VALUE_BYTES_MAX, ScanPage};
use kv_protocol::glob::{self, Steps};
use kv_protocol::ids::{SequenceNumber, WallTime};

use crate::client::Client;
use crate::completion::{Outcome, Reply};
use crate::error::{Action, Error};
use crate::landing::Landing;
use crate::operation::Op;
use crate::options::OpOptions;
use crate::shared::SharedClient;

/// A pattern that no key matches.
const NO_KEY: &[u8] = b"[]";

/// Returns the pattern of all keys with a prefix, for [`ScanOptions::pattern`].
pub fn prefix_pattern(prefix: &[u8]) -> Vec<u8> {
    glob::of_prefix(prefix)
}

/// The settings of a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanOptions<'a> {
    /// The pattern of the keys, with the semantics of Redis: `*`, `?`, `[a-z]`, `[^a]` and `\` before a literal byte.
    /// At most 65,535 bytes; empty for all keys (default).
    pub pattern: &'a [u8],
    /// True if entries have their values (default: false).
    pub values: bool,
    /// True if entries have their deadlines (default: false).
    pub deadlines: bool,
}

/// An entry that a scan has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScanEntry {
    /// The key.
    pub key: Vec<u8>,
    /// The value, if the scan has values.
    pub value: Option<Vec<u8>>,
    /// The length of the value.
    pub length: usize,
    /// The version of the entry.
    pub version: SequenceNumber,
    /// The deadline of the entry, if it has one and the scan has deadlines.
    pub deadline: Option<WallTime>,
}

/// A page of a scan. It may be empty although more pages follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The token of the next page; zero after the last one.
    pub next: u64,
    /// The entries.
    pub entries: Vec<ScanEntry>,
    /// The number of entries in the place of this page, whether they match the pattern or not.
    pub entries_of_place: u64,
    /// The number of places that are completed with this page.
    pub places_done: u32,
    /// The number of places.
    pub places: u32,
}

/// The position of a page, in its [`Reply`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanProgress {
    /// The token of the next page; zero after the last one.
    pub next: u64,
    /// The token of the first page of the next place; zero after the last one.
    pub next_place: u64,
    /// The number of places that are completed with this page.
    pub places_done: u32,
    /// The number of places.
    pub places: u32,
}

impl Page {
    /// Converts the reply to an [`Op::Scan`]. The values longer than 64 KiB are missing; [`Client::scan`] fetches them.
    pub fn of(reply: Reply<'_>, options: &ScanOptions<'_>) -> Page {
        let progress = reply.scan.unwrap_or_default();
        // The engine has checked the page.
        let Ok(page) = ScanPage::read(reply.value) else { return Page::default() };
        let entries = page
            .items()
            .filter(|item| {
                !item.is_unmatched
                    || glob::matches(options.pattern, item.key, &mut Steps::UNLIMITED.clone())
                        == Some(true)
            })
            .map(|item| ScanEntry {
                key: item.key.to_vec(),
                value: item.value.map(<[u8]>::to_vec),
                length: item.value_length as usize,
                version: item.version,
                deadline: item.deadline,
            });
        Page {
            next: progress.next,
            entries: entries.collect(),
            entries_of_place: page.entries,
            places_done: progress.places_done,
            places: progress.places,
        }
    }
}

/// A client that executes one operation at a time.
trait Caller {
    fn outcome(&mut self, op: Op<'_>, options: &OpOptions) -> Result<Outcome, Error>;
}

impl Caller for Client {
    fn outcome(&mut self, op: Op<'_>, options: &OpOptions) -> Result<Outcome, Error> {
        self.call(op, options, |reply| reply.into())
    }
}

impl Caller for &SharedClient {
    fn outcome(&mut self, op: Op<'_>, options: &OpOptions) -> Result<Outcome, Error> {
        self.call(op, options, |reply| reply.into())
    }
}

/// Returns the page at a token, with its long values.
fn page(
    caller: &mut impl Caller,
    token: u64,
    scan: &ScanOptions<'_>,
    options: &OpOptions,
) -> Result<Page, Error> {
    let outcome = caller.outcome(Op::Scan { token, options: *scan }, options)?;
    let mut page = Page::of(outcome.reply(), scan);
    if scan.values {
        let mut entries = Vec::with_capacity(page.entries.len());
        for entry in page.entries {
            entries.extend(with_value(caller, entry, scan, options)?);
        }
        page.entries = entries;
    }
    Ok(page)
}

/// Fetches the value of an entry if it was too long for its page. Returns `None` if the entry was removed meanwhile.
fn with_value(
    caller: &mut impl Caller,
    entry: ScanEntry,
    scan: &ScanOptions<'_>,
    options: &OpOptions,
) -> Result<Option<ScanEntry>, Error> {
    if entry.value.is_some() || entry.length <= SCAN_VALUE_BYTES_MAX {
        return Ok(Some(entry));
    }
    let part = scan.deadlines.then_some(Part::WITH_DEADLINE);
    let read = Op::Read { key: &entry.key, part, landing: Landing::Memory };
    match caller.outcome(read, options) {
        Ok(Outcome { value, length, version, deadline, .. }) => {
            let value = Some(value);
            Ok(Some(ScanEntry { key: entry.key, value, length, version, deadline }))
        }
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the number of entries of all places.
fn count(caller: &mut impl Caller, options: &OpOptions) -> Result<u64, Error> {
    let scan = ScanOptions { pattern: NO_KEY, ..ScanOptions::default() };
    let (mut token, mut entries) = (0, 0);
    loop {
        let outcome = caller.outcome(Op::Scan { token, options: scan }, options)?;
        entries += Page::of(outcome.reply(), &scan).entries_of_place;
        token = outcome.scan.map_or(0, |progress| progress.next_place);
        if token == 0 {
            return Ok(entries);
        }
    }
}

impl Client {
    /// Returns the page of a scan at a token; 0 begins the scan. Pass [`Page::next`] as the next token, with the same
    /// options, until it is 0. A token is valid in every client of the cluster, for as long as the cluster exists. It
    /// is below 2^53.
    ///
    /// The deadline in `options` applies to each request: one for the page, and one for each value above 64 KiB.
    ///
    /// # Errors
    /// [`Error::Invalid`]: the number is no token of this cluster. [`Error::Unsupported`]: the server is too old.
    /// [`Error::TooBig`]: the pattern is longer than 65,535 bytes. [`Error::Timeout`], [`Error::Unavailable`] or
    /// [`Error::Busy`] at the deadline; repeat the call with the same token. [`Error::Lost`] if the group of the page
    /// has no replica left.
    pub fn scan(
        &mut self,
        token: u64,
        scan: &ScanOptions<'_>,
        options: &OpOptions,
    ) -> Result<Page, Error> {
        page(self, token, scan, options)
    }

    /// Returns an iterator over all entries of a scan. It ends after the first error.
    pub fn scan_all<'a>(
        &'a mut self,
        scan: &ScanOptions<'a>,
        options: &OpOptions,
    ) -> ScanEntries<'a> {
        let (scan, options) = (*scan, *options);
        let progress = ScanProgress::default();
        ScanEntries { client: self, scan, options, token: Some(0), page: VecDeque::new(), progress }
    }

    /// Returns the number of entries of the cluster: the sum of the exact number of each shard, at slightly different
    /// times. Entries that have expired are counted until the server removes them, which takes milliseconds.
    ///
    /// # Errors
    /// The errors of [`Client::scan`].
    pub fn count(&mut self, options: &OpOptions) -> Result<u64, Error> {
        count(self, options)
    }
}

impl SharedClient {
    /// Returns the page of a scan at a token, like [`Client::scan`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn scan(
        &self,
        token: u64,
        scan: &ScanOptions<'_>,
        options: &OpOptions,
    ) -> Result<Page, Error> {
        page(&mut { self }, token, scan, options)
    }

    /// Returns the number of entries of the cluster, like [`Client::count`].
    ///
    /// # Errors
    /// The errors of that function, [`Error::Defect`] and [`Error::WithinCallback`].
    pub fn count(&self, options: &OpOptions) -> Result<u64, Error> {
        count(&mut { self }, options)
    }
}

/// An iterator over all entries of a scan; see [`Client::scan_all`].
#[derive(Debug)]
pub struct ScanEntries<'a> {
    client: &'a mut Client,
    scan: ScanOptions<'a>,
    options: OpOptions,
    /// The token of the next page; `None` at the end.
    token: Option<u64>,
    page: VecDeque<ScanEntry>,
    progress: ScanProgress,
}

impl ScanEntries<'_> {
    /// Returns the number of completed places, and the number of all places; both are zero before the first page.
    pub fn places(&self) -> (u32, u32) {
        (self.progress.places_done, self.progress.places)
    }
}

impl Iterator for ScanEntries<'_> {
    type Item = Result<ScanEntry, Error>;

    fn next(&mut self) -> Option<Result<ScanEntry, Error>> {
        loop {
            if let Some(entry) = self.page.pop_front() {
                return Some(Ok(entry));
            }
            match self.client.scan(self.token.take()?, &self.scan, &self.options) {
                Ok(page) => {
                    self.token = Some(page.next).filter(|&token| token != 0);
                    let Page { next, places_done, places, .. } = page;
                    self.progress = ScanProgress { next, next_place: 0, places_done, places };
                    self.page = page.entries.into();
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Returns the error of a token that is not of the cluster.
pub(crate) fn invalid_token(
    action: Action,
    invalid: kv_protocol::scan_token::InvalidToken,
) -> Error {
    Error::Invalid { action, reason: invalid.to_string() }
}
