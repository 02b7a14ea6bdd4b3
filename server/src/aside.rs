//! Dumps of earlier runs. A server renames them when it starts, so that after a crash they are not mistaken for dumps
//! of the crashed run. No dump is overwritten ([`kv_protocol::aside`]), and the number of dumps is bounded.
//!
//! The newest dump of a cluster is removed only if no other dump can be removed. After an orderly stop, it may be all
//! that is left of the cluster.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use kv_core::dump::{DumpError, DumpItem, DumpOrigin, DumpReader};
use kv_daemon::files;
use kv_protocol::aside::{self, MAX_ASIDE};
use kv_protocol::client_message::ReplicaRole;
use kv_protocol::ids::{ClusterId, ServerId};

use crate::dump::file_name;

/// The number of bytes at the beginning of a dump that always contain its whole origin.
const ORIGIN_BYTES: u64 = 4 << 10;

/// Renames the server's dumps of an earlier run. A dump that cannot be renamed is left with a warning, and the server
/// still starts.
pub(crate) fn set_aside(directory: &Path, server: ServerId) {
    let mut is_changed = false;
    for role in [ReplicaRole::Primary, ReplicaRole::Secondary] {
        let name = file_name(server, role);
        match set_one_aside(directory, &name) {
            Ok(is_there) => is_changed |= is_there,
            Err(error) => tracing::warn!(
                "cannot rename {name}, a dump of an earlier run: {error}; move it to another directory"
            ),
        }
    }
    // The old names must not reappear after a power failure.
    if is_changed && let Err(error) = sync(directory) {
        tracing::warn!("cannot make the new names durable in {}: {error}", directory.display());
    }
}

/// Renames one dump; returns whether there was one of this name.
fn set_one_aside(directory: &Path, name: &str) -> io::Result<bool> {
    let path = directory.join(name);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    let newest = aside::newest(name);
    let mut numbers = numbers(directory, name)?;
    if fs::symlink_metadata(directory.join(&newest)).is_ok() {
        make_room(directory, name, &mut numbers);
        let earlier = aside::numbered(name, aside::next_number(numbers.iter().copied()));
        fs::rename(directory.join(&newest), directory.join(&earlier))?;
        tracing::warn!("renamed {newest}, a dump of an earlier run, to {earlier}");
    }
    let origin = origin(&path);
    fs::rename(&path, directory.join(&newest))?;
    let of = origin.map_or_else(String::new, |origin| {
        format!(
            " (cluster {}, written by {}, group {})",
            origin.cluster, origin.writer, origin.group
        )
    });
    tracing::warn!(
        "renamed {name}, a dump of an earlier run{of}, to {newest}; this server does not load that dump"
    );
    Ok(true)
}

