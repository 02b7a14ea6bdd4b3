//! `--watch <pid> <start time>`: waits for the end of another process, and prints it.
//!
//! What a coordinator runs on another machine for a server that it did not start there itself. A process
//! id alone names nobody: the pidfd is opened first, then /proc is asked when the process started; from
//! then on the descriptor means that process and no other. Whoever does not read the answer any more is
//! waited for no longer, so that broken connections leave no watchers behind.

use std::io::{self, Write as _};
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Exit code: it is not known whether the process has ended.
const UNKNOWN: u8 = 1;

/// A process, named for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of proc_pid_stat(5).
    pub start_time: u64,
}

/// How watching ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Process,
    Reader,
}

/// The whole program, when it is asked to watch.
pub(crate) fn main(watched: Watched) -> ExitCode {
    match watch(watched) {
        Ok(Ended::Process) => match writeln!(io::stdout(), "exited {} unknown", watched.pid) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(UNKNOWN),
        },
        Ok(Ended::Reader) => ExitCode::from(UNKNOWN),
        Err(error) => {
            let _ = writeln!(io::stderr(), "server: watch process {}: {error}", watched.pid);
            ExitCode::from(UNKNOWN)
        }
    }
}

fn watch(watched: Watched) -> io::Result<Ended> {
    let named = i32::try_from(watched.pid).ok().and_then(Pid::from_raw);
    let Some(named) = named else { return Ok(Ended::Process) };
    let pidfd = match pidfd_open(named, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(Ended::Process),
        Err(error) => return Err(error.into()),
    };
    if start_time(&watched.pid.to_string())? != Some(watched.start_time) {
        return Ok(Ended::Process);
    }
    let stdout = io::stdout();
    let mut ends = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(&stdout, PollFlags::empty())];
    loop {
        match poll(&mut ends, None::<&Timespec>) {
            Ok(_) if ends[0].revents().contains(PollFlags::IN) => return Ok(Ended::Process),
            Ok(_) if !ends[1].revents().is_empty() => return Ok(Ended::Reader),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// When a process (`self`, or a pid) started, in clock ticks since boot: field 22 of proc_pid_stat(5).
/// `None`: there is no such process.
pub(crate) fn start_time(process: &str) -> io::Result<Option<u64>> {
    let stat = match std::fs::read_to_string(format!("/proc/{process}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The second field is the program's name in parentheses, and may itself hold both.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = after_name.split_ascii_whitespace().nth(22 - 3);
    match field.and_then(|ticks| ticks.parse().ok()) {
        Some(ticks) => Ok(Some(ticks)),
        None => Err(io::Error::other(format!("/proc/{process}/stat has no start time"))),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_start_time_is_that_of_this_process() {
        let first = start_time("self").unwrap();
        assert!(first > Some(0));
        assert_eq!(first, start_time(&std::process::id().to_string()).unwrap());
    }

    #[test]
    fn another_process_of_that_number_means_that_the_one_asked_for_is_gone() {
        let pid = std::process::id();
        let start_time = start_time("self").unwrap().unwrap();
        assert_eq!(watch(Watched { pid, start_time: start_time + 1 }).unwrap(), Ended::Process);
        for pid in [0, u32::MAX] {
            assert_eq!(watch(Watched { pid, start_time }).unwrap(), Ended::Process);
        }
    }

    #[test]
    fn the_end_of_a_process_ends_the_watch() {
        let mut child =
            Command::new("sh").args(["-c", "read line"]).stdin(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let start_time = start_time(&pid.to_string()).unwrap().unwrap();
        let watching = std::thread::spawn(move || watch(Watched { pid, start_time }).unwrap());
        assert!(!watching.is_finished());
        drop(child.stdin.take());
        assert_eq!(watching.join().unwrap(), Ended::Process);
        child.wait().unwrap();
    }
}
