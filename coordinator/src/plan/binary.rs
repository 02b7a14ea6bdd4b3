//! The server's executable on this machine.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use kv_protocol::cluster_file::{ClusterFile, Host};

use crate::args::Args;
use crate::failure::Failure;

/// Returns the executable of the servers on this machine.
pub(crate) fn binary(args: &Args) -> Result<PathBuf, String> {
    let path =
        match &args.server_binary {
            Some(path) => path.clone(),
            None => beside(&std::env::current_exe().map_err(|error| {
                format!("cannot find the directory of this executable: {error}")
            })?),
        };
    let shown = path.display();
    let advice = "build it with `make all`, or give --server-binary";
    let absolute = std::fs::canonicalize(&path)
        .map_err(|error| format!("cannot find the server executable {shown}: {error}; {advice}"))?;
    if !absolute.is_file() {
        return Err(format!("the server executable {shown} is not a file; {advice}"));
    }
    rustix::fs::access(&absolute, rustix::fs::Access::EXEC_OK).map_err(|error| {
        format!("cannot execute the server executable {shown}: {error}; check its mode")
    })?;
    Ok(absolute)
}

/// Returns the server beside this executable with the same prefix: `kv-server` beside `kv-coord`.
fn beside(coordinator: &Path) -> PathBuf {
    let name = coordinator.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let prefix = name.strip_suffix("coord").unwrap_or_default();
    coordinator.with_file_name(format!("{prefix}server"))
}

/// Returns the executable for the servers of a cluster file. Without servers on this machine, none is needed.
pub(super) fn local_binary(args: &Args, file: &ClusterFile) -> Result<PathBuf, Failure> {
    match file.servers.iter().any(|line| line.host == Host::Local) {
        true => binary(args).map_err(Failure::Failed),
        false => Ok(PathBuf::from("server")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_executable_has_the_prefix_of_the_coordinator() {
        for (coordinator, server) in [
            ("/work/bin/coord", "/work/bin/server"),
            ("/usr/bin/kv-coord", "/usr/bin/kv-server"),
            ("/tmp/renamed", "/tmp/server"),
        ] {
            assert_eq!(beside(Path::new(coordinator)), Path::new(server));
        }
    }
}
