//! One coordinator per directory: an exclusive lock on `coord.lock`, held until the process ends.

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use kv_daemon::files;
use rustix::fs::{FlockOperation, flock};

use crate::failure::Failure;

const NAME: &str = "coord.lock";
/// The maximum number of bytes read from a lock file: more than a process id needs.
const MAX_PID_BYTES: u64 = 32;

/// The lock. The kernel releases it when this is dropped or the process ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock of a directory.
    ///
    /// # Errors
    /// Another coordinator holds the lock (the message has its process id), or the file cannot be created.
    pub(crate) fn take(dir: &Path) -> Result<DirectoryLock, Failure> {
        let path = dir.join(NAME);
        let failed = |error: std::io::Error| {
            let path = path.display();
            Failure::Failed(format!("cannot lock {path}: {error}; check that --dir is writable"))
        };
        let options = &mut File::options();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = files::open_with(&path, options).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Failure::Failed(format!(
                    "{} is in use by another coordinator (pid {}); stop it, or give another --dir",
                    dir.display(),
                    holder(&mut file)
                )));
            }
            Err(error) => return Err(failed(error.into())),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(DirectoryLock { _file: file })
    }
}

/// Returns the process id of the coordinator that holds the lock of a directory. The id is 0 if it is unknown.
/// Returns `None` if no coordinator holds the lock.
pub(crate) fn holder_of(dir: &Path) -> Option<u32> {
    let mut file = files::open(&dir.join(NAME)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Some(holder(&mut file).parse().unwrap_or(0)),
        _ => None,
    }
}

/// Rejects a directory that another coordinator has locked. The directory of this coordinator itself is accepted.
pub(crate) fn refuse_if_held(dir: &Path, own: &Path) -> Result<(), Failure> {
    let is_own = match (dir.canonicalize(), own.canonicalize()) {
        (Ok(dir), Ok(own)) => dir == own,
        _ => false,
    };
    let Some(mut file) = files::open(&dir.join(NAME)).ok().filter(|_| !is_own) else {
        return Ok(());
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::Failed(format!(
            "{} is in use by a coordinator (pid {}); stop it before its cluster is restored",
            dir.display(),
            holder(&mut file)
        ))),
        // A lock file that cannot be locked proves nothing, and the servers are looked up in any case.
        _ => Ok(()),
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let digits = match file.take(MAX_PID_BYTES).read_to_string(&mut text) {
        Ok(_) => text.trim(),
        Err(_) => "",
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return "unknown".into();
    }
    digits.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_for_a_locked_directory_names_the_process_that_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::take(dir.path()).unwrap();
        let Failure::Failed(message) = DirectoryLock::take(dir.path()).unwrap_err() else {
            panic!("a failure, not bad usage")
        };
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        let own = tempfile::tempdir().unwrap();
        assert!(refuse_if_held(dir.path(), own.path()).is_err());
        assert!(refuse_if_held(dir.path(), dir.path()).is_ok());
        assert_eq!(holder_of(dir.path()), Some(std::process::id()));
        drop(first);
        assert_eq!(holder_of(dir.path()), None);
        assert!(refuse_if_held(dir.path(), own.path()).is_ok());
        assert!(refuse_if_held(own.path(), dir.path()).is_ok());
        DirectoryLock::take(dir.path()).unwrap();
    }
}
