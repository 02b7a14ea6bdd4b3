//! Child processes. They are pinned to cores, and they are killed and reaped even if this program fails.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The timeout of a server's start.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);
/// The polling interval of waits.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Returns a command whose process runs on these cores, has no input, and receives the signal if this program dies.
pub(super) fn pinned(program: &Path, cores: CpuSet, at_death: Signal) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    // SAFETY: both functions only make system calls with values that the closure owns, which is safe between fork and
    // exec.
    unsafe {
        command.pre_exec(move || {
            sched_setaffinity(None, &cores)?;
            rustix::process::set_parent_process_death_signal(Some(at_death))?;
            Ok(())
        });
    }
    command
}

/// A child that is killed and reaped when this value is dropped.
#[derive(Debug)]
pub(super) struct Kept(pub(super) Child);

impl Drop for Kept {
    fn drop(&mut self) {
        // The child may have exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Kept {
    /// Starts a server whose output goes to a log.
    pub(super) fn start(command: &mut Command, log: &Path) -> anyhow::Result<Kept> {
        let file = fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
        command.stdout(file.try_clone()?).stderr(file);
        let name = command.get_program().to_owned();
        let child = command.spawn().with_context(|| format!("start {}", name.display()))?;
        Ok(Kept(child))
    }

    /// Fails if the child has exited. The error contains its log.
    pub(super) fn check(&mut self, log: &Path) -> anyhow::Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => {
                let said = fs::read_to_string(log).unwrap_or_default();
                bail!("a server exited with {status}: {}", said.trim())
            }
        }
    }
}

/// Kills all processes whose working directory is `directory`, and waits until none is left, for at most [`TIMEOUT`].
pub(super) fn end_all_in(directory: &Path) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let left = running_in(directory);
        if left.is_empty() || Instant::now() >= deadline {
            return;
        }
        for pid in left {
            // The process may have exited meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn running_in(directory: &Path) -> Vec<Pid> {
    let (Ok(directory), Ok(all)) = (directory.canonicalize(), fs::read_dir("/proc")) else {
        return Vec::new();
    };
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
            && *pid != std::process::id().cast_signed()
    })
    .filter_map(Pid::from_raw)
    .collect()
}

/// Moves a running process, with all its threads, to other cores.
pub(super) fn move_to(pid: u32, cores: &CpuSet) -> anyhow::Result<()> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.with_context(|| format!("list the threads of process {pid}"))? {
        let thread = task?.file_name().to_str().and_then(|name| name.parse().ok());
        match sched_setaffinity(thread.and_then(Pid::from_raw), cores) {
            // A thread may have exited meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("move process {pid}")),
        }
    }
    Ok(())
}

/// Returns a process's resident memory in bytes.
pub(super) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    let status = status.with_context(|| format!("read the status of process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("process {pid} reports no VmRSS"))? << 10)
}

/// Allows this process, and its later children, this many descriptors.
pub(super) fn allow_descriptors(needed: u64) -> anyhow::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|most| most < needed) {
        bail!("this program needs {needed} descriptors; raise the hard limit (ulimit -Hn)");
    }
    limit.current = Some(needed);
    setrlimit(Resource::Nofile, limit).context("raise the limit of descriptors")
}

/// Returns a port of the loopback address that is unused now.
pub(super) fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// Polls `look` until it returns a value. Fails after [`TIMEOUT`].
pub(super) fn wait_for<T>(
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("timed out after {TIMEOUT:?} waiting for {what}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_descriptors_than_the_hard_limit_are_refused() {
        let limit = getrlimit(Resource::Nofile);
        allow_descriptors(limit.current.unwrap_or(1_024)).unwrap();
        if let Some(most) = limit.maximum {
            let refused = allow_descriptors(most + 1).unwrap_err().to_string();
            assert!(refused.contains("ulimit -Hn"), "{refused}");
        }
    }
}
