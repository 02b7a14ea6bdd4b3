//! A benchmark of the cost of one operation in a program that uses the C library. It compares the library with a bare
//! blocking socket loop that sends the same bytes, and with hiredis and redis-server.
//!
//! ```text
//!   three servers, redis-server    real processes, each on its own loopback ports
//!         plan.rs                  keys, values and frames, in a file for the C program
//!         turn.rs                  one run of benches/c/client_cost: one side, for a fraction of a second
//!   grid: A B C  A B C  A B C ...  the sides of a cell alternate; medians over the pairs
//!         report.rs                tables and targets; with --report, a file in benches/results/
//! ```
//!
//! `cargo bench --bench client -- [--report] [--pairs N] [--ms N]`. With `--test`, every side runs once for 20 ms, to
//! check that the benchmark works. Client, servers and redis-server share the machine's cores.

#[path = "../../tests/common/mod.rs"]
mod common;
mod plan;
mod redis;
mod report;
mod turn;

use common::Cluster;
use redis::Redis;
use turn::{Cell, Keys, Measured, Program, Shape, Work};

/// The options of the command line.
#[derive(Clone, Copy, Debug)]
struct Settings {
    /// The number of runs of each side in each cell.
    pairs: usize,
    /// The duration of the warm-up of a run, in milliseconds.
    warm_up_ms: u32,
    /// The duration of the measurement of a run, in milliseconds.
    ms: u32,
    /// True to only check that every side runs.
    is_test: bool,
    /// True to write a report.
    report: bool,
}

impl Settings {
    fn read() -> Settings {
        let words: Vec<String> = std::env::args().skip(1).collect();
        let has = |word: &str| words.iter().any(|w| w == word);
        let number = |word: &str, default: u32| {
            let at = words.iter().position(|w| w == word);
            at.map_or(default, |at| {
                let number = words.get(at + 1).and_then(|text| text.parse().ok());
                number.unwrap_or_else(|| panic!("{word} needs a number"))
            })
        };
        let is_test = has("--test");
        let (pairs, warm_up_ms, ms) = if is_test { (1, 5, 20) } else { (5, 120, 200) };
        let pairs = number("--pairs", pairs) as usize;
        let (warm_up_ms, ms) = (number("--warm-up-ms", warm_up_ms), number("--ms", ms));
        Settings { pairs, warm_up_ms, ms, is_test, report: has("--report") }
    }
}

fn grid() -> Vec<Cell> {
    const THREADS: [u32; 3] = [1, 8, 64];
    const DEPTHS: [u32; 4] = [1, 16, 64, 256];
    let mut grid = Vec::new();
    let mut add = |shape, keys, numbers: &[u32]| {
        for work in [Work::Get, Work::Put] {
            grid.extend(numbers.iter().map(|&number| Cell { work, keys, shape, number }));
        }
    };
    add(Shape::Threads, Keys::All, &THREADS);
    for shape in [Shape::Steady, Shape::Burst] {
        for keys in [Keys::OneServers, Keys::All] {
            add(shape, keys, &DEPTHS);
        }
    }
    grid
}

fn main() {
    let settings = Settings::read();
    let cluster = Cluster::start();
    let redis = match Redis::start() {
        Ok(redis) => Some(redis),
        Err(why) => {
            println!("hiredis is not compared: {why}");
            None
        }
    };
    let program = Program::build(&cluster, redis.as_ref());
    let mut measured: Vec<Measured> = Vec::new();
    for cell in grid() {
        let result = program.measure(cell, &settings);
        println!("{}", report::line(&result));
        measured.push(result);
    }
    if !settings.is_test {
        let text = report::text(&settings, &measured);
        println!("\n{text}");
        if settings.report {
            report::write(&text, &settings, &measured);
        }
    }
    drop(redis);
    cluster.stop();
}
