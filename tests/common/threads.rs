//! One thread of another process, stopped by ptrace(2) while the other threads continue. When the
//! process ends, Linux releases a traced thread only after its tracer has waited for it.

use std::fs;

use super::{PATIENCE, wait_for, wait_until};

/// A thread that is stopped until its process ends or this value is dropped. Only the thread that
/// created the value may use it.
#[derive(Debug)]
pub(crate) struct StandingThread {
    id: libc::pid_t,
}

impl StandingThread {
    /// Stops the thread of this name. `None` where the system forbids it.
    #[track_caller]
    pub(crate) fn stop(pid: u32, name: &str) -> Option<StandingThread> {
        let id = wait_for("the thread", PATIENCE, || find(pid, name));
        if !trace(libc::PTRACE_SEIZE, id) {
            eprintln!("this machine does not let ptrace(2) pass: no thread was stopped");
            return None;
        }
        assert!(trace(libc::PTRACE_INTERRUPT, id), "stop the thread {name}");
        let thread = StandingThread { id };
        wait_until("the thread to stand", PATIENCE, || {
            thread.wait().is_some_and(|s| libc::WIFSTOPPED(s))
        });
        Some(thread)
    }

    /// Waits until the thread's process has ended.
    #[track_caller]
    pub(crate) fn await_end(self) {
        wait_until("the process of a thread that stands to end", PATIENCE, || {
            self.wait().is_none_or(|status| libc::WIFEXITED(status) || libc::WIFSIGNALED(status))
        });
    }

    /// Returns the change of the thread's state since the last call: `RUNNING` for none, `None`
    /// when the thread is gone.
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

/// A status that is neither a stop nor an end: that of a continued thread.
const RUNNING: i32 = 0xffff;

impl Drop for StandingThread {
    fn drop(&mut self) {
        if !trace(libc::PTRACE_DETACH, self.id) {
            // Its process has ended meanwhile. The thread is released only after its tracer has
            // waited for it.
            self.wait();
        }
    }
}

fn find(pid: u32, name: &str) -> Option<libc::pid_t> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("read /proc/PID/task");
    threads
        .flatten()
        .find(|thread| {
            // The runtime appends a number to the names of executor threads.
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|comm| {
                comm.trim_end()
                    .strip_prefix(name)
                    .is_some_and(|rest| matches!(rest.get(..1), None | Some("-")))
            })
        })
        .and_then(|thread| thread.file_name().to_str()?.parse().ok())
}

fn trace(request: libc::c_uint, id: libc::pid_t) -> bool {
    // SAFETY: these requests take no addresses; both last arguments are read as zero.
    unsafe { libc::ptrace(request, id, 0usize, 0usize) == 0 }
}
