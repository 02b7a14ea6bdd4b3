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
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use kv_core::dump::{DumpHeader, DumpRecord, DumpWriter};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{ServerId, ShardId};

use crate::mailbox;
use crate::message::{DumpPiece, ShardMessage};

/// Pieces of a dump that may wait for the file.
const PIECES_WAITING: usize = 4;
/// How long a shard may take for its next piece.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);

/// Why a dump was not written. What was written of it is removed again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum DumpFileError {
    /// The file system does not take it.
    #[error("{doing} {path}: {error}; check the space left and the directory's rights")]
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
    /// A shard did not give its table.
    #[error("dump {path}: shard {shard} did not answer within {PIECE_DEADLINE:?}")]
    Shard {
        /// Which.
        shard: usize,
        /// For which file.
        path: PathBuf,
    },
}

/// The name of a server's dump of one role.
pub(crate) fn file_name(server: ServerId, role: ReplicaRole) -> String {
    match role {
        ReplicaRole::Primary => format!("server_{server}.primary"),
        ReplicaRole::Secondary => format!("server_{server}.secondary"),
    }
}

/// Writes the dump that `header` describes into `directory`; returns how many entries it holds.
pub(crate) fn write(
    directory: &Path,
    header: &DumpHeader,
    shards: &[mailbox::Sender<ShardMessage>],
) -> Result<u64, DumpFileError> {
    let path = directory.join(file_name(header.server, header.role));
    let partial = directory.join(format!("{}.tmp", file_name(header.server, header.role)));
    let result = write_and_rename(directory, &partial, &path, header, shards);
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
    header: &DumpHeader,
    shards: &[mailbox::Sender<ShardMessage>],
) -> Result<u64, DumpFileError> {
    let failed = |doing, at: &Path| {
        let path = at.to_owned();
        move |error| DumpFileError::File { doing, path, error }
    };
    let mut file = File::create(partial).map_err(failed("create the dump", partial))?;
    let mut text = Vec::new();
    let mut writer = DumpWriter::begin(header, &mut text);
    for (number, shard) in shards.iter().enumerate() {
        let silent = || DumpFileError::Shard { shard: number, path: path.to_owned() };
        let (pieces, incoming) = bounded(PIECES_WAITING);
        let message = ShardMessage::Dump { role: header.role, pieces };
        let busy = |_| DumpFileError::Orders { shard: number, path: path.to_owned() };
        shard.push_order(message).map_err(busy)?;
        write_shard(number, &incoming, &mut writer, &mut text, &mut file, silent)?
            .map_err(failed("write the dump", partial))?;
    }
    let entries = writer.end(&mut text);
    file.write_all(&text).map_err(failed("write the dump", partial))?;
    file.sync_all().map_err(failed("sync the dump", partial))?;
    fs::rename(partial, path).map_err(failed("rename the dump to", path))?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync the directory", directory))?;
    Ok(entries)
}

/// Takes all pieces of one shard. The outer error is the shard's, the inner the file's.
fn write_shard(
    number: usize,
    incoming: &Receiver<DumpPiece>,
    writer: &mut DumpWriter,
    text: &mut Vec<u8>,
    file: &mut File,
    silent: impl Fn() -> DumpFileError,
) -> Result<io::Result<()>, DumpFileError> {
    loop {
        let piece = incoming.recv_timeout(PIECE_DEADLINE).map_err(|_| silent())?;
        let is_last = match piece {
            DumpPiece::Entries(entries) => {
                entries.for_each(|key, value, sn| writer.entry(key, value, sn, text));
                false
            }
            DumpPiece::Records(records) => {
                let shard = ShardId(u16::try_from(number).expect("shards are numbered in 16 bits"));
                for record in records {
                    writer.record(&DumpRecord { shard, record }, text);
                }
                false
            }
            DumpPiece::End => true,
        };
        let written = file.write_all(text);
        text.clear();
        if is_last || written.is_err() {
            return Ok(written);
        }
    }
}
