//! Reads of all shards page by page.

use kv_protocol::client_message::{Scan, ScanItem, ScanPage};
use kv_protocol::glob::{self, Steps};
use kv_protocol::limits::MAX_KEY_BYTES;
use kv_protocol::scan_token::ScanTokens;

use super::Context;
use crate::answer::Answer;
use crate::ask::Ask;
use crate::database;
use crate::error::Error;

/// The number of steps in which the keys of one page are compared with a pattern.
const STEPS: Steps = Steps(2_000_000);

/// The keys that a command reads.
pub(super) struct Selection {
    /// The pattern of the stored keys; empty for all.
    stored: Vec<u8>,
    from: From,
}

/// The databases of a selection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// One database. The keys are those of clients.
    One(u8),
    /// All databases. The keys are stored ones.
    All,
    /// All databases but 0. The keys are stored ones.
    Others,
}

impl Selection {
    /// Selects the keys of a database that match a pattern, which is `*` for all.
    pub(super) fn new(database: u8, pattern: &[u8]) -> Result<Selection, Error> {
        let mut stored = glob::of_prefix(&database::prefix(database));
        stored.pop();
        stored.extend_from_slice(pattern);
        if stored == b"*" {
            stored.clear();
        }
        match stored.len() <= MAX_KEY_BYTES {
            true => Ok(Selection { stored, from: From::One(database) }),
            false => Err(Error::Stated("ERR a pattern has at most 65,531 bytes in this store")),
        }
    }

    /// Selects the stored keys of all databases.
    pub(super) fn of_all_databases() -> Selection {
        Selection { stored: Vec::new(), from: From::All }
    }

    /// Selects the stored keys of all databases but 0.
    pub(super) fn of_other_databases() -> Selection {
        Selection { stored: glob::of_prefix(database::MARK), from: From::Others }
    }

    /// Returns whether the keys of database 0 are those that are not selected.
    pub(super) fn is_complement(&self) -> bool {
        self.from == From::Others
    }

    /// Returns the request for a page.
    pub(super) fn page(&self, tokens: &ScanTokens, place: u32, cursor: u64) -> Ask {
        let scan = Scan { cursor, ..Scan::default() };
        Ask::scan(tokens.placement(), tokens.place(place), &self.stored, scan)
    }

    /// Returns the selected keys of a page.
    pub(super) fn keys<'a>(&self, page: &ScanPage<'a>) -> Result<Vec<&'a [u8]>, Error> {
        let mut steps = STEPS;
        let mut keys = Vec::new();
        for ScanItem { key, is_unmatched, .. } in page.items() {
            let own = match self.from {
                From::One(database) => database::key_of(database, key),
                From::All => Some(key),
                From::Others => key.starts_with(database::MARK).then_some(key),
            };
            let Some(own) = own else { continue };
            let is_match = match is_unmatched && !self.stored.is_empty() {
                true => glob::matches(&self.stored, key, &mut steps),
                false => Some(true),
            };
            match is_match {
                Some(true) => keys.push(own),
                Some(false) => {}
                None => {
                    return Err(Error::Stated(
                        "ERR it takes too long to compare the keys with this pattern",
                    ));
                }
            }
        }
        Ok(keys)
    }
}

/// Returns the page in a response.
pub(super) fn read<'a>(answer: &Answer<'a>) -> Result<ScanPage<'a>, Error> {
    let page = ScanPage::read(answer.value.unwrap_or(&[]));
    page.map_err(|error| Error::Text(format!("ERR malformed page: {error}")))
}

/// Returns the encoding of cursors.
pub(super) fn tokens(context: &Context<'_>) -> ScanTokens {
    ScanTokens::new(context.server.cluster(), context.placement())
}

/// The number of shards that are read at once.
const PLACES_AT_ONCE: usize = 16;

/// A read of all pages, of several shards at once.
pub(super) struct Walk {
    tokens: ScanTokens,
    selection: Selection,
    /// The places that are being read, and the cursor of the next page of each.
    open: Vec<(u32, u64)>,
    /// The first place of which no page was requested.
    unread: u32,
}

impl Walk {
    /// Creates a walk that has read nothing.
    pub(super) fn new(tokens: ScanTokens, selection: Selection) -> Walk {
        Walk { tokens, selection, open: Vec::new(), unread: 0 }
    }

    /// Returns the selection.
    pub(super) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// Returns the requests for the next pages; none after the last ones.
    pub(super) fn next(&mut self) -> Vec<Ask> {
        while self.open.len() < PLACES_AT_ONCE && self.unread < self.tokens.places() {
            self.open.push((self.unread, 0));
            self.unread += 1;
        }
        let page =
            |(place, cursor): &(u32, u64)| self.selection.page(&self.tokens, *place, *cursor);
        self.open.iter().map(page).collect()
    }

    /// Continues after the pages that [`Walk::next`] has requested, and returns them.
    pub(super) fn take<'a>(&mut self, answers: &[Answer<'a>]) -> Result<Vec<ScanPage<'a>>, Error> {
        let pages = answers.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        for ((_, cursor), page) in self.open.iter_mut().zip(&pages) {
            *cursor = page.next;
        }
        self.open.retain(|(_, cursor)| *cursor != 0);
        Ok(pages)
    }
}
