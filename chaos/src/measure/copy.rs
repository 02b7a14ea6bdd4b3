//! The rate at which the replacement of a killed server receives its data while the others serve, and the effects
//! on clients.

use std::path::Path;
use std::time::Duration;

use kv_testkit::process::{self, Signal};

use super::figures::Figures;
use super::{Latencies, STRENGTH, bulk, cluster_dir, ms, percentile, ratio, raw};
use crate::clock::now_ns;
use crate::cluster::{Cluster, Programs, Setting};
use crate::load::Load;
use crate::steps::{Steps, Told};

/// The target for the ratio of the p99 latency during the copy to the p99 latency before, as an upper bound.
const MOST_P99_RATIO: f64 = 2.0;
/// The target for the rate of the copy, in percent of the rate of a raw TCP stream, as a lower bound.
const LEAST_SHARE: f64 = 70.0;

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CopyArgs {
    /// Total data in the two tables of each server. All of it is copied to the replacement.
    #[arg(long, default_value = "1G", value_parser = kv_protocol::size::parse)]
    data: u64,
    /// Length of a value in bytes.
    #[arg(long, default_value_t = 1_024)]
    value_bytes: usize,
    /// Seconds of measurement before the kill.
    #[arg(long, default_value_t = 10)]
    before: u64,
    /// Number of servers in the ring.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=32))]
    servers: u16,
    /// Number of shards of each group.
    #[arg(long, default_value_t = 1)]
    shards: u16,
}

pub(super) fn run(args: &CopyArgs, programs: &Programs, dir: &Path) -> anyhow::Result<Figures> {
    let setting = Setting::plain(args.servers, args.shards);
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    bulk(args.servers, args.data, args.value_bytes).write(&cluster.endpoint(), |_| {})?;
    let load = Load::start(programs, &cluster, &cluster.dir, None, STRENGTH, 1)?;
    std::thread::sleep(Duration::from_secs(1));
    let before = now_ns();
    std::thread::sleep(Duration::from_secs(args.before));
    let mut steps = Steps::from_now(&cluster.log());
    let kill = now_ns();
    process::signal(cluster.server_pid(1)?, Signal::KILL);
    let (mut begun, mut copied) = (None, None);
    while copied.is_none() {
        for (id, told) in steps.news() {
            match told {
                Told::Step(2 | 3) if id == 1 && begun.is_none() => begun = Some(now_ns()),
                Told::Step(5) | Told::Back if id == 1 => copied = Some(now_ns()),
                _ => {}
            }
        }
        std::thread::sleep(Duration::from_millis(1));
        anyhow::ensure!(
            now_ns() - kill < 600_000_000_000,
            "the copy did not complete within 600 s of the kill"
        );
    }
    let (begun, copied) = (begun.unwrap_or(kill), copied.unwrap_or(kill));
    cluster.wait_whole("after the copy")?;
    let records = load.stop(dir)?.registers;
    cluster.stop()?;
    let usual = Latencies::between(&records, before, kill)?;
    let during = Latencies::between(&records, begun, copied)?;
    let through = Latencies::between(&records, kill, copied)?;
    let longest = through.reads.iter().chain(&through.writes).max().copied().unwrap_or_default();
    let seconds = Duration::from_nanos(u64::try_from(copied - begun).unwrap_or(1)).as_secs_f64();
    anyhow::ensure!(
        !during.reads.is_empty(),
        "no read completed during the copy; use a larger --data"
    );
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let rate = args.data as f64 / f64::from(1 << 20) / seconds;
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let raw = args.data as f64 / f64::from(1 << 20) / raw::stream(args.data)?.as_secs_f64();
    let mut figures = Figures::of(format!(
        "a killed server is refilled with {} MiB of values of {} bytes, under load",
        args.data >> 20,
        args.value_bytes
    ));
    figures.state("rate of the copy", rate, "MiB/s");
    figures.state("a raw TCP stream over the loopback, 64 KiB pieces", raw, "MiB/s");
    let share = rate / raw * 100.0;
    figures.should_be_at_least("the copy's share of that rate", share, "%", LEAST_SHARE);
    for (name, before, now) in
        [("GET", &usual.reads, &during.reads), ("PUT, CAS, DELETE", &usual.writes, &during.writes)]
    {
        for percent in [50, 99] {
            let (before, now) = (percentile(before, percent), percentile(now, percent));
            figures.state(format!("{name}, p{percent} before"), ms(before), "ms");
            figures.state(format!("{name}, p{percent} during"), ms(now), "ms");
        }
        let p99 = ratio(now, before, 99);
        figures.should_be_at_most(format!("{name}, p99 during / before"), p99, MOST_P99_RATIO);
    }
    figures.state("longest operation since the kill", ms(longest), "ms");
    figures
        .none("operations without a response", usual.without_response + through.without_response);
    Ok(figures)
}
