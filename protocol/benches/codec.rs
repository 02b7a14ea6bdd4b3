//! Benchmarks of the wire format: placement, and the requests, responses and batches of the data path.
#![allow(missing_docs)] // `criterion_group!` generates undocumented items.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kv_protocol::client_message::{Condition, Operation, Request, Response, Status, WriteHeader};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::*;
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_PEER_BODY};
use kv_protocol::peer_message::{
    BatchReader, BatchWriter, CompletionRecord, Effect, PeerMessage, Prepare,
};
use kv_protocol::placement::{Digest, Placement};
use std::hint::black_box;

const KEY: &[u8] = b"sixteen-byte-key";
const VALUE: &[u8] = &[7; 64];

fn placement(c: &mut Criterion) {
    let mut group = c.benchmark_group("placement");
    group.bench_function("md5 of a 16 B key", |b| b.iter(|| Digest::of(black_box(KEY))));
    let placement = Placement::new(3, 2);
    let digest = Digest::of(KEY);
    group.bench_function("group and shard", |b| {
        b.iter(|| placement.locate_digested(black_box(digest), black_box(KEY)))
    });
    group.finish();
}

fn put() -> Request<'static> {
    let header = WriteHeader {
        seq: RequestSeq(2),
        first_incomplete: RequestSeq(1),
        begun: Default::default(),
        condition: Condition::Always,
    };
    let operation = Operation::Put(header, VALUE);
    Request { id: RequestId(1), view: ViewVersion(1), digest: Digest::of(KEY), key: KEY, operation }
}

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Elements(1));
    let mut bytes = Vec::new();
    let request = put();
    group.bench_function("write PUT, 64 B", |b| {
        b.iter(|| {
            bytes.clear();
            black_box(&request).write(&mut bytes);
        });
    });
    let rules = FrameRules::unchecked(MAX_CLIENT_BODY);
    group.bench_function("read PUT, 64 B", |b| {
        b.iter(|| {
            let frame = split_frame(black_box(&bytes), &rules).unwrap().unwrap();
            Request::read(frame.opcode, frame.body).unwrap().key.len()
        });
    });
    let response = Response {
        id: RequestId(1),
        status: Status::Ok,
        copies: 2,
        view: ViewVersion(1),
        version: SequenceNumber(9),
        value: VALUE,
        whole: 0,
        has_value: false,
        deadline: None,
    };
    group.bench_function("write answer, 64 B", |b| {
        b.iter(|| {
            bytes.clear();
            black_box(&response).write(&mut bytes);
        });
    });
    group.finish();
}

fn batches(c: &mut Criterion) {
    const MESSAGES: u64 = 16;
    let record = CompletionRecord {
        client: ClientId(1),
        seq: RequestSeq(1),
        first_incomplete: RequestSeq(1),
        status: Status::Ok,
        version: SequenceNumber(1),
        request: Default::default(),
    };
    let prepare = PeerMessage::Prepare(Prepare {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        t_send: Time::from_nanos(1),
        effect: Effect::Put,
        record,
        digest: Digest::of(KEY),
        key: KEY,
        deadline: None,
        value_length: 64,
        response_length: 0,
        value: VALUE,
        response: &[],
    });
    let mut group = c.benchmark_group("batch of 16 PREPAREs");
    group.throughput(Throughput::Elements(MESSAGES));
    let mut bytes = Vec::new();
    group.bench_function("write", |b| {
        b.iter(|| {
            bytes.clear();
            let mut batch = BatchWriter::new(&mut bytes);
            (0..MESSAGES).for_each(|_| batch.push(black_box(&prepare)));
            batch.finish();
        });
    });
    let rules = FrameRules::checked(MAX_PEER_BODY);
    group.bench_function("read", |b| {
        b.iter(|| {
            let frame = split_frame(black_box(&bytes), &rules).unwrap().unwrap();
            BatchReader::new(frame.body).unwrap().filter(Result::is_ok).count()
        });
    });
    group.finish();
}

criterion_group!(benches, placement, codec, batches);
criterion_main!(benches);
