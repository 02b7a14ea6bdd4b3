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

/// The server's command there, as a person would type it.
pub(crate) fn plain_command(remote_dir: &str, arguments: &[String]) -> String {
    format!("cd {} && ./server {}", quote::word(remote_dir), quote::words(arguments))
}

/// Starts a server in a session of its own, waits for it, and says both. The cluster's key comes as the first line of
/// standard input and goes on through a pipe: everybody can see a command line. When standard input ends, the
/// coordinator is gone: the script ends, and the server stays.
fn start_script(remote_dir: &str, line: &ServerLine, arguments: &[String]) -> String {
    let (dir, errors, log) = (quote::word(remote_dir), error_name(line), log_name(line));
    format!(
        "cd {dir} || exit 1\n\
         [ -x ./server ] || {{ echo \"no executable file 'server' in $PWD\" >&2; exit 1; }}\n\
         umask 077\n\
         touch {log}; before=$(wc -c <{log})\n\
         read -r key || exit 1\n\
         exec 3<&0 </dev/null\n\
         echo \"$key\" | setsid ./server {} {} 3<&- >/dev/null 2>{errors} &\n\
         pid=$!\n\
         said=$(./server --name $pid 2>/dev/null 3<&-)\n\
         case $said in \"started $pid \"*) echo \"$said\";; *) echo started $pid;; esac\n\
         {{ while read -r line; do :; done; kill $$; }} <&3 >/dev/null 2>&1 &\n\
         watch=$!\n\
         exec 3<&-\n\
         wait $pid\n\
         status=$?\n\
         kill $watch 2>/dev/null\n\
         wait $watch 2>/dev/null\n\
         if [ -s {errors} ]; then tail -c {MAX_QUOTED_BYTES} {errors} >&2\n\
         elif [ $status -lt 128 ]; then tail -c +$((before + 1)) {log} | tail -c {MAX_QUOTED_BYTES} >&2; fi\n\
         echo exited $pid $status\n",
        quote::words(arguments),
        KEY_FROM_STANDARD_INPUT.join(" ")
    )
}

/// Has the server's program there answer a question about processes. It reads nothing.
fn ask_script(remote_dir: &str, question: &str, processes: &[Process]) -> String {
    format!("{} </dev/null\n", ask_command(remote_dir, question, processes))
}

fn ask_command(remote_dir: &str, question: &str, processes: &[Process]) -> String {
    let dir = quote::word(remote_dir);
    let processes: Vec<String> = processes.iter().map(ToString::to_string).collect();
    format!(
        "cd {dir} || exit 1\n\
         [ -x ./server ] || {{ echo \"no executable file 'server' in $PWD, which alone can say what \
         lives\" >&2; exit 1; }}\n\
         exec ./server {question} {}",
        processes.join(" ")
    )
}

/// Waits for the end of a server that another connection started, or for that of its own connection.
fn watch_script(remote_dir: &str, process: &Process) -> String {
    let Process { pid, start_time, namespace, .. } = process;
    let ask = ask_command(remote_dir, "--watch", &[*process]);
    format!("echo started {pid} {start_time} {namespace}\n{ask}\n")
}

/// Says of each of these processes whether it lives there.
fn look_script(remote_dir: &str, processes: &[Started]) -> String {
    let processes: Vec<Process> = processes.iter().map(Process::from).collect();
    ask_script(remote_dir, "--look", &processes)
}

/// Kills a process there.
fn end_script(remote_dir: &str, process: &Process) -> String {
    ask_script(remote_dir, "--end", &[*process])
}

