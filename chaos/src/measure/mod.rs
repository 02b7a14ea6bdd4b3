//! The measurements of the figures in docs/recovery.md, each on a separate cluster under load.
//!
//! ```text
//!   failover      a server is killed, or hangs: the time until its keys are served again    probe, aftermath
//!   copy          a server is killed: the rate of its refill, and the effects on clients    raw
//!   coordinator   the coordinator is killed: the effects on clients
//!   many          a ring of many servers: start, kills, idle cost, stop
//!   expiries      entries expire at a high rate: the part that is gone a second after its deadline
//!   overload      four times as many requests as can be served: suspicions, and memory
//!   floods        every shape of load on one server: changed views, longest gap between beacons
//!   all           all of them
//!     figures     the measured figures beside their targets: a table, and JSON
//! ```

mod aftermath;
mod all;
mod coordinator;
mod copy;
mod expiries;
mod failover;
mod figures;
pub(crate) mod floods;
mod many;
mod overload;
mod probe;
mod raw;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use kv_history::{Asked, Kind, Operations, Record};
use serde_json::{Value, json};

use crate::bulk::Bulk;
use crate::cluster::Programs;
use crate::load::Strength;
use figures::Figures;

/// The load during every measurement.
const STRENGTH: Strength = Strength { workers: 2, of_objects: 0, threads: 2, rate: 250 };

/// The command line of `chaos measure`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MeasureArgs {
    #[command(subcommand)]
    what: What,
    /// Print the result as one JSON object.
    #[arg(long, global = true)]
    json: bool,
}

/// The measurements.
#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Time from the kill (or stop) of a server until a PUT and a GET of its keys first succeed.
    Failover(failover::FailoverArgs),
    /// Rate at which the replacement of a server receives its data, and the effect on clients of the other servers.
    Copy(copy::CopyArgs),
    /// Effect on clients of a coordinator that is down for a while.
    Coordinator(coordinator::CoordinatorArgs),
    /// Start, kills and stop of a large ring, and its idle cost.
    Many(many::ManyArgs),
    /// Removal of entries that expire at a high rate.
    Expiries(expiries::ExpiriesArgs),
    /// Effect of four times the load that saturates a cluster.
    Overload(overload::OverloadArgs),
    /// Floods of requests of many shapes: no view may change, and no beacon may be late.
    Floods(floods::FloodsArgs),
    /// All measurements, one after the other, with the sizes that docs/recovery.md lists.
    All(all::AllArgs),
}

/// Runs the measurements and prints the figures. Returns whether every target was reached, except for targets for
/// speed.
pub(crate) fn run(args: &MeasureArgs, programs: &Programs) -> anyhow::Result<bool> {
    let progress = progress();
    let all = match &args.what {
        What::All(args) => all::run(args, programs, &progress),
        what => vec![measure(what, programs, &progress)?],
    };
    progress.finish_and_clear();
    let is_reached = all.iter().all(Figures::is_reached);
    let text = match args.json {
        true => {
            let measured: Vec<Value> = all.iter().map(Figures::to_json).collect();
            json!({ "measured": measured, "reached": is_reached }).to_string()
        }
        false => figures::render(&all),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(is_reached)
}

/// Runs one measurement in a new directory. The directory is kept if the measurement fails or misses a target.
fn measure(what: &What, programs: &Programs, progress: &ProgressBar) -> anyhow::Result<Figures> {
    let dir = tempfile::Builder::new().prefix("kv-measure-").tempdir();
    let dir = dir.context("make a directory for the cluster")?.keep();
    let measured = match what {
        What::Failover(args) => failover::run(args, programs, &dir, progress),
        What::Copy(args) => copy::run(args, programs, &dir),
        What::Coordinator(args) => coordinator::run(args, programs, &dir),
        What::Many(args) => many::run(args, programs, &dir),
        What::Expiries(args) => expiries::run(args, programs, &dir, progress),
        What::Overload(args) => overload::run(args, programs, &dir),
        What::Floods(args) => floods::run(args, programs, &dir, progress),
        What::All(_) => unreachable!("`all` was split into single measurements before"),
    };
    let kept = || format!("the logs are in {}", dir.display());
    let figures = measured.with_context(kept)?;
    match figures.is_reached() {
        true => drop(std::fs::remove_dir_all(&dir)),
        false => progress.suspend(|| eprintln!("a target was missed; {}", kept())),
    }
    Ok(figures)
}

/// Creates a progress line that shows the current measurement and the elapsed time.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {elapsed} {msg}");
    bar.set_style(style.expect("the template is right"));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Returns the amount of bulk data with which each server of a ring has `bytes` in its two tables.
fn bulk(servers: u16, bytes: u64, value_bytes: usize) -> Bulk {
    Bulk { count: bytes / 2 * u64::from(servers) / value_bytes as u64, value_bytes }
}

/// Converts a duration to milliseconds, rounded to a hundredth.
fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// Returns the duration at this percentile of a sorted list; zero if the list is empty.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((sorted.len() * percent / 100).min(last)).copied().unwrap_or_default()
}

/// Returns the ratio of a percentile of one sorted list to the same percentile of another.
fn ratio(sorted: &[Duration], others: &[Duration], percent: usize) -> f64 {
    let (ours, theirs) = (percentile(sorted, percent), percentile(others, percent));
    ours.as_secs_f64() / theirs.as_secs_f64().max(1e-9)
}

/// The latencies of operations that began in an interval, sorted, and the number of those without a response.
#[derive(Debug, Default)]
struct Latencies {
    reads: Vec<Duration>,
    writes: Vec<Duration>,
    without_response: u64,
}

impl Latencies {
    fn between(records: &[Record], from_ns: i64, to_ns: i64) -> anyhow::Result<Latencies> {
        let operations = Operations::pair(records)?;
        let mut latencies = Latencies::default();
        for (_, operation) in operations.all() {
            if !(from_ns..to_ns).contains(&operation.start) {
                continue;
            }
            // A failed condition is a response too.
            if operation.kind == Kind::Info || operation.entry.is_none() {
                latencies.without_response += 1;
                continue;
            }
            let took = u64::try_from(operation.end - operation.start).unwrap_or(0);
            let list = match operation.asked {
                Asked::Read => &mut latencies.reads,
                _ => &mut latencies.writes,
            };
            list.push(Duration::from_nanos(took));
        }
        latencies.reads.sort_unstable();
        latencies.writes.sort_unstable();
        Ok(latencies)
    }
}

/// Returns the directory of a measurement's cluster.
fn cluster_dir(dir: &std::path::Path) -> PathBuf {
    dir.join("cluster")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_list() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(&sorted, 50), Duration::from_millis(51));
        assert_eq!(percentile(&sorted, 99), Duration::from_millis(100));
        assert_eq!(percentile(&sorted[..1], 99), Duration::from_millis(1));
        assert_eq!(percentile(&[], 50), Duration::ZERO);
    }

    #[test]
    fn both_tables_of_each_server_together_hold_the_requested_bytes() {
        assert_eq!(bulk(3, 2 << 30, 1 << 10).count, 3 << 20);
    }
}
