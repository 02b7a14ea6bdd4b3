//! The results in Markdown and in JSON, with one line for each goal.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::Args;
use super::grid::{Bound, Cell, Goal, Metric};
use super::machine::{Hardware, today};
use super::sides::Who;
use crate::numbers::{micros, short};
use crate::report::Report;
use crate::tally::Figures;

/// The goal of P6: the maximum number of bytes of memory for an entry with a key of 16 B and a value of 64 B.
const MOST_BYTES: f64 = 112.0;
/// The goal of P7 for reads: the maximum factor by which a read may slow down.
const MOST_GROWTH: f64 = 1.3;
/// The goal of P7 for writes: the longest write while tables grow, in microseconds.
const LONGEST_STALL_US: f64 = 2_000.0;

/// The goal of P13 for memory: the maximum number of bytes of an idle connection.
const MOST_IDLE_BYTES: f64 = 1_024.0;
/// The name of the Redis protocol in [`Idle::protocol`].
pub(super) const RESP: &str = "RESP";

/// One cell with all its runs.
#[derive(Debug)]
pub(super) struct CellResult {
    pub(super) cell: Cell,
    /// The reports of each side, one for each run.
    pub(super) turns: BTreeMap<Who, Vec<Report>>,
    /// The number of runs that were repeated because a write had only one copy.
    pub(super) repeated: usize,
    pub(super) arguments: String,
}

/// The result of P6 for one side.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Memory {
    pub(super) who: Who,
    pub(super) entries: u64,
    pub(super) bytes_per_entry: f64,
}

/// The result of P7 for one side.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Growth {
    pub(super) who: Who,
    /// The number of keys before and after the growth.
    pub(super) keys: (u64, u64),
    pub(super) p50_us: (f64, f64),
    /// The latencies of the writes between the two measurements.
    pub(super) filling: Figures,
}

/// The memory of an idle connection to a server of a side.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Idle {
    pub(super) who: Who,
    pub(super) protocol: &'static str,
    pub(super) connections: u32,
    pub(super) bytes: f64,
}

/// All results.
#[derive(Debug)]
pub(super) struct Measured {
    command: String,
    is_quick: bool,
    machine: Hardware,
    pub(super) sides: Vec<(Who, String)>,
    pub(super) cells: Vec<CellResult>,
    pub(super) memory: Vec<Memory>,
    pub(super) growth: Vec<Growth>,
    pub(super) idle: Vec<Idle>,
}

/// Median, minimum and maximum of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(numbers: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = numbers.collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median: f64::midpoint(low, high), least, most })
    }
}

fn figure(report: &Report, metric: Metric) -> Option<f64> {
    match metric {
        Metric::Throughput => Some(report.per_second),
        Metric::ServerCpu => report.server_cpu_us,
        Metric::PerServerCpu => report.server_cpu_us.map(|us| 1e6 / us),
        Metric::Median => Some(report.all.p50),
    }
}

impl CellResult {
    /// Returns the spread of the ratios of this store's figure to the other side's, run by run. `None` if one of the
    /// sides was not measured.
    fn ratio(&self, goal: &Goal) -> Option<Spread> {
        let (ours, theirs) = (self.turns.get(&goal.ours)?, self.turns.get(&goal.against)?);
        let ratio = |(ours, theirs)| {
            Some(figure(ours, goal.metric)? / figure(theirs, goal.metric)?.max(1e-9))
        };
        Spread::of(ours.iter().zip(theirs).filter_map(ratio))
    }

    fn spread(&self, who: Who, figure: impl Fn(&Report) -> f64) -> Option<Spread> {
        Spread::of(self.turns.get(&who)?.iter().map(figure))
    }
}

/// The result for one goal, as a line of the report.
struct Verdict {
    goal: String,
    /// True if the goal is reached; `None` if it was not measured.
    is_reached: Option<bool>,
    told: String,
}

impl Measured {
    pub(super) fn new(args: &Args, machine: &Hardware) -> Measured {
        let words: Vec<String> = std::env::args().skip(1).collect();
        Measured {
            command: format!("kv-compare {}", words.join(" ")).trim_end().to_owned(),
            is_quick: args.quick,
            machine: machine.clone(),
            sides: Vec::new(),
            cells: Vec::new(),
            memory: Vec::new(),
            growth: Vec::new(),
            idle: Vec::new(),
        }
    }

    fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for result in &self.cells {
            let Cell { part, name, placement, .. } = &result.cell;
            for goal in &result.cell.goals {
                let Goal { metric, ours, against, bound } = goal;
                let whose = match ours {
                    Who::Kv => String::new(),
                    ours => format!("{}, ", ours.name()),
                };
                let what = format!(
                    "{part} {name} ({}): {whose}{} {bound} × {}",
                    placement.name(),
                    metric.name(),
                    against.name()
                );
                let ratio = result.ratio(goal);
                verdicts.push(Verdict {
                    goal: what,
                    is_reached: ratio.map(|ratio| bound.holds(ratio.median)),
                    told: ratio.map_or("one of the two is missing".to_owned(), |ratio| {
                        let Spread { median, least, most } = ratio;
                        format!("{median:.2} × ({least:.2} to {most:.2})")
                    }),
                });
            }
        }
        let is_ours = |who: Who| who == Who::Kv;
        for memory in self.memory.iter().filter(|memory| is_ours(memory.who)) {
            let bytes = memory.bytes_per_entry;
            verdicts.push(Verdict {
                goal: format!("P6 bytes for one entry {}", Bound::AtMost(MOST_BYTES)),
                is_reached: Some(bytes <= MOST_BYTES),
                told: format!("{bytes:.1} B, {} entries, one run", memory.entries),
            });
        }
        for growth in self.growth.iter().filter(|growth| is_ours(growth.who)) {
            let (before, after) = growth.p50_us;
            let (few, many) = growth.keys;
            let ratio = after / before.max(1e-9);
            verdicts.push(Verdict {
                goal: format!(
                    "P7 p50 of a GET with {many} keys {} × that with {few}",
                    Bound::AtMost(MOST_GROWTH)
                ),
                is_reached: Some(ratio <= MOST_GROWTH),
                told: format!("{ratio:.2} ×, one run"),
            });
            let longest = growth.filling.max;
            verdicts.push(Verdict {
                goal: format!("P7 longest PUT while tables grow ≤ {LONGEST_STALL_US} µs"),
                is_reached: Some(longest <= LONGEST_STALL_US),
                told: format!("{} µs, one run", micros(longest)),
            });
        }
        for idle in self.idle.iter().filter(|idle| idle.protocol == RESP) {
            let Idle { who, connections, bytes, .. } = idle;
            verdicts.push(Verdict {
                goal: format!(
                    "P13 {}: bytes for an idle connection of RESP {}",
                    who.name(),
                    Bound::AtMost(MOST_IDLE_BYTES)
                ),
                is_reached: Some(*bytes <= MOST_IDLE_BYTES),
                told: format!("{bytes:.0} B, {connections} connections, one run"),
            });
        }
        verdicts
    }

    /// Renders the report in Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!("# This store, its peers and its lower bounds\n\n{}", today());
        let Hardware { processor, kernel, memory_gib, cores } = &self.machine;
        let _ = writeln!(
            text,
            ". A machine of {} cores ({processor}), {memory_gib} GiB, Linux {kernel}.\n\n```\n{}\n```\n",
            cores.len(),
            self.command
        );
        if self.is_quick {
            text += "A quick run: it only shows that the comparison works.\n\n";
        }
        for (who, version) in &self.sides {
            let _ = writeln!(text, "- {}: {version}", who.name());
        }
        text += "\nEach figure is the median of the runs, with the minimum and the maximum in parentheses. Within each \
                 cell, the runs of the sides alternate. The loop is closed. Every value read was checked, \
                 except with the bare ring and the bare chain, which store no values. A write ends once \
                 two processes have it, except with memcached (Redis and Valkey: WAIT 1 after each write \
                 or batch of writes). This store is accessed over plain sockets like the others (kv+wire), with keys \
                 of one group: a primary and its secondary. Its failure timeout is 5 s (`coord -t 5`), \
                 because idle servers may get no CPU time during a run of another side. A run in \
                 which a write had one copy is repeated; the number of repeated runs is given. Server \
                 CPU is the CPU time per operation of the primary and its replica together (one \
                 process with memcached and the bare ring).\n";
        if self.cells.iter().any(|result| result.cell.part == "P13") {
            text += "\nIn P13, the keys are in all groups of this store, and connections are made to its three \
                     servers in turn. Server CPU is that of these servers and their coordinator. *All groups* is \
                     kv+wire, with each connection to the shard of its keys; *keys of the server* and *any key* \
                     are kv+redis with and without `--local`. A SET of this store needs no WAIT. A run \
                     during which a view changed is repeated.\n";
        }
        for result in &self.cells {
            Self::write_cell(result, &mut text);
        }
        self.write_growth(&mut text);
        self.write_idle(&mut text);
        text += "\n## Goals\n\n";
        for Verdict { goal, is_reached, told } in self.verdicts() {
            let word = match is_reached {
                Some(true) => "reached",
                Some(false) => "NOT reached",
                None => "not measured",
            };
            let _ = writeln!(text, "- {goal}: {word}: {told}");
        }
        text.truncate(text.trim_end().len());
        text
    }

    fn write_cell(result: &CellResult, text: &mut String) {
        let Cell { part, name, placement, .. } = &result.cell;
        let _ = writeln!(
            text,
            "\n## {part}: {name}\n\n{}: `kv-bench {}`\n\n\
             | | operations a second | p50 µs | p99 µs | p99.9 µs | server CPU µs | generator CPU µs |\n\
             |---|---|---|---|---|---|---|",
            placement.name(),
            result.arguments
        );
        for who in result.turns.keys() {
            let rate = result.spread(*who, |report| report.per_second);
            let cells = [
                result.spread(*who, |report| report.all.p50),
                result.spread(*who, |report| report.all.p99),
                result.spread(*who, |report| report.all.p999),
                result.spread(*who, |report| report.server_cpu_us.unwrap_or_default()),
                result.spread(*who, |report| report.generator_cpu_us),
            ];
            let show = |spread: Option<Spread>, write: fn(f64) -> String| {
                spread.map_or(String::new(), |Spread { median, least, most }| {
                    format!("{} ({} to {})", write(median), write(least), write(most))
                })
            };
            let cells = cells.map(|spread| show(spread, micros)).join(" | ");
            let _ = writeln!(text, "| {} | {} | {cells} |", who.name(), show(rate, short));
        }
        if result.repeated > 0 {
            let _ = writeln!(text, "\nRepeated runs: {}.", result.repeated);
        }
    }

    fn write_growth(&self, text: &mut String) {
        if !self.memory.is_empty() {
            *text += "\n## P6: memory of an entry, 16 B key and 64 B value\n\n| | entries | bytes |\n\
                      |---|---|---|\n";
        }
        for Memory { who, entries, bytes_per_entry } in &self.memory {
            let _ = writeln!(text, "| {} | {entries} | {bytes_per_entry:.1} |", who.name());
        }
        if !self.growth.is_empty() {
            *text += "\n## P7: growing tables\n\nGET with 1 connection at depth 1, before and after. The \
                      writes in between use 8 connections at depth 8, and do not wait for the \
                      replicas of Redis and Valkey. The machine itself stalls processes for \
                      milliseconds, as the longest writes of all sides show.\n\n\
                      | | keys | p50 µs before | after | longest write µs | p99.9 µs |\n\
                      |---|---|---|---|---|---|\n";
        }
        for Growth { who, keys, p50_us, filling } in &self.growth {
            let _ = writeln!(
                text,
                "| {} | {} to {} | {} | {} | {} | {} |",
                who.name(),
                keys.0,
                keys.1,
                micros(p50_us.0),
                micros(p50_us.1),
                micros(filling.max),
                micros(filling.p999)
            );
        }
    }

    fn write_idle(&self, text: &mut String) {
        if !self.idle.is_empty() {
            *text += "\n## P13: memory of an idle connection\n\nGrowth of the resident memory of one server, \
                      after each connection has read a value (RESP: a value of each group, so that \
                      commands were forwarded). Another tenth of the connections was opened before.\n\n\
                      | | protocol | connections | bytes |\n|---|---|---|---|\n";
        }
        for Idle { who, protocol, connections, bytes } in &self.idle {
            let _ = writeln!(text, "| {} | {protocol} | {connections} | {bytes:.0} |", who.name());
        }
    }

    /// Renders the report in JSON, with every run.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        let Hardware { processor, kernel, memory_gib, cores } = &self.machine;
        let cells: Vec<Value> = self
            .cells
            .iter()
            .map(|result| {
                let CellResult { cell, turns, repeated, arguments } = result;
                let goals: Vec<Value> = (cell.goals.iter())
                    .map(|goal| json!({ "goal": goal, "ratio": result.ratio(goal) }))
                    .collect();
                let by_side: Vec<Value> = (turns.iter())
                    .map(|(who, turns)| json!({ "side": who, "turns": turns }))
                    .collect();
                json!({
                    "part": cell.part,
                    "repeated": repeated,
                    "name": cell.name,
                    "placement": cell.placement.name(),
                    "arguments": arguments,
                    "sides": by_side,
                    "goals": goals,
                })
            })
            .collect();
        let verdicts: Vec<Value> = (self.verdicts().iter())
            .map(|verdict| {
                json!({
                    "goal": verdict.goal, "reached": verdict.is_reached, "measured": verdict.told,
                })
            })
            .collect();
        let sides: Vec<Value> = (self.sides.iter())
            .map(|(who, version)| json!({ "side": who, "version": version }))
            .collect();
        let all = json!({
            "date": today(),
            "command": self.command,
            "machine": {
                "processor": processor, "kernel": kernel, "memory_gib": memory_gib,
                "cores": cores.len(),
            },
            "sides": sides,
            "cells": cells,
            "memory": self.memory,
            "growth": self.growth,
            "idle": self.idle,
            "verdicts": verdicts,
        });
        Ok(serde_json::to_string_pretty(&all)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(server_cpu_us: f64) -> Vec<Report> {
        vec![Report { server_cpu_us: Some(server_cpu_us), ..Report::default() }]
    }

    #[test]
    fn a_goal_compares_the_two_sides_that_it_names() {
        use clap::Parser as _;
        let effort = super::super::grid::Effort::new(&Args::parse_from(["kv-compare", "--quick"]));
        let cells = super::super::grid::cells(&["P13"], &effort);
        let cell = cells.into_iter().find(|cell| cell.reads == 0).expect("a cell of SETs");
        let turns = [(Who::Native, turn(1.0)), (Who::Resp, turn(4.0)), (Who::Redis, turn(6.0))];
        let turns = BTreeMap::from(turns);
        let result = CellResult { cell, turns, repeated: 0, arguments: String::new() };
        let ratio = |goal: &Goal| result.ratio(goal).map(|ratio| ratio.median);
        let ratios: Vec<_> = result.cell.goals.iter().map(ratio).collect();
        assert_eq!(ratios, [Some(1.5), None], "Redis was measured, Valkey was not");
    }

    #[test]
    fn the_goal_of_idle_connections_is_for_those_of_redis_clients() {
        use clap::Parser as _;
        let machine = Hardware::look().unwrap();
        let mut measured = Measured::new(&Args::parse_from(["kv-compare"]), &machine);
        for (protocol, bytes) in [("native", 900.0), (RESP, 1_024.0), (RESP, 1_025.0)] {
            measured.idle.push(Idle { who: Who::Kv, protocol, connections: 10, bytes });
        }
        let reached: Vec<_> = measured.verdicts().iter().map(|v| v.is_reached).collect();
        assert_eq!(reached, [Some(true), Some(false)]);
    }

    #[test]
    fn a_spread_has_the_median_the_minimum_and_the_maximum() {
        let spread = |numbers: &[f64]| Spread::of(numbers.iter().copied());
        let odd = Spread { median: 2.0, least: 1.0, most: 9.0 };
        assert_eq!(spread(&[9.0, 1.0, 2.0]), Some(odd));
        let even = Spread { median: 1.5, least: 1.0, most: 2.0 };
        assert_eq!(spread(&[2.0, 1.0]), Some(even));
        assert_eq!(spread(&[]), None);
    }
}
