//! Reading a state, and checking it as a whole.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use kv_daemon::files;

use super::format::{Bad, FILE_NAME, VERSION, decode};
use super::record::Record;

/// The maximum size of a state file. The file of a ring of 1,024 servers has 2.1 MB.
const MAX_BYTES: u64 = 64 << 20;

/// The reason why a state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("cannot read {path}: {error}; check its permissions")]
    Read { path: PathBuf, error: io::Error },
    #[error(
        "{path} was written by another version of coord ({found}; this one reads version {VERSION}): use that \
         version to continue its cluster or to stop it. Leave the file where it is: running servers hold all \
         data, and coord finds them by this file"
    )]
    OtherVersion { path: PathBuf, found: String },
    #[error(
        "{path} is damaged: {what}; nothing was started or changed, and servers that run continue. Put an \
         intact copy back if no server was lost since it was made; otherwise end every server with SIGTERM, \
         which makes it dump its tables, and move the file away"
    )]
    Corrupt { path: PathBuf, what: String },
}

/// Returns the state in a directory, or `None` if there is none.
pub(crate) fn load(directory: &Path) -> Result<Option<Record>, LoadError> {
    load_file(&directory.join(FILE_NAME))
}

/// Returns the state in a file, or `None` if there is none.
pub(crate) fn load_file(path: &Path) -> Result<Option<Record>, LoadError> {
    let read = |error| LoadError::Read { path: path.to_owned(), error };
    let file = match files::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(read)?;
    decode(&bytes).map(Some).map_err(|bad| match bad {
        Bad::Version(found) => LoadError::OtherVersion { path: path.to_owned(), found },
        Bad::Bytes(what) => LoadError::Corrupt { path: path.to_owned(), what },
    })
}
