//! The coordinator's directory, held open so that its files are found even if the directory is moved.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::OFlags;

/// An open directory, and the path that led to it at the start.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    open: Mutex<Arc<File>>,
}

impl Directory {
    /// Opens a directory and keeps it open.
    pub(crate) fn open(path: &Path) -> io::Result<Directory> {
        let open = Mutex::new(Arc::new(open(path)?));
        Ok(Directory { path: path.to_owned(), open })
    }

    /// Returns the path of the directory at the start.
    pub(crate) fn first_path(&self) -> &Path {
        &self.path
    }

    /// Returns the current path of the directory, or the path at the start if the current one cannot be determined.
    pub(crate) fn path(&self) -> PathBuf {
        let held = self.held();
        match is_at(&held, &self.path) {
            true => self.path.clone(),
            false => where_is(&held).unwrap_or_else(|| self.path.clone()),
        }
    }

    /// Returns the open directory. The result does not hold the lock, so the caller may keep it for a long time.
    pub(crate) fn held(&self) -> Arc<File> {
        Arc::clone(&self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens the directory that now has the path of the start, and keeps it open instead of the earlier one.
    pub(crate) fn open_again(&self) -> io::Result<Arc<File>> {
        let other = Arc::new(open(&self.path)?);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&other);
        Ok(other)
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::DIRECTORY | OFlags::CLOEXEC).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Returns whether `path` still leads to `directory`.
pub(crate) fn is_at(directory: &File, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let there = std::fs::metadata(path).map(identity).ok();
    there.is_some() && there == directory.metadata().map(identity).ok()
}

pub(crate) fn is_deleted(directory: &File) -> bool {
    directory.metadata().is_ok_and(|metadata| metadata.nlink() == 0)
}

pub(crate) fn where_is(directory: &File) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).ok()
}