/// Says which servers of a cluster, or in the directory, run there. The brackets keep the script from finding itself.
fn servers_script(remote_dir: &str, cluster: ClusterId) -> String {
    let (dir, name) = (quote::word(remote_dir), cluster.to_string());
    let (first, rest) = name.split_at(1);
    format!(
        "cd {dir} || exit 1\nuser=$(id -u)\n\
         for process in /proc/[0-9]*; do\n  \
         grep -qs -e '--[i]ncarnation' $process/cmdline || continue\n  \
         [ $user = 0 ] || grep -qs \"^Uid:[[:space:]]*$user[[:space:]]\" $process/status || continue\n  \
         if grep -qs -e '[{first}]{rest}' $process/cmdline; then echo server ${{process#/proc/}}\n  \
         elif [ $process/cwd -ef . ]; then echo server ${{process#/proc/}}\n  \
         elif ! readlink $process/cwd >/dev/null 2>&1; then echo hidden ${{process#/proc/}}; fi\ndone\necho asked\n"
    )
}

/// Kills what was started there under these names. The brackets keep the script from finding itself.
fn strays_script(names: &[Incarnation]) -> String {
    let patterns = names.iter().map(|name| {
        let name = name.to_string();
        let (first, rest) = name.split_at(1);
        format!("-e '[{first}]{rest}'")
    });
    let patterns: Vec<String> = patterns.collect();
    format!(
        "for process in /proc/[0-9]*; do\n  if grep -qs {} $process/cmdline; then kill -9 ${{process#/proc/}}; fi\ndone\nexit 0\n",
        patterns.join(" ")
    )
}

/// A server that runs on another machine.
#[derive(Debug)]
pub(crate) struct RemoteServer {
    ssh: Ssh,
    line: ServerLine,
    member: Member,
    arguments: Vec<String>,
    key: ClusterKey,
    /// An earlier coordinator has started it.
    adopted: Option<Process>,
}

/// The process there, once its script has named it.
#[derive(Debug)]
struct Pid {
    process: Cell<Option<Process>>,
    known: Notify,
}

impl Pid {
    /// What a script says of the process; what is known already stays so.
    fn note(&self, process: Process) {
        let known = self.process.get().filter(|known| known.start_time > 0);
        self.process.set(Some(known.unwrap_or(process)));
        self.known.notify_one();
    }

    /// What the process has said of itself.
    fn learn(&self, started: Option<Started>) {
        let told = started.filter(|started| {
            self.process
                .get()
                .is_some_and(|known| known.start_time == 0 && known.pid == started.pid)
        });
        if let Some(started) = told {
            self.process.set(Some((&started).into()));
        }
    }

    fn number(&self) -> Option<u32> {
        self.process.get().map(|process| process.pid)
    }
}

/// What was logged last, so that hours of the same are not.
#[derive(Debug, Default)]
struct Repeated {
    last: Option<(String, Instant)>,
}

impl Repeated {
    /// Whether this was not said for a while.
    fn is_news(&mut self, words: &str) -> bool {
        let is_old =
            self.last.as_ref().is_some_and(|(last, at)| last == words && at.elapsed() < SAID_EVERY);
        if !is_old {
            self.last = Some((words.to_owned(), Instant::now()));
        }
        !is_old
    }
}

/// How one connection that follows a server ended.
enum End {
    Exited {
        status: String,
        said: Vec<u8>,
    },
    /// The connection is gone, and with it all knowledge of the server.
    Lost {
        said: Vec<u8>,
    },
}

impl RemoteServer {
    pub(crate) fn new(
        ssh: Ssh,
        line: ServerLine,
        member: Member,
        arguments: Vec<String>,
        key: ClusterKey,
    ) -> RemoteServer {
        RemoteServer { ssh, line, member, arguments, key, adopted: None }
    }

    /// One that an earlier coordinator has started, and that said this of itself.
    pub(crate) fn adopted(ssh: Ssh, line: ServerLine, started: &Started) -> RemoteServer {
        let process = started.into();
        let (member, arguments, key) = (started.member, Vec::new(), ClusterKey::default());
        RemoteServer { ssh, line, member, arguments, key, adopted: Some(process) }
    }

