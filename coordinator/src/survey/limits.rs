//! The limits of the user that starts servers on a machine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::{Resource, geteuid, getrlimit};

/// The limits of the user that starts servers on a machine. A value is `None` if there is no limit, or if the limit is
/// unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// The maximum number of threads of the user (`ulimit -u`).
    pub(crate) threads: Option<u64>,
    /// The current number of threads of the user, as far as known.
    pub(crate) threads_used: u64,
    /// The hard limit of the memory that a process may lock, in bytes (`ulimit -H -l`).
    pub(crate) locked: Option<u64>,
    /// Free memory in bytes.
    pub(crate) free: Option<u64>,
    /// True for root, which may exceed the limits of threads and locked memory.
    pub(crate) is_root: bool,
}

impl Limits {
    /// Returns the limits of this process.
    pub(crate) fn here() -> Limits {
        Limits {
            threads: getrlimit(Resource::Nproc).current,
            threads_used: own_threads(),
            locked: getrlimit(Resource::Memlock).maximum,
            free: available(),
            is_root: geteuid().is_root(),
        }
    }
}

/// Returns the number of threads of all processes of this user.
fn own_threads() -> u64 {
    let own = geteuid().as_raw();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of_this_user = processes.filter(|entry| entry.metadata().is_ok_and(|it| it.uid() == own));
    of_this_user
        .map(|entry| fs::read_dir(entry.path().join("task")).map_or(0, |all| all.count() as u64))
        .sum()
}

/// Returns `MemAvailable` of /proc/meminfo (proc_meminfo(5)) in bytes.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1 << 10)
}
