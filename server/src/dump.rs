//! Writing of dumps: the executors send pieces of their tables, and the calling thread formats them and writes the
//! file.
//!
//! ```text
//!   shard 0 walk -> [bounded channel] -> text -> <name>.tmp -> fsync -> rename -> fsync directory
//!   shard 1 ...
//! ```

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use kv_core::awake::Awake;
use kv_core::dump::{DumpOrigin, DumpRecord, DumpWriter};
use kv_core::replica::NoFullCopy;
use kv_core::session::LoggedRecord;
use kv_daemon::files;
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{ServerId, ShardId};

use crate::message::{DumpPiece, LongItem, ShardMessage};
use crate::{clock, mailbox};

/// The maximum number of pieces that wait in the channel from a shard to the writing thread.
const PIECES_WAITING: usize = 4;
/// The time within which a shard must send its next piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);
/// The interval at which the deadline for the next piece is checked.
const PIECE_LOOK: Duration = Duration::from_millis(200);

/// The reason why a dump was not written, or may not be durable. A partial file is removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DumpFileError {
    /// An operation on the file failed.
    #[error(
        "cannot {doing} {path}: {error}; check the free space, the limits of the process and the permissions of \
         the directory"
    )]
    File {
        /// The attempted operation.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A shard's mailbox has no room for the order.
    #[error(
        "cannot write the dump {path}: too many orders wait for shard {shard}; its executor may be hung"
    )]
    Orders {
        /// The shard.
        shard: usize,
        /// The file.
        path: PathBuf,
    },
    /// A shard holds no full copy.
    #[error(transparent)]
    NoFullCopy(NoFullCopy),
    /// A shard did not send its next piece in time, or stopped sending before the end.
    #[error(
        "cannot write the dump {path}: shard {shard} sent nothing for {PIECE_DEADLINE:?}, or stopped early"
    )]
    Shard {
        /// The shard.
        shard: usize,
        /// The file.
        path: PathBuf,
    },
}

impl DumpFileError {
    /// Returns whether the server holds no full copy, so that no data is lost without the dump.
    pub(crate) fn is_no_copy(&self) -> bool {
        matches!(self, DumpFileError::NoFullCopy(_))
    }

