//! The states of clusters that have ended, which are kept under other names.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use kv_protocol::aside;

use super::error::{StoreError, failed};
use super::format::{FILE_NAME, OLD_NAME, SPARE_NAME};
use super::record::Record;

/// Renames the state of a cluster that has ended. If the cluster has never served and an earlier state has the old
/// name, the state is removed instead: the earlier state may be needed to restore dumps.
pub(crate) fn set_aside(directory: &Path, record: &Record) -> Result<(), StoreError> {
    let (path, old) = (directory.join(FILE_NAME), directory.join(OLD_NAME));
    match !record.state.has_served && old.exists() {
        true => fs::remove_file(&path).map_err(failed("remove", &path))?,
        false => rename_aside(directory).map_err(failed("rename to", &old))?,
    }
    // The spare file contains the cluster's key, which is no longer needed.
    match fs::remove_file(directory.join(SPARE_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", &directory.join(SPARE_NAME))(error));
        }
        _ => {}
    }
    sync(directory).map_err(failed("sync the directory of", &old))
}

/// Renames the state to its old name. An earlier state with that name gets a number, like the dumps that it belongs
/// to ([`kv_protocol::aside`]). At most [`aside::MAX_ASIDE`] states are kept.
pub(crate) fn rename_aside(directory: &Path) -> io::Result<()> {
    let (path, old) = (directory.join(FILE_NAME), directory.join(OLD_NAME));
    if old.exists() {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(directory)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| aside::number_of(FILE_NAME, name)));
        }
        numbers.sort_unstable();
        let earlier = aside::numbered(FILE_NAME, aside::next_number(numbers.iter().copied()));
        let too_many = (numbers.len() + 2).saturating_sub(aside::MAX_ASIDE);
        for oldest in numbers.iter().take(too_many) {
            let oldest = aside::numbered(FILE_NAME, *oldest);
            tracing::warn!("removing {oldest}, the oldest of {} states", aside::MAX_ASIDE);
            fs::remove_file(directory.join(oldest))?;
        }
        fs::rename(&old, directory.join(earlier))?;
    }
    fs::rename(path, old)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory).and_then(|directory| directory.sync_all())
}
