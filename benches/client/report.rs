//! The report of a run: tables, targets and machine.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::json;

use crate::common::workshop::{library, root};
use crate::turn::{Cell, Keys, Measured, Shape, Side, Turn, Work};
use crate::{Settings, plan};

/// A median, with the minimum and the maximum.
#[derive(Clone, Copy, Debug)]
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(numbers: impl IntoIterator<Item = f64>) -> Spread {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Spread { least: sorted[0], median, most: sorted[sorted.len() - 1] }
    }

    fn digits(self, digits: usize) -> String {
        let Spread { least, median, most } = self;
        format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

/// Returns the spread of the ratios of the first side to the second. Each ratio compares two adjacent runs.
fn ratio(a: &[Turn], b: &[Turn], of: impl Fn(&Turn) -> f64) -> Spread {
    Spread::of(a.iter().zip(b).map(|(a, b)| of(a) / of(b)))
}

/// Returns a cell's result in one line, for printing during the run.
pub(crate) fn line(measured: &Measured) -> String {
    let Cell { work, keys, shape, number } = measured.cell;
    let mut line = format!("{work} {keys} {shape:<7} {number:>3}");
    for (side, turns) in &measured.sides {
        let per_second = Spread::of(turns.iter().map(Turn::per_second)).median;
        let cpu = Spread::of(turns.iter().map(Turn::cpu_ns)).median;
        let _ = write!(line, " | {side} {:.1} k/s, CPU {cpu:.0} ns", per_second / 1e3);
    }
    line
}

fn table(text: &mut String, measured: &[Measured], shape: Shape, keys: Keys) {
    let is_here = |m: &&Measured| m.cell.shape == shape && m.cell.keys == keys;
    for measured in measured.iter().filter(is_here) {
        let Cell { work, number, .. } = measured.cell;
        let kvc = measured.of(Side::Kvc).expect("it is always measured");
        for (side, turns) in &measured.sides {
            let per_second = Spread::of(turns.iter().map(|turn| turn.per_second() / 1e3));
            let cpu = Spread::of(turns.iter().map(Turn::cpu_ns));
            let user = Spread::of(turns.iter().map(|turn| turn.user_ns / turn.operations));
            let (mut time_ratio, mut cpu_ratio) = (String::new(), String::new());
            if *side != Side::Kvc {
                time_ratio = ratio(kvc, turns, |turn| 1.0 / turn.per_second()).digits(2);
                cpu_ratio = ratio(kvc, turns, Turn::cpu_ns).digits(2);
            }
            let _ = writeln!(
                text,
                "| {work} | {number} | {side} | {} | {} | {:.0} | {time_ratio} | {cpu_ratio} |",
                per_second.digits(1),
                cpu.digits(0),
                user.median,
            );
        }
    }
}

fn head(text: &mut String, title: &str, number: &str) {
    let _ = writeln!(
        text,
        "\n## {title}\n\n| work | {number} | side | thousand operations a second | client CPU, ns an operation | of which user | time: kvc / side | CPU: kvc / side |\n|---|---|---|---|---|---|---|---|",
    );
}

/// Returns one line for each target, with the measured ratio.
fn targets(measured: &[Measured]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut say = |name: String, limit: f64, ratio: Option<Spread>| {
        let verdict = match ratio {
            None => "not measured: one of the sides is not available".to_owned(),
            Some(ratio) if ratio.median <= limit => format!("reached: {}", ratio.digits(2)),
            Some(ratio) => format!("not reached: {}", ratio.digits(2)),
        };
        lines.push(format!("- {name}, at most {limit}: {verdict}"));
    };
    let find = |shape, keys, number, work| {
        let cell = Cell { work, keys, shape, number };
        measured.iter().find(|m| m.cell == cell).expect("in the grid")
    };
    for work in [Work::Get, Work::Put] {
        let cell = find(Shape::Threads, Keys::All, 1, work);
        let times = cell.of(Side::Kvc).zip(cell.of(Side::Bare));
        let times = times.map(|(kvc, bare)| ratio(kvc, bare, |turn| 1.0 / turn.per_second()));
        say(format!("{work} from one thread, time against the bare loop"), 1.15, times);
    }
    let connections = [(Keys::OneServers, "one connection"), (Keys::All, "three connections")];
    for (keys, on) in connections {
        for shape in [Shape::Steady, Shape::Burst] {
            for work in [Work::Get, Work::Put] {
                let cell = find(shape, keys, 64, work);
                let costs = cell.of(Side::Kvc).zip(cell.of(Side::Hiredis));
                let costs = costs.map(|(kvc, hiredis)| ratio(kvc, hiredis, Turn::cpu_ns));
                let name =
                    format!("{work}, 64 in flight, {shape}, {on}: client CPU against hiredis");
                say(name, 0.6, costs);
            }
        }
    }
    lines
}

/// Returns the first line of a command's output, or "unknown" if there is none.
fn said(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok()
        .and_then(|text| Some(text.lines().next()?.trim().to_owned()))
        .unwrap_or("unknown".into())
}

fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let (rustc, gcc) = (said("rustc", &["--version"]), said("gcc", &["--version"]));
    let redis = said("redis-server", &["--version"]);
    let hiredis = said("pkg-config", &["--modversion", "hiredis"]);
    format!(
        "{cores} cores ({model}), Linux {}, {rustc}, {gcc}, hiredis {hiredis}, {redis}",
        release.trim()
    )
}

