//! A run: the planning and execution of its rounds.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use kv_testkit::programs::show_logs;
use kv_testkit::random::{Random, fresh_seed};

use crate::abilities::{self, Abilities};
use crate::args::Args;
use crate::cluster::Programs;
use crate::enough::{self, Demand};
use crate::faults::{self, Double, Fault, Policy, Turns};
use crate::network::{self, Network};
use crate::ordinary::ground::Ground;
use crate::ordinary::{self, Day};
use crate::report::Report;
use crate::round::{Aim, Outcome, Round};

/// The number of faults in a round. Each round has a new cluster.
const FAULTS_A_ROUND: u32 = 20;
/// One in this many faults is a double fault, which ends its round.
const DOUBLE_ONE_IN: u32 = 8;
/// The number of failed rounds after which a run ends.
const MOST_FAILED: usize = 3;
/// The number of faults in the slice that `make test` runs.
const SLICE_FAULTS: u32 = 28;
/// The minimum number of faults in the slice on a slow machine.
const SLICE_LEAST: u32 = SLICE_FAULTS / 2;
/// The time limit of the slice, in minutes.
const SLICE_MINUTES: f64 = 2.0;
/// The additional time limit for the ordinary days of the slice, in minutes.
const SLICE_ORDINARY_MINUTES: f64 = 1.0 / 3.0;

/// The parameters of a run.
struct Wanted {
    seed: u64,
    faults: u32,
    /// The number of ordinary days.
    ordinary: u32,
    days: Vec<(Ground, Vec<Day>)>,
    sizes: Vec<u16>,
    cuts: bool,
    doubles: bool,
    until: Option<Instant>,
}

/// Runs all rounds and prints the report. Returns whether every guarantee held and the run did the required minimum.
pub(crate) fn run(args: &Args) -> anyhow::Result<bool> {
    let start = Instant::now();
    let programs = Programs::find(args.programs.as_deref())?;
    let abilities = Abilities::of(&programs.coord)?;
    let mut left_out = Vec::new();
    if !abilities.restore {
        left_out.push("restores after a shutdown: this `coord` has no --restore".into());
    }
    let mut wanted = Wanted::of(args, start, &mut left_out);
    // This call must precede the start of any other thread, because it may change the mount namespace.
    wanted.days = match args.slice {
        true => vec![(Ground::Plain, abilities::possible_of(&ordinary::SLICE, &mut left_out))],
        false if wanted.ordinary > 0 => abilities::ordinary_days(&mut left_out),
        false => Vec::new(),
    };
    // This call must precede the start of any other thread, because it changes the network namespace.
    let network = match wanted.cuts {
        true => Some(Network::make(wanted.sizes.iter().copied().max().unwrap_or(3))?),
        false => None,
    };
    let (base, keep) = base_directory(args)?;
    let mut possible = (faults::all(false), faults::all(network.is_some()));
    if let Some(only) = &args.only {
        let is_wanted = |name: String| name.contains(&only[..]);
        possible.0.retain(|fault| is_wanted(fault.to_string()));
        possible.1.retain(|fault| is_wanted(fault.to_string()));
        wanted.days.iter_mut().for_each(|(_, days)| days.retain(|day| is_wanted(day.to_string())));
        wanted.days.retain(|(_, days)| !days.is_empty());
        let is_any = !possible.1.is_empty() || !wanted.days.is_empty();
        anyhow::ensure!(
            is_any,
            "no fault or ordinary day that is possible here has `{only}` in its name"
        );
        if possible.1.is_empty() {
            wanted.faults = 0;
        }
    }
    if wanted.days.is_empty() {
        wanted.ordinary = 0;
    }
    let bar = progress(wanted.faults + wanted.ordinary);
    let mut report = Report::new(wanted.seed, left_out);
    let (mut turns, mut random) = (Turns::default(), Random::new(wanted.seed));
    let mut failed = 0;
    for (number, (servers, aim)) in plan(&wanted).into_iter().enumerate() {
        if wanted.until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        // Two of three rounds use the network. The others run without it, like most clusters, unless only cuts are
        // selected.
        let network = network.as_ref().filter(|_| number % 3 != 2 || possible.0.is_empty());
        let round = Round {
            programs: &programs,
            dir: base.join(format!("round-{number:02}")),
            servers,
            shards: match aim {
                Aim::Ordinary(_) => 1 + u16::try_from(random.below(2)).expect("it is small"),
                _ => 1 + u16::try_from(number % 2).expect("it is small"),
            },
            // Rounds with one shard and with two have hash tags.
            hash_tags: number % 3 == 0,
            aim,
            possible: if network.is_some() { &possible.1 } else { &possible.0 },
            abilities,
            network,
            seed: random.any(),
            until: wanted.until,
        };
        let outcome = round.run(&mut turns, &mut |struck| {
            bar.inc(1);
            bar.set_message(struck.name.clone());
        });
        bar.suspend(|| tell(number, &outcome));
        report.add(&outcome);
        if !outcome.failures.is_empty() {
            failed += 1;
            show_logs(&outcome.dir);
        } else if !keep {
            let _ = std::fs::remove_dir_all(&outcome.dir);
        }
        if failed == MOST_FAILED {
            break;
        }
    }
    bar.finish_and_clear();
    report.end(
        start.elapsed(),
        &wanted.demand(args, &possible.1),
        &wanted.demand_of_ordinary(args),
    );
    if report.is_good() && !keep {
        let _ = std::fs::remove_dir_all(&base);
    }
    let text = if args.json { report.to_json() } else { report.render() };
    // A closed standard output is not a failure, because the exit status shows the result.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(report.is_good())
}

