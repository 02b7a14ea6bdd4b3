//! A client's session in one shard of one group: the numbers of its writes there.

use kv_protocol::ids::{ClientId, RequestSeq, SequenceNumber};

/// A session. The servers know it by a client id of its own once they had forgotten the one before.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// Under which name.
    pub(super) client: ClientId,
    /// The place in the log of its shard at which it began, known before anything of it was sent.
    pub(super) begun: SequenceNumber,
    last: u64,
    incomplete: Vec<u64>,
}

impl Session {
    pub(super) fn new(client: ClientId, begun: SequenceNumber) -> Session {
        Session { client, begun, last: 0, incomplete: Vec::new() }
    }

    /// The number of one more write.
    pub(super) fn begin(&mut self) -> RequestSeq {
        self.last += 1;
        self.incomplete.push(self.last);
        RequestSeq(self.last)
    }

    /// A write has ended, in whatever way.
    pub(super) fn end(&mut self, seq: RequestSeq) {
        self.incomplete.retain(|incomplete| *incomplete != seq.0);
    }

    /// All writes below this one have ended.
    pub(super) fn first_incomplete(&self) -> RequestSeq {
        RequestSeq(self.incomplete.iter().min().copied().unwrap_or(self.last + 1))
    }
}