/// Returns the numbers of the earlier dumps of this name, the oldest first.
fn numbers(directory: &Path, name: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?.file_name();
        numbers.extend(entry.to_str().and_then(|entry| aside::number_of(name, entry)));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Removes dumps until another one may be kept: first the oldest dump that is unreadable or whose cluster has a newer
/// dump, else the oldest of all.
fn make_room(directory: &Path, name: &str, numbers: &mut Vec<u32>) {
    // Two dumps are not in `numbers`: the one with the plain name and the newest renamed one.
    while numbers.len() + 2 > MAX_ASIDE {
        let of = |file: String| -> Option<ClusterId> {
            origin(&directory.join(file)).map(|origin| origin.cluster)
        };
        let clusters: Vec<_> =
            numbers.iter().map(|number| of(aside::numbered(name, *number))).collect();
        let newer = [of(aside::newest(name)), of(name.to_owned())];
        let is_surpassed = |at: &usize| {
            let its = clusters[*at];
            its.is_none() || clusters[at + 1..].contains(&its) || newer.contains(&its)
        };
        let surpassed = (0..numbers.len()).find(is_surpassed);
        let oldest = aside::numbered(name, numbers.remove(surpassed.unwrap_or(0)));
        let why = match surpassed {
            Some(_) => "it was unreadable, or its cluster has a newer dump",
            None => "it was the oldest",
        };
        match fs::remove_file(directory.join(&oldest)) {
            Ok(()) => tracing::warn!(
                "removed {oldest}: at most {MAX_ASIDE} dumps of one name are kept, and {why}"
            ),
            Err(error) => tracing::warn!("cannot remove {oldest}, one dump too many: {error}"),
        }
    }
}

/// The reason to stop reading a dump.
enum Stopped {
    Known(DumpOrigin),
    Broken,
}

impl From<DumpError> for Stopped {
    fn from(_: DumpError) -> Stopped {
        Stopped::Broken
    }
}

/// Reads the origin at the beginning of a dump; returns `None` if the file cannot be read or is not a dump.
fn origin(path: &Path) -> Option<DumpOrigin> {
    let mut beginning = Vec::new();
    files::open(path).ok()?.take(ORIGIN_BYTES).read_to_end(&mut beginning).ok()?;
    let fed = DumpReader::new().feed(&beginning, |item| match item {
        DumpItem::Origin(origin) => Err(Stopped::Known(origin)),
        _ => Ok(()),
    });
    match fed {
        Err(Stopped::Known(origin)) => Some(origin),
        Ok(()) | Err(Stopped::Broken) => None,
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use kv_core::dump::{DumpWriter, DumpedShard, HeldAs};
    use kv_protocol::ids::{GroupId, Incarnation, Member, SequenceNumber, ShardId, ViewVersion};

    use super::*;

    const SERVER: ServerId = ServerId(1);
    const NAME: &str = "server_1.primary";

    fn names(directory: &Path) -> Vec<String> {
        let files = fs::read_dir(directory).unwrap();
        let name =
            |file: io::Result<fs::DirEntry>| file.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = files.map(name).collect();
        names.sort();
        names
    }

    /// Returns a dump of the n-th process of a cluster.
    fn dump(cluster: u128, n: u64) -> Vec<u8> {
        let writer = Member { server: SERVER, incarnation: Incarnation(n) };
        let cluster = ClusterId(cluster);
        let origin = DumpOrigin { cluster, writer, group: GroupId(1), shards: 1, hash_tags: false };
        let mut text = Vec::new();
        let mut writer = DumpWriter::begin(&origin, &mut text);
        let shard = DumpedShard {
            shard: ShardId(0),
            held_as: HeldAs::Primary,
            view: ViewVersion(1),
            last: SequenceNumber::ZERO,
            forgotten: SequenceNumber::ZERO,
        };
        writer.shard(&shard, &mut text);
        writer.end(&mut text);
        text
    }

    #[test]
    fn the_dumps_of_an_earlier_run_are_set_aside_and_no_other_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in [NAME, "server_1.secondary", "server_2.primary"] {
            fs::write(path(name), name).unwrap();
        }
        fs::write(path("server_1.primary.old"), "of the run before").unwrap();
        fs::write(path("server_1.primary.old.4"), "of another").unwrap();
        set_aside(directory.path(), SERVER);
        let left = [
            "server_1.primary.old",
            "server_1.primary.old.4",
            "server_1.primary.old.5",
            "server_1.secondary.old",
            "server_2.primary",
        ];
        assert_eq!(names(directory.path()), left);
        assert_eq!(fs::read(path("server_1.primary.old")).unwrap(), NAME.as_bytes());
        assert_eq!(fs::read(path("server_1.primary.old.5")).unwrap(), b"of the run before");
        set_aside(directory.path(), SERVER);
        assert_eq!(names(directory.path()), left, "a start without dumps keeps what there is");
    }

    #[test]
    fn the_kept_dumps_are_bounded_and_include_the_newest_of_each_cluster() {
        let directory = tempfile::tempdir().unwrap();
        for (n, cluster) in (1..).zip([7, 8, 9].into_iter().chain([9; 20])) {
            fs::write(directory.path().join(NAME), dump(cluster, n)).unwrap();
            set_aside(directory.path(), SERVER);
        }
        let left = names(directory.path());
        assert_eq!(left.len(), MAX_ASIDE, "{left:?}");
        let origins = left.iter().map(|name| origin(&directory.path().join(name)).unwrap());
        let known: Vec<(u128, u64)> =
            origins.map(|origin| (origin.cluster.0, origin.writer.incarnation.0)).collect();
        assert!(known.contains(&(7, 1)) && known.contains(&(8, 2)), "{known:?}");
        let newest = origin(&directory.path().join(aside::newest(NAME))).unwrap();
        assert_eq!(newest.writer.incarnation, Incarnation(23));
    }

    #[test]
    fn among_dumps_of_different_clusters_the_oldest_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        for cluster in 1..=10u64 {
            fs::write(directory.path().join(NAME), dump(cluster.into(), cluster)).unwrap();
            set_aside(directory.path(), SERVER);
        }
        let left = names(directory.path());
        let first = left.iter().map(|name| origin(&directory.path().join(name)).unwrap().cluster.0);
        assert_eq!(first.min(), Some(10 - MAX_ASIDE as u128 + 1));
    }

    #[test]
    fn a_dump_that_cannot_be_set_aside_is_left_and_the_other_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("server_1.primary"), "").unwrap();
        fs::write(path("server_1.secondary"), "").unwrap();
        // A file cannot be renamed to the name of a directory.
        fs::create_dir(path("server_1.primary.old")).unwrap();
        fs::create_dir(path("server_1.primary.old.2")).unwrap();
        fs::write(path("server_1.primary.old.2/x"), "").unwrap();
        set_aside(directory.path(), SERVER);
        assert!(names(directory.path()).contains(&"server_1.secondary.old".to_owned()));
        assert!(names(directory.path()).iter().any(|name| name.starts_with("server_1.primary")));
    }
}
