//! `sim`: runs seeds, prints what was done, and for a failure how to repeat it.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kv_sim::counts::Counts;
use kv_sim::run::{Outcome, run};
use kv_sim::world::Config;

/// Runs whole clusters under faults, deterministically, and checks every promise.
#[derive(Debug, Parser)]
struct Args {
    /// How many seeds; without --minutes or --hours it ends after them.
    #[arg(long, default_value_t = 20)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// One seed only, with the whole trace.
    #[arg(long)]
    seed: Option<u64>,
    /// After the seeds, fresh ones until so many minutes have passed.
    #[arg(long, default_value_t = 0.0)]
    minutes: f64,
    /// The same in hours.
    #[arg(long, default_value_t = 0.0)]
    hours: f64,
    /// Runs at the same time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(seed) = args.seed {
        let outcome = run(Config::of(seed));
        if outcome.failure.is_none() {
            outcome.trace.iter().for_each(|line| println!("{line}"));
        }
        return report(&[outcome], Duration::ZERO);
    }
    // What a machine says when it panics is part of the failure that is printed.
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let length = Duration::from_secs_f64(args.minutes * 60.0 + args.hours * 3_600.0);
    let next = AtomicU64::new(0);
    let has_failed = AtomicBool::new(false);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = n >= args.seeds && start.elapsed() >= length;
                    if is_over || has_failed.load(Ordering::Relaxed) {
                        return;
                    }
                    // Fresh seeds are fresh every time.
                    let fresh = u64::try_from(start.elapsed().as_nanos()).unwrap_or(0) << 20;
                    let seed = args.first_seed + n + if n < args.seeds { 0 } else { fresh };
                    let outcome = run(Config::of(seed));
                    has_failed.fetch_or(outcome.failure.is_some(), Ordering::Relaxed);
                    let mut outcomes = outcomes.lock().unwrap_or_else(|e| e.into_inner());
                    outcomes.push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(|e| e.into_inner());
    report(&outcomes, start.elapsed())
}

fn report(outcomes: &[Outcome], elapsed: Duration) -> ExitCode {
    let mut counts = Counts::default();
    for outcome in outcomes {
        counts.add(&outcome.counts);
    }
    println!("{}", counts.table());
    if !elapsed.is_zero() {
        let per_second = counts.operations as f64 / elapsed.as_secs_f64();
        println!("{:.0} s, {per_second:.0} operations a second", elapsed.as_secs_f64());
    }
    let Some(failed) = outcomes.iter().find(|outcome| outcome.failure.is_some()) else {
        return ExitCode::SUCCESS;
    };
    let Some(violation) = &failed.failure else { return ExitCode::SUCCESS };
    let seed = failed.seed;
    for line in &failed.trace {
        println!("{line}");
    }
    println!("\n{}", violation.words);
    let first = violation.words.lines().next().unwrap_or_default();
    println!("\nFAILED: seed {seed}, invariant {}: {first}", violation.invariant);
    println!("repeat: cargo run --profile sim -p kv-sim --bin sim -- --seed {seed}");
    ExitCode::FAILURE
}
