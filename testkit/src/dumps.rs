//! Functions that read and compare the dumps of a stopped cluster.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use kv_core::dump::{Dump, DumpEntry, DumpError, DumpItem, DumpReader, HeldAs};
use kv_protocol::GroupId;
use kv_protocol::placement::Placement;

/// The number of bytes of a dump that are read at a time.
const PIECE: usize = 1 << 20;

/// Reads a dump and verifies that it is complete and unaltered. It is read piece by piece, because the text may be
/// several times as long as the entries.
pub fn read(path: &Path) -> anyhow::Result<Dump> {
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

/// Checks that the two dumps of a group were written by its home servers, end at the same writes, and hold the same
/// entries, all of this group.
pub fn agree(
    group: GroupId,
    placement: Placement,
    primary: &Dump,
    secondary: &Dump,
) -> anyhow::Result<()> {
    let (first, second) = (group.home_primary(), group.home_secondary(placement.servers()));
    for (dump, writer, wanted) in
        [(primary, first, HeldAs::Primary), (secondary, second, HeldAs::Secondary)]
    {
        let header = &dump.header;
        ensure!(
            header.origin.group == group,
            "this dump does not belong to group {group}: {header:?}"
        );
        ensure!(
            header.origin.writer.server == writer,
            "this dump was not written by {writer}: {header:?}"
        );
        let is_held = header.shards.iter().all(|shard| shard.held_as == wanted);
        ensure!(is_held, "group {group}: this dump was not written by a {wanted:?}: {header:?}");
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
        ensure!(
            placement.locate_digested(entry.digest, &entry.key).0 == group,
            "group {group} holds a foreign entry: {entry:?}"
        );
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
