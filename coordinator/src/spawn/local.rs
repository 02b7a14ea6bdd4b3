//! Servers on this machine: children of the coordinator, each in a separate session.

use std::io::{self, PipeReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use kv_daemon::files;
use kv_protocol::ClusterKey;
use kv_protocol::cluster_file::ServerLine;

use super::exit::{Exit, describe_signal, describe_status, is_in_order, tail_apart};
use super::names::{KEY_FROM_STANDARD_INPUT, error_name, log_name};
use crate::directory::Directory;

/// The parameters for starting a server. The server's files may be on a stalled device. So it is started on a separate
/// thread, for which the shutdown does not wait.
#[derive(Debug)]
pub(crate) struct Launch {
    binary: PathBuf,
    /// The servers' directory.
    directory: Arc<Directory>,
    arguments: Vec<String>,
    key: ClusterKey,
    log: String,
    errors: String,
}

/// A server that runs as a child process.
#[derive(Debug)]
pub(crate) struct LocalServer {
    child: Child,
    log: PathBuf,
    /// The offset of this process's log in the file, which may contain earlier logs.
    log_start: u64,
    errors: PathBuf,
}

impl Launch {
    /// Returns the launch of the server of this line.
    pub(crate) fn new(
        binary: PathBuf,
        directory: Arc<Directory>,
        line: &ServerLine,
        arguments: &[String],
        key: ClusterKey,
    ) -> Launch {
        Launch {
            binary,
            directory,
            arguments: arguments.to_vec(),
            key,
            log: log_name(line),
            errors: error_name(line),
        }
    }

    /// Starts the server. The server reads the cluster's key from a pipe that is written and closed before the server
    /// starts. The server writes to no pipe of this process, so it can outlive this process.
    ///
    /// # Errors
    /// A step failed; the message has the step and the error of the system.
    pub(crate) async fn start(self) -> Result<LocalServer, String> {
        let started = tokio::task::spawn_blocking(move || self.spawn());
        started.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn spawn(self) -> Result<LocalServer, String> {
        let Launch { binary, directory, arguments, key, log, errors } = self;
        let dir = directory.path();
        let (log, errors) = (dir.join(log), dir.join(errors));
        let error_file = files::append_anew(&errors)
            .map_err(|error| format!("cannot create {}: {error}", errors.display()))?;
        let log_start = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let key =
            key_pipe(key).map_err(|error| format!("cannot pass the cluster's key: {error}"))?;
        let mut command = Command::new(&binary);
        command
            .args(arguments)
            .args(KEY_FROM_STANDARD_INPUT)
            .current_dir(&dir)
            .stdin(key)
            .stdout(Stdio::null())
            .stderr(error_file)
            .kill_on_drop(false);
        // SAFETY: between fork and exec only sigaction and setsid are called, which are
        // async-signal-safe and touch no memory of this process.
        unsafe {
            command.pre_exec(|| {
                // The server later ignores these signals itself, but a signal may arrive before that.
                kv_daemon::signals::ignore();
                rustix::process::setsid().map(drop).map_err(Into::into)
            });
        }
        let child = command.spawn().map_err(|error| format!("cannot start it: {error}"))?;
        Ok(LocalServer { child, log, log_start, errors })
    }
}

impl LocalServer {
    /// Returns its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for the end of the server, and kills it on a message on `kill`. The process id cannot have been reused,
    /// because the child has not been reaped.
    pub(crate) async fn wait(mut self, mut kill: mpsc::Receiver<()>) -> Exit {
        let mut may_kill = true;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                order = kill.recv(), if may_kill => {
                    may_kill = order.is_some();
                    if may_kill && let Err(error) = self.child.start_kill() {
                        let pid = self.child.id().unwrap_or_default();
                        tracing::warn!("cannot kill process {pid}: {error}");
                    }
                }
            }
        };
        // A process that was killed has logged no reason, so the end of its log would be misleading.
        let was_killed = status.as_ref().is_ok_and(|status| status.code().is_none());
        let mut last_words = tail_apart(self.errors, 0).await;
        if last_words.is_none() && !was_killed {
            last_words = tail_apart(self.log, self.log_start).await;
        }
        let in_order = says_in_order(&status);
        let how = match status {
            Ok(status) => describe(status),
            Err(error) => format!("it has ended; its exit status cannot be read: {error}"),
        };
        Exit { how, last_words, in_order }
    }
}

/// Returns whether the exit status reports complete dumps. After a signal this is unknown, because the signal may have
/// arrived after the dumps.
fn says_in_order(status: &io::Result<ExitStatus>) -> Option<bool> {
    status.as_ref().ok()?.code().map(is_in_order)
}

/// Creates a pipe from which the key can be read once.
fn key_pipe(key: ClusterKey) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    // A line fits into any pipe, so the write does not block.
    writeln!(writer, "{key}")?;
    Ok(reader)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => describe_status(code),
        (None, Some(signal)) => describe_signal(signal),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_status_shows_whether_all_is_dumped_and_a_signal_does_not() {
        let status = |raw| says_in_order(&Ok(ExitStatus::from_raw(raw)));
        assert_eq!(status(0), Some(true));
        assert_eq!(status(71 << 8), Some(false), "a stalled executor");
        assert_eq!(status(libc::SIGKILL), None);
        assert_eq!(says_in_order(&Err(io::Error::other("lost"))), None);
    }
}