impl Wanted {
    fn of(args: &Args, start: Instant, left_out: &mut Vec<String>) -> Wanted {
        let after = |minutes: f64| start + Duration::from_secs_f64(minutes * 60.0);
        if args.slice {
            left_out.push("links cut: not in the slice".into());
            return Wanted {
                seed: 1,
                faults: SLICE_FAULTS,
                ordinary: u32::try_from(ordinary::SLICE.len()).expect("it is small"),
                days: Vec::new(),
                // With four servers there is a group that neither of two dead neighbours holds.
                sizes: vec![3, 4],
                cuts: false,
                doubles: true,
                until: Some(after(SLICE_MINUTES + SLICE_ORDINARY_MINUTES)),
            };
        }
        let cuts = match network::missing() {
            _ if args.no_cuts => false,
            None => true,
            Some(why) => {
                left_out.push(format!("links cut: {why}"));
                false
            }
        };
        Wanted {
            seed: args.seed.unwrap_or_else(|| fresh_seed() >> 32),
            faults: args.faults,
            ordinary: args.ordinary,
            days: Vec::new(),
            sizes: args.servers.map_or(vec![3, 5], |servers| vec![servers]),
            cuts,
            doubles: !args.no_double_faults && args.only.is_none(),
            until: args.minutes.map(|minutes| after(minutes.into())),
        }
    }
}

impl Wanted {
    /// Returns the required minimum of faults. It is smaller for a slice and for a run with `--only` or `--minutes`.
    fn demand(&self, args: &Args, possible: &[Fault]) -> Demand {
        let is_whole = args.only.is_none() && args.minutes.is_none();
        let mut kinds: Vec<String> = possible.iter().map(Fault::to_string).collect();
        if self.doubles {
            kinds.extend((0..4).map(|number| double(number).to_string()));
        }
        let faults = match (args.slice, args.minutes) {
            (true, _) => SLICE_LEAST,
            (false, Some(_)) => 1,
            (false, None) => self.faults,
        };
        let kinds = if is_whole { kinds } else { Vec::new() };
        let in_flight = args.only.is_none();
        Demand { what: "faults", faults: faults.into(), full: enough::FULL, kinds, in_flight }
    }

