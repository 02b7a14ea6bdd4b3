//! The dumps of a stopped cluster: reading, comparing and removing them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kv_core::cluster::DurableState;
use kv_core::dump::Dump;
use kv_protocol::GroupId;
use kv_protocol::placement::Placement;
use kv_testkit::dumps::agree;
pub(crate) use kv_testkit::dumps::read;

/// Returns the dump of a group's primary. The group must have been at home when it was dumped. Fails if the dump of the
/// secondary differs.
pub(crate) fn of_group(dir: &Path, placement: Placement, group: GroupId) -> anyhow::Result<Dump> {
    let [primary, secondary] = paths(dir, placement, group);
    let (primary, secondary) = (read(&primary)?, read(&secondary)?);
    agree(group, placement, &primary, &secondary)?;
    Ok(primary)
}

/// Checks that the two dumps of every group are equal, one group after the other. Returns the number of entries.
pub(crate) fn compare_all(dir: &Path, placement: Placement) -> anyhow::Result<u64> {
    let groups = (0..placement.servers()).map(GroupId);
    groups.map(|group| Ok(of_group(dir, placement, group)?.entries.len() as u64)).sum()
}

/// Removes the two dumps of every group.
pub(crate) fn remove_all(dir: &Path, placement: Placement) {
    let groups = (0..placement.servers()).map(GroupId);
    groups.flat_map(|group| paths(dir, placement, group)).for_each(|path| {
        let _ = fs::remove_file(path);
    });
}

/// Returns the paths of the dumps of a group's home primary and home secondary.
fn paths(dir: &Path, placement: Placement, group: GroupId) -> [PathBuf; 2] {
    let after = group.home_secondary(placement.servers());
    [
        dir.join(format!("server_{}.primary", group.0)),
        dir.join(format!("server_{}.secondary", after.0)),
    ]
}

/// Reads the coordinator's state file: a header line, then JSON.
pub(crate) fn read_state(path: &Path) -> anyhow::Result<DurableState> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let json = text.split_once('\n').map_or("", |(_, json)| json);
    serde_json::from_str(json).with_context(|| format!("parse {}", path.display()))
}
