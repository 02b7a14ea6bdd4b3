//! The names of a server's files in its working directory, and the arguments that make it read the key.

use kv_protocol::cluster_file::ServerLine;

/// Arguments that make a server read the cluster's key from standard input. They are left out of commands that are
/// shown, because an operator who repeats the command has no key to enter.
pub(super) const KEY_FROM_STANDARD_INPUT: [&str; 2] = ["--key-file", "-"];

/// Returns the name of a server's log in its working directory.
pub(crate) fn log_name(line: &ServerLine) -> String {
    format!("server_{}.log", line.id)
}

/// Returns the name of the file that receives a server's standard error.
pub(crate) fn error_name(line: &ServerLine) -> String {
    format!("server_{}.err", line.id)
}
