//! `sim-exhaustive`: visits every state of one group within the bounds of each scope.
//!
//! For each scope the program prints the numbers of states and transitions, the depth, and the end of the search:
//! exhausted, or cut at a limit. With the feature `mutations` it then applies one mutation after the other. For
//! each mutation it prints the shortest trace to a violated invariant, and the shortest trace to a violation that a
//! client could observe. The exit status is 1 if an invariant is violated without a mutation, or if a mutation that
//! concerns one group was not detected.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use clap::builder::PossibleValuesParser;
use indicatif::{MultiProgress, ProgressBar};
use kv_sim::exhaustive::scope::{self, Scope};
use kv_sim::exhaustive::search::{End, Found, Limits, search};
use kv_sim::exhaustive::step::Judged;
use kv_sim::exhaustive::trace;

/// Visits every state of one group within bounds, breadth-first.
#[derive(Debug, Parser)]
struct Args {
    /// Search only the scope with this name.
    #[arg(long, value_parser = PossibleValuesParser::new(scope::all().iter().map(|scope| scope.name)))]
    scope: Option<String>,
    /// Maximum number of actions after the initial state of a scope.
    #[arg(long, default_value_t = 200)]
    depth: u32,
    /// Maximum number of states of a scope; a million take about 1 GB.
    #[arg(long, default_value_t = 1_500_000)]
    states: usize,
    /// Time limit of one scope, in minutes.
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Apply only the mutation with this number and print its shortest traces, or apply none if the number is 0.
    /// Needs the cargo feature `mutations`.
    #[arg(long, value_parser = mutation_number)]
    mutation: Option<u8>,
    /// If two paths lead to one machine state, execute each step from this state after both paths, and compare the
    /// results.
    #[arg(long)]
    audit: bool,
    /// Number of parallel searches.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

impl Args {
    fn limits(&self) -> Limits {
        let time = Duration::from_secs_f64(self.minutes * 60.0);
        Limits { depth: self.depth, states: self.states, time, is_audited: self.audit }
    }

    fn scopes(&self) -> Vec<Scope> {
        let is_wanted = |scope: &Scope| self.scope.as_deref().is_none_or(|name| name == scope.name);
        scope::all().into_iter().filter(is_wanted).collect()
    }
}

/// Parses the number of a mutation, or 0 for none.
#[cfg(feature = "mutations")]
fn mutation_number(text: &str) -> Result<u8, String> {
    if text == "0" { Ok(0) } else { kv_core::mutations::number_of(text) }
}

#[cfg(not(feature = "mutations"))]
fn mutation_number(text: &str) -> Result<u8, String> {
    match text {
        "0" => Ok(0),
        _ => Err("this needs the cargo feature `mutations`; run `make sim-exhaustive`".to_owned()),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    std::panic::set_hook(Box::new(|_| {}));
    let bars = MultiProgress::new();
    if args.mutation.is_none_or(|mutation| mutation == 0) && !with_all_rules(&args, &bars) {
        return ExitCode::FAILURE;
    }
    #[cfg(feature = "mutations")]
    if args.mutation != Some(0) && !mutant::without_rules(&args, &bars) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Calls `work` for every number below `count`, on `threads` threads.
fn in_parallel(threads: usize, count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|all| {
        for _ in 0..threads.max(1) {
            all.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    work(number);
                }
            });
        }
    });
}

fn watched(
    bars: &MultiProgress,
    what: &str,
    scope: &Scope,
    judged: Judged,
    limits: Limits,
) -> Found {
    let bar = bars.add(ProgressBar::new_spinner());
    let found = search(scope, judged, limits, |states, depth, waiting| {
        bar.set_message(format!(
            "{what} {}: depth {depth}, {states} states, {waiting} left at this depth",
            scope.name
        ));
        bar.tick();
    });
    bar.finish_and_clear();
    bars.remove(&bar);
    found
}

