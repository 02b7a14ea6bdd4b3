//! Filling an empty replica from a dump, before it has a view.

use kv_protocol::ids::{SequenceNumber, Time};
use kv_protocol::peer_message::CompletionRecord;
use kv_protocol::placement::Digest;

use super::Replica;
use crate::table::OutOfMemory;

impl Replica {
    /// Loads one entry of a dump.
    ///
    /// # Errors
    /// [`OutOfMemory`]; the entry is not there.
    pub fn load_entry(
        &mut self,
        key: &[u8],
        value: &[u8],
        version: SequenceNumber,
    ) -> Result<(), OutOfMemory> {
        assert!(self.view.is_none(), "a replica that has a view is filled by its stream alone");
        let hash = self.config.hash_secret.of_key(Digest::of(key), key);
        self.table.put(hash, key, value, version).map(drop)
    }

    /// Loads one completion record of a dump, whose write is committed.
    pub fn load_record(&mut self, now: Time, sn: SequenceNumber, record: CompletionRecord) {
        assert!(self.view.is_none(), "a replica that has a view is filled by its stream alone");
        self.sessions.record(now, sn, record);
    }

    /// The dump is loaded, and `last` was its last write: the first view that comes, whatever its
    /// version, may make this replica a holder.
    pub fn finish_load(&mut self, last: SequenceNumber) {
        self.restored = Some(last);
    }
}
