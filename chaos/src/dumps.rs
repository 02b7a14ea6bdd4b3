//! The dumps of a stopped cluster: their reading and comparison.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use kv_core::cluster::DurableState;
use kv_core::dump::{Dump, DumpEntry, DumpError, DumpItem, DumpReader, HeldAs};
use kv_protocol::GroupId;
use kv_protocol::placement::Placement;

/// The bytes of a dump that are read at a time.
const PIECE: usize = 1 << 20;

/// Returns the dump of a group that is home: its primary's, after a comparison with its secondary's.
pub(crate) fn of_group(dir: &Path, placement: Placement, group: GroupId) -> anyhow::Result<Dump> {
    let [primary, secondary] = paths(dir, placement, group);
    let (primary, secondary) = (read(&primary)?, read(&secondary)?);
    agree(group, placement, &primary, &secondary)?;
    Ok(primary)
}

/// Compares both dumps of every group, one group after the other, and returns the number of entries.
pub(crate) fn compare_all(dir: &Path, placement: Placement) -> anyhow::Result<u64> {
    let groups = (0..placement.servers()).map(GroupId);
    groups.map(|group| Ok(of_group(dir, placement, group)?.entries.len() as u64)).sum()
}

/// Removes both dumps of every group.
pub(crate) fn remove_all(dir: &Path, placement: Placement) {
    let groups = (0..placement.servers()).map(GroupId);
    groups.flat_map(|group| paths(dir, placement, group)).for_each(|path| {
        let _ = fs::remove_file(path);
    });
}

/// Returns the paths of the dumps of primary and secondary of a group that is home.
fn paths(dir: &Path, placement: Placement, group: GroupId) -> [PathBuf; 2] {
    let after = group.home_secondary(placement.servers());
    [
        dir.join(format!("server_{}.primary", group.0)),
        dir.join(format!("server_{}.secondary", after.0)),
    ]
}

/// Checks that the two dumps of a group that is home hold the same entries, all of this group.
fn agree(
    group: GroupId,
    placement: Placement,
    primary: &Dump,
    secondary: &Dump,
) -> anyhow::Result<()> {
    for (dump, wanted) in [(primary, HeldAs::Primary), (secondary, HeldAs::Secondary)] {
        let header = &dump.header;
        ensure!(header.origin.group == group, "a dump of another group than {group}: {header:?}");
        let is_held = header.shards.iter().all(|shard| shard.held_as == wanted);
        ensure!(is_held, "group {group}: a dump of no {wanted:?}: {header:?}");
    }
    let lasts = |dump: &Dump| -> Vec<_> {
        dump.header.shards.iter().map(|shard| (shard.view, shard.last)).collect()
    };
    ensure!(
        lasts(primary) == lasts(secondary),
        "group {group}: the dumps end at different writes: {:?} and {:?}",
        lasts(primary),
        lasts(secondary)
    );
    let (ours, theirs) = (by_key(primary), by_key(secondary));
    for entry in &ours {
        ensure!(placement.locate(entry.digest).0 == group, "group {group} holds {entry:?}");
    }
    if ours == theirs {
        return Ok(());
    }
    let first = ours.iter().zip(&theirs).find(|(our, their)| our != their);
    let keys = first.map(|(our, their)| (our.key.escape_ascii().to_string(), our.sn, their.sn));
    bail!(
        "group {group}: the dumps differ: {} and {} entries, the first at {keys:?}",
        ours.len(),
        theirs.len()
    )
}

fn by_key(dump: &Dump) -> Vec<&DumpEntry> {
    let mut entries: Vec<&DumpEntry> = dump.entries.iter().collect();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    entries
}

/// Reads a dump piece by piece: its text may be several times as long as its entries.
pub(crate) fn read(path: &Path) -> anyhow::Result<Dump> {
    let shown = || format!("the dump {}", path.display());
    let mut file = File::open(path).with_context(shown)?;
    let (mut reader, mut piece) = (DumpReader::new(), vec![0; PIECE]);
    let (mut entries, mut records) = (Vec::new(), Vec::new());
    loop {
        let length = file.read(&mut piece).with_context(shown)?;
        if length == 0 {
            break;
        }
        let take = |item| {
            match item {
                DumpItem::Entry(entry) => entries.push(entry),
                DumpItem::Record(record) => records.push(record),
                DumpItem::Origin(_) | DumpItem::Shard(_) => {}
            }
            Ok::<(), DumpError>(())
        };
        reader.feed(&piece[..length], take).with_context(shown)?;
    }
    Ok(Dump { header: reader.finish().with_context(shown)?, entries, records })
}

/// Reads the coordinator's state: a line about the file, and JSON.
pub(crate) fn read_state(path: &Path) -> anyhow::Result<DurableState> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let json = text.split_once('\n').map_or("", |(_, json)| json);
    serde_json::from_str(json).with_context(|| format!("read {}", path.display()))
}
