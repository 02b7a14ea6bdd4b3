//! The text format of a dump: writing a table to a file, and checking and reading such a file.
//!
//! ```text
//!   # kv-dump 4                                   the header: the format, then one fact per line
//!   # cluster 5c0f…
//!   # server 0
//!   # incarnation 91d2…                           the process that wrote it
//!   # group 0
//!   # shards 2                                  with ` hash-tags` at its end if the cluster has hash tags
//!   # shard 0 primary view 7 last 1042 forgotten 17
//!                                                 for each shard: the role of the process in the
//!                                                 newest view that it had installed, the last write, and
//!                                                 the write since which every kept session has written
//!   <md5 hex> "<key>" "<value>" <sn>              one line per entry; key and value are escaped
//!   <md5 hex> "<key>" "<value>" <sn> expires <milliseconds>
//!                                                 the same for an entry with a deadline
//!   @ <client> <shard> <seq> <first incomplete> <status> <version> <sn> <request hash>
//!                                                 one line per completion record
//!   @ <client> … <request hash> "<response>"      the same for a record with the rest of its response, escaped
//!   # shard 1 primary view 7 last 980 forgotten 0
//!   …
//!   # end <entries> <crc32c of all before this line>
//! ```
//!
//! Everything is printable ASCII. A truncated or altered file is rejected as a whole: a restore must never accept part
//! of a table as the whole table. A shard's line describes its state when it froze, not when the dump was ordered.
//! Shards freeze one after the other, so each has its own line. [`crate::restore`] decides which dumps a restore may
//! use.

use std::io::Write as _;
use std::str;

use kv_protocol::change::RetainedResponse;
use kv_protocol::client_message::Status;
use kv_protocol::escape::unescape;
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, Member, RequestHash, RequestSeq, SequenceNumber, ShardId,
    ViewVersion, WallTime,
};
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_RETAINED_RESPONSE, MAX_VALUE_BYTES};
use kv_protocol::peer_message::CompletionRecord;
use kv_protocol::placement::{Digest, Placement};

mod reader;

pub use reader::{DumpItem, DumpReader, MAX_DUMP_LINE_BYTES};

/// The version of this format. Two earlier formats can still be read. Format 3 has no deadlines and no responses.
/// Format 2 also has no request hashes: its records match every request with the same number, and sessions without a
/// record count as expired. Format 1 named neither the writing process nor the last write, so a restore cannot use it.
pub const DUMP_FORMAT: u32 = 4;

/// The first lines of all formats that can be read, the present one first.
const FIRST_LINES: [&str; 3] = ["# kv-dump 4", "# kv-dump 3", "# kv-dump 2"];
const SHARD: &str = "# shard ";
const END: &[u8] = b"# end ";
const EXPIRES: &str = " expires ";
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The origin of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpOrigin {
    /// The cluster to which the table belonged.
    pub cluster: ClusterId,
    /// The process that wrote the dump.
    pub writer: Member,
    /// The group whose keys the dump holds.
    pub group: GroupId,
    /// The number of shards of the group.
    pub shards: u16,
    /// True if the cluster has hash tags.
    pub hash_tags: bool,
}

impl DumpOrigin {
    /// Returns the placement of keys in the cluster, if it had this many servers.
    pub fn placement(&self, servers: u16) -> Placement {
        Placement::new(servers, self.shards).with_hash_tags(self.hash_tags)
    }
}

/// The end of the header's last line in a dump of a cluster with hash tags. Earlier versions reject such a line.
const HASH_TAGS: &str = " hash-tags";

/// The role of a process in the newest view of a group that it had installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldAs {
    /// The primary of the view.
    Primary,
    /// The secondary of the view.
    Secondary,
    /// A candidate with a complete copy. Its dump counts only if a later view made the candidate a holder.
    Candidate,
}

/// One shard of a dump, in the state in which it was frozen. Only full copies are dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DumpedShard {
    /// The number of the shard.
    pub shard: ShardId,
    /// The role of the process in that view.
    pub held_as: HeldAs,
    /// The newest view of the group that the process had installed.
    pub view: ViewVersion,
    /// The last write in the dump; at a primary, the last committed write.
    pub last: SequenceNumber,
    /// The horizon: every session in the dump has written since this write; all others had expired.
    pub forgotten: SequenceNumber,
}

