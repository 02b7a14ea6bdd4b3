//! A thread that scans and counts the keys of the cluster.
//!
//! Most scans take longer than a failover, because the thread pauses between pages. Each scan is a line of the history.
//! The bulk data exists throughout, so the line names only the missing part of it.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use kv_client::{Client, Error, OpOptions, Options, Page, ScanOptions, prefix_pattern};
use kv_history::{Kind, Reason};
use kv_testkit::random::Random;
use serde::{Deserialize, Serialize};

use super::{CLOCK_MARGIN_MS, Line, wall_ms};
use crate::args::WorkerArgs;
use crate::bulk::Bulk;
use crate::clock::now_ns;
use crate::round::BULK;
use crate::worker::{Journal, Over, ending};

/// The longest pause between two pages, in milliseconds.
const PAUSE_MS: u64 = 250;
/// The pause between two scans.
const REST: Duration = Duration::from_millis(150);
/// The prefixes of the keys that scans request: all keys, a part of the bulk data, and the hot keys of registers.
const PREFIXES: [&str; 4] = ["", "", "bulk-1", "h"];

/// The kind of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScanKind {
    /// Keys only.
    Keys,
    /// Keys with values and deadlines.
    Values,
    /// The number of keys.
    Count,
}

/// One scan.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScanRecord {
    pub(crate) kind: ScanKind,
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// The prefix of the requested keys.
    pub(crate) prefix: String,
    /// The keys that came, except those of the bulk data.
    pub(crate) found: Vec<String>,
    /// The keys that came more than once.
    pub(crate) repeated: Vec<String>,
    /// The numbers of the entries of the bulk data that did not come, or came with a wrong value.
    pub(crate) missing: Vec<u64>,
    /// The keys that came although their deadline had passed.
    pub(crate) expired: Vec<String>,
    /// The number of keys, if they were counted.
    pub(crate) count: Option<u64>,
    /// The number of pages that were requested again because of a failure.
    pub(crate) retries: u64,
    /// The reason why the scan was not completed.
    pub(crate) error: Option<Reason>,
}

/// The thread, with its client.
pub(crate) struct Scanner<'a> {
    client: Client,
    random: Random,
    journal: &'a Journal,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(args: &WorkerArgs, journal: &'a Journal) -> anyhow::Result<Scanner<'a>> {
        let client = Client::open(&args.endpoint, Options::default())?;
        let random = Random::new(args.seed ^ (u64::from(args.index) << 48));
        Ok(Scanner { client, random, journal })
    }

    /// Scans until the load is over.
    pub(crate) fn work(mut self, over: &Over) -> anyhow::Result<()> {
        while !over.is_over() {
            let kind = match self.random.below(10) {
                0 | 1 => ScanKind::Count,
                2 => ScanKind::Values,
                _ => ScanKind::Keys,
            };
            let prefix = match kind {
                ScanKind::Keys => PREFIXES[self.random.index(PREFIXES.len())],
                ScanKind::Values | ScanKind::Count => "",
            };
            let mut record = ScanRecord {
                kind,
                start: now_ns(),
                end: 0,
                prefix: prefix.to_owned(),
                found: Vec::new(),
                repeated: Vec::new(),
                missing: Vec::new(),
                expired: Vec::new(),
                count: None,
                retries: 0,
                error: None,
            };
            let ended = match kind {
                ScanKind::Count => self.count(&mut record),
                _ => self.scan(&mut record, over),
            };
            record.end = now_ns();
            if let Err(error) = ended {
                let (kind, reason) = ending(&error);
                record.error = Some(if kind == Kind::Info { Reason::Timeout } else { reason });
            }
            self.journal.write(&Line::Scan(record)).context("record a scan")?;
            std::thread::sleep(REST);
        }
        Ok(())
    }

    fn count(&mut self, record: &mut ScanRecord) -> Result<(), Error> {
        record.count = Some(self.client.count(&OpOptions::default())?);
        Ok(())
    }

    /// Requests all pages. A page without a response is requested again until the load is over.
    fn scan(&mut self, record: &mut ScanRecord, over: &Over) -> Result<(), Error> {
        let has_values = record.kind == ScanKind::Values;
        let pattern = prefix_pattern(record.prefix.as_bytes());
        let options = ScanOptions { pattern: &pattern, values: has_values, deadlines: has_values };
        let mut bulk: HashSet<u64> =
            (0..BULK.count).filter(|n| Bulk::key(*n).starts_with(&record.prefix)).collect();
        let (mut seen, mut token) = (HashSet::new(), 0);
        loop {
            let wall = wall_ms();
            let page = match self.client.scan(token, &options, &OpOptions::default()) {
                Err(Error::Timeout { .. } | Error::Unavailable { .. } | Error::Busy { .. })
                    if !over.is_over() =>
                {
                    record.retries += 1;
                    continue;
                }
                page => page?,
            };
            token = page.next;
            record.take(page, wall, &mut bulk, &mut seen);
            if token == 0 {
                record.missing.extend(bulk);
                return Ok(());
            }
            if !has_values && !over.is_over() {
                std::thread::sleep(Duration::from_millis(self.random.below(PAUSE_MS)));
            }
        }
    }
}

impl ScanRecord {
    /// Records the entries of a page that was requested at this wall time. Removes those of the bulk data from `bulk`.
    fn take(
        &mut self,
        page: Page,
        wall: i64,
        bulk: &mut HashSet<u64>,
        seen: &mut HashSet<Vec<u8>>,
    ) {
        for entry in page.entries {
            let key = String::from_utf8_lossy(&entry.key).into_owned();
            if entry.deadline.is_some_and(|deadline| {
                deadline.millis().cast_signed() < wall.saturating_sub(CLOCK_MARGIN_MS)
            }) {
                self.expired.push(key.clone());
            }
            let number = key.strip_prefix("bulk-").and_then(|number| number.parse().ok());
            match number {
                Some(number) => {
                    let is_right = entry.value.is_none_or(|value| value == BULK.value(number));
                    if is_right {
                        bulk.remove(&number);
                    }
                }
                None => self.found.push(key.clone()),
            }
            if !seen.insert(entry.key) {
                self.repeated.push(key);
            }
        }
    }
}
