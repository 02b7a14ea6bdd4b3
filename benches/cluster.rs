//! Puts and gets against three servers on this machine, one client, at depth 1 and 64. Client,
//! servers and coordinator share the machine's cores, so these figures say what the whole costs
//! here, not what one server can do.
#![allow(missing_docs)] // What `criterion_group!` makes has no place for documentation.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::Cluster;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_client::{Client, Completion, Op, OpOptions, Options};

const KEYS: usize = 10_000;
const VALUE: &[u8] = &[7; 64];

/// A client, the keys it goes round, and room for what comes back.
struct Load {
    client: Client,
    keys: Vec<Vec<u8>>,
    next: usize,
    done: Vec<Completion>,
}

impl Load {
    fn new(cluster: &Cluster) -> Load {
        let endpoint = format!("127.0.0.1:{}", cluster.ready.clients_port);
        let client = Client::open(&endpoint, Options::default()).expect("open a client");
        let keys = (0..KEYS).map(|n| format!("{n:016}").into_bytes()).collect();
        Load { client, keys, next: 0, done: Vec::new() }
    }

    /// Has `depth` operations in flight at once and waits for all of them.
    fn burst(&mut self, depth: usize, is_put: bool) {
        for tag in 0..depth as u64 {
            let key = &self.keys[self.next % KEYS];
            self.next += 1;
            let op = if is_put { Op::Put { key, value: VALUE } } else { Op::Get { key } };
            self.client.submit(op, &OpOptions::default(), tag).expect("the window has room");
        }
        let mut left = depth;
        while left > 0 {
            let timeout = Duration::from_secs(5);
            self.client.poll(timeout, &mut self.done).expect("poll");
            left -= self.done.len();
            for completion in self.done.drain(..) {
                let outcome = completion.result.expect("the operation succeeds");
                assert!(is_put && outcome.copies == 2 || !is_put && outcome.value == VALUE);
            }
        }
    }
}

fn three_servers(c: &mut Criterion) {
    let cluster = Cluster::start();
    let mut load = Load::new(&cluster);
    for _ in 0..KEYS.div_ceil(64) {
        load.burst(64, true);
    }
    let mut group = c.benchmark_group("three servers, 64 B");
    for (name, is_put) in [("GET", false), ("replicated PUT", true)] {
        for depth in [1, 64] {
            group.throughput(Throughput::Elements(depth as u64));
            group.bench_function(format!("{name}, depth {depth}"), |b| {
                b.iter(|| load.burst(depth, is_put));
            });
        }
    }
    group.finish();
    cluster.stop();
}

criterion_group!(benches, three_servers);
criterion_main!(benches);
