//! The cost of one operation in a whole shard, from the received bytes to the output bytes, without sockets and system
//! calls. The measured time of a PUT includes its replication at both holders.
//!
//! ```text
//!   cargo bench -p kv-shard --bench shard
//!   cargo bench -p kv-shard --bench shard -- --steps get 20000   a fixed number without measurement, for callgrind
//!   cargo bench -p kv-shard --bench shard -- --expire 1000000 2  the removal of as many expired entries, two writes at a
//!                                                                time
//! ```
//!
//! `get`, `put`, `put-if` (a conditional PUT) and `add` arrive 16 at a time, `single-get` and so on one at a time.
//! callgrind leaves out the encoding of the requests with `--toggle-collect='*Pair*execute*'`.
//! `redis-get` and `redis-set` are commands of a Redis client at a third server, which forwards them to the primary. Its
//! own part of the work is in `--toggle-collect='*at_door*'`.
#![allow(missing_docs)] // `criterion_group!` generates undocumented items.
#![allow(clippy::disallowed_macros)] // A benchmark prints.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group};
use kv_core::arena::HeapChunks;
use kv_core::hash::HashSecret;
use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Condition, Hello, Operation, Request, WriteHeader};
use kv_protocol::ids::*;
use kv_protocol::key::Nonce;
use kv_protocol::limits::SESSION_IDLE;
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::update::{Action, Expiry, Precondition, Update, Updates};
use kv_protocol::view::{Peer, View};
use kv_shard::{ConnectionMemory, DialTarget, HelloBounds, Identity, Port, Service, Shard};

const KEYS: usize = 10_000;
const NOW: Time = Time::from_nanos(1_000_000_000);
const CLUSTER: ClusterId = ClusterId(1);
/// The number of requests that arrive together, unless the work is `single-...`.
const DEPTH: usize = 16;

fn member(server: u16) -> Member {
    Member { server: ServerId(server), incarnation: Incarnation(1) }
}

fn shard(server: u16) -> Shard {
    let identity = Identity {
        cluster: CLUSTER,
        key: ClusterKey(2),
        me: member(server),
        shard: ShardId(0),
        placement: Placement::new(3, 1),
        failure_timeout: Default::default(),
        session_idle: SESSION_IDLE,
        long_value: kv_shard::LONG_VALUE,
    };
    let mut nonce = u128::from(server) << 64;
    let nonces = Box::new(move || {
        nonce += 1;
        Ok(Nonce(nonce))
    });
    let memory = ConnectionMemory::new(None, None, 2);
    let chunks = || Box::new(HeapChunks::default()) as Box<_>;
    Shard::new(
        Service::new(identity, nonces, memory, HashSecret::new(1), chunks),
        HelloBounds::WIDEST,
    )
}

/// The two holders of group 0, the two ends of their stream, and a client of the primary.
struct Pair {
    primary: Shard,
    secondary: Shard,
    dialled: ConnectionId,
    accepted: ConnectionId,
    client: ConnectionId,
    bytes: Vec<u8>,
    seq: u64,
}

impl Pair {
    fn new() -> Pair {
        let (mut primary, mut secondary) = (shard(0), shard(1));
        let view = View {
            group: GroupId(0),
            version: ViewVersion(1),
            primary: Some(member(0)),
            peer: Peer::Secondary(member(1)),
            handover: false,
        };
        let address = "127.0.0.1:1".parse().unwrap();
        primary.service.install(NOW, view, Some(address)).unwrap();
        secondary.service.install(NOW, view, None).unwrap();
        assert_eq!(primary.due_dials(NOW).len(), 1);
        let dialled = primary.open_dialled(NOW, GroupId(0));
        let accepted = secondary.adopt(NOW, Port::Servers, &[]);
        let mut hello = Vec::new();
        Hello::new(CLUSTER, ClientId(7), ShardId(0)).write(&mut hello);
        let client = primary.adopt(NOW, Port::Clients, &hello);
        let bytes = Vec::new();
        let mut pair = Pair { primary, secondary, dialled, accepted, client, bytes, seq: 0 };
        for _ in 0..4 {
            pair.replicate();
        }
        pair.take_responses();
        assert_eq!(pair.primary.service.stream(GroupId(0)), Some(dialled));
        pair
    }

