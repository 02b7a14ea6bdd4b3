//! What a process leaves on its host's disk when it is stopped, in the very format that ships, and a
//! process that begins with it.
//!
//! ```text
//!   Input::Dump to shard 0 -> freezes -> Part -> Job: text -> shard 1 ... -> written -> DumpFile
//! ```

use kv_core::dump::{Dump, DumpOrigin, DumpRecord, DumpWriter, DumpedShard};
use kv_core::replica::{NoFullCopy, Replica};
use kv_core::table::{WalkBudget, WalkCursor};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::copy_message::ContentDigest;
use kv_protocol::ids::{OrderId, SequenceNumber, ShardId};

/// An entry of a table, owned.
type Entry = (Vec<u8>, Vec<u8>, SequenceNumber);

/// One shard's part of a dump.
#[derive(Debug)]
pub struct Part {
    line: DumpedShard,
    entries: Vec<Entry>,
    records: Vec<DumpRecord>,
    content: Option<ContentDigest>,
}

impl Part {
    /// All that a frozen replica holds.
    ///
    /// # Errors
    /// [`NoFullCopy`]
    pub fn of(replica: &Replica) -> Result<Box<Part>, NoFullCopy> {
        let line = replica.dumped()?;
        let mut entries = Vec::new();
        let mut cursor = Some(WalkCursor::START);
        while let Some(at) = cursor {
            let budget = WalkBudget { entries: 1_024, bytes: 1 << 20 };
            cursor = replica.walk(at, budget, |entry| {
                entries.push((entry.key.to_vec(), entry.value.to_vec(), entry.version));
            });
        }
        let records = replica.completion_records(0..replica.session_count());
        let shard = line.shard;
        let records =
            records.map(|logged| DumpRecord { shard, sn: logged.sn, record: logged.record });
        let records = records.collect();
        let sight = replica.inspect();
        // Records of writes that are pending are in the digest, and in no dump.
        let content = (sight.last == sight.committed).then_some(sight.content);
        Ok(Box::new(Part { line, entries, records, content }))
    }

    /// Whose it is.
    pub fn shard(&self) -> usize {
        usize::from(self.line.shard.0)
    }
}

/// A dump in the making.
#[derive(Debug)]
pub struct Job {
    /// Who gave the order; nobody where the process leaves alone.
    pub order: Option<OrderId>,
    /// Whose table, by home.
    pub role: ReplicaRole,
    origin: DumpOrigin,
    writer: DumpWriter,
    text: Vec<u8>,
    contents: Vec<Option<ContentDigest>>,
}

impl Job {
    /// Begins.
    pub fn new(origin: DumpOrigin, role: ReplicaRole, order: Option<OrderId>) -> Job {
        let mut text = Vec::new();
        let writer = DumpWriter::begin(&origin, &mut text);
        Job { order, role, origin, writer, text, contents: Vec::new() }
    }

    /// What it is of.
    pub fn origin(&self) -> &DumpOrigin {
        &self.origin
    }

    /// Takes the part of the next shard; whether that was the last.
    pub fn take(&mut self, part: &Part) -> bool {
        self.writer.shard(&part.line, &mut self.text);
        for (key, value, sn) in &part.entries {
            self.writer.entry(key, value, *sn, &mut self.text);
        }
        for record in &part.records {
            self.writer.record(record, &mut self.text);
        }
        self.contents.push(part.content);
        self.contents.len() == usize::from(self.origin.shards)
    }

    /// The whole file, and how many entries it holds.
    pub fn finish(mut self) -> (DumpFile, u64) {
        let entries = self.writer.end(&mut self.text);
        (DumpFile { text: self.text, contents: self.contents }, entries)
    }

    /// What is on the disk when the process ends before the dump does.
    pub fn cut(self) -> DumpFile {
        DumpFile { text: self.text, contents: Vec::new() }
    }
}

/// A file on the disk of some host.
#[derive(Debug)]
pub struct DumpFile {
    /// Its bytes.
    pub text: Vec<u8>,
    /// By shard: the digest of what the replica held, where all of that is in the file.
    pub contents: Vec<Option<ContentDigest>>,
}

/// Fills an empty replica with its shard of a dump.
pub fn load(replica: &mut Replica, shard: ShardId, last: SequenceNumber, dump: &Dump) {
    let place = (replica.group(), shard);
    let placement = replica.placement();
    for entry in dump.entries.iter().filter(|entry| placement.locate(entry.digest) == place) {
        replica.load_entry(&entry.key, &entry.value, entry.sn).expect("a run has memory enough");
    }
    for record in dump.records.iter().filter(|record| record.shard == shard) {
        replica.load_record(record.sn, record.record);
    }
    let forgotten = dump.header.shards.iter().find(|line| line.shard == shard);
    replica.finish_load(last, forgotten.map_or(last, |line| line.forgotten));
}
