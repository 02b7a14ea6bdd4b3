//! The search for the last state of the cluster to be restored. Each state is checked as a whole.
//!
//! ```text
//!   coordinator.state          of the cluster that ran there last
//!   restore/coordinator.state  the source of a failed restore
//!   coordinator.state.old      of the previous cluster
//! ```
//!
//! The states are examined in this order. A state whose cluster has never served is skipped, because no client ever
//! connected to that cluster. A failed restore leaves such a state.

use std::path::{Path, PathBuf};

use super::stage;
use crate::store::{self, Record};

/// A state and its path.
#[derive(Debug)]
pub(super) struct Last {
    pub(super) path: PathBuf,
    pub(super) record: Record,
}

/// Returns the last state in some directories. A state in the coordinator's own directory must belong to the same
/// cluster.
pub(super) fn last(dirs: &[PathBuf], own: &Path) -> Result<Last, String> {
    let place = |names: &[&str]| -> Vec<PathBuf> {
        dirs.iter()
            .map(|dir| names.iter().fold(dir.clone(), |path, name| path.join(name)))
            .collect()
    };
    let mut newest = place(&[store::FILE_NAME]);
    newest.push(own.join(store::FILE_NAME));
    let mut passed_over = Vec::new();
    for paths in [newest, place(&[stage::NAME, store::FILE_NAME]), place(&[store::OLD_NAME])] {
        let mut found: Option<Last> = None;
        for path in paths {
            let loaded = store::load_file(&path).map_err(|error| error.to_string())?;
            let Some(record) = loaded else { continue };
            if !record.state.has_served {
                passed_over.push(path.display().to_string());
                continue;
            }
            found = Some(later(found, Last { path, record })?);
        }
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut text = format!(
        "there is no {} in {}, so it is not known which dumps count; give the directory of the coordinator \
         (its --dir) too. If every copy of the state is lost, --without-state rebuilds the state from the \
         dumps",
        store::FILE_NAME,
        dirs.join(", ")
    );
    if !passed_over.is_empty() {
        text += &format!(" (of a cluster that has never served: {})", passed_over.join(", "));
    }
    Err(text)
}

/// Returns the later of two states of one cluster.
fn later(one: Option<Last>, other: Last) -> Result<Last, String> {
    let Some(one) = one else { return Ok(other) };
    let (ours, theirs) = (one.record.state.cluster, other.record.state.cluster);
    if ours != theirs {
        return Err(format!(
            "{} belongs to cluster {ours}, but {} belongs to cluster {theirs}; restore one of the two \
             clusters, in a separate directory (--dir)",
            one.path.display(),
            other.path.display()
        ));
    }
    let age = |last: &Last| {
        let state = &last.record.state;
        let versions = state.views.iter().map(|view| u128::from(view.version.0));
        (state.epoch.number, versions.sum::<u128>(), state.is_stopping)
    };
    Ok(if age(&other) > age(&one) { other } else { one })
}

/// Returns the state that a failed restore has left in this directory, if it never served.
pub(super) fn tried(dir: &Path) -> Option<Record> {
    let record = store::load(dir).ok().flatten();
    record.filter(|record| !record.state.has_served && !record.state.foundings.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kv_protocol::{ClusterId, ViewVersion};

    use super::*;
    use crate::store::tests::record;

    fn state(cluster: u128, version: u64, has_served: bool) -> Record {
        let mut record = record(version);
        record.state.cluster = ClusterId(cluster);
        record.state.has_served = has_served;
        record
    }

    fn write(dir: &Path, name: &str, record: &Record) {
        fs::create_dir_all(dir).unwrap();
        store::store(dir, record).unwrap();
        fs::rename(dir.join(store::FILE_NAME), dir.join(name)).unwrap();
    }

    #[test]
    fn the_state_of_a_failed_restore_is_skipped_in_favor_of_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let dirs = [dir.path().to_owned()];
        let found = || last(&dirs, dir.path()).map(|last| last.record.state.cluster.0);
        assert!(found().unwrap_err().contains("no coordinator.state"));
        write(dir.path(), store::OLD_NAME, &state(1, 4, true));
        assert_eq!(found(), Ok(1));
        write(&at("restore"), store::FILE_NAME, &state(2, 4, true));
        assert_eq!(found(), Ok(2));
        write(dir.path(), store::FILE_NAME, &state(3, 4, false));
        assert_eq!(found(), Ok(2));
        write(dir.path(), store::FILE_NAME, &state(3, 4, true));
        assert_eq!(found(), Ok(3));
    }

    #[test]
    fn the_latest_state_of_a_cluster_is_used_and_states_of_two_clusters_are_rejected() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path(), store::FILE_NAME, &state(1, 4, true));
        write(other.path(), store::FILE_NAME, &state(1, 5, true));
        for dirs in [[one.path(), other.path()], [other.path(), one.path()]] {
            let found = last(&dirs.map(Path::to_owned), one.path()).unwrap();
            assert_eq!(found.record.state.views[0].version, ViewVersion(5));
        }
        write(other.path(), store::FILE_NAME, &state(2, 5, true));
        let refused = last(&[one.path().to_owned()], other.path()).unwrap_err();
        assert!(refused.contains("in a separate directory"), "{refused}");
    }

    #[test]
    fn a_damaged_state_is_rejected_and_not_replaced_by_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), store::OLD_NAME, &state(1, 4, true));
        write(dir.path(), store::FILE_NAME, &state(1, 5, true));
        let path = dir.path().join(store::FILE_NAME);
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            last(&[dir.path().to_owned()], dir.path()).is_err()
        };
        for at in 0..whole.len() - 1 {
            let mut altered = whole.clone();
            altered[at] ^= 1;
            assert!(refused(&altered), "byte {at} was altered unnoticed");
            assert!(refused(&whole[..at]), "cut to {at} bytes");
        }
        assert!(!refused(&whole));
    }
}