    /// Runs one wake-up at each holder.
    fn replicate(&mut self) {
        let Pair { primary, secondary, bytes, .. } = self;
        carry(bytes, (primary, self.dialled), (secondary, self.accepted));
        carry(bytes, (secondary, self.accepted), (primary, self.dialled));
    }

    /// Takes the responses of the client; returns their bytes.
    fn take_responses(&mut self) -> usize {
        self.primary.finish_wake_up(NOW);
        let sent = black_box(self.primary.unsent(self.client)).len();
        self.primary.handle_sent(NOW, self.client, sent);
        while self.primary.next_dirty().is_some() {}
        sent
    }

    /// Returns the header of the next write of a client with `depth` writes in flight.
    fn next_header(&mut self, depth: usize) -> WriteHeader {
        self.seq += 1;
        WriteHeader {
            seq: RequestSeq(self.seq),
            first_incomplete: RequestSeq(self.seq.saturating_sub(depth as u64).max(1)),
            begun: SequenceNumber::ZERO,
            condition: Condition::Always,
        }
    }

    /// Executes the requests of a wake-up; returns the bytes of their responses.
    #[inline(never)]
    fn execute(&mut self, requests: &[u8], are_writes: bool) -> usize {
        self.primary.begin_wake_up(NOW);
        self.primary.handle_bytes(NOW, self.client, requests);
        if are_writes {
            self.replicate();
        }
        self.take_responses()
    }
}

/// A server without the keys, a Redis client of it, and its link to the primary of a pair.
struct Door {
    shard: Shard,
    client: ConnectionId,
    /// The two ends of the link.
    link: ConnectionId,
    far: ConnectionId,
    bytes: Vec<u8>,
}

impl Door {
    fn new(pair: &mut Pair) -> Door {
        let mut shard = shard(2);
        shard.service.set_map(map().into());
        let client = shard.open_accepted(NOW, Port::Clients);
        shard.handle_bytes(NOW, client, b"PING\r\n");
        shard.adopt_accepted(NOW, client);
        let get = commands(&keys(1), None);
        shard.handle_bytes(NOW, client, &get);
        shard.finish_wake_up(NOW);
        let due = shard.due_dials(NOW);
        let target = due.iter().find(|(target, _)| matches!(target, DialTarget::Link(_)));
        let link = shard.open_dialled(NOW, target.expect("a link is dialled").0);
        shard.finish_wake_up(NOW);
        let hello = shard.unsent(link).to_vec();
        shard.handle_sent(NOW, link, hello.len());
        let far = pair.primary.adopt(NOW, Port::Clients, &hello);
        let mut door = Door { shard, client, link, far, bytes: Vec::new() };
        // The WELCOME, and the response to the command above.
        for _ in 0..2 {
            door.serve(pair, false);
            door.reply_at_door();
        }
        door
    }

    /// Executes the commands of a wake-up; returns the bytes of their replies.
    fn execute(&mut self, pair: &mut Pair, commands: &[u8], are_writes: bool) -> usize {
        self.forward_at_door(commands);
        self.serve(pair, are_writes);
        self.reply_at_door()
    }

    #[inline(never)]
    fn forward_at_door(&mut self, commands: &[u8]) {
        self.shard.begin_wake_up(NOW);
        self.shard.handle_bytes(NOW, self.client, commands);
        self.shard.finish_wake_up(NOW);
        self.bytes.clear();
        self.bytes.extend_from_slice(self.shard.unsent(self.link));
        self.shard.handle_sent(NOW, self.link, self.bytes.len());
        while self.shard.next_dirty().is_some() {}
    }

    fn serve(&mut self, pair: &mut Pair, are_writes: bool) {
        pair.primary.begin_wake_up(NOW);
        pair.primary.handle_bytes(NOW, self.far, &self.bytes);
        if are_writes {
            pair.replicate();
        }
        pair.primary.finish_wake_up(NOW);
        self.bytes.clear();
        self.bytes.extend_from_slice(pair.primary.unsent(self.far));
        pair.primary.handle_sent(NOW, self.far, self.bytes.len());
        while pair.primary.next_dirty().is_some() {}
    }

