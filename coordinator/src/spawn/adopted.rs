//! Servers on this machine that an earlier coordinator has started, held by a pidfd.
//!
//! [`kv_daemon::identity`] finds a process. The pidfd refers only to that process, even if the process id is reused. An
//! unknown state does not prove that the process has ended.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use kv_daemon::identity;
use kv_protocol::Member;
use kv_protocol::control_message::Started;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::exit::{Exit, describe_signal, tail_apart};

/// The pause before a process of unknown state is looked up again.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// The timeout for the end of a killed process.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the process that sent this STARTED report. Returns `None` if it is proven to have ended.
///
/// # Errors
/// The state of the process is unknown.
pub(crate) fn open(started: &Started) -> io::Result<Option<OwnedFd>> {
    let Some(pidfd) = identity::find(&started.into())? else { return Ok(None) };
    let is_it = identity::has_name(started.pid, started.member.incarnation);
    if identity::has_ended(&pidfd)? {
        return Ok(None);
    }
    match is_it? {
        true => Ok(Some(pidfd)),
        false => Err(io::Error::other(
            "its start time is the recorded one, but its incarnation is another",
        )),
    }
}

/// Kills every process on this machine that was started as one of these members, and returns their number. A process
/// that has not reported has no known id, so processes are found by the incarnation in their command lines.
///
/// # Errors
/// The processes cannot be listed, or one cannot be killed. If killed processes did not end in time, the error names
/// them; all other processes were killed.
pub(crate) fn end_strays(members: &[Member]) -> io::Result<usize> {
    if members.is_empty() {
        return Ok(0);
    }
    // The process of another user may not be readable.
    let is_one = |pid: u32| {
        members.iter().any(|member| identity::has_name(pid, member.incarnation).unwrap_or(false))
    };
    let (mut ended, mut remaining) = (0, Vec::new());
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let named = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(named) = named.filter(|_| is_one(pid)) else { continue };
        let pidfd = match pidfd_open(named, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        // From now on, the descriptor refers to one process. The id may have been reused before it was opened.
        if is_one(pid) {
            identity::kill(&pidfd)?;
            match identity::ends_within(&pidfd, END_TIMEOUT)? {
                true => ended += 1,
                false => remaining.push(pid.to_string()),
            }
        }
    }
    if remaining.is_empty() {
        return Ok(ended);
    }
    let (pids, seconds) = (remaining.join(", "), END_TIMEOUT.as_secs());
    Err(io::Error::other(format!("killed, but not ended within {seconds} s: pid {pids}")))
}

/// Waits for the end of the process that sent this STARTED report, and kills it on a message on `kill`.
pub(crate) async fn wait(started: Started, errors: PathBuf, mut kill: mpsc::Receiver<()>) -> Exit {
    let mut said = String::new();
    loop {
        match watch(&started, &mut kill).await {
            Ok(was_killed) => return exit(was_killed, errors).await,
            // An unknown state proves nothing, so the watch is retried. A reason that does not change is logged once.
            Err(error) => {
                let reason = error.to_string();
                if said != reason {
                    let (id, pid) = (started.member.server, started.pid);
                    tracing::warn!("cannot watch server {id} (pid {pid}): {reason}; retrying");
                    said = reason;
                }
            }
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Waits until the process has ended, and returns whether it was killed here.
async fn watch(started: &Started, kill: &mut mpsc::Receiver<()>) -> io::Result<bool> {
    let mut was_killed = false;
    let process = *started;
    let opened = tokio::task::spawn_blocking(move || open(&process)).await;
    let Some(pidfd) = opened.map_err(io::Error::other)?? else { return Ok(was_killed) };
    // SAFETY: the descriptor is open, owned by the value that is moved in, and closed by no other code; `get_ref`
    // returns only a borrow of it.
    let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
        .map_err(io::Error::from)?;
    let mut may_kill = true;
    loop {
        tokio::select! {
            ready = pidfd.readable() => {
                let mut ready = ready?;
                if identity::has_ended(pidfd.get_ref())? {
                    return Ok(was_killed);
                }
                ready.clear_ready();
            }
            order = kill.recv(), if may_kill => {
                may_kill = order.is_some();
                if may_kill {
                    was_killed = true;
                    identity::kill(pidfd.get_ref())?;
                }
            }
        }
    }
}

async fn exit(was_killed: bool, errors: PathBuf) -> Exit {
    let how = match was_killed {
        true => describe_signal(libc::SIGKILL),
        false => "it has ended; its exit status is not known, because an earlier coordinator had started it"
            .into(),
    };
    let last_words = if was_killed { None } else { tail_apart(errors, 0).await };
    Exit { how, last_words, in_order: was_killed.then_some(false) }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use kv_protocol::{Incarnation, ServerId};

    use super::*;
    use crate::store::tests::record;

    /// Starts a process with the arguments of a server, which ends when its standard input is closed.
    fn child(incarnation: Incarnation) -> (Child, Started) {
        let child = Command::new("sh")
            .args(["-c", "read line", "sh", "--incarnation", &incarnation.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let (start_time, namespace) = identity::name(pid).unwrap();
        let member = Member { server: ServerId(0), incarnation };
        let first = record(1).state.servers[0].started.unwrap();
        let started = Started { pid, start_time, namespace, member, ..first };
        // Before the exec of sh, the child has the command line of this process.
        while !identity::has_name(pid, incarnation).unwrap_or(false) {
            std::thread::yield_now();
        }
        (child, started)
    }

    #[test]
    fn a_reused_process_id_is_recognized_and_an_unknown_state_is_an_error() {
        let (mut child, started) = child(Incarnation(0xabc));
        assert!(open(&started).unwrap().is_some());
        let later = Started { start_time: started.start_time + 1, ..started };
        assert!(open(&later).unwrap().is_none(), "another start");
        let member = Member { incarnation: Incarnation(0xabd), ..started.member };
        open(&Started { member, ..started }).unwrap_err();
        let elsewhere = kv_protocol::PidNamespace(started.namespace.0 + 1);
        open(&Started { namespace: elsewhere, ..started }).unwrap_err();
        open(&Started { namespace: elsewhere, pid: 4_000_000, ..started }).unwrap_err();
        child.kill().unwrap();
        // A process that is ending may have lost its command line, which proves nothing.
        while !matches!(open(&started), Ok(None)) {
            std::thread::yield_now();
        }
        assert!(
            fs::exists(format!("/proc/{}", started.pid)).unwrap(),
            "it has not been reaped yet"
        );
        child.wait().unwrap();
        assert!(open(&started).unwrap().is_none(), "no process has this id");
        open(&Started { pid: 0, ..started }).unwrap_err();
    }

    #[tokio::test]
    async fn an_exit_is_noticed_and_a_kill_request_kills_only_its_process() {
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
    fn strays_are_found_by_incarnation_and_killed() {
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
