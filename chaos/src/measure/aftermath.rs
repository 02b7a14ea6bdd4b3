//! The checks of a cluster after a measurement with faults.

use std::path::Path;

use anyhow::ensure;
use kv_history::{Operations, Record};

use super::figures::Figures;
use crate::bulk::Bulk;
use crate::cluster::Cluster;
use crate::histories::Histories;
use crate::ordinary::writes::Beside;
use crate::restored::Restored;
use crate::verdict::{self, Ends, Remains};
use crate::{dumps, noticed};

/// The maximum amount of data in each server for which the history is checked. This check keeps all data in memory, so
/// with more data only the dumps are compared.
const JUDGED_AT_MOST: u64 = 256 << 20;

/// Compares the dumps, checks the history if the data is small enough, and adds the counts of errors to `figures`.
pub(super) fn judge(
    cluster: &Cluster,
    dir: &Path,
    records: Vec<Record>,
    bulk: Bulk,
    data: u64,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let placement = cluster.placement();
    let operations = Operations::pair(&records)?;
    let left = noticed::not_carried_through(&operations, placement, &[]);
    figures.none("operations without a response", left.len() as u64);
    if data > JUDGED_AT_MOST {
        let compared = dumps::compare_all(&cluster.dir, placement);
        // The dumps are large and no longer needed.
        dumps::remove_all(&cluster.dir, placement);
        state_entries(compared?, figures);
        return Ok(());
    }
    state_entries(dumps::compare_all(&cluster.dir, placement)?, figures);
    let remains = Remains::of_whole(&cluster.dir, placement, &[])?;
    let (restored, age, mut failures) = (Restored::default(), cluster.age(), Vec::new());
    let beside = Beside::default();
    let histories = Histories::of_registers(records);
    let ends = Ends { remains: &remains, restored: &restored, bulk, beside: &beside, age };
    let counts = verdict::judge(dir, placement, histories, ends, &[], &mut failures)?;
    figures.none("entries of the bulk data lost or wrong", counts.damaged);
    figures.none("keys whose history is not linearizable", counts.illegal + counts.unknown);
    figures.none("effects that occurred twice", counts.twice);
    let counted = counts.damaged + counts.illegal + counts.unknown + counts.twice;
    ensure!(counted > 0 || failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

#[allow(clippy::cast_precision_loss)] // Only for display.
fn state_entries(entries: u64, figures: &mut Figures) {
    figures.state("entries equal in both dumps of every group", entries as f64, "");
}
