//! A client's session in one shard of one group: the sequence numbers of its writes there.

use kv_protocol::ids::{ClientId, RequestSeq, SequenceNumber};

/// A session. Once the servers have expired one, the next uses a new client id.
#[derive(Clone, Debug)]
pub(super) struct Session {
    /// The name of the session.
    pub(super) client: ClientId,
    /// The log position of its shard at which it began, known before its first request.
    pub(super) begun: SequenceNumber,
    last: u64,
    incomplete: Vec<u64>,
}

impl Session {
    pub(super) fn new(client: ClientId, begun: SequenceNumber) -> Session {
        Session { client, begun, last: 0, incomplete: Vec::new() }
    }

    /// Returns the sequence number of a new write.
    pub(super) fn begin(&mut self) -> RequestSeq {
        self.last += 1;
        self.incomplete.push(self.last);
        RequestSeq(self.last)
    }

    /// Records the end of a write, with any result.
    pub(super) fn end(&mut self, seq: RequestSeq) {
        self.incomplete.retain(|incomplete| *incomplete != seq.0);
    }

    /// Returns the lowest sequence number that has not ended: all below have.
    pub(super) fn first_incomplete(&self) -> RequestSeq {
        RequestSeq(self.incomplete.iter().min().copied().unwrap_or(self.last + 1))
    }
}
