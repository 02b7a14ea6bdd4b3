//! All dumps in some directories, each read and checked from the first to the last byte.
//!
//! A dump of another cluster, or of one that places keys in another way, is read only up to its header, because it
//! cannot count.
//! A file with two names is read once.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::num::NonZero;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kv_core::cluster::DurableState;
use kv_core::dump::{DumpError, DumpHeader, DumpItem, DumpOrigin, DumpReader};
use kv_daemon::files;
use kv_protocol::aside;
use kv_protocol::{GroupId, ShardId};

use super::stage;
use crate::logs::Console;
use crate::units::bytes;

/// The number of bytes read from a file at once.
const READ_BYTES: usize = 256 << 10;

/// A file with the name of a dump.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Its header, or the reason why it cannot be used.
    pub(super) dump: Result<DumpHeader, String>,
}

/// Returns all dumps in the directories, each checked.
pub(super) fn dumps(
    dirs: &[PathBuf],
    state: &DurableState,
    console: Console,
) -> Result<Vec<Found>, String> {
    let files = list(dirs)?;
    let total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    console.say(&format!("checking {} dumps, {}", files.len(), bytes(total)));
    let results: Vec<Mutex<Option<Result<DumpHeader, String>>>> =
        files.iter().map(|_| Mutex::new(None)).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(files.len());
    let work = || {
        while let Some(at) =
            Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < files.len())
        {
            let (path, _) = &files[at];
            let result = check(path, state);
            tracing::info!("checked {}", path.display());
            *results[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let taken = |result: Mutex<Option<_>>| {
        let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        result.unwrap_or_else(|| Err("it was not checked".into()))
    };
    let found = files.into_iter().zip(results);
    Ok(found.map(|((path, bytes), result)| Found { path, bytes, dump: taken(result) }).collect())
}

/// Returns the dumps of any cluster, each checked for a ring of this many servers. Dumps of earlier runs are left out;
/// if there are no others, that is an error.
pub(super) fn dumps_of_any(
    dirs: &[PathBuf],
    servers: u16,
    console: Console,
) -> Result<Vec<Found>, String> {
    // Dumps that were set aside come from earlier runs, and the last run may have accepted newer writes.
    let is_of_last = |(path, _): &(PathBuf, u64)| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| aside::plain(name) == name)
    };
    let (files, older): (Vec<_>, Vec<_>) = list(dirs)?.into_iter().partition(is_of_last);
    if files.is_empty() && !older.is_empty() {
        return Err(format!(
            "there are only dumps of earlier runs (such as {}), and they do not contain later writes. To \
             restore them anyway, copy them elsewhere under their plain names, and restore from there",
            older[0].0.display()
        ));
    }
    let total: u64 = files.iter().map(|(_, bytes)| bytes).sum();
    console.say(&format!("reading {} dumps, {}", files.len(), bytes(total)));
    let read = |(path, bytes): (PathBuf, u64)| {
        let dump = check_any(&path, servers, |_| true);
        Found { path, bytes, dump }
    };
    Ok(files.into_iter().map(read).collect())
}

/// Returns the files with names of dumps in these directories and in their `restore/`, with their sizes.
fn list(dirs: &[PathBuf]) -> Result<Vec<(PathBuf, u64)>, String> {
    let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
    for dir in dirs {
        for (place, is_given) in [(dir.clone(), true), (dir.join(stage::NAME), false)] {
            let entries = match std::fs::read_dir(&place) {
                Ok(entries) => entries,
                Err(error) if error.kind() == ErrorKind::NotFound && !is_given => continue,
                Err(error) => {
                    let place = place.display();
                    return Err(format!(
                        "cannot read the directory {place}: {error}; check --restore"
                    ));
                }
            };
            let mut names: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(is_dump_name))
                .collect();
            names.sort();
            for path in names {
                let Ok(metadata) = std::fs::metadata(&path) else { continue };
                if metadata.is_file() && seen.insert((metadata.dev(), metadata.ino())) {
                    files.push((path, metadata.len()));
                }
            }
        }
    }
    Ok(files)
}

