//! The state file, written by a coordinator during its whole life.
//!
//! ```text
//!   coordinator.state.spare   reserved in advance: overwritten, fsync
//!   coordinator.state      <- the two names are exchanged, fsync of the directory
//! ```
//!
//! Both files keep the same size, so a store needs only reserved space, and a full disk delays no failover. The
//! directory is held open, so stores continue if it is moved.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, Mode, OFlags, RenameFlags, fallocate, openat, renameat, renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::error::{StoreError, failed};
use super::format::{FILE_NAME, SPARE_NAME, encode_in};
use super::record::Record;
use crate::directory::{Directory, is_at, is_deleted, where_is};

/// The space reserved for the parts of a state that do not grow with the servers: far more than needed.
const BASE_ROOM: usize = 8 << 10;
/// The space reserved for each server of a state: far more than needed.
const SERVER_ROOM: usize = 2 << 10;
/// The granularity of reserved space.
const UNIT: usize = 4 << 10;

/// The state file in its directory.
#[derive(Debug)]
pub(crate) struct StateFile {
    directory: Arc<Directory>,
}

impl StateFile {
    /// Opens the directory and keeps it open.
    pub(crate) fn open(directory: &Path) -> Result<StateFile, StoreError> {
        let opened = Directory::open(directory).map_err(failed("open the directory", directory))?;
        Ok(StateFile { directory: Arc::new(opened) })
    }

    /// Returns the open directory.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// Makes a state durable. Blocks until it is on the disk. Returns a warning if the next store may fail.
    ///
    /// # Errors
    /// The store failed; as after a crash, the state may be on the disk nevertheless.
    pub(crate) fn store(&self, record: &Record) -> Result<Option<String>, StoreError> {
        let held = self.directory.held();
        let stored = self.store_in(&held, record);
        if stored.is_err() && is_deleted(&held) {
            // If a new directory exists at the same path, it is used instead, because no other coordinator has the
            // state of this cluster.
            let Ok(other) = self.directory.open_again() else {
                return stored
                    .map_err(|error| error.because("the directory was deleted; create it again"));
            };
            return self.store_in(&other, record);
        }
        stored
    }

    fn store_in(&self, directory: &File, record: &Record) -> Result<Option<String>, StoreError> {
        let path = self.directory.first_path();
        let (name, spare_name) = (path.join(FILE_NAME), path.join(SPARE_NAME));
        let bytes = encode_in(record, room(record.state.servers.len()));
        let spare = spare(directory).map_err(failed("create", &spare_name))?;
        reserve(&spare, bytes.len()).map_err(failed("reserve room for", &spare_name))?;
        let written = spare.write_all_at(&bytes, 0).and_then(|()| cut(&spare, bytes.len()));
        written.map_err(failed("write", &spare_name))?;
        spare.sync_all().map_err(failed("sync", &spare_name))?;
        exchange(directory).map_err(failed("rename to", &name))?;
        directory.sync_all().map_err(failed("sync the directory of", &name))?;
        let next = self::spare(directory).and_then(|spare| reserve(&spare, bytes.len()));
        let risk = match next {
            Err(error) => Some(format!(
                "cannot reserve room for {}: {error}; free some space",
                spare_name.display()
            )),
            Ok(()) if !is_at(directory, path) => Some(format!(
                "the directory {} was moved, and the state is stored in {}; move it back, or give the new path \
                 to the next coordinator as --dir",
                path.display(),
                where_is(directory).unwrap_or_default().display()
            )),
            Ok(()) => None,
        };
        Ok(risk)
    }
}

/// Makes a state durable in a directory. Blocks until it is on the disk.
pub(crate) fn store(directory: &Path, record: &Record) -> Result<(), StoreError> {
    StateFile::open(directory)?.store(record).map(drop)
}

/// Writes a state to a file of another name, which only this user can access.
pub(crate) fn write(path: &Path, record: &Record) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("replace", path)(error));
        }
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(&encode_in(record, 0))?;
        file.sync_all()
    });
    written.map_err(failed("write", path))
}

/// Returns the size of the state file for a ring of this many servers.
fn room(servers: usize) -> usize {
    (BASE_ROOM + servers * SERVER_ROOM).next_multiple_of(UNIT)
}

