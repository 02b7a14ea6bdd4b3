//! Parts of a dump in memory, between a table and a file.

use kv_core::dump::DumpedShard;
use kv_core::session::LoggedRecord;
use kv_protocol::ids::{SequenceNumber, WallTime};

/// A part of a dump, for a shard's table.
#[derive(Debug)]
pub enum LoadPiece {
    /// Entries of the table.
    Entries(DumpedEntries),
    /// Completion records, each with the rest of its response.
    Records(Vec<(LoggedRecord, Vec<u8>)>),
    /// The last part, with the shard's line of the dump: the dump is complete.
    End(DumpedShard),
}

/// Entries in one buffer, in binary form. The executor does not format them as text, because that would block it for
/// too long.
#[derive(Debug, Default)]
pub struct DumpedEntries {
    bytes: Vec<u8>,
    entries: Vec<Place>,
}

/// One of the entries, without its key and value.
#[derive(Debug)]
struct Place {
    key_length: usize,
    value_length: usize,
    deadline: Option<WallTime>,
    version: SequenceNumber,
}

impl DumpedEntries {
    /// Appends an entry.
    pub fn push(
        &mut self,
        key: &[u8],
        value: &[u8],
        deadline: Option<WallTime>,
        version: SequenceNumber,
    ) {
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        let (key_length, value_length) = (key.len(), value.len());
        self.entries.push(Place { key_length, value_length, deadline, version });
    }

    /// Returns the number of bytes of keys and values.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the number of entries.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Calls `visit` with key, value, deadline and version of each entry.
    pub fn for_each(&self, mut visit: impl FnMut(&[u8], &[u8], Option<WallTime>, SequenceNumber)) {
        let mut rest = self.bytes.as_slice();
        for &Place { key_length, value_length, deadline, version } in &self.entries {
            let (key, after) = rest.split_at(key_length);
            let (value, after) = after.split_at(value_length);
            visit(key, value, deadline, version);
            rest = after;
        }
    }
}
