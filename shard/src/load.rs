//! Parts of a dump in memory, between a table and a file.

use kv_core::dump::DumpedShard;
use kv_core::session::LoggedRecord;
use kv_protocol::ids::SequenceNumber;

/// A part of a dump, for a shard's table.
#[derive(Debug)]
pub enum LoadPiece {
    /// Entries of the table.
    Entries(DumpedEntries),
    /// Completion records.
    Records(Vec<LoggedRecord>),
    /// The last part, with the shard's line of the dump: the dump is complete.
    End(DumpedShard),
}

/// Entries in one buffer, in binary form. The executor does not format them as text, because that would block it for
/// too long.
#[derive(Debug, Default)]
pub struct DumpedEntries {
    bytes: Vec<u8>,
    lengths: Vec<(usize, usize, SequenceNumber)>,
}

impl DumpedEntries {
    /// Appends an entry.
    pub fn push(&mut self, key: &[u8], value: &[u8], version: SequenceNumber) {
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.lengths.push((key.len(), value.len(), version));
    }

    /// Returns the number of bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the number of entries.
    pub fn count(&self) -> usize {
        self.lengths.len()
    }

    /// Calls `visit` with key, value and version of each entry.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8], SequenceNumber)) {
        let mut rest = self.bytes.as_slice();
        for &(key_length, value_length, version) in &self.lengths {
            let (key, after) = rest.split_at(key_length);
            let (value, after) = after.split_at(value_length);
            visit(key, value, version);
            rest = after;
        }
    }
}
