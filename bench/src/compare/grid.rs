//! The cells of the comparison. A cell is one load that is applied to several sides, and the goals for its results.

use std::time::Duration;

use anyhow::bail;

use super::Args;
use super::machine::Placement;
use super::sides::Who;

/// The parts of the comparison.
const PARTS: [&str; 8] = ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P13"];
/// The maximum number of bytes of values that P5 stores at one side. It limits the number of keys for large values.
const DATA_BYTES: u64 = 512 << 20;

/// Returns the requested parts, or all parts if none is requested.
pub(super) fn parts(only: &[String]) -> anyhow::Result<Vec<&'static str>> {
    if let Some(unknown) = only.iter().find(|name| !PARTS.contains(&name.as_str())) {
        bail!("--only {unknown}: unknown part (expected P1 to P7 or P13)");
    }
    let is_asked = |part: &&str| only.is_empty() || only.iter().any(|name| name == part);
    Ok(PARTS.into_iter().filter(is_asked).collect())
}

/// The extent of a comparison: durations, runs and numbers of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    pub(super) is_quick: bool,
    pub(super) pairs: u32,
    pub(super) span: Duration,
    pub(super) warm_up: Duration,
    /// Keys of P1 to P4 and P13.
    pub(super) keys: u64,
    /// Keys of P5 if the values are small.
    mixed_keys: u64,
    /// Keys of P6.
    pub(super) entries: u64,
    /// Keys of P7, before and after growth.
    pub(super) growth: (u64, u64),
    /// Idle connections of P13.
    pub(super) idle: u32,
}

impl Effort {
    pub(super) fn new(args: &Args) -> Effort {
        let least = args.most_keys.min(10_000);
        match args.quick {
            true => Effort {
                is_quick: true,
                pairs: 1,
                span: Duration::from_millis(300),
                warm_up: Duration::from_millis(20),
                keys: 1_000,
                mixed_keys: 1_000,
                entries: 20_000,
                growth: (1_000, 20_000),
                idle: 500,
            },
            false => Effort {
                is_quick: false,
                pairs: args.pairs,
                span: args.seconds,
                warm_up: Duration::from_millis(300),
                keys: 100_000,
                mixed_keys: 1_000_000,
                entries: 5_000_000,
                growth: (least, args.most_keys),
                idle: 10_000,
            },
        }
    }
}

/// One load, which is applied to each of its sides in turn.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    pub(super) part: &'static str,
    pub(super) name: String,
    pub(super) placement: Placement,
    pub(super) sides: Vec<Who>,
    pub(super) keys: u64,
    pub(super) value_bytes: u64,
    pub(super) reads: u32,
    pub(super) connections: u32,
    pub(super) depth: u32,
    pub(super) popularity: &'static str,
    pub(super) goals: Vec<Goal>,
}

/// A measure by which two sides are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Operations a second.
    Throughput,
    /// Operations per second of the servers' CPU time.
    PerServerCpu,
    /// CPU time of the servers per operation.
    ServerCpu,
    Median,
}

impl Metric {
    pub(super) fn name(self) -> &'static str {
        match self {
            Metric::Throughput => "operations a second",
            Metric::PerServerCpu => "operations per server CPU second",
            Metric::ServerCpu => "server CPU per operation",
            Metric::Median => "p50",
        }
    }
}

/// A bound on the ratio of one of this store's figures to another side's.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(super) struct Goal {
    pub(super) metric: Metric,
    /// This store's side.
    pub(super) ours: Who,
    pub(super) against: Who,
    pub(super) bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    pub(super) fn holds(self, ratio: f64) -> bool {
        match self {
            Bound::AtLeast(bound) => ratio >= bound,
            Bound::AtMost(bound) => ratio <= bound,
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtLeast(bound) => write!(f, "≥ {bound}"),
            Bound::AtMost(bound) => write!(f, "≤ {bound}"),
        }
    }
}

fn at_least(metric: Metric, against: Who, bound: f64) -> Goal {
    Goal { metric, ours: Who::Kv, against, bound: Bound::AtLeast(bound) }
}

fn at_most(metric: Metric, against: Who, bound: f64) -> Goal {
    Goal { metric, ours: Who::Kv, against, bound: Bound::AtMost(bound) }
}

/// Returns all cells of these parts.
pub(super) fn cells(parts: &[&str], effort: &Effort) -> Vec<Cell> {
    let mut cells = Vec::new();
    for part in parts {
        match *part {
            "P1" => cells.push(get(
                "P1",
                16,
                effort,
                vec![
                    at_least(Metric::PerServerCpu, Who::Redis, 2.0),
                    at_least(Metric::PerServerCpu, Who::Ring, 0.8),
                ],
            )),
            "P2" => cells.push(get(
                "P2",
                1,
                effort,
                vec![
                    at_most(Metric::ServerCpu, Who::Redis, 1.0),
                    at_most(Metric::ServerCpu, Who::Ring, 1.15),
                ],
            )),
            "P3" => puts(
                "P3",
                1,
                1,
                effort,
                &mut cells,
                &[
                    at_most(Metric::Median, Who::Chain, 1.2),
                    at_most(Metric::Median, Who::Redis, 0.65),
                ],
            ),
            "P4" => {
                puts(
                    "P4",
                    50,
                    1,
                    effort,
                    &mut cells,
                    &[
                        at_least(Metric::Throughput, Who::Redis, 1.7),
                        at_least(Metric::Throughput, Who::Chain, 0.85),
                    ],
                );
                puts(
                    "P4",
                    50,
                    16,
                    effort,
                    &mut cells,
                    &[
                        at_least(Metric::Throughput, Who::Redis, 2.5),
                        at_least(Metric::Throughput, Who::Chain, 0.6),
                    ],
                );
            }
            "P5" => mixed(effort, &mut cells),
            "P13" => resp(effort, &mut cells),
            _ => {}
        }
    }
    cells
}

