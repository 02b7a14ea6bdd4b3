//! Compares the hit ratio of `--eviction lfu` with that of a real redis-server (`maxmemory-policy allkeys-lfu`) for the
//! same requests, with the same number of entries in memory.
//!
//! ```text
//!   zipf trace --> cache-aside: GET, and PUT after a miss --> Replica   --> hits, entries in memory
//!              \-> the same ------------------------------> redis-server --> hits, entries in memory
//! ```
#![allow(clippy::disallowed_methods, clippy::disallowed_macros)] // The crate does no I/O, but this test does.

mod redis;

use std::io::Write as _;
use std::time::Duration;

use kv_core::arena::HeapChunks;
use kv_core::hash::HashSecret;
use kv_core::replica::{ConnectionId, Replica, ReplicaConfig, Responses};
use kv_protocol::client_message::{Condition, Operation, Request, Response, Status, WriteHeader};
use kv_protocol::ids::*;
use kv_protocol::limits::SESSION_IDLE;
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::{Peer, View};
use kv_protocol::{Eviction, FailureTimeout};
use redis::{Redis, push_request};

const KEYS: usize = 1_000_000;
const ACCESSES: usize = 2_000_000;
/// The exponent of the distribution, as in YCSB.
const EXPONENT: f64 = 0.99;
/// The memory limit of the table. It has room for about an eighth of the keys.
const LIMIT: u64 = 20 << 20;
const VALUE: [u8; 100] = [b'v'; 100];
/// The number of accesses in one wake-up, and in one script of Redis.
const BATCH: usize = 16;
/// The hit ratio of this store is at least this part of that of Redis.
const PART_OF_REDIS: f64 = 0.98;

/// Returns the ranks of the keys of all accesses, by a fixed seed.
fn trace() -> Vec<usize> {
    let mut sums = Vec::with_capacity(KEYS);
    let mut sum = 0.0;
    for rank in 1..=KEYS {
        sum += (rank as f64).powf(-EXPONENT);
        sums.push(sum);
    }
    let mut state = 7_u64;
    let mut random = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    };
    let rank = |at: f64| sums.partition_point(|&below| below < at).min(KEYS - 1);
    (0..ACCESSES).map(|_| rank(random() * sum)).collect()
}

fn key(rank: usize) -> String {
    format!("key:{rank:012}")
}

/// The hits of a run.
#[derive(Debug, Default)]
struct Hits {
    all: usize,
    /// The hits of the second half of the accesses, when the cache is full.
    second_half: usize,
    /// The number of entries at the end.
    entries: usize,
}

impl Hits {
    fn count(&mut self, access: usize) {
        self.all += 1;
        self.second_half += usize::from(access >= ACCESSES / 2);
    }

    fn ratio(&self) -> f64 {
        self.all as f64 / ACCESSES as f64
    }

    fn say(&self, name: &str) {
        println!(
            "{name}: hit ratio {:.2} %, in the second half {:.2} %, {} entries",
            100.0 * self.ratio(),
            200.0 * self.second_half as f64 / ACCESSES as f64,
            self.entries
        );
    }
}

/// A sink that keeps the status of the last response.
struct Last(Status);

impl Responses for Last {
    fn respond(&mut self, _: ConnectionId, response: &Response<'_>) {
        self.0 = response.status;
    }
}

/// A sole primary without connections.
struct Cache {
    replica: Replica,
    last: Last,
    now: Time,
    seq: u64,
}

impl Cache {
    fn new() -> Cache {
        let me = Member { server: ServerId(0), incarnation: Incarnation(1) };
        let config = ReplicaConfig {
            me,
            group: GroupId(0),
            shard: ShardId(0),
            placement: Placement::new(1, 1),
            memory_limit: Some(LIMIT),
            session_idle: SESSION_IDLE,
            hash_secret: HashSecret::new(1),
            failure_timeout: FailureTimeout::DEFAULT,
        };
        let mut replica = Replica::new(config, Box::new(HeapChunks::default()));
        let (mut last, now) = (Last(Status::Ok), Time::from_nanos(1_000));
        let (group, version) = (GroupId(0), ViewVersion(1));
        let view = View { group, version, primary: Some(me), peer: Peer::None, handover: false };
        replica.install(now, view, &mut last).expect("the first view");
        replica.set_eviction(Eviction::Lfu);
        Cache { replica, last, now, seq: 0 }
    }

    fn request(&mut self, key: &[u8], operation: Operation<'_>) -> Status {
        let digest = Digest::of(key);
        let request = Request { id: RequestId(1), view: ViewVersion(1), digest, key, operation };
        let hash = self.replica.hash_of(digest, key);
        let asker = (ConnectionId(1), ClientId(1));
        self.replica.on_request(self.now, asker, &request, hash, &mut self.last);
        if operation == Operation::Get && self.last.0 == Status::Ok {
            self.replica.note_use(hash);
        }
        self.last.0
    }

