//! `--restore`: restores a stopped cluster from its dumps and its coordinator's last state.
//!
//! ```text
//!   directories -> state.rs   the last state of the cluster
//!               -> alive.rs   none of its processes may still serve
//!               -> gather.rs  every dump, checked as a whole
//!               -> kv_core::restore::choose -> report.rs: a table, and what is missing
//!               -> stage.rs   the chosen files get names that no server touches
//!                                 -> Restoration: the dumps that each server loads
//! ```
//!
//! Servers rename the dumps that they find in their directory, and a failed start may be repeated many times. Therefore
//! all source files are linked into `restore/` in the coordinator's directory before any server is started. The links
//! stay in `restore/` until every group has two replicas again. If the start fails, the next attempt examines that
//! directory too.

pub(crate) mod alive;
pub(crate) mod fetched;
pub(crate) mod gather;
mod rebuilt;
mod report;
pub(crate) mod send;
mod stage;
mod state;
pub(crate) mod written;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_core::cluster::{DUMP_BYTES_PER_SECOND, Origin};
use kv_core::dump::DumpHeader;
use kv_core::restore::{self, Loss, Verdict};
use kv_protocol::{ClusterId, GroupId, ServerId, ShardId};
use tokio::sync::oneshot;

use crate::args::Args;
use crate::failure::Failure;
use crate::logs::Console;
use crate::place::Moved;
use crate::plan::Plan;
use crate::store::Record;
use crate::{lock, quote};

/// The inputs from which a cluster is restored.
#[derive(Debug)]
pub(crate) struct Restoration {
    /// The id of the previous cluster.
    pub(crate) cluster: ClusterId,
    /// The origin of the restored cluster: for each group the version above which its views continue, and the clusters
    /// before it.
    pub(crate) origin: Origin,
    /// The clients port of the previous cluster's last coordinator; 0 if the port is unknown.
    pub(crate) clients_port: u16,
    /// The places for which the cluster file names a previous host.
    pub(crate) moved: Vec<Moved>,
    /// By server: the dumps that it loads.
    pub(crate) loads: Vec<Vec<Load>>,
    /// The additional time for a start that loads dumps.
    pub(crate) timeout: Duration,
    /// The directory of the coordinator's files.
    dir: PathBuf,
}

/// A dump file, and the part of it that a server loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) group: GroupId,
    pub(crate) shards: Vec<ShardId>,
    /// The path on this machine.
    pub(crate) file: PathBuf,
    pub(crate) bytes: u64,
}

impl Load {
    /// Returns the value of the server's `--load`, for a file that has this path on the server's host.
    pub(crate) fn argument(&self, path: &str) -> String {
        let shards: Vec<String> = self.shards.iter().map(ToString::to_string).collect();
        format!("{}:{}:{path}", self.group, shards.join(","))
    }
}

