//! What `coord` can do that this program has to know of.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

/// What is possible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// `coord --restore DIR…` brings dumps back; asked of its help.
    pub(crate) restore: bool,
}

impl Abilities {
    /// Asks `coord`.
    pub(crate) fn of(coord: &Path) -> anyhow::Result<Abilities> {
        let output = Command::new(coord)
            .arg("--help")
            .output()
            .with_context(|| format!("run {} --help", coord.display()))?;
        let help = String::from_utf8_lossy(&output.stdout);
        Ok(Abilities { restore: help.contains("--restore ") })
    }
}
