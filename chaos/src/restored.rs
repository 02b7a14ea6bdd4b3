//! The restore of a stopped cluster from its dumps. A client then reads all data again.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use kv_client::{Client, Error, Expiring, OpOptions, Options};
use kv_history::Value;
use kv_history::object::{ObjectRecord, Span};
use kv_protocol::GroupId;

use crate::bulk::Bulk;
use crate::cluster::{Cluster, Programs, Setting};
use crate::histories::Histories;
use crate::network::Network;
use crate::objects::verdict::{last_read, objects_of};
use crate::objects::wall_ms;
use crate::worker::value_of;

/// The result of each read of a register, by key: value and version, or `None` for an absent key.
pub(crate) type Found = BTreeMap<String, Option<(Value, u64)>>;

/// The results of all reads.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) registers: Found,
    pub(crate) objects: Vec<ObjectRecord>,
}

impl Restored {
    /// Returns the number of keys that were read.
    pub(crate) fn count(&self) -> u64 {
        (self.registers.len() + self.objects.len()) as u64
    }
}

/// The value, the version and the deadline of an entry; `None` if the key is absent.
type Entry = Option<(Vec<u8>, u64, Option<i64>)>;

/// Restores a cluster from the files of a directory, in a new directory below it. Reads all keys of the histories and
/// the bulk data. Reads in `lost` groups must end with LOST, and are not part of the result. All other reads must get a response, and
/// the bulk data must be complete.
pub(crate) fn read_all(
    programs: &Programs,
    network: Option<&Network>,
    old: (&Path, &Setting),
    lost: &[GroupId],
    bulk: Bulk,
    histories: &Histories,
) -> anyhow::Result<Restored> {
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
        match client.get_with_deadline(key.as_bytes(), &OpOptions::default()) {
            Err(Error::Lost { .. }) if is_lost => Ok(None),
            other if is_lost => {
                bail!("group {group} is lost, but a read of {key:?} returned {other:?}")
            }
            Ok(Expiring { bytes, version, deadline }) => {
                let deadline = deadline.map(|deadline| deadline.millis().cast_signed());
                Ok(Some(Some((bytes, version.0, deadline))))
            }
            Err(Error::NotFound { .. }) => Ok(Some(None)),
            Err(error) => {
                Err(error).with_context(|| format!("read {key:?} from the restored cluster"))
            }
        }
    };
    let mut found = Restored::default();
    for record in &histories.registers {
        if found.registers.contains_key(&record.key) {
            continue;
        }
        if let Some(value) = read(&record.key)? {
            let value = value.map(|(bytes, version, _)| (value_of(&bytes), version));
            found.registers.insert(record.key.clone(), value);
        }
    }
    for keys in objects_of(&histories.objects) {
        for (at, key) in keys.iter().enumerate() {
            let from = wall_ms();
            if let Some(value) = read(key)? {
                let wall = Span { from, to: wall_ms() };
                found.objects.push(last_read(keys, at, value, wall));
            }
        }
    }
    for number in 0..bulk.count {
        if let Some(value) = read(&Bulk::key(number))? {
            let is_right = value.is_some_and(|(bytes, ..)| bytes == bulk.value(number));
            ensure!(is_right, "entry {number} of the bulk data is lost or wrong after the restore");
        }
    }
    cluster.stop()?;
    Ok(found)
}
