//! Loading of dumps. The tables are filled before the server reports that it has started.
//!
//! ```text
//!   file -> DumpReader -> pieces -> [bounded channel] -> executor of the shard -> its table
//!   (one thread for each file)                           reports at the end that all is loaded
//! ```
//!
//! A file of any size passes through a few pieces of bounded size. The tables are marked complete only after the end of
//! the file has shown that the file is complete. Any error before that ends the process and leaves the file unchanged.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use kv_core::dump::{DumpError, DumpItem, DumpReader, DumpRecord, DumpedShard};
use kv_core::session::LoggedRecord;
use kv_daemon::files;
use kv_protocol::ids::{GroupId, ServerId, ShardId};
use kv_protocol::placement::Placement;
use kv_shard::{DumpedEntries, LoadPiece};

use crate::fatal::Fatal;
use crate::mailbox;
use crate::message::ShardMessage;

/// The maximum number of pieces that wait for one shard.
const PIECES_WAITING: usize = 4;
/// The number of bytes at which a piece is sent.
const PIECE_BYTES: usize = 256 << 10;
/// The number of entries or records at which a piece is sent.
const PIECE_ITEMS: usize = 4_096;
/// The maximum number of bytes read from the file at once.
const READ_BYTES: usize = 256 << 10;
/// The time within which a shard must make room for a piece, or report its result.
const SHARD_TIMEOUT: Duration = Duration::from_secs(60);
/// The interval between log lines about the progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A dump, and the part of it that is to be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadSource {
    /// The group to which the dump must belong.
    pub group: GroupId,
    /// The shards to load from it.
    pub shards: Vec<ShardId>,
    /// The file of the dump.
    pub file: PathBuf,
}

impl FromStr for LoadSource {
    type Err = String;

    fn from_str(text: &str) -> Result<LoadSource, String> {
        let parse = || {
            let (group, rest) = text.split_once(':')?;
            let (shards, file) = rest.split_once(':').filter(|(_, file)| !file.is_empty())?;
            let shards = shards.split(',').map(|shard| shard.parse().ok().map(ShardId));
            let shards: Option<Vec<ShardId>> = shards.collect();
            Some(LoadSource {
                group: GroupId(group.parse().ok()?),
                shards: shards?,
                file: file.into(),
            })
        };
        parse().ok_or_else(|| "expected <group>:<shard>,<shard>…:<file>".to_owned())
    }
}

