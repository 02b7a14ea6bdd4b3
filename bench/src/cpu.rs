//! CPU times of processes from their CPU clocks (clock_getcpuclockid(3)), with a resolution of one nanosecond. The
//! utime and stime of /proc/PID/stat have a resolution of only ten milliseconds.

use std::time::Duration;

use anyhow::bail;

/// Returns the CPU time that a process has used, over all its threads.
///
/// # Errors
/// There is no process with this pid.
pub(crate) fn of_process(pid: u32) -> anyhow::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    let status = match libc::pid_t::try_from(pid) {
        // SAFETY: the clock's id is written to a place that lives until the call returns.
        Ok(pid) => unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) },
        Err(_) => libc::ESRCH,
    };
    match (status, read(clock)) {
        (0, Some(used)) => Ok(used),
        _ => bail!("there is no process {pid}; check --server-pid"),
    }
}

/// Returns the CPU time that this process has used.
pub(crate) fn of_self() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default()
}

/// Returns the sum of these processes' CPU times.
pub(crate) fn of_processes(pids: &[u32]) -> anyhow::Result<Duration> {
    pids.iter().map(|pid| of_process(*pid)).sum()
}

fn read(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written to a place that lives until the call returns.
    let status = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    (status == 0).then(|| Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_process_grows_while_it_works_and_an_unknown_pid_is_an_error() {
        let own = std::process::id();
        let before = of_process(own).unwrap();
        let mut sum = 0u64;
        while of_process(own).unwrap() < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(of_self() >= before);
        assert!(of_process(u32::MAX).unwrap_err().to_string().contains("--server-pid"));
    }
}