    #[inline(never)]
    fn reply_at_door(&mut self) -> usize {
        self.shard.begin_wake_up(NOW);
        self.shard.handle_bytes(NOW, self.link, &self.bytes);
        self.shard.finish_wake_up(NOW);
        self.bytes.clear();
        self.bytes.extend_from_slice(self.shard.unsent(self.link));
        self.shard.handle_sent(NOW, self.link, self.bytes.len());
        let sent = black_box(self.shard.unsent(self.client)).len();
        self.shard.handle_sent(NOW, self.client, sent);
        while self.shard.next_dirty().is_some() {}
        sent
    }
}

/// Returns the map of three servers, in which the first two hold group 0.
fn map() -> Map {
    let server = |id: u16| MapServer {
        id: ServerId(id),
        incarnation: member(id).incarnation,
        state: ServerState::Up,
        clients: Some(format!("127.0.0.1:{}", 100 + id).parse().expect("an address")),
    };
    let view = |group: u16| View {
        group: GroupId(group),
        version: ViewVersion(1),
        primary: Some(member(group)),
        peer: Peer::Secondary(member((group + 1) % 3)),
        handover: false,
    };
    Map {
        cluster: CLUSTER,
        ancestors: Vec::new(),
        epoch: Epoch { number: 1, boot: BootId(1) },
        revision: MapRevision(1),
        shards: 1,
        servers: (0..3).map(server).collect(),
        views: (0..3).map(view).collect(),
        hash_tags: false,
    }
}

/// Encodes a GET of each key, or a SET to this value.
fn commands(keys: &[(Vec<u8>, Digest)], value: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, _) in keys {
        let words = [&b"GET"[..], key];
        let set = [&b"SET"[..], key, value.unwrap_or_default()];
        let words = if value.is_some() { &set[..] } else { &words[..] };
        bytes.extend(format!("*{}\r\n", words.len()).into_bytes());
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).into_bytes());
            bytes.extend_from_slice(word);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

/// Ends a wake-up, and delivers the output of one end of the stream to the other.
fn carry(bytes: &mut Vec<u8>, from: (&mut Shard, ConnectionId), to: (&mut Shard, ConnectionId)) {
    from.0.finish_wake_up(NOW);
    bytes.clear();
    bytes.extend_from_slice(from.0.unsent(from.1));
    from.0.handle_sent(NOW, from.1, bytes.len());
    while from.0.next_dirty_stream().is_some() {}
    to.0.begin_wake_up(NOW);
    to.0.handle_bytes(NOW, to.1, bytes);
}

fn write(bytes: &mut Vec<u8>, key: &[u8], digest: Digest, operation: Operation<'_>) {
    let (id, view) = (RequestId(1), ViewVersion(1));
    Request { id, view, digest, key, operation }.write(bytes);
}

fn keys(count: usize) -> Vec<(Vec<u8>, Digest)> {
    let placement = Placement::new(3, 1);
    let all = (0u64..).map(|n| format!("{n:016}").into_bytes());
    let all = all.map(|key| (Digest::of(&key), key)).map(|(digest, key)| (key, digest));
    let of_group = all.filter(|(key, _)| placement.locate(key).0 == GroupId(0));
    of_group.take(count).collect()
}

/// A kind of write.
#[derive(Clone, Copy, Debug)]
enum Work {
    Put,
    /// Sets a key if it exists.
    PutIf,
    /// Sets a key to a number of eight digits.
    PutNumber,
    Add,
}

impl Work {
    /// Returns the encoded update.
    fn encoded(self) -> Vec<u8> {
        let update = match self {
            Work::PutIf => {
                Update { condition: Precondition::Present, ..Update::new(Action::Put(&[7; 64])) }
            }
            _ => Update::new(Action::Add(1)),
        };
        let mut bytes = Vec::with_capacity(update.wire_bytes());
        update.write(&mut bytes);
        bytes
    }
}

