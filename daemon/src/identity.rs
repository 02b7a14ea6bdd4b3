//! The identity of a process, and the proof that the process has ended.
//!
//! A process id alone identifies nothing: the process may have ended and its id may be reused. Together with its start
//! time and its PID namespace, the id is unique until the machine reboots. Only a positive result of the system proves
//! that a process has ended: no process has the id, the process with the id has exited, or it is another process.
//! Another process has another start time or, if the start time is unknown, another incarnation in its command line.
//! After any failure (no /proc, no permission, no memory, another namespace) the state is unknown.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt as _;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use kv_protocol::control_message::Started;
use kv_protocol::{Incarnation, PidNamespace};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// The identity of a process, unique until its machine reboots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// The process id.
    pub pid: u32,
    /// The start time in clock ticks since boot: field 22 of proc_pid_stat(5). 0 if unknown.
    pub start_time: u64,
    /// The PID namespace of the id. 0 if unknown.
    pub namespace: PidNamespace,
    /// The incarnation, as passed in the command line.
    pub incarnation: Incarnation,
}

impl From<&Started> for Process {
    fn from(started: &Started) -> Process {
        let Started { pid, start_time, namespace, member, .. } = *started;
        Process { pid, start_time, namespace, incarnation: member.incarnation }
    }
}

/// Formats the identity as an argument: `<pid>:<start time>:<namespace>:<incarnation>`.
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process { pid, start_time, namespace, incarnation } = self;
        write!(f, "{pid}:{start_time}:{namespace}:{incarnation}")
    }
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Process, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let read = || {
            let [pid, start_time, namespace, incarnation] = parts[..] else { return None };
            Some(Process {
                pid: pid.parse().ok()?,
                start_time: start_time.parse().ok()?,
                namespace: PidNamespace(namespace.parse().ok()?),
                incarnation: incarnation.parse().ok()?,
            })
        };
        read().ok_or_else(|| format!("`{text}` is not PID:START_TIME:NAMESPACE:INCARNATION"))
    }
}

/// Returns a descriptor of the process if it is running, or `None` if it is proven to have ended.
///
/// # Errors
/// The state is unknown: the process belongs to another PID namespace, its id is invalid, or /proc or the process
/// cannot be examined.
pub fn find(process: &Process) -> io::Result<Option<OwnedFd>> {
    find_in(process, Path::new("/proc"))
}

