//! The reason for a failed store, with advice for the operator.

use std::io;
use std::path::{Path, PathBuf};

/// The reason for a failed store.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {error}; {advice}")]
pub(crate) struct StoreError {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
    advice: &'static str,
}

impl StoreError {
    /// Returns an error with advice for the operator.
    pub(crate) fn new(doing: &'static str, path: PathBuf, error: io::Error) -> StoreError {
        let advice = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => "free some space there",
            Some(libc::EFBIG) => "raise the limit of file sizes (ulimit -f)",
            Some(libc::EROFS) => "mount the file system writable",
            Some(libc::EACCES | libc::EPERM) => "check the permissions of the directory",
            Some(libc::EIO) => "check the disk",
            _ => "check the free space and the permissions of the directory",
        };
        StoreError { doing, path, error, advice }
    }

    /// Replaces the advice of the error.
    pub(crate) fn because(self, advice: &'static str) -> StoreError {
        StoreError { advice, ..self }
    }
}

/// Returns a function that adds the step and the path to an error of the system.
pub(super) fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |error| StoreError::new(doing, path, error)
}
