//! A server on another machine: started, watched and killed over connections that may break.

use std::cell::Cell;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use kv_daemon::identity::Process;
use kv_protocol::cluster_file::ServerLine;
use kv_protocol::control_message::Started;
use kv_protocol::{ClusterKey, Member, PidNamespace};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt, AsyncWriteExt as _, BufReader};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::exit::{Exit, describe_signal, describe_status, is_in_order};
use super::ssh::scripts::{start_script, watch_script};
use super::ssh::{Ssh, SshError, collect_tail, pipes};
use crate::printable::last_lines;

/// The maximum length of a line from the script that runs a server.
const MAX_LINE_BYTES: u64 = 256;
/// The first back-off before a broken connection is established again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The time within which a server that is to be killed must report its process id.
const START_MOMENT: Duration = Duration::from_secs(3);
/// The interval at which the same failure is logged again.
const SAID_EVERY: Duration = Duration::from_secs(600);
/// The longest back-off.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A server that runs on another machine.
#[derive(Debug)]
pub(crate) struct RemoteServer {
    ssh: Ssh,
    line: ServerLine,
    member: Member,
    arguments: Vec<String>,
    key: ClusterKey,
    /// The process, if an earlier coordinator has started it.
    adopted: Option<Process>,
}

/// The remote process, once its script has reported it.
#[derive(Debug)]
struct Pid {
    process: Cell<Option<Process>>,
    known: Notify,
}

impl Pid {
    /// Records the process that a script reports, unless its start time is known already.
    fn note(&self, process: Process) {
        let known = self.process.get().filter(|known| known.start_time > 0);
        self.process.set(Some(known.unwrap_or(process)));
        self.known.notify_one();
    }

    /// Completes the record from the server's own report, if the start time is unknown.
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

/// The last logged message and its time, so that a repeated message is logged only every [`SAID_EVERY`].
#[derive(Debug, Default)]
struct Repeated {
    last: Option<(String, Instant)>,
}

impl Repeated {
    /// Returns whether this message is due to be logged. If so, records it.
    fn is_news(&mut self, words: &str) -> bool {
        let is_old =
            self.last.as_ref().is_some_and(|(last, at)| last == words && at.elapsed() < SAID_EVERY);
        if !is_old {
            self.last = Some((words.to_owned(), Instant::now()));
        }
        !is_old
    }
}

/// The end of a connection that follows a server.
enum End {
    Exited {
        status: String,
        said: Vec<u8>,
    },
    /// The connection broke, so the state of the server is unknown.
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

    /// Returns a server that an earlier coordinator has started and that sent this STARTED report.
    pub(crate) fn adopted(ssh: Ssh, line: ServerLine, started: &Started) -> RemoteServer {
        let process = started.into();
        let (member, arguments, key) = (started.member, Vec::new(), ClusterKey::default());
        RemoteServer { ssh, line, member, arguments, key, adopted: Some(process) }
    }

    /// Starts the server, unless it is adopted, and waits for its proven end. A message on `kill` kills it. `turn`
    /// limits the number of connections that are being established, because sshd drops excess ones. `started` receives
    /// the process id of a started server, and `reported` returns the server's own report. `host` receives the reason
    /// why the host cannot be queried, or `None` when it can.
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
        // A kill is retried until the end is proven, because the sender of the request may no longer exist.
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
                                "the ssh connection that watches server {} on {} broke: {said}; retrying",
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
            // A kill interrupts the pause.
            tokio::select! {
                () = sleep(pause) => {}
                Some(()) = kill.recv() => must_die = true,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Kills the server. Returns its exit if its end is proven, and otherwise the reason for the failure.
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
                    tracing::warn!(
                        "cannot kill server {id} (pid {pid}) on {host}: {said}; retrying"
                    );
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
        // This input stays open while this coordinator watches the server. The script ends when it is closed.
        let mut input = child.stdin.take();
        if let Some(input) = &mut input {
            // A line fits into any pipe, so the write does not block. A script that only watches reads nothing. If the
            // other end is closed, the output ends too.
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
                // The line is output of the login, not of the script.
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

/// Returns the end of the session, or `None` if the server is to be killed. A session that has just begun gets
/// [`START_MOMENT`] to report its process before that.
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

/// Returns the exit of a server whose process is not known. If such a process starts now, no coordinator admits it and
/// it exits.
fn given_up() -> Exit {
    Exit::without_dumps("canceled before it had started".into(), None)
}

/// Returns the next complete line of at most [`MAX_LINE_BYTES`], and skips longer ones. Returns `None` at the end
/// of the stream; a truncated last line is ignored.
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
        // A shell reports a signal as 128 plus its number.
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

    #[tokio::test]
    async fn truncated_and_overlong_lines_are_ignored() {
        let long = "x".repeat(usize::try_from(MAX_LINE_BYTES).unwrap());
        let text = format!("one\n{long}exited 7 0\ntwo\nexited 7 0");
        let mut from = text.as_bytes();
        assert_eq!(next_line(&mut from).await.as_deref(), Some("one\n"));
        assert_eq!(next_line(&mut from).await.as_deref(), Some("two\n"));
        assert_eq!(next_line(&mut from).await, None);
    }

    #[test]
    fn signals_are_distinguished_from_exit_statuses() {
        assert_eq!(exit("137", b"").how, "killed by signal 9 (SIGKILL: kill -9, or out of memory)");
        assert_eq!(exit("13", b"").how, "exit status 13: it cannot listen on a port");
        assert_eq!(exit("unknown", b"bye\n").last_words.as_deref(), Some("bye"));
    }
}
