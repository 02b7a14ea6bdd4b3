//! Servers on this machine: children of the coordinator, each in a session of its own.

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

use super::{
    Exit, KEY_FROM_STANDARD_INPUT, describe_signal, describe_status, error_name, is_in_order,
    log_name, tail_apart,
};
use crate::plan::Plan;
use crate::state_file::StateFile;

/// What a server is started with. Its files may lie on a device that stalls, so it is started on a thread that
/// nobody waits for.
#[derive(Debug)]
pub(crate) struct Launch {
    binary: PathBuf,
    /// Knows where the servers' directory is now.
    files: Arc<StateFile>,
    arguments: Vec<String>,
    key: ClusterKey,
    log: String,
    errors: String,
}

/// A server that runs as a child.
#[derive(Debug)]
pub(crate) struct LocalServer {
    child: Child,
    log: PathBuf,
    /// Where this process's log begins: the file may hold earlier ones.
    log_start: u64,
    errors: PathBuf,
}

impl Launch {
    /// The launch of the server of this line.
    pub(crate) fn new(
        plan: &Plan,
        files: Arc<StateFile>,
        line: &ServerLine,
        arguments: &[String],
        key: ClusterKey,
    ) -> Launch {
        Launch {
            binary: plan.binary.clone(),
            files,
            arguments: arguments.to_vec(),
            key,
            log: log_name(line),
            errors: error_name(line),
        }
    }

    /// Starts the server. It reads the cluster's key from a pipe that is written and closed before the server
    /// starts, and writes to no pipe of this process, so it outlives it.
    ///
    /// # Errors
    /// What the system said to which step.
    pub(crate) async fn start(self) -> Result<LocalServer, String> {
        let started = tokio::task::spawn_blocking(move || self.spawn());
        started.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn spawn(self) -> Result<LocalServer, String> {
        let Launch { binary, files, arguments, key, log, errors } = self;
        let dir = files.directory();
        let (log, errors) = (dir.join(log), dir.join(errors));
        let error_file = files::append_anew(&errors)
            .map_err(|error| format!("create {}: {error}", errors.display()))?;
        let log_start = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let key = key_pipe(key).map_err(|error| format!("pass the cluster's key: {error}"))?;
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
                // It ignores them itself as soon as it runs; no signal may be earlier than that.
                kv_daemon::signals::ignore();
                rustix::process::setsid().map(drop).map_err(Into::into)
            });
        }
        let child = command.spawn().map_err(|error| format!("start it: {error}"))?;
        Ok(LocalServer { child, log, log_start, errors })
    }
}

impl LocalServer {
    /// Its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for its end; a word on `kill` kills it. It is this process's child, not yet waited for,
    /// so its id cannot be another's.
    pub(crate) async fn wait(mut self, mut kill: mpsc::Receiver<()>) -> Exit {
        let mut may_kill = true;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                order = kill.recv(), if may_kill => {
                    may_kill = order.is_some();
                    if may_kill && let Err(error) = self.child.start_kill() {
                        tracing::warn!("kill {:?}: {error}", self.child.id());
                    }
                }
            }
        };
        // One that was killed had nothing to say about it: the end of its log would mislead.
        let was_killed = status.as_ref().is_ok_and(|status| status.code().is_none());
        let mut last_words = tail_apart(self.errors, 0).await;
        if last_words.is_none() && !was_killed {
            last_words = tail_apart(self.log, self.log_start).await;
        }
        let in_order = says_in_order(&status);
        let how = match status {
            Ok(status) => describe(status),
            Err(error) => format!("its end was seen, its status was not: {error}"),
        };
        Exit { how, last_words, in_order }
    }
}

/// Whether an exit status says that all is in complete dumps. A signal says nothing: it may have come after them.
fn says_in_order(status: &io::Result<ExitStatus>) -> Option<bool> {
    status.as_ref().ok()?.code().map(is_in_order)
}

/// A pipe from which the key can be read, once.
fn key_pipe(key: ClusterKey) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    // A line fits into any pipe, so this does not wait for a reader.
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
    fn an_exit_status_says_whether_all_is_dumped_and_a_signal_does_not() {
        let status = |raw| says_in_order(&Ok(ExitStatus::from_raw(raw)));
        assert_eq!(status(0), Some(true));
        assert_eq!(status(71 << 8), Some(false), "a stalled executor");
        assert_eq!(status(libc::SIGKILL), None);
        assert_eq!(says_in_order(&Err(io::Error::other("lost"))), None);
    }
}
