//! One thread of another process, stopped as by a debugger while the other threads run.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::process::wait_for;

/// The longest that a thread may take to stop.
const LIMIT: Duration = Duration::from_secs(10);

/// A thread that stays stopped until this is dropped. Only the thread that made it may drop it.
#[derive(Debug)]
pub(crate) struct Stalled {
    id: libc::pid_t,
}

impl Stalled {
    /// Stops the thread with this name, or with this name followed by a number.
    pub(crate) fn stop(pid: u32, name: &str) -> anyhow::Result<Stalled> {
        let id = find(pid, name).with_context(|| format!("process {pid} has no thread {name}"))?;
        ensure!(trace(libc::PTRACE_SEIZE, id), "trace a thread: {}", last_error());
        let thread = Stalled { id };
        ensure!(trace(libc::PTRACE_INTERRUPT, id), "stop a thread: {}", last_error());
        wait_for("the thread to stop", LIMIT, || thread.is_stopped().then_some(()))?;
        Ok(thread)
    }

    /// Returns the reason why this machine does not let a thread be stopped.
    pub(crate) fn missing() -> Option<String> {
        let tried = || -> anyhow::Result<()> {
            let mut child = std::process::Command::new("sleep").arg("10").spawn()?;
            let stalled = Stalled::stop(child.id(), "");
            child.kill()?;
            stalled.map(drop)?;
            child.wait()?;
            Ok(())
        };
        tried().err().map(|error| format!("{error:#}"))
    }

    fn is_stopped(&self) -> bool {
        let mut status = 0;
        // SAFETY: waitpid writes one integer, which lives across the call.
        let waited = unsafe { libc::waitpid(self.id, &mut status, libc::__WALL | libc::WNOHANG) };
        waited == self.id && libc::WIFSTOPPED(status)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        if !trace(libc::PTRACE_DETACH, self.id) {
            // The process has exited meanwhile; the tracer's wait releases the thread.
            self.is_stopped();
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
            let comm = fs::read_to_string(thread.path().join("comm"));
            name.is_empty() || comm.is_ok_and(|comm| is_it(comm.trim_end()))
        })
        .and_then(|thread| thread.file_name().to_str()?.parse().ok())
}

fn trace(request: libc::c_uint, id: libc::pid_t) -> bool {
    // SAFETY: these requests take no addresses; both last arguments are read as zero.
    unsafe { libc::ptrace(request, id, 0usize, 0usize) == 0 }
}

fn last_error() -> std::io::Error {
    std::io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_until_it_is_dropped() {
        if let Some(why) = Stalled::missing() {
            eprintln!("NOT TESTED: {why}");
            return;
        }
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let state = |pid: u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
        };
        // Until it has called exec, its thread has this program's name.
        let name = || fs::read_to_string(format!("/proc/{}/comm", child.id())).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while name().trim_end() != "sleep" {
            assert!(std::time::Instant::now() < deadline, "it is still called {}", name());
            std::thread::yield_now();
        }
        let stalled = Stalled::stop(child.id(), "sleep").unwrap();
        assert_eq!(state(child.id()), 't');
        drop(stalled);
        assert_ne!(state(child.id()), 't');
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
