//! The directories into which `--resume` fetches dumps from ssh hosts.

use std::fs;
use std::path::{Path, PathBuf};

use kv_protocol::ClusterId;

/// The beginning of the names of these directories.
const PREFIX: &str = "dumps-of-";

/// Returns the directory for the dumps of a cluster.
pub(crate) fn directory(dir: &Path, cluster: ClusterId) -> PathBuf {
    dir.join(format!("{PREFIX}{cluster}"))
}

/// Removes the directories into which resumes have fetched dumps, except the newest.
pub(super) fn remove_older(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let fetched = entries.filter(|entry| {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        is_directory && entry.file_name().to_string_lossy().starts_with(PREFIX)
    });
    let age = |path: &PathBuf| fs::metadata(path).and_then(|of| of.modified()).ok();
    let mut paths: Vec<PathBuf> = fetched.map(|entry| entry.path()).collect();
    paths.sort_by_key(age);
    paths.pop();
    for path in paths {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!("cannot remove {}: {error}; remove it by hand", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_the_newest_directory_of_fetched_dumps_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let now = std::time::SystemTime::now();
        for (name, age) in [("dumps-of-b", 3), ("dumps-of-a", 1), ("dumps-of-c", 2), ("other", 9)] {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("server_1.primary"), "x").unwrap();
            fs::File::open(&path).unwrap().set_modified(now - Duration::from_secs(age)).unwrap();
        }
        remove_older(dir.path());
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["dumps-of-a", "other"]);
    }
}
