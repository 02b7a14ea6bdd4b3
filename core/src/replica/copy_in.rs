//! The receiving end of a copy (consistency.md §7).
//!
//! ```text
//!   COPY-START (sn)    last = sn: live writes are newer, the content of the copy is not
//!   COPY-ENTRY         applied unless this end has something newer: an entry or a tombstone
//!   PREPARE (delete)   leaves a tombstone until no older entry of its key can arrive
//!   COPY-END           the digest of the received content is sent back
//! ```

use std::collections::VecDeque;

use hashbrown::HashTable;
use kv_protocol::copy_message::{CopyEnd, CopyEntry, CopyFragment, CopyRecord, CopyStart, Marked};
use kv_protocol::ids::SequenceNumber;
use kv_protocol::peer_message::CompletionRecord;

use super::follower::Follower;
use super::{Replica, Role, StreamError};
use crate::mutations::{self, Mutation};
use crate::table::{Staged, TableHash};

/// The progress of the copy at the candidate.
#[derive(Debug, Default)]
pub(super) struct CopyIn {
    stage: Stage,
    /// The number of copy messages received after COPY-START.
    taken: u64,
    partial: Option<PartialEntry>,
    partial_record: Option<Box<PartialRecord>>,
    tombstones: Tombstones,
    /// The response to COPY-END until it is sent.
    mark: Option<Marked>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Awaited,
    Begun,
    Complete,
}

/// An entry of the copy whose value is incomplete.
#[derive(Debug)]
struct PartialEntry {
    staged: Staged,
    hash: TableHash,
    version: SequenceNumber,
    missing: usize,
}

/// A record of the copy whose response is incomplete.
#[derive(Debug)]
struct PartialRecord {
    sn: SequenceNumber,
    record: CompletionRecord,
    response: Vec<u8>,
    missing: usize,
}

impl CopyIn {
    pub(super) fn has_started(&self) -> bool {
        self.stage != Stage::Awaited
    }

    /// Returns whether everything up to COPY-END was received.
    pub(super) fn is_complete(&self) -> bool {
        self.stage == Stage::Complete
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    pub(super) fn take_mark(&mut self) -> Option<Marked> {
        self.mark.take()
    }

    /// While the copy is in progress, leaves a tombstone for a key that a live write deleted, so that an older entry of
    /// the copy does not restore the key.
    pub(super) fn bury(&mut self, hash: TableHash, key: &[u8], sn: SequenceNumber) {
        if self.stage == Stage::Begun && !mutations::is_open(Mutation::TombstonesForgotten) {
            self.tombstones.add(hash, key, sn);
        }
    }
}

impl Replica {
    fn candidate_mut(&mut self) -> Result<(&mut Follower, &mut CopyIn), StreamError> {
        match &mut self.role {
            Role::Candidate(follower, copy) => Ok((follower, copy)),
            _ => Err(StreamError::WrongEnd),
        }
    }

    /// Counts one message of a copy in progress, and owes an ack for it.
    fn take_copy_message(&mut self) -> Result<&mut CopyIn, StreamError> {
        let (follower, copy) = self.candidate_mut()?;
        let early = mutations::is_open(Mutation::CopyBeforeStream) && !copy.is_complete();
        if copy.stage != Stage::Begun && !early {
            return Err(StreamError::WrongEnd);
        }
        copy.taken += 1;
        follower.owe_sign();
        Ok(copy)
    }

    pub(super) fn on_copy_start(&mut self, start: &CopyStart) -> Result<(), StreamError> {
        let (follower, copy) = self.candidate_mut()?;
        if copy.has_started() && !mutations::is_open(Mutation::CopyRestartedUnderSameView) {
            return Err(StreamError::WrongEnd);
        }
        copy.stage = Stage::Begun;
        follower.last = start.sn;
        self.sessions.raise_horizon(start.forgotten);
        Ok(())
    }

    pub(super) fn on_copy_entry(&mut self, entry: &CopyEntry<'_>) -> Result<(), StreamError> {
        let sn = entry.version;
        let place = (self.config.group, self.config.shard);
        if self.config.placement.locate_digested(entry.digest, entry.key) != place {
            return Err(StreamError::ForeignKey { sn });
        }
        let hash = self.hash_of(entry.digest, entry.key);
        let copy = self.take_copy_message()?;
        copy.tombstones.drop_up_to(entry.committed);
        let is_deleted = copy.tombstones.is_newer(hash, entry.key, sn);
        // A value that is still partial was overwritten or deleted at the primary meanwhile; that change arrives as a
        // live write.
        if let Some(partial) = copy.partial.take() {
            self.table.discard(partial.staged);
        }
        if is_deleted || self.has_newer(hash, entry.key, sn) {
            return Ok(());
        }
        let length = entry.value_length as usize;
        if let Err(beyond) = self.check_copy_room(sn, entry.key.len(), length) {
            self.out_of_memory(sn);
            return Err(beyond);
        }
        let staged = self.table.stage(hash, entry.key, length, entry.deadline);
        let mut staged = staged.map_err(|_| self.out_of_memory(sn))?;
        self.table.staged_append(&mut staged, entry.value);
        let missing = length - entry.value.len();
        let partial = PartialEntry { staged, hash, version: sn, missing };
        self.finish_entry(partial)
    }

