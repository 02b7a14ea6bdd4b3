//! Flush: the removal of all entries of this shard, on the order of an administrator (consistency.md §13).
//!
//! ```text
//!   FLUSH -> page of keys in the order of the table -> UPKEEP (removals) -> log -> committed -> next page -> ... -> done
//! ```
//!
//! The removals are writes of the primary, like those of expired entries. So all replicas remove the same entries, and
//! the numbers of the shard continue. A page is bounded, and the next one follows its commit: clients are served between
//! two pages, and the log has room for their writes.
//!
//! The walk follows the hash order, so it comes to every entry that exists from its beginning on. Each of these entries
//! is removed once between the beginning and the end, unless a client removes it first. An entry that is written
//! meanwhile may stay.
//!
//! The progress belongs to the primary and does not survive it. The next primary begins again, on a new order.

use std::ops::ControlFlow;
use std::time::Duration;

use kv_protocol::control_message::FlushReport;
use kv_protocol::ids::{OrderId, SequenceNumber, Time, ViewVersion};
use kv_protocol::limits::BATCH_TARGET_BYTES;

use super::key_list::KeyList;
use super::pending::More;
use super::{Replica, Responses};
use crate::table::WalkCursor;

/// The maximum number of entries that one write removes. Their choice and their commit take about 200 microseconds each.
const REMOVALS_MAX: usize = 512;
/// The interval at which a flush continues. It leaves most of the time of a core to clients.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_millis(4);

/// The progress of a flush.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flush {
    report: FlushReport,
    /// The position of the next page; `None` after the last one.
    cursor: Option<WalkCursor>,
    /// The last write of the log when the last page was removed.
    logged: SequenceNumber,
    /// The number of removals of the last page.
    in_flight: u64,
    /// The time of the last step.
    stepped: Time,
}

impl Replica {
    /// Begins to remove all entries, if this replica is the primary under the view of this version. A repeated or older
    /// order has no effect. A delayed order has none either: it is of an older view, or this replica knows it.
    pub fn begin_flush(&mut self, order: OrderId, view: ViewVersion) {
        let is_meant = self.primary().is_some() && self.view_version() == view;
        if is_meant && order > self.flush.report.id {
            let report = FlushReport { id: order, ..FlushReport::default() };
            self.flush = Flush { report, cursor: Some(WalkCursor::START), ..Flush::default() };
        }
    }

    /// Returns the progress of the last flush.
    pub(super) fn flush_report(&self) -> FlushReport {
        self.flush.report
    }

    /// Returns the time of the next step; `None` if nothing is to be removed.
    pub(super) fn next_flush(&self) -> Option<Time> {
        let FlushReport { id, is_done, .. } = self.flush.report;
        let is_active = self.primary().is_some_and(|primary| primary.is_active());
        let is_running = id > OrderId::default() && !is_done && is_active && !self.draining;
        is_running.then(|| self.flush.stepped + FLUSH_INTERVAL)
    }

    /// Removes the next page if the last one is committed.
    pub(super) fn continue_flush(&mut self, now: Time, responses: &mut impl Responses) {
        if self.next_flush().is_none_or(|due| due > now) {
            return;
        }
        self.flush.stepped = now;
        let Some(log) = self.primary().map(|primary| &primary.sender.log) else { return };
        if log.committed() < self.flush.logged {
            return;
        }
        self.flush.report.removed += std::mem::take(&mut self.flush.in_flight);
        let Some(cursor) = self.flush.cursor else {
            self.flush.report.is_done = true;
            return;
        };
        let (page, next) = self.page_of_removals(cursor);
        let removals = page.changes.len();
        if removals > 0 && self.log_removals(page, responses).is_none() {
            // The log is full. The same page follows later.
            return;
        }
        self.flush.cursor = next;
        self.flush.in_flight = removals as u64;
        // The flush also waits for the pending removals that the page did not repeat.
        self.flush.logged = self.primary().map_or(SequenceNumber::ZERO, |p| p.sender.log.last());
    }

    /// Returns the removals of the entries from a cursor on, and the cursor of the next page.
    fn page_of_removals(&self, cursor: WalkCursor) -> (Box<More>, Option<WalkCursor>) {
        let mut keys = KeyList::default();
        let next = self.table.walk_while(cursor, |entry| {
            keys.push(entry.key);
            match keys.count() < REMOVALS_MAX && keys.bytes() < BATCH_TARGET_BYTES {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
        let mut page = Box::<More>::default();
        let log = self.primary().map(|primary| &primary.sender.log);
        keys.for_each(|digest, key| {
            let hash = self.hash_of(digest, key);
            // An entry that a pending write removes needs no removal. One that a pending write replaces does.
            let newest = log.and_then(|log| log.newest_change(&self.table, hash, key));
            if newest.is_none_or(|newest| newest.entry.is_some()) {
                page.remove(digest, hash, key);
            }
        });
        (page, next)
    }
}
