//! Queries about processes. A coordinator runs them on another machine, with this executable in place of a server.
//!
//! | argument | does | prints |
//! |---|---|---|
//! | `--watch PROCESS` | waits for its end | `exited PID unknown` |
//! | `--look PROCESS...` | checks whether each is alive | `lives PID START_TIME` or `gone PID START_TIME` |
//! | `--end PROCESS` | kills it and waits for its end | `gone PID START_TIME` |
//! | `--name PID` | finds its start time and PID namespace | `started PID START_TIME NAMESPACE` |
//! | `--dumped INCARNATION FILE...` | checks which dumps a process has completed | `dumped CLUSTER GROUP SERVER` |
//!
//! Each line states a fact that is proven by the rules of [`kv_daemon::identity`]. If a fact cannot be proven, its line
//! is not printed, the reason goes to standard error, and the exit code is 1. `--watch` also ends when the other end of
//! its standard input or output closes. So it does not outlive the coordinator that started it.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use kv_core::dump::DumpOrigin;
use kv_daemon::identity::{self, Process};
use kv_protocol::ids::Incarnation;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::dumped;

/// The exit code if a query fails, for example because the state of a process is unknown.
const UNKNOWN: u8 = 1;
/// The time within which a killed process must end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// A query about processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Waits for the end of this process.
    Watch(Process),
    /// Checks whether these processes are alive.
    Look(Vec<Process>),
    /// Kills this process and waits for its end.
    End(Process),
    /// Prints the start time and the PID namespace of the process with this id.
    Name(u32),
    /// Prints those of these dumps that the process with this incarnation has completed.
    Dumped(Incarnation, Vec<PathBuf>),
}

/// The reason why watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Process,
    /// The reader of the output, or the other end of the input, has closed.
    Reader,
}

/// Runs a query; returns the exit code of the program.
pub(crate) fn main(question: Question) -> ExitCode {
    let responded = match question {
        Question::Watch(process) => respond_to_watch(&process),
        Question::Look(processes) => look(&processes),
        Question::End(process) => end(&process),
        Question::Dumped(writer, files) => dumped(writer, &files),
        Question::Name(pid) => identity::name(pid).and_then(|(start_time, namespace)| {
            say(&format!("started {pid} {start_time} {namespace}"))
        }),
    };
    match responded {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "server: {error}");
            ExitCode::from(UNKNOWN)
        }
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()
}

fn respond_to_watch(process: &Process) -> io::Result<()> {
    match watch(process)? {
        Ended::Process => say(&format!("exited {} unknown", process.pid)),
        Ended::Reader => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

fn look(processes: &[Process]) -> io::Result<()> {
    let mut unknown = None;
    for process in processes {
        let Process { pid, start_time, .. } = process;
        match identity::find(process) {
            Ok(Some(_)) => say(&format!("lives {pid} {start_time}"))?,
            Ok(None) => say(&format!("gone {pid} {start_time}"))?,
            Err(error) => unknown = unknown.or(Some(error)),
        }
    }
    unknown.map_or(Ok(()), Err)
}

fn dumped(writer: Incarnation, files: &[PathBuf]) -> io::Result<()> {
    let mut unknown = None;
    for file in files {
        match dumped::by(writer, file) {
            Ok(Some(DumpOrigin { cluster, group, writer, .. })) => {
                say(&format!("dumped {cluster} {group} {}", writer.server))?;
            }
            Ok(None) => {}
            Err(error) => unknown = unknown.or(Some(error)),
        }
    }
    unknown.map_or(Ok(()), Err)
}

fn end(process: &Process) -> io::Result<()> {
    let Process { pid, start_time, incarnation, .. } = *process;
    if let Some(pidfd) = identity::find(process)? {
        // After a reboot the same numbers may belong to another process.
        if !identity::has_name(pid, incarnation)? && !identity::has_ended(&pidfd)? {
            return Err(io::Error::other(format!(
                "process {pid} is not server {incarnation}; not killed"
            )));
        }
        identity::kill(&pidfd)?;
        if !identity::ends_within(&pidfd, END_TIMEOUT)? {
            let words =
                format!("process {pid} was killed, but has not ended within {END_TIMEOUT:?}");
            return Err(io::Error::other(words));
        }
    }
    say(&format!("gone {pid} {start_time}"))
}

fn watch(process: &Process) -> io::Result<Ended> {
    watch_for(process, &io::stdin())
}

/// Waits for the end of a process, or until the other end of `input` or the reader of the output closes.
fn watch_for(process: &Process, input: &impl AsFd) -> io::Result<Ended> {
    let Some(pidfd) = identity::find(process)? else { return Ok(Ended::Process) };
    let stdout = io::stdout();
    let mut ends = [
        PollFd::new(&pidfd, PollFlags::IN),
        // Errors and hang-ups are always reported (poll(2)); /dev/null has none.
        PollFd::new(&stdout, PollFlags::empty()),
        PollFd::new(input, PollFlags::RDHUP),
    ];
    loop {
        match poll(&mut ends, None::<&Timespec>) {
            Ok(_) if ends[0].revents().contains(PollFlags::IN) => return Ok(Ended::Process),
            Ok(_) if ends[1..].iter().any(|end| !end.revents().is_empty()) => {
                return Ok(Ended::Reader);
            }
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use kv_protocol::Incarnation;

    use super::*;

    #[test]
    fn the_end_of_a_process_ends_the_watch_and_a_kill_needs_its_incarnation() {
        let mut child = Command::new("sh")
            .args(["-c", "read line; exit 0"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let (start_time, namespace) = identity::name(pid).unwrap();
        let process = Process { pid, start_time, namespace, incarnation: Incarnation(5) };
        end(&process).unwrap_err();
        let (input, writer) = std::io::pipe().unwrap();
        let watching = std::thread::spawn(move || watch_for(&process, &input).unwrap());
        assert!(!watching.is_finished());
        drop(child.stdin.take());
        assert_eq!(watching.join().unwrap(), Ended::Process);
        assert!(child.wait().unwrap().success(), "it was not killed");
        drop(writer);
        let earlier = Process { start_time: start_time - 1, ..process };
        assert_eq!(watch(&earlier).unwrap(), Ended::Process);
        end(&process).unwrap();
    }

    #[test]
    fn a_watch_ends_when_its_standard_input_is_closed() {
        let pid = std::process::id();
        let (start_time, namespace) = identity::name(pid).unwrap();
        let process = Process { pid, start_time, namespace, incarnation: Incarnation(5) };
        let (input, mut writer) = std::io::pipe().unwrap();
        // Bytes that were written and not read do not prolong the watch.
        writer.write_all(b"a key\n").unwrap();
        drop(writer);
        assert_eq!(watch_for(&process, &input).unwrap(), Ended::Reader);
    }
}
