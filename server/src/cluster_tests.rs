//! Tests of three servers in one process: real executors, real sockets on loopback, orders given directly.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_core::dump::{Dump, HeldAs};
use kv_core::hash::HashSecret;
use kv_protocol::change::RetainedResponse;
use kv_protocol::client_message::{
    Condition, Hello, Operation, Refusal, ReplicaRole, Request, Response, Status, Welcome,
    WriteHeader, opcode as client_opcode,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{
    ClientId, ClusterId, ClusterKey, GroupId, Incarnation, Member, OrderId, RequestId, RequestSeq,
    ServerId, ShardId, ViewVersion, WallTime,
};
use kv_protocol::limits::MAX_RESPONSE_BODY;
use kv_protocol::limits::SESSION_IDLE;
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::update::{Action, Expiry, Update, Updates};
use kv_protocol::view::{Peer, View};
use kv_shard::{ConnectionMemory, Identity, Port};

use crate::control::operation::{ServerProcess, Work};
use crate::descriptors::ConnectionBounds;
use crate::executor::{self, ExecutorConfig};
use crate::mailbox;
use crate::message::{DumpPiece, LongItem, Replies, ShardMessage};
use crate::net::engine::EngineKind;
use crate::net::jobs::{DUMP_SESSIONS, DUMP_STEP};
use crate::probe;
use crate::statistics::Statistics;

const CLUSTER: ClusterId = ClusterId(0xc1);
const SERVERS: u16 = 3;
const TIMEOUT: Duration = Duration::from_secs(20);

struct Server {
    node: Arc<ServerProcess>,
    clients: SocketAddr,
    servers: SocketAddr,
}

struct Cluster {
    servers: Vec<Server>,
    placement: Placement,
    _directory: tempfile::TempDir,
}

fn member(server: u16) -> Member {
    Member { server: ServerId(server), incarnation: Incarnation(1000 + u64::from(server)) }
}

fn start_server(engine: EngineKind, id: u16, placement: Placement, directory: &Path) -> Server {
    let statistics = Statistics::new(
        placement.shards(),
        ConnectionBounds::WIDEST,
        ConnectionMemory::new(None, None, 2),
    );
    let loopback = "127.0.0.1".parse().unwrap();
    let clients = probe::listen(loopback, 0, "clients").unwrap();
    let servers = probe::listen(loopback, 0, "servers").unwrap();
    let addresses = (clients.local_addr().unwrap(), servers.local_addr().unwrap());
    let (mailboxes, inboxes): (Vec<_>, Vec<_>) =
        (0..placement.shards()).map(|_| mailbox::mailbox().unwrap()).unzip();
    let identity = Identity {
        cluster: CLUSTER,
        key: ClusterKey(0x5ec),
        me: member(id),
        shard: ShardId(0),
        placement,
        failure_timeout: Default::default(),
        session_idle: SESSION_IDLE,
        long_value: kv_shard::LONG_VALUE,
    };
    let mut listeners = vec![(clients.into(), Port::Clients), (servers.into(), Port::Servers)];
    for (shard, inbox) in (0..placement.shards()).zip(inboxes) {
        executor::start(ExecutorConfig {
            identity: Identity { shard: ShardId(shard), ..identity },
            hash_secret: HashSecret::new(7),
            statistics: Arc::clone(&statistics),
            map: Arc::default(),
            mailboxes: mailboxes.clone(),
            inbox,
            redis_deadline: kv_protocol::limits::DEFAULT_DEADLINE,
            redis_multi: Default::default(),
            engine,
            listeners: std::mem::take(&mut listeners),
        })
        .unwrap();
    }
    let node =
        ServerProcess::new(identity, statistics, Arc::default(), mailboxes, directory.to_owned());
    Server { node, clients: addresses.0, servers: addresses.1 }
}

/// Installs a view in every shard, as an order would.
fn install(node: &ServerProcess, view: View, other: Option<SocketAddr>) {
    let (sender, refusals) = crossbeam::channel::bounded(16);
    let bell = Arc::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap());
    let replies = Replies::new(sender, bell);
    let order = OrderId(1);
    node.tell_all(|| ShardMessage::Install { order, view, other, replies: replies.clone() })
        .unwrap();
    assert!(refusals.try_recv().is_err());
}

