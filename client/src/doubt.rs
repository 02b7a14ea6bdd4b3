//! Writes that ended in doubt, and their settlement (consistency.md §8).
//!
//! ```text
//!   write --deadline--> IN_DOUBT, Doubt      its number stays open: the server keeps its completion record
//!                          |
//!   resolve, or the next   +-- RESOLVE --> the write's own response, or NOT_DONE for ever
//!   operation on its key,
//!   or a full window
//! ```
//!
//! An operation on the key of such a write waits until the write is settled. So once a later operation of the same
//! client on that key has a response, the write can no longer take effect.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, RequestHash, RequestSeq, SequenceNumber, ShardId, WallTime,
};
use kv_protocol::placement::Digest;

use crate::error::{Action, Error};
use crate::operation::OpId;

/// The identity of a write that ended in doubt, for [`crate::Client::resolve`].
#[derive(Clone, Debug)]
pub struct Doubt {
    pub(crate) write: Arc<DoubtfulWrite>,
}

impl Doubt {
    /// Returns the approximate size of this value in memory, in bytes.
    pub fn bytes(&self) -> usize {
        let DoubtfulWrite { key, other_keys, batch, .. } = &*self.write;
        let of_batch = batch.iter().map(Action::bytes).sum::<usize>();
        size_of::<DoubtfulWrite>() + key.len() + size_of_val(&other_keys[..]) + of_batch
    }
}

impl PartialEq for Doubt {
    fn eq(&self, other: &Doubt) -> bool {
        self.write.name() == other.write.name()
    }
}

impl Eq for Doubt {}

/// A write in doubt, with everything that a RESOLVE needs.
#[derive(Debug)]
pub(crate) struct DoubtfulWrite {
    pub(crate) key: Box<[u8]>,
    pub(crate) digest: Digest,
    /// The digests of the other keys of updates.
    pub(crate) other_keys: Box<[Digest]>,
    /// The descriptions of the updates of a batch; empty for other writes.
    pub(crate) batch: Box<[Action]>,
    pub(crate) cluster: ClusterId,
    pub(crate) place: (GroupId, ShardId),
    pub(crate) client: ClientId,
    pub(crate) seq: RequestSeq,
    pub(crate) first_incomplete: RequestSeq,
    pub(crate) begun: SequenceNumber,
    pub(crate) request: RequestHash,
    /// The result, once the write is settled. [`Error::InDoubt`] means that the outcome stays unknown.
    pub(crate) settled: OnceLock<Result<Settled, Error>>,
}

/// The result of a completed write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) version: SequenceNumber,
    pub(crate) copies: u8,
    /// The value in the response to an update; `None` if there is none.
    pub(crate) value: Option<Box<[u8]>>,
    pub(crate) deadline: Option<WallTime>,
}

impl DoubtfulWrite {
    fn name(&self) -> (ClientId, (GroupId, ShardId), RequestSeq) {
        (self.client, self.place, self.seq)
    }
}

/// A write in doubt whose number is still open.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) doubt: Doubt,
    /// The RESOLVE in progress, or `None`.
    pub(crate) resolver: Option<OpId>,
    /// The operations on the same key that wait until this write is settled.
    pub(crate) waiting: VecDeque<OpId>,
}

/// The open writes in doubt of one client, by key digest.
#[derive(Debug, Default)]
pub(crate) struct OpenDoubts {
    by_key: HashMap<Digest, Vec<Open>>,
    /// The writes with several keys, by the digests of their keys other than that of the request.
    by_other_key: HashMap<Digest, Vec<Doubt>>,
}

impl OpenDoubts {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Returns the number of open writes in doubt.
    pub(crate) fn count(&self) -> usize {
        self.by_key.values().map(Vec::len).sum()
    }

    pub(crate) fn add(&mut self, doubt: Doubt) {
        for &digest in &doubt.write.other_keys {
            self.by_other_key.entry(digest).or_default().push(doubt.clone());
        }
        let open = Open { doubt, resolver: None, waiting: VecDeque::new() };
        self.by_key.entry(open.doubt.write.digest).or_default().push(open);
    }

    /// Returns whether a write in doubt has the key with this digest.
    pub(crate) fn has_key(&self, digest: Digest) -> bool {
        self.by_key.contains_key(&digest) || self.by_other_key.contains_key(&digest)
    }

    /// Returns the oldest write in doubt to the key with this digest. Requests of the key itself come before those in
    /// which it is another key.
    pub(crate) fn of_key(&mut self, digest: Digest) -> Option<&mut Open> {
        if self.by_key.contains_key(&digest) {
            return self.by_key.get_mut(&digest)?.first_mut();
        }
        let doubt = self.by_other_key.get(&digest)?.first()?.clone();
        self.get_mut(&doubt)
    }

    /// Returns this write, if it is open.
    pub(crate) fn get_mut(&mut self, doubt: &Doubt) -> Option<&mut Open> {
        let of_key = self.by_key.get_mut(&doubt.write.digest)?;
        of_key.iter_mut().find(|open| open.doubt == *doubt)
    }

    /// Removes a write that is settled.
    pub(crate) fn remove(&mut self, doubt: &Doubt) -> Option<Open> {
        let of_key = self.by_key.get_mut(&doubt.write.digest)?;
        let at = of_key.iter().position(|open| open.doubt == *doubt)?;
        let open = of_key.remove(at);
        if of_key.is_empty() {
            self.by_key.remove(&doubt.write.digest);
        }
        for digest in &open.doubt.write.other_keys {
            let Some(of_key) = self.by_other_key.get_mut(digest) else { continue };
            of_key.retain(|other| other != doubt);
            if of_key.is_empty() {
                self.by_other_key.remove(digest);
            }
        }
        Some(open)
    }

    /// Returns the writes in doubt to a place for which no RESOLVE is in progress.
    pub(crate) fn unattended(&self, place: (GroupId, ShardId)) -> Vec<Doubt> {
        let open = self.by_key.values().flatten();
        let of_place =
            open.filter(|open| open.doubt.write.place == place && open.resolver.is_none());
        of_place.map(|open| open.doubt.clone()).collect()
    }
}