fn with_all_rules(args: &Args, bars: &MultiProgress) -> bool {
    let scopes = args.scopes();
    println!(
        "{:<22} {:>9} {:>11} {:>5} {:>8} {:>7} {:>7}  end",
        "scope", "states", "transitions", "depth", "replicas", "brains", "seconds"
    );
    let whole = Mutex::new(true);
    in_parallel(args.threads, scopes.len(), |number| {
        let scope = &scopes[number];
        let found = watched(bars, "all rules,", scope, Judged::Everything, args.limits());
        let end = match found.end {
            End::Exhausted => "exhausted".to_owned(),
            End::Broken => "BROKEN".to_owned(),
            limit => format!("cut at the limit of {limit:?}").to_lowercase(),
        };
        bars.suspend(|| {
            println!(
                "{:<22} {:>9} {:>11} {:>5} {:>8} {:>7} {:>7.1}  {end}",
                scope.name,
                found.states,
                found.transitions,
                found.depth,
                found.replica_states,
                found.brain_states,
                found.time.as_secs_f64()
            );
            if let Some((violation, way)) = &found.broken {
                println!("\n{}: {}", violation.invariant, violation.words);
                trace::tell(scope, Judged::Everything, way).iter().for_each(|l| println!("{l}"));
            }
        });
        if found.broken.is_some() {
            *whole.lock().unwrap_or_else(|e| e.into_inner()) = false;
        }
    });
    println!(
        "invariants checked: 1-14, 16, 17, 19 (no dead member stays named), 20; \
         sim/src/exhaustive/properties.rs lists when each is checked\n"
    );
    whole.into_inner().unwrap_or_else(|e| e.into_inner())
}

#[cfg(feature = "mutations")]
mod mutant {
    use kv_core::mutations::{self, Mutation};
    use kv_sim::invariants::Violation;

    use super::*;

    /// The mutations that have no effect within one group, each with the reason.
    const OUTSIDE: [(Mutation, &str); 30] = [
        (Mutation::RestoreFromRemoved, "a restore reads dump files"),
        (Mutation::LeaverWins, "servers receive no stop signals here"),
        (Mutation::LeaverMadeHolder, "servers receive no stop signals here"),
        (Mutation::LastHoldersForgotten, "servers receive no stop signals here"),
        (Mutation::OrderlyExitIsDeath, "servers receive no stop signals here"),
        (Mutation::PinLeftBehind, "tables are not compacted here"),
        (Mutation::VerdictByGroup, "a verdict concerns all groups of a server"),
        (Mutation::AliveCountsAsFault, "a verdict concerns all groups of a server"),
        (Mutation::HandshakeIsHeard, "a verdict concerns all groups of a server"),
        (Mutation::ComplaintWithinLease, "a verdict concerns all groups of a server"),
        (Mutation::AliveIsReplaced, "a verdict concerns all groups of a server"),
        (Mutation::ShutdownAfterFailedDump, "a stop concerns the whole cluster"),
        (Mutation::StopByTheBareClock, "a stop concerns the whole cluster"),
        (Mutation::SoleKilledInStop, "a stop concerns the whole cluster"),
        (Mutation::PendingNotDumped, "no dumps are written here"),
        (Mutation::FailedDecisionKept, "no store fails here"),
        (Mutation::FailedStoreBelieved, "no store fails here"),
        (Mutation::SessionBegunByRetry, "the search ends before sessions expire"),
        (Mutation::IdleByTheClock, "the search ends before sessions expire"),
        (Mutation::RecordWithoutRequest, "no two clients have the same id here"),
        (Mutation::PendingForgotten, "the search ends before sessions expire"),
        (Mutation::MovedWhileNamed, "a move concerns the whole cluster"),
        (Mutation::NotDoneWithoutRecord, "no client abandons a write here"),
        (Mutation::ResolveOverPending, "no client abandons a write here"),
        (Mutation::LateWriteExecuted, "no client abandons a write here"),
        (Mutation::SentAfterWait, "no value is long here"),
        (Mutation::StreamsLast, "wake-ups have one input each here"),
        (Mutation::TurnUnbounded, "wake-ups have one input each here"),
        (Mutation::OutputUnbounded, "sockets always have room here"),
        (Mutation::HalfClosedClientDropped, "no client shuts down its connection here"),
    ];

    /// The shortest trace that detects a mutation.
    struct Shortest {
        scope: Scope,
        violation: Violation,
        way: Vec<kv_sim::exhaustive::world::Action>,
    }

