//! An incremental reader of dumps, so that a dump of any size is checked and loaded in bounded memory.
//!
//! ```text
//!   bytes of the file -> feed -> origin, then (shard, entries, records) for each shard   DumpItem
//!   end of the file   -> finish -> the header, or an error: nothing of the file may be used
//! ```
//!
//! The items emitted before the end are valid only if [`DumpReader::finish`] succeeds, because the checksum is
//! verified at the end.

use std::str::{self, FromStr};

use kv_protocol::ids::{ClusterId, GroupId, Incarnation, Member, ServerId};
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_RETAINED_RESPONSE, MAX_VALUE_BYTES};

use super::{
    DumpEntry, DumpError, DumpHeader, DumpOrigin, DumpRecord, DumpedShard, END, FIRST_LINES,
    HASH_TAGS, SHARD, parse_end, parse_entry, parse_record, parse_shard,
};

/// The maximum length of a line of a dump: every byte of the longest key and value is escaped.
pub const MAX_DUMP_LINE_BYTES: usize = 4 * (MAX_KEY_BYTES + MAX_VALUE_BYTES) + 128;

const _: () =
    assert!(4 * MAX_RETAINED_RESPONSE + 256 <= MAX_DUMP_LINE_BYTES, "a record must fit in a line");

/// A part of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DumpItem {
    /// The origin, which is the first item.
    Origin(DumpOrigin),
    /// The start of a shard.
    Shard(DumpedShard),
    /// An entry of the current shard.
    Entry(DumpEntry),
    /// A completion record of the current shard.
    Record(DumpRecord),
}

/// A reader of one dump.
#[derive(Debug, Default)]
pub struct DumpReader {
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The number of lines read.
    lines: usize,
    checksum: u32,
    facts: Facts,
    header: Option<DumpHeader>,
    entries: u64,
    is_over: bool,
}

/// The values of the origin's lines read so far.
#[derive(Debug, Default)]
struct Facts {
    cluster: ClusterId,
    server: ServerId,
    incarnation: Incarnation,
    group: GroupId,
}

impl DumpReader {
    /// Creates a reader that has read nothing.
    pub fn new() -> DumpReader {
        DumpReader::default()
    }

