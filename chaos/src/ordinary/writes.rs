//! Writes by this program itself, which store long values or fill memory.

use std::collections::HashMap;

use anyhow::{Context as _, ensure};
use kv_client::{Client, Error, OpOptions, Options};
use kv_protocol::placement::Placement;
use kv_protocol::{GroupId, ShardId};

use crate::cluster::Cluster;

/// The length of the values that fill memory.
const FILL_BYTES: usize = 64 << 10;
/// The number of rejected writes, per server, after which memory counts as full.
const REFUSALS_A_SERVER: u32 = 8;
/// The maximum number of values written: more than the memory limits of these clusters can hold.
const MOST_VALUES: u32 = 100_000;

/// Counts of this program's own writes, which are not in the clients' history, by place (a group's shard).
#[derive(Debug, Default)]
pub(crate) struct Beside {
    /// The number of writes that certainly took a sequence number, and the number of all writes, each of which may have
    /// taken one.
    numbers: HashMap<(GroupId, ShardId), (u64, u64)>,
}

impl Beside {
    /// Returns the minimum and the maximum number of sequence numbers that these writes took in a place.
    pub(crate) fn at(&self, place: (GroupId, ShardId)) -> (u64, u64) {
        self.numbers.get(&place).copied().unwrap_or_default()
    }

    /// Returns the maximum number of sequence numbers that these writes took in all places.
    pub(crate) fn possible(&self) -> u64 {
        self.numbers.values().map(|(_, possible)| possible).sum()
    }

    fn count(&mut self, placement: Placement, key: &[u8], is_certain: bool) {
        let numbers = self.numbers.entry(placement.locate(key)).or_default();
        numbers.0 += u64::from(is_certain);
        numbers.1 += 1;
    }

    /// Writes one value.
    pub(crate) fn put(
        &mut self,
        cluster: &Cluster,
        key: &[u8],
        value: &[u8],
    ) -> anyhow::Result<()> {
        let mut client = Client::open(&cluster.endpoint(), Options::default())?;
        client.put(key, value, &OpOptions::default()).context("put a value")?;
        self.count(cluster.placement(), key, true);
        Ok(())
    }

    /// Deletes one value.
    pub(crate) fn delete(&mut self, cluster: &Cluster, key: &[u8]) -> anyhow::Result<()> {
        let mut client = Client::open(&cluster.endpoint(), Options::default())?;
        client.delete(key, &OpOptions::default()).context("delete a value")?;
        self.count(cluster.placement(), key, true);
        Ok(())
    }

    /// Writes values until the servers have rejected enough writes for lack of memory. Returns the numbers of the
    /// values written.
    pub(crate) fn fill(&mut self, cluster: &Cluster) -> anyhow::Result<Vec<u32>> {
        let (placement, options) = (cluster.placement(), OpOptions::default());
        let mut client = Client::open(&cluster.endpoint(), Options::default())?;
        let (value, mut written, mut refused) = (vec![5; FILL_BYTES], Vec::new(), 0);
        for number in 0..MOST_VALUES {
            match client.put(&key(number), &value, &options) {
                Ok(_) => written.push(number),
                Err(Error::OutOfSpace { .. }) => refused += 1,
                Err(error) => return Err(error).context("fill the memory of the servers"),
            }
            self.count(placement, &key(number), written.last() == Some(&number));
            if refused >= REFUSALS_A_SERVER * u32::from(placement.servers()) {
                break;
            }
        }
        ensure!(
            refused > 0,
            "{MOST_VALUES} values of {FILL_BYTES} bytes did not fill the memory of the servers"
        );
        Ok(written)
    }

    /// Deletes these values. Then writes one value, to check that there is room again, and deletes it.
    pub(crate) fn empty(&mut self, cluster: &Cluster, written: Vec<u32>) -> anyhow::Result<()> {
        let (placement, options) = (cluster.placement(), OpOptions::default());
        let mut client = Client::open(&cluster.endpoint(), Options::default())?;
        for number in written {
            client
                .delete(&key(number), &options)
                .context("delete the values that filled memory")?;
            self.count(placement, &key(number), true);
        }
        client
            .put(&key(0), &[5; FILL_BYTES], &options)
            .context("write once there is room again")?;
        self.count(placement, &key(0), true);
        client.delete(&key(0), &options).context("delete the last value")?;
        self.count(placement, &key(0), true);
        Ok(())
    }
}

/// Returns the key of a value that fills memory.
fn key(number: u32) -> Vec<u8> {
    format!("fill-{number}").into_bytes()
}
