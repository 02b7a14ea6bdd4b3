//! The cost of a table's operations at several sizes: entries of 16-byte keys and 64-byte values.
//!
//! The sizes are 10 k and 1 M entries, and 10 M entries if 4 GiB are free (they take 1.5 GiB). The memory comes from
//! the heap in 4 KiB pages. So operations on large tables include the cost of TLB misses, which a server with huge
//! pages avoids.

use std::hint::black_box;
use std::io::{self, Write as _};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kv_core::arena::HeapChunks;
use kv_core::table::{Table, TableHash, WalkBudget, WalkCursor};
use kv_protocol::ids::{SequenceNumber, WallTime};

const VALUE: [u8; 64] = [7; 64];
/// The time at which entries with deadlines are linked, in milliseconds since 1970, and the span of their deadlines.
const START_MS: u64 = 1_700_000_000_000;
const SPREAD_MS: u64 = 10_000;

/// Mixes a number with the finalizer of SplitMix64; stands in for the keyed hash of a digest.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn key_of(number: u64) -> ([u8; 16], TableHash) {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&number.to_le_bytes());
    (key, TableHash(mix(number.wrapping_add(0x9E37_79B9_7F4A_7C15))))
}

fn put(table: &mut Table, number: u64) {
    let (key, hash) = key_of(number);
    let old = table.put(hash, &key, &VALUE, None, SequenceNumber(number));
    black_box(old.expect("the heap has memory"));
}

fn filled(entries: u64) -> Table {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    (0..entries).for_each(|number| put(&mut table, number));
    table
}

/// Yields numbers below `entries` in an order that defeats caches.
fn scattered(entries: u64) -> impl FnMut() -> u64 {
    let mut turn = 0;
    move || {
        turn += 1;
        mix(turn) % entries
    }
}

fn sizes() -> Vec<u64> {
    let mut sizes = vec![10_000];
    // With `--test` the run only checks that the bench works, so a small table is enough.
    if std::env::args().any(|arg| arg == "--test") {
        return sizes;
    }
    sizes.push(1_000_000);
    if available_mib().is_some_and(|available| available >= 4_096) {
        sizes.push(10_000_000);
    } else {
        // The message explains why the report has no figures for this size.
        let _ = writeln!(io::stderr(), "skipping 10 M entries: less than 4 GiB are available");
    }
    sizes
}

/// Returns the memory available to processes without swapping: proc_meminfo(5).
fn available_mib() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1_024)
}

/// Benchmarks operations that keep the number of entries constant.
fn steady(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.measurement_time(Duration::from_secs(3));
    for entries in sizes() {
        let mut table = filled(entries);
        let mut next = scattered(entries);
        group.bench_function(BenchmarkId::new("get", entries), |b| {
            b.iter(|| {
                let (key, hash) = key_of(next());
                table.get(hash, &key).map(|entry| entry.value[0])
            });
        });
        group.bench_function(BenchmarkId::new("get missing", entries), |b| {
            b.iter(|| {
                let (key, hash) = key_of(entries + next());
                table.get(hash, &key).is_none()
            });
        });
        group.bench_function(BenchmarkId::new("overwrite", entries), |b| {
            b.iter(|| put(&mut table, next()));
        });
        group.bench_function(BenchmarkId::new("delete and put", entries), |b| {
            b.iter(|| {
                let number = next();
                let (key, hash) = key_of(number);
                black_box(table.remove(hash, &key));
                put(&mut table, number);
            });
        });
    }
    group.finish();
}

/// Benchmarks reading a whole table in steps.
fn walk(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.measurement_time(Duration::from_secs(3));
    let budget = WalkBudget { entries: 1000, bytes: usize::MAX };
    group.throughput(Throughput::Elements(budget.entries as u64));
    for entries in sizes() {
        let table = filled(entries);
        let mut cursor = WalkCursor::START;
        group.bench_function(BenchmarkId::new("walk 1000 entries", entries), |b| {
            b.iter(|| {
                let next = table.walk(cursor, budget, |entry| {
                    black_box(entry.value[0]);
                });
                cursor = next.unwrap_or_default();
            });
        });
    }
    group.finish();
}

/// Benchmarks filling an empty table, including all growth.
fn growth(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.sample_size(10);
    for entries in sizes() {
        group.throughput(Throughput::Elements(entries));
        group.bench_function(BenchmarkId::new("grow", entries), |b| {
            b.iter_batched(|| (), |()| filled(entries), BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// Returns the deadline of a numbered entry, in an order that defeats caches.
fn deadline_of(number: u64) -> WallTime {
    WallTime::from_millis(START_MS + 1 + mix(number) % SPREAD_MS)
}

fn filled_with_deadlines(entries: u64) -> Table {
    let mut table = Table::new(Box::new(HeapChunks::default()));
    table.advance_deadlines(WallTime::from_millis(START_MS), 0);
    for number in 0..entries {
        let (key, hash) = key_of(number);
        let deadline = Some(deadline_of(number));
        let old = table.put(hash, &key, &VALUE, deadline, SequenceNumber(number));
        black_box(old.expect("the heap has memory"));
    }
    table
}

/// Lets the time pass in steps of 1 ms until all deadlines have passed, and calls `expire` with the due entries.
fn pass_time(table: &mut Table, mut expire: impl FnMut(&mut Table, &[u64])) {
    let mut due = Vec::new();
    for now in (START_MS..=START_MS + SPREAD_MS).map(WallTime::from_millis) {
        while table.advance_deadlines(now, 256) {}
        due.clear();
        table.for_due(now, usize::MAX, |entry| {
            let number = entry.key.first_chunk().expect("a key has 16 bytes");
            due.push(u64::from_le_bytes(*number));
        });
        expire(table, &due);
    }
}

fn remove(table: &mut Table, number: u64) {
    let (key, hash) = key_of(number);
    black_box(table.remove(hash, &key));
}

/// Benchmarks entries with deadlines: "grow with deadlines" and "expire" differ from "grow" and "remove all" by the
/// cost of the deadlines.
fn expiry(c: &mut Criterion) {
    let mut group = c.benchmark_group("table");
    group.sample_size(10);
    for entries in sizes().into_iter().take(2) {
        group.throughput(Throughput::Elements(entries));
        group.bench_function(BenchmarkId::new("grow with deadlines", entries), |b| {
            b.iter_batched(|| (), |()| filled_with_deadlines(entries), BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new("expire", entries), |b| {
            let expire = |table: &mut Table, due: &[u64]| {
                due.iter().for_each(|&number| remove(table, number));
            };
            b.iter_batched_ref(
                || filled_with_deadlines(entries),
                |table| {
                    pass_time(table, expire);
                    assert!(table.is_empty(), "an entry has not expired");
                },
                BatchSize::PerIteration,
            );
        });
        let mut order: Vec<u64> = (0..entries).collect();
        order.sort_by_key(|&number| deadline_of(number));
        group.bench_function(BenchmarkId::new("remove all", entries), |b| {
            b.iter_batched_ref(
                || filled(entries),
                |table| order.iter().for_each(|&number| remove(table, number)),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, steady, walk, growth, expiry);
criterion_main!(benches);
