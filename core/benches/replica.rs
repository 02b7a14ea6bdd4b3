//! The cost of one operation in the pure state machine, without network and system calls. The measured time of a
//! PUT includes its replication and commit, at both ends of the stream.
//!
//! ```text
//!   cargo bench -p kv-core --bench replica
//!   cargo bench -p kv-core --bench replica -- --steps get 20000   a fixed number without measurement, for callgrind
//! ```
#![allow(missing_docs)] // `criterion_group!` generates undocumented items.

use criterion::{Criterion, Throughput, criterion_group};
use kv_core::arena::HeapChunks;
use kv_core::hash::HashSecret;
use kv_core::replica::{ConnectionId, Replica, ReplicaConfig, Responses};
use kv_protocol::client_message::{Condition, Operation, Request, Response, Status, WriteHeader};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::*;
use kv_protocol::limits::{MAX_PEER_BODY, SESSION_IDLE};
use kv_protocol::peer_message::BatchReader;
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::{Peer, View};
use std::hint::black_box;

const KEYS: u64 = 10_000;
const NOW: Time = Time::from_nanos(1);

/// A sink that counts responses and checks that each is OK.
#[derive(Default)]
struct Counter(u64);

impl Responses for Counter {
    fn respond(&mut self, _: ConnectionId, response: &Response<'_>) {
        assert_eq!(response.status, Status::Ok);
        self.0 += 1;
    }
}

struct Pair {
    primary: Replica,
    secondary: Replica,
    responses: Counter,
    bytes: Vec<u8>,
    seq: u64,
}

impl Pair {
    fn new() -> Pair {
        let member = |n| Member { server: ServerId(n), incarnation: Incarnation(1) };
        let replica = |n| {
            let config = ReplicaConfig {
                me: member(n),
                group: GroupId(0),
                shard: ShardId(0),
                placement: Placement::new(1, 1),
                memory_limit: None,
                session_idle: SESSION_IDLE,
                hash_secret: HashSecret::new(1),
                failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
            };
            Replica::new(config, Box::new(HeapChunks::default()))
        };
        let (mut primary, mut secondary) = (replica(0), replica(1));
        let mut responses = Counter::default();
        let view = View {
            group: GroupId(0),
            version: ViewVersion(1),
            primary: Some(member(0)),
            peer: Peer::Secondary(member(1)),
            handover: false,
        };
        primary.install(NOW, view, &mut responses).unwrap();
        let hello = primary.peer_hello(ClusterId(1)).unwrap();
        let welcome = secondary.on_peer_hello(NOW, &hello, &mut responses).unwrap();
        primary.on_peer_welcome(NOW, &welcome, &mut responses).unwrap();
        Pair { primary, secondary, responses, bytes: Vec::new(), seq: 0 }
    }

    fn ask(&mut self, key: &[u8], digest: Digest, operation: Operation<'_>) {
        let request = Request { id: RequestId(1), view: ViewVersion(1), digest, key, operation };
        let (connection, client) = (ConnectionId(1), ClientId(1));
        let hash = self.primary.hash_of(request.digest, request.key);
        self.primary.on_request(NOW, (connection, client), &request, hash, &mut self.responses);
    }

    fn put(&mut self, key: &[u8], digest: Digest, value: &[u8]) {
        self.seq += 1;
        let header = WriteHeader {
            seq: RequestSeq(self.seq),
            first_incomplete: RequestSeq(self.seq),
            begun: Default::default(),
            condition: Condition::Always,
        };
        self.ask(key, digest, Operation::Put(header, value));
    }

    /// Runs one wake-up of the primary and of the secondary.
    fn replicate(&mut self) {
        carry(&mut self.bytes, &mut self.primary, &mut self.secondary, &mut self.responses);
        carry(&mut self.bytes, &mut self.secondary, &mut self.primary, &mut self.responses);
    }
}

/// Delivers a batch, as bytes, from one holder to the other.
fn carry(bytes: &mut Vec<u8>, from: &mut Replica, to: &mut Replica, responses: &mut Counter) {
    bytes.clear();
    from.pump(NOW, bytes);
    let frame = split_frame(bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    for message in BatchReader::new(frame.body).unwrap() {
        to.on_peer_message(NOW, &message.unwrap(), responses).unwrap();
    }
}

fn keys() -> Vec<(Vec<u8>, Digest)> {
    (0..KEYS)
        .map(|n| {
            let key = format!("{n:016}").into_bytes();
            let digest = Digest::of(&key);
            (key, digest)
        })
        .collect()
}

/// Creates a pair that holds all keys.
fn filled(keys: &[(Vec<u8>, Digest)]) -> Pair {
    let mut pair = Pair::new();
    for (key, digest) in keys {
        pair.put(key, *digest, &[7; 64]);
        pair.replicate();
    }
    pair
}

fn operations(c: &mut Criterion) {
    let keys = keys();
    let mut pair = filled(&keys);
    let mut group = c.benchmark_group("replica");
    let mut next = keys.iter().cycle();
    group.bench_function("GET, 64 B", |b| {
        b.iter(|| {
            let (key, digest) = next.next().unwrap();
            pair.ask(key, *digest, Operation::Get);
        });
    });
    for depth in [1, 16] {
        group.throughput(Throughput::Elements(depth));
        let mut next = keys.iter().cycle();
        group.bench_function(format!("replicated PUT, 64 B, {depth} a batch"), |b| {
            b.iter(|| {
                for _ in 0..depth {
                    let (key, digest) = next.next().unwrap();
                    pair.put(key, *digest, &[7; 64]);
                }
                pair.replicate();
            });
        });
    }
    group.finish();
    black_box(pair.responses.0);
}

criterion_group!(benches, operations);

/// Runs `count` operations, in batches of 16 for writes.
fn steps(work: &str, count: usize) {
    let keys = keys();
    let mut pair = filled(&keys);
    for (n, (key, digest)) in keys.iter().cycle().take(count).enumerate() {
        match work {
            "get" => pair.ask(key, *digest, Operation::Get),
            "put" => pair.put(key, *digest, &[7; 64]),
            other => panic!("unknown operation \"{other}\" after --steps (expected get or put)"),
        }
        if work == "put" && (n + 1) % 16 == 0 {
            pair.replicate();
        }
    }
    black_box(pair.responses.0);
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let [_, "--steps", work, count, ..] = words[..] {
        return steps(work, count.parse().expect("the count must be a number"));
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
