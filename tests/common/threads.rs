//! One stopped thread of another process.

pub(crate) use kv_testkit::threads::StandingThread;

use super::done;

/// Stops the thread of this name. Returns `None` if the system forbids it.
#[track_caller]
pub(crate) fn stop(pid: u32, name: &str) -> Option<StandingThread> {
    let standing = done(StandingThread::stop(pid, name));
    if standing.is_none() {
        super::skipped("ptrace(2) is not permitted here, so no thread was stopped");
    }
    standing
}
