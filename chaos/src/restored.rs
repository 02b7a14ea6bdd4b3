//! The restore of a stopped cluster from its dumps. A client then reads all data again.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use kv_client::{Client, Error, OpOptions, Options};
use kv_history::Value;
use kv_protocol::GroupId;

use crate::bulk::Bulk;
use crate::cluster::{Cluster, Programs, Setting};
use crate::network::Network;
use crate::worker::value_of;

/// The result of each read, by key: value and version, or `None` for an absent key.
pub(crate) type Found = BTreeMap<String, Option<(Value, u64)>>;

/// The value and version of an entry; `None` if the key is absent.
type Entry = Option<(Vec<u8>, u64)>;

/// Restores a cluster from the files of a directory, in a new directory below it. Reads these keys and the bulk data.
/// Reads in `lost` groups must end with LOST, and are not part of the result. All other reads must get a response, and
/// the bulk data must be complete.
pub(crate) fn read_all<'a>(
    programs: &Programs,
    network: Option<&Network>,
    old: (&Path, &Setting),
    lost: &[GroupId],
    bulk: Bulk,
    keys: impl Iterator<Item = &'a str>,
) -> anyhow::Result<Found> {
    let (dir, setting) = old;
    let mut flags = vec!["--restore".to_owned(), dir.display().to_string()];
    if !lost.is_empty() {
        flags.push("--accept-loss".into());
    }
    let setting = Setting { flags, ..setting.clone() };
    let mut cluster = Cluster::start(programs, &dir.join("restored"), &setting, network)
        .context("restore the cluster")?;
    let placement = cluster.placement();
    let mut client = Client::open(&cluster.endpoint(), Options::default())?;
    let mut read = |key: &str| -> anyhow::Result<Option<Entry>> {
        let (group, _) = placement.locate(key.as_bytes());
        let is_lost = lost.contains(&group);
        match client.get(key.as_bytes(), &OpOptions::default()) {
            Err(Error::Lost { .. }) if is_lost => Ok(None),
            other if is_lost => {
                bail!("group {group} is lost, but a read of {key:?} returned {other:?}")
            }
            Ok(value) => Ok(Some(Some((value.bytes, value.version.0)))),
            Err(Error::NotFound { .. }) => Ok(Some(None)),
            Err(error) => {
                Err(error).with_context(|| format!("read {key:?} from the restored cluster"))
            }
        }
    };
    let mut found = Found::new();
    for key in keys {
        if let Some(value) = read(key)? {
            let value = value.map(|(bytes, version)| (value_of(&bytes), version));
            found.insert(key.to_owned(), value);
        }
    }
    for number in 0..bulk.count {
        if let Some(value) = read(&Bulk::key(number))? {
            let is_right = value.is_some_and(|(bytes, _)| bytes == bulk.value(number));
            ensure!(is_right, "entry {number} of the bulk data is lost or wrong after the restore");
        }
    }
    cluster.stop()?;
    Ok(found)
}
