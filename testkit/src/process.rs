//! Functions that find and signal processes by pid.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::poll;

/// Sends a signal. A process that has already ended is not an error.
pub fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(named(pid), signal);
}

/// Converts a pid to rustix's type.
pub fn named(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid is a positive number")
}

/// Returns true if a process exists and has not ended. A zombie counts as ended.
///
/// The first thread of a killed process may end before the others, which still hold its files and
/// locks. Therefore every thread counts.
pub fn is_alive(pid: u32) -> bool {
    let has_ended =
        |stat: &str| stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok())
        .any(|stat| !has_ended(&stat))
}

/// Returns a process's command line, one element for each argument.
pub fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.split_terminator('\0').map(ToOwned::to_owned).collect()
}

/// Returns the pids of all processes.
pub fn all() -> impl Iterator<Item = u32> {
    let processes = fs::read_dir("/proc").expect("read /proc");
    processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Returns all processes whose working directory is this one: a cluster's servers, even after their parent
/// process has changed.
pub fn running_in(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    all()
        .filter(|pid| {
            fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
                && is_alive(*pid)
        })
        .collect()
}

/// Kills all processes in this directory and waits until none is left, for at most 10 s.
pub fn end_all_in(directory: &Path) {
    poll(Duration::from_secs(10), || {
        let left = running_in(directory);
        for pid in &left {
            signal(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
}

/// Returns all descendants of a process, including zombies.
pub fn descendants(ancestor: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = all()
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name may contain anything. The state and the parent follow it.
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

/// Returns a process's resident memory in bytes.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

/// Returns a field of a process's status that is an amount of memory, in bytes.
pub fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("process {pid} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(number.with_context(|| format!("process {pid} has no {field}"))? << 10)
}