    pub(super) fn on_copy_fragment(
        &mut self,
        fragment: &CopyFragment<'_>,
    ) -> Result<(), StreamError> {
        let copy = self.take_copy_message()?;
        if let Some(mut partial) = copy.partial_record.take() {
            let received = partial.response.len();
            if fragment.offset as usize != received || fragment.bytes.len() > partial.missing {
                return Err(StreamError::Fragment { sn: partial.sn });
            }
            partial.response.extend_from_slice(fragment.bytes);
            partial.missing -= fragment.bytes.len();
            return self.finish_record(partial);
        }
        // If there is no partial entry, the fragment belongs to an entry that was skipped because this end has a newer
        // version or a tombstone.
        let Some(mut partial) = copy.partial.take() else { return Ok(()) };
        let received = self.table.staged_entry(&partial.staged).1.len();
        let wrong = fragment.offset as usize != received || fragment.bytes.len() > partial.missing;
        if wrong {
            self.table.discard(partial.staged);
            return Err(StreamError::Fragment { sn: partial.version });
        }
        self.table.staged_append(&mut partial.staged, fragment.bytes);
        partial.missing -= fragment.bytes.len();
        self.finish_entry(partial)
    }

    /// Commits an entry of the copy to the table once its value is complete, unless a newer live write was applied.
    fn finish_entry(&mut self, partial: PartialEntry) -> Result<(), StreamError> {
        if partial.missing > 0 {
            self.candidate_mut()?.1.partial = Some(partial);
            return Ok(());
        }
        let key: Box<[u8]> = self.table.staged_entry(&partial.staged).0.into();
        let (_, copy) = self.candidate_mut()?;
        let is_deleted = copy.tombstones.is_newer(partial.hash, &key, partial.version);
        if is_deleted || self.has_newer(partial.hash, &key, partial.version) {
            self.table.discard(partial.staged);
        } else {
            self.table.commit(partial.staged, partial.version);
        }
        Ok(())
    }

    fn has_newer(&self, hash: TableHash, key: &[u8], version: SequenceNumber) -> bool {
        !mutations::is_open(Mutation::OlderEntryApplied)
            && self.table.version_of(hash, key).is_some_and(|here| here >= version)
    }

    pub(super) fn on_copy_record(&mut self, record: &CopyRecord<'_>) -> Result<(), StreamError> {
        self.take_copy_message()?;
        let missing = record.response_length as usize - record.response.len();
        let CopyRecord { sn, record, response, .. } = *record;
        let response = response.to_vec();
        self.finish_record(Box::new(PartialRecord { sn, record, response, missing }))
    }

    /// Keeps a record of the copy once its response is complete.
    fn finish_record(&mut self, partial: Box<PartialRecord>) -> Result<(), StreamError> {
        let PartialRecord { sn, record, response, missing } = &*partial;
        match missing {
            0 => self.sessions.record_known(*sn, *record, response),
            _ => self.candidate_mut()?.1.partial_record = Some(partial),
        }
        Ok(())
    }

    pub(super) fn on_copy_end(&mut self, end: &CopyEnd) -> Result<(), StreamError> {
        let content = self.content();
        let table = &mut self.table;
        let Role::Candidate(follower, copy) = &mut self.role else {
            return Err(StreamError::WrongEnd);
        };
        if copy.stage != Stage::Begun {
            return Err(StreamError::WrongEnd);
        }
        if follower.last != end.sn {
            return Err(StreamError::End { got: end.sn, applied: follower.last });
        }
        if let Some(partial) = copy.partial.take() {
            table.discard(partial.staged);
        }
        copy.partial_record = None;
        copy.taken += 1;
        copy.stage = Stage::Complete;
        copy.tombstones = Tombstones::default();
        copy.mark = Some(Marked { view: end.view, sn: end.sn, content });
        follower.owe_sign();
        Ok(())
    }
}

/// Tombstones of keys that live writes deleted and that the rest of the copy may still contain.
#[derive(Debug, Default)]
struct Tombstones {
    /// The tombstones by ascending sequence number. Each entry of the copy names the primary's last commit, up to which
    /// tombstones are then dropped.
    in_order: VecDeque<(SequenceNumber, TableHash)>,
    by_key: HashTable<(TableHash, Box<[u8]>, SequenceNumber)>,
}

impl Tombstones {
    fn add(&mut self, hash: TableHash, key: &[u8], sn: SequenceNumber) {
        self.in_order.push_back((sn, hash));
        let entry = self.by_key.entry(hash.0, |(_, k, _)| **k == *key, |(hash, ..)| hash.0);
        entry.and_modify(|(.., newest)| *newest = sn).or_insert_with(|| (hash, key.into(), sn));
    }

    /// Returns whether the key was deleted after `version`.
    fn is_newer(&self, hash: TableHash, key: &[u8], version: SequenceNumber) -> bool {
        self.by_key
            .find(hash.0, |(_, k, _)| **k == *key)
            .is_some_and(|(.., deleted)| *deleted > version)
    }

    /// Drops tombstones of writes that the primary has committed. The primary's table no longer has the deleted
    /// entries, so the rest of the copy does not contain them.
    fn drop_up_to(&mut self, committed: SequenceNumber) {
        while let Some(&(sn, hash)) = self.in_order.front()
            && sn <= committed
        {
            self.in_order.pop_front();
            if let Ok(entry) = self.by_key.find_entry(hash.0, |(.., deleted)| *deleted == sn) {
                entry.remove();
            }
        }
    }
}
