//! A guard that stops one thread of another process with ptrace(2), while the other threads continue. When the process
//! ends, Linux releases a traced thread only after its tracer has waited for it.

use std::fs;

use anyhow::ensure;

use crate::{TIMEOUT, wait_for};

/// A thread that is stopped until its process ends or this value is dropped. Only the thread that
/// created the value may use it.
#[derive(Debug)]
pub struct StandingThread {
    id: libc::pid_t,
}

impl StandingThread {
    /// Stops the thread with this name, or with this name followed by a number. An empty name selects any thread.
    /// Returns `None` if the system forbids it.
    pub fn stop(pid: u32, name: &str) -> anyhow::Result<Option<StandingThread>> {
        let what = format!("the thread {name} of process {pid}");
        let id = wait_for(&what, TIMEOUT, || find(pid, name))?;
        if !trace(libc::PTRACE_SEIZE, id) {
            return Ok(None);
        }
        let thread = StandingThread { id };
        ensure!(trace(libc::PTRACE_INTERRUPT, id), "stop {what}");
        wait_for(&format!("{what} to stop"), TIMEOUT, || {
            thread.wait().is_some_and(|s| libc::WIFSTOPPED(s)).then_some(())
        })?;
        Ok(Some(thread))
    }

    /// Waits until the thread's process has ended.
    pub fn await_end(self) -> anyhow::Result<()> {
        wait_for("the process of a stopped thread to exit", TIMEOUT, || {
            let status = self.wait();
            status.is_none_or(|s| libc::WIFEXITED(s) || libc::WIFSIGNALED(s)).then_some(())
        })
    }

    /// Returns the change of the thread's state since the last call: [`RUNNING`] if there was none, `None` if the
    /// thread no longer exists.
    fn wait(&self) -> Option<i32> {
        let mut status = 0;
        // SAFETY: waitpid writes one integer, which outlives the call.
        let waited = unsafe { libc::waitpid(self.id, &mut status, libc::__WALL | libc::WNOHANG) };
        match waited {
            0 => Some(RUNNING),
            id if id == self.id => Some(status),
            _ => None,
        }
    }
}

/// The status of a continued thread, which is neither a stop nor an end.
const RUNNING: i32 = 0xffff;

impl Drop for StandingThread {
    fn drop(&mut self) {
        if !trace(libc::PTRACE_DETACH, self.id) {
            // The process has ended meanwhile. The thread is released only after its tracer has waited for it.
            self.wait();
        }
    }
}

fn find(pid: u32, name: &str) -> Option<libc::pid_t> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let is_it = |comm: &str| {
        comm.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    threads
        .flatten()
        .find(|thread| {
            // The runtime appends a number to the names of executor threads.
            let comm = fs::read_to_string(thread.path().join("comm"));
            name.is_empty() || comm.is_ok_and(|comm| is_it(comm.trim_end()))
        })
        .and_then(|thread| thread.file_name().to_str()?.parse().ok())
}

fn trace(request: libc::c_uint, id: libc::pid_t) -> bool {
    // SAFETY: these requests take no addresses; both last arguments are read as zero.
    unsafe { libc::ptrace(request, id, 0usize, 0usize) == 0 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_thread_is_stopped_until_its_guard_is_dropped() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let state = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        // Until exec, the child's thread has the name of this program.
        let stalled = StandingThread::stop(child.id(), "sleep").unwrap();
        match stalled {
            Some(stalled) => {
                assert_eq!(state(child.id()), 't');
                drop(stalled);
                assert_ne!(state(child.id()), 't');
            }
            None => eprintln!("NOT TESTED: this machine does not permit ptrace(2)"),
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
