//! Servers on other machines: the `ssh` command, and the small scripts it runs there.
//!
//! ssh's own exit status proves nothing about a server: the connection may have broken while the
//! server lives. So the script there waits for the server itself and prints `exited <pid>
//! <status>`; only that line is believed. If the connection breaks, or another coordinator follows, a
//! new one is made that watches the same process, by `./server --watch <process>`: a process is told apart
//! from any later one of its number by when it started, and from others of its number by its PID namespace.
//! What runs there for a coordinator ends with it, even if it is killed: it holds the other end of the script's
//! standard input, and the script and `--watch` end when that is closed. The server itself lives on.
//! That program alone is believed. A shell, `grep` or `cat` that fails proves nothing; where the program is
//! not at hand any more, it is not known whether the process lives.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use kv_daemon::identity::Process;
use kv_protocol::cluster_file::{Host, ServerLine};
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterId, ClusterKey, Incarnation, Member, PidNamespace};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::settings::Settings;

mod remote;
mod scripts;
#[cfg(test)]
mod tests;

pub(crate) use remote::RemoteServer;
pub(crate) use scripts::plain_command;
use scripts::{end_script, look_script, servers_script, strays_script};

use super::{
    Exit, KEY_FROM_STANDARD_INPUT, MAX_QUOTED_BYTES, describe_signal, describe_status, error_name,
    is_in_order, last_lines, log_name, quote,
};

/// Seconds until ssh gives up connecting.
const CONNECT_SECONDS: u16 = 10;
/// How long a script that only looks or kills may take, connecting included.
const SCRIPT_PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes that a script may answer.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// Most bytes of a line of the script that runs a server.
const MAX_LINE_BYTES: u64 = 256;
/// The first pause before a broken connection is made anew; each is twice the last.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long a server that is to be killed may take to get a process id.
const START_MOMENT: Duration = Duration::from_secs(3);
/// How often the same failure is logged.
const SAID_EVERY: Duration = Duration::from_secs(600);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How ssh is called, and where the servers live there.
#[derive(Clone, Debug)]
pub(crate) struct Ssh {
    /// `ssh -F`.
    pub(crate) config: Option<PathBuf>,
    /// The servers' directory on every ssh host.
    pub(crate) remote_dir: String,
}

/// Why a script did not run there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    #[error("start ssh: {0}; check that the ssh client is installed")]
    Start(std::io::Error),
    #[error("ssh did not end within {} s", SCRIPT_PATIENCE.as_secs())]
    TooSlow,
    #[error("{0}")]
    Failed(String),
}

impl Ssh {
    /// As the settings say.
    pub(crate) fn new(settings: &Settings) -> Ssh {
        Ssh { config: settings.ssh_config.clone(), remote_dir: settings.remote_dir.clone() }
    }

    /// Which of these processes live on their host.
    ///
    /// # Errors
    /// None is known to live, and the host did not answer for each of them.
    pub(crate) async fn living(
        &self,
        host: &Host,
        processes: &[Started],
    ) -> Result<Vec<Started>, SshError> {
        let mut living = Vec::new();
        let mut unknown = None;
        for (started, answer) in processes.iter().zip(self.ask_after(host, processes).await?) {
            match answer {
                Ok(true) => living.push(*started),
                Ok(false) => {}
                Err(error) => unknown = unknown.or(Some(error)),
            }
        }
        match unknown {
            // One that lives is all that a caller wants to know.
            Some(error) if living.is_empty() => Err(error),
            _ => Ok(living),
        }
    }

    /// Whether each of these processes lives on its host.
    ///
    /// # Errors
    /// The host was not reached; within, it did not answer for this process.
    pub(crate) async fn ask_after(
        &self,
        host: &Host,
        processes: &[Started],
    ) -> Result<Vec<Result<bool, SshError>>, SshError> {
        let said = self.run_to_any_end(host, &look_script(&self.remote_dir, processes)).await?;
        let of = |started: &Started| {
            answer(&said.output, started).ok_or_else(|| {
                SshError::Failed(format!("no word on pid {}: {}", started.pid, said.why()))
            })
        };
        Ok(processes.iter().map(of).collect())
    }

