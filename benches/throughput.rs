//! A benchmark of the throughput over a grid of loads: keys of one or three servers, one or two shards, values of 16 B
//! to 64 KiB, depth 1 to 256 (writes: up to 64), 1 to 256 connections. Each cell is a run of `kv-bench`, which checks
//! every value that it reads.
//!
//! ```text
//!   cargo bench --bench throughput             every cell for half a second (some minutes)
//!   cargo bench --bench throughput -- --test   only the corners, to check that they work
//! ```
//!
//! Generator, servers and coordinator share the machine's cores. The figures show how the cells
//! compare with each other, not the capacity of a server.

#[path = "../tests/common/mod.rs"]
mod common;

use std::process::Command;

use common::Cluster;
use serde_json::Value;

const SHARDS: [u16; 2] = [1, 2];
const VALUES: [u64; 4] = [16, 1 << 10, 16 << 10, 64 << 10];
const DEPTHS: [u64; 4] = [1, 16, 64, 256];
/// The maximum number of writes in flight on one connection: the size of a session's window.
const MOST_WRITES: u64 = 64;
const CONNECTIONS: [u64; 3] = [1, 16, 256];
/// The maximum number of bytes of values in flight. With more, a cell would measure the speed of memory.
const MOST_UNDER_WAY: u64 = 64 << 20;
/// The maximum number of operations in flight. A replica limits the number of writes that wait for an ACK.
const MOST_AT_ONCE: u64 = 8_192;
/// The maximum number of bytes of values that a cell stores.
const DATA_BYTES: u64 = 64 << 20;

/// One cell of the grid.
struct Cell {
    /// True if only keys of the first server are used.
    one_server: bool,
    value: u64,
    connections: u64,
    depth: u64,
    reads: u8,
}

impl Cell {
    /// Fills the table if the cell reads, runs the cell, and returns kv-bench's JSON result.
    fn run(&self, cluster: &Cluster, shards: u16, seconds: &str) -> Value {
        // The writes that fill the table have a fixed depth, because the depth of reads may exceed the limit for
        // writes.
        if self.reads > 0 {
            self.bench(cluster, shards, 16, &["--load", "--count", "0"]);
        }
        let measure = ["--verify", "--warm-up", "0.1", "--duration", seconds];
        let ended = self.bench(cluster, shards, self.depth, &measure);
        serde_json::from_slice(&ended).expect("a JSON object")
    }

    fn bench(&self, cluster: &Cluster, shards: u16, depth: u64, more: &[&str]) -> Vec<u8> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv-bench"));
        command.args(["--target", &format!("kv+wire://127.0.0.1:{}", cluster.ready.clients_port)]);
        // A connection belongs to one shard of one server, so there must be at least one for each shard.
        let places = u64::from(shards) * if self.one_server { 1 } else { 3 };
        for (flag, number) in [
            ("--value-size", self.value),
            ("--connections", self.connections.max(places)),
            ("--depth", depth),
            ("--reads", self.reads.into()),
            ("--keys", (DATA_BYTES / self.value).min(10_000)),
        ] {
            command.args([flag, &number.to_string()]);
        }
        command.arg("--json").args(more);
        if self.one_server {
            command.args(["--group", "0"]);
        }
        let ended = command.output().expect("run kv-bench");
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        ended.stdout
    }
}

fn cells(is_trial: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    let corners = |all: &[u64]| match is_trial {
        true => vec![all[0], all[all.len() - 1]],
        false => all.to_vec(),
    };
    for one_server in [true, false] {
        for value in corners(&VALUES) {
            for connections in corners(&CONNECTIONS) {
                for depth in corners(&DEPTHS) {
                    for reads in [100, 0] {
                        let at_once = connections * depth;
                        if (reads == 100 || depth <= MOST_WRITES)
                            && at_once <= MOST_AT_ONCE
                            && value * at_once <= MOST_UNDER_WAY
                        {
                            cells.push(Cell { one_server, value, connections, depth, reads });
                        }
                    }
                }
            }
        }
    }
    cells
}

fn main() {
    let is_trial = std::env::args().any(|argument| argument == "--test");
    // On a busy machine, a shorter run might receive no response.
    let seconds = "0.5";
    println!(
        "shards  servers  value B  connections  depth  work    operations/s   p50 µs   p99 µs"
    );
    for shards in SHARDS {
        let cluster = Cluster::builder().shards(shards).start();
        for cell in cells(is_trial) {
            let result = cell.run(&cluster, shards, seconds);
            let number = |at: &Value| at.as_f64().expect("a number");
            println!(
                "{shards:6}  {:>7}  {:7}  {:11}  {:5}  {:6}  {:12.0}  {:7.0}  {:7.0}",
                if cell.one_server { "one" } else { "three" },
                cell.value,
                number(&result["connections"]),
                cell.depth,
                if cell.reads == 0 { "PUT" } else { "GET" },
                number(&result["per_second"]),
                number(&result["all"]["p50"]),
                number(&result["all"]["p99"]),
            );
        }
        cluster.stop();
    }
}