/// The origin and the shards of a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpHeader {
    /// The origin of the dump.
    pub origin: DumpOrigin,
    /// All shards of the group, in order.
    pub shards: Vec<DumpedShard>,
}

/// One entry of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpEntry {
    /// The MD5 of the key.
    pub digest: Digest,
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
    /// The time at which the entry expires, if it does.
    pub deadline: Option<WallTime>,
    /// The sequence number of the last write of the key.
    pub sn: SequenceNumber,
}

/// One completion record, the shard of its session, and the sequence number of its write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpRecord {
    /// The shard of the session.
    pub shard: ShardId,
    /// The sequence number of the write.
    pub sn: SequenceNumber,
    /// The completion record of the write.
    pub record: CompletionRecord,
    /// The rest of the response, encoded as a [`RetainedResponse`]; empty if there is none.
    pub response: Vec<u8>,
}

/// A dump that was verified as complete and unaltered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    /// The origin and the shards.
    pub header: DumpHeader,
    /// All entries, in the order of the file.
    pub entries: Vec<DumpEntry>,
    /// All completion records, in the order of the file.
    pub records: Vec<DumpRecord>,
}

/// The reason why a file is not accepted as a dump.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file has no complete trailer, so its end is missing.
    #[error("the dump has no complete `# end` line: the file is cut short")]
    Cut,
    /// The checksum in the trailer differs from that of the lines.
    #[error(
        "the dump was altered: the checksum of its lines is {computed:08x}, but its `# end` line has {got:08x}"
    )]
    Altered {
        /// The checksum in the trailer.
        got: u32,
        /// The CRC-32C of the lines.
        computed: u32,
    },
    /// The count in the trailer differs from the number of entries.
    #[error("the dump has {found} entries, but its `# end` line has {got}")]
    Count {
        /// The count in the trailer.
        got: u64,
        /// The number of entry lines.
        found: u64,
    },
    /// A line violates the format.
    #[error("line {line} of the dump: {reason}")]
    Line {
        /// The number of the line, counted from 1.
        line: usize,
        /// The error in the line.
        reason: &'static str,
    },
}

/// A writer of dumps. It appends lines to a buffer, which the caller writes to a file, and keeps the count and checksum
/// for the trailer.
///
/// ```text
///   begin -> (shard -> entry* -> record*)* -> end
/// ```
#[derive(Debug)]
pub struct DumpWriter {
    checksum: u32,
    entries: u64,
    shards_left: u16,
}

impl DumpWriter {
    /// Starts a dump with its header.
    pub fn begin(origin: &DumpOrigin, output: &mut Vec<u8>) -> DumpWriter {
        let mut writer = DumpWriter { checksum: 0, entries: 0, shards_left: origin.shards };
        let DumpOrigin { cluster, writer: Member { server, incarnation }, group, shards, .. } =
            origin;
        let tags = if origin.hash_tags { HASH_TAGS } else { "" };
        writer.lines(output, |output| {
            put(
                output,
                format_args!(
                    "{}\n# cluster {cluster}\n# server {server}\n\
                     # incarnation {incarnation}\n# group {group}\n# shards {shards}{tags}\n",
                    FIRST_LINES[0]
                ),
            );
        });
        writer
    }

    /// Appends the line of a shard; its entries and records follow.
    ///
    /// # Panics
    /// If all shards of the origin were appended before.
    pub fn shard(&mut self, dumped: &DumpedShard, output: &mut Vec<u8>) {
        let DumpedShard { shard, held_as, view, last, forgotten } = dumped;
        let held_as = held_as.name();
        self.shards_left = self.shards_left.checked_sub(1).expect("each shard is dumped once");
        self.lines(output, |output| {
            put(
                output,
                format_args!(
                    "{SHARD}{shard} {held_as} view {view} last {last} forgotten {forgotten}\n"
                ),
            );
        });
    }

    /// Appends the line of an entry.
    pub fn entry(
        &mut self,
        key: &[u8],
        value: &[u8],
        deadline: Option<WallTime>,
        sn: SequenceNumber,
        output: &mut Vec<u8>,
    ) {
        self.entries += 1;
        self.lines(output, |output| {
            put(output, format_args!("{} \"", Digest::of(key)));
            escape_into(key, output);
            output.extend_from_slice(b"\" \"");
            escape_into(value, output);
            put(output, format_args!("\" {sn}"));
            if let Some(deadline) = deadline {
                put(output, format_args!("{EXPIRES}{}", deadline.millis()));
            }
            output.push(b'\n');
        });
    }