    /// The process ids of the servers there that are of this cluster or run in the servers' directory, and of those that
    /// do not tell where they run.
    ///
    /// # Errors
    /// The host was not reached, or did not say.
    pub(crate) async fn servers_in_directory(
        &self,
        host: &Host,
        cluster: ClusterId,
    ) -> Result<(Vec<u32>, Vec<u32>), SshError> {
        let said = self.run(host, &servers_script(&self.remote_dir, cluster)).await?;
        if !lines(&said).any(|line| line == "asked") {
            return Err(SshError::Failed("it did not say which servers run there".into()));
        }
        let named = |word: &str| -> Vec<u32> {
            lines(&said).filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
        };
        Ok((named("server "), named("hidden ")))
    }

    /// Ends whatever was started there under these names.
    ///
    /// # Errors
    /// The host was not reached, or it did not work.
    pub(crate) async fn end_strays(
        &self,
        host: &Host,
        names: &[Incarnation],
    ) -> Result<(), SshError> {
        self.run(host, &strays_script(names)).await.map(drop)
    }

    /// The arguments that make ssh run a script on a host with a POSIX shell, whatever the login
    /// shell there is, and never ask a person anything.
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
            // A connection shared with others would end, or stay, for their reasons.
            "ControlMaster=no".to_owned(),
            // A user's configuration for work by hand must not replace the script.
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

    fn command(&self, host: &Host, script: &str) -> Command {
        let mut command = Command::new("ssh");
        command
            .args(self.arguments(host, script))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl+C is for the coordinator, which still needs its connections then.
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    /// Runs a script to its end and gives what it printed.
    ///
    /// # Errors
    /// ssh could not be started, did not get there, or the script failed; with what was said.
    pub(crate) async fn run(&self, host: &Host, script: &str) -> Result<String, SshError> {
        let said = self.run_to_any_end(host, script).await?;
        match said.status.success() {
            true => Ok(said.output),
            false => Err(SshError::Failed(said.why())),
        }
    }

    /// As [`Ssh::run`], for a script whose lines count though it failed behind them.
    async fn run_to_any_end(&self, host: &Host, script: &str) -> Result<Said, SshError> {
        let mut child = self.command(host, script).spawn().map_err(SshError::Start)?;
        let (output, errors) = pipes(&mut child);
        let whole = async {
            let mut text = Vec::new();
            let mut output = output.take(MAX_OUTPUT_BYTES);
            let read = output.read_to_end(&mut text);
            let (read, errors) = tokio::join!(read, collect_tail(errors));
            read.map_err(SshError::Start)?;
            let status = child.wait().await.map_err(SshError::Start)?;
            Ok(Said { output: String::from_utf8_lossy(&text).into_owned(), errors, status })
        };
        timeout(SCRIPT_PATIENCE, whole).await.map_err(|_| SshError::TooSlow)?
    }

    /// Kills a server, and proves that it is gone.
    async fn kill(&self, host: &Host, process: &Process) -> Result<(), SshError> {
        let said = self.run_to_any_end(host, &end_script(&self.remote_dir, process)).await?;
        match lines(&said.output).any(|line| is_end_of(line, process)) {
            true => Ok(()),
            false => Err(SshError::Failed(said.why())),
        }
    }
}

/// What a script left behind.
#[derive(Debug)]
struct Said {
    output: String,
    errors: Vec<u8>,
    status: std::process::ExitStatus,
}

impl Said {
    /// Why it did not say what it should.
    fn why(&self) -> String {
        last_lines(&self.errors).unwrap_or_else(|| format!("ssh: {}", self.status))
    }
}

/// The whole lines of a text. One without an end may be cut, and is none.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::trim)
}

/// Whether a process lives, by what `server --look` printed; `None`: it did not say.
fn answer(said: &str, started: &Started) -> Option<bool> {
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

/// Whether a line of `server --end` says that the process is gone.
fn is_end_of(line: &str, process: &Process) -> bool {
    line == format!("gone {} {}", process.pid, process.start_time)
}

fn pipes(child: &mut Child) -> (ChildStdout, ChildStderr) {
    let output = child.stdout.take().expect("standard output is a pipe");
    (output, child.stderr.take().expect("standard error is a pipe"))
}

/// Reads to the end and keeps the last bytes.
async fn collect_tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
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
