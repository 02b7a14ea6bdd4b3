//! `sim-mutations`: applies one mutation after the other, and checks that the simulator detects it.
//!
//! The program prints a table with one line per mutation: the seed that detected it, the violated invariant and the
//! number of events, or NOT FOUND. The exit status is 1 if a mutation was not detected.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kv_core::mutations::{self, Mutation};
use kv_protocol::{Eviction, RedisMulti};
use kv_sim::run;
use kv_sim::world::Config;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Applies the mutations of the state machines, one at a time, and runs seeds until each mutation is detected.
#[derive(Debug, Parser)]
struct Args {
    /// Apply only the mutation with this number, and print the trace of the first run that detects it.
    #[arg(long, value_parser = mutations::number_of)]
    mutation: Option<u8>,
    /// CPU time limit of each detection, in minutes.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// First seed to run for each mutation.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Number of seeds that must detect each mutation; the reported number of events is their median.
    #[arg(long, default_value_t = 1)]
    seeds_per_mutation: usize,
    /// Number of mutations to test in parallel.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Print the findings as one JSON array instead of a table.
    #[arg(long)]
    json: bool,
}

/// The result for one mutation.
#[derive(Serialize)]
struct Finding {
    mutation: u8,
    rule_left_out: &'static str,
    /// The detection; `None` if the mutation was not detected.
    found: Option<Found>,
}

/// The first detection of a mutation, and the statistics of all detections.
#[derive(Serialize)]
struct Found {
    /// The first seed that detected the mutation.
    seed: u64,
    /// The violated invariant; 0 for a panic of a state machine.
    invariant: u8,
    /// The description of the violation.
    words: String,
    /// The median number of events until a detection, including the events of runs without a detection.
    events: u64,
    findings: usize,
    /// The CPU time until the first detection, in seconds.
    seconds: f64,
    /// The trace of the first run that detected the mutation. It is recorded only if a single mutation is tested.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    trace: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let wanted: Vec<Mutation> = mutations::ALL
        .into_iter()
        .filter(|mutation| args.mutation.is_none_or(|n| n == mutation.number()))
        .collect();
    let bar = ProgressBar::new(wanted.len() as u64);
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} mutations, {elapsed}");
    bar.set_style(style.expect("the template is valid"));
    let (next, findings) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let lock = || findings.lock().unwrap_or_else(|error| error.into_inner());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while let Some(mutation) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = find(*mutation, &args);
                    let (mutation, rule_left_out) = (mutation.number(), mutation.description());
                    lock().push(Finding { mutation, rule_left_out, found });
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut findings = findings.into_inner().unwrap_or_else(|error| error.into_inner());
    findings.sort_by_key(|finding| finding.mutation);
    let missed = findings.iter().filter(|finding| finding.found.is_none()).count();
    if args.json {
        println!("{}", serde_json::to_string(&findings).expect("findings are plain data"));
    } else {
        println!(
            "{:>8}  {:<52} {:>6} {:>9} {:>11} {:>7}",
            "mutation", "rule left out", "seed", "invariant", "events", "seconds"
        );
        for finding in &findings {
            let trace = finding.found.iter().flat_map(|found| &found.trace);
            println!("{}", line(finding));
            trace.for_each(|line| println!("{line}"));
        }
        println!("\n{} of {} mutations detected", findings.len() - missed, findings.len());
    }
    if missed == 0 && !findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs seeds with this mutation until enough have detected it, or the CPU limit is exceeded.
fn find(mutation: Mutation, args: &Args) -> Option<Found> {
    let start = cpu_seconds();
    let timeout = args.minutes * 60.0;
    let (mut events, mut spent) = (Vec::new(), 0);
    let mut first = None;
    let mut since = start;
    // Some mutations have an effect only in runs of one scenario (docs/recovery.md).
    let is_of_use = |seed: &u64| match mutation {
        Mutation::RestoreFromRemoved
        | Mutation::ShutdownAfterFailedDump
        | Mutation::StopByTheBareClock
        | Mutation::SoleKilledInStop => Config::of(*seed).shutdown,
        Mutation::VerdictByGroup
        | Mutation::AliveCountsAsFault
        | Mutation::HandshakeIsHeard
        | Mutation::ComplaintWithinLease
        | Mutation::AliveIsReplaced => Config::of(*seed).slow,
        Mutation::MovedWhileNamed => Config::of(*seed).moves,
        Mutation::PinLeftBehind | Mutation::SentAfterWait => Config::of(*seed).has_waves,
        Mutation::EvictedBySecondary => Config::of(*seed).bounds.eviction != Eviction::None,
        Mutation::StreamsLast | Mutation::TurnUnbounded | Mutation::OutputUnbounded => {
            Config::of(*seed).floods
        }
        Mutation::LeaverWins
        | Mutation::LeaverMadeHolder
        | Mutation::LastHoldersForgotten
        | Mutation::OrderlyExitIsDeath => Config::of(*seed).leaves,
        Mutation::SessionBegunByRetry
        | Mutation::IdleByTheClock
        | Mutation::RecordWithoutRequest
        | Mutation::PendingForgotten => Config::of(*seed).forgets_soon(),
        Mutation::RetriedUnderNewNumber
        | Mutation::ReadBeforeOwnWrite
        | Mutation::RepliesByCompletion
        | Mutation::DoubtReportedAsNotDone
        | Mutation::ClosedLaneReused => Config::of(*seed).redis > 0,
        Mutation::BegunWithinTransaction => {
            let config = Config::of(*seed);
            config.redis > 0 && config.bounds.redis_multi == RedisMulti::Ordered
        }
        Mutation::PlacedByWholeKey => Config::of(*seed).hash_tags,
        Mutation::ScanInAnotherOrder => Config::of(*seed).scans,
        Mutation::PendingNotDumped => Config::of(*seed).forgets_soon() && Config::of(*seed).leaves,
        _ => true,
    };
    for seed in (args.first_seed..).filter(is_of_use) {
        if cpu_seconds() - since >= timeout {
            break;
        }
        mutations::open(mutation);
        let outcome = run(Config::of(seed));
        mutations::close();
        spent += outcome.counts.events;
        let Some(violation) = outcome.failure else { continue };
        // The same seed must pass without the mutation. Otherwise the run has detected another fault.
        if run(Config::of(seed)).failure.is_some() {
            continue;
        }
        since = cpu_seconds();
        events.push(std::mem::take(&mut spent));
        first.get_or_insert((seed, violation, since - start, outcome.trace));
        if events.len() >= args.seeds_per_mutation {
            break;
        }
    }
    let (seed, violation, seconds, trace) = first?;
    events.sort_unstable();
    Some(Found {
        seed,
        invariant: violation.invariant,
        words: violation.words,
        events: events[events.len() / 2],
        findings: events.len(),
        seconds,
        trace: if args.mutation.is_some() { trace } else { Vec::new() },
    })
}

/// Returns the CPU time of this thread in seconds.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 / 1e9;
    seconds
}

fn line(finding: &Finding) -> String {
    let name = format!("{:>8}  {:<52}", finding.mutation, finding.rule_left_out);
    let Some(found) = &finding.found else { return format!("{name} NOT FOUND") };
    let words = found.words.lines().next().unwrap_or_default();
    let words: String = words.chars().take(60).collect();
    format!(
        "{name} {:>6} {:>9} {:>11} {:>7.1}  {words}",
        found.seed, found.invariant, found.events, found.seconds
    )
}
