//! `sim-holes`: leaves out one rule after the other, and sees that the simulator notices.
//!
//! Prints a table: hole, the seed that found it, by which invariant, after how many events; or NOT
//! FOUND. The exit status is 1 when one was not found.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use kv_core::holes::{self, Hole};
use kv_sim::run::run;
use kv_sim::world::Config;

/// Leaves out rules of the machines, one at a time, until a seed notices.
#[derive(Debug, Parser)]
struct Args {
    /// Only this hole, by its number.
    #[arg(long)]
    hole: Option<u8>,
    /// CPU minutes that each may take.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Seeds that must notice each; the events told are their median.
    #[arg(long, default_value_t = 1)]
    seeds_per_hole: usize,
    /// Holes at the same time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// How a hole was found.
struct Found {
    seed: u64,
    invariant: u8,
    words: String,
    /// Events to each finding: of the runs that noticed nothing too.
    events: Vec<u64>,
    seconds: f64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let wanted: Vec<Hole> = holes::ALL
        .into_iter()
        .filter(|hole| args.hole.is_none_or(|n| n == hole.number()))
        .collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                while let Some(hole) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = find(*hole, &args);
                    println!("{}", line(*hole, found.as_ref()));
                    let mut results = results.lock().unwrap_or_else(|e| e.into_inner());
                    results.push((*hole, found.is_some()));
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    let missed = results.iter().filter(|(_, is_found)| !is_found).count();
    println!("\n{} of {} holes found", results.len() - missed, results.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn find(hole: Hole, args: &Args) -> Option<Found> {
    let start = Instant::now();
    let patience = Duration::from_secs_f64(args.minutes * 60.0);
    let (mut events, mut spent) = (Vec::new(), 0);
    let mut first: Option<(u64, u8, String)> = None;
    for seed in 1.. {
        if start.elapsed() >= patience {
            break;
        }
        holes::open(hole);
        let outcome = run(Config::of(seed));
        holes::close();
        spent += outcome.counts.events;
        if let Some(violation) = outcome.failure {
            events.push(std::mem::take(&mut spent));
            first.get_or_insert((seed, violation.invariant, violation.words));
            if events.len() >= args.seeds_per_hole {
                break;
            }
        }
    }
    let (seed, invariant, words) = first?;
    events.sort_unstable();
    Some(Found { seed, invariant, words, events, seconds: start.elapsed().as_secs_f64() })
}

fn line(hole: Hole, found: Option<&Found>) -> String {
    let name = format!("{:>2}  {:<48}", hole.number(), hole.description());
    match found {
        None => format!("{name} NOT FOUND"),
        Some(found) => {
            let events = found.events[found.events.len() / 2];
            let words = found.words.lines().next().unwrap_or_default();
            let words: String = words.chars().take(60).collect();
            let by = match found.invariant {
                0 => "an assertion".to_owned(),
                n => format!("invariant {n}"),
            };
            format!(
                "{name} seed {:>4}  {by:<13} {events:>10} events {:>6.1} s  {words}",
                found.seed, found.seconds
            )
        }
    }
}