    /// Reads the next bytes of the file and passes every part that is complete to `take`.
    ///
    /// # Errors
    /// [`DumpError`] if the bytes violate the format, or the error of `take`. The reader must not be used after an
    /// error.
    pub fn feed<E: From<DumpError>>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(DumpItem) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            let item = if self.partial.is_empty() {
                self.line(line)?
            } else {
                self.bound(line.len())?;
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                let item = self.line(&whole)?;
                whole.clear();
                self.partial = whole;
                item
            };
            if let Some(item) = item {
                take(item)?;
            }
        }
        self.bound(bytes.len())?;
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// Ends the input and returns the header of the dump.
    ///
    /// # Errors
    /// [`DumpError::Cut`] if the file is truncated; nothing of it may be used.
    pub fn finish(self) -> Result<DumpHeader, DumpError> {
        let is_whole = self.is_over && self.partial.is_empty();
        self.header.filter(|_| is_whole).ok_or(DumpError::Cut)
    }

    /// Rejects a partial line that is longer than any line of a dump.
    fn bound(&self, more: usize) -> Result<(), DumpError> {
        if self.partial.len() + more <= MAX_DUMP_LINE_BYTES {
            return Ok(());
        }
        let reason = "it is longer than any line of a dump";
        Err(DumpError::Line { line: self.lines + 1, reason })
    }

    /// Parses a line without its newline.
    fn line(&mut self, line: &[u8]) -> Result<Option<DumpItem>, DumpError> {
        self.lines += 1;
        if self.is_over {
            return Err(self.error("it follows the end"));
        }
        if let Some(trailer) = line.strip_prefix(END) {
            self.end(trailer)?;
            return Ok(None);
        }
        self.checksum = crc32c::crc32c_append(crc32c::crc32c_append(self.checksum, line), b"\n");
        let text = str::from_utf8(line).map_err(|_| self.error("it is not plain ASCII"))?;
        if self.header.is_none() {
            return self.fact(text);
        }
        self.body(text).map(Some).map_err(|reason| self.error(reason))
    }

    fn error(&self, reason: &'static str) -> DumpError {
        DumpError::Line { line: self.lines, reason }
    }

    /// Parses a line of the origin; returns the origin at its last line.
    fn fact(&mut self, line: &str) -> Result<Option<DumpItem>, DumpError> {
        let facts = &mut self.facts;
        let taken = match self.lines {
            1 if FIRST_LINES.contains(&line) => Ok(()),
            1 => Err(
                "expected `# kv-dump 4`, or `# kv-dump 3` or `# kv-dump 2` of an earlier version",
            ),
            2 => set(&mut facts.cluster, line, "# cluster ", "expected `# cluster <hex>`"),
            3 => {
                let mut server = 0;
                let taken = set(&mut server, line, "# server ", "expected `# server <number>`");
                facts.server = ServerId(server);
                taken
            }
            4 => {
                let reason = "expected `# incarnation <hex>`";
                set(&mut facts.incarnation, line, "# incarnation ", reason)
            }
            5 => {
                let mut group = 0;
                let taken = set(&mut group, line, "# group ", "expected `# group <number>`");
                facts.group = GroupId(group);
                taken
            }
            _ => {
                let mut shards = 0;
                let reason = "expected `# shards <number>` or `# shards <number> hash-tags`";
                let (line, hash_tags) = match line.strip_suffix(HASH_TAGS) {
                    Some(before) => (before, true),
                    None => (line, false),
                };
                set(&mut shards, line, "# shards ", reason).map_err(|reason| self.error(reason))?;
                let Facts { cluster, server, incarnation, group } = self.facts;
                let writer = Member { server, incarnation };
                let origin = DumpOrigin { cluster, writer, group, shards, hash_tags };
                self.header = Some(DumpHeader { origin, shards: Vec::new() });
                return Ok(Some(DumpItem::Origin(origin)));
            }
        };
        taken.map(|()| None).map_err(|reason| self.error(reason))
    }

    /// Parses a line after the origin.
    fn body(&mut self, line: &str) -> Result<DumpItem, &'static str> {
        let header = self.header.as_mut().ok_or("the shard comes before the origin")?;
        if let Some(shard) = line.strip_prefix(SHARD) {
            let shard = parse_shard(shard)?;
            let due = header.shards.len();
            if usize::from(shard.shard.0) != due || due >= usize::from(header.origin.shards) {
                return Err("the shards are not in order");
            }
            header.shards.push(shard);
            return Ok(DumpItem::Shard(shard));
        }
        let current = *header.shards.last().ok_or("expected `# shard 0 …`")?;
        let (item, sn) = match line.strip_prefix("@ ") {
            Some(record) => {
                let record = parse_record(record)?;
                if record.shard != current.shard {
                    return Err("the record belongs to another shard");
                }
                let sn = record.sn;
                (DumpItem::Record(record), sn)
            }
            None => {
                let entry = parse_entry(line)?;
                let sn = entry.sn;
                self.entries += 1;
                (DumpItem::Entry(entry), sn)
            }
        };
        if sn > current.last {
            return Err("the write is newer than the last write of its shard");
        }
        Ok(item)
    }

    /// Verifies the trailer against everything before it.
    fn end(&mut self, trailer: &[u8]) -> Result<(), DumpError> {
        let (promised, got) = parse_end(trailer).ok_or(DumpError::Cut)?;
        let computed = self.checksum;
        if got != computed {
            return Err(DumpError::Altered { got, computed });
        }
        let is_whole = self
            .header
            .as_ref()
            .is_some_and(|header| header.shards.len() == usize::from(header.origin.shards));
        if !is_whole {
            return Err(self.error("some shards are missing"));
        }
        if self.entries != promised {
            return Err(DumpError::Count { got: promised, found: self.entries });
        }
        self.is_over = true;
        Ok(())
    }
}