    /// Returns the required minimum of ordinary days: all requested days, or none with a time limit (`--minutes`). In a
    /// slice every kind must have occurred too.
    fn demand_of_ordinary(&self, args: &Args) -> Demand {
        let is_whole = args.only.is_none() && args.minutes.is_none();
        let kinds = self.days.iter().filter(|_| is_whole).flat_map(|(_, days)| days);
        let faults = if args.minutes.is_some() { 0 } else { self.ordinary.into() };
        Demand {
            what: "ordinary days",
            faults,
            full: if args.slice { faults } else { enough::FULL_ORDINARY },
            kinds: kinds.map(Day::to_string).collect(),
            in_flight: false,
        }
    }
}

/// Plans all rounds. Rounds with double faults are distributed among those with single faults, so that an
/// interrupted run includes both.
fn plan(wanted: &Wanted) -> Vec<(u16, Aim)> {
    let doubles = if wanted.doubles { wanted.faults / DOUBLE_ONE_IN } else { 0 };
    let mut ones = wanted.faults - doubles;
    let (mut plan, mut seconds) = (Vec::new(), 0);
    let rounds = ones.div_ceil(FAULTS_A_ROUND).max(1);
    let mut size = (0..).map(|number| wanted.sizes[number % wanted.sizes.len()]);
    let mut next_size = || size.next().unwrap_or(3);
    for round in 0..rounds {
        let count = ones.min(FAULTS_A_ROUND);
        ones -= count;
        if count > 0 {
            plan.push((next_size(), Aim::One(count)));
        }
        while seconds < doubles * (round + 1) / rounds {
            plan.push((next_size(), Aim::Two(double(seconds))));
            seconds += 1;
        }
    }
    // Rounds of ordinary days are spread evenly and one of them comes first, so that an interrupted run includes
    // some.
    let days = ordinary::plan(&wanted.days, wanted.ordinary);
    let (rounds, among) = (plan.len().max(1), days.len());
    for (number, days) in days.into_iter().enumerate() {
        // Each environment gets every size in turn, even if the numbers of environments and sizes have a common
        // divisor.
        let turn = number % wanted.days.len() + number / wanted.days.len();
        let servers = wanted.sizes[turn % wanted.sizes.len()];
        plan.insert(number + number * rounds / among, (servers, Aim::Ordinary(days)));
    }
    plan
}

/// Returns the double fault with this number. The policy, the neighbour and the step cycle through all combinations.
fn double(number: u32) -> Double {
    let policy = [Policy::Shutdown, Policy::Isolate][usize::from(number % 2 == 1)];
    let step = u8::try_from(number / 4 % 5).expect("below 5");
    Double { policy, next: number / 2 % 2 != 1, step }
}

/// Creates the base directory of the rounds. Returns it, and whether it is kept after a successful run.
fn base_directory(args: &Args) -> anyhow::Result<(PathBuf, bool)> {
    match &args.keep {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("make {}", directory.display()))?;
            Ok((std::path::absolute(directory)?, true))
        }
        None => {
            let made = tempfile::Builder::new().prefix("kv-chaos-").tempdir();
            Ok((made.context("make a directory for the rounds")?.keep(), false))
        }
    }
}

fn progress(faults: u32) -> ProgressBar {
    let bar = ProgressBar::new(u64::from(faults));
    let style = ProgressStyle::with_template("{wide_bar} {pos} of {len} faults, {elapsed}: {msg}");
    bar.set_style(style.expect("the template is right"));
    bar
}