/// Performs a batch of `depth` writes from key `from` on, and replicates it.
fn put(
    work: Work,
    pair: &mut Pair,
    keys: &[(Vec<u8>, Digest)],
    from: usize,
    depth: usize,
    requests: &mut Vec<u8>,
) {
    requests.clear();
    let updates = work.encoded();
    let updates = Updates::read(&updates).expect("well-formed");
    for n in 0..depth {
        let (key, digest) = &keys[(from + n) % keys.len()];
        let header = pair.next_header(depth);
        let operation = match work {
            Work::Put => Operation::Put(header, &[7; 64]),
            Work::PutNumber => Operation::Put(header, b"10000000"),
            Work::PutIf | Work::Add => Operation::Update(header, updates),
        };
        write(requests, key, *digest, operation);
    }
    assert!(pair.execute(requests, true) >= depth * 30);
}

fn gets(keys: &[(Vec<u8>, Digest)], depth: usize) -> Vec<Vec<u8>> {
    let batch = |keys: &[(Vec<u8>, Digest)]| {
        let mut requests = Vec::new();
        keys.iter().for_each(|(key, digest)| write(&mut requests, key, *digest, Operation::Get));
        requests
    };
    keys.chunks_exact(depth).map(batch).collect()
}

fn filled(work: Work) -> (Pair, Vec<(Vec<u8>, Digest)>) {
    let (mut pair, keys, mut requests) = (Pair::new(), keys(KEYS), Vec::new());
    for from in (0..keys.len()).step_by(DEPTH) {
        put(work, &mut pair, &keys, from, DEPTH, &mut requests);
    }
    (pair, keys)
}

fn operations(criterion: &mut Criterion) {
    let (mut pair, keys) = filled(Work::Put);
    let (mut numbers, _) = filled(Work::PutNumber);
    let mut group = criterion.benchmark_group("shard");
    let (mut n, mut from, mut requests) = (0, 0, Vec::new());
    for (prefix, depth) in [("", DEPTH), ("single-", 1)] {
        let gets = gets(&keys, depth);
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_function(format!("{prefix}get"), |bencher| {
            bencher.iter(|| {
                n += 1;
                assert!(pair.execute(&gets[n % gets.len()], false) >= depth * 64);
            });
        });
        for (name, work) in [("put", Work::Put), ("put-if", Work::PutIf), ("add", Work::Add)] {
            let pair = if let Work::Add = work { &mut numbers } else { &mut pair };
            group.bench_function(format!("{prefix}{name}"), |bencher| {
                bencher.iter(|| {
                    from += depth;
                    put(work, pair, &keys, from, depth, &mut requests);
                });
            });
        }
    }
    group.finish();
}

/// Performs a fixed number of operations without measurement.
fn steps(work: &str, count: usize) {
    let (work, depth) = match work.strip_prefix("single-") {
        Some(work) => (work, 1),
        None => (work, DEPTH),
    };
    let (mut pair, keys) = filled(if work == "add" { Work::PutNumber } else { Work::Put });
    if let Some(work) = work.strip_prefix("redis-") {
        return redis_steps(work, (&mut pair, &keys), depth, count);
    }
    let (gets, mut requests) = (gets(&keys, depth), Vec::new());
    for n in 0..count / depth {
        match work {
            "get" => {
                assert!(pair.execute(&gets[n % gets.len()], false) >= depth * 64);
            }
            "put" => put(Work::Put, &mut pair, &keys, n * depth, depth, &mut requests),
            "put-if" => put(Work::PutIf, &mut pair, &keys, n * depth, depth, &mut requests),
            "add" => put(Work::Add, &mut pair, &keys, n * depth, depth, &mut requests),
            other => panic!("unknown work {other:?} (expected [single-]get, put, put-if or add)"),
        }
    }
}

/// Performs a fixed number of commands of a Redis client without measurement.
fn redis_steps(
    work: &str,
    (pair, keys): (&mut Pair, &[(Vec<u8>, Digest)]),
    depth: usize,
    count: usize,
) {
    let value = match work {
        "get" => None,
        "set" => Some(&[7; 64][..]),
        other => panic!("unknown work {other:?} (expected [single-]redis-get or redis-set)"),
    };
    let batches: Vec<Vec<u8>> =
        keys.chunks_exact(depth).map(|keys| commands(keys, value)).collect();
    let mut door = Door::new(pair);
    for n in 0..count / depth {
        let sent = door.execute(pair, &batches[n % batches.len()], value.is_some());
        assert!(sent >= depth * b"+OK\r\n".len());
    }
}

