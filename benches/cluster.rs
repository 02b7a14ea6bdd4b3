//! A benchmark of puts and gets of one client with three servers on this machine, at depth 1 and 64. It uses all keys,
//! or only the keys of one server, whose puts are replicated to its secondary. Client, servers and coordinator share
//! the machine's cores. The figures show the cost of the whole system on this machine, not the capacity of a server.
#![allow(missing_docs)] // `criterion_group!` generates undocumented items.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::Cluster;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_client::{Client, Completion, Op, OpOptions, Options};
use kv_protocol::GroupId;
use kv_protocol::placement::Placement;

const KEYS: usize = 10_000;
const VALUE: &[u8] = &[7; 64];

/// A client, the keys that it cycles through, and a buffer for values.
struct Load {
    client: Client,
    keys: Vec<Vec<u8>>,
    next: usize,
    done: Vec<Completion>,
}

impl Load {
    /// Opens a client for keys of this group, or of all groups if it is `None`.
    fn new(cluster: &Cluster, group: Option<GroupId>) -> Load {
        let endpoint = format!("127.0.0.1:{}", cluster.ready.clients_port);
        let client = Client::open(&endpoint, Options::default()).expect("open a client");
        let servers = Placement::new(3, 1);
        let keys = (0..).map(|n| format!("{n:016}").into_bytes());
        let is_there = |key: &Vec<u8>| group.is_none_or(|it| servers.locate(key).0 == it);
        let keys = keys.filter(is_there).take(KEYS).collect();
        Load { client, keys, next: 0, done: Vec::new() }
    }

    /// Submits `depth` operations and waits for all of them.
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
    measure(c, "three servers, 64 B", None);
}

fn one_server(c: &mut Criterion) {
    measure(c, "one server, 64 B", Some(GroupId(0)));
}

fn measure(c: &mut Criterion, name: &str, group: Option<GroupId>) {
    let cluster = Cluster::start();
    let mut load = Load::new(&cluster, group);
    for _ in 0..KEYS.div_ceil(64) {
        load.burst(64, true);
    }
    let mut group = c.benchmark_group(name);
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

criterion_group!(benches, one_server, three_servers);
criterion_main!(benches);