    /// Appends the line of a completion record.
    pub fn record(&mut self, dumped: &DumpRecord, output: &mut Vec<u8>) {
        let DumpRecord { shard, sn, record, response } = dumped;
        self.lines(output, |output| {
            put(
                output,
                format_args!(
                    "@ {} {shard} {} {} {} {} {sn} {}",
                    record.client,
                    record.seq,
                    record.first_incomplete,
                    record.status as u8,
                    record.version,
                    record.request
                ),
            );
            if !response.is_empty() {
                output.extend_from_slice(b" \"");
                escape_into(response, output);
                output.push(b'"');
            }
            output.push(b'\n');
        });
    }

    /// Appends the trailer; returns the number of entries in the dump.
    ///
    /// # Panics
    /// If a shard of the origin is missing.
    pub fn end(self, output: &mut Vec<u8>) -> u64 {
        assert_eq!(self.shards_left, 0, "a dump must contain every shard");
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

/// Appends escaped bytes like [`kv_protocol::escape::ascii`], but without `fmt`, which would add seconds to the dump of
/// a table of typical size.
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

impl HeldAs {
    /// Returns the word for the role in a dump.
    fn name(self) -> &'static str {
        match self {
            HeldAs::Primary => "primary",
            HeldAs::Secondary => "secondary",
            HeldAs::Candidate => "candidate",
        }
    }

    fn from_name(name: &str) -> Option<HeldAs> {
        [HeldAs::Primary, HeldAs::Secondary, HeldAs::Candidate]
            .into_iter()
            .find(|held_as| held_as.name() == name)
    }
}

impl Dump {
    /// Parses a whole dump: verifies the trailer against everything before it, then parses each line.
    ///
    /// # Errors
    /// [`DumpError`] if the file is truncated, altered or malformed; no part of it may be used.
    pub fn parse(bytes: &[u8]) -> Result<Dump, DumpError> {
        check_end(bytes)?;
        let (mut entries, mut records) = (Vec::new(), Vec::new());
        let mut reader = DumpReader::new();
        reader.feed(bytes, |item| {
            match item {
                DumpItem::Entry(entry) => entries.push(entry),
                DumpItem::Record(record) => records.push(record),
                DumpItem::Origin(_) | DumpItem::Shard(_) => {}
            }
            Ok::<(), DumpError>(())
        })?;
        Ok(Dump { header: reader.finish()?, entries, records })
    }
}

/// Verifies the checksum of the trailer against everything before it.
fn check_end(bytes: &[u8]) -> Result<(), DumpError> {
    let without_newline = bytes.strip_suffix(b"\n").ok_or(DumpError::Cut)?;
    let last = without_newline.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
    let (before, trailer) = without_newline.split_at(last);
    let trailer = trailer.strip_prefix(END).ok_or(DumpError::Cut)?;
    let (_, got) = parse_end(trailer).ok_or(DumpError::Cut)?;
    let computed = crc32c::crc32c(before);
    if got != computed {
        return Err(DumpError::Altered { got, computed });
    }
    Ok(())
}

/// Parses the number of entries and the checksum of a trailer; `None` if the trailer is malformed.
fn parse_end(trailer: &[u8]) -> Option<(u64, u32)> {
    let (count, checksum) = str::from_utf8(trailer).ok()?.split_once(' ')?;
    Some((decimal(count)?, u32::from_str_radix(checksum, 16).ok()?))
}

fn parse_shard(line: &str) -> Result<DumpedShard, &'static str> {
    const SHAPE: &str =
        "expected `# shard <number> <role> view <number> last <number> forgotten <number>`";
    let fields: Vec<&str> = line.split(' ').collect();
    let (shard, held_as, view, last, forgotten) = match fields[..] {
        [shard, held_as, "view", view, "last", last, "forgotten", forgotten] => {
            (shard, held_as, view, last, forgotten)
        }
        // Format 2 has no `forgotten` field.
        [shard, held_as, "view", view, "last", last] => (shard, held_as, view, last, last),
        _ => return Err(SHAPE),
    };
    Ok(DumpedShard {
        shard: ShardId(shard.parse().map_err(|_| SHAPE)?),
        held_as: HeldAs::from_name(held_as).ok_or(SHAPE)?,
        view: ViewVersion(decimal(view).ok_or(SHAPE)?),
        last: SequenceNumber(decimal(last).ok_or(SHAPE)?),
        forgotten: SequenceNumber(decimal(forgotten).ok_or(SHAPE)?),
    })
}

