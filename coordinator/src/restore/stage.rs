//! The chosen files, under names that no server touches until every group of the restored cluster has two replicas.
//!
//! A server renames the dumps in its directory to `.old`, and earlier `.old` files get a number. After a failed start,
//! the files to restore from may be the `.old` ones. A hard link takes no space and keeps a file even if its other
//! names change. A file that cannot be linked is copied if it is in the coordinator's own directory, and otherwise
//! stays where it is.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use kv_core::dump::DumpOrigin;

use crate::store;

/// The name of the directory in the coordinator's directory.
pub(super) const NAME: &str = "restore";

/// Links the state and the dumps, and returns the path from which each dump is to be loaded. The state that the new one
/// will replace is renamed to `coordinator.state.old`.
pub(super) fn stage(
    dir: &Path,
    state: &Path,
    dumps: &[(PathBuf, DumpOrigin)],
) -> Result<Vec<PathBuf>, String> {
    let place = dir.join(NAME);
    let failed = |doing: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| {
            format!(
                "cannot {doing} {path}: {error}; check the free space and the permissions of the \
                     directory"
            )
        }
    };
    fs::create_dir_all(&place).map_err(failed("create the directory", &place))?;
    let mut files = Vec::new();
    for (source, origin) in dumps {
        let source = std::path::absolute(source).map_err(failed("find", source))?;
        let to = place.join(file_name(origin));
        files.push(match keep(&source, &to) {
            Ok(()) => to,
            Err(_) if source.parent() != Some(dir) => source,
            Err(error) => return Err(failed("copy to", &to)(error)),
        });
    }
    let to = place.join(store::FILE_NAME);
    keep(state, &to).map_err(failed("copy to", &to))?;
    sync(&place).map_err(failed("sync", &place))?;
    set_aside(dir).map_err(failed("set the state aside in", dir))?;
    sync(dir).map_err(failed("sync", dir))?;
    Ok(files)
}

/// Returns the staged name of a dump. Two chosen dumps never have the same name.
fn file_name(origin: &DumpOrigin) -> String {
    let server = origin.writer.server;
    let role = if server.home_group() == origin.group { "primary" } else { "secondary" };
    format!("server_{server}.{role}")
}

/// Links a file to a second name. If that fails, copies the file, but only if it is the state or in the coordinator's
/// own directory.
fn keep(from: &Path, to: &Path) -> io::Result<()> {
    if fs::canonicalize(from)? == fs::canonicalize(to).unwrap_or_default() {
        return Ok(());
    }
    let temporary = to.with_extension("tmp");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let is_in_reach = from.parent().is_some_and(|dir| to.starts_with(dir));
    match fs::hard_link(from, &temporary) {
        Ok(()) => {}
        Err(error) if !is_in_reach && to.file_name() != Some(store::FILE_NAME.as_ref()) => {
            return Err(error);
        }
        Err(_) => {
            fs::copy(from, &temporary)?;
            File::open(&temporary)?.sync_all()?;
        }
    }
    fs::rename(&temporary, to)?;
    // If both names were links to one file, the rename left the temporary name in place.
    let _ = fs::remove_file(&temporary);
    Ok(())
}

/// Renames the state of a cluster that has served to its old name. The state of a failed restore is not renamed, so
/// that it cannot replace the old one.
fn set_aside(dir: &Path) -> io::Result<()> {
    let path = dir.join(store::FILE_NAME);
    if !is_of_a_cluster_that_served(&path) {
        return Ok(());
    }
    store::rename_aside(dir)
}

/// Returns whether this file is the state of a cluster that has served.
fn is_of_a_cluster_that_served(path: &Path) -> bool {
    matches!(store::load_file(path), Ok(Some(record)) if record.state.has_served)
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes the links. Leftover files are harmless; the next restore examines them.
pub(super) fn remove(dir: &Path) {
    let place = dir.join(NAME);
    if let Err(error) = fs::remove_dir_all(&place) {
        tracing::warn!("cannot remove {}: {error}; remove it by hand", place.display());
    }
}

#[cfg(test)]
mod tests {
    use kv_protocol::{ClusterId, GroupId, Incarnation, Member, ServerId};

    use super::*;

    fn origin(server: u16, group: u16) -> DumpOrigin {
        let writer = Member { server: ServerId(server), incarnation: Incarnation(1) };
        let (cluster, group) = (ClusterId(1), GroupId(group));
        DumpOrigin { cluster, writer, group, shards: 1, hash_tags: false }
    }

    #[test]
    fn a_staged_file_outlives_its_other_names_and_can_be_staged_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text) in
            [("server_0.primary", "p"), ("server_0.secondary.old", "s"), ("coordinator.state", "c")]
        {
            fs::write(at(name), text).unwrap();
        }
        let dumps =
            [(at("server_0.primary"), origin(0, 0)), (at("server_0.secondary.old"), origin(0, 2))];
        let files = stage(dir.path(), &at("coordinator.state"), &dumps).unwrap();
        assert_eq!(files, [at("restore/server_0.primary"), at("restore/server_0.secondary")]);
        for name in ["server_0.primary", "server_0.secondary.old", "coordinator.state"] {
            fs::remove_file(at(name)).unwrap();
        }
        let again = [(files[0].clone(), origin(0, 0)), (files[1].clone(), origin(0, 2))];
        assert_eq!(stage(dir.path(), &at("restore/coordinator.state"), &again).unwrap(), files);
        for (name, text) in
            [("server_0.primary", "p"), ("server_0.secondary", "s"), ("coordinator.state", "c")]
        {
            assert_eq!(fs::read_to_string(at("restore").join(name)).unwrap(), text);
        }
        remove(dir.path());
        assert!(!at("restore").exists());
    }
}
