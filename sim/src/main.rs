//! `sim`: runs seeds and prints statistics. After a failure it prints the command that repeats the run.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kv_sim::counts::Counts;
use kv_sim::world::Config;
use kv_sim::{Outcome, run};
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

/// Runs deterministic simulations of whole clusters under faults, and checks every invariant.
#[derive(Debug, Parser)]
struct Args {
    /// Number of fixed seeds; without --minutes or --hours, the run ends after them.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run only this seed, and print the last 20,000 lines of its trace; after a failure in one group, those of the
    /// group.
    #[arg(long, conflicts_with_all = ["seeds", "first_seed", "minutes", "hours", "threads", "enough"])]
    seed: Option<u64>,
    /// Run fresh seeds after the fixed ones, until this many minutes have passed.
    #[arg(long, default_value_t = 0.0)]
    minutes: f64,
    /// Hours to add to --minutes.
    #[arg(long, default_value_t = 0.0)]
    hours: f64,
    /// Number of parallel runs.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Also fail if a count of operations, checks or faults is below the minimum for ten minutes on two cores.
    #[arg(long)]
    enough: bool,
    /// Print the result as one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// The results of all runs so far.
#[derive(Default)]
struct Sum {
    counts: Counts,
    failure: Option<Outcome>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let start = Instant::now();
    let sum = match args.seed {
        Some(seed) => {
            let outcome = run(Config::of(seed));
            if outcome.failure.is_none() && !args.json {
                outcome.trace.iter().for_each(|line| println!("{line}"));
            }
            let mut sum = Sum::default();
            sum.add(outcome);
            sum
        }
        None => run_seeds(&args, start),
    };
    report(&args, &sum, start.elapsed())
}

impl Sum {
    /// Adds the result of a run. Only the trace of the first failure is kept, because all traces would fill the memory
    /// within an hour.
    fn add(&mut self, outcome: Outcome) {
        self.counts.add(&outcome.counts);
        if outcome.failure.is_some() && self.failure.is_none() {
            self.failure = Some(outcome);
        }
    }
}

/// Runs the fixed seeds, and then fresh seeds until the time is over. A failure ends all runs early.
fn run_seeds(args: &Args, start: Instant) -> Sum {
    // The panic message of a state machine is printed with the failure, so the default hook is disabled.
    std::panic::set_hook(Box::new(|_| {}));
    let length = Duration::from_secs_f64(args.minutes * 60.0 + args.hours * 3_600.0);
    // The fresh seeds differ between processes.
    let fresh = RandomState::new().hash_one(0) << 16;
    let (next, sum) = (AtomicU64::new(0), Mutex::new(Sum::default()));
    let bar = progress(args, length);
    let lock = || sum.lock().unwrap_or_else(|error| error.into_inner());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = n >= args.seeds && start.elapsed() >= length;
                    if is_over || lock().failure.is_some() {
                        return;
                    }
                    let seed = args.first_seed.wrapping_add(n);
                    let seed = if n < args.seeds { seed } else { seed ^ fresh };
                    let outcome = run(Config::of(seed));
                    let mut sum = lock();
                    sum.add(outcome);
                    show(&bar, &sum.counts, length, start.elapsed());
                }
            });
        }
    });
    bar.finish_and_clear();
    sum.into_inner().unwrap_or_else(|error| error.into_inner())
}

/// Creates a progress bar for the time, or for the seeds.
fn progress(args: &Args, length: Duration) -> ProgressBar {
    let total = if length.is_zero() { args.seeds } else { length.as_secs() };
    let bar = ProgressBar::new(total);
    let style = ProgressStyle::with_template("{wide_bar} {msg}, {eta} left");
    bar.set_style(style.expect("the template is valid"));
    bar
}

fn show(bar: &ProgressBar, counts: &Counts, length: Duration, elapsed: Duration) {
    bar.set_position(if length.is_zero() { counts.runs } else { elapsed.as_secs() });
    bar.set_message(format!("{} runs, {} faults", counts.runs, counts.all_faults()));
}

fn report(args: &Args, sum: &Sum, elapsed: Duration) -> ExitCode {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    #[allow(clippy::cast_precision_loss)] // Only for display.
    let cpu_minutes = (cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9) / 60.0;
    let missing = if args.enough { sum.counts.missing() } else { Vec::new() };
    let failure = sum.failure.as_ref().and_then(|run| run.failure.as_ref().map(|f| (run, f)));
    if args.json {
        let failure = failure.map(|(run, violation)| {
            json!({
                "seed": run.seed,
                "invariant": violation.invariant,
                "words": violation.words,
                "trace": run.trace,
            })
        });
        let all = json!({
            "counts": sum.counts,
            "seconds": elapsed.as_secs_f64(),
            "cpu_minutes": cpu_minutes,
            "missing": missing,
            "failure": failure,
        });
        println!("{all}");
    } else {
        println!("{}", sum.counts.table());
        println!("{}", sum.counts.rates(elapsed, cpu_minutes));
        if let Some((run, violation)) = failure {
            let seed = run.seed;
            run.trace.iter().for_each(|line| println!("{line}"));
            println!("\n{}", violation.words);
            let first = violation.words.lines().next().unwrap_or_default();
            println!("\nFAILED: seed {seed}, invariant {}: {first}", violation.invariant);
            println!("repeat: cargo run --profile sim -p kv-sim --bin sim -- --seed {seed}");
        }
        missing.iter().for_each(|words| println!("NOT ENOUGH: {words}"));
    }
    match failure.is_none() && missing.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
