//! The cluster file, as a start reads it: `-C`, checked together with the flags.

use std::path::Path;

use kv_protocol::cluster_file::ClusterFile;

use crate::args::Args;
use crate::failure::Failure;
use crate::plan::check_addresses;
use crate::restart::stored_settings;

/// Reads the cluster file, and checks that its hosts fit `--advertise` and `--bind`, given or stored.
///
/// # Errors
/// Bad usage: the file cannot be read, a line is invalid, or `--advertise` and `--bind` do not fit the hosts. The
/// message has the reason, and the line if one is invalid.
pub(crate) fn read(args: &Args) -> Result<ClusterFile, Failure> {
    let path = args.cluster_file.as_deref().unwrap_or(Path::new(""));
    let shown = path.display();
    let text = std::fs::read(path).map_err(|error| {
        Failure::Usage(format!("cannot read the cluster file {shown}: {error}; check -C"))
    })?;
    let text = String::from_utf8(text).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count();
        Failure::Usage(format!(
            "cluster file {shown}, line {line}: invalid UTF-8; write the file as UTF-8 \
                                text"
        ))
    })?;
    let file = ClusterFile::parse(&text)
        .map_err(|error| Failure::Usage(format!("cluster file {shown}, {error}")))?;
    check_addresses(&file, args, &stored_settings(args).with(args))?;
    Ok(file)
}