    /// Starts the server, unless it is adopted, and waits for its proven end; a word on `kill` kills it. `turn` bounds how
    /// many connections are being made at once: sshd drops what is too many. `reported` is what the server
    /// has said of itself.
    pub(crate) async fn run(
        self,
        turn: Rc<Semaphore>,
        mut kill: mpsc::Receiver<()>,
        started: impl Fn(u32),
        reported: impl Fn() -> Option<Started>,
        host: impl Fn(Option<&str>),
    ) -> Exit {
        let pid = Pid { process: Cell::new(self.adopted), known: Notify::new() };
        let mut log = Repeated::default();
        let mut pause = FIRST_PAUSE;
        // Once it is to be killed, that is tried until it is proven: whoever asked for it may be gone by then.
        let mut must_die = false;
        loop {
            pid.learn(reported());
            if must_die {
                match self.kill(pid.process.get(), &mut log).await {
                    Ok(exit) => return exit,
                    Err(said) => host(Some(&said)),
                }
            } else {
                let known = pid.process.get();
                let script = match known {
                    None => start_script(&self.ssh.remote_dir, &self.line, &self.arguments),
                    Some(process) => watch_script(&self.ssh.remote_dir, &process),
                };
                let permit = turn.acquire().await.ok();
                if known.is_none() && kill.try_recv().is_ok() {
                    return given_up();
                }
                let session = self.follow(&script, &pid, permit, |now| {
                    host(None);
                    if known.is_none() {
                        started(now);
                    }
                });
                match session_or_kill(session, &mut kill, &pid).await {
                    Some(End::Exited { status, said }) => return exit(&status, &said),
                    Some(End::Lost { said }) if pid.number().is_none() => {
                        return never_started(&said);
                    }
                    Some(End::Lost { said }) => {
                        let said = last_lines(&said).unwrap_or_else(|| "no reason given".into());
                        if log.is_news(&said) {
                            tracing::warn!(
                                "the ssh connection that watches server {} on {} broke: {said}; trying again",
                                self.line.id,
                                self.line.host
                            );
                        }
                        host(Some(&said));
                    }
                    None => {
                        must_die = true;
                        continue;
                    }
                }
            }
            // The pause may be longer than a server that is to be killed is waited for.
            tokio::select! {
                () = sleep(pause) => {}
                Some(()) = kill.recv() => must_die = true,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Kills the server; its end is proven if that worked, otherwise this is why it did not.
    async fn kill(&self, process: Option<Process>, log: &mut Repeated) -> Result<Exit, String> {
        let Some(process) = process else {
            return Ok(given_up());
        };
        match self.ssh.kill(&self.line.host, &process).await {
            Ok(()) => Ok(Exit::without_dumps(describe_signal(libc::SIGKILL), None)),
            Err(error) => {
                let (id, host, pid) = (self.line.id, &self.line.host, process.pid);
                let said = error.to_string();
                if log.is_news(&said) {
                    tracing::warn!("kill server {id} (pid {pid}) on {host}: {said}; trying again");
                }
                Err(said)
            }
        }
    }

    async fn follow(
        &self,
        script: &str,
        pid: &Pid,
        mut permit: Option<SemaphorePermit<'_>>,
        started: impl Fn(u32),
    ) -> End {
        let mut command = self.ssh.command(&self.line.host, script);
        let mut child = match command.stdin(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                return End::Lost { said: SshError::Start(error).to_string().into_bytes() };
            }
        };
        // Open for as long as this coordinator follows the server: its end is how the script learns of that.
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            // A line fits into any pipe. A script that watches reads nothing; where the other end is gone,
            // the output ends, too.
            let _ = input.write_all(format!("{}\n", self.key).as_bytes()).await;
        }
        let (output, errors) = pipes(&mut child);
        let said: JoinHandle<Vec<u8>> = tokio::task::spawn_local(collect_tail(errors));
        let mut output = BufReader::new(output);
        let mut status = None;
        while let Some(line) = next_line(&mut output).await {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["started", number, ref rest @ ..] => {
                    permit = None;
                    if let Ok(number) = number.parse() {
                        started(number);
                        let number_of = |n: usize| rest.get(n).and_then(|word| word.parse().ok());
                        pid.note(Process {
                            pid: number,
                            start_time: number_of(0).unwrap_or(0),
                            namespace: PidNamespace(number_of(1).unwrap_or(0)),
                            incarnation: self.member.incarnation,
                        });
                    }
                }
                ["exited", number, code] if number.parse().ok() == pid.number() => {
                    status = Some(code.to_owned());
                    break;
                }
                // What a login prints by itself.
                _ => {}
            }
        }
        drop((permit, input));
        let ended = timeout(Duration::from_secs(5), said).await;
        let said = ended.ok().and_then(Result::ok).unwrap_or_default();
        let _ = timeout(Duration::from_secs(1), child.wait()).await;
        match status {
            Some(status) => End::Exited { status, said },
            None => End::Lost { said },
        }
    }
}