    /// Returns whether the reason is a file or directory that does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, DumpFileError::File { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Creates a directory for dumps, and its missing parents.
pub(crate) fn make_directory(path: &Path) -> Result<(), DumpFileError> {
    fs::create_dir_all(path).map_err(|error| DumpFileError::File {
        doing: "create the directory",
        path: path.to_owned(),
        error,
    })
}

/// Returns the file name of a server's dump of one table. `role` is the role that the home of the group assigns to the
/// server. The file itself records the role at the time of the dump.
pub(crate) fn file_name(server: ServerId, role: ReplicaRole) -> String {
    match role {
        ReplicaRole::Primary => format!("server_{server}.primary"),
        ReplicaRole::Secondary => format!("server_{server}.secondary"),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The table to be dumped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// The origin that the dump records.
    pub(crate) origin: DumpOrigin,
    /// The role that the home of the group assigns to the server.
    pub(crate) role: ReplicaRole,
}

/// Writes a dump into `directory`; returns the number of entries in the dump. `written` counts the bytes of keys and
/// values written so far.
pub(crate) fn write(
    directory: &Path,
    wanted: &Wanted,
    shards: &[mailbox::Sender<ShardMessage>],
    written: &AtomicU64,
) -> Result<u64, DumpFileError> {
    written.store(0, Ordering::Relaxed);
    let name = file_name(wanted.origin.writer.server, wanted.role);
    let (path, partial) = (directory.join(&name), directory.join(format!("{name}.tmp")));
    let result = write_and_rename(directory, &partial, &path, wanted, shards, written);
    if result.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    result
}

fn write_and_rename(
    directory: &Path,
    partial: &Path,
    path: &Path,
    wanted: &Wanted,
    shards: &[mailbox::Sender<ShardMessage>],
    written: &AtomicU64,
) -> Result<u64, DumpFileError> {
    let failed = |doing, at: &Path| {
        let path = at.to_owned();
        move |error| DumpFileError::File { doing, path, error }
    };
    let mut file = files::create(partial).map_err(failed("create the dump", partial))?;
    let mut text = Vec::new();
    let mut writer = DumpWriter::begin(&wanted.origin, &mut text);
    for (number, shard) in shards.iter().enumerate() {
        let silent = || DumpFileError::Shard { shard: number, path: path.to_owned() };
        let (pieces, incoming) = bounded(PIECES_WAITING);
        let message = ShardMessage::Dump { role: wanted.role, pieces };
        let busy = |_| DumpFileError::Orders { shard: number, path: path.to_owned() };
        shard.push_order(message).map_err(busy)?;
        let mut output = Output { writer: &mut writer, text: &mut text, file: &mut file, written };
        write_shard(number, &incoming, &mut output, silent)?
            .map_err(failed("write the dump", partial))?;
    }
    let entries = writer.end(&mut text);
    file.write_all(&text).map_err(failed("write the dump", partial))?;
    file.sync_all().map_err(failed("sync the dump", partial))?;
    fs::rename(partial, path).map_err(failed("rename the dump to", path))?;
    sync(directory).map_err(failed("sync the directory", directory))?;
    Ok(entries)
}

/// The destination of the pieces of a dump.
struct Output<'a> {
    writer: &'a mut DumpWriter,
    text: &'a mut Vec<u8>,
    file: &'a mut File,
    /// The bytes of keys and values written so far.
    written: &'a AtomicU64,
}

/// Writes all pieces of one shard. The outer error is a failure of the shard, the inner one a failure of the file.
fn write_shard(
    number: usize,
    incoming: &Receiver<DumpPiece>,
    output: &mut Output<'_>,
    silent: impl Fn() -> DumpFileError,
) -> Result<io::Result<()>, DumpFileError> {
    let Output { writer, text, file, written } = output;
    let shard = ShardId(u16::try_from(number).expect("shards are numbered in 16 bits"));
    let mut long = Vec::new();
    loop {
        let piece = receive(incoming).ok_or_else(&silent)?;
        let mut bytes = 0;
        let is_last = match piece {
            DumpPiece::Shard(dumped) => {
                writer.shard(&dumped.map_err(DumpFileError::NoFullCopy)?, text);
                false
            }
            DumpPiece::Entries(entries) => {
                entries.for_each(|key, value, deadline, sn| {
                    writer.entry(key, value, deadline, sn, text);
                });
                bytes = entries.bytes();
                false
            }
            DumpPiece::Part(part) => {
                long.extend_from_slice(&part.bytes);
                if let LongItem::Entry { .. } = part.item {
                    bytes = part.bytes.len();
                }
                if part.is_last {
                    let whole = std::mem::take(&mut long);
                    match part.item {
                        LongItem::Entry { key, deadline, version } => {
                            writer.entry(&key, &whole, deadline, version, text);
                            bytes += key.len();
                        }
                        LongItem::Record(LoggedRecord { sn, record }) => {
                            writer.record(&DumpRecord { shard, sn, record, response: whole }, text);
                        }
                    }
                }
                false
            }
            DumpPiece::Records(records) => {
                for (LoggedRecord { sn, record }, response) in records {
                    writer.record(&DumpRecord { shard, sn, record, response }, text);
                }
                false
            }
            DumpPiece::End => true,
        };
        let result = file.write_all(text);
        text.clear();
        written.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
        if is_last || result.is_err() {
            return Ok(result);
        }
    }
}

/// Returns the next piece of a shard; `None` if it does not arrive in time, or if the shard has dropped the channel.
/// The deadline excludes the time in which this thread was not scheduled, because the shard may not have been scheduled
/// either.
fn receive(incoming: &Receiver<DumpPiece>) -> Option<DumpPiece> {
    let mut awake = Awake::new(PIECE_LOOK);
    let deadline = awake.look(clock::now()) + PIECE_DEADLINE;
    loop {
        match incoming.recv_timeout(PIECE_LOOK) {
            Ok(piece) => return Some(piece),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) if awake.look(clock::now()) >= deadline => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
