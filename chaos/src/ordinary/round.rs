//! A round of ordinary days: one cluster, from its start to its verdict.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use kv_testkit::random::Random;

use super::Days;
use super::ground::Made;
use super::strike::Striker;
use super::writes::Beside;
use crate::cluster::{Cluster, Setting};
use crate::faults::Turns;
use crate::load::Load;
use crate::round::{BULK, Outcome, Round, STRENGTH, WARM};
use crate::strike::Struck;

/// Runs the round in a newly made environment. After a failure, the files on a mounted file system are copied to the
/// directory of the round.
pub(crate) fn run(
    round: &Round<'_>,
    days: &Days,
    turns: &mut Turns,
    told: &mut dyn FnMut(&Struck),
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    std::fs::create_dir_all(&round.dir).with_context(|| format!("make {}", round.dir.display()))?;
    let made = Made::of(days.ground, &round.dir)?;
    let ran = run_on(round, days, &made, turns, told, outcome);
    if ran.is_err() || !outcome.failures.is_empty() {
        made.keep_files()?;
    }
    ran
}

fn run_on(
    round: &Round<'_>,
    days: &Days,
    made: &Made,
    turns: &mut Turns,
    told: &mut dyn FnMut(&Struck),
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let mut flags = made.flags();
    if !rustix::process::geteuid().is_root() {
        // Stopping an executor requires tracing the server. Without this flag, only root may trace it.
        flags.push("--core-dumps".into());
    }
    let hash_tags = round.hash_tags;
    let setting = Setting { hash_tags, flags, ..Setting::plain(round.servers, round.shards) };
    let mut cluster =
        Cluster::start(&made.programs(round.programs)?, &made.cluster_dir(), &setting, None)?;
    BULK.write(&cluster.endpoint(), |_| {})?;
    let load = Load::start(round.programs, &cluster, &round.dir, None, STRENGTH, round.seed)?;
    std::thread::sleep(WARM);
    let (mut random, mut beside) = (Random::new(round.seed), Beside::default());
    for _ in 0..days.count {
        if round.until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let day = turns.next(&days.kinds, &mut random);
        let (cluster, beside, random) = (&mut cluster, &mut beside, &mut random);
        let struck = Striker { cluster, load: &load, made, beside, random }
            .strike(day, &mut outcome.failures)?;
        turns.count(day, &struck.name);
        told(&struck);
        outcome.struck.push(struck);
        std::thread::sleep(Duration::from_millis(random.between(50, 400)));
    }
    std::thread::sleep(WARM);
    round.conclude(cluster, load, &beside, outcome)
}
