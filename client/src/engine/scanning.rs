//! Scans in the engine: the place of a token, and the checks of a page.

use kv_protocol::client_message::{Response, ScanPage, Status};
use kv_protocol::scan_token::{ScanPosition, ScanTokens};

use super::Engine;
use crate::completion::Ends;
use crate::operation::{Kind, OpId, Operation};
use crate::scan::{ScanProgress, invalid_token};

impl Engine {
    /// Sets the place and the cursor of a scan, if there is a map. Ends the operation and returns false if its token is
    /// not of the cluster of the newest map, which may have changed since the last attempt.
    pub(super) fn locate_scan(&mut self, id: OpId, ends: &mut dyn Ends) -> bool {
        let Some(tokens) = self.router.scan_tokens() else { return true };
        let Some(operation) = self.operations.get_mut(id) else { return false };
        let Err(invalid) = operation.locate_scan(&tokens) else { return true };
        let error = invalid_token(operation.action(), invalid);
        self.finish(id, Err(error), ends);
        false
    }
}

/// Returns whether a successful response to a scan has a page that makes progress. For other operations, returns true.
pub(super) fn is_valid_page(operation: &Operation, response: &Response<'_>) -> bool {
    if operation.kind != Kind::Scan || response.status != Status::Ok {
        return true;
    }
    let after = operation.scan_position().map_or(0, |position| position.cursor);
    ScanPage::read(response.value)
        .is_ok_and(|page| page.next == 0 || u32::try_from(page.next).is_ok_and(|next| next > after))
}

/// Returns the progress of a scan with this page; `None` for other operations.
pub(super) fn progress(
    operation: &Operation,
    tokens: Option<ScanTokens>,
    value: &[u8],
) -> Option<ScanProgress> {
    let (position, tokens) = (operation.scan_position()?, tokens?);
    let next = ScanPage::read(value).ok()?.next;
    let next_place = ScanPosition { place: position.place + 1, cursor: 0 };
    let (places_done, next) = match u32::try_from(next) {
        Ok(0) | Err(_) => (next_place.place, next_place),
        Ok(cursor) => (position.place, ScanPosition { cursor, ..position }),
    };
    Some(ScanProgress {
        next: tokens.encode(next),
        next_place: tokens.encode(next_place),
        places_done,
        places: tokens.places(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::free_list::FreeList;
    use crate::operation::{Notify, Op};
    use crate::options::OpOptions;
    use crate::scan::ScanOptions;
    use kv_protocol::client_message::PageWriter;
    use kv_protocol::ids::{ClusterId, RequestId, SequenceNumber, ViewVersion};
    use kv_protocol::placement::Placement;
    use std::time::{Duration, Instant};

    const AT: ScanPosition = ScanPosition { place: 1, cursor: 100 };

    fn tokens() -> ScanTokens {
        ScanTokens::new(ClusterId(7), Placement::new(3, 1))
    }

    fn scan() -> Box<Operation> {
        let op = Op::Scan { token: tokens().encode(AT), options: ScanOptions::default() };
        let (options, now) = (OpOptions::default(), Instant::now());
        let mut free_list = FreeList::default();
        let deadline = Duration::from_secs(1);
        let new = Operation::new(op, &options, deadline, Notify::Caller, now, &mut free_list);
        let mut operation = new.unwrap();
        operation.locate_scan(&tokens()).unwrap();
        operation
    }

    fn is_valid(value: &[u8]) -> bool {
        let response = Response {
            id: RequestId(1),
            status: Status::Ok,
            copies: 0,
            view: ViewVersion(1),
            version: SequenceNumber::ZERO,
            value,
            whole: 0,
            has_value: false,
            deadline: None,
        };
        is_valid_page(&scan(), &response)
    }

    #[test]
    fn a_page_is_valid_only_if_it_makes_progress() {
        let page = |next| PageWriter::new(1).finish(next);
        assert!(is_valid(&page(0)) && is_valid(&page(101)));
        assert!(!is_valid(&page(100)) && !is_valid(&page(1)));
        assert!(!is_valid(&page(1 << 32)) && !is_valid(b"no page"));
    }

    #[test]
    fn a_page_leads_to_the_next_one_of_its_place_or_to_the_next_place() {
        let of =
            |next| progress(&scan(), Some(tokens()), &PageWriter::new(1).finish(next)).unwrap();
        let decoded = |token| tokens().decode(token).unwrap();
        assert_eq!(decoded(of(200).next), ScanPosition { place: 1, cursor: 200 });
        assert_eq!(decoded(of(0).next), ScanPosition { place: 2, cursor: 0 });
        assert_eq!(decoded(of(200).next_place), ScanPosition { place: 2, cursor: 0 });
        assert_eq!((of(200).places_done, of(0).places_done, of(0).places), (1, 2, 3));
    }
}
