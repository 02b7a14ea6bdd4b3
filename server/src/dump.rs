//! Writes the dumps: the executors hand over pieces of their tables, this thread makes text of them
//! and a file of that.
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

use crate::message::{DumpPiece, ShardMessage};
use crate::{clock, mailbox};

/// Pieces of a dump that may wait for the file.
const PIECES_WAITING: usize = 4;
/// How long a shard may take for its next piece, and how often the time is looked at meanwhile.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);
const PIECE_LOOK: Duration = Duration::from_millis(200);

/// Why a dump was not written. What was written of it is removed again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DumpFileError {
    /// The file system does not take it.
    #[error(
        "{doing} {path}: {error}; check the space left, the limits of the process and the directory's \
         rights"
    )]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A shard takes no more orders.
    #[error("dump {path}: shard {shard} has too many orders waiting; does it run?")]
    Orders {
        /// Which.
        shard: usize,
        /// For which file.
        path: PathBuf,
    },
    /// A shard holds no full copy.
    #[error(transparent)]
    NoFullCopy(NoFullCopy),
    /// A shard did not give its table.
    #[error("dump {path}: shard {shard} did not answer within {PIECE_DEADLINE:?}")]
    Shard {
        /// Which.
        shard: usize,
        /// For which file.
        path: PathBuf,
    },
}

impl DumpFileError {
    /// Whether there is nothing to dump: without it nothing is lost.
    pub(crate) fn is_no_copy(&self) -> bool {
        matches!(self, DumpFileError::NoFullCopy(_))
    }

    /// Whether a directory is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, DumpFileError::File { error, .. } if error.kind() == io::ErrorKind::NotFound)
    }
}

/// Makes a directory for dumps, and those above it.
pub(crate) fn make_directory(path: &Path) -> Result<(), DumpFileError> {
    fs::create_dir_all(path).map_err(|error| DumpFileError::File {
        doing: "make the directory",
        path: path.to_owned(),
        error,
    })
}

/// The name of a server's dump of one role: of the group whose primary, or secondary, is at home there.
/// What the server was to it when it dumped is said inside.
pub(crate) fn file_name(server: ServerId, role: ReplicaRole) -> String {
    match role {
        ReplicaRole::Primary => format!("server_{server}.primary"),
        ReplicaRole::Secondary => format!("server_{server}.secondary"),
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// What is dumped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Where it comes from.
    pub(crate) origin: DumpOrigin,
    /// Whose table, by home.
    pub(crate) role: ReplicaRole,
}

/// Writes a dump into `directory`; returns how many entries it holds. `written` shows the bytes of keys and values
/// in it so far.
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
        // Best effort: the error that matters is the first.
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

/// Where the pieces of a dump go.
struct Output<'a> {
    writer: &'a mut DumpWriter,
    text: &'a mut Vec<u8>,
    file: &'a mut File,
    /// Bytes of keys and values so far.
    written: &'a AtomicU64,
}

/// Takes all pieces of one shard. The outer error is the shard's, the inner the file's.
fn write_shard(
    number: usize,
    incoming: &Receiver<DumpPiece>,
    output: &mut Output<'_>,
    silent: impl Fn() -> DumpFileError,
) -> Result<io::Result<()>, DumpFileError> {
    let Output { writer, text, file, written } = output;
    loop {
        let piece = receive(incoming).ok_or_else(&silent)?;
        let mut bytes = 0;
        let is_last = match piece {
            DumpPiece::Shard(dumped) => {
                writer.shard(&dumped.map_err(DumpFileError::NoFullCopy)?, text);
                false
            }
            DumpPiece::Entries(entries) => {
                entries.for_each(|key, value, sn| writer.entry(key, value, sn, text));
                bytes = entries.bytes();
                false
            }
            DumpPiece::Records(records) => {
                let shard = ShardId(u16::try_from(number).expect("shards are numbered in 16 bits"));
                for LoggedRecord { sn, record } in records {
                    writer.record(&DumpRecord { shard, sn, record }, text);
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

/// The next piece of a shard; `None` when it does not come in time. The deadline counts the time for which this
/// thread is awake: a shard that was paused with it is not late.
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
