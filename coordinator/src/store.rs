//! The coordinator's memory on the disk: one file, replaced as a whole.
//!
//! ```text
//!   coordinator.state:  kv-coordinator-state 1 <bytes> <CRC-32C in hex>\n
//!                       <JSON>
//!   store:  <name>.tmp -> fsync -> rename -> fsync of the directory
//! ```
//!
//! After a crash at any moment the file is the one before or the new one, whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kv_core::cluster::DurableState;

/// The file's name in the coordinator's directory.
pub(crate) const FILE_NAME: &str = "coordinator.state";
const MAGIC: &str = "kv-coordinator-state 1";

/// Why the state could not be stored.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {path}: {error}; check the space left and the directory's rights")]
pub(crate) struct StoreError {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
}

/// Makes a state durable in a directory. Blocks until the disk has it.
pub(crate) fn store(directory: &Path, state: &DurableState) -> Result<(), StoreError> {
    let path = directory.join(FILE_NAME);
    let temporary = directory.join(format!("{FILE_NAME}.tmp"));
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |error| StoreError { doing, path, error }
    };
    let mut file = File::create(&temporary).map_err(failed("create", &temporary))?;
    file.write_all(&encode(state)).map_err(failed("write", &temporary))?;
    file.sync_all().map_err(failed("sync", &temporary))?;
    fs::rename(&temporary, &path).map_err(failed("rename to", &path))?;
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(failed("sync the directory of", &path))
}

fn encode(state: &DurableState) -> Vec<u8> {
    let json = serde_json::to_vec_pretty(state).expect("a state has only strings for keys");
    let mut bytes = format!("{MAGIC} {} {:08x}\n", json.len(), crc32c::crc32c(&json)).into_bytes();
    bytes.extend_from_slice(&json);
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use kv_protocol::{BootId, ClusterId, Epoch, GroupId, Incarnation, Peer, View, ViewVersion};

    use kv_core::cluster::DurableServer;

    use super::*;

    fn state(version: u64) -> DurableState {
        let view = View {
            group: GroupId(0),
            version: ViewVersion(version),
            primary: None,
            peer: Peer::None,
            handover: false,
        };
        DurableState {
            cluster: ClusterId(7),
            epoch: Epoch { number: 3, boot: BootId(9) },
            shards: 2,
            has_served: true,
            servers: vec![DurableServer { incarnation: Incarnation(5), started: None }],
            views: vec![view],
            foundings: Vec::new(),
            is_stopping: false,
        }
    }

    #[test]
    fn a_stored_state_is_the_last_one_whole_and_checked() {
        let directory = tempfile::tempdir().unwrap();
        for version in [1, 2] {
            store(directory.path(), &state(version)).unwrap();
        }
        let text = fs::read_to_string(directory.path().join(FILE_NAME)).unwrap();
        let (header, json) = text.split_once('\n').unwrap();
        let json = json.strip_suffix('\n').unwrap();
        let crc = crc32c::crc32c(json.as_bytes());
        assert_eq!(header, format!("{MAGIC} {} {crc:08x}", json.len()));
        assert_eq!(serde_json::from_str::<DurableState>(json).unwrap(), state(2));
        assert!(!directory.path().join(format!("{FILE_NAME}.tmp")).exists());
    }

    #[test]
    fn a_directory_that_takes_no_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let error = store(&missing, &state(1)).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
