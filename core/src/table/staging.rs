//! Staged entries: allocated but not yet part of the table.

use super::segment::HashBits;
use crate::arena::Handle;

/// A ticket for an entry that is not yet part of its table, created by [`Table::stage`](super::Table::stage).
/// [`Table::commit`](super::Table::commit), [`Table::commit_removal`](super::Table::commit_removal) or
/// [`Table::discard`](super::Table::discard) ends it. If it is dropped instead, the entry keeps its memory until the
/// table is cleared.
///
/// A ticket is not a pointer: the table has the record of the entry, so the ticket stays valid when the table changes.
/// It is a programming error to pass a ticket to another table, or to use it after
/// [`Table::clear`](super::Table::clear). The latter always panics; the former panics unless the other table has a
/// ticket of the same number.
#[derive(Debug)]
#[must_use = "a staged entry keeps its memory until it is committed or discarded"]
pub struct Staged {
    index: u32,
    number: u64,
}

/// The record of a staged entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) hash: HashBits,
    pub(super) handle: Handle,
    /// The number of bytes of the value that were written.
    pub(super) filled: usize,
}

/// The records of all staged entries.
#[derive(Debug, Default)]
pub(super) struct Staging {
    /// The records, each with the number of its ticket; `None` for a vacant index.
    records: Vec<Option<(u64, Record)>>,
    vacant: Vec<u32>,
    /// The number of tickets ever created. It never decreases, so no old ticket becomes valid again.
    tickets: u64,
}

impl Staging {
    pub(super) fn add(&mut self, record: Record) -> Staged {
        let number = self.tickets;
        self.tickets += 1;
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.records.push(None);
            u32::try_from(self.records.len() - 1).expect("an arena has fewer entries than 2^32")
        });
        self.records[index as usize] = Some((number, record));
        Staged { index, number }
    }

    pub(super) fn get(&self, staged: &Staged) -> &Record {
        match self.records.get(staged.index as usize) {
            Some(Some((number, record))) if *number == staged.number => record,
            _ => unknown(staged),
        }
    }

    pub(super) fn get_mut(&mut self, staged: &Staged) -> &mut Record {
        match self.records.get_mut(staged.index as usize) {
            Some(Some((number, record))) if *number == staged.number => record,
            _ => unknown(staged),
        }
    }

    /// Returns the records from an index on, each with its index.
    pub(super) fn records_mut(
        &mut self,
        from: usize,
    ) -> impl Iterator<Item = (usize, &mut Record)> {
        let records = self.records.iter_mut().enumerate().skip(from);
        records.filter_map(|(place, record)| Some((place, &mut record.as_mut()?.1)))
    }

    /// Returns the hashes of all records.
    pub(super) fn hashes(&self) -> impl Iterator<Item = HashBits> {
        self.records.iter().flatten().map(|(_, record)| record.hash)
    }

    pub(super) fn take(&mut self, staged: Staged) -> Record {
        let record = *self.get(&staged);
        self.records[staged.index as usize] = None;
        self.vacant.push(staged.index);
        record
    }

    pub(super) fn len(&self) -> usize {
        self.records.len() - self.vacant.len()
    }

    /// Drops all records. Earlier tickets do not match later records.
    pub(super) fn clear(&mut self) {
        self.records = Vec::new();
        self.vacant = Vec::new();
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.records.capacity() * size_of::<Option<(u64, Record)>>()
            + self.vacant.capacity() * size_of::<u32>()
    }
}

fn unknown(staged: &Staged) -> ! {
    panic!("{staged:?} is not of this table, or of a time before it was cleared")
}
