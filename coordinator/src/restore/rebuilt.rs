//! `--without-state`: the last state rebuilt from the dumps, if every copy of it is lost.
//!
//! Only dumps with their plain names count, because they were written by the last run. Renamed dumps may be complete
//! and consistent too, but they were written by an earlier run. Without a state, the processes of the last run are
//! unknown. Therefore any server that runs in one of the directories, here or on an ssh host, prevents the restore.

use std::path::{Path, PathBuf};

use kv_core::dump::DumpHeader;
use kv_core::restore::{Certainty, Rebuilt, rebuild};
use kv_protocol::ClusterKey;

use super::gather;
use super::state::Last;
use crate::logs::Console;
use crate::machine::Boot;
use crate::place::{Place, Ports};
use crate::plan::Plan;
use crate::store::{self, Record};

/// The name of the rebuilt state in the coordinator's directory.
const NAME: &str = "coordinator.state.rebuilt";

/// A rebuilt state, stored for the steps that follow.
#[derive(Debug)]
pub(super) struct FromDumps {
    pub(super) last: Last,
    /// Descriptions of what is uncertain: broken dumps, and groups without the dumps of both holders.
    pub(super) doubts: Vec<String>,
}

/// Rebuilds the state from all dumps in the directories.
///
/// # Errors
/// There is a state, or the dumps do not belong to one cluster; the message has the reason.
pub(super) fn state(dirs: &[PathBuf], plan: &Plan, console: Console) -> Result<FromDumps, String> {
    for dir in dirs.iter().chain([&plan.dir]) {
        let path = dir.join(store::FILE_NAME);
        if path.exists() {
            return Err(format!(
                "{} exists; omit --without-state: only the state shows for certain which dumps count",
                path.display()
            ));
        }
    }
    let servers = plan.file.count();
    let found = gather::dumps_of_any(dirs, servers, console)?;
    let headers: Vec<DumpHeader> =
        found.iter().filter_map(|found| found.dump.clone().ok()).collect();
    let broken = found.iter().filter_map(|found| Some((found, found.dump.as_ref().err()?)));
    let broken: Vec<String> =
        broken.map(|(found, why)| format!("{}: {why}", found.path.display())).collect();
    let Rebuilt { state, groups } =
        rebuild(&headers, servers).map_err(|error| error.to_string())?;
    let doubt = |(group, certainty): (usize, &Certainty)| match certainty {
        Certainty::Sure => None,
        Certainty::Doubtful => Some(format!(
            "group {group}: the dump of only one holder was found; the other holder may have acknowledged \
             later writes"
        )),
        Certainty::Lost => Some(format!("group {group}: there is no dump of a holder")),
    };
    let doubts = groups.iter().enumerate().filter_map(doubt);
    // A broken dump may have been the newest of its group.
    let doubts = broken.into_iter().chain(doubts).collect();
    let place = Place {
        ports: Ports { clients: 0, servers: 0 },
        listen: plan.listen,
        machine: Some(Boot::this()),
        hosts: plan.file.servers.iter().map(|line| line.host.clone()).collect(),
        routes: plan.routes.clone(),
        moved: Vec::new(),
        elsewhere: Vec::new(),
    };
    let record = Record {
        key: ClusterKey(0),
        place,
        settings: plan.settings.clone(),
        dump_dir: None,
        has_ended_well: false,
        state,
    };
    let path = plan.dir.join(NAME);
    store::write(&path, &record).map_err(|error| error.to_string())?;
    Ok(FromDumps { last: Last { path, record }, doubts })
}

/// Removes the rebuilt state.
pub(super) fn remove(dir: &Path) {
    let _ = std::fs::remove_file(dir.join(NAME));
}
