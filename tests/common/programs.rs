//! One run of `coord` or `client` from its start to its exit.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) use kv_testkit::programs::{Ended, show_logs, wait};

use super::{done, turn};

pub(crate) const COORD: &str = env!("CARGO_BIN_EXE_coord");
pub(crate) const SERVER: &str = env!("CARGO_BIN_EXE_server");
pub(crate) const CLIENT: &str = env!("CARGO_BIN_EXE_client");
pub(crate) const KV_BENCH: &str = env!("CARGO_BIN_EXE_kv-bench");

/// Copies the server's executable.
#[track_caller]
pub(crate) fn copy_server(to: &Path) {
    copy(Path::new(SERVER), to);
}

/// Runs a program with this standard input. Kills it and fails if it exceeds the time limit.
#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
    input: &str,
    limit: Duration,
) -> Ended {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, input, limit)
}

/// Does the same as [`run`], for a command that is already built, for example with environment variables.
#[track_caller]
pub(crate) fn finish(mut command: Command, input: &str, limit: Duration) -> Ended {
    turn::take();
    done(kv_testkit::programs::run(&mut command, input, limit))
}

/// Copies an executable in such a way that the copy can be started at once.
#[track_caller]
pub(crate) fn copy(from: &Path, to: &Path) {
    done(kv_testkit::programs::copy(from, to));
}
