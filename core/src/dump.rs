//! The text of a dump: how a table is written to a file and how such a file is checked and read.
//!
//! ```text
//!   # kv-dump 1                                   the header: format, then one fact a line
//!   # cluster 5c0f…
//!   # server 0
//!   # group 0
//!   # role primary
//!   # shards 2
//!   # view 1
//!   <md5 hex> "<key>" "<value>" <sn>              one line an entry, any bytes escaped
//!   @ <client> <shard> <seq> <first incomplete> <status> <version>
//!                                                 one line a completion record
//!   # end <entries> <crc32c of all before this line>
//! ```
//!
//! Everything is printable ASCII. A file that was cut or altered is refused as a whole: a restore
//! must never take half a table for a whole one.

use std::io::Write as _;
use std::str::{self, FromStr};

use kv_protocol::client_message::{ReplicaRole, Status};
use kv_protocol::escape::unescape;
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, RequestSeq, SequenceNumber, ServerId, ShardId, ViewVersion,
};
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use kv_protocol::peer_message::CompletionRecord;
use kv_protocol::placement::Digest;

/// The version of this format; the only one so far.
pub const DUMP_FORMAT: u32 = 1;

const FIRST_LINE: &str = "# kv-dump 1";
const END: &[u8] = b"# end ";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// What a dump is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpHeader {
    /// The cluster that the table belonged to.
    pub cluster: ClusterId,
    /// The server that wrote it.
    pub server: ServerId,
    /// The group whose keys it holds.
    pub group: GroupId,
    /// What that server was to the group.
    pub role: ReplicaRole,
    /// Shards of the group.
    pub shards: u16,
    /// The newest view of the group that was installed; 0 if none was.
    pub view: ViewVersion,
}

/// One entry of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpEntry {
    /// MD5 of the key.
    pub digest: Digest,
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The last write of the key.
    pub sn: SequenceNumber,
}

/// One completion record and the shard whose session it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpRecord {
    /// The shard.
    pub shard: ShardId,
    /// The record.
    pub record: CompletionRecord,
}

/// A whole dump that was found complete and unaltered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// What it is of.
    pub header: DumpHeader,
    /// All entries, in the order of the file.
    pub entries: Vec<DumpEntry>,
    /// All completion records, in the order of the file.
    pub records: Vec<DumpRecord>,
}

/// Why a file is not taken for a dump.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file has no trailer: its end is missing.
    #[error("the dump has no `# end` line: it was cut short")]
    Cut,
    /// The checksum of the trailer is not that of the lines.
    #[error("the dump was altered: its lines give checksum {computed:08x}, its end says {got:08x}")]
    Altered {
        /// What the trailer says.
        got: u32,
        /// The CRC-32C of the lines.
        computed: u32,
    },
    /// The trailer counts other entries than there are.
    #[error("the dump holds {found} entries, its end says {got}")]
    Count {
        /// What the trailer says.
        got: u64,
        /// Lines found.
        found: u64,
    },
    /// A line is not what the format demands there.
    #[error("line {line} of the dump: {reason}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// Writes dumps: appends lines to a buffer that the caller empties into its file, and keeps count
/// and checksum for the trailer.
///
/// ```text
///   begin -> entry* -> record* -> end
/// ```
#[derive(Debug)]
pub struct DumpWriter {
    checksum: u32,
    entries: u64,
}

impl DumpWriter {
    /// Starts a dump with its header.
    pub fn begin(header: &DumpHeader, output: &mut Vec<u8>) -> DumpWriter {
        let mut writer = DumpWriter { checksum: 0, entries: 0 };
        let role = role_name(header.role);
        writer.lines(output, |output| {
            put(
                output,
                format_args!(
                    "{FIRST_LINE}\n# cluster {}\n# server {}\n# group {}\n# role {role}\n\
                     # shards {}\n# view {}\n",
                    header.cluster, header.server, header.group, header.shards, header.view
                ),
            );
        });
        writer
    }

    /// Appends the line of an entry.
    pub fn entry(&mut self, key: &[u8], value: &[u8], sn: SequenceNumber, output: &mut Vec<u8>) {
        self.entries += 1;
        self.lines(output, |output| {
            put(output, format_args!("{} \"", Digest::of(key)));
            escape_into(key, output);
            output.extend_from_slice(b"\" \"");
            escape_into(value, output);
            put(output, format_args!("\" {sn}\n"));
        });
    }

