//! Functions that measure and limit processes by pid, and cut their connections.

use std::fs;
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use kv_testkit::process::named;
pub(crate) use kv_testkit::process::{Signal, end_all_in, is_alive, running_in, signal};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use super::done;

/// Stops a process with SIGSTOP and waits until each of its threads has stopped.
pub(crate) fn pause(pid: u32) {
    signal(pid, Signal::STOP);
    let stands = |thread: fs::DirEntry| {
        fs::read_to_string(thread.path().join("stat"))
            .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
    };
    super::wait_until("every thread to stop", super::TIMEOUT, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("read /proc/PID/task");
        threads.flatten().all(stands)
    });
}

/// Returns a process's command line with spaces between the arguments.
pub(crate) fn command_line(pid: u32) -> String {
    kv_testkit::process::arguments(pid).iter().fold(String::new(), |line, word| line + word + " ")
}

/// Returns all processes whose executable is in this directory.
pub(crate) fn running_from(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    kv_testkit::process::all()
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(&directory))
                && is_alive(*pid)
        })
        .collect()
}

/// Returns the size of a process's private writable mappings in bytes (`VmData`), including memory
/// that was never touched.
#[track_caller]
pub(crate) fn data_bytes(pid: u32) -> u64 {
    done(kv_testkit::process::memory(pid, "VmData:"))
}

/// Returns a process's resident memory in bytes.
#[track_caller]
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    done(kv_testkit::process::resident_bytes(pid))
}

/// Returns the number of open descriptors of a process.
pub(crate) fn open_descriptors(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("read /proc/PID/fd").count() as u64
}

/// Limits the number of open descriptors of another process.
pub(crate) fn limit_descriptors(pid: u32, most: u64) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    prlimit(Some(named(pid)), Resource::Nofile, limit).expect("limit another process");
}

/// Forbids a process of this user to start further threads and processes (`ulimit -u`). This has no effect on root's.
pub(crate) fn forbid_threads(pid: u32, user: u32) {
    let mut command = Command::new("prlimit");
    command.args(["--nproc=0", "--pid", &pid.to_string()]);
    if rustix::process::geteuid().is_root() {
        // Even root may not limit processes of others everywhere.
        command.uid(user).gid(user);
    }
    assert!(command.status().expect("run prlimit").success(), "prlimit of {pid}");
}

/// Limits the size of files that another process can write, as a full disk would. `None` removes the limit.
pub(crate) fn limit_file_size(pid: u32, most: Option<u64>) {
    use rustix::process::{Resource, Rlimit, prlimit};
    let limit = Rlimit { current: most, maximum: None };
    prlimit(Some(named(pid)), Resource::Fsize, limit).expect("limit another process");
}

/// Shuts down every connection of a process to this remote port, like a network failure: both ends receive the end of
/// input. Returns the number of connections.
pub(crate) fn cut_connections(pid: u32, remote_port: u16) -> usize {
    let sockets = borrow_connections(pid, remote_port);
    sockets.iter().filter(|socket| socket.shutdown(Shutdown::Both).is_ok()).count()
}

/// Returns the number of connections of a process to this remote port.
pub(crate) fn connections(pid: u32, remote_port: u16) -> usize {
    borrow_connections(pid, remote_port).len()
}

/// Duplicates the descriptors of another process's connections with pidfd_getfd(2), which needs the permission to trace
/// that process.
fn borrow_connections(pid: u32, remote_port: u16) -> Vec<TcpStream> {
    let pidfd = rustix::process::pidfd_open(named(pid), PidfdFlags::empty()).expect("open a pidfd");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("read /proc/PID/fd");
    descriptors
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // The descriptor may have been closed meanwhile.
        .filter_map(|fd| rustix::process::pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).ok())
        .map(TcpStream::from)
        .filter(|socket| socket.peer_addr().is_ok_and(|peer| peer.port() == remote_port))
        .collect()
}

/// Returns the IPv4 TCP ports on which a process listens.
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

/// Returns true if this machine allows [`cut_connections`]; some containers forbid it.
pub(crate) fn may_cut_connections(pid: u32) -> bool {
    let pidfd = rustix::process::pidfd_open(named(pid), PidfdFlags::empty()).expect("open a pidfd");
    rustix::process::pidfd_getfd(&pidfd, 0, PidfdGetfdFlags::empty()).is_ok()
}

/// Raises this process's soft limit of open files to its hard limit.
pub(crate) fn raise_own_descriptor_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).expect("raise the soft limit to the hard one");
    limit.current.unwrap_or(u64::MAX)
}

/// Returns true if a process has ended, whether or not its parent has waited for it.
pub(crate) fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with('Z'))
}
