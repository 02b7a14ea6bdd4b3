//! Servers on this machine that an earlier coordinator has started: held by a pidfd.
//!
//! A process id alone names nobody: the process may be gone, and another have its number. So the pidfd
//! is opened first, then /proc is asked whether it is the process that was recorded; from then on the
//! descriptor means that process and no other, whatever becomes of its number.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_protocol::control_message::Started;
use kv_protocol::{Incarnation, Member};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::{Exit, tail};

/// How long a process that the system does not show is left before it is looked for again.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// How long a killed process may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// Opens the process that said this of itself; `None`: it has ended.
///
/// # Errors
/// The system does not tell.
pub(crate) fn open(started: &Started) -> io::Result<Option<OwnedFd>> {
    let is_it = |pid: u32| {
        Ok(start_time(pid)? == Some(started.start_time)
            && has_name(pid, started.member.incarnation)?)
    };
    open_if(started.pid, is_it)
}

/// Opens a process, and looks only then whether it is the one that is meant.
fn open_if(pid: u32, is_it: impl Fn(u32) -> io::Result<bool>) -> io::Result<Option<OwnedFd>> {
    let Some(named) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let pidfd = match pidfd_open(named, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let is_living = is_it(pid)? && !has_ended(&pidfd)?;
    Ok(is_living.then_some(pidfd))
}

/// Whether a process has ended, waited for or not.
fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    ends_within(pidfd, at_once)
}

fn ends_within(pidfd: &OwnedFd, patience: Timespec) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&patience))? > 0)
}

/// When a process started: field 22 of proc_pid_stat(5); `None`: there is no such process.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let Some(stat) = read(pid, "stat")? else { return Ok(None) };
    let stat = String::from_utf8_lossy(&stat);
    // The second field is the program's name in parentheses, and may itself hold both.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(after_name.split_ascii_whitespace().nth(22 - 3).and_then(|ticks| ticks.parse().ok()))
}

/// Whether a process was started under this name.
fn has_name(pid: u32, incarnation: Incarnation) -> io::Result<bool> {
    let Some(line) = read(pid, "cmdline")? else { return Ok(false) };
    let name = incarnation.to_string();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    Ok(words.windows(2).any(|pair| pair == [&b"--incarnation"[..], name.as_bytes()]))
}

