//! One session: the numbers of a client's writes to one shard of one group (consistency.md §8).
//!
//! ```text
//!             first incomplete                    next
//!                    |                              |
//!   1 2 3 … finished | 7:open 8:done 9:open 10:open | 11 …
//!                    |<------- at most 64 --------->|
//! ```
//!
//! A retry keeps its number, so the server recognises it. The window bounds the completion records that the server
//! keeps for the session. A write that does not fit waits in the client.

use crate::ids::{ClientId, RequestSeq, SequenceNumber};
use crate::limits::SESSION_WINDOW;

const _: () = assert!(SESSION_WINDOW == u64::BITS as u64, "the window is kept in one 64-bit word");

/// One session; see the module documentation.
#[derive(Clone, Debug)]
pub struct Session {
    client: ClientId,
    /// The position in the shard's log at which the session began; `None` until its first write is sent.
    begun: Option<SequenceNumber>,
    first_incomplete: u64,
    next: u64,
    /// Bit i is set if the number `first_incomplete + i` is finished.
    finished: u64,
}

impl Session {
    /// Creates a session without writes.
    pub fn new(client: ClientId) -> Session {
        Session { client, begun: None, first_incomplete: 1, next: 1, finished: 0 }
    }

    /// Returns the session's client id.
    pub fn client(&self) -> ClientId {
        self.client
    }

    /// Returns the position in the log at which the session began. It is the value of `now` at the first transmission
    /// of the session's first write, and never changes. With this position, the server distinguishes a new session from
    /// an expired one.
    pub fn begun(&mut self, now: impl FnOnce() -> SequenceNumber) -> SequenceNumber {
        *self.begun.get_or_insert_with(now)
    }

    /// Returns the number of writes that could begin now.
    pub fn room(&self) -> u64 {
        SESSION_WINDOW - (self.next - self.first_incomplete)
    }

    /// Allocates the number of the next write. Returns `None` while the window is full.
    pub fn begin(&mut self) -> Option<RequestSeq> {
        if self.room() == 0 {
            return None;
        }
        self.next += 1;
        Some(RequestSeq(self.next - 1))
    }

    /// Returns the first incomplete number: all numbers below it are finished.
    pub fn first_incomplete(&self) -> RequestSeq {
        RequestSeq(self.first_incomplete)
    }

    /// Marks the number of an ended write as finished. The number of a write in doubt stays open until the write is
    /// settled, unless it cannot be settled.
    pub fn finish(&mut self, seq: RequestSeq) {
        debug_assert!(seq.0 >= self.first_incomplete && seq.0 < self.next, "{seq} is not open");
        self.finished |= 1 << (seq.0 - self.first_incomplete);
        let ended = u64::from(self.finished.trailing_ones());
        self.first_incomplete += ended;
        self.finished = if ended == SESSION_WINDOW { 0 } else { self.finished >> ended };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_sixty_fifth_write_waits_for_the_first() {
        let mut session = Session::new(ClientId(1));
        for seq in 1..=64 {
            assert_eq!(session.begin(), Some(RequestSeq(seq)));
        }
        assert_eq!(session.begin(), None);
        session.finish(RequestSeq(2));
        assert_eq!(session.begin(), None, "the window starts at the first incomplete write");
        session.finish(RequestSeq(1));
        assert_eq!(session.first_incomplete(), RequestSeq(3));
        assert_eq!(session.begin(), Some(RequestSeq(65)));
        assert_eq!(session.begin(), Some(RequestSeq(66)));
        assert_eq!(session.begin(), None);
    }

    #[test]
    fn a_session_begins_once() {
        let mut session = Session::new(ClientId(1));
        assert_eq!(session.begun(|| SequenceNumber(7)), SequenceNumber(7));
        assert_eq!(session.begun(|| SequenceNumber(9)), SequenceNumber(7));
    }

    #[test]
    fn a_whole_window_can_end_at_once() {
        let mut session = Session::new(ClientId(1));
        while session.begin().is_some() {}
        for seq in (1..=64).rev() {
            session.finish(RequestSeq(seq));
        }
        assert_eq!(session.first_incomplete(), RequestSeq(65));
        assert_eq!(session.room(), 64);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set_of_open_writes(
            steps in prop::collection::vec(prop::option::of(any::<prop::sample::Index>()), 1..400),
        ) {
            let mut session = Session::new(ClientId(1));
            let mut open = BTreeSet::new();
            let mut last = 0;
            for step in steps {
                match step {
                    None => {
                        let first = open.first().copied().unwrap_or(last + 1);
                        match session.begin() {
                            Some(seq) => {
                                prop_assert_eq!(seq.0, last + 1);
                                prop_assert!(seq.0 < first + SESSION_WINDOW);
                                last = seq.0;
                                open.insert(seq.0);
                            }
                            None => prop_assert_eq!(last + 1, first + SESSION_WINDOW),
                        }
                    }
                    Some(index) if !open.is_empty() => {
                        let seq = *index.get(&open.iter().copied().collect::<Vec<_>>());
                        open.remove(&seq);
                        session.finish(RequestSeq(seq));
                    }
                    Some(_) => {}
                }
                let first = open.first().copied().unwrap_or(last + 1);
                prop_assert_eq!(session.first_incomplete().0, first);
            }
        }
    }
}
