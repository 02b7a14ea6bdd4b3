//! Servers on other machines: the `ssh` command, and the small scripts that it runs on them.
//!
//! The exit status of ssh proves nothing about a server, because the connection may break while the server runs.
//! Instead, the remote script waits for the server and prints `exited <pid> <status>`; that line is the proof. If the
//! connection breaks, or another coordinator takes over, a new connection watches the same process by `./server --watch
//! <process>`. The start time distinguishes a process from later ones with its id; the PID namespace distinguishes it
//! from concurrent ones.
//!
//! The remote processes that work for a coordinator end with the coordinator, even if it is killed. The coordinator
//! holds the other end of the script's standard input. When that end is closed, the script and `--watch` end. The
//! server keeps running.
//!
//! Apart from the start script's own wait, only results of the server's executable are accepted. A failure of a shell,
//! `grep` or `cat` proves nothing; without the executable, the state of the process is unknown.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use kv_daemon::identity::Process;
use kv_protocol::cluster_file::Host;
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, GroupId, Incarnation, Member};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::time::timeout;

use crate::printable::last_lines;
use crate::quote;
use crate::settings::Settings;

pub(super) mod scripts;
#[cfg(test)]
mod tests;

pub(crate) use scripts::plain_command;
use scripts::{dumped_script, end_script, look_script, servers_script, strays_script};

use super::exit::MAX_QUOTED_BYTES;

/// The connection timeout of ssh in seconds.
const CONNECT_SECONDS: u16 = 10;
/// The timeout of a script that only queries or kills, including the connection.
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The timeout of the check of a process's dumps, which reads all of them.
const DUMPS_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum size of a script's output.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// The parameters of ssh, and the servers' directory on its hosts.
#[derive(Clone, Debug)]
pub(crate) struct Ssh {
    /// The file for `ssh -F`.
    pub(crate) config: Option<PathBuf>,
    /// The servers' directory on every ssh host.
    pub(crate) remote_dir: String,
}

/// The reason why a remote script failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("cannot start ssh: {0}; check that the ssh client is installed")]
    Start(std::io::Error),
    #[error("cannot read the output of ssh: {0}")]
    Output(std::io::Error),
    #[error("cannot wait for the end of ssh: {0}")]
    Wait(std::io::Error),
    #[error("ssh did not exit within {0} s")]
    TooSlow(u64),
    #[error("{0}")]
    Failed(String),
}

impl Ssh {
    /// Returns the parameters in the settings.
    pub(crate) fn new(settings: &Settings) -> Ssh {
        Ssh { config: settings.ssh_config.clone(), remote_dir: settings.remote_dir.clone() }
    }

    /// Returns the processes among `processes` that are running on their host.
    ///
    /// # Errors
    /// No process is known to be running, and the state of at least one is unknown.
    pub(crate) async fn living(
        &self,
        host: &Host,
        processes: &[Started],
    ) -> Result<Vec<Started>, SshError> {
        let mut living = Vec::new();
        let mut unknown = None;
        for (started, response) in processes.iter().zip(self.ask_after(host, processes).await?) {
            match response {
                Ok(true) => living.push(*started),
                Ok(false) => {}
                Err(error) => unknown = unknown.or(Some(error)),
            }
        }
        match unknown {
            // A caller only needs to know whether any process is running.
            Some(error) if living.is_empty() => Err(error),
            _ => Ok(living),
        }
    }

    /// Returns, for each of these processes, whether it is running on its host.
    ///
    /// # Errors
    /// Outer: the host was not reached. Inner: the state of this process is unknown.
    pub(crate) async fn ask_after(
        &self,
        host: &Host,
        processes: &[Started],
    ) -> Result<Vec<Result<bool, SshError>>, SshError> {
        let said = self.run_to_any_end(host, &look_script(&self.remote_dir, processes)).await?;
        let of = |started: &Started| {
            response(&said.output, started).ok_or_else(|| {
                SshError::Failed(format!(
                    "no information about pid {}: {}",
                    started.pid,
                    said.why()
                ))
            })
        };
        Ok(processes.iter().map(of).collect())
    }

    /// Returns the groups for which this process of a cluster has completed one of the dumps `names` on its host.
    ///
    /// # Errors
    /// The host was not reached, or a dump of the process is incomplete.
    pub(crate) async fn dumped(
        &self,
        host: &Host,
        (cluster, writer): (ClusterId, Member),
        names: &[String],
    ) -> Result<Vec<GroupId>, SshError> {
        let script = dumped_script(&self.remote_dir, writer.incarnation, names);
        let said = self.run_within(host, &script, DUMPS_TIMEOUT).await?;
        if !said.status.success() {
            return Err(SshError::Failed(said.why()));
        }
        let group = |line: &str| {
            let rest = line.strip_prefix(&format!("dumped {cluster} "))?;
            let number = rest.strip_suffix(&format!(" {}", writer.server))?;
            number.parse().ok().map(GroupId)
        };
        Ok(lines(&said.output).filter_map(group).collect())
    }

    /// Returns the process ids of the servers on a host that belong to this cluster or run in the servers' directory.
    /// The second list has servers whose working directory cannot be read.
    ///
    /// # Errors
    /// The host was not reached, or its listing was incomplete.
    pub(crate) async fn servers_in_directory(
        &self,
        host: &Host,
        cluster: ClusterId,
    ) -> Result<(Vec<u32>, Vec<u32>), SshError> {
        let said = self.run(host, &servers_script(&self.remote_dir, cluster)).await?;
        if !lines(&said).any(|line| line == "asked") {
            return Err(SshError::Failed("it did not report which servers run there".into()));
        }
        let named = |word: &str| -> Vec<u32> {
            lines(&said).filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
        };
        Ok((named("server "), named("hidden ")))
    }