/// Checks that the sources name only groups at home on this server, and each shard of such a group once or none of its
/// shards. A shard that is left out would be served empty.
pub(crate) fn check_sources(
    sources: &[LoadSource],
    id: u16,
    servers: u16,
    shards: u16,
) -> Result<(), String> {
    let predecessor = ServerId((id + servers - 1) % servers);
    let homes = [ServerId(id).home_group(), predecessor.home_group()];
    if let Some(other) = sources.iter().find(|source| !homes.contains(&source.group)) {
        return Err(format!("group {} is not at home at server {id}", other.group));
    }
    if let Some(shard) = sources.iter().flat_map(|source| &source.shards).find(|s| s.0 >= shards) {
        return Err(format!("shard {shard} does not exist; there are {shards}"));
    }
    for group in homes {
        let of_group: Vec<&LoadSource> = sources.iter().filter(|s| s.group == group).collect();
        for shard in (0..shards).map(ShardId) {
            let named = of_group.iter().flat_map(|source| &source.shards);
            match named.filter(|named| **named == shard).count() {
                _ if of_group.is_empty() => {}
                1 => {}
                count => {
                    return Err(format!(
                        "shard {shard} of group {group} is named {count} times, not once"
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Loads all files in parallel; returns when every shard is loaded or a file has failed.
pub(crate) fn run(
    sources: &[LoadSource],
    placement: Placement,
    shards: &[mailbox::Sender<ShardMessage>],
) -> Result<(), Fatal> {
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for source in sources {
            let name = format!("load-{}", source.group);
            let thread = std::thread::Builder::new().name(name);
            let spawned = thread.spawn_scoped(scope, move || load(source, placement, shards));
            threads.push(spawned.map_err(|error| Fatal::System {
                doing: "start a thread that loads a dump",
                error,
            })?);
        }
        for thread in threads {
            thread.join().expect("a panic ends the process")?;
        }
        Ok(())
    })
}

fn load(
    source: &LoadSource,
    placement: Placement,
    shards: &[mailbox::Sender<ShardMessage>],
) -> Result<(), Fatal> {
    let path = &source.file;
    let start = Instant::now();
    let mut loader =
        Loader { source, placement, shards, current: None, filled: Vec::new(), entries: 0 };
    let loaded = loader.read(path).and_then(|()| loader.finish());
    loaded.map_err(|Failed(reason)| Fatal::Load { path: path.clone(), reason })?;
    let (entries, path) = (loader.entries, path.display());
    tracing::info!(
        "loaded group {} from {path}: {entries} entries in {:?}",
        source.group,
        start.elapsed()
    );
    Ok(())
}

/// The reason why a file is not loaded.
struct Failed(String);

impl From<DumpError> for Failed {
    fn from(error: DumpError) -> Failed {
        Failed(format!("{error}; retry the restore from another copy"))
    }
}

/// The loading of one file into the tables.
struct Loader<'a> {
    source: &'a LoadSource,
    placement: Placement,
    shards: &'a [mailbox::Sender<ShardMessage>],
    /// The shard whose lines are being read, if it is loaded from this file.
    current: Option<Feed>,
    /// The shards whose lines are all read.
    filled: Vec<Feed>,
    entries: u64,
}

/// The channels to one executor, with the items not yet sent.
struct Feed {
    line: DumpedShard,
    pieces: Sender<LoadPiece>,
    done: Receiver<Result<(), String>>,
    entries: DumpedEntries,
    records: Vec<(LoggedRecord, Vec<u8>)>,
    /// The number of bytes of the responses of these records.
    response_bytes: usize,
}

impl Loader<'_> {
    /// Reads the whole file, and sends each shard its part.
    fn read(&mut self, path: &Path) -> Result<(), Failed> {
        let failed = |error: std::io::Error| Failed(format!("{error}; check that it can be read"));
        let mut file = files::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let (mut read, mut told) = (0u64, Instant::now());
        let mut bytes = vec![0; READ_BYTES];
        let mut reader = DumpReader::new();
        loop {
            let count = files::read_some(&mut file, &mut bytes).map_err(failed)?;
            if count == 0 {
                break;
            }
            let mut items = Vec::new();
            reader.feed(&bytes[..count], |item| {
                items.push(item);
                Ok::<(), DumpError>(())
            })?;
            for item in items {
                self.take(item)?;
            }
            read += count as u64;
            if told.elapsed() >= PROGRESS_INTERVAL {
                told = Instant::now();
                let percent = read * 100 / length.max(1);
                tracing::info!("loading {}: {percent} % of {length} bytes", path.display());
            }
        }
        reader.finish()?;
        self.filled.extend(self.current.take());
        Ok(())
    }

    fn take(&mut self, item: DumpItem) -> Result<(), Failed> {
        match item {
            DumpItem::Origin(origin) => {
                let (group, shards) = (origin.group, origin.shards);
                if group != self.source.group || shards != self.placement.shards() {
                    return Err(Failed(format!(
                        "it belongs to group {group} with {shards} shards, not to group {} with {}; check --load",
                        self.source.group,
                        self.placement.shards()
                    )));
                }
                if origin.hash_tags != self.placement.hash_tags() {
                    let (its, ours) = match origin.hash_tags {
                        true => ("with", "without"),
                        false => ("without", "with"),
                    };
                    return Err(Failed(format!(
                        "its cluster places keys {its} hash tags, but this server runs {ours} --hash-tags; check \
                         --load"
                    )));
                }
            }
            DumpItem::Shard(line) => {
                if let Some(mut feed) = self.current.take() {
                    feed.flush()?;
                    self.filled.push(feed);
                }
                if self.source.shards.contains(&line.shard) {
                    self.current = Some(self.begin(line)?);
                }
            }
            DumpItem::Entry(entry) => {
                let Some(feed) = &mut self.current else { return Ok(()) };
                let place = self.placement.locate_digested(entry.digest, &entry.key);
                if place != (self.source.group, feed.line.shard) {
                    return Err(Failed(
                        "it has a key of another group or shard; retry from another copy"
                            .to_owned(),
                    ));
                }
                self.entries += 1;
                feed.entries.push(&entry.key, &entry.value, entry.deadline, entry.sn);
                if feed.entries.bytes() >= PIECE_BYTES || feed.entries.count() >= PIECE_ITEMS {
                    feed.flush()?;
                }
            }
            DumpItem::Record(DumpRecord { sn, record, response, .. }) => {
                let Some(feed) = &mut self.current else { return Ok(()) };
                feed.response_bytes += response.len();
                feed.records.push((LoggedRecord { sn, record }, response));
                if feed.response_bytes >= PIECE_BYTES || feed.records.len() >= PIECE_ITEMS {
                    feed.flush()?;
                }
            }
        }
        Ok(())
    }

    /// Sends an executor the order to load its shard; returns the channels for the load.
    fn begin(&self, line: DumpedShard) -> Result<Feed, Failed> {
        let shard = line.shard;
        let (pieces, incoming) = bounded(PIECES_WAITING);
        let (response, done) = bounded(1);
        let group = self.source.group;
        let message = ShardMessage::Load { group, pieces: incoming, done: response };
        let mailbox = &self.shards[usize::from(shard.0)];
        mailbox.push_order(message).map_err(|_| {
            Failed(format!("too many orders wait for shard {shard}; its executor may be hung"))
        })?;
        let (entries, records) = Default::default();
        Ok(Feed { line, pieces, done, entries, records, response_bytes: 0 })
    }

    /// Sends the remaining items and the end to all shards, and waits until they have loaded everything. The file must
    /// have been read completely.
    fn finish(&mut self) -> Result<(), Failed> {
        for feed in &mut self.filled {
            feed.flush()?;
            feed.send(LoadPiece::End(feed.line))?;
        }
        for feed in &self.filled {
            feed.outcome()?;
        }
        Ok(())
    }
}

impl Feed {
    fn flush(&mut self) -> Result<(), Failed> {
        if self.entries.count() > 0 {
            let entries = std::mem::take(&mut self.entries);
            self.send(LoadPiece::Entries(entries))?;
        }
        if !self.records.is_empty() {
            let records = std::mem::take(&mut self.records);
            self.response_bytes = 0;
            self.send(LoadPiece::Records(records))?;
        }
        Ok(())
    }

    fn send(&self, piece: LoadPiece) -> Result<(), Failed> {
        if self.pieces.send_timeout(piece, SHARD_TIMEOUT).is_ok() {
            return Ok(());
        }
        // A shard that accepts no more pieces has reported the reason.
        self.outcome()?;
        Err(Failed(format!("shard {} accepts no more data, without a reason", self.line.shard)))
    }

    fn outcome(&self) -> Result<(), Failed> {
        let shard = self.line.shard;
        let outcome = self.done.recv_timeout(SHARD_TIMEOUT);
        outcome
            .map_err(|_| {
                Failed(format!("shard {shard} reported no result within {SHARD_TIMEOUT:?}"))
            })?
            .map_err(|reason| Failed(format!("shard {shard}: {reason}")))
    }
}