    /// The result of the searches for one mutation.
    #[derive(Default)]
    struct Outcome {
        shortest: Option<Shortest>,
        exhausted: usize,
        cut: Vec<&'static str>,
        useless: Vec<&'static str>,
        states: usize,
    }

    pub(super) fn without_rules(args: &Args, bars: &MultiProgress) -> bool {
        let wanted: Vec<Mutation> = mutations::ALL
            .into_iter()
            .filter(|mutation| args.mutation.is_none_or(|n| n == mutation.number()))
            .collect();
        let missed = AtomicUsize::new(0);
        in_parallel(args.threads, wanted.len(), |number| {
            let mutation = wanted[number];
            let name = format!("{:>2}  {:<48}", mutation.number(), mutation.description());
            if let Some((_, why)) = OUTSIDE.iter().find(|(outside, _)| *outside == mutation) {
                return bars.suspend(|| println!("{name} outside one group: {why}"));
            }
            let any = outcome(mutation, Judged::Everything, args, bars);
            // A trace that clients can observe also violates an invariant, so without any violation there is no second
            // search.
            let seen = match &any.shortest {
                Some(_) => outcome(mutation, Judged::ByClients, args, bars),
                None => Outcome::default(),
            };
            if any.shortest.is_none() {
                missed.fetch_add(1, Ordering::Relaxed);
            }
            bars.suspend(|| {
                println!("{name} {}", words(&any));
                if any.shortest.is_some() {
                    println!("{:>52} by clients: {}", "", words(&seen));
                }
                if args.mutation.is_some() {
                    tell(mutation, Judged::Everything, &any);
                    tell(mutation, Judged::ByClients, &seen);
                }
            });
        });
        let missed = missed.into_inner();
        println!("\n{missed} mutations that concern one group were not detected");
        missed == 0
    }

    fn outcome(mutation: Mutation, judged: Judged, args: &Args, bars: &MultiProgress) -> Outcome {
        let mut outcome = Outcome::default();
        mutations::open(mutation);
        for scope in args.scopes() {
            let mut limits = args.limits();
            // Only a trace shorter than the known one is of interest.
            if let Some(shortest) = &outcome.shortest {
                let known = u32::try_from(shortest.way.len()).unwrap_or(u32::MAX);
                limits.depth = limits.depth.min(known.saturating_sub(1));
            }
            let what = format!("mutation {},", mutation.number());
            let found = watched(bars, &what, &scope, judged, limits);
            outcome.states += found.states;
            match (found.end, found.broken) {
                (End::Exhausted, _) => outcome.exhausted += 1,
                // With this mutation the initial state of the scope violates an invariant or cannot be reached, so the
                // scope does not apply.
                (_, Some((_, way))) if way.is_empty() => outcome.useless.push(scope.name),
                (_, Some((violation, way))) => {
                    outcome.shortest = Some(Shortest { scope, violation, way });
                }
                // Every path shorter than the known trace was searched.
                (End::Depth, None) if limits.depth < args.depth => {}
                (_, None) => outcome.cut.push(scope.name),
            }
        }
        mutations::close();
        outcome
    }

    fn words(outcome: &Outcome) -> String {
        match &outcome.shortest {
            Some(Shortest { scope, violation, way }) => {
                let words: String = violation.words.chars().take(70).collect();
                format!(
                    "{:>2} steps in {:<20} {:>2}: {words}",
                    way.len(),
                    scope.name,
                    violation.invariant
                )
            }
            None => format!(
                "NOT FOUND in {} states; {} scopes exhausted, cut: {:?}, not applicable: {:?}",
                outcome.states, outcome.exhausted, outcome.cut, outcome.useless
            ),
        }
    }

    fn tell(mutation: Mutation, judged: Judged, outcome: &Outcome) {
        let Some(Shortest { scope, way, .. }) = &outcome.shortest else { return };
        println!("\n{judged:?}, from the initial state of {:?} ({}):", scope.name, scope.words);
        mutations::open(mutation);
        trace::tell(scope, judged, way).iter().for_each(|line| println!("{line}"));
        mutations::close();
    }
}