    fn put(&mut self, key: &[u8]) {
        self.seq += 1;
        let header = WriteHeader {
            seq: RequestSeq(self.seq),
            first_incomplete: RequestSeq(self.seq),
            begun: SequenceNumber::ZERO,
            condition: Condition::Always,
        };
        while self.request(key, Operation::Put(header, &VALUE)) != Status::Ok {
            assert_eq!(self.last.0, Status::Busy);
            self.end_wake_up();
        }
    }

    fn end_wake_up(&mut self) {
        self.replica.keep_headroom(self.now, &mut self.last);
        self.replica.on_timeout(self.now, &mut self.last);
        self.now = self.now + Duration::from_micros(50);
    }
}

/// Runs the trace against this store.
fn ours(trace: &[usize]) -> Hits {
    let (mut cache, mut hits) = (Cache::new(), Hits::default());
    for (access, &rank) in trace.iter().enumerate() {
        let key = key(rank);
        match cache.request(key.as_bytes(), Operation::Get) {
            Status::Ok => hits.count(access),
            _ => cache.put(key.as_bytes()),
        }
        if access % BATCH == 0 {
            cache.end_wake_up();
        }
    }
    let mut cursor = Some(kv_core::table::WalkCursor::START);
    while let Some(at) = cursor {
        let budget = kv_core::table::WalkBudget { entries: 1_000, bytes: 1 << 20 };
        cursor = cache.replica.walk(at, budget, |_| hits.entries += 1);
    }
    hits
}

/// Cache-aside for several keys; returns `1` for a hit and `0` for a miss of each.
const SCRIPT: &[u8] = b"local hits = ''
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) then hits = hits .. '1'
  else redis.call('SET', key, ARGV[1]) hits = hits .. '0' end
end
return hits";

impl Redis {
    fn command(&mut self, words: &[&[u8]]) -> anyhow::Result<Vec<u8>> {
        let mut request = Vec::new();
        push_request(&mut request, words);
        self.stream.get_mut().write_all(&request)?;
        self.response()?.map_err(|error| anyhow::anyhow!("redis-server: {error}"))
    }

    fn set(&mut self, setting: &str, value: &str) -> anyhow::Result<()> {
        self.command(&[b"CONFIG", b"SET", setting.as_bytes(), value.as_bytes()]).map(drop)
    }

    fn used_memory(&mut self) -> anyhow::Result<u64> {
        let text = String::from_utf8(self.command(&[b"INFO", b"memory"])?)?;
        let line = text.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok(line.ok_or_else(|| anyhow::anyhow!("no used_memory in {text}"))?.trim().parse()?)
    }
}

/// Runs the trace against Redis, with a limit at which it holds this number of entries.
fn theirs(trace: &[usize], entries: usize) -> anyhow::Result<Hits> {
    let mut redis = Redis::start()?;
    let script = redis.command(&[b"SCRIPT", b"LOAD", SCRIPT])?;
    let batch_of = |ranks: &[usize]| {
        let keys: Vec<String> = ranks.iter().map(|&rank| key(rank)).collect();
        let count = keys.len().to_string();
        let mut words: Vec<&[u8]> = vec![b"EVALSHA", &script, count.as_bytes()];
        words.extend(keys.iter().map(String::as_bytes));
        words.push(&VALUE);
        let mut request = Vec::new();
        push_request(&mut request, &words);
        request
    };
    // The limit is the memory in use with so many entries.
    let ranks: Vec<usize> = (0..entries).collect();
    for ranks in ranks.chunks(1_000) {
        redis.stream.get_mut().write_all(&batch_of(ranks))?;
        redis.response()?.map_err(|error| anyhow::anyhow!("redis-server: {error}"))?;
    }
    let limit = redis.used_memory()?;
    redis.command(&[b"FLUSHALL"])?;
    redis.set("maxmemory-policy", "allkeys-lfu")?;
    redis.set("maxmemory", &limit.to_string())?;
    let mut hits = Hits::default();
    let mut access = 0;
    for ranks in trace.chunks(BATCH) {
        redis.stream.get_mut().write_all(&batch_of(ranks))?;
        let found = redis.response()?.map_err(|error| anyhow::anyhow!("redis-server: {error}"))?;
        for found in found {
            if found == b'1' {
                hits.count(access);
            }
            access += 1;
        }
    }
    hits.entries = String::from_utf8(redis.command(&[b"DBSIZE"])?)?.parse()?;
    Ok(hits)
}

#[test]
#[ignore = "needs redis-server; `make sim` runs it"]
fn the_hit_ratio_is_within_two_percent_of_that_of_redis() -> anyhow::Result<()> {
    let trace = trace();
    println!(
        "{ACCESSES} accesses of {KEYS} keys, zipf {EXPONENT}, values of {} bytes",
        VALUE.len()
    );
    let ours = ours(&trace);
    ours.say("--eviction lfu");
    let theirs = theirs(&trace, ours.entries)?;
    theirs.say("allkeys-lfu of Redis");
    let difference = ours.entries.abs_diff(theirs.entries);
    assert!(difference * 50 <= ours.entries, "the numbers of entries differ by {difference}");
    let part = ours.ratio() / theirs.ratio();
    assert!(part >= PART_OF_REDIS, "the hit ratio is only {part} of that of Redis");
    Ok(())
}
