//! Processes by pid: search and signals. Only processes whose working directory is a cluster of this run are
//! affected.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::bail;
pub(crate) use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

/// The polling interval of waits.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Sends a signal. A process that has already exited is no error.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Returns whether a process exists and has not exited.
pub(crate) fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(") ").map(|(_, rest)| !rest.starts_with(['Z', 'X'])))
        .unwrap_or(false)
}

/// Returns all processes whose working directory is this one, with the `-S` of their command lines.
pub(crate) fn servers_in(directory: &Path) -> Vec<(u32, u16)> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory))
        .filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let mut arguments = line.split(|byte| *byte == 0);
            arguments.find(|argument| [&b"-S"[..], b"--id"].contains(argument))?;
            let id = std::str::from_utf8(arguments.next()?).ok()?.parse().ok()?;
            is_alive(pid).then_some((pid, id))
        })
        .collect()
}

/// Kills all servers whose working directory is this one, and waits until none is left.
pub(crate) fn end_all_in(directory: &Path) {
    let _ = wait_for("every server to be gone", Duration::from_secs(10), || {
        let left = servers_in(directory);
        left.iter().for_each(|(pid, _)| signal(*pid, Signal::KILL));
        left.is_empty().then_some(())
    });
}

/// Polls `look` until it returns a value.
///
/// # Errors
/// It returned none within `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain: {what}");
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
