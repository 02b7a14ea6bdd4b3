//! The end of a server's process: its cause, the last output, and whether the dumps are complete.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_daemon::files;
use kv_protocol::exit_code::ServerExit;

use crate::printable::last_lines;

/// The maximum number of bytes quoted from a server's output.
pub(super) const MAX_QUOTED_BYTES: u64 = 2_048;
/// The timeout for reading the end of a file, which may be on a stalled device.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);

/// The end of a server's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    /// A description for operators.
    pub(crate) how: String,
    /// The last lines of its output, if there are any.
    pub(crate) last_words: Option<String>,
    /// True if its exit status, or a search for its dumps, shows that everything it held is in complete dumps. `None`
    /// if that is unknown.
    pub(crate) in_order: Option<bool>,
}

impl Exit {
    /// Creates the exit of a process that was killed or never ran, for which no dump is reported.
    pub(crate) fn without_dumps(how: String, last_words: Option<String>) -> Exit {
        Exit { how, last_words, in_order: Some(false) }
    }

    /// Returns the cause of the end and the last line of the output, in one line.
    pub(crate) fn summary(&self) -> String {
        match self.last_words.as_deref().and_then(|words| words.lines().last()) {
            Some(words) => format!("{}: {words}", self.how),
            None => self.how.clone(),
        }
    }

    /// Returns the cause of the end and the last output, in several lines.
    pub(crate) fn with_last_words(&self) -> String {
        match &self.last_words {
            Some(words) => {
                format!("{}; its last output:\n    {}", self.how, words.replace('\n', "\n    "))
            }
            None => self.how.clone(),
        }
    }
}

/// Returns whether an exit status reports that everything the server held is in complete dumps.
pub(super) fn is_in_order(status: i32) -> bool {
    ServerExit::from_code(status).is_some_and(ServerExit::is_in_order)
}

/// Describes an exit status of a server, or of the shell that failed to start the server.
pub(super) fn describe_status(status: i32) -> String {
    let meaning = match (ServerExit::from_code(status), status) {
        (Some(exit), _) => exit.meaning(),
        (None, 126) => "its executable cannot be executed",
        (None, 127) => "its executable was not found",
        (None, _) => return format!("exit status {status}"),
    };
    format!("exit status {status}: {meaning}")
}

/// Describes the signal that ended a server.
pub(super) fn describe_signal(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGHUP => " (SIGHUP)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGKILL => " (SIGKILL: kill -9, or out of memory)",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGTERM => " (SIGTERM)",
        _ => "",
    };
    format!("killed by signal {signal}{name}")
}

/// Returns [`tail`] of a file, read on a separate thread. Also returns `None` if reading takes too long.
pub(super) async fn tail_apart(path: PathBuf, start: u64) -> Option<String> {
    let read = tokio::task::spawn_blocking(move || tail(&path, start));
    tokio::time::timeout(TAIL_TIMEOUT, read).await.ok()?.ok()?
}

/// Returns the last lines of a file after an offset.
fn tail(path: &Path, start: u64) -> Option<String> {
    let mut file = files::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    let from = length.saturating_sub(MAX_QUOTED_BYTES).max(start);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut said = Vec::new();
    file.take(MAX_QUOTED_BYTES).read_to_end(&mut said).ok()?;
    last_lines(&said)
}