fn get(part: &'static str, depth: u32, effort: &Effort, goals: Vec<Goal>) -> Cell {
    Cell {
        part,
        name: format!("GET, 64 B, 50 connections, depth {depth}"),
        placement: Placement::Apart,
        sides: vec![Who::Kv, Who::Epoll, Who::Redis, Who::Valkey, Who::Memcached, Who::Ring],
        keys: effort.keys,
        value_bytes: 64,
        reads: 100,
        connections: 50,
        depth,
        popularity: "uniform",
        goals,
    }
}

/// Adds a cell of replicated writes for each placement. The quick run has only one placement.
fn puts(
    part: &'static str,
    connections: u32,
    depth: u32,
    effort: &Effort,
    cells: &mut Vec<Cell>,
    goals: &[Goal],
) {
    let all = [Placement::Apart, Placement::Free];
    for placement in &all[..if effort.is_quick { 1 } else { 2 }] {
        cells.push(Cell {
            part,
            name: format!("replicated PUT, 64 B, {connections} connections, depth {depth}"),
            placement: *placement,
            sides: vec![Who::Kv, Who::Epoll, Who::Redis, Who::Valkey, Who::Chain],
            keys: effort.keys,
            value_bytes: 64,
            reads: 0,
            connections,
            depth,
            popularity: "uniform",
            goals: goals.to_vec(),
        });
    }
}

fn mixed(effort: &Effort, cells: &mut Vec<Cell>) {
    let sizes: &[u64] = if effort.is_quick { &[1 << 10] } else { &[64, 1 << 10, 16 << 10] };
    let shares: &[u32] = if effort.is_quick { &[50] } else { &[95, 50] };
    for value_bytes in sizes {
        for reads in shares {
            let keys = effort.mixed_keys.min(DATA_BYTES / value_bytes);
            cells.push(Cell {
                part: "P5",
                name: format!("{reads} % reads, zipf 0.99, {value_bytes} B, {keys} keys, depth 16"),
                placement: Placement::Apart,
                sides: vec![Who::Kv, Who::Epoll, Who::Redis, Who::Valkey],
                keys,
                value_bytes: *value_bytes,
                reads: *reads,
                connections: 50,
                depth: 16,
                popularity: "zipf:0.99",
                goals: vec![
                    at_least(Metric::Throughput, Who::Redis, 1.0),
                    at_least(Metric::Throughput, Who::Valkey, 1.0),
                ],
            });
        }
    }
}

/// Adds the cells of Redis clients.
fn resp(effort: &Effort, cells: &mut Vec<Cell>) {
    let per_cpu =
        |ours, against, bound| Goal { ours, ..at_least(Metric::PerServerCpu, against, bound) };
    for depth in [1, 16] {
        for (reads, name) in [(0, "SET"), (100, "GET")] {
            let mut goals = Vec::new();
            if reads == 0 {
                goals.push(per_cpu(Who::Resp, Who::Redis, 1.5));
                goals.push(per_cpu(Who::Resp, Who::Valkey, 1.2));
            } else {
                goals.push(per_cpu(Who::RespLocal, Who::Native, 0.6));
                if depth == 16 {
                    goals.push(per_cpu(Who::Resp, Who::Redis, 0.9));
                }
            }
            cells.push(Cell {
                part: "P13",
                name: format!("{name} of Redis clients, 64 B, 50 connections, depth {depth}"),
                placement: Placement::Apart,
                sides: vec![Who::Native, Who::RespLocal, Who::Resp, Who::Redis, Who::Valkey],
                keys: effort.keys,
                value_bytes: 64,
                reads,
                connections: 50,
                depth,
                popularity: "uniform",
                goals,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_part_is_rejected() {
        assert!(parts(&["P9".to_owned()]).unwrap_err().to_string().contains("P1 to P7 or P13"));
        assert_eq!(parts(&["P3".to_owned(), "P1".to_owned()]).unwrap(), ["P1", "P3"]);
        assert_eq!(parts(&[]).unwrap().len(), 8);
    }

    #[test]
    fn every_goal_names_a_side_of_its_cell() {
        use clap::Parser as _;
        for line in [&["kv-compare"][..], &["kv-compare", "--quick"]] {
            let effort = Effort::new(&Args::parse_from(line));
            for cell in cells(&PARTS, &effort) {
                assert!(!cell.goals.is_empty());
                let named = cell.goals.iter().flat_map(|goal| [goal.ours, goal.against]);
                named.for_each(|who| assert!(cell.sides.contains(&who), "{who:?}"));
            }
        }
    }
}
