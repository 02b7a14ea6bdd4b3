//! Processes by pid: find, signal, measure.

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::time::Duration;

pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, kill_process};

use super::poll;

/// Sends a signal; that the process is gone already is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(named(pid), signal);
}

/// Stops a process as if it hung, until it is sent CONT, and waits until each of its threads stands.
pub(crate) fn pause(pid: u32) {
    signal(pid, Signal::STOP);
    let stands = |thread: fs::DirEntry| {
        fs::read_to_string(thread.path().join("stat"))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    };
    super::wait_until("every thread to stand", super::PATIENCE, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("read /proc/PID/task");
        threads.flatten().all(stands)
    });
}

fn named(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid is a positive number")
}

/// Whether a process exists and has not ended (one that nobody has waited for yet has ended).
///
/// The first thread of a killed process may have ended before the others, which still hold its files and locks:
/// every thread counts.
pub(crate) fn is_alive(pid: u32) -> bool {
    let has_ended =
        |stat: &str| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok())
        .any(|stat| !has_ended(&stat))
}

/// The words of a process's command line, with spaces between them.
pub(crate) fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}

/// All processes that run in this directory: a cluster's servers, whoever their parent is by now.
pub(crate) fn running_in(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let processes = fs::read_dir("/proc").expect("read /proc");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
                && is_alive(*pid)
        })
        .collect()
}

/// Kills all processes that run in this directory, and waits until none is left.
pub(crate) fn end_all_in(directory: &Path) {
    poll(Duration::from_secs(10), || {
        let left = running_in(directory);
        for pid in &left {
            signal(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
}

/// All processes whose program lies in this directory.
pub(crate) fn running_from(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let processes = fs::read_dir("/proc").expect("read /proc");
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(&directory))
                && is_alive(*pid)
        })
        .collect()
}

/// All processes below this one, zombies too.
pub(crate) fn descendants(ancestor: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = fs::read_dir("/proc")
        .expect("read /proc")
        .filter_map(|entry| {
            let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // After the name, which may hold anything: the state, the parent.
            let (_, rest) = stat.rsplit_once(") ")?;
            Some((pid, rest.split(' ').nth(1)?.parse().ok()?))
        })
        .collect();
    let mut found = vec![ancestor];
    let mut looked_at = 0;
    while let Some(parent) = found.get(looked_at).copied() {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        looked_at += 1;
    }
    found.split_off(1)
}

/// What a process has mapped and may use without asking again, in bytes (`VmData`): memory that was
/// reserved and never touched counts.
pub(crate) fn data_bytes(pid: u32) -> u64 {
    kilobytes(pid, "VmData:") << 10
}

/// What a process holds in memory, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    kilobytes(pid, "VmRSS:") << 10
}

fn kilobytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read /proc/PID/status");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a known field");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("kilobytes")
}

/// How many descriptors a process has open.
pub(crate) fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("read /proc/PID/fd").count() as u64
}

/// Lets another process have so many descriptors open and no more.
pub(crate) fn limit_descriptors(pid: u32, most: u64) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    prlimit(Some(named(pid)), Resource::Nofile, limit).expect("limit another process");
}

/// Lets no file of another process grow beyond so many bytes, as a full disk does; `None`: without a bound.
pub(crate) fn limit_file_size(pid: u32, most: Option<u64>) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let limit = Rlimit { current: most, maximum: None };
    prlimit(Some(named(pid)), Resource::Fsize, limit).expect("limit another process");
}

/// Cuts every connection of a process to this port of this machine, as a failing network would: both
/// ends see the end of the stream. Returns how many there were.
pub(crate) fn cut_connections(pid: u32, remote_port: u16) -> usize {
    let sockets = borrow_connections(pid, remote_port);
    sockets.iter().filter(|socket| socket.shutdown(Shutdown::Both).is_ok()).count()
}

/// How many connections a process has to this port of this machine.
pub(crate) fn connections(pid: u32, remote_port: u16) -> usize {
    borrow_connections(pid, remote_port).len()
}

/// The connections of another process, by second descriptors (pidfd_getfd(2)), which takes the right
/// to trace it.
fn borrow_connections(pid: u32, remote_port: u16) -> Vec<TcpStream> {
    let pidfd = rustix::process::pidfd_open(named(pid), PidfdFlags::empty()).expect("open a pidfd");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("read /proc/PID/fd");
    descriptors
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // It may have been closed meanwhile.
        .filter_map(|fd| rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).ok())
        .map(TcpStream::from)
        .filter(|socket| socket.peer_addr().is_ok_and(|peer| peer.port() == remote_port))
        .collect()
}

/// The TCP ports that a process listens on, IPv4.
pub(crate) fn listening_ports(pid: u32) -> Vec<u16> {
    const LISTEN: &str = "0A";
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("read /proc/PID/fd");
    let sockets: Vec<String> = descriptors
        .filter_map(|entry| {
            fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok()
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).expect("read /proc/PID/net/tcp");
    let port = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_its = sockets.contains(&format!("socket:[{}]", fields.get(9)?));
        let is_open = fields[3] == LISTEN && is_its;
        u16::from_str_radix(fields[1].rsplit_once(':')?.1, 16).ok().filter(|_| is_open)
    };
    table.lines().filter_map(port).collect()
}

/// Whether [`cut_connections`] is allowed on this machine; some containers forbid it.
pub(crate) fn may_cut_connections(pid: u32) -> bool {
    let pidfd = rustix::process::pidfd_open(named(pid), PidfdFlags::empty()).expect("open a pidfd");
    rustix::process::pidfd_getfd(&pidfd, 0, PidfdGetfdFlags::empty()).is_ok()
}

/// Lets this process open as many files as it may.
pub(crate) fn raise_own_descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("raise the soft limit to the hard one");
    limit.current.unwrap_or(u64::MAX)
}