/// The end of the session, or `None` when the server is to be killed. A session that has just begun
/// is given a moment to name the process first.
async fn session_or_kill(
    session: impl Future<Output = End>,
    kill: &mut mpsc::Receiver<()>,
    pid: &Pid,
) -> Option<End> {
    tokio::pin!(session);
    tokio::select! {
        end = &mut session => return Some(end),
        Some(()) = kill.recv() => {}
    }
    if pid.number().is_none() {
        tokio::select! {
            end = &mut session => return Some(end),
            () = pid.known.notified() => {}
            () = sleep(START_MOMENT) => {}
        }
    }
    None
}

/// No process is known, and none will be reported: should a server start in this very moment, it
/// finds no coordinator and gives up by itself.
fn given_up() -> Exit {
    Exit::without_dumps("given up before it had started".into(), None)
}

/// The next whole line of at most [`MAX_LINE_BYTES`]; longer ones are skipped. `None` at the end: a line that
/// was cut there is no statement.
async fn next_line(from: &mut (impl AsyncBufRead + Unpin)) -> Option<String> {
    let mut is_rest = false;
    loop {
        let mut line = Vec::new();
        match AsyncReadExt::take(&mut *from, MAX_LINE_BYTES).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(_) | Err(_) => return None,
        }
        let is_whole = line.ends_with(b"\n");
        if is_whole && !is_rest {
            return Some(String::from_utf8_lossy(&line).into_owned());
        }
        is_rest = !is_whole;
    }
}

fn exit(status: &str, said: &[u8]) -> Exit {
    let in_order = status.parse().ok().map(is_in_order);
    let how = match status.parse::<i32>() {
        // A shell reports a signal as 128 and its number.
        Ok(code @ 129..=192) => describe_signal(code - 128),
        Ok(code) => describe_status(code),
        Err(_) => "it has ended; its exit status is not known".into(),
    };
    Exit { how, last_words: last_lines(said), in_order }
}