    /// Appends the line of a completion record.
    pub fn record(&mut self, dumped: &DumpRecord, output: &mut Vec<u8>) {
        let DumpRecord { shard, record } = dumped;
        self.lines(output, |output| {
            put(
                output,
                format_args!(
                    "@ {} {shard} {} {} {} {}\n",
                    record.client,
                    record.seq,
                    record.first_incomplete,
                    record.status as u8,
                    record.version
                ),
            );
        });
    }

    /// Appends the trailer; returns how many entries the dump holds.
    pub fn end(self, output: &mut Vec<u8>) -> u64 {
        output.extend_from_slice(END);
        put(output, format_args!("{} {:08x}\n", self.entries, self.checksum));
        self.entries
    }

    fn lines(&mut self, output: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
        let start = output.len();
        write(output);
        self.checksum = crc32c::crc32c_append(self.checksum, &output[start..]);
    }
}

fn put(output: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    output.write_fmt(text).expect("a buffer takes all bytes");
}

/// [`kv_protocol::escape::ascii`] without the detour over `fmt`, which would take seconds for the
/// tables that dumps are made of.
fn escape_into(bytes: &[u8], output: &mut Vec<u8>) {
    output.reserve(bytes.len());
    for &byte in bytes {
        match byte {
            b'\\' | b'"' => output.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => output.push(byte),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                output.extend_from_slice(&[b'\\', b'x', high, low]);
            }
        }
    }
}

fn role_name(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Primary => "primary",
        ReplicaRole::Secondary => "secondary",
    }
}

impl Dump {
    /// Reads a whole dump: first its end is compared with all that stands before it, then each line
    /// is taken.
    ///
    /// # Errors
    /// [`DumpError`]: nothing of the file is to be used.
    pub fn parse(bytes: &[u8]) -> Result<Dump, DumpError> {
        let (lines, promised) = check_end(bytes)?;
        let mut lines = Lines { rest: lines, number: 0 };
        let header = parse_header(&mut lines)?;
        let mut dump = Dump { header, entries: Vec::new(), records: Vec::new() };
        while let Some(line) = lines.next_line() {
            let parsed = match line.strip_prefix("@ ") {
                Some(record) => parse_record(record).map(|record| dump.records.push(record)),
                None => parse_entry(line).map(|entry| dump.entries.push(entry)),
            };
            parsed.map_err(|reason| lines.error(reason))?;
        }
        let found = dump.entries.len() as u64;
        if found != promised {
            return Err(DumpError::Count { got: promised, found });
        }
        Ok(dump)
    }
}

/// Splits the trailer off, compares its checksum, and returns the lines before it and how many
/// entries it promises.
fn check_end(bytes: &[u8]) -> Result<(&str, u64), DumpError> {
    let without_newline = bytes.strip_suffix(b"\n").ok_or(DumpError::Cut)?;
    let last = without_newline.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let (before, trailer) = without_newline.split_at(last);
    let trailer = trailer.strip_prefix(END).ok_or(DumpError::Cut)?;
    let trailer = str::from_utf8(trailer).map_err(|_| DumpError::Cut)?;
    let (count, checksum) = trailer.split_once(' ').ok_or(DumpError::Cut)?;
    let promised = decimal(count).ok_or(DumpError::Cut)?;
    let got = u32::from_str_radix(checksum, 16).map_err(|_| DumpError::Cut)?;
    let computed = crc32c::crc32c(before);
    if got != computed {
        return Err(DumpError::Altered { got, computed });
    }
    let text = str::from_utf8(before)
        .map_err(|_| DumpError::Line { line: 1, reason: "a dump is plain ASCII" })?;
    Ok((text, promised))
}

struct Lines<'a> {
    rest: &'a str,
    number: usize,
}

impl<'a> Lines<'a> {
    fn next_line(&mut self) -> Option<&'a str> {
        let (line, rest) = self.rest.split_once('\n')?;
        self.rest = rest;
        self.number += 1;
        Some(line)
    }

    fn error(&self, reason: &'static str) -> DumpError {
        DumpError::Line { line: self.number, reason }
    }

    /// The value of the header line with this name.
    fn fact<T: FromStr>(&mut self, prefix: &str, reason: &'static str) -> Result<T, DumpError> {
        let line = self.next_line().unwrap_or_default();
        line.strip_prefix(prefix).and_then(|value| value.parse().ok()).ok_or(self.error(reason))
    }
}

