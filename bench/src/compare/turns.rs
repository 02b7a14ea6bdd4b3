//! The runs of the sides: A B C A B C …. Each run is a separate kv-bench process.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;

use anyhow::{Context as _, bail};
use rustix::process::Signal;

use super::Programs;
use super::grid::{Cell, Effort};
use super::machine::{Hardware, Placement};
use super::process::pinned;
use super::report::{CellResult, Measured};
use super::sides::{Side, Sides, Who};
use crate::report::Report;

/// The maximum number of runs of a cell that are repeated because a write had only one copy.
const MOST_REPEATED: usize = 5;

/// Measures these cells.
pub(super) fn run(
    cells: Vec<Cell>,
    effort: &Effort,
    programs: &Programs,
    machine: &Hardware,
    sides: &Sides,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    // The number of keys and the value size that each side stores now.
    let mut stored: BTreeMap<Who, (u64, u64)> = BTreeMap::new();
    for cell in cells {
        let with = || format!("{}, {}", cell.part, cell.name);
        sides.place(machine, cell.placement)?;
        let here: Vec<&Side> = cell.sides.iter().filter_map(|who| sides.get(*who)).collect();
        for side in here.iter().filter(|side| holds_values(side.who)) {
            let wanted = (cell.keys, cell.value_bytes);
            if stored.insert(side.who.holder(), wanted) != Some(wanted) {
                let fill = fill(cell.keys, cell.value_bytes, 50, 16);
                bench(programs, machine, cell.placement, side, &fill).with_context(with)?;
            }
        }
        let mut turns: BTreeMap<Who, Vec<Report>> = BTreeMap::new();
        let mut repeated = 0;
        let arguments = arguments(&cell, effort);
        for pair in 0..effort.pairs {
            // Standard error may be closed.
            let _ = writeln!(std::io::stderr(), "{}, run {} of {}", with(), pair + 1, effort.pairs);
            for side in &here {
                let mut arguments = arguments.clone();
                if replicates_on_demand(side.who) && cell.reads < 100 {
                    arguments.extend(["--wait".to_owned(), "1".to_owned()]);
                }
                arguments.extend(["--seed".to_owned(), (pair + 1).to_string()]);
                loop {
                    let report = bench(programs, machine, cell.placement, side, &arguments);
                    let report = report.with_context(with)?;
                    let has_two_copies = report.single_copies == 0 && report.changed_groups == 0;
                    if report.missing == 0 && has_two_copies {
                        turns.entry(side.who).or_default().push(report);
                        break;
                    }
                    let wrong = format!(
                        "{}, {}: {} reads found nothing, {} writes have one copy, {} groups changed",
                        with(),
                        side.who.name(),
                        report.missing,
                        report.single_copies,
                        report.changed_groups
                    );
                    // A write has one copy if its secondary got no CPU time for too long: the secondary is removed from
                    // its group, and then receives a new copy. Such a run is repeated. A missing value is an error.
                    if report.missing > 0 || repeated == MOST_REPEATED {
                        bail!("{wrong}");
                    }
                    repeated += 1;
                    let _ = writeln!(std::io::stderr(), "{wrong}; repeating this run");
                }
            }
        }
        let arguments = arguments.join(" ");
        measured.cells.push(CellResult { cell, turns, repeated, arguments });
    }
    Ok(())
}

pub(super) fn holds_values(who: Who) -> bool {
    !matches!(who, Who::Ring | Who::Chain)
}

fn replicates_on_demand(who: Who) -> bool {
    matches!(who, Who::Redis | Who::Valkey)
}

/// Returns the arguments that write this many keys and nothing else.
pub(super) fn fill(keys: u64, value_bytes: u64, connections: u32, depth: u32) -> Vec<String> {
    let line = format!(
        "--load --count 0 --keys {keys} --value-size {value_bytes} --connections {connections} \
         --depth {depth}"
    );
    line.split(' ').map(ToOwned::to_owned).collect()
}

fn arguments(cell: &Cell, effort: &Effort) -> Vec<String> {
    let line = format!(
        "--reads {} --keys {} --value-size {} --connections {} --depth {} --distribution {} \
         --duration {} --warm-up {}",
        cell.reads,
        cell.keys,
        cell.value_bytes,
        cell.connections,
        cell.depth,
        cell.popularity,
        effort.span.as_secs_f64(),
        effort.warm_up.as_secs_f64()
    );
    line.split(' ').map(ToOwned::to_owned).collect()
}

/// Runs kv-bench once against a side.
pub(super) fn bench(
    programs: &Programs,
    machine: &Hardware,
    placement: Placement,
    side: &Side,
    arguments: &[String],
) -> anyhow::Result<Report> {
    let mut command = pinned(&programs.bench, machine.generator(placement), Signal::KILL);
    command.args(["--json", "--target", &side.url]).args(arguments);
    if holds_values(side.who) {
        command.arg("--verify");
    }
    match side.who {
        Who::Kv | Who::Epoll => drop(command.args(["--group", "0"])),
        Who::RespLocal => drop(command.arg("--local")),
        _ => {}
    }
    let pids: Vec<String> = side.pids.iter().map(ToString::to_string).collect();
    command.args(["--server-pid", &pids.join(",")]);
    let ended = command.stderr(Stdio::piped()).stdout(Stdio::piped()).output();
    let ended = ended.context("run kv-bench")?;
    let said = || String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    let report: Option<Report> = serde_json::from_slice(&ended.stdout).ok();
    match (ended.status.success(), report) {
        (true, Some(report)) => Ok(report),
        (_, Some(report)) => {
            let first = report.first_mismatch.or(report.first_failure).unwrap_or_default();
            bail!(
                "{}: {} operations failed, {} responses were wrong: {first}",
                side.who.name(),
                report.failed,
                report.mismatched
            )
        }
        (_, None) => bail!("{}: {}", side.who.name(), said()),
    }
}