impl Cluster {
    fn start(engine: EngineKind, shards: u16) -> Cluster {
        let placement = Placement::new(SERVERS, shards);
        let directory = tempfile::tempdir().unwrap();
        let servers: Vec<Server> =
            (0..SERVERS).map(|id| start_server(engine, id, placement, directory.path())).collect();
        for id in 0..SERVERS {
            let secondary = usize::from((id + 1) % SERVERS);
            let view = View {
                group: GroupId(id),
                version: ViewVersion(1),
                primary: Some(member(id)),
                peer: Peer::Secondary(member((id + 1) % SERVERS)),
                handover: false,
            };
            let (node, other) = (&servers[usize::from(id)].node, servers[secondary].servers);
            install(node, view, Some(other));
            let streams = |statistics: &Statistics| {
                statistics
                    .replicas(Default::default())
                    .iter()
                    .filter(|r| r.group == view.group && r.connected)
                    .count()
            };
            let shards = usize::from(shards);
            assert!(
                node.statistics.wait(TIMEOUT, |statistics| streams(statistics) == shards),
                "all streams"
            );
        }
        Cluster { servers, placement, _directory: directory }
    }

    fn dump(&self, server: usize, role: ReplicaRole) -> Dump {
        let node = &self.servers[server].node;
        let entries = node.carry_out(Work::Dump(role)).unwrap();
        let name = crate::dump::file_name(node.me.server, role);
        let dump = Dump::parse(&std::fs::read(node.dumps.directory.join(name)).unwrap()).unwrap();
        assert_eq!(dump.entries.len() as u64, entries);
        dump
    }
}

/// An owned response.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    id: u64,
    status: Status,
    copies: u8,
    value: Vec<u8>,
}

/// A blocking client of one shard of one server.
struct Client {
    stream: TcpStream,
    input: FrameBuffer,
    next: u64,
}