fn read(pid: u32, file: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(format!("/proc/{pid}/{file}")) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // It ended between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ends every process on this machine that was started under one of these names. They have reported to
/// nobody, so nobody knows their numbers, and they hold nothing; but they may hold ports.
pub(crate) fn end_strays(members: &[Member]) -> io::Result<usize> {
    if members.is_empty() {
        return Ok(0);
    }
    let is_one = |pid: u32| -> io::Result<bool> {
        for member in members {
            if has_name(pid, member.incarnation)? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let mut ended = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // Somebody else's process may not be ours to look at.
        if !is_one(pid).unwrap_or(false) {
            continue;
        }
        if let Some(pidfd) = open_if(pid, is_one)? {
            send_kill(&pidfd)?;
            let patience = Timespec { tv_sec: END_PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
            ends_within(&pidfd, patience)?;
            ended += 1;
        }
    }
    Ok(ended)
}

fn send_kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the end of the process that said this of itself; a word on `kill` kills it.
pub(crate) async fn wait(started: Started, errors: PathBuf, mut kill: mpsc::Receiver<()>) -> Exit {
    loop {
        match watch(&started, &mut kill).await {
            Ok(was_killed) => return exit(was_killed, &errors),
            // What is not known is not proven.
            Err(error) => tracing::warn!(
                "watch server {} (pid {}): {error}; trying again",
                started.member.server,
                started.pid
            ),
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Waits until the process has ended; whether it was killed here.
async fn watch(started: &Started, kill: &mut mpsc::Receiver<()>) -> io::Result<bool> {
    let mut was_killed = false;
    let Some(pidfd) = open(started)? else { return Ok(was_killed) };
    // SAFETY: the descriptor is open, owned by the value that is handed over, and closed by nobody else;
    // what is given back is a borrow.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
        .map_err(io::Error::from)?;
    let mut may_kill = true;
    loop {
        tokio::select! {
            ready = pidfd.readable() => {
                let mut ready = ready?;
                if has_ended(pidfd.get_ref())? {
                    return Ok(was_killed);
                }
                ready.clear_ready();
            }
            order = kill.recv(), if may_kill => {
                may_kill = order.is_some();
                if may_kill {
                    was_killed = true;
                    send_kill(pidfd.get_ref())?;
                }
            }
        }
    }
}

fn exit(was_killed: bool, errors: &Path) -> Exit {
    let how = match was_killed {
        true => super::describe_signal(libc::SIGKILL),
        false => "it has ended; an earlier coordinator had started it, so its exit status is not \
                  known"
            .into(),
    };
    let last_words = if was_killed { None } else { tail(errors, 0) };
    Exit { how, last_words }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use kv_protocol::ServerId;

    use super::*;
    use crate::store::tests::record;

    /// A process that says of itself what a server would, and ends with its standard input.
    fn child(incarnation: Incarnation) -> (Child, Started) {
        let child = Command::new("sh")
            .args(["-c", "read line", "sh", "--incarnation", &incarnation.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let start_time = start_time(pid).unwrap().unwrap();
        let member = Member { server: ServerId(0), incarnation };
        let started =
            Started { pid, start_time, member, ..record(1).state.servers[0].started.unwrap() };
        // Until it has executed sh it has the command line of this process.
        while !has_name(pid, incarnation).unwrap() {
            std::thread::yield_now();
        }
        (child, started)
    }

    #[test]
    fn a_process_with_that_number_and_another_start_or_name_is_another_one() {
        let (mut child, started) = child(Incarnation(0xabc));
        assert!(open(&started).unwrap().is_some());
        let later = Started { start_time: started.start_time + 1, ..started };
        assert!(open(&later).unwrap().is_none(), "another start");
        let member = Member { incarnation: Incarnation(0xabd), ..started.member };
        assert!(open(&Started { member, ..started }).unwrap().is_none(), "another name");
        child.kill().unwrap();
        while open(&started).unwrap().is_some() {
            std::thread::yield_now();
        }
        assert!(fs::exists(format!("/proc/{}", started.pid)).unwrap(), "nobody has waited for it");
        child.wait().unwrap();
        assert!(open(&started).unwrap().is_none(), "no such number");
        assert!(open(&Started { pid: 0, ..started }).unwrap().is_none());
        assert!(open(&Started { pid: u32::MAX, ..started }).unwrap().is_none());
    }

    #[tokio::test]
    async fn its_end_is_noticed_and_a_word_kills_it_and_nobody_else() {
        let errors = PathBuf::from("/nowhere");
        let (mut one, started) = child(Incarnation(0xb0b));
        let (mut other, other_started) = child(Incarnation(0xb0c));
        let (sender, receiver) = mpsc::channel(1);
        drop(one.stdin.take());
        let exit = wait(started, errors.clone(), receiver).await;
        assert!(exit.how.contains("is not known"), "{exit:?}");
        drop(sender);
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(()).unwrap();
        let exit = wait(Started { start_time: 1, ..other_started }, errors.clone(), receiver).await;
        assert!(exit.how.contains("is not known"), "{exit:?}");
        assert_eq!(other.try_wait().unwrap(), None, "another start time: not to be killed");
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(()).unwrap();
        let exit = wait(other_started, errors, receiver).await;
        assert!(exit.how.contains("SIGKILL"), "{exit:?}");
        assert!(!other.wait().unwrap().success());
        one.wait().unwrap();
    }

    #[test]
    fn strays_are_found_by_their_names_and_ended() {
        let (mut stray, _) = child(Incarnation(0x5747_0001));
        let (mut other, _) = child(Incarnation(0x5747_0002));
        let member = Member { server: ServerId(2), incarnation: Incarnation(0x5747_0001) };
        assert_eq!(end_strays(&[member]).unwrap(), 1);
        assert!(!stray.wait().unwrap().success());
        assert_eq!(other.try_wait().unwrap(), None);
        assert_eq!(end_strays(&[]).unwrap(), 0);
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
