//! The description of a replica for its dump, and the loading of a dump into an empty replica that has no view yet.

use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::{ClientId, GroupId, RequestSeq, SequenceNumber, ShardId, WallTime};
use kv_protocol::peer_message::CompletionRecord;
use kv_protocol::placement::Digest;

use super::install::Named;
use super::{Replica, Role};
use crate::dump::{DumpedShard, HeldAs};
use crate::table::OutOfMemory;

/// The error if a replica without a full copy is to be dumped. A later restore would treat the dump as a full copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this server holds no full copy of shard {shard} of group {group}")]
pub struct NoFullCopy {
    /// The group of the replica.
    pub group: GroupId,
    /// The shard of the replica.
    pub shard: ShardId,
    /// The state of the replica under its view.
    pub state: ReplicaState,
}

impl Replica {
    /// Returns the description of this replica for the dump. Once the replica is frozen, the description is final.
    ///
    /// # Errors
    /// [`NoFullCopy`] if this replica has no data or only an incomplete copy.
    pub fn dumped(&self) -> Result<DumpedShard, NoFullCopy> {
        let (group, shard) = (self.config.group, self.config.shard);
        let none = NoFullCopy { group, shard, state: self.state() };
        let is_full = match &self.role {
            Role::Out => false,
            Role::Candidate(_, copy) => copy.is_complete(),
            Role::Primary(_) | Role::HandingOver(_) | Role::TakingOver(_) | Role::Secondary(_) => {
                true
            }
        };
        let view = self.view.filter(|_| is_full).ok_or(none)?;
        let held_as = match self.named(&view) {
            Named::Primary => HeldAs::Primary,
            Named::Secondary => HeldAs::Secondary,
            Named::Candidate => HeldAs::Candidate,
            Named::Nothing => return Err(none),
        };
        let (_, last) = self.progress();
        let forgotten = self.sessions.horizon();
        Ok(DumpedShard { shard, held_as, view: view.version, last, forgotten })
    }

    /// Returns the rest of the response of a completion record, for the dump; empty if the record has none.
    pub fn response_of(&self, client: ClientId, seq: RequestSeq) -> &[u8] {
        self.sessions.response_of(client, seq)
    }

    /// Loads one entry of a dump.
    ///
    /// # Errors
    /// [`OutOfMemory`] if the table got no memory for the entry. The entry was then not stored.
    pub fn load_entry(
        &mut self,
        key: &[u8],
        value: &[u8],
        deadline: Option<WallTime>,
        version: SequenceNumber,
    ) -> Result<(), OutOfMemory> {
        assert!(self.view.is_none(), "only a replica without a view can load a dump");
        let hash = self.hash_of(Digest::of(key), key);
        self.table.put(hash, key, value, deadline, version).map(drop)
    }

    /// Loads one completion record of a dump, whose write is committed.
    pub fn load_record(&mut self, sn: SequenceNumber, record: CompletionRecord, response: &[u8]) {
        assert!(self.view.is_none(), "only a replica without a view can load a dump");
        self.sessions.record_known(sn, record, response);
    }

    /// Completes the loading of a dump whose last write was `last`. From now on a first view of any version may make
    /// this replica a holder. The dump has no sessions that had written nothing since `forgotten`.
    pub fn finish_load(&mut self, last: SequenceNumber, forgotten: SequenceNumber) {
        self.restored = Some(last);
        self.sessions.raise_horizon(forgotten);
    }
}