/// Finds, checks and chooses the dumps. Gives the plan the shards and the settings of the old cluster. Before every
/// check has passed, nothing is started, and nothing but a rebuilt state is written.
pub(crate) async fn prepare(
    args: &Args,
    dirs: &[PathBuf],
    plan: &mut Plan,
    console: Console,
) -> Result<Restoration, Failure> {
    for dir in dirs {
        lock::refuse_if_held(dir, &args.dir)?;
    }
    let last = match args.without_state {
        false => state::last(dirs, &args.dir).map_err(Failure::Failed)?,
        true => rebuild_state(args, dirs, plan, console).await?,
    };
    let state = &last.record.state;
    console.say(&format!(
        "restoring cluster {} of {} servers with {} shard{} each{}, from {}",
        state.cluster,
        state.servers.len(),
        state.shards,
        if state.shards == 1 { "" } else { "s" },
        if state.hash_tags { " and hash tags" } else { "" },
        last.path.display()
    ));
    let (had, has) = (state.servers.len(), plan.file.servers.len());
    if had != has {
        return Err(Failure::Usage(format!(
            "the cluster had {had} servers, but the cluster file has {has}; a cluster is restored with the \
             same number of servers; check -C"
        )));
    }
    if let Some(shards) = args.shards.filter(|shards| *shards != state.shards) {
        let had = state.shards;
        return Err(Failure::Usage(format!(
            "the cluster had {had} shards, but --shards is {shards}; omit --shards"
        )));
    }
    if args.hash_tags && !state.hash_tags {
        return Err(Failure::Usage(
            "the cluster had no hash tags, and a restored cluster places keys as before; omit --hash-tags"
                .into(),
        ));
    }
    (plan.shards, plan.hash_tags) = (state.shards, state.hash_tags);
    plan.settings = last.record.settings.with(args);
    let changes = plan.settings.changes_since(&last.record.settings, false);
    changes.iter().for_each(|line| console.say(line));
    let serving = alive::who_may_serve(&last.record, &plan.ssh).await;
    if !serving.is_empty() && !args.force {
        return Err(Failure::Failed(may_serve(&serving, &last.path)));
    }
    for who in serving {
        console.warn(&format!("{who}; continuing because of --force"));
    }
    let found = in_thread({
        let (dirs, state) = (dirs.to_vec(), state.clone());
        move || gather::dumps(&dirs, &state, console)
    })
    .await?
    .map_err(Failure::Failed)?;
    let good: Vec<&gather::Found> = found.iter().filter(|found| found.dump.is_ok()).collect();
    let headers: Vec<DumpHeader> = good.iter().filter_map(|f| f.dump.clone().ok()).collect();
    let chosen = restore::choose(state, &headers)
        .map_err(|error| Failure::Failed(format!("{error} (given: {})", last.path.display())))?;
    let missing = report::missing(state, &headers);
    for line in report::dumps(&found, &chosen.verdicts).lines() {
        console.say(line.trim_end());
    }
    for line in report::groups(&good, &chosen).lines() {
        console.say(line.trim_end());
    }
    missing.iter().for_each(|line| console.warn(line));
    let loss = if args.accept_loss { Loss::Accepted } else { Loss::Refused };
    let foundings = chosen.foundings(loss).map_err(|refused| {
        let lost: Vec<String> = refused.groups.iter().map(ToString::to_string).collect();
        let lost = lost.join(", ");
        let mut text = format!(
            "no usable dump of these groups is left: {lost}. Find the missing dumps, or give --accept-loss: \
             then requests for keys of these groups get LOST"
        );
        let broken = found.iter().filter_map(|found| Some((found, found.dump.as_ref().err()?)));
        let broken = broken.map(|(found, why)| format!("{}: {why}", found.path.display()));
        for line in missing.iter().cloned().chain(broken) {
            text += "\n  ";
            text += &line;
        }
        Failure::Failed(text)
    })?;
    for group in chosen.lost() {
        console.warn(&format!("group {group} is LOST, which --accept-loss accepts"));
    }
    if let Some(tried) = state::tried(&args.dir) {
        alive::end_all(&tried, &plan.ssh).await;
    }
    let used = |at: &usize| chosen.verdicts[*at] == Verdict::Used;
    let used: Vec<usize> = (0..headers.len()).filter(used).collect();
    let files = in_thread({
        let sources = used.iter().map(|&at| (good[at].path.clone(), headers[at].origin));
        let sources: Vec<_> = sources.collect();
        let (dir, state) = (plan.dir.clone(), last.path.clone());
        move || stage::stage(&dir, &state, &sources)
    })
    .await?
    .map_err(Failure::Failed)?;
    let mut loads = vec![Vec::new(); has];
    for (&at, file) in used.iter().zip(files) {
        let group = headers[at].origin.group;
        let is_from = |shard: &ShardId| {
            chosen.source(group, *shard).is_some_and(|source| source.dump.0 == at)
        };
        let shards = (0..state.shards).map(ShardId).filter(is_from).collect();
        let load = Load { group, shards, file, bytes: good[at].bytes };
        let home = usize::from(group.0);
        loads[(home + 1) % has].push(load.clone());
        loads[home].push(load);
    }
    let bytes: u64 = loads.iter().flatten().map(|load| load.bytes).sum();
    let timeout = Duration::from_secs(bytes / DUMP_BYTES_PER_SECOND);
    let origin = Origin { foundings, ancestors: chosen.ancestors.clone() };
    let clients_port = last.record.place.ports.clients;
    let (cluster, dir) = (state.cluster, plan.dir.clone());
    let moved = Vec::new();
    Ok(Restoration { cluster, origin, clients_port, moved, loads, timeout, dir })
}

/// Returns the servers that run, or may run, where the cluster ran. Fails if one of them prevents the restore, unless
/// `--force` is given.
async fn refuse_running(
    args: &Args,
    dirs: &[PathBuf],
    plan: &Plan,
    cluster: ClusterId,
) -> Result<alive::Running, Failure> {
    let running = alive::who_runs_in(dirs, plan, cluster).await;
    if running.in_the_way.is_empty() || args.force {
        return Ok(running);
    }
    Err(Failure::Failed(format!(
        "servers run, or may run, where this cluster ran; without the state it is not known which data they \
         hold:\n {}\n  End each with SIGTERM: without a coordinator it writes its dumps first. Give --force \
         only if you know that none belongs to this cluster",
        running.in_the_way.join("\n  ")
    )))
}