/// Opens the file that is written next. It will contain the key, so a file that others may read is replaced.
fn spare(directory: &File) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match openat(directory, SPARE_NAME, flags, Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            let metadata = file.metadata()?;
            let own = rustix::process::geteuid().as_raw();
            if metadata.is_file()
                && metadata.uid() == own
                && metadata.mode() & 0o777 == 0o600
                && metadata.nlink() == 1
            {
                return Ok(file);
            }
        }
        Err(Errno::NOENT | Errno::LOOP | Errno::ACCESS | Errno::NXIO | Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(directory, SPARE_NAME, rustix::fs::AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = flags | OFlags::CREATE | OFlags::EXCL;
    Ok(openat(directory, SPARE_NAME, flags, Mode::RUSR | Mode::WUSR)?.into())
}

/// Reserves this many bytes on the disk for a file.
fn reserve(file: &File, bytes: usize) -> io::Result<()> {
    let length = u64::try_from(bytes).map_err(io::Error::other)?;
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Ok(()) => Ok(()),
        // The file system cannot reserve space, so the space is taken by writing.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if file.metadata()?.len() < length => {
            file.write_all_at(&vec![b' '; bytes], 0)
        }
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Truncates a longer file, such as one of a version that reserved more.
fn cut(file: &File, bytes: usize) -> io::Result<()> {
    let length = u64::try_from(bytes).map_err(io::Error::other)?;
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}

/// Gives the written file the name of the state, and the previous state the name of the spare. If there is no previous
/// state, or the file system cannot exchange names, the written file replaces the state.
fn exchange(directory: &File) -> io::Result<()> {
    let exchanged =
        renameat_with(directory, SPARE_NAME, directory, FILE_NAME, RenameFlags::EXCHANGE);
    match exchanged {
        Ok(()) => Ok(()),
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            Ok(renameat(directory, SPARE_NAME, directory, FILE_NAME)?)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::store::load;
    use crate::store::tests::record;

    #[test]
    fn a_store_uses_only_reserved_space() {
        let parent = tempfile::tempdir().unwrap();
        let file = StateFile::open(parent.path()).unwrap();
        let mut inodes = Vec::new();
        for version in 1..6 {
            assert_eq!(file.store(&record(version)).unwrap(), None);
            assert_eq!(load(parent.path()).unwrap(), Some(record(version)));
            let metadata = fs::metadata(parent.path().join(FILE_NAME)).unwrap();
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "the key is in it");
            let spare = fs::metadata(parent.path().join(SPARE_NAME)).unwrap();
            assert_eq!(spare.len(), metadata.len(), "the next store has the same room");
            assert!(spare.blocks() * 512 >= spare.len(), "the room is reserved on the disk");
            inodes.push(metadata.ino());
        }
        inodes.sort_unstable();
        inodes.dedup();
        assert!(inodes.len() <= 3, "the files are reused: {inodes:?}");
    }

    #[test]
    fn a_store_follows_a_moved_directory_and_reports_a_deleted_one() {
        let parent = tempfile::tempdir().unwrap();
        let (at, moved) = (parent.path().join("at"), parent.path().join("moved"));
        fs::create_dir(&at).unwrap();
        let file = StateFile::open(&at).unwrap();
        assert_eq!(file.store(&record(1)).unwrap(), None);
        fs::rename(&at, &moved).unwrap();
        let risk = file.store(&record(2)).unwrap().unwrap();
        assert!(risk.contains("was moved") && risk.contains("/moved"), "{risk}");
        assert_eq!(file.directory().path(), moved.canonicalize().unwrap());
        assert_eq!(load(&moved).unwrap(), Some(record(2)));
        fs::remove_dir_all(&moved).unwrap();
        let error = file.store(&record(3)).unwrap_err().to_string();
        assert!(error.contains("the directory was deleted"), "{error}");
        fs::create_dir(&at).unwrap();
        assert_eq!(file.store(&record(4)).unwrap(), None);
        assert_eq!(load(&at).unwrap(), Some(record(4)));
    }

    #[test]
    fn a_spare_that_others_may_read_is_not_written_to() {
        let parent = tempfile::tempdir().unwrap();
        let spare = parent.path().join(SPARE_NAME);
        let file = StateFile::open(parent.path()).unwrap();
        let elsewhere = parent.path().join("elsewhere");
        fs::write(&elsewhere, "mine").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &spare).unwrap();
        file.store(&record(1)).unwrap();
        fs::write(&spare, "open").unwrap();
        fs::set_permissions(&spare, fs::Permissions::from_mode(0o644)).unwrap();
        let mut reader = File::open(&spare).unwrap();
        file.store(&record(2)).unwrap();
        let mut seen = String::new();
        io::Read::read_to_string(&mut reader, &mut seen).unwrap();
        assert_eq!(seen, "open");
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "mine");
        assert_eq!(load(parent.path()).unwrap(), Some(record(2)));
    }
}