fn parse_header(lines: &mut Lines<'_>) -> Result<DumpHeader, DumpError> {
    if lines.next_line() != Some(FIRST_LINE) {
        return Err(lines.error("expected `# kv-dump 1`, the only format known"));
    }
    let cluster = lines.fact("# cluster ", "expected `# cluster <hex>`")?;
    let server = ServerId(lines.fact("# server ", "expected `# server <number>`")?);
    let group = GroupId(lines.fact("# group ", "expected `# group <number>`")?);
    let role: String = lines.fact("# role ", "expected `# role primary` or `secondary`")?;
    let role = match role.as_str() {
        "primary" => ReplicaRole::Primary,
        "secondary" => ReplicaRole::Secondary,
        _ => return Err(lines.error("expected `# role primary` or `secondary`")),
    };
    let shards = lines.fact("# shards ", "expected `# shards <number>`")?;
    let view = ViewVersion(lines.fact("# view ", "expected `# view <number>`")?);
    Ok(DumpHeader { cluster, server, group, role, shards, view })
}

fn parse_entry(line: &str) -> Result<DumpEntry, &'static str> {
    const SHAPE: &str = "expected `<md5> \"<key>\" \"<value>\" <sn>`";
    let (digest, rest) = line.split_once(" \"").ok_or(SHAPE)?;
    let (key, rest) = quoted(rest).ok_or(SHAPE)?;
    let rest = rest.strip_prefix(" \"").ok_or(SHAPE)?;
    let (value, rest) = quoted(rest).ok_or(SHAPE)?;
    let sn = rest.strip_prefix(' ').and_then(decimal).ok_or(SHAPE)?;
    let key = unescape(key.as_bytes()).map_err(|_| "the key holds an unknown escape")?;
    let value = unescape(value.as_bytes()).map_err(|_| "the value holds an unknown escape")?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
        return Err("key or value has a length that no entry has");
    }
    let computed = Digest::of(&key);
    if digest.len() != 32 || u128::from_str_radix(digest, 16) != Ok(computed.number()) {
        return Err("the MD5 is not that of the key");
    }
    Ok(DumpEntry { digest: computed, key, value, sn: SequenceNumber(sn) })
}

/// Splits escaped text from what follows its closing quote.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        match bytes.get(at)? {
            b'"' => return Some((&text[..at], &text[at + 1..])),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn parse_record(line: &str) -> Result<DumpRecord, &'static str> {
    const SHAPE: &str = "expected `@ <client> <shard> <seq> <first incomplete> <status> <version>`";
    let mut fields = line.split(' ');
    let mut next = || fields.next().ok_or(SHAPE);
    let client: ClientId = next()?.parse().map_err(|_| SHAPE)?;
    let shard = next()?.parse().map_err(|_| SHAPE)?;
    let seq = decimal(next()?).ok_or(SHAPE)?;
    let first_incomplete = decimal(next()?).ok_or(SHAPE)?;
    let status = next()?.parse().ok().and_then(Status::from_wire).ok_or("unknown status")?;
    let version = decimal(next()?).ok_or(SHAPE)?;
    if fields.next().is_some() {
        return Err(SHAPE);
    }
    let record = CompletionRecord {
        client,
        seq: RequestSeq(seq),
        first_incomplete: RequestSeq(first_incomplete),
        status,
        version: SequenceNumber(version),
    };
    Ok(DumpRecord { shard: ShardId(shard), record })
}

