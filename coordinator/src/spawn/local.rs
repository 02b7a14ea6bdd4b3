//! Servers on this machine: children of the coordinator, each in a session of its own.

use std::fs::File;
use std::io::{self, PipeReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use kv_protocol::ClusterKey;
use kv_protocol::cluster_file::ServerLine;

use super::{
    Exit, KEY_FROM_STANDARD_INPUT, describe_signal, describe_status, error_name, log_name, tail,
};
use crate::plan::Plan;

/// A server that runs as a child.
#[derive(Debug)]
pub(crate) struct LocalServer {
    child: Child,
    log: PathBuf,
    /// Where this process's log begins: the file may hold earlier ones.
    log_start: u64,
    errors: PathBuf,
}

impl LocalServer {
    /// Starts a server. It reads the cluster's key from a pipe that is written and closed before the server
    /// starts, and writes to no pipe of this process, so it outlives it.
    ///
    /// # Errors
    /// What the system said to which step.
    pub(crate) fn spawn(
        plan: &Plan,
        line: &ServerLine,
        arguments: &[String],
        key: ClusterKey,
    ) -> Result<LocalServer, String> {
        let errors = plan.dir.join(error_name(line));
        let log = plan.dir.join(log_name(line));
        let error_file = File::create(&errors)
            .map_err(|error| format!("create {}: {error}", errors.display()))?;
        let log_start = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        let key = key_pipe(key).map_err(|error| format!("pass the cluster's key: {error}"))?;
        let mut command = Command::new(&plan.binary);
        command
            .args(arguments)
            .args(KEY_FROM_STANDARD_INPUT)
            .current_dir(&plan.dir)
            .stdin(key)
            .stdout(Stdio::null())
            .stderr(error_file)
            .kill_on_drop(false);
        // SAFETY: between fork and exec only setsid is called, which is async-signal-safe and
        // touches no memory of this process.
        unsafe {
            command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
        }
        let child = command.spawn().map_err(|error| format!("start it: {error}"))?;
        Ok(LocalServer { child, log, log_start, errors })
    }

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
        let log = || if was_killed { None } else { tail(&self.log, self.log_start) };
        let last_words = tail(&self.errors, 0).or_else(log);
        let how = match status {
            Ok(status) => describe(status),
            Err(error) => format!("its end was seen, its status was not: {error}"),
        };
        Exit { how, last_words }
    }
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