    /// Kills the processes that were started on a host with these incarnations.
    ///
    /// # Errors
    /// The host was not reached, or the script failed.
    pub(crate) async fn end_strays(
        &self,
        host: &Host,
        names: &[Incarnation],
    ) -> Result<(), SshError> {
        self.run(host, &strays_script(names)).await.map(drop)
    }

    /// Returns the arguments with which ssh runs a script in a POSIX shell, whatever the login shell is, and never
    /// prompts.
    pub(crate) fn arguments(&self, host: &Host, script: &str) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        if let Some(config) = &self.config {
            all.extend(["-F".to_owned(), config.to_string_lossy().into_owned()]);
        }
        for option in [
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={CONNECT_SECONDS}"),
            "ServerAliveInterval=5".to_owned(),
            "ServerAliveCountMax=3".to_owned(),
            // A connection that is shared with other sessions would end, or stay open, because of those sessions.
            "ControlMaster=no".to_owned(),
            // A user's interactive configuration must not replace the script.
            "RemoteCommand=none".to_owned(),
            "RequestTTY=no".to_owned(),
        ] {
            all.extend(["-o".to_owned(), option]);
        }
        all.extend(["-T", "-x"].map(str::to_owned));
        if let Host::Ssh { user, host, port } = host {
            if let Some(port) = port {
                all.extend(["-p".to_owned(), port.to_string()]);
            }
            if let Some(user) = user {
                all.extend(["-l".to_owned(), user.clone()]);
            }
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            all.extend(["--".to_owned(), bare.to_owned()]);
        }
        all.push(format!("exec sh -c {}", quote::word(script)));
        all
    }

    pub(super) fn command(&self, host: &Host, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(self.arguments(host, script))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl+C must reach only the coordinator, because the stop still needs the ssh connections.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Runs a script to its end and returns its output.
    ///
    /// # Errors
    /// ssh could not be started, the host was not reached, or the script failed; the error has the message.
    pub(crate) async fn run(&self, host: &Host, script: &str) -> Result<String, SshError> {
        let said = self.run_to_any_end(host, script).await?;
        match said.status.success() {
            true => Ok(said.output),
            false => Err(SshError::Failed(said.why())),
        }
    }

    /// Runs a script like [`Ssh::run`], but also returns the output of a script that failed.
    async fn run_to_any_end(&self, host: &Host, script: &str) -> Result<Said, SshError> {
        self.run_within(host, script, SCRIPT_TIMEOUT).await
    }

    async fn run_within(
        &self,
        host: &Host,
        script: &str,
        limit: Duration,
    ) -> Result<Said, SshError> {
        let mut child = self.command(host, script).spawn().map_err(SshError::Start)?;
        let (output, errors) = pipes(&mut child);
        let whole = async {
            let mut text = Vec::new();
            let mut output = output.take(MAX_OUTPUT_BYTES);
            let read = output.read_to_end(&mut text);
            let (read, errors) = tokio::join!(read, collect_tail(errors));
            read.map_err(SshError::Output)?;
            let status = child.wait().await.map_err(SshError::Wait)?;
            Ok(Said { output: String::from_utf8_lossy(&text).into_owned(), errors, status })
        };
        timeout(limit, whole).await.map_err(|_| SshError::TooSlow(limit.as_secs()))?
    }

    /// Kills a server, and waits for the proof that it has ended.
    pub(super) async fn kill(&self, host: &Host, process: &Process) -> Result<(), SshError> {
        let said = self.run_to_any_end(host, &end_script(&self.remote_dir, process)).await?;
        match lines(&said.output).any(|line| is_end_of(line, process)) {
            true => Ok(()),
            false => Err(SshError::Failed(said.why())),
        }
    }
}

/// The output and the exit status of a script.
#[derive(Debug)]
struct Said {
    output: String,
    errors: Vec<u8>,
    status: std::process::ExitStatus,
}

impl Said {
    /// Returns the reason for a missing result.
    fn why(&self) -> String {
        last_lines(&self.errors).unwrap_or_else(|| format!("ssh: {}", self.status))
    }
}

/// Returns the complete lines of a text. A line without a line end may be truncated and is left out.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::trim)
}

/// Returns whether a process is running according to `server --look`, or `None` if that is not reported.
fn response(said: &str, started: &Started) -> Option<bool> {
    let (pid, start_time) = (started.pid, started.start_time);
    let says = |word: &str| {
        let expected = format!("{word} {pid} {start_time}");
        lines(said).any(|line| line == expected)
    };
    match (says("lives"), says("gone")) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

/// Returns whether a line of `server --end` reports that the process has ended.
fn is_end_of(line: &str, process: &Process) -> bool {
    line == format!("gone {} {}", process.pid, process.start_time)
}

pub(super) fn pipes(child: &mut Child) -> (ChildStdout, ChildStderr) {
    let output = child.stdout.take().expect("standard output is a pipe");
    (output, child.stderr.take().expect("standard error is a pipe"))
}

/// Reads to the end of a stream and returns its last bytes.
pub(super) async fn collect_tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let most = usize::try_from(MAX_QUOTED_BYTES).unwrap_or(usize::MAX);
    let mut kept = Vec::new();
    let mut chunk = [0; 512];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        kept.extend_from_slice(&chunk[..count]);
        let excess = kept.len().saturating_sub(most);
        kept.drain(..excess);
    }
    kept
}
