//! The effects on clients while the coordinator is down.

use std::path::Path;
use std::time::Duration;

use kv_testkit::process::{self, Signal};

use super::figures::Figures;
use super::{Latencies, STRENGTH, cluster_dir, ms, percentile, ratio};
use crate::clock::now_ns;
use crate::cluster::{Cluster, Programs, Setting};
use crate::load::Load;

/// The maximum ratio of the p99 latency without a coordinator to the p99 latency before.
const MOST_P99_RATIO: f64 = 1.5;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CoordinatorArgs {
    /// Seconds without a coordinator. Latencies are first measured for the same time with a coordinator.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Number of servers in the ring.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=32))]
    servers: u16,
}

pub(super) fn run(
    args: &CoordinatorArgs,
    programs: &Programs,
    dir: &Path,
) -> anyhow::Result<Figures> {
    let setting = Setting::plain(args.servers, 1);
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    let load = Load::start(programs, &cluster, &cluster.dir, None, STRENGTH, 1)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = now_ns();
    std::thread::sleep(Duration::from_secs(args.seconds));
    let killed = now_ns();
    cluster.kill_coordinator()?;
    std::thread::sleep(Duration::from_secs(args.seconds));
    let after = now_ns();
    cluster.restart_coordinator()?;
    let taken_over = cluster.wait_whole("after the coordinator was started again")?;
    process::signal(cluster.server_pid(1)?, Signal::KILL);
    let recovered = cluster.wait_whole("after a server was killed, under the new coordinator")?;
    let records = load.stop(dir)?.registers;
    let ended = cluster.stop()?;
    anyhow::ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
    let usual = Latencies::between(&records, before, killed)?;
    let without = Latencies::between(&records, killed, after)?;
    let mut figures =
        Figures::of(format!("the coordinator is dead for {} s under load", args.seconds));
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let operations = (without.reads.len() + without.writes.len()) as f64;
    figures.state("operations without it", operations, "");
    figures
        .none("operations without a response", usual.without_response + without.without_response);
    for (name, before, now) in [
        ("GET", &usual.reads, &without.reads),
        ("PUT, CAS, DELETE", &usual.writes, &without.writes),
    ] {
        figures.state(format!("{name}, p99 before"), ms(percentile(before, 99)), "ms");
        figures.state(format!("{name}, p99 without it"), ms(percentile(now, 99)), "ms");
        let p99 = ratio(now, before, 99);
        figures.at_most(format!("{name}, p99 without / before"), p99, "", MOST_P99_RATIO);
    }
    figures.state("until whole under the new coordinator", ms(taken_over), "ms");
    figures.state("until two copies after a kill, under the new one", ms(recovered), "ms");
    Ok(figures)
}
