//! What clients notice of a coordinator that is dead for a while.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Latencies, STRENGTH, cluster_dir, ms, percentile};
use crate::clock::now_ns;
use crate::cluster::{Cluster, Programs, Setting};
use crate::load::Load;
use crate::process::{self, Signal};

/// The command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct CoordinatorArgs {
    /// Seconds that it is dead, and that are looked at before.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Servers of the ring.
    #[arg(long, default_value_t = 3)]
    servers: u16,
}

pub(super) fn run(
    args: &CoordinatorArgs,
    programs: &Programs,
    dir: &Path,
) -> anyhow::Result<Value> {
    let setting = Setting { servers: args.servers, shards: 1, flags: Vec::new() };
    let mut cluster = Cluster::start(programs, &cluster_dir(dir), &setting, None)?;
    let load = Load::start(programs, &cluster, None, STRENGTH, 1)?;
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
    let records = load.stop(dir)?;
    cluster.stop()?;
    let usual = Latencies::between(&records, before, killed)?;
    let without = Latencies::between(&records, killed, after)?;
    let ratio = |one: &[Duration], other: &[Duration]| {
        let (one, other) = (percentile(one, 99), percentile(other, 99));
        (one.as_secs_f64() / other.as_secs_f64().max(1e-9) * 100.0).round() / 100.0
    };
    Ok(json!({
        "what": "the coordinator is dead under load",
        "seconds": args.seconds,
        "operations_without_it": without.reads.len() + without.writes.len(),
        "not_answered_without_it": without.unanswered,
        "not_answered_before": usual.unanswered,
        "read_p99_ms_before": ms(percentile(&usual.reads, 99)),
        "read_p99_ms_without_it": ms(percentile(&without.reads, 99)),
        "read_p99_ratio": ratio(&without.reads, &usual.reads),
        "write_p99_ms_before": ms(percentile(&usual.writes, 99)),
        "write_p99_ms_without_it": ms(percentile(&without.writes, 99)),
        "write_p99_ratio": ratio(&without.writes, &usual.writes),
        "taken_over_after_the_new_start_ms": ms(taken_over),
        "two_copies_again_after_a_kill_ms": ms(recovered),
    }))
}