/// Returns a description of the shared library: its size, its stripped size and its dependencies.
fn shared_library() -> String {
    let path = library("libkvclient.so");
    let bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
    let stripped = tempfile::NamedTempFile::new().expect("make a file");
    let to = stripped.path().to_str().expect("a path in UTF-8");
    let from = path.to_str().expect("a path in UTF-8");
    let strip = Command::new("strip").args(["-o", to, from]).status();
    let stripped_bytes = match strip {
        Ok(status) if status.success() => fs::metadata(to).map_or(0, |metadata| metadata.len()),
        _ => 0,
    };
    let dynamic = Command::new("readelf").args(["-d", from]).output().expect("run readelf");
    let dynamic = String::from_utf8_lossy(&dynamic.stdout).into_owned();
    let needed: Vec<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']')))
        .collect();
    format!(
        "libkvclient.so: {} KiB, {} KiB stripped; it needs {}.",
        bytes / 1024,
        stripped_bytes / 1024,
        needed.join(", ")
    )
}

fn today() -> String {
    said("date", &["--utc", "+%F"])
}

/// Returns the whole report.
pub(crate) fn text(settings: &Settings, measured: &[Measured]) -> String {
    let Settings { pairs, warm_up_ms, ms, .. } = settings;
    let mut text = format!(
        "# Cost of an operation in a C program\n\n{}, version {}. {}.\n\n```\ncargo bench --bench client -- --report --pairs {pairs} --ms {ms} --warm-up-ms {warm_up_ms}\n```\n\n",
        today(),
        env!("CARGO_PKG_VERSION"),
        machine()
    );
    let _ = writeln!(
        text,
        "Three servers with one shard each, and redis-server, run on loopback. All share the cores; nothing is \
         pinned. There are {} keys of 16 bytes with values of 64 bytes; all keys are equally likely, and \
         every response is checked. Each side has {pairs} runs of {ms} ms after {warm_up_ms} ms of warm-up \
         (plus 8 ms for each thread). The sides of a cell alternate, each in a closed loop. Figures are \
         medians with the minimum and the maximum in parentheses. Ratios compare runs that are adjacent \
         in time. A put of this store is on two servers when it is acknowledged, a put of redis-server on \
         one. CPU is the user and system time of the client process, from getrusage. hiredis has one connection. \
         The library has one connection if all keys are on one server, and otherwise three, each with a \
         third of the operations.\n\n{}",
        plan::KEYS,
        shared_library()
    );
    let _ = writeln!(text, "\n## Targets\n\n{}", targets(measured).join("\n"));
    head(&mut text, "Blocking calls", "threads");
    table(&mut text, measured, Shape::Threads, Keys::All);
    let shapes = [
        (Shape::Steady, "new operations sent as responses arrive"),
        (Shape::Burst, "sent together, then all responses received"),
    ];
    for (shape, how) in shapes {
        head(&mut text, &format!("One thread, {how}; keys of one server"), "in flight");
        table(&mut text, measured, shape, Keys::OneServers);
        head(&mut text, &format!("One thread, {how}; keys of three servers"), "in flight");
        table(&mut text, measured, shape, Keys::All);
    }
    text
}

/// Writes the report, and all runs as JSON, to `benches/results/`.
pub(crate) fn write(text: &str, settings: &Settings, measured: &[Measured]) {
    let base = root().join("benches/results").join(format!("{}-client", today()));
    let cells: Vec<_> = measured.iter().map(as_json).collect();
    let Settings { pairs, warm_up_ms, ms, .. } = settings;
    let json = json!({
        "version": env!("CARGO_PKG_VERSION"), "machine": machine(), "pairs": pairs,
        "warm_up_ms": warm_up_ms, "ms": ms, "cells": cells,
    });
    let json = serde_json::to_string(&json).expect("numbers and texts") + "\n";
    for (ending, content) in [("md", text), ("json", &json)] {
        let path = base.with_extension(ending);
        fs::write(&path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        println!("written: {}", path.display());
    }
}

fn as_json(measured: &Measured) -> serde_json::Value {
    let sides = measured.sides.iter().map(|(side, turns)| {
        let turns: Vec<_> = turns
            .iter()
            .map(|turn| json!([turn.operations, turn.wall_ns, turn.user_ns, turn.system_ns]))
            .collect();
        (side.to_string(), json!(turns))
    });
    let sides: serde_json::Map<_, _> = sides.collect();
    let Cell { work, keys, shape, number } = measured.cell;
    json!({
        "work": work.to_string(), "keys": keys.to_string(), "shape": shape.to_string(), "number": number,
        "operations, wall, user, system ns": sides,
    })
}