fn parse_entry(line: &str) -> Result<DumpEntry, &'static str> {
    const SHAPE: &str = "expected `<md5> \"<key>\" \"<value>\" <sn> [expires <milliseconds>]`";
    let (digest, rest) = line.split_once(" \"").ok_or(SHAPE)?;
    let (key, rest) = quoted(rest).ok_or(SHAPE)?;
    let rest = rest.strip_prefix(" \"").ok_or(SHAPE)?;
    let (value, rest) = quoted(rest).ok_or(SHAPE)?;
    let rest = rest.strip_prefix(' ').ok_or(SHAPE)?;
    let (sn, deadline) = match rest.split_once(EXPIRES) {
        Some((sn, millis)) => (sn, Some(parse_deadline(millis)?)),
        None => (rest, None),
    };
    let sn = SequenceNumber(decimal(sn).ok_or(SHAPE)?);
    let key = unescape(key.as_bytes()).map_err(|_| "the key has an unknown escape")?;
    let value = unescape(value.as_bytes()).map_err(|_| "the value has an unknown escape")?;
    if key.is_empty() || key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
        return Err("the key does not have 1 to 65,535 bytes, or the value has more than 16 MiB");
    }
    let computed = Digest::of(&key);
    if digest.len() != 32 || u128::from_str_radix(digest, 16) != Ok(computed.number()) {
        return Err("the digest is not the MD5 of the key");
    }
    Ok(DumpEntry { digest: computed, key, value, deadline, sn })
}

fn parse_deadline(millis: &str) -> Result<WallTime, &'static str> {
    decimal(millis)
        .filter(|millis| (1..=WallTime::MAX.millis()).contains(millis))
        .map(WallTime::from_millis)
        .ok_or("the deadline is not a number from 1 to 281474976710655")
}

/// Splits a text into the escaped text before the first closing quote and the rest after the quote; `None` if there is
/// no such quote.
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
    const SHAPE: &str = "expected `@ <client> <shard> <seq> <first incomplete> <status> <version> <sn> \
                         <request hash> [\"<response>\"]`";
    let (line, response) = match line.split_once(" \"") {
        Some((line, rest)) => match quoted(rest) {
            Some((response, "")) => (line, parse_response(response)?),
            _ => return Err(SHAPE),
        },
        None => (line, Vec::new()),
    };
    let mut fields = line.split(' ');
    let mut next = || fields.next().ok_or(SHAPE);
    let client: ClientId = next()?.parse().map_err(|_| SHAPE)?;
    let shard = next()?.parse().map_err(|_| SHAPE)?;
    let seq = decimal(next()?).ok_or(SHAPE)?;
    let first_incomplete = decimal(next()?).ok_or(SHAPE)?;
    let status = next()?.parse().ok().and_then(Status::from_wire).ok_or("unknown status")?;
    let version = decimal(next()?).ok_or(SHAPE)?;
    let sn = SequenceNumber(decimal(next()?).ok_or(SHAPE)?);
    // Format 2 has no request hash.
    let request = fields.next().map_or(Some(0), decimal).ok_or(SHAPE)?;
    if fields.next().is_some() {
        return Err(SHAPE);
    }
    let record = CompletionRecord {
        client,
        seq: RequestSeq(seq),
        first_incomplete: RequestSeq(first_incomplete),
        status,
        version: SequenceNumber(version),
        request: RequestHash(request),
    };
    Ok(DumpRecord { shard: ShardId(shard), sn, record, response })
}

fn parse_response(escaped: &str) -> Result<Vec<u8>, &'static str> {
    let response =
        unescape(escaped.as_bytes()).map_err(|_| "the response has an unknown escape")?;
    if response.len() > MAX_RETAINED_RESPONSE {
        return Err("the response is longer than any response of a record");
    }
    RetainedResponse::read(&response).map_err(|_| "the response is malformed")?;
    Ok(response)
}

