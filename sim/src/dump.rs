//! Dumps in the shipped format: a stopping process writes them to its host's disk, and a new process loads them.
//!
//! ```text
//!   Input::Dump to shard 0 -> freezes -> Part -> Job: text -> shard 1 ... -> written -> DumpFile
//! ```

use kv_core::dump::{Dump, DumpOrigin, DumpRecord, DumpWriter, DumpedShard, HeldAs};
use kv_core::replica::{NoFullCopy, Replica};
use kv_core::session::LoggedRecord;
use kv_core::table::{WalkBudget, WalkCursor};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{GroupId, OrderId, SequenceNumber, ViewVersion, WallTime};
use kv_shard::{DumpedEntries, LoadPiece, Service};

/// An owned entry of a table: key, value, deadline and version.
type Entry = (Vec<u8>, Vec<u8>, Option<WallTime>, SequenceNumber);

/// One shard's part of a dump.
#[derive(Debug)]
pub struct Part {
    line: DumpedShard,
    entries: Vec<Entry>,
    records: Vec<DumpRecord>,
    content: Option<ContentDigest>,
}

impl Part {
    /// Collects the contents of a frozen replica.
    ///
    /// # Errors
    /// [`NoFullCopy`] if the replica is incomplete.
    pub fn of(replica: &Replica) -> Result<Box<Part>, NoFullCopy> {
        let line = replica.dumped()?;
        let mut entries = Vec::new();
        let mut cursor = Some(WalkCursor::START);
        while let Some(at) = cursor {
            let budget = WalkBudget { entries: 1_024, bytes: 1 << 20 };
            cursor = replica.walk(at, budget, |entry| {
                let (key, value) = (entry.key.to_vec(), entry.value.to_vec());
                entries.push((key, value, entry.deadline, entry.version));
            });
        }
        let records = replica.records_for_dump(0..replica.session_count());
        let shard = line.shard;
        let records = records.map(|LoggedRecord { sn, record }| {
            let response = replica.response_of(record.client, record.seq).to_vec();
            DumpRecord { shard, sn, record, response }
        });
        let records = records.collect();
        let sight = replica.inspect();
        // The digest includes records of pending writes, which a dump does not contain. So it is kept only if no
        // write is pending.
        let content = (sight.last == sight.committed).then_some(sight.content);
        Ok(Box::new(Part { line, entries, records, content }))
    }

    /// Returns the shard of this part.
    pub fn shard(&self) -> usize {
        usize::from(self.line.shard.0)
    }
}

/// A dump in progress.
#[derive(Debug)]
pub struct Job {
    /// The order that requested the dump; `None` if the process leaves by itself.
    pub order: Option<OrderId>,
    /// The role of the process in the dumped group when the group is home.
    pub role: ReplicaRole,
    origin: DumpOrigin,
    writer: DumpWriter,
    text: Vec<u8>,
    contents: Vec<Option<ContentDigest>>,
}

impl Job {
    /// Begins a dump.
    pub fn new(origin: DumpOrigin, role: ReplicaRole, order: Option<OrderId>) -> Job {
        let mut text = Vec::new();
        let writer = DumpWriter::begin(&origin, &mut text);
        Job { order, role, origin, writer, text, contents: Vec::new() }
    }

    /// Returns the origin of the dump.
    pub fn origin(&self) -> &DumpOrigin {
        &self.origin
    }

    /// Appends the next shard's part. Returns whether it was the last.
    pub fn take(&mut self, part: &Part) -> bool {
        self.writer.shard(&part.line, &mut self.text);
        for (key, value, deadline, sn) in &part.entries {
            self.writer.entry(key, value, *deadline, *sn, &mut self.text);
        }
        for record in &part.records {
            self.writer.record(record, &mut self.text);
        }
        self.contents.push(part.content);
        self.contents.len() == usize::from(self.origin.shards)
    }

    /// Completes the file, and returns it with its number of entries.
    pub fn finish(mut self) -> (DumpFile, u64) {
        let entries = self.writer.end(&mut self.text);
        (DumpFile { text: self.text, contents: self.contents }, entries)
    }

    /// Returns the incomplete file that remains on disk if the process ends during the dump.
    pub fn cut(self) -> DumpFile {
        DumpFile { text: self.text, contents: Vec::new() }
    }
}

/// A dump file on a host's disk.
#[derive(Debug)]
pub struct DumpFile {
    /// The bytes of the file.
    pub text: Vec<u8>,
    /// The digest of the replica's contents, by shard; `None` if writes were pending at the dump. Empty if the file is
    /// incomplete.
    pub contents: Vec<Option<ContentDigest>>,
}

/// Loads a shard of a dump into the empty replica of a group. The last sequence number of the replica becomes
/// `last`.
pub fn load(service: &mut Service, group: GroupId, last: SequenceNumber, dump: &Dump) {
    let (shard, placement) = (service.identity.shard, service.identity.placement);
    let mut entries = DumpedEntries::default();
    for entry in &dump.entries {
        if placement.locate_digested(entry.digest, &entry.key) == (group, shard) {
            entries.push(&entry.key, &entry.value, entry.deadline, entry.sn);
        }
    }
    let records = dump.records.iter().filter(|record| record.shard == shard);
    let records = records.map(|dumped| {
        (LoggedRecord { sn: dumped.sn, record: dumped.record }, dumped.response.clone())
    });
    let line = dump.header.shards.iter().find(|line| line.shard == shard);
    let end = match line {
        Some(line) => DumpedShard { last, ..*line },
        None => {
            let (held_as, view) = (HeldAs::Primary, ViewVersion(0));
            DumpedShard { shard, held_as, view, last, forgotten: last }
        }
    };
    let pieces =
        [LoadPiece::Entries(entries), LoadPiece::Records(records.collect()), LoadPiece::End(end)];
    for piece in pieces {
        service.load(group, piece).expect("a run has enough memory");
    }
}