/// Prints the result of a round in one line.
fn tell(number: usize, outcome: &Outcome) {
    let counts = &outcome.counts;
    let end = match outcome.failures.first() {
        Some(failure) => format!("FAILED: {failure}; kept in {}", outcome.dir.display()),
        None => "all guarantees held".into(),
    };
    eprintln!(
        "round {number}: {} servers, {} faults in {:.0} s, {} operations ({} in doubt), longest stall {} ms: {end}",
        outcome.servers,
        outcome.struck.len(),
        outcome.took.as_secs_f64(),
        counts.ok + counts.fail + counts.info,
        counts.info,
        counts.longest_stall.as_millis(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn a_run_has_as_many_faults_as_requested_in_clusters_of_both_sizes() {
        let wanted = Wanted {
            seed: 1,
            faults: 200,
            ordinary: 100,
            days: Ground::ALL.map(|ground| (ground, ground.days().to_vec())).into(),
            sizes: vec![3, 5],
            cuts: false,
            doubles: true,
            until: None,
        };
        let plan = plan(&wanted);
        let faults = |aim: &Aim| match aim {
            Aim::One(faults) => (*faults, 0),
            Aim::Two(_) => (1, 0),
            Aim::Ordinary(days) => (0, days.count),
        };
        let counts = plan.iter().map(|(_, aim)| faults(aim));
        assert_eq!(counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)), (200, 100));
        assert!(matches!(plan[0].1, Aim::Ordinary(_)), "ordinary days come first");
        assert!(
            matches!(plan.last(), Some((_, Aim::One(_) | Aim::Two(_)))),
            "the last round has faults"
        );
        for size in [3, 5] {
            let of_size = || plan.iter().filter(|(servers, _)| *servers == size);
            assert!(of_size().any(|(_, aim)| matches!(aim, Aim::One(_))));
            for ground in Ground::ALL {
                let is_it = |aim: &Aim| matches!(aim, Aim::Ordinary(days) if days.ground == ground);
                assert!(of_size().any(|(_, aim)| is_it(aim)), "{size} {ground:?}");
            }
            for policy in [Policy::Shutdown, Policy::Isolate] {
                let is_it = |aim: &Aim| matches!(aim, Aim::Two(double) if double.policy == policy);
                assert!(of_size().any(|(_, aim)| is_it(aim)), "{size} {policy:?}");
            }
        }
    }

    #[test]
    fn only_runs_with_a_time_limit_or_one_kind_of_fault_have_a_smaller_minimum() {
        let demand = |words: &[&str]| {
            let args = Args::parse_from(["chaos", "--no-cuts"].iter().chain(words));
            let wanted = Wanted::of(&args, Instant::now(), &mut Vec::new());
            wanted.demand(&args, &faults::all(false))
        };
        let plain = demand(&[]);
        assert_eq!((plain.faults, plain.kinds.len(), plain.in_flight), (200, 17 + 4, true));
        assert_eq!(demand(&["--slice"]).faults, 14);
        let timed = demand(&["--minutes", "1"]);
        assert_eq!((timed.faults, timed.kinds.len(), timed.in_flight), (1, 0, true));
        let one = demand(&["--only", "server killed"]);
        assert_eq!((one.faults, one.kinds.len(), one.in_flight), (200, 0, false));
        assert_eq!(demand(&["--no-double-faults"]).kinds.len(), 17);
    }

    #[test]
    fn a_run_with_fewer_ordinary_days_than_requested_is_not_enough() {
        let missed = |words: &[&str], struck: &[(&str, u64)]| {
            let args = Args::parse_from(["chaos", "--no-cuts"].iter().chain(words));
            let mut wanted = Wanted::of(&args, Instant::now(), &mut Vec::new());
            wanted.days = vec![(Ground::Plain, vec![Day::Leave, Day::Suspend])];
            let struck = struck.iter().map(|(name, count)| ((*name).to_owned(), (*count, 0)));
            wanted.demand_of_ordinary(&args).missed(&struck.collect()).len()
        };
        let [leave, suspend] = [Day::Leave, Day::Suspend].map(|day| day.to_string());
        assert_eq!(missed(&[], &[]), 1);
        assert_eq!(missed(&[], &[(&leave, 99)]), 1);
        assert_eq!(missed(&[], &[(&leave, 100)]), 1, "one kind never struck");
        assert_eq!(missed(&[], &[(&leave, 50), (&suspend, 50)]), 0);
        assert_eq!(
            missed(&["--ordinary", "20"], &[(&leave, 20)]),
            0,
            "too few days to require every kind"
        );
        assert_eq!(missed(&["--slice"], &[(&leave, 4)]), 1);
        assert_eq!(missed(&["--slice"], &[(&leave, 2), (&suspend, 2)]), 0);
        assert_eq!(missed(&["--minutes", "1"], &[]), 0);
    }
}