/// Parses a number; `None` unless it consists only of digits. `parse` would also accept a plus sign.
fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::escape::ascii;
    use kv_protocol::ids::{Incarnation, ServerId};
    use proptest::prelude::*;

    const ORIGIN: DumpOrigin = DumpOrigin {
        cluster: ClusterId(0xabc),
        writer: Member { server: ServerId(2), incarnation: Incarnation(0xdef) },
        group: GroupId(1),
        shards: 2,
        hash_tags: false,
    };

    /// The end of a record's line whose response has the value `a "b`.
    const RESPONSE: &str = r#" "\x00\x00\x00\x00\x00\x00\x00\x00\x01a \"b""#;

    fn shard(number: u16) -> DumpedShard {
        let held_as = if number == 0 { HeldAs::Candidate } else { HeldAs::Secondary };
        let view = ViewVersion(9 + u64::from(number));
        let (last, forgotten) = (SequenceNumber(u64::MAX), SequenceNumber(number.into()));
        DumpedShard { shard: ShardId(number), held_as, view, last, forgotten }
    }

    fn entry(key: &[u8], value: &[u8], sn: u64, deadline: Option<u64>) -> DumpEntry {
        DumpEntry {
            digest: Digest::of(key),
            key: key.to_vec(),
            value: value.to_vec(),
            deadline: deadline.map(WallTime::from_millis),
            sn: SequenceNumber(sn),
        }
    }

    /// Returns the bytes of the rest of a response.
    fn response(value: Option<&[u8]>, deadline: Option<u64>) -> Vec<u8> {
        let deadline = deadline.map(WallTime::from_millis);
        let mut bytes = Vec::new();
        RetainedResponse { value, deadline }.write(&mut bytes);
        bytes
    }

    /// Returns a dump whose first shard is empty.
    fn written(entries: &[DumpEntry], records: &[DumpRecord]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = DumpWriter::begin(&ORIGIN, &mut file);
        writer.shard(&shard(0), &mut file);
        writer.shard(&shard(1), &mut file);
        for DumpEntry { key, value, deadline, sn, .. } in entries {
            writer.entry(key, value, *deadline, *sn, &mut file);
        }
        for record in records {
            writer.record(record, &mut file);
        }
        assert_eq!(writer.end(&mut file), entries.len() as u64);
        file
    }

    /// Changes the lines of the sample, gives it a matching checksum, and parses it.
    fn changed(change: impl FnOnce(&str) -> String) -> Result<Dump, DumpError> {
        let whole = sample();
        let text = str::from_utf8(&whole).unwrap();
        let lines = change(&text[..text.rfind("# end ").unwrap()]);
        let file = format!("{lines}# end 3 {:08x}\n", crc32c::crc32c(lines.as_bytes()));
        Dump::parse(file.as_bytes())
    }

    /// Returns the lines of a dump of this format as an earlier format has them.
    fn in_format(number: u32, text: &str) -> String {
        let lines = text.replace("# kv-dump 4", &format!("# kv-dump {number}"));
        lines.replace(" expires 1700000000001", "").replace(RESPONSE, "")
    }

    fn record(seq: u64, response: Vec<u8>) -> DumpRecord {
        let record = CompletionRecord {
            client: ClientId(u128::MAX - 1),
            seq: RequestSeq(seq),
            first_incomplete: RequestSeq(1),
            status: if seq.is_multiple_of(2) { Status::Conflict } else { Status::NotDone },
            version: SequenceNumber(u64::MAX),
            request: RequestHash(seq ^ 0xfeed),
        };
        DumpRecord { shard: ShardId(1), sn: SequenceNumber(17), record, response }
    }

    fn sample() -> Vec<u8> {
        let entries = [
            entry(b"a", b"1", 1, None),
            entry(b"quote\" and \\", b"\0\n\xff", 77, Some(1_700_000_000_001)),
            entry(b"# end 0 00000000", b"", u64::MAX, None),
        ];
        written(&entries, &[record(5, response(Some(b"a \"b"), None))])
    }

    #[test]
    fn a_dump_reads_as_documented() {
        let entries = [entry(b"a", b"x\n", 3, None), entry(b"a", b"", 4, Some(1_700_000_000_001))];
        let records = [record(5, Vec::new()), record(5, response(Some(b"a \"b"), None))];
        let text = String::from_utf8(written(&entries, &records)).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# kv-dump 4");
        assert_eq!(lines[1], "# cluster 00000000000000000000000000000abc");
        assert_eq!(lines[3], "# incarnation 0000000000000def");
        assert_eq!(lines[6], "# shard 0 candidate view 9 last 18446744073709551615 forgotten 0");
        assert_eq!(lines[7], "# shard 1 secondary view 10 last 18446744073709551615 forgotten 1");
        assert_eq!(lines[8], "0cc175b9c0f1b6a831c399e269772661 \"a\" \"x\\x0a\" 3");
        let expires = "0cc175b9c0f1b6a831c399e269772661 \"a\" \"\" 4 expires 1700000000001";
        assert_eq!(lines[9], expires);
        let record = "@ fffffffffffffffffffffffffffffffe 1 5 1 13 18446744073709551615 17 65256";
        assert_eq!(lines[10], record);
        assert_eq!(lines[11], format!("{record}{RESPONSE}"));
        assert!(lines[12].starts_with("# end 2 "));
    }

    #[test]
    fn a_dump_truncated_anywhere_is_rejected() {
        let whole = sample();
        Dump::parse(&whole).unwrap();
        for end in 0..whole.len() {
            assert!(Dump::parse(&whole[..end]).is_err(), "cut to {end} of {} bytes", whole.len());
        }
    }

    #[test]
    fn a_dump_with_any_altered_byte_is_rejected() {
        let whole = sample();
        for at in 0..whole.len() {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            assert!(Dump::parse(&altered).is_err(), "the change of byte {at} was not detected");
        }
    }

    #[test]
    fn a_missing_line_is_detected_even_with_a_correct_checksum() {
        let without = |wanted: fn(&str) -> bool| {
            changed(|text| {
                text.lines().filter(|line| !wanted(line)).map(|line| format!("{line}\n")).collect()
            })
        };
        assert_eq!(
            without(|line| line.contains("\"a\"")),
            Err(DumpError::Count { got: 3, found: 2 })
        );
        let reason = "the shards are not in order";
        assert_eq!(
            without(|line| line.starts_with("# shard 0")),
            Err(DumpError::Line { line: 7, reason })
        );
        let reason = "the record belongs to another shard";
        assert_eq!(
            without(|line| line.starts_with("# shard 1")),
            Err(DumpError::Line { line: 11, reason })
        );
        let reason = "some shards are missing";
        assert_eq!(
            without(|line| line.starts_with("# shard 1") || line.starts_with("@ ")),
            Err(DumpError::Line { line: 11, reason })
        );
    }

    #[test]
    fn a_wrong_digest_is_reported_with_its_line() {
        let expected = DumpError::Line { line: 9, reason: "the digest is not the MD5 of the key" };
        assert_eq!(changed(|text| text.replace("0cc175b9", "0cc175b8")), Err(expected));
    }

    #[test]
    fn a_write_after_the_last_of_its_shard_is_rejected() {
        let reason = "the write is newer than the last write of its shard";
        let last = |last| format!("# shard 1 secondary view 10 last {last} ");
        let replaced = |n: u64| changed(|text| text.replace(&last(u64::MAX), &last(n)));
        assert_eq!(replaced(76), Err(DumpError::Line { line: 10, reason }));
        assert_eq!(replaced(77), Err(DumpError::Line { line: 11, reason }));
    }

    #[test]
    fn the_first_format_is_rejected_because_it_names_no_process() {
        let reason =
            "expected `# kv-dump 4`, or `# kv-dump 3` or `# kv-dump 2` of an earlier version";
        let got = changed(|text| text.replace("# kv-dump 4", "# kv-dump 1"));
        assert_eq!(got, Err(DumpError::Line { line: 1, reason }));
    }

    #[test]
    fn a_malformed_deadline_is_rejected_with_its_line() {
        let with = |end: &str| changed(|text| text.replace(" expires 1700000000001", end));
        assert_eq!(with(" expires 1").unwrap().entries[1].deadline, Some(WallTime::from_millis(1)));
        let latest = with(&format!(" expires {}", WallTime::MAX.millis())).unwrap();
        assert_eq!(latest.entries[1].deadline, Some(WallTime::MAX));
        let reason = "the deadline is not a number from 1 to 281474976710655";
        for millis in ["0", "281474976710656", "18446744073709551616", "", "+1", "-1", "1 ", "1 2"]
        {
            let got = with(&format!(" expires {millis}"));
            assert_eq!(got, Err(DumpError::Line { line: 10, reason }), "{millis:?}");
        }
        for end in [" 1700000000001", " expires", " expired 1", "  expires 1"] {
            let error = with(end).unwrap_err();
            assert!(
                error.to_string().starts_with("line 10 of the dump: expected `<md5>"),
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_malformed_response_is_rejected_with_its_line() {
        let with = |response: &str| changed(|text| text.replace(RESPONSE, response));
        let deadline = with(" \"\\x07\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\"").unwrap();
        assert_eq!(deadline.records[0].response, response(None, Some(7)));
        assert!(with("").unwrap().records[0].response.is_empty());
        let line = |reason| Err(DumpError::Line { line: 12, reason });
        let eight = "\\x00".repeat(8);
        for malformed in [
            "short".to_owned(),
            format!("{eight}\\x02"),
            format!("{eight}\\x00more"),
            "\\xff".repeat(9),
        ] {
            let got = with(&format!(" \"{malformed}\""));
            assert_eq!(got, line("the response is malformed"), "{malformed}");
        }
        assert_eq!(with(" \"\\y\""), line("the response has an unknown escape"));
        let longest = |more| {
            let value = "v".repeat(MAX_RETAINED_RESPONSE - 9 + more);
            with(&format!(" \"{eight}\\x01{value}\""))
        };
        assert_eq!(longest(0).unwrap().records[0].response.len(), MAX_RETAINED_RESPONSE);
        assert_eq!(longest(1), line("the response is longer than any response of a record"));
        for open in [" \"", " \"a", " a", "\"a\"", &format!("{RESPONSE} "), &format!("{RESPONSE}x")]
        {
            let error = with(open).unwrap_err().to_string();
            assert!(
                error.starts_with("line 12 of the dump: expected `@ <client>"),
                "{open}: {error}"
            );
        }
    }

    #[test]
    fn a_dump_of_format_3_is_read() {
        let before = changed(|text| in_format(3, text)).unwrap();
        let now = Dump::parse(&sample()).unwrap();
        assert_eq!(before.header, now.header);
        let without = |entry: DumpEntry| DumpEntry { deadline: None, ..entry };
        assert_eq!(before.entries, now.entries.into_iter().map(without).collect::<Vec<_>>());
        let without = |record: DumpRecord| DumpRecord { response: Vec::new(), ..record };
        assert_eq!(before.records, now.records.into_iter().map(without).collect::<Vec<_>>());
    }

    #[test]
    fn a_dump_of_format_2_is_read_and_its_unknown_sessions_count_as_expired() {
        let before = changed(|text| {
            let lines = in_format(2, text).replace(" 65256", "");
            lines.replace(" forgotten 0", "").replace(" forgotten 1", "")
        })
        .unwrap();
        assert_eq!(before.records[0].record.request, RequestHash(0));
        for shard in before.header.shards {
            assert_eq!(shard.forgotten, shard.last);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(
            entries in prop::collection::vec(
                (
                    prop::collection::vec(any::<u8>(), 1..40),
                    prop::collection::vec(any::<u8>(), 0..80),
                    any::<u64>(),
                    prop::option::of(1..=WallTime::MAX.millis()),
                ),
                0..20,
            ),
            records in prop::collection::vec(
                (
                    any::<u64>(),
                    prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
                    prop::option::of(1..=WallTime::MAX.millis()),
                ),
                0..5,
            ),
        ) {
            let entries: Vec<DumpEntry> = entries
                .into_iter()
                .map(|(key, value, sn, deadline)| entry(&key, &value, sn, deadline))
                .collect();
            let records: Vec<DumpRecord> = records
                .into_iter()
                .map(|(seq, value, deadline)| record(seq, response(value.as_deref(), deadline)))
                .collect();
            let file = written(&entries, &records);
            prop_assert!(file.iter().all(|b| *b == b'\n' || (b' '..=b'~').contains(b)));
            let dump = Dump::parse(&file).unwrap();
            prop_assert_eq!(dump.header.origin, ORIGIN);
            prop_assert_eq!(dump.header.shards, [shard(0), shard(1)]);
            prop_assert_eq!(dump.records, records);
            prop_assert_eq!(dump.entries, entries);
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
            let mut file = b"# kv-dump 4\n".to_vec();
            file.extend_from_slice(&bytes);
            file.push(b'\n');
            let checksum = crc32c::crc32c(&file);
            file.extend_from_slice(format!("# end 0 {checksum:08x}\n").as_bytes());
            prop_assert!(Dump::parse(&file).is_err());
        }
    }
}
