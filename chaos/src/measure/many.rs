//! A large ring: whether it starts, survives kills and stops, and what it costs when idle.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{cluster_dir, ms, percentile};
use crate::cluster::{Cluster, Programs, Setting};
use crate::process::{self, Signal};
use crate::random::Random;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct ManyArgs {
    /// Servers of the ring.
    #[arg(long, default_value_t = 32)]
    servers: u16,
    /// Kills, each once all is whole again.
    #[arg(long, default_value_t = 10)]
    kills: u32,
    /// Seconds that the idle cluster is watched.
    #[arg(long, default_value_t = 20)]
    idle: u64,
}

pub(super) fn run(args: &ManyArgs, programs: &Programs, dir: &Path) -> anyhow::Result<Value> {
    let setting = Setting { servers: args.servers, shards: 1, flags: Vec::new() };
    let start = Instant::now();
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    let started = start.elapsed();
    let servers: Vec<u32> = process::servers_in(&cluster.dir).iter().map(|(pid, _)| *pid).collect();
    let all = || servers.iter().copied().chain([cluster.coord_pid()]);
    let before: Vec<f64> = all().map(cpu_seconds).collect::<anyhow::Result<_>>()?;
    std::thread::sleep(Duration::from_secs(args.idle));
    let after: Vec<f64> = all().map(cpu_seconds).collect::<anyhow::Result<_>>()?;
    #[allow(clippy::cast_precision_loss)] // A few minutes at most.
    let share = |at: usize| (after[at] - before[at]) / args.idle.max(1) as f64 * 100.0;
    let shares: Vec<f64> = (0..servers.len()).map(share).collect();
    let resident: Vec<u64> =
        servers.iter().map(|pid| resident_bytes(*pid)).collect::<anyhow::Result<_>>()?;
    let coordinator = (share(servers.len()), resident_bytes(cluster.coord_pid())?);
    let (mut random, mut whole) = (Random::new(1), Vec::new());
    for _ in 0..args.kills {
        let victim = u16::try_from(random.below(u64::from(args.servers))).expect("a server");
        process::signal(cluster.server_pid(victim)?, Signal::KILL);
        whole.push(cluster.wait_whole("after a kill in a large ring")?);
    }
    whole.sort_unstable();
    let start = Instant::now();
    let ended = cluster.stop()?;
    anyhow::ensure!(ended.success(), "coord ended with {ended}");
    let mean = |total: f64| (total / f64::from(args.servers) * 100.0).round() / 100.0;
    #[allow(clippy::cast_precision_loss)] // For people.
    let mib = |bytes: u64| (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0;
    Ok(json!({
        "what": "a large ring",
        "servers": args.servers,
        "start_ms": ms(started),
        "idle_cpu_percent_a_server": mean(shares.iter().sum()),
        "idle_cpu_percent_of_the_busiest": shares.iter().copied().fold(0.0, f64::max),
        "resident_mib_of_all_servers": mib(resident.iter().sum()),
        "resident_mib_of_the_largest": mib(resident.iter().copied().max().unwrap_or(0)),
        "idle_cpu_percent_of_the_coordinator": coordinator.0,
        "resident_mib_of_the_coordinator": mib(coordinator.1),
        "kills": args.kills,
        "two_copies_again_p50_ms": ms(percentile(&whole, 50)),
        "two_copies_again_worst_ms": ms(percentile(&whole, 100)),
        "stop_ms": ms(start.elapsed()),
    }))
}

/// Processor time of a process so far, in seconds.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("server process {pid} has ended"))?;
    // After the name, which may hold anything: state is field 3, utime 14, stime 15.
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    let ticks =
        |at: usize| -> f64 { fields.get(at - 3).and_then(|f| f.parse().ok()).unwrap_or(0.0) };
    #[allow(clippy::cast_precision_loss)] // 100 on every Linux.
    let a_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((ticks(14) + ticks(15)) / a_second)
}

fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("server process {pid} has ended"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    let kilobytes: u64 = line.split_whitespace().next().unwrap_or("0").parse()?;
    Ok(kilobytes << 10)
}