/// Parses the value of the header line that begins with `prefix`, and stores it in `fact`.
fn set<T: FromStr>(
    fact: &mut T,
    line: &str,
    prefix: &str,
    reason: &'static str,
) -> Result<(), &'static str> {
    let value = line.strip_prefix(prefix).and_then(|value| value.parse().ok());
    *fact = value.ok_or(reason)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use kv_protocol::change::RetainedResponse;
    use kv_protocol::client_message::Status;
    use kv_protocol::ids::{
        ClientId, RequestHash, RequestSeq, SequenceNumber, ShardId, ViewVersion, WallTime,
    };
    use kv_protocol::peer_message::CompletionRecord;

    use super::*;
    use crate::dump::{DumpWriter, HeldAs};

    /// Returns a dump of these entries, where every second one has a deadline, and of a record for each of these values
    /// of responses.
    fn dump(entries: &[(&[u8], &[u8])], responses: &[Option<&[u8]>]) -> Vec<u8> {
        let writer = Member { server: ServerId(0), incarnation: Incarnation(1) };
        let origin = DumpOrigin {
            cluster: ClusterId(1),
            writer,
            group: GroupId(0),
            shards: 1,
            hash_tags: false,
        };
        let mut file = Vec::new();
        let mut writer = DumpWriter::begin(&origin, &mut file);
        let line = DumpedShard {
            shard: ShardId(0),
            held_as: HeldAs::Primary,
            view: ViewVersion(3),
            last: SequenceNumber(9),
            forgotten: SequenceNumber(0),
        };
        writer.shard(&line, &mut file);
        for (number, (key, value)) in (0u64..).zip(entries) {
            let deadline = (number % 2 == 1).then(|| WallTime::from_millis(number));
            writer.entry(key, value, deadline, SequenceNumber(2), &mut file);
        }
        for (seq, value) in (1..).zip(responses) {
            let record = CompletionRecord {
                client: ClientId(7),
                seq: RequestSeq(seq),
                first_incomplete: RequestSeq(1),
                status: Status::Ok,
                version: SequenceNumber(2),
                request: RequestHash(3),
            };
            let mut response = Vec::new();
            RetainedResponse { value: *value, deadline: None }.write(&mut response);
            let (shard, sn) = (ShardId(0), SequenceNumber(2));
            writer.record(&DumpRecord { shard, sn, record, response }, &mut file);
        }
        writer.end(&mut file);
        file
    }

    fn read(file: &[u8], piece: usize) -> Result<(DumpHeader, Vec<DumpItem>), DumpError> {
        let mut reader = DumpReader::new();
        let mut items = Vec::new();
        for bytes in file.chunks(piece) {
            reader.feed(bytes, |item| {
                items.push(item);
                Ok::<(), DumpError>(())
            })?;
        }
        Ok((reader.finish()?, items))
    }

    #[test]
    fn a_dump_reads_the_same_in_pieces_of_any_size() {
        let entries: [(&[u8], &[u8]); 3] = [(b"a", b"1"), (b"\n", b"\0\xff"), (b"c", b"")];
        let file = dump(&entries, &[None, Some(b"of a\n\"response\"")]);
        let whole = read(&file, file.len()).unwrap();
        assert_eq!(whole.1.len(), 7);
        let is_expiring =
            |item: &&DumpItem| matches!(item, DumpItem::Entry(e) if e.deadline.is_some());
        assert_eq!(whole.1.iter().filter(is_expiring).count(), 1);
        let has_response =
            |item: &&DumpItem| matches!(item, DumpItem::Record(r) if !r.response.is_empty());
        assert_eq!(whole.1.iter().filter(has_response).count(), 1);
        for piece in 1..file.len() {
            assert_eq!(read(&file, piece).as_ref(), Ok(&whole), "pieces of {piece} bytes");
        }
    }

    #[test]
    fn a_truncated_or_altered_dump_is_rejected_in_pieces_too() {
        let file = dump(&[(b"a", b"1"), (b"b", b"2")], &[Some(b"response")]);
        for at in 0..file.len() {
            assert!(read(&file[..at], 7).is_err(), "cut to {at} bytes");
            let mut altered = file.clone();
            altered[at] ^= 1;
            assert!(read(&altered, 7).is_err(), "the change of byte {at} was not detected");
        }
        let mut longer = file.clone();
        longer.extend_from_slice(b"more\n");
        let lines = file.iter().filter(|&&byte| byte == b'\n').count();
        let follows = DumpError::Line { line: lines + 1, reason: "it follows the end" };
        assert_eq!(read(&longer, 7), Err(follows));
        let endless = [file, vec![b'#'; MAX_DUMP_LINE_BYTES + 1]].concat();
        let error = read(&endless, 1 << 20).unwrap_err();
        assert!(matches!(error, DumpError::Line { line, .. } if line == lines + 1), "{error}");
    }

    #[test]
    fn an_endless_line_is_rejected() {
        let mut reader = DumpReader::new();
        let bytes = vec![b'#'; 1 << 20];
        let mut fed = 0;
        let error = loop {
            match reader.feed(&bytes, |_| Ok::<(), DumpError>(())) {
                Ok(()) => fed += bytes.len(),
                Err(error) => break error,
            }
            assert!(fed <= MAX_DUMP_LINE_BYTES, "{fed} bytes are kept");
        };
        assert!(error.to_string().contains("longer than any line"), "{error}");
    }
}
