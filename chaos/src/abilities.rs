//! What `coord` can do that this program has to know of.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// Whether a coordinator that is started again, with the same command line and directory, takes the
/// running servers over. Not yet: set this to true with the restart, and everything here that kills
/// coordinators is on. (`--coordinator-restart` turns it on for one run.)
const COORDINATOR_TAKES_OVER: bool = false;

/// What is possible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// The coordinator may be killed and started again.
    pub(crate) restart: bool,
    /// `coord --restore DIR…` brings dumps back; asked of its help.
    pub(crate) restore: bool,
}

impl Abilities {
    /// Asks `coord`.
    pub(crate) fn of(coord: &Path, force_restart: bool) -> anyhow::Result<Abilities> {
        let output = Command::new(coord)
            .arg("--help")
            .output()
            .with_context(|| format!("run {} --help", coord.display()))?;
        let help = String::from_utf8_lossy(&output.stdout);
        let restart = COORDINATOR_TAKES_OVER || force_restart;
        Ok(Abilities { restart, restore: help.contains("--restore ") })
    }
}
