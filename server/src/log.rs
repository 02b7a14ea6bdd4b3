//! The process's log: one queue, and one thread that writes it. No other thread waits for the file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use kv_daemon::queue::{LogFile, Queue, StandardError};
use tracing_subscriber::EnvFilter;

static LOG: OnceLock<Queue> = OnceLock::new();

/// The reason why logging cannot start.
#[derive(Debug)]
pub(crate) enum NoLog {
    /// The file cannot be opened.
    File { path: PathBuf, error: io::Error },
    /// The thread cannot be started.
    Thread(io::Error),
}

/// Starts logging to this file, or to standard error without a path. If the file cannot be opened, starts logging to
/// standard error and returns the error.
pub(crate) fn start(path: Option<&Path>) -> Result<(), NoLog> {
    let Some(path) = path else { return to_standard_error() };
    match LogFile::open_own(path) {
        Ok(file) => {
            let queue = Queue::start("log", file, own_descriptors);
            init(queue.map_err(NoLog::Thread)?);
            Ok(())
        }
        Err(error) => {
            to_standard_error()?;
            Err(NoLog::File { path: path.to_owned(), error })
        }
    }
}

fn to_standard_error() -> Result<(), NoLog> {
    let queue = Queue::start("log", StandardError, own_descriptors);
    init(queue.map_err(NoLog::Thread)?);
    Ok(())
}

fn init(queue: Queue) {
    let filter = EnvFilter::try_from_env("KV_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .with_thread_names(true)
        .log_internal_errors(false)
        .with_writer(queue.clone())
        .init();
    let _ = LOG.set(queue);
}

/// Gives the log's thread a separate descriptor table. It has no sockets, because logging starts before the first
/// socket is opened, and starts only when the table is separate. A thread that waits for a frozen file system survives even SIGKILL, but the connections of its
/// process must be closed.
fn own_descriptors() {
    // SAFETY: the flag is valid, and a thread may always leave its shared descriptor table. The call opens and closes
    // no descriptor of other threads.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!("cannot give the log's thread a separate descriptor table: {error}");
    }
}

/// Requests that the log's thread reopen the log file by its path.
pub(crate) fn reopen() {
    if let Some(queue) = LOG.get() {
        queue.nudge();
    }
}

/// Waits until all queued lines are written, but at most for `limit`.
pub(crate) fn flush(limit: Duration) {
    if let Some(queue) = LOG.get() {
        queue.flush(limit);
    }
}
