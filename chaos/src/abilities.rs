//! The features of `coord` and the permissions on this machine that determine the possible faults.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use kv_testkit::threads::StandingThread;

use crate::ordinary::Day;
use crate::ordinary::ground::{self, Ground};

/// The optional features of `coord`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// True if `coord` has the option `--restore`, according to its help text.
    pub(crate) restore: bool,
}

/// Returns the ordinary days that are possible on this machine, by [`Ground`], and adds the others, with the reason, to
/// `left_out`. If this program runs as root, its main thread moves into a new mount namespace. So the main thread must
/// call this function before it starts other threads.
pub(crate) fn ordinary_days(left_out: &mut Vec<String>) -> Vec<(Ground, Vec<Day>)> {
    let no_mounts = match rustix::process::geteuid().is_root() {
        false => Some("mounting needs root (run `sudo make chaos`)".into()),
        true => ground::leave_mounts().err().map(|error| format!("{error:#}")),
    };
    let mut possible = Vec::new();
    for ground in Ground::ALL {
        match ground.missing(no_mounts.as_deref()) {
            Some(why) => {
                left_out.extend(ground.days().iter().map(|day| format!("{day}: {why}")));
            }
            None => possible.push((ground, possible_of(ground.days(), left_out))),
        }
    }
    possible
}

/// Returns those of these kinds that this machine allows, and adds the others, with the reason, to `left_out`.
pub(crate) fn possible_of(days: &[Day], left_out: &mut Vec<String>) -> Vec<Day> {
    let mut days = days.to_vec();
    if days.contains(&Day::Stall)
        && let Some(why) = no_stalls()
    {
        left_out.push(format!("{}: {why}", Day::Stall));
        days.retain(|day| *day != Day::Stall);
    }
    days
}

/// Returns the reason why this program cannot stop a thread of another process with ptrace(2); `None` if it can.
fn no_stalls() -> Option<String> {
    let tried = || -> anyhow::Result<bool> {
        let mut child = Command::new("sleep").arg("10").spawn()?;
        let stalled = StandingThread::stop(child.id(), "");
        child.kill()?;
        let is_allowed = stalled?.is_some();
        child.wait()?;
        Ok(is_allowed)
    };
    match tried() {
        Ok(true) => None,
        Ok(false) => Some("stopping a thread needs permission for ptrace(2)".into()),
        Err(error) => Some(format!("{error:#}")),
    }
}

impl Abilities {
    /// Determines the features of `coord` from its help text.
    pub(crate) fn of(coord: &Path) -> anyhow::Result<Abilities> {
        let output = Command::new(coord)
            .arg("--help")
            .output()
            .with_context(|| format!("run {} --help", coord.display()))?;
        let help = String::from_utf8_lossy(&output.stdout);
        Ok(Abilities { restore: help.contains("--restore ") })
    }
}