/// Rebuilds the last state from the dumps. If parts of the state are uncertain, that is reported, and `--accept-loss`
/// is required.
async fn rebuild_state(
    args: &Args,
    dirs: &[PathBuf],
    plan: &Plan,
    console: Console,
) -> Result<state::Last, Failure> {
    // The cluster id is unknown before the dumps are read, so any server in these directories prevents the restore.
    refuse_running(args, dirs, plan, ClusterId::default()).await?;
    let read = in_thread({
        let (dirs, plan) = (dirs.to_vec(), plan.clone());
        move || rebuilt::state(&dirs, &plan, console)
    });
    let rebuilt::FromDumps { last, doubts } = read.await?.map_err(Failure::Failed)?;
    let running = refuse_running(args, dirs, plan, last.record.state.cluster).await;
    let running = running.inspect_err(|_| rebuilt::remove(&plan.dir))?;
    for who in running.elsewhere_perhaps {
        console.warn(&format!(
            "a server of another cluster runs: {who}; check that it does not belong to this cluster, restored \
             earlier"
        ));
    }
    console.warn(
        "the state is rebuilt from dumps alone (--without-state): it is not known whether servers of that \
         cluster still run. If a server does, two clusters serve the same keys",
    );
    if !doubts.is_empty() && !args.accept_loss {
        rebuilt::remove(&plan.dir);
        return Err(Failure::Failed(format!(
            "the dumps do not show for certain what the last state of these groups was:\n  {}\n  Find the \
             dumps of the other holders, or give --accept-loss to continue with the existing dumps",
            doubts.join("\n  ")
        )));
    }
    doubts.iter().for_each(|doubt| console.warn(doubt));
    Ok(last)
}

/// Returns the last state in these directories, or `None` if none can be read, which [`prepare`] reports.
pub(crate) fn last_record(dirs: &[PathBuf], own: &Path) -> Option<Record> {
    state::last(dirs, own).map(|last| last.record).ok()
}

/// Returns the message about members of the old cluster that may be running. They may hold newer data than any dump, so
/// the message begins with the option that keeps their data.
fn may_serve(lines: &[String], state: &Path) -> String {
    let dir = quote::word(&state.parent().unwrap_or(Path::new(".")).to_string_lossy());
    format!(
        "members of this cluster may still serve, and may hold data that is in no dump:\n  {}\n  to take them \
         over with all their data, start coord with --dir {dir} and without --restore; only if you know that \
         these processes have ended, restore with --force",
        lines.join("\n  ")
    )
}

impl Restoration {
    /// Removes the links, a rebuilt state, and all fetched dumps but the newest. They are no longer needed, because
    /// every group that is not LOST has two replicas again.
    pub(crate) fn finish(&self) {
        stage::remove(&self.dir);
        rebuilt::remove(&self.dir);
        fetched::remove_older(&self.dir);
    }

    /// Returns the dumps that a server loads.
    pub(crate) fn of(&self, server: ServerId) -> &[Load] {
        &self.loads[usize::from(server.0)]
    }
}

/// Runs blocking work on a separate thread, which does not prevent the process from ending.
async fn in_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (sender, receiver) = oneshot::channel();
    let spawned = std::thread::Builder::new().name("restore".into()).spawn(move || {
        // The receiver may have been dropped.
        let _ = sender.send(work());
    });
    spawned.map_err(|error| {
        Failure::Failed(format!("cannot start a thread of the restore: {error}"))
    })?;
    receiver.await.map_err(|_| Failure::Failed("a thread of the restore has panicked".into()))
}

/// Returns the command that restores this coordinator's cluster, for a shell: the command line of this process without
/// one-time flags. The command line of `coord stop` names no cluster file, so the result has a placeholder for it.
pub(crate) fn command(own: impl Iterator<Item = String>, dir: &Path) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut skips_values = false;
    let mut skips_one = false;
    for word in own {
        if std::mem::take(&mut skips_one) {
            continue;
        }
        let is_flag = word.starts_with('-');
        if skips_values && !is_flag {
            continue;
        }
        skips_values = word == "--restore";
        skips_one = ["--ready-fd", "--dump-dir"].contains(&&*word);
        let once =
            ["--restore", "--resume", "--ready-fd", "--dump-dir", "--accept-loss", "--force"];
        let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
        match words.len() == 1 && word == "stop" {
            true => words.extend(["-C", "FILE"].map(str::to_owned)),
            false if once.contains(&name) => {}
            false => words.push(word),
        }
    }
    words.extend(["--restore".to_owned(), dir.to_string_lossy().into_owned()]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_command_is_the_own_command_without_one_time_flags() {
        let own = "coord -C file --restore a b --dir d --ready-fd 5 --accept-loss --force --restore=x \
                   --daemon";
        let words = command(own.split_whitespace().map(str::to_owned), Path::new("/d"));
        assert_eq!(words.join(" "), "coord -C file --dir d --daemon --restore /d");
        let own = "coord stop --dir d --dump-dir /x --force";
        let words = command(own.split_whitespace().map(str::to_owned), Path::new("/d"));
        assert_eq!(words.join(" "), "coord -C FILE --dir d --restore /d");
    }

    #[test]
    fn the_load_argument_has_group_shards_and_file() {
        let load = Load {
            group: GroupId(3),
            shards: vec![ShardId(0), ShardId(2)],
            file: "x".into(),
            bytes: 0,
        };
        assert_eq!(load.argument("/a:b"), "3:0,2:/a:b");
    }
}