/// Digits alone: `parse` would take a plus sign too.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::escape::ascii;
    use proptest::prelude::*;

    const HEADER: DumpHeader = DumpHeader {
        cluster: ClusterId(0xabc),
        server: ServerId(2),
        group: GroupId(1),
        role: ReplicaRole::Secondary,
        shards: 4,
        view: ViewVersion(9),
    };

    fn written(entries: &[(Vec<u8>, Vec<u8>, u64)], records: &[DumpRecord]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = DumpWriter::begin(&HEADER, &mut file);
        for (key, value, sn) in entries {
            writer.entry(key, value, SequenceNumber(*sn), &mut file);
        }
        for record in records {
            writer.record(record, &mut file);
        }
        assert_eq!(writer.end(&mut file), entries.len() as u64);
        file
    }

    fn record(seq: u64) -> DumpRecord {
        let record = CompletionRecord {
            client: ClientId(u128::MAX - 1),
            seq: RequestSeq(seq),
            first_incomplete: RequestSeq(1),
            status: Status::Conflict,
            version: SequenceNumber(u64::MAX),
        };
        DumpRecord { shard: ShardId(3), record }
    }

    fn sample() -> Vec<u8> {
        let entries = [
            (b"a".to_vec(), b"1".to_vec(), 1),
            (b"quote\" and \\".to_vec(), b"\0\n\xff".to_vec(), 77),
            (b"# end 0 00000000".to_vec(), Vec::new(), u64::MAX),
        ];
        written(&entries, &[record(5)])
    }

    #[test]
    fn a_dump_reads_as_documented() {
        let text = String::from_utf8(written(&[(b"a".to_vec(), b"x\n".to_vec(), 3)], &[record(5)]))
            .unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# kv-dump 1");
        assert_eq!(lines[1], "# cluster 00000000000000000000000000000abc");
        assert_eq!(lines[4], "# role secondary");
        assert_eq!(lines[7], "0cc175b9c0f1b6a831c399e269772661 \"a\" \"x\\x0a\" 3");
        assert_eq!(lines[8], "@ fffffffffffffffffffffffffffffffe 3 5 1 2 18446744073709551615");
        assert!(lines[9].starts_with("# end 1 "));
    }

    #[test]
    fn a_dump_cut_anywhere_is_refused() {
        let whole = sample();
        Dump::parse(&whole).unwrap();
        for end in 0..whole.len() {
            assert!(Dump::parse(&whole[..end]).is_err(), "cut to {end} of {} bytes", whole.len());
        }
    }

    #[test]
    fn a_dump_with_any_byte_altered_is_refused() {
        let whole = sample();
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            assert!(Dump::parse(&altered).is_err(), "byte {at} was altered unnoticed");
        }
    }

    #[test]
    fn a_missing_line_is_noticed_even_under_a_right_checksum() {
        let whole = sample();
        let text = str::from_utf8(&whole).unwrap();
        let kept: String = text
            .lines()
            .filter(|line| !line.contains("\"a\"") && !line.starts_with("# end "))
            .map(|line| format!("{line}\n"))
            .collect();
        let file = format!("{kept}# end 3 {:08x}\n", crc32c::crc32c(kept.as_bytes()));
        assert_eq!(Dump::parse(file.as_bytes()), Err(DumpError::Count { got: 3, found: 2 }));
    }

    #[test]
    fn a_foreign_digest_is_named_with_its_line() {
        let whole = sample();
        let text = str::from_utf8(&whole).unwrap();
        let end = text.find("# end ").map(|_| text.rfind("# end ").unwrap()).unwrap();
        let lines = text[..end].replace("0cc175b9", "0cc175b8");
        let file = format!("{lines}# end 3 {:08x}\n", crc32c::crc32c(lines.as_bytes()));
        let expected = DumpError::Line { line: 8, reason: "the MD5 is not that of the key" };
        assert_eq!(Dump::parse(file.as_bytes()), Err(expected));
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(
            entries in prop::collection::vec(
                (
                    prop::collection::vec(any::<u8>(), 1..40),
                    prop::collection::vec(any::<u8>(), 0..80),
                    any::<u64>(),
                ),
                0..20,
            ),
            seqs in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let records: Vec<DumpRecord> = seqs.into_iter().map(record).collect();
            let file = written(&entries, &records);
            prop_assert!(file.iter().all(|b| *b == b'\n' || (b' '..=b'~').contains(b)));
            let dump = Dump::parse(&file).unwrap();
            prop_assert_eq!(dump.header, HEADER);
            prop_assert_eq!(dump.records, records);
            let back: Vec<_> =
                dump.entries.into_iter().map(|e| (e.key, e.value, e.sn.0)).collect();
            prop_assert_eq!(back, entries);
        }

        #[test]
        fn the_escapes_are_those_of_the_protocol(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut escaped = Vec::new();
            escape_into(&bytes, &mut escaped);
            prop_assert_eq!(String::from_utf8(escaped).unwrap(), ascii(&bytes).to_string());
        }

        #[test]
        fn random_text_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Dump::parse(&bytes).is_err());
            let mut file = b"# kv-dump 1\n".to_vec();
            file.extend_from_slice(&bytes);
            file.push(b'\n');
            let checksum = crc32c::crc32c(&file);
            file.extend_from_slice(format!("# end 0 {checksum:08x}\n").as_bytes());
            prop_assert!(Dump::parse(&file).is_err());
        }
    }
}
