//! The measurement of a large ring: start, recoveries after kills, stop, and idle cost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kv_testkit::process::{self, Signal};
use kv_testkit::random::Random;

use super::figures::Figures;
use super::{cluster_dir, ms, percentile};
use crate::cluster::{Cluster, Programs, Setting};

/// The exclusive upper bound of an idle server's CPU usage, in percent of a core.
const IDLE_PERCENT: f64 = 1.0;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ManyArgs {
    /// Number of servers in the ring.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(3..=64))]
    servers: u16,
    /// Number of kills. Each follows when the cluster is whole again.
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Seconds for which the idle cluster is measured.
    #[arg(long, default_value_t = 20)]
    idle: u64,
}

pub(super) fn run(args: &ManyArgs, programs: &Programs, dir: &Path) -> anyhow::Result<Figures> {
    let setting = Setting::plain(args.servers, 1);
    let start = Instant::now();
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    let started = start.elapsed();
    let servers: Vec<u32> = cluster.servers().iter().map(|(pid, _)| *pid).collect();
    let all = || servers.iter().copied().chain([cluster.coord_pid()]);
    let before: Vec<f64> = all().map(cpu_seconds).collect::<anyhow::Result<_>>()?;
    std::thread::sleep(Duration::from_secs(args.idle));
    let after: Vec<f64> = all().map(cpu_seconds).collect::<anyhow::Result<_>>()?;
    #[allow(clippy::cast_precision_loss)] // A few minutes at most.
    let share = |at: usize| (after[at] - before[at]) / args.idle.max(1) as f64 * 100.0;
    let shares: Vec<f64> = (0..servers.len()).map(share).collect();
    let resident: Vec<u64> =
        servers.iter().map(|pid| process::resident_bytes(*pid)).collect::<anyhow::Result<_>>()?;
    let coordinator = (share(servers.len()), process::resident_bytes(cluster.coord_pid())?);
    let (mut random, mut whole) = (Random::new(1), Vec::new());
    for _ in 0..args.kills {
        let victim = u16::try_from(random.below(u64::from(args.servers))).expect("a server");
        process::signal(cluster.server_pid(victim)?, Signal::KILL);
        whole.push(cluster.wait_whole("after a kill in a large ring")?);
    }
    whole.sort_unstable();
    let start = Instant::now();
    let ended = cluster.stop()?;
    anyhow::ensure!(ended.success(), "coord ended with {ended} after an orderly stop");
    let stopped = start.elapsed();
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mean = shares.iter().sum::<f64>() / f64::from(args.servers);
    let mut figures = Figures::of(format!("a ring of {} servers", args.servers));
    figures.state("start", ms(started), "ms");
    figures.below("idle, mean of the servers", mean, "% of a core", IDLE_PERCENT);
    let busiest = shares.iter().copied().fold(0.0, f64::max);
    figures.below("idle, the busiest server", busiest, "% of a core", IDLE_PERCENT);
    figures.state("idle, the coordinator", coordinator.0, "% of a core");
    figures.state("memory of all servers", mib(resident.iter().sum()), "MiB");
    figures.state(
        "memory of the largest server",
        mib(resident.iter().copied().max().unwrap_or(0)),
        "MiB",
    );
    figures.state("memory of the coordinator", mib(coordinator.1), "MiB");
    figures.state("kills that were survived", f64::from(args.kills), "");
    figures.state("two copies again, p50", ms(percentile(&whole, 50)), "ms");
    figures.state("two copies again, worst", ms(percentile(&whole, 100)), "ms");
    figures.state("stop, exit code 0, after", ms(stopped), "ms");
    Ok(figures)
}

/// Returns the CPU time of a process so far, in seconds.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read the CPU time of process {pid}"))?;
    // The fields are counted after the name, which may contain any character: state is field 3, utime 14, stime 15.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    let ticks =
        |at: usize| -> f64 { fields.get(at - 3).and_then(|f| f.parse().ok()).unwrap_or(0.0) };
    #[allow(clippy::cast_precision_loss)] // 100 on every Linux.
    let a_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((ticks(14) + ticks(15)) / a_second)
}