fn never_started(said: &[u8]) -> Exit {
    let how = "ssh could not start it".into();
    Exit::without_dumps(how, last_lines(said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::ServerId;

    fn host() -> Host {
        Host::Ssh { user: Some("kv".into()), host: "[fe80::1]".into(), port: Some(2_222) }
    }

    #[test]
    fn ssh_never_asks_and_gives_up_in_time() {
        let ssh = Ssh { config: Some("/etc/my ssh".into()), remote_dir: ".".into() };
        let words = ssh.arguments(&host(), "echo 'hi'");
        let expected = [
            "-F",
            "/etc/my ssh",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
            "-o",
            "ServerAliveInterval=5",
            "-o",
            "ServerAliveCountMax=3",
            "-o",
            "ControlMaster=no",
            "-o",
            "RemoteCommand=none",
            "-o",
            "RequestTTY=no",
            "-T",
            "-x",
            "-p",
            "2222",
            "-l",
            "kv",
            "--",
            "fe80::1",
            "exec sh -c 'echo '\\''hi'\\'''",
        ];
        assert_eq!(words, expected);
    }

    fn line() -> ServerLine {
        ServerLine {
            id: ServerId(1),
            host: host(),
            clients_port: 0,
            servers_port: 0,
            coord_port: 0,
        }
    }

    /// What sshd does with the command that ssh hands it, for a coordinator that has sent its key and lives.
    fn shell(script: &str) -> std::process::Output {
        use std::io::Write as _;
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // A script that reads nothing may have ended.
        let _ = writeln!(input, "{}", ClusterKey(0xfeed));
        let output = child.wait_with_output().unwrap();
        drop(input);
        output
    }

    #[test]
    fn a_script_whose_coordinator_is_gone_ends_and_leaves_the_server() {
        use std::io::{Read as _, Write as _};
        let dir = tempfile::tempdir().unwrap();
        // It lives until somebody removes the file.
        fake_server(dir.path(), "[ $1 = --name ] || while [ -e stay ]; do sleep 0.01; done");
        std::fs::write(dir.path().join("stay"), "").unwrap();
        let script = start_script(&dir.path().to_string_lossy(), &line(), &["-x".into()]);
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{}", ClusterKey(0xfeed)).unwrap();
        let mut output = child.stdout.take().unwrap();
        let mut said = [0; 8];
        output.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"started ");
        assert_eq!(child.try_wait().unwrap(), None);
        drop(input);
        child.wait().unwrap();
        // Nobody else holds the script's output, so ssh ends with it.
        let mut rest = String::new();
        output.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("exited"), "{rest}");
        let pid: u32 = rest.split_whitespace().next().unwrap().parse().unwrap();
        assert!(std::fs::exists(format!("/proc/{pid}/cwd")).unwrap(), "the server has ended");
        std::fs::remove_file(dir.path().join("stay")).unwrap();
    }

    #[test]
    fn a_server_has_the_key_that_was_sent_and_no_command_line_shows_it() {
        let dir = tempfile::tempdir().unwrap();
        fake_server(dir.path(), "read -r key; echo \"$key $1 $2\" >&2; exit 13");
        let script = start_script(&dir.path().to_string_lossy(), &line(), &[]);
        let key = ClusterKey(0xfeed).to_string();
        assert!(!script.contains(&key));
        let output = shell(&script);
        assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{key} --key-file -\n"));
    }

    fn fake_server(dir: &std::path::Path, body: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = dir.join("server");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_script_says_when_the_server_started_how_it_ended_and_what_it_said() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("it's here");
        std::fs::create_dir(&dir).unwrap();
        fake_server(&dir, "echo \"last words of $1\" >&2; exit 13");
        let script = start_script(&dir.to_string_lossy(), &line(), &["a 'b'".into()]);
        let output = shell(&script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words: Vec<&str> = text.split_whitespace().collect();
        let [_, pid, ..] = words[..] else { panic!("{text}") };
        // This one cannot say when it started.
        assert_eq!(words, ["started", pid, "exited", pid, "13"]);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "last words of a 'b'\n");
        let body = "[ $1 = --name ] && { echo started $2 5 6; exit 0; }; exit 13";
        fake_server(&dir, body);
        let text = String::from_utf8(shell(&script).stdout).unwrap();
        let pid = text.split_whitespace().nth(1).unwrap();
        assert_eq!(text, format!("started {pid} 5 6\nexited {pid} 13\n"));
    }

    #[test]
    fn a_missing_binary_is_named_with_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let output = shell(&start_script(&dir.path().to_string_lossy(), &line(), &[]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("no executable file 'server' in /"), "{said}");
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn a_server_runs_in_a_session_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        fake_server(dir.path(), "cut -d' ' -f1,6 /proc/$$/stat | grep \"^$$ $$$\" >&2 || exit 1");
        let output = shell(&start_script(&dir.path().to_string_lossy(), &line(), &[]));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.trim().ends_with(" 0"), "its session is not its own: {text}");
    }

    fn process() -> Process {
        "4000000:77:5:3".parse().unwrap()
    }

    fn started() -> Started {
        let first = crate::store::tests::record(1).state.servers[0].started.unwrap();
        Started { pid: 4_000_000, start_time: 77, ..first }
    }

    /// What the program that answers there may do instead of answering.
    const FAILURES: [&str; 9] = [
        "exit 2",
        "exit 0",
        "exit 1",
        "kill -9 $$",
        "echo '-sh: fork: retry: Resource temporarily unavailable' >&2; exit 254",
        // Cut, of another process, or of another start.
        "printf 'exited 4000000'; printf 'gone 4000000'",
        "printf 'exited 4000000 unknown'; printf 'gone 4000000 77'",
        "echo exited 400000 unknown; echo gone 400000 77; echo gone 4000000 78",
        "echo gone 4000000; echo exited",
    ];

    #[test]
    fn a_program_that_fails_there_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_string_lossy().into_owned();
        let ask = || {
            let text = |script: &str| String::from_utf8(shell(script).stdout).unwrap();
            let watched = text(&watch_script(&path, &process()));
            let says_exited = lines(&watched).any(|line| line.starts_with("exited 4000000 "));
            let looked = answer(&text(&look_script(&path, &[started()])), &started());
            let ended = text(&end_script(&path, &process()));
            (says_exited, looked, lines(&ended).any(|line| is_end_of(line, &process())))
        };
        assert_eq!(ask(), (false, None, false), "there is no program");
        std::fs::create_dir(dir.path().join("server")).unwrap();
        assert_eq!(ask(), (false, None, false), "there is no program, but a directory");
        std::fs::remove_dir(dir.path().join("server")).unwrap();
        for failure in FAILURES {
            fake_server(dir.path(), failure);
            assert_eq!(ask(), (false, None, false), "{failure}");
        }
        fake_server(dir.path(), "echo exited 4000000 unknown; echo gone 4000000 77");
        assert_eq!(ask(), (true, Some(false), true));
        fake_server(dir.path(), "echo lives 4000000 77");
        assert_eq!(ask(), (false, Some(true), false));
        fake_server(dir.path(), "echo lives 4000000 77; echo gone 4000000 77");
        assert_eq!(ask().1, None, "it says both");
    }

    #[test]
    fn the_program_there_is_asked_after_the_process_by_all_that_tells_it_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_string_lossy().into_owned();
        fake_server(dir.path(), "echo \"$@\"");
        let said = |script: &str| String::from_utf8(shell(script).stdout).unwrap();
        let whole = format!("{}", process());
        let watched = said(&watch_script(&path, &process()));
        assert_eq!(watched, format!("started 4000000 77 5\n--watch {whole}\n"));
        assert_eq!(said(&end_script(&path, &process())), format!("--end {whole}\n"));
        let all = [started(), Started { pid: 9, ..started() }].map(|one| Process::from(&one));
        let looked = said(&look_script(&path, &[started(), Started { pid: 9, ..started() }]));
        assert_eq!(looked, format!("--look {} {}\n", all[0], all[1]));
    }

    #[tokio::test]
    async fn a_line_that_is_cut_or_the_rest_of_a_long_one_is_no_line() {
        let long = "x".repeat(usize::try_from(MAX_LINE_BYTES).unwrap());
        let text = format!("one\n{long}exited 7 0\ntwo\nexited 7 0");
        let mut from = text.as_bytes();
        assert_eq!(next_line(&mut from).await.as_deref(), Some("one\n"));
        assert_eq!(next_line(&mut from).await.as_deref(), Some("two\n"));
        assert_eq!(next_line(&mut from).await, None);
    }

    #[test]
    fn strays_there_are_found_by_their_names_and_the_script_does_not_find_itself() {
        let names = [Incarnation(0xfeed_0000_0000_0001), Incarnation(0xfeed_0000_0000_0002)];
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read line", &names[1].to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() {
            assert!(shell(&strays_script(&names)).status.success());
        }
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn signals_are_told_from_statuses() {
        assert_eq!(exit("137", b"").how, "killed by signal 9 (SIGKILL: kill -9, or out of memory)");
        assert_eq!(exit("13", b"").how, "exit status 13: a port cannot be listened on");
        assert_eq!(exit("unknown", b"bye\n").last_words.as_deref(), Some("bye"));
    }
}
