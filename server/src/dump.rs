//! Writes the dumps: the executors hand over pieces of their tables, this thread makes text of them
//! and a file of that.
//!
//! ```text
//!   shard 0 walk -> [bounded channel] -> text -> <name>.tmp -> fsync -> rename -> fsync directory
//!   shard 1 ...
//! ```
//!
//! A server that starts sets the dumps of an earlier run aside, so that after a crash nobody takes
//! them for those of the run that crashed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam::channel::{Receiver, bounded};
use kv_core::dump::{DumpOrigin, DumpRecord, DumpWriter};
use kv_core::replica::NoFullCopy;
use kv_core::session::LoggedRecord;
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

/// The name of a server's dump of one role: of the group whose primary, or secondary, is at home there.
/// What the server was to it when it dumped is said inside.
pub(crate) fn file_name(server: ServerId, role: ReplicaRole) -> String {
    match role {
        ReplicaRole::Primary => format!("server_{server}.primary"),
        ReplicaRole::Secondary => format!("server_{server}.secondary"),
    }
}

/// Renames the server's dumps of an earlier run to `<name>.old`, in place of those set aside before.
/// What cannot be renamed is warned about and left: it is no reason not to serve.
pub(crate) fn set_aside(directory: &Path, server: ServerId) {
    let mut is_changed = false;
    for role in [ReplicaRole::Primary, ReplicaRole::Secondary] {
        let name = file_name(server, role);
        let old = format!("{name}.old");
        match fs::rename(directory.join(&name), directory.join(&old)) {
            Ok(()) => {
                is_changed = true;
                tracing::info!("{name} is of an earlier run; it is called {old} now");
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(
                "rename {name}, of an earlier run, to {old}: {error}; do not take it for a dump of \
                 this run"
            ),
        }
    }
    // After a power failure too, the old names must not be there again.
    if is_changed && let Err(error) = sync(directory) {
        tracing::warn!("sync the directory {}: {error}", directory.display());
    }
}

/// Creates the file of a dump, for its owner alone: it holds what all clients wrote, and the ids under which
/// their writes are known.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(path)?;
    // One that an earlier version has left may be anybody's to read.
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
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

/// Writes a dump into `directory`; returns how many entries it holds.
pub(crate) fn write(
    directory: &Path,
    wanted: &Wanted,
    shards: &[mailbox::Sender<ShardMessage>],
) -> Result<u64, DumpFileError> {
    let name = file_name(wanted.origin.writer.server, wanted.role);
    let (path, partial) = (directory.join(&name), directory.join(format!("{name}.tmp")));
    let result = write_and_rename(directory, &partial, &path, wanted, shards);
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
) -> Result<u64, DumpFileError> {
    let failed = |doing, at: &Path| {
        let path = at.to_owned();
        move |error| DumpFileError::File { doing, path, error }
    };
    let mut file = create(partial).map_err(failed("create the dump", partial))?;
    let mut text = Vec::new();
    let mut writer = DumpWriter::begin(&wanted.origin, &mut text);
    for (number, shard) in shards.iter().enumerate() {
        let silent = || DumpFileError::Shard { shard: number, path: path.to_owned() };
        let (pieces, incoming) = bounded(PIECES_WAITING);
        let message = ShardMessage::Dump { role: wanted.role, pieces };
        let busy = |_| DumpFileError::Orders { shard: number, path: path.to_owned() };
        shard.push_order(message).map_err(busy)?;
        write_shard(number, &incoming, &mut writer, &mut text, &mut file, silent)?
            .map_err(failed("write the dump", partial))?;
    }
    let entries = writer.end(&mut text);
    file.write_all(&text).map_err(failed("write the dump", partial))?;
    file.sync_all().map_err(failed("sync the dump", partial))?;
    fs::rename(partial, path).map_err(failed("rename the dump to", path))?;
    sync(directory).map_err(failed("sync the directory", directory))?;
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
            DumpPiece::Shard(dumped) => {
                writer.shard(&dumped.map_err(DumpFileError::NoFullCopy)?, text);
                false
            }
            DumpPiece::Entries(entries) => {
                entries.for_each(|key, value, sn| writer.entry(key, value, sn, text));
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
        let written = file.write_all(text);
        text.clear();
        if is_last || written.is_err() {
            return Ok(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: ServerId = ServerId(1);

    fn names(directory: &Path) -> Vec<String> {
        let files = fs::read_dir(directory).unwrap();
        let name =
            |file: io::Result<fs::DirEntry>| file.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = files.map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn the_dumps_of_an_earlier_run_are_set_aside_and_those_of_other_servers_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        for name in ["server_1.primary", "server_1.secondary", "server_2.primary"] {
            fs::write(path(name), name).unwrap();
        }
        fs::write(path("server_1.primary.old"), "of the run before").unwrap();
        set_aside(directory.path(), SERVER);
        let left = ["server_1.primary.old", "server_1.secondary.old", "server_2.primary"];
        assert_eq!(names(directory.path()), left);
        assert_eq!(fs::read(path("server_1.primary.old")).unwrap(), b"server_1.primary");
        set_aside(directory.path(), SERVER);
        assert_eq!(names(directory.path()), left, "a start without dumps keeps what there is");
    }

    #[test]
    fn a_dump_is_its_owner_s_alone_to_read_whatever_stood_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server_1.primary.tmp");
        for _ in 0..2 {
            let mode = create(&path).unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }

    #[test]
    fn a_dump_that_cannot_be_set_aside_is_left_and_the_other_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path("server_1.primary"), "").unwrap();
        fs::write(path("server_1.secondary"), "").unwrap();
        // No file can take the name of a directory.
        fs::create_dir(path("server_1.primary.old")).unwrap();
        set_aside(directory.path(), SERVER);
        let left = ["server_1.primary", "server_1.primary.old", "server_1.secondary.old"];
        assert_eq!(names(directory.path()), left);
    }
}