fn find_in(process: &Process, proc: &Path) -> io::Result<Option<OwnedFd>> {
    let unknown = |reason: String| io::Error::other(reason);
    let own = namespace_in(proc)?;
    if process.namespace != own {
        return Err(unknown(format!(
            "pid {} belongs to PID namespace {}, but this program runs in {own}, where that number has no \
             meaning",
            process.pid, process.namespace
        )));
    }
    let named = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let named = named.ok_or_else(|| unknown(format!("{} is not a process id", process.pid)))?;
    let pidfd = match pidfd_open(named, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let is_it = match process.start_time {
        0 => has_name_in(proc, process.pid, process.incarnation),
        start_time => start_time_in(proc, &process.pid.to_string()).map(|at| at == start_time),
    };
    match is_it {
        _ if has_ended(&pidfd)? => Ok(None),
        Ok(true) => Ok(Some(pidfd)),
        // The process id has been reused.
        Ok(false) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the start time of a running process of this PID namespace, and the namespace.
///
/// # Errors
/// The start time cannot be read, or /proc belongs to another namespace.
pub fn name(pid: u32) -> io::Result<(u64, PidNamespace)> {
    Ok((start_time(&pid.to_string())?, own_namespace()?))
}

/// Returns the start time of a process (`self`, or a pid) in clock ticks since boot: field 22 of proc_pid_stat(5).
///
/// # Errors
/// The file `stat` of the process cannot be read or parsed. A missing file does not prove that the process has ended.
pub fn start_time(process: &str) -> io::Result<u64> {
    start_time_in(Path::new("/proc"), process)
}

fn start_time_in(proc: &Path, process: &str) -> io::Result<u64> {
    let path = proc.join(process).join("stat");
    let failed = |what: String| io::Error::other(format!("{}: {what}", path.display()));
    let stat = fs::read(&path).map_err(|error| failed(error.to_string()))?;
    let stat = String::from_utf8_lossy(&stat);
    // The second field is the program's name in parentheses; the name may contain parentheses and spaces. A line
    // without its line end may end with a truncated number.
    let whole = stat.strip_suffix('\n').and_then(|stat| stat.rsplit_once(')'));
    let field = whole.and_then(|(_, rest)| rest.split_ascii_whitespace().nth(22 - 3));
    let ticks = field.and_then(|ticks| ticks.parse().ok()).filter(|ticks| *ticks > 0);
    ticks.ok_or_else(|| failed("it has no start time".to_owned()))
}

/// Returns whether the command line of a process contains `--incarnation` with this value.
///
/// # Errors
/// The command line cannot be read or is incomplete. It is empty for a process that has just ended or is in exec.
pub fn has_name(pid: u32, incarnation: Incarnation) -> io::Result<bool> {
    has_name_in(Path::new("/proc"), pid, incarnation)
}

fn has_name_in(proc: &Path, pid: u32, incarnation: Incarnation) -> io::Result<bool> {
    let line = fs::read(proc.join(pid.to_string()).join("cmdline"))?;
    if line.last() != Some(&0) {
        return Err(io::Error::other(format!("the command line of process {pid} is incomplete")));
    }
    let name = incarnation.to_string();
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    Ok(words.windows(2).any(|pair| pair == [&b"--incarnation"[..], name.as_bytes()]))
}

/// Returns the PID namespace of this process. It is identified by its inode and the start time of its first process (0
/// if unknown), because inodes are reused.
///
/// # Errors
/// /proc cannot be read, or belongs to another namespace.
pub fn own_namespace() -> io::Result<PidNamespace> {
    namespace_in(Path::new("/proc"))
}

fn namespace_in(proc: &Path) -> io::Result<PidNamespace> {
    let failed = |what: &str, error: io::Error| {
        io::Error::new(error.kind(), format!("{}/{what}: {error}", proc.display()))
    };
    let itself = fs::read_link(proc.join("self")).map_err(|error| failed("self", error))?;
    if itself.to_str() != Some(&std::process::id().to_string()) {
        return Err(io::Error::other(format!(
            "{} shows the processes of another PID namespace; mount the proc of this namespace there",
            proc.display()
        )));
    }
    let metadata =
        fs::metadata(proc.join("self/ns/pid")).map_err(|error| failed("self/ns/pid", error))?;
    let first = start_time_in(proc, "1").unwrap_or(0);
    // Inode numbers of namespaces have 32 bits. The lower 32 bits of the ticks cover more than a year.
    Ok(PidNamespace((metadata.st_ino() << 32) | (first & u64::from(u32::MAX))))
}

/// Returns whether a process has ended, reaped or not.
///
/// # Errors
/// The error of poll(2).
pub fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    ends_within(pidfd, Duration::ZERO)
}

/// Waits for the end of a process up to a timeout, and returns whether the process has ended. A signal that interrupts
/// the wait restarts the timeout.
///
/// # Errors
/// The error of poll(2).
pub fn ends_within(pidfd: &OwnedFd, timeout: Duration) -> io::Result<bool> {
    let tv_sec = timeout.as_secs().try_into().unwrap_or(i64::MAX);
    let timeout = Timespec { tv_sec, tv_nsec: timeout.subsec_nanos().into() };
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends SIGKILL to a process, without waiting for its end. A process that has already ended is not an error.
///
/// # Errors
/// The error of pidfd_send_signal(2), such as a missing permission.
pub fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const NAME: Incarnation = Incarnation(0xabc);

    /// Starts a process that ends when its standard input is closed.
    fn child() -> (Child, Process) {
        let child = Command::new("sh")
            .args(["-c", "read line", "sh", "--incarnation", &NAME.to_string()])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let (start_time, namespace) = name(child.id()).unwrap();
        let process = Process { pid: child.id(), start_time, namespace, incarnation: NAME };
        // Until the child executes sh, it has the command line of this process.
        while !has_name(process.pid, NAME).unwrap_or(false) {
            std::thread::yield_now();
        }
        (child, process)
    }

    /// Creates a /proc that contains only the files that identify a namespace.
    fn bare_proc() -> (tempfile::TempDir, PidNamespace) {
        let dir = tempfile::tempdir().unwrap();
        let own = std::process::id().to_string();
        fs::create_dir_all(dir.path().join(&own).join("ns")).unwrap();
        symlink(&own, dir.path().join("self")).unwrap();
        fs::write(dir.path().join("self/ns/pid"), "").unwrap();
        let namespace = namespace_in(dir.path()).unwrap();
        (dir, namespace)
    }

    #[test]
    fn an_unused_process_id_or_another_start_time_proves_the_end() {
        let (mut child, process) = child();
        assert!(find(&process).unwrap().is_some());
        let later = Process { start_time: process.start_time + 1, ..process };
        assert!(find(&later).unwrap().is_none(), "another start time");
        let unknown = Process { start_time: 0, ..process };
        assert!(find(&unknown).unwrap().is_some(), "found by its incarnation");
        let other = Process { incarnation: Incarnation(1), ..unknown };
        assert!(find(&other).unwrap().is_none(), "another incarnation has this id");
        child.kill().unwrap();
        while find(&process).unwrap().is_some() {
            std::thread::yield_now();
        }
        assert!(
            fs::exists(format!("/proc/{}", process.pid)).unwrap(),
            "it has not been reaped yet"
        );
        assert!(find(&unknown).unwrap().is_none());
        child.wait().unwrap();
        assert!(find(&process).unwrap().is_none(), "no process has this id");
    }

    #[test]
    fn a_failed_lookup_proves_nothing() {
        let (mut child, process) = child();
        let forged = PidNamespace(process.namespace.0 ^ 1);
        for unknown in [
            Process { namespace: forged, ..process },
            Process { namespace: PidNamespace(0), ..process },
            Process { namespace: forged, pid: 4_000_000, ..process },
            Process { pid: 0, ..process },
            Process { pid: u32::MAX, ..process },
        ] {
            find(&unknown).unwrap_err();
        }
        find_in(&process, Path::new("/nowhere")).unwrap_err();
        // A /proc without this process, then one with truncated files, then one of another namespace.
        let (proc, namespace) = bare_proc();
        let process = Process { namespace, ..process };
        find_in(&process, proc.path()).unwrap_err();
        find_in(&Process { start_time: 0, ..process }, proc.path()).unwrap_err();
        let its = proc.path().join(process.pid.to_string());
        fs::create_dir(&its).unwrap();
        let whole = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
        let ticks = process.start_time.to_string();
        let at = whole.rfind(&format!(" {ticks} ")).unwrap() + 1 + ticks.len();
        for cut in [0, 5, at - ticks.len(), at - 1, at] {
            fs::write(its.join("stat"), &whole[..cut]).unwrap();
            let found = find_in(&process, proc.path());
            assert!(found.is_err(), "cut after {cut} bytes: {found:?}");
        }
        for cmdline in ["", "sh", "sh\0--incarn"] {
            fs::write(its.join("cmdline"), cmdline).unwrap();
            find_in(&Process { start_time: 0, ..process }, proc.path()).unwrap_err();
        }
        fs::write(its.join("stat"), &whole).unwrap();
        assert!(find_in(&process, proc.path()).unwrap().is_some());
        fs::remove_file(proc.path().join("self")).unwrap();
        symlink("1", proc.path().join("self")).unwrap();
        find_in(&process, proc.path()).unwrap_err();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_process_is_parsed_only_from_its_written_form() {
        let process = Process {
            pid: 7,
            start_time: u64::MAX,
            namespace: PidNamespace(u64::MAX - 1),
            incarnation: NAME,
        };
        assert_eq!(process.to_string().parse(), Ok(process));
        for wrong in ["", "1", "1:2:3", "1:2:3:4:5", "x:2:3:4", "-1:2:3:4", "4294967296:2:3:4"] {
            wrong.parse::<Process>().unwrap_err();
        }
    }
}