/// Returns the CPU time of this thread. Unlike the time that has passed, it does not depend on other load.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("not negative")
}

/// Runs one wake-up of a shard with received bytes, and takes its output to a stream. Returns the CPU time of the
/// wake-up.
fn wake_up(
    now: Time,
    (shard, connection): (&mut Shard, ConnectionId),
    work: impl FnOnce(&mut Shard),
    output: &mut Vec<u8>,
) -> Duration {
    let start = cpu_time();
    shard.begin_wake_up(now);
    work(shard);
    shard.finish_wake_up(now);
    let took = cpu_time() - start;
    output.clear();
    output.extend_from_slice(shard.unsent(connection));
    shard.handle_sent(now, connection, output.len());
    while shard.next_dirty_stream().is_some() {}
    took
}

/// Lets `count` entries of 80 bytes expire at the same time, and wakes the primary up every millisecond. The secondary
/// receives the writes of `together` wake-ups at once. Prints the CPU time for each entry at both holders together, and
/// the longest wake-ups.
fn expire(count: usize, together: usize) {
    let (mut pair, wall) = (Pair::new(), WallTime::from_millis(1_000_000));
    for shard in [&mut pair.primary, &mut pair.secondary] {
        shard.handle_tick(NOW, wall);
    }
    let (mut update, mut requests) = (Vec::new(), Vec::new());
    let expiry = Expiry::At(wall.after(1_000));
    Update { expiry, ..Update::new(Action::Put(&[7; 64])) }.write(&mut update);
    let updates = Updates::read(&update).expect("well-formed");
    // The keys live until the end. Otherwise their memory would be tidied up within a wake-up.
    let keys = keys(count);
    for batch in keys.chunks(DEPTH) {
        requests.clear();
        for (key, digest) in batch {
            let header = pair.next_header(DEPTH);
            write(&mut requests, key, *digest, Operation::Update(header, updates));
        }
        assert!(pair.execute(&requests, true) >= batch.len() * 30);
    }
    let Pair { mut primary, mut secondary, dialled, accepted, mut bytes, .. } = pair;
    let (mut now, mut output, mut writes) =
        (NOW + Duration::from_millis(999), Vec::new(), Vec::new());
    let (mut total, mut longest) = (Duration::ZERO, [Duration::ZERO; 3]);
    let mut note = |place: usize, took: Duration| {
        longest[place] = took.max(longest[place]);
        total += took;
    };
    while primary.service.counters().removals.expired < count as u64 {
        writes.clear();
        for _ in 0..together {
            now = now + Duration::from_millis(1);
            let millis = now.since(NOW).as_millis().try_into().expect("a short time");
            let (wall, end) = (wall.after(millis), (&mut primary, dialled));
            note(0, wake_up(now, end, |shard| shard.handle_tick(now, wall), &mut output));
            writes.extend_from_slice(&output);
        }
        let end = (&mut secondary, accepted);
        note(1, wake_up(now, end, |shard| shard.handle_bytes(now, accepted, &writes), &mut bytes));
        let end = (&mut primary, dialled);
        note(2, wake_up(now, end, |shard| shard.handle_bytes(now, dialled, &bytes), &mut output));
    }
    let [decides, applies, commits] = longest;
    let each = total.as_nanos() / count as u128;
    println!("{count} entries expired: {each} ns each at both holders together");
    println!("longest wake-up: decision {decides:?}, secondary {applies:?}, commit {commits:?}");
}

criterion_group!(benches, operations);

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let [_, "--steps", work, count, ..] = words[..] {
        return steps(work, count.parse().expect("a count"));
    }
    if let [_, "--expire", count, together, ..] = words[..] {
        return expire(count.parse().expect("a count"), together.parse().expect("a count"));
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
