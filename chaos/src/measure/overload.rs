//! The effects of an overload, with four times as many requests as the servers can handle: on views, on memory, and on
//! latencies.
//!
//! ```text
//!   kv-bench, closed loop   --> operations per second that saturate the cluster
//!   kv-bench --rate 4 times --> the excess is queued in kv-bench; changed views and memory are measured
//! ```

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use kv_testkit::coord::is_whole;
use kv_testkit::process::resident_bytes;
use serde_json::Value;

use super::cluster_dir;
use super::figures::Figures;
use crate::cluster::{Cluster, Programs, Setting};

/// The requested load as a multiple of the saturating one.
const TIMES: f64 = 4.0;
/// The arguments of kv-bench for the load, which saturates servers on a few cores.
const LOAD: &str =
    "--keys 100k --value-size 64 --connections 50 --depth 16 --reads 50 --json --verify";
/// The maximum growth of a server's memory compared with saturation, in MiB.
const MOST_GROWTH_MIB: f64 = 64.0;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct OverloadArgs {
    /// Seconds of overload.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

pub(super) fn run(args: &OverloadArgs, programs: &Programs, dir: &Path) -> anyhow::Result<Figures> {
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &Setting::plain(3, 1), None)?;
    let servers: Vec<u32> = cluster.servers().iter().map(|(pid, _)| *pid).collect();
    let largest = || -> anyhow::Result<u64> {
        let all = servers.iter().map(|pid| resident_bytes(*pid));
        Ok(all.collect::<anyhow::Result<Vec<_>>>()?.into_iter().max().unwrap_or(0))
    };
    let views = |cluster: &Cluster| -> anyhow::Result<Vec<u64>> {
        let status = cluster.status()?;
        anyhow::ensure!(is_whole(&status), "the cluster is not whole");
        Ok(status.groups.iter().map(|group| group.view.0).collect())
    };
    let before = views(&cluster)?;
    let usual = bench(programs, &cluster, &["--load", "--duration", "10"])?;
    let saturated = number(&usual, "per_second")?;
    let usual_bytes = largest()?;
    let rate = format!("{:.0}", saturated * TIMES);
    let seconds = args.seconds.to_string();
    let over = bench(programs, &cluster, &["--rate", &rate, "--duration", &seconds])?;
    let over_bytes = largest()?;
    // A wrong suspicion would have changed the views of the suspected server's groups.
    let after = views(&cluster).context("after the overload")?;
    let ended = cluster.stop()?;
    anyhow::ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
    let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut figures = Figures::of(format!("{TIMES} times saturation for {} s", args.seconds));
    figures.state("operations a second that saturate", saturated, "");
    figures.state("operations a second under overload", number(&over, "per_second")?, "");
    figures.none("groups whose view has changed", changed as u64);
    for (name, run) in [("saturated", &usual), ("overloaded", &over)] {
        let count = |field: &str| run[field].as_u64().with_context(|| missing(field));
        figures.none(format!("operations that failed, {name}"), count("failed")?);
        figures.none(format!("values that were wrong, {name}"), count("mismatched")?);
        figures.none(format!("writes with one copy, {name}"), count("single_copies")?);
        figures.state(format!("p99, {name}"), number(&run["all"], "p99")? / 1_000.0, "ms");
    }
    figures.state("memory of the largest server, saturated", mib(usual_bytes), "MiB");
    let growth = mib(over_bytes.saturating_sub(usual_bytes));
    figures.below("growth of that memory, overloaded", growth, "MiB", MOST_GROWTH_MIB);
    Ok(figures)
}

/// Runs kv-bench, which succeeds only if every response was received and correct. Returns its result.
fn bench(programs: &Programs, cluster: &Cluster, more: &[&str]) -> anyhow::Result<Value> {
    let program = programs.coord.with_file_name("kv-bench");
    let ended = Command::new(&program)
        .args(["--target", &format!("kv+wire://{}", cluster.endpoint())])
        .args(LOAD.split(' '))
        .args(more)
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    anyhow::ensure!(ended.status.success(), "kv-bench ended with {}: {said}", ended.status);
    serde_json::from_slice(&ended.stdout).context("parse the output of kv-bench")
}

fn number(run: &Value, field: &str) -> anyhow::Result<f64> {
    run[field].as_f64().with_context(|| missing(field))
}

fn missing(field: &str) -> String {
    format!("the output of kv-bench has no {field}")
}