impl Client {
    fn connect(address: SocketAddr, client: u128, shard: u16) -> Client {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut bytes = Vec::new();
        Hello::new(CLUSTER, ClientId(client), ShardId(shard)).write(&mut bytes);
        stream.write_all(&bytes).unwrap();
        let input = FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY));
        let mut client = Client { stream, input, next: 1 };
        let (opcode, body) = client.receive();
        assert_eq!(opcode, client_opcode::WELCOME);
        Welcome::read(&body).unwrap();
        client
    }

    fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut bytes = [0; 65536];
        loop {
            if let Some(frame) = self.input.next_frame().unwrap() {
                return (frame.opcode, frame.body.to_vec());
            }
            let received = self.stream.read(&mut bytes).expect("a response");
            assert!(received > 0, "the server closed the connection");
            self.input.extend(&bytes[..received]);
        }
    }

    fn response(&mut self) -> Given {
        let (opcode, body) = self.receive();
        assert_eq!(opcode, client_opcode::RESPONSE, "{:?}", Refusal::read(&body));
        let Response { id, status, copies, value, .. } = Response::read(&body).unwrap();
        Given { id: id.0, status, copies, value: value.to_vec() }
    }

    fn write(&mut self, key: &[u8], operation: Operation<'_>) -> u64 {
        let id = self.next;
        self.next += 1;
        let mut bytes = Vec::new();
        let digest = Digest::of(key);
        Request { id: RequestId(id), view: ViewVersion(1), digest, key, operation }
            .write(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
        id
    }

    fn header(&self) -> WriteHeader {
        WriteHeader {
            seq: RequestSeq(self.next),
            first_incomplete: RequestSeq(self.next.saturating_sub(40).max(1)),
            begun: Default::default(),
            condition: Condition::Always,
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Given {
        self.write(key, Operation::Put(self.header(), value));
        self.response()
    }

    fn get(&mut self, key: &[u8]) -> Given {
        self.write(key, Operation::Get);
        self.response()
    }
}

/// Clients of every shard of every server, with routing to the right one.
struct Router {
    placement: Placement,
    clients: Vec<Vec<Client>>,
}

impl Router {
    fn connect(cluster: &Cluster, client: u128) -> Router {
        let shards = cluster.placement.shards();
        let clients = cluster.servers.iter().map(|server| {
            (0..shards).map(|shard| Client::connect(server.clients, client, shard)).collect()
        });
        Router { placement: cluster.placement, clients: clients.collect() }
    }

    fn of(&mut self, key: &[u8]) -> &mut Client {
        let (group, shard) = self.placement.locate(key);
        &mut self.clients[usize::from(group.0)][usize::from(shard.0)]
    }

    fn of_secondary(&mut self, key: &[u8]) -> &mut Client {
        let (group, shard) = self.placement.locate(key);
        let server = usize::from(group.home_secondary(SERVERS).0);
        &mut self.clients[server][usize::from(shard.0)]
    }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < TIMEOUT, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn an_acknowledged_write_is_in_both_tables_and_in_both_dumps(engine: EngineKind) {
    for shards in [1, 2, 4] {
        acknowledged_writes_are_in_both_tables_and_dumps(engine, shards);
    }
}

fn acknowledged_writes_are_in_both_tables_and_dumps(engine: EngineKind, shards: u16) {
    let cluster = Cluster::start(engine, shards);
    let mut router = Router::connect(&cluster, 1);
    let keys: Vec<Vec<u8>> = (0..300u32).map(|n| format!("key {n}\0\u{e9}").into_bytes()).collect();
    for (n, key) in keys.iter().enumerate() {
        let value = vec![b'v'; n * 7];
        let given = router.of(key).put(key, &value);
        assert_eq!((given.status, given.copies), (Status::Ok, 2));
        let given = router.of(key).get(key);
        assert_eq!((given.status, given.value), (Status::Ok, value.clone()));
        let secondary = router.of_secondary(key);
        secondary.write(key, Operation::Verify(ReplicaRole::Secondary));
        assert_eq!(secondary.response().value, value, "the secondary's copy");
    }
    for server in &cluster.servers {
        assert_eq!(server.node.carry_out(Work::Drain), Ok(0));
    }
    let mut dumped = 0;
    for server in 0..3 {
        let mut primary = cluster.dump(server, ReplicaRole::Primary);
        let mut secondary = cluster.dump((server + 1) % 3, ReplicaRole::Secondary);
        assert_eq!(primary.header.origin.group, secondary.header.origin.group);
        assert_eq!(primary.header.origin.writer, cluster.servers[server].node.me);
        for (ours, theirs) in primary.header.shards.iter().zip(&secondary.header.shards) {
            assert_eq!((ours.held_as, theirs.held_as), (HeldAs::Primary, HeldAs::Secondary));
            assert_eq!((ours.view, ours.last), (ViewVersion(1), theirs.last));
        }
        primary.entries.sort_by(|a, b| a.key.cmp(&b.key));
        secondary.entries.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(primary.entries, secondary.entries);
        assert_eq!(primary.records.len(), secondary.records.len());
        dumped += primary.entries.len();
    }
    assert_eq!(dumped, keys.len());
    let key = &keys[0];
    let given = router.of(key).put(key, b"too late");
    assert_eq!(given.status, Status::Unavailable, "a drained server takes no writes");
}

fn the_largest_value_is_stored_and_read_back_unchanged(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let mut router = Router::connect(&cluster, 2);
    let key = [7u8; 65_535];
    let value: Vec<u8> = (0..16u32 << 20).map(|n| (n % 251) as u8).collect();
    assert_eq!(router.of(&key).put(&key, &value).status, Status::Ok);
    let given = router.of(&key).get(&key);
    assert!(given.value == value, "the value was altered");
    let secondary = router.of_secondary(&key);
    secondary.write(&key, Operation::Verify(ReplicaRole::Secondary));
    assert!(secondary.response().value == value, "the secondary's copy differs");
}

fn every_write_in_flight_gets_one_response(engine: EngineKind) {
    const WRITES: usize = 2_000;
    const DEPTH: u64 = 32;
    let cluster = Cluster::start(engine, 1);
    let mut client = Client::connect(cluster.servers[0].clients, 3, 0);
    let placement = cluster.placement;
    let keys: Vec<Vec<u8>> = (0u32..)
        .map(|n| n.to_be_bytes().to_vec())
        .filter(|key| placement.locate(key).0 == GroupId(0))
        .take(WRITES)
        .collect();
    let mut responded = 0;
    for (n, key) in keys.iter().enumerate() {
        let id = client.write(key, Operation::Put(client.header(), key));
        assert_eq!(id, n as u64 + 1);
        if id - responded >= DEPTH {
            responded += 1;
            let given = client.response();
            assert_eq!((given.id, given.status, given.copies), (responded, Status::Ok, 2));
        }
    }
    while responded < WRITES as u64 {
        responded += 1;
        assert_eq!(client.response().id, responded);
    }
    for key in &keys {
        assert_eq!(&client.get(key).value, key);
    }
}

fn a_client_that_reads_no_responses_does_not_delay_others(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let mut router = Router::connect(&cluster, 4);
    let key = b"big";
    let value = vec![1u8; 1 << 20];
    assert_eq!(router.of(key).put(key, &value).status, Status::Ok);
    let (group, _) = cluster.placement.locate(key);
    let address = cluster.servers[usize::from(group.0)].clients;
    let mut greedy = Client::connect(address, 5, 0);
    let requests = 64;
    for _ in 0..requests {
        greedy.write(key, Operation::Get);
    }
    for _ in 0..100 {
        assert_eq!(router.of(key).get(key).status, Status::Ok);
    }
    for _ in 0..requests {
        assert_eq!(greedy.response().value.len(), value.len());
    }
}

fn a_client_that_ends_its_sending_side_still_gets_its_responses(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let mut router = Router::connect(&cluster, 6);
    let client = router.of(b"half");
    client.write(b"half", Operation::Put(client.header(), b"closed"));
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.response().status, Status::Ok);
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

fn a_hello_for_a_nonexistent_shard_is_rejected_with_the_reason(engine: EngineKind) {
    let cluster = Cluster::start(engine, 2);
    let server = &cluster.servers[0];
    let mut stream = TcpStream::connect(server.clients).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut bytes = Vec::new();
    Hello::new(CLUSTER, ClientId(1), ShardId(2)).write(&mut bytes);
    stream.write_all(&bytes).unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    let mut input = FrameBuffer::new(FrameRules::unchecked(4096));
    input.extend(&said);
    let frame = input.next_frame().unwrap().unwrap();
    let refusal = Refusal::read(frame.body).unwrap();
    assert!(refusal.reason.contains("shard 2 does not exist"), "{}", refusal.reason);
    drop(stream);
    eventually("the slot of the connection is free", || {
        server.node.statistics.admission.clients() == 0
    });
    eventually("the rejection is counted", || server.node.statistics.counters().refused == 1);
}

fn a_frame_truncated_by_the_end_of_the_connection_changes_nothing(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let mut router = Router::connect(&cluster, 8);
    let key = b"cut";
    let client = router.of(key);
    let mut bytes = Vec::new();
    Request {
        id: RequestId(1),
        view: ViewVersion(1),
        digest: Digest::of(key),
        key,
        operation: Operation::Put(client.header(), b"value"),
    }
    .write(&mut bytes);
    client.stream.write_all(&bytes[..bytes.len() - 1]).unwrap();
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    let mut again = Router::connect(&cluster, 9);
    assert_eq!(again.of(key).get(key).status, Status::NotFound);
}

fn no_write_commits_after_a_holder_began_its_dump_and_reads_continue(engine: EngineKind) {
    let cluster = Cluster::start(engine, 2);
    let mut router = Router::connect(&cluster, 10);
    let in_group_0 = |key: &Vec<u8>| cluster.placement.locate(key).0 == GroupId(0);
    let key = (0u32..).map(|n| n.to_be_bytes().to_vec()).find(in_group_0).unwrap();
    cluster.dump(1, ReplicaRole::Primary);
    let client = router.of(&key);
    client.write(&key, Operation::Put(client.header(), b"pending"));
    assert_eq!(client.get(&key).status, Status::NotFound);
    assert!(cluster.dump(1, ReplicaRole::Secondary).entries.is_empty());
    assert!(cluster.dump(0, ReplicaRole::Primary).entries.is_empty());
    let given = client.get(&key);
    assert_eq!(given.status, Status::NotFound, "the pending write was acknowledged");
    assert_eq!(client.put(&key, b"too late").status, Status::Unavailable);
}

fn an_idle_server_drains_without_waiting_for_a_tick(engine: EngineKind) {
    let cluster = Cluster::start(engine, 2);
    let drains = cluster.servers.iter().map(|server| {
        let start = Instant::now();
        assert_eq!(server.node.carry_out(Work::Drain), Ok(0));
        start.elapsed()
    });
    // The slower drains may have waited for a processor.
    let fastest = drains.min().unwrap();
    assert!(fastest < Duration::from_millis(50), "{fastest:?}");
}

fn a_dump_has_the_completion_records_of_all_clients_in_bounded_pieces(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let in_group_0 = |key: &Vec<u8>| cluster.placement.locate(key).0 == GroupId(0);
    let key = (0u32..).map(|n| n.to_be_bytes().to_vec()).find(in_group_0).unwrap();
    let server = &cluster.servers[0];
    let clients = 2 * DUMP_SESSIONS + 1;
    let long = vec![7; 3 * DUMP_STEP.bytes + 1];
    for number in 1..=clients {
        let mut client = Client::connect(server.clients, number as u128, 0);
        let value = if number == clients { &long[..] } else { b"v" };
        assert_eq!(client.put(&key, value).status, Status::Ok);
    }
    let (pieces, incoming) = crossbeam::channel::bounded(1);
    let order = ShardMessage::Dump { role: ReplicaRole::Primary, pieces };
    server.node.shards[0].push_order(order).unwrap();
    let (mut counts, mut parts) = (Vec::new(), Vec::new());
    loop {
        match incoming.recv_timeout(TIMEOUT).expect("a piece") {
            DumpPiece::Shard(dumped) => assert!(dumped.is_ok() && counts.is_empty()),
            DumpPiece::Entries(entries) => {
                assert!(counts.is_empty(), "the records come last");
                assert_eq!(entries.count(), 0, "the only value is long");
            }
            DumpPiece::Part(part) => {
                assert!(counts.is_empty(), "the records come last");
                assert!(matches!(part.item, LongItem::Entry { key: of, .. } if of == key));
                assert_eq!(part.is_last, parts.len() == 3);
                parts.push(part.bytes);
            }
            DumpPiece::Records(records) => counts.push(records.len()),
            DumpPiece::End => break,
        }
    }
    assert_eq!(counts, [DUMP_SESSIONS, DUMP_SESSIONS, 1]);
    assert!(parts.iter().all(|part| part.len() <= DUMP_STEP.bytes));
    assert_eq!(parts.concat(), long);
    let dumped = cluster.dump(0, ReplicaRole::Primary);
    assert_eq!(dumped.records.len(), clients);
    assert_eq!((dumped.entries.len(), &dumped.entries[0].value), (1, &long));
}

fn a_dump_has_deadlines_and_responses_in_bounded_pieces(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let in_group_0 = |key: &Vec<u8>| cluster.placement.locate(key).0 == GroupId(0);
    let key = (0u32..).map(|n| n.to_be_bytes().to_vec()).find(in_group_0).unwrap();
    let server = &cluster.servers[0];
    let mut client = Client::connect(server.clients, 1, 0);
    let long = vec![7; 2 * DUMP_STEP.bytes];
    assert_eq!(client.put(&key, &long).status, Status::Ok);
    for (new, old) in [(&b"short"[..], &long[..]), (&long, b"short")] {
        let (action, expiry) = (Action::Put(new), Expiry::At(WallTime::MAX));
        let mut bytes = Vec::new();
        Update { expiry, returns_value: true, ..Update::new(action) }.write(&mut bytes);
        client.write(&key, Operation::Update(client.header(), Updates::read(&bytes).unwrap()));
        let given = client.response();
        assert_eq!(given.status, Status::Ok);
        assert!(given.value == old, "the response is not the previous value");
    }
    let (pieces, incoming) = crossbeam::channel::bounded(1);
    let order = ShardMessage::Dump { role: ReplicaRole::Primary, pieces };
    server.node.shards[0].push_order(order).unwrap();
    let (mut parts, mut responses) = (Vec::new(), Vec::new());
    loop {
        match incoming.recv_timeout(TIMEOUT).expect("a piece") {
            DumpPiece::Shard(dumped) => assert!(dumped.is_ok()),
            DumpPiece::Entries(entries) => assert_eq!(entries.count(), 0, "the value is long"),
            DumpPiece::Part(part) => {
                assert!(part.bytes.len() <= DUMP_STEP.bytes);
                parts.push((matches!(part.item, LongItem::Record(_)), part.is_last));
            }
            DumpPiece::Records(records) => {
                responses.extend(records.into_iter().map(|(_, response)| response));
            }
            DumpPiece::End => break,
        }
    }
    let of_entry = [(false, false), (false, true)];
    assert_eq!(parts, [&of_entry[..], &[(true, false), (true, false), (true, true)]].concat());
    assert_eq!(responses.iter().map(Vec::is_empty).collect::<Vec<_>>(), [true, false]);
    let [primary, secondary] = [(0, ReplicaRole::Primary), (1, ReplicaRole::Secondary)].map(|at| {
        let mut dump = cluster.dump(at.0, at.1);
        dump.records.sort_by_key(|dumped| dumped.record.seq);
        dump
    });
    assert_eq!(primary.entries[0].deadline, Some(WallTime::MAX));
    assert!(primary.entries[0].value == long);
    let responses = primary.records.iter().map(|dumped| {
        let response = RetainedResponse::read(&dumped.response).unwrap();
        response.value.map(<[u8]>::len)
    });
    assert_eq!(responses.collect::<Vec<_>>(), [None, Some(long.len()), Some(5)]);
    assert!(primary.entries == secondary.entries && primary.records == secondary.records);
}

fn a_connection_is_read_again_after_its_full_output_is_sent(engine: EngineKind) {
    const AT_ONCE: u64 = 6;
    let cluster = Cluster::start(engine, 1);
    let mut router = Router::connect(&cluster, 11);
    let key = b"big";
    let value = vec![1u8; 1 << 20];
    let client = router.of(key);
    assert_eq!(client.put(key, &value).status, Status::Ok);
    // On some machines and in some rounds, the socket accepts all responses at once.
    for round in 0..60 {
        let mut asked = Vec::new();
        for n in 0..AT_ONCE {
            let (id, view) = (RequestId(1_000 + round * AT_ONCE + n), ViewVersion(1));
            let digest = Digest::of(key);
            Request { id, view, digest, key, operation: Operation::Get }.write(&mut asked);
        }
        client.stream.write_all(&asked).unwrap();
        for _ in 0..AT_ONCE {
            assert_eq!(client.response().value.len(), value.len());
        }
    }
}

fn a_large_value_is_replicated_without_waiting_for_ticks(engine: EngineKind) {
    let cluster = Cluster::start(engine, 1);
    let mut router = Router::connect(&cluster, 12);
    let key = b"large";
    let value = vec![1u8; 16 << 20];
    let client = router.of(key);
    let puts = (0..8).map(|_| {
        let start = Instant::now();
        assert_eq!(client.put(key, &value).status, Status::Ok);
        start.elapsed()
    });
    // The slower PUTs may have waited for a processor. If only ticks moved the bytes, each PUT would take half a
    // second.
    let fastest = puts.min().unwrap();
    assert!(fastest < Duration::from_millis(250), "{fastest:?}");
}

/// Defines two tests for each function, one for each engine.
macro_rules! on_both_engines {
    ($($promise:ident,)*) => {
        mod on_uring {
            use crate::net::engine::EngineKind;
            $(#[test] fn $promise() { super::$promise(EngineKind::Uring); })*
        }
        mod on_epoll {
            use crate::net::engine::EngineKind;
            $(#[test] fn $promise() { super::$promise(EngineKind::Epoll); })*
        }
    };
}

on_both_engines! {
    an_acknowledged_write_is_in_both_tables_and_in_both_dumps,
    the_largest_value_is_stored_and_read_back_unchanged,
    every_write_in_flight_gets_one_response,
    a_client_that_reads_no_responses_does_not_delay_others,
    a_client_that_ends_its_sending_side_still_gets_its_responses,
    a_hello_for_a_nonexistent_shard_is_rejected_with_the_reason,
    a_frame_truncated_by_the_end_of_the_connection_changes_nothing,
    no_write_commits_after_a_holder_began_its_dump_and_reads_continue,
    an_idle_server_drains_without_waiting_for_a_tick,
    a_dump_has_the_completion_records_of_all_clients_in_bounded_pieces,
    a_dump_has_deadlines_and_responses_in_bounded_pieces,
    a_connection_is_read_again_after_its_full_output_is_sent,
    a_large_value_is_replicated_without_waiting_for_ticks,
}