/// Returns whether this is `server_<n>.primary` or `.secondary`, or the name of such a dump that was set aside.
pub(crate) fn is_dump_name(name: &str) -> bool {
    let name = aside::plain(name);
    let Some((server, role)) = name.strip_prefix("server_").and_then(|rest| rest.split_once('.'))
    else {
        return false;
    };
    let is_number = !server.is_empty() && server.bytes().all(|digit| digit.is_ascii_digit());
    is_number && matches!(role, "primary" | "secondary")
}

/// The reason why a dump is not read further.
enum Stopped {
    Broken(DumpError),
    Misplaced,
    OfOther(DumpOrigin),
}

impl From<DumpError> for Stopped {
    fn from(error: DumpError) -> Stopped {
        Stopped::Broken(error)
    }
}

/// Reads and checks a whole dump. If it belongs to another cluster, or to one that places keys in another
/// way, reads only its header, and returns it without shards.
pub(super) fn check(path: &Path, state: &DurableState) -> Result<DumpHeader, String> {
    let servers = u16::try_from(state.servers.len()).map_err(|error| error.to_string())?;
    check_any(path, servers, |origin| {
        origin.cluster == state.cluster
            && origin.shards == state.shards
            && origin.hash_tags == state.hash_tags
    })
}

fn check_any(
    path: &Path,
    servers: u16,
    is_ours: impl Fn(&DumpOrigin) -> bool,
) -> Result<DumpHeader, String> {
    let mut placement = None;
    let mut file = files::open(path).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; READ_BYTES];
    let mut reader = DumpReader::new();
    let mut place = (GroupId(0), ShardId(0));
    loop {
        let count = files::read_some(&mut file, &mut bytes).map_err(|error| error.to_string())?;
        if count == 0 {
            break;
        }
        let fed = reader.feed(&bytes[..count], |item| {
            match item {
                DumpItem::Origin(origin) if !is_ours(&origin) => {
                    return Err(Stopped::OfOther(origin));
                }
                DumpItem::Origin(origin) => {
                    place.0 = origin.group;
                    placement = Some(origin.placement(servers));
                }
                DumpItem::Shard(line) => place.1 = line.shard,
                DumpItem::Entry(entry)
                    if placement.is_none_or(|ring| {
                        ring.locate_digested(entry.digest, &entry.key) != place
                    }) =>
                {
                    return Err(Stopped::Misplaced);
                }
                DumpItem::Entry(_) | DumpItem::Record(_) => {}
            }
            Ok(())
        });
        match fed {
            Ok(()) => {}
            Err(Stopped::Broken(error)) => return Err(error.to_string()),
            Err(Stopped::Misplaced) => {
                return Err("it holds a key of another group or shard".into());
            }
            Err(Stopped::OfOther(origin)) => return Ok(DumpHeader { origin, shards: Vec::new() }),
        }
    }
    reader.finish().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_are_recognized_by_their_names() {
        for name in [
            "server_0.primary",
            "server_12.secondary",
            "server_3.primary.old",
            "server_3.primary.old.2",
        ] {
            assert!(is_dump_name(name), "{name}");
        }
        for name in
            ["server_0.primary.tmp", "server_.primary", "server_x.primary", "server_0.log", ""]
        {
            assert!(!is_dump_name(name), "{name}");
        }
    }

    #[test]
    fn a_file_with_two_names_is_read_once_and_files_of_a_failed_restore_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at(stage::NAME)).unwrap();
        std::fs::create_dir(at("server_9.primary")).unwrap();
        std::fs::write(at("server_0.primary"), "x").unwrap();
        std::fs::hard_link(at("server_0.primary"), at("restore/server_0.primary")).unwrap();
        std::fs::write(at("restore/server_1.primary"), "x").unwrap();
        let files: Vec<PathBuf> =
            list(&[dir.path().to_owned()]).unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(files, [at("server_0.primary"), at("restore/server_1.primary")]);
        assert!(list(&[at("nowhere")]).unwrap_err().contains("nowhere"));
    }
}
