//! Pages of a scan: the entries of this shard from a cursor on, in the order of the table.
//!
//! The cursor is a hash. All replicas of a cluster use the same secret for the hashes of their tables, so the cursor is
//! valid at whichever replica serves the next page. A key that exists from the first page to the last has one place in
//! this order, and comes exactly once.
//!
//! A page is bounded in bytes, in entries, and in steps of the comparison with the pattern. So a shard serves a page in
//! about 200 microseconds, however few keys match; then the page is empty or short.

use std::ops::ControlFlow;

use kv_protocol::client_message::{
    PageWriter, Request, Response, SCAN_VALUE_BYTES_MAX, Scan, ScanItem, Status,
};
use kv_protocol::glob::{self, Steps};
use kv_protocol::ids::{SequenceNumber, Time};

use super::Replica;
use super::Responses;
use super::requests::Asker;
use crate::mutations::Mutation;
use crate::table::WalkCursor;

/// The maximum number of entries that are examined for one page. Each one takes about 100 ns, most of it for reading
/// its key from memory.
const ENTRIES_MAX: usize = 1_024;
/// The maximum number of steps of comparisons with the pattern for one page, about 1 ns each.
const STEPS_MAX: usize = 100_000;

impl Replica {
    /// Serves a SCAN, whose pattern is the key of the request. The role of this replica was checked.
    pub(super) fn scan(
        &self,
        now: Time,
        asker: Asker,
        (request, scan): (&Request<'_>, Scan),
        responses: &mut impl Responses,
    ) {
        let now = self.readings.read(Mutation::StaleClockInLeaseCheck, now);
        if let Err((status, reason)) = self.check_lease(now) {
            return self.refuse(asker, status, reason, responses);
        }
        let Some(cursor) = WalkCursor::from_number(scan.cursor) else {
            let reason = "the cursor of the scan is no cursor; begin the scan again";
            return self.refuse(asker, Status::Invalid, reason, responses);
        };
        let page = self.page(now, request.key, scan, cursor);
        let response = Response {
            id: request.id,
            status: Status::Ok,
            copies: 0,
            view: self.view_version(),
            version: SequenceNumber::ZERO,
            value: &page,
            whole: 0,
            has_value: false,
            deadline: None,
        };
        responses.respond(asker.connection, &response);
    }

    fn page(&self, now: Time, pattern: &[u8], scan: Scan, cursor: WalkCursor) -> Vec<u8> {
        let mut page = PageWriter::new(self.table.len() as u64);
        let (mut examined, mut steps) = (0, Steps(STEPS_MAX));
        let next = self.table.walk_while(cursor, |entry| {
            examined += 1;
            let matched = match pattern {
                [] | [b'*'] => Some(true),
                pattern => glob::matches(pattern, entry.key, &mut steps),
            };
            let has_expired = entry.deadline.is_some_and(|deadline| self.has_passed(now, deadline));
            if matched != Some(false) && !has_expired {
                let has_value = scan.values && entry.value.len() <= SCAN_VALUE_BYTES_MAX;
                page.push(&ScanItem {
                    key: entry.key,
                    value_length: u32::try_from(entry.value.len())
                        .expect("a value is at most 16 MiB long"),
                    value: has_value.then_some(entry.value),
                    version: entry.version,
                    deadline: entry.deadline.filter(|_| scan.deadlines),
                    is_unmatched: matched.is_none(),
                });
            }
            if matched.is_none() || examined >= ENTRIES_MAX || page.is_full() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        page.finish(next.map_or(0, WalkCursor::to_number))
    }
}
