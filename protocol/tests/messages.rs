//! Round trips of every message, robustness of the readers against arbitrary bytes, and conformance to the layouts in
//! `docs/protocol.md`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use kv_protocol::client_message::{self as client, *};
use kv_protocol::codec::Reader;
use kv_protocol::control_message::{self as control, *};
use kv_protocol::copy_message::*;
use kv_protocol::error::DecodeError;
use kv_protocol::eviction::Eviction;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::*;
use kv_protocol::key::{Challenge, Link, Nonce, Seal};
use kv_protocol::limits::*;
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::peer_message::{self as peer, *};
use kv_protocol::placement::Digest;
use kv_protocol::update::{Action, Update, Updates};
use kv_protocol::view::{Peer, View};
use proptest::prelude::*;

const CLIENT: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);
const PEER: FrameRules = FrameRules::checked(MAX_PEER_BODY);
const CONTROL: FrameRules = FrameRules::checked(MAX_CONTROL_BODY);
const SEAL: Seal = Seal::new(ClusterKey(0x5ec), Link::Stream, Nonce(1), Nonce(2));
const OTHER_SEAL: Seal = Seal::new(ClusterKey(0x5ed), Link::Stream, Nonce(1), Nonce(2));

/// Returns the opcode and body of the only frame in `bytes`.
fn only_frame<'a>(bytes: &'a [u8], rules: &FrameRules) -> (u8, &'a [u8]) {
    let frame = split_frame(bytes, rules).unwrap().unwrap();
    assert_eq!(frame.consumed, bytes.len());
    (frame.opcode, frame.body)
}

fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes);
    bytes
}

fn batch_of(messages: &[PeerMessage<'_>]) -> Vec<u8> {
    written(|bytes| {
        let mut batch = BatchWriter::new(bytes);
        messages.iter().for_each(|message| batch.push(message));
        batch.finish();
    })
}

fn member() -> impl Strategy<Value = Member> {
    (any::<u16>(), any::<u64>())
        .prop_map(|(s, i)| Member { server: ServerId(s), incarnation: Incarnation(i) })
}

fn view() -> impl Strategy<Value = View> {
    let peer = prop_oneof![
        Just(Peer::None),
        member().prop_map(Peer::Secondary),
        member().prop_map(Peer::Candidate),
    ];
    (any::<u16>(), any::<u64>(), prop::option::of(member()), peer, any::<bool>()).prop_map(
        |(group, version, primary, peer, handover)| View {
            group: GroupId(group),
            version: ViewVersion(version),
            primary,
            peer,
            handover,
        },
    )
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn epoch() -> impl Strategy<Value = Epoch> {
    (any::<u64>(), any::<u64>()).prop_map(|(number, boot)| Epoch { number, boot: BootId(boot) })
}

fn status() -> impl Strategy<Value = Status> {
    (0u8..15).prop_map(|n| Status::from_wire(n).unwrap())
}

fn write_header() -> impl Strategy<Value = WriteHeader> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(seq, first, condition)| WriteHeader {
        seq: RequestSeq(seq),
        first_incomplete: RequestSeq(first),
        begun: SequenceNumber(seq ^ first),
        condition: Condition::from_wire(condition),
    })
}

proptest! {
    #[test]
    fn hellos_and_welcomes_come_back(
        cluster: u128, who: u128, shard: u16, server in prop::option::of(member()),
        servers in 1..=MAX_SERVERS, shards in 1..=MAX_SHARDS, max_value: u32,
    ) {
        let (cluster, client, shard) = (ClusterId(cluster), ClientId(who), ShardId(shard));
        let hello = Hello::new(cluster, client, shard);
        let bytes = written(|b| hello.write(b));
        let (opcode, body) = only_frame(&bytes, &CLIENT);
        prop_assert_eq!(opcode, client::opcode::HELLO);
        prop_assert_eq!(Hello::read(body), Ok(hello));
        let start = |n: u16| SessionStart {
            group: GroupId(shard.0 ^ n), committed: SequenceNumber(u64::from(max_value) << n),
        };
        let starts = [start(0), start(9)];
        for version in [PROTOCOL_VERSION_MIN, PROTOCOL_VERSION] {
            let hello = Hello { version, ..hello };
            let bytes = written(|b| hello.write(b));
            prop_assert_eq!(Hello::read(only_frame(&bytes, &CLIENT).1), Ok(hello));
            let welcome = Welcome { cluster, server, servers, shards, max_value, starts, version };
            let bytes = written(|b| welcome.write(b));
            prop_assert_eq!(Welcome::read(only_frame(&bytes, &CLIENT).1), Ok(welcome));
        }
    }

    #[test]
    fn requests_come_back(
        id: u64, version: u64, digest: [u8; 16], header in write_header(), kind in 0usize..10,
        key in prop::collection::vec(any::<u8>(), 0..100),
        value in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut updates = Vec::new();
        Update::new(Action::Put(&value)).write(&mut updates);
        Update::new(Action::Append(&value)).write(&mut updates);
        let operation = match kind {
            0 => Operation::Get,
            1 => Operation::Put(header, &value),
            2 => Operation::Delete(header),
            3 => Operation::Noop,
            4 => Operation::Verify(ReplicaRole::Primary),
            5 => Operation::Verify(ReplicaRole::Secondary),
            6 => Operation::GetPart(Part {
                from: u32::from(digest[0]) << 24, most: u32::from(digest[1]) << 20, all_or_nothing: id % 2 == 1,
                from_end: id % 4 > 1, with_deadline: id % 8 > 3,
            }),
            8 => Operation::Scan(Scan { cursor: version, values: id % 2 == 1, deadlines: id % 4 > 1 }),
            7 => {
                let unconditional = WriteHeader { condition: Condition::Always, ..header };
                Operation::Update(unconditional, Updates::read(&updates).unwrap())
            }
            _ => {
                let unconditional = WriteHeader { condition: Condition::Always, ..header };
                Operation::Resolve(unconditional, RequestHash(version ^ id))
            }
        };
        let request = Request {
            id: RequestId(id), view: ViewVersion(version), digest: Digest(digest), key: &key, operation,
        };
        let bytes = written(|b| request.write(b));
        let (opcode, body) = only_frame(&bytes, &CLIENT);
        prop_assert_eq!(Request::read(opcode, body), Ok(request));
        prop_assert_eq!(Request::read_id(body), Some(RequestId(id)));
        for cut in 0..body.len().min(REQUEST_FIXED_BYTES + key.len()) {
            prop_assert!(Request::read(opcode, &body[..cut]).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn responses_and_refusals_come_back(
        id: u64, status in status(), copies: u8, version: u64, sn: u64,
        value in prop::collection::vec(any::<u8>(), 0..300), reason: String,
    ) {
        let response = Response {
            id: RequestId(id), status, copies, view: ViewVersion(version),
            version: SequenceNumber(sn), value: &value,
            whole: if status == Status::Part { copies.into() } else { 0 },
            has_value: copies % 2 == 1,
            deadline: (sn % 2 == 1).then(|| WallTime::from_millis(sn >> 16)),
        };
        let bytes = written(|b| response.write(b));
        prop_assert_eq!(Response::read(only_frame(&bytes, &CLIENT).1), Ok(response));
        let refusal = Refusal { status, reason: &reason };
        let bytes = written(|b| refusal.write(b));
        prop_assert_eq!(Refusal::read(only_frame(&bytes, &CLIENT).1), Ok(refusal));
    }

    #[test]
    fn maps_come_back(
        cluster: u128, epoch in epoch(), revision: u64, shards in 1..=MAX_SHARDS, hash_tags: bool,
        rows in prop::collection::vec((any::<u64>(), 0usize..3, prop::option::of(address()), view()), 1..8),
    ) {
        let mut map = Map {
            cluster: ClusterId(cluster),
            ancestors: vec![ClusterId(2), ClusterId(1)],
            epoch,
            revision: MapRevision(revision),
            shards,
            servers: vec![],
            views: vec![],
            hash_tags,
        };
        for (n, (incarnation, state, clients, view)) in (0u16..).zip(rows) {
            let state = [ServerState::Starting, ServerState::Up, ServerState::Down][state];
            let incarnation = Incarnation(incarnation);
            map.servers.push(MapServer { id: ServerId(n), incarnation, state, clients: clients.map(plain) });
            map.views.push(View { group: GroupId(n), ..view });
        }
        let bytes = written(|b| write_map_response(b, &map));
        let body = only_frame(&bytes, &CLIENT).1;
        prop_assert_eq!(read_map_response(body), Ok(map.clone()));
        // The flags follow everything that an earlier version reads.
        let without = written(|b| write_map_response(b, &Map { hash_tags: false, ..map.clone() }));
        let earlier = only_frame(&without, &CLIENT).1;
        prop_assert_eq!(body.strip_prefix(earlier), Some(&[1][..usize::from(hash_tags)]));
        for flags in [0, 2, 3, 255] {
            prop_assert!(read_map_response(&[earlier, &[flags]].concat()).is_err());
        }
        let bytes = written(|b| write_cluster_map(b, &map));
        let (opcode, body) = only_frame(&bytes, &CONTROL);
        prop_assert_eq!(read_cluster_map(opcode, body), Ok(map));
    }

    #[test]
    fn peer_handshakes_come_back(
        cluster: u128, from in member(), to in member(), shard: u16, shards: u16,
        view in view(), reason in 0usize..5, with_view: bool, last: u64,
    ) {
        let challenge = Challenge { nonce: Nonce(cluster), shard: ShardId(shard) };
        let bytes = written(|b| challenge.write(b));
        prop_assert_eq!(Challenge::read(only_frame(&bytes, &PEER).1), Ok(challenge));
        let hello = PeerHello { cluster: ClusterId(cluster), from, to, shard: ShardId(shard), shards, view };
        let bytes = written(|b| hello.write(&SEAL, b));
        let body = only_frame(&bytes, &PEER).1;
        prop_assert_eq!(PeerHello::read(body, &SEAL), Ok(hello));
        prop_assert_eq!(PeerHello::read(body, &OTHER_SEAL), Err(DecodeError::WrongKey));
        let welcome = PeerWelcome { view: view.version, last: SequenceNumber(last) };
        let bytes = written(|b| welcome.write(b));
        prop_assert_eq!(PeerWelcome::read(only_frame(&bytes, &PEER).1), Ok(welcome));
        let reason = [PeerRefusalReason::Stranger, PeerRefusalReason::OldView,
            PeerRefusalReason::BrokenStream, PeerRefusalReason::Busy, PeerRefusalReason::Stopping][reason];
        let refusal = PeerRefusal { reason, view: with_view.then_some(view) };
        let bytes = written(|b| refusal.write(b));
        prop_assert_eq!(PeerRefusal::read(only_frame(&bytes, &PEER).1), Ok(refusal));
    }

    #[test]
    fn batches_come_back(
        numbers in prop::collection::vec(any::<u64>(), 4..5), client: u128, status in status(),
        digest: [u8; 16], key in prop::collection::vec(any::<u8>(), 1..50),
        value in prop::collection::vec(any::<u8>(), 1..200), more in 0u32..1_000, kind in 0usize..6,
    ) {
        let (view, sn) = (ViewVersion(numbers[0]), SequenceNumber(numbers[1]));
        let t_send = Time::from_nanos(numbers[2]);
        let record = CompletionRecord {
            client: ClientId(client), seq: RequestSeq(numbers[3]), first_incomplete: RequestSeq(1),
            status, version: sn,
            request: Default::default(),
        };
        let effect = [
            Effect::Nothing, Effect::Put, Effect::Delete, Effect::ForgetSessions, Effect::Changes,
            Effect::Upkeep,
        ][kind];
        let has_value = matches!(effect, Effect::Put | Effect::Changes | Effect::Upkeep);
        let sent: &[u8] = if has_value { &value } else { &[] };
        let deadline = Some(WallTime::from_millis(1 + (numbers[2] >> 17)));
        let prepare = Prepare {
            view, sn, t_send, effect, record, digest: Digest(digest),
            key: if matches!(effect, Effect::Put | Effect::Delete) { &key } else { &[] },
            deadline: deadline.filter(|_| effect == Effect::Put),
            value_length: if has_value { u32::try_from(value.len()).unwrap() + more } else { 0 },
            response_length: if effect.has_record() { more } else { 0 },
            value: sent,
            response: &[],
        };
        let messages = [
            PeerMessage::Beacon(Beacon { view, t_send }),
            PeerMessage::Prepare(prepare),
            PeerMessage::Fragment(Fragment { view, sn, offset: more, bytes: &value }),
            PeerMessage::Ack(Ack { view, sn, echo: t_send, taken: numbers[0] }),
            PeerMessage::CopyStart(CopyStart { view, sn, forgotten: SequenceNumber(numbers[3]) }),
            PeerMessage::CopyEntry(CopyEntry {
                view, committed: sn, version: sn, digest: Digest(digest), key: &key,
                deadline, value_length: u32::try_from(value.len()).unwrap() + more, value: &value,
            }),
            PeerMessage::CopyFragment(CopyFragment { view, offset: more, bytes: &value }),
            PeerMessage::CopyRecord(CopyRecord {
                view, sn, record, response_length: u32::try_from(value.len()).unwrap() + more, response: &value,
            }),
            PeerMessage::CopyEnd(CopyEnd { view, sn }),
            PeerMessage::Marked(Marked {
                view, sn, content: ContentDigest { table: numbers[1], sessions: numbers[2] },
            }),
            PeerMessage::Handover(Handover { view, sn }),
        ];
        let bytes = batch_of(&messages);
        let (opcode, body) = only_frame(&bytes, &PEER);
        prop_assert_eq!(opcode, peer::opcode::BATCH);
        let read: Result<Vec<_>, _> = BatchReader::new(body).unwrap().collect();
        prop_assert_eq!(read.unwrap(), messages);
        for cut in 2..body.len() {
            let read: Result<Vec<_>, _> = BatchReader::new(&body[..cut]).unwrap().collect();
            prop_assert!(read.is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn control_messages_come_back(
        cluster: u128, to in member(), epoch in epoch(), numbers in prop::collection::vec(any::<u64>(), 6..7),
        ip: IpAddr, ports in prop::collection::vec(1u16.., 3..4), view in view(), secondary in address(),
        kind in 0usize..20, reason: String, replicas in 0..5u16,
    ) {
        let started = Started {
            cluster: ClusterId(cluster), member: to, pid: 7, start_time: numbers[0],
            namespace: PidNamespace(numbers[1]), shards: 3,
            address: ip, clients_port: ports[0], servers_port: ports[1], coord_port: ports[2], epoch,
        };
        let replica = |n| ReplicaReport {
            group: GroupId(n), shard: ShardId(n), connected: n % 2 == 0,
            state: ReplicaState::from_wire((n % 9) as u8).unwrap(), silent_ms: n.into(),
            following: Following::from_wire((n % 3) as u8).unwrap(),
            longest_gap_ms: u32::from(n) + 7, copied: numbers[0],
            content_bytes: numbers[1], copied_bytes: numbers[2],
            flush: FlushReport { id: OrderId(numbers[3]), removed: numbers[0], is_done: n % 2 == 1 },
            view: ViewVersion(numbers[1]), last: SequenceNumber(numbers[2]),
            committed: SequenceNumber(numbers[3]), entries: numbers[4], bytes: numbers[5], used_bytes: numbers[4],
        };
        let heartbeat = Heartbeat {
            incarnation: to.incarnation, epoch, resident_bytes: numbers[0], clients: 3,
            memory_limit: numbers[5], connection_bytes: numbers[3], connection_limit: numbers[4],
            requests: numbers[1], refused: numbers[2], out_of_space: numbers[3], evicted: numbers[1], expired: numbers[2], stood_ms: 9,
            dumped: DumpedBytes { primary: numbers[3], secondary: numbers[4] },
            crowd: (kind % 2 == 0).then_some(CrowdReport { address: ip, connections: 5, closed: numbers[3] }),
            replicas: (0..replicas).map(replica).collect(),
        };
        let bytes = written(|b| started.write(&SEAL, b));
        let (opcode, body) = only_frame(&bytes, &CONTROL);
        prop_assert_eq!(opcode, control::opcode::STARTED);
        prop_assert_eq!(Started::read(body, &SEAL), Ok(started));
        prop_assert_eq!(Started::read(body, &OTHER_SEAL), Err(DecodeError::WrongKey));
        prop_assert!(Started::read(&body[..body.len() - 1], &SEAL).is_err());
        for message in [ServerMessage::Heartbeat(heartbeat), ServerMessage::DrainRequest] {
            let bytes = written(|b| message.write(b));
            let (opcode, body) = only_frame(&bytes, &CONTROL);
            prop_assert_eq!(ServerMessage::read(opcode, body), Ok(message));
            prop_assert!(body.is_empty() || ServerMessage::read(opcode, &body[..body.len() - 1]).is_err());
        }
        for admission in [Admission::Admitted { epoch }, Admission::Refused { reason: reason.clone() }] {
            let bytes = written(|b| admission.write(b));
            let (opcode, body) = only_frame(&bytes, &CONTROL);
            prop_assert_eq!(Admission::read(opcode, body), Ok(admission));
        }
        let hello = OrdersHello { cluster: ClusterId(cluster), epoch, to };
        let bytes = written(|b| hello.write(&SEAL, b));
        let body = only_frame(&bytes, &CONTROL).1;
        prop_assert_eq!(OrdersHello::read(body, &SEAL), Ok(hello));
        prop_assert_eq!(OrdersHello::read(body, &OTHER_SEAL), Err(DecodeError::WrongKey));
        let kind = [
            OrderKind::Drain, OrderKind::DumpPrimary, OrderKind::DumpSecondary, OrderKind::Shutdown,
            OrderKind::Probe, OrderKind::Exited(to), OrderKind::Flush(view.group, view.version),
            OrderKind::View(ViewOrder {
                purpose: ViewPurpose::ALL[kind % ViewPurpose::ALL.len()], view,
                other: (kind % 2 == 0).then(|| plain(secondary)),
            }),
        ][kind.min(7)];
        let order = Order { id: OrderId(numbers[0]), kind };
        let bytes = written(|b| order.write(b));
        let (opcode, body) = only_frame(&bytes, &CONTROL);
        prop_assert_eq!(Order::read(opcode, body), Ok(order));
        let failures = [false, true].map(|is_no_copy| {
            Err(OrderFailure { reason: reason.clone(), is_no_copy })
        });
        for outcome in [Ok(numbers[1])].into_iter().chain(failures) {
            let report = Report { id: OrderId(numbers[0]), view: view.version, outcome };
            let bytes = written(|b| report.write(b));
            prop_assert_eq!(Report::read(only_frame(&bytes, &CONTROL).1), Ok(report));
        }
    }

    #[test]
    fn random_bodies_never_panic(opcode: u8, body in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Hello::read(&body);
        let _ = Welcome::read(&body);
        let _ = Request::read(opcode, &body).map(|request| request.validate());
        let _ = Request::read(opcode % 5 + client::opcode::GET, &body).map(|r| r.validate());
        let _ = Response::read(&body);
        let _ = Refusal::read(&body);
        let _ = read_map_response(&body);
        let _ = Challenge::read(&body);
        let _ = Seal::from_proof(ClusterKey(0x5ec), Link::Stream, Nonce(1), &body);
        let _ = PeerHello::read(&body, &SEAL);
        let _ = PeerWelcome::read(&body);
        let _ = PeerRefusal::read(&body);
        let _ = BatchReader::new(&body).map(|batch| batch.count());
        let _ = Started::read(&body, &SEAL);
        for opcode in [opcode, control::opcode::HEARTBEAT] {
            let _ = ServerMessage::read(opcode, &body);
        }
        let _ = Admission::read(opcode, &body);
        let _ = OrdersHello::read(&body, &SEAL);
        let _ = Order::read(opcode % 13 + control::opcode::SET_SECONDARY, &body);
        let _ = Report::read(&body);
    }
}

/// Removes an IPv6 scope and flow label, which the wire does not carry.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

#[test]
fn a_batch_has_the_same_bytes_in_an_empty_and_in_a_filled_output() {
    let frames = |output: &mut Vec<u8>| {
        for n in 1..=3 {
            let (view, sn) = (ViewVersion(1), SequenceNumber(n));
            let mut batch = BatchWriter::new(output);
            assert_eq!((batch.count(), batch.len(), batch.is_empty()), (0, 0, true));
            batch.push(&PeerMessage::Ack(Ack { view, sn, echo: Time::from_nanos(n), taken: n }));
            assert_eq!((batch.count(), batch.is_empty()), (1, false));
            batch.finish();
            let held = output.len();
            BatchWriter::new(output).finish();
            assert_eq!(output.len(), held, "an empty batch wrote bytes");
            let mut unfinished = BatchWriter::new(output);
            unfinished.push(&PeerMessage::Ack(Ack { view, sn, echo: Time::default(), taken: 0 }));
            drop(unfinished);
            assert_eq!(output.len(), held, "half a frame remained");
        }
    };
    let mut alone = Vec::new();
    frames(&mut alone);
    let mut behind = b"held".to_vec();
    frames(&mut behind);
    assert_eq!(behind[4..], alone);
    let mut rest = &alone[..];
    for _ in 0..3 {
        rest = &rest[split_frame(rest, &PEER).unwrap().unwrap().consumed..];
    }
    assert!(rest.is_empty());
}

#[test]
fn a_put_has_the_documented_layout() {
    let header = WriteHeader {
        seq: RequestSeq(4),
        first_incomplete: RequestSeq(3),
        begun: SequenceNumber(6),
        condition: Condition::IfAbsent,
    };
    let request = Request {
        id: RequestId(1),
        view: ViewVersion(2),
        digest: Digest::of(b"a"),
        key: b"a",
        operation: Operation::Put(header, b"xyz"),
    };
    let expected = concat!(
        "48000000",
        "01",
        "11",
        "0000", // 72 bytes, version 1, PUT
        "0100000000000000",
        "0200000000000000",                 // request id, view version
        "0cc175b9c0f1b6a831c399e269772661", // MD5("a")
        "0400000000000000",
        "0300000000000000",
        "0600000000000000",
        "ffffffffffffffff", // seq, first, session start, if absent
        "0100",
        "00",
        "00",
        "61",
        "78797a", // key length, replica, reserved, key, value
    );
    assert_eq!(hex(&written(|b| request.write(b))), expected);
}

#[test]
fn a_get_of_a_part_sends_it_as_the_condition_and_the_response_begins_with_the_length() {
    let part = Part { all_or_nothing: true, ..Part::new(0x11, 0x22) };
    let request = Request {
        id: RequestId(1),
        view: ViewVersion(2),
        digest: Digest::of(b"a"),
        key: b"a",
        operation: Operation::GetPart(part),
    };
    let mut bytes = written(|b| request.write(b));
    // From byte 56 of the message on: first byte, most bytes + 1, key length, replica, reserved, key.
    assert_eq!(hex(&bytes[8 + 56..]), "11000000230000000100010061");
    assert_eq!(Request::read(client::opcode::GET, &bytes[8..]), Ok(request));
    bytes[8 + 60..8 + 64].fill(0);
    assert!(
        Request::read(client::opcode::GET, &bytes[8..]).is_err(),
        "a first byte without a limit"
    );

    let response = Response {
        id: RequestId(1),
        status: Status::Part,
        copies: 0,
        view: ViewVersion(2),
        version: SequenceNumber(3),
        value: b"xyz",
        whole: 0x1000,
        has_value: false,
        deadline: None,
    };
    let bytes = written(|b| response.write(b));
    assert_eq!(hex(&bytes[8 + 24..]), "0e000000".to_owned() + "00100000" + "78797a");
    assert!(Response::read(&bytes[8..8 + 28]).is_err(), "a part without the length of the whole");
}

#[test]
fn a_resolve_has_the_layout_of_a_write_with_the_hash_in_place_of_the_condition() {
    let header = WriteHeader {
        seq: RequestSeq(4),
        first_incomplete: RequestSeq(3),
        begun: SequenceNumber(6),
        condition: Condition::Always,
    };
    let request = Request {
        id: RequestId(1),
        view: ViewVersion(2),
        digest: Digest::of(b"a"),
        key: b"a",
        operation: Operation::Resolve(header, RequestHash(0x1122_3344_5566_7788)),
    };
    let expected = concat!(
        "45000000",
        "01",
        "16",
        "0000", // 69 bytes, version 1, RESOLVE
        "0100000000000000",
        "0200000000000000",                 // request id, view version
        "0cc175b9c0f1b6a831c399e269772661", // MD5("a")
        "0400000000000000",
        "0300000000000000",
        "0600000000000000",
        "8877665544332211", // seq, first, session start, request hash
        "0100",
        "00",
        "00",
        "61", // key length, replica, reserved, key
    );
    let mut bytes = written(|b| request.write(b));
    assert_eq!(hex(&bytes), expected);
    bytes.push(0);
    assert!(Request::read(0x16, &bytes[8..]).is_err(), "it has no value");
}

#[test]
fn every_status_comes_back_from_its_number() {
    let known: Vec<Status> = (0..=u8::MAX).filter_map(Status::from_wire).collect();
    assert_eq!(known.last(), Some(&Status::CrossShard));
    let manual = include_str!("../../docs/protocol.md");
    for (number, status) in (0..).zip(known) {
        assert_eq!(status as u8, number);
        assert!(manual.contains(&format!("\n| {number} | {status} |")), "{number} {status}");
    }
}

#[test]
fn an_ack_batch_has_the_documented_layout() {
    let echo = Time::from_nanos(7);
    let (view, sn) = (ViewVersion(2), SequenceNumber(5));
    let bytes = batch_of(&[PeerMessage::Ack(Ack { view, sn, echo, taken: 9 })]);
    let expected = concat!(
        "27000000",
        "01",
        "43",
        "0000", // 39 bytes, version 1, BATCH
        "0100",
        "03",
        "0200000000000000",
        "0500000000000000",
        "0700000000000000",
        "0900000000000000",
    );
    let (frame, checksum) = bytes.split_at(bytes.len() - 4);
    assert_eq!(hex(frame), expected);
    assert_eq!(checksum, crc32c(frame).to_le_bytes());
}

/// Computes the checksum by its definition (RFC 3720, appendix B.4: reflected polynomial 0x82f63b78), so that this test
/// does not depend on the library that writes it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_batch_that_announces_a_million_messages_is_refused() {
    for count in [0u16, u16::MAX] {
        let error = BatchReader::new(&count.to_le_bytes()).unwrap_err();
        assert_eq!(error, DecodeError::BadValue { field: "message count", value: count.into() });
    }
}

#[test]
fn the_largest_legal_messages_fit_their_frames() {
    let key = vec![1; MAX_KEY_BYTES];
    let value = vec![2; MAX_VALUE_BYTES];
    let header = WriteHeader {
        seq: RequestSeq(1),
        first_incomplete: RequestSeq(1),
        begun: Default::default(),
        condition: Condition::Always,
    };
    let request = Request {
        id: RequestId(1),
        view: ViewVersion(1),
        digest: Digest::of(&key),
        key: &key,
        operation: Operation::Put(header, &value),
    };
    assert_eq!(request.validate(), Ok(()));
    let bytes = written(|b| request.write(b));
    assert!(split_frame(&bytes, &CLIENT).unwrap().is_some());

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
        t_send: Time::default(),
        effect: Effect::Put,
        record,
        digest: Digest::of(&key),
        key: &key,
        deadline: None,
        value_length: u32::try_from(MAX_VALUE_BYTES).unwrap(),
        response_length: 0,
        value: &value[..FRAGMENT_BYTES],
        response: &[],
    });
    let bytes = written(|bytes| {
        let mut batch = BatchWriter::new(bytes);
        while !batch.is_full() {
            batch.push(&prepare);
        }
        batch.finish();
    });
    assert!(split_frame(&bytes, &PEER).unwrap().is_some(), "{} bytes", bytes.len());

    let nobody = Member { server: ServerId(0), incarnation: Incarnation(0) };
    let servers = (0..MAX_SERVERS).map(|n| MapServer {
        id: ServerId(n),
        incarnation: Incarnation(1),
        state: ServerState::Up,
        clients: Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 1)),
    });
    let views = (0..MAX_SERVERS).map(|n| View {
        group: GroupId(n),
        version: ViewVersion(1),
        primary: Some(nobody),
        peer: Peer::Secondary(nobody),
        handover: false,
    });
    let map = Map {
        cluster: ClusterId(1),
        ancestors: vec![ClusterId(u128::MAX); MAX_ANCESTORS],
        epoch: Epoch::default(),
        revision: MapRevision(1),
        shards: MAX_SHARDS,
        servers: servers.collect(),
        views: views.collect(),
        hash_tags: true,
    };
    let bytes = written(|b| write_map_response(b, &map));
    assert!(bytes.len() < MAX_RESPONSE_BODY);
    let bytes = written(|b| write_cluster_map(b, &map));
    assert!(split_frame(&bytes, &CONTROL).unwrap().is_some(), "{} bytes", bytes.len());
    let replica = ReplicaReport {
        group: GroupId(1),
        shard: ShardId(1),
        state: ReplicaState::Active,
        silent_ms: 1,
        following: Default::default(),
        longest_gap_ms: 1,
        used_bytes: 1,
        content_bytes: 1,
        copied: 1,
        copied_bytes: 1,
        flush: FlushReport { id: OrderId(1), removed: 1, is_done: true },
        view: ViewVersion(1),
        last: SequenceNumber(1),
        committed: SequenceNumber(1),
        entries: 1,
        bytes: 1,
        connected: true,
    };
    let heartbeat = ServerMessage::Heartbeat(Heartbeat {
        incarnation: Incarnation(1),
        epoch: Epoch::default(),
        resident_bytes: 0,
        memory_limit: 0,
        connection_bytes: 0,
        connection_limit: 0,
        clients: 0,
        requests: 0,
        refused: 0,
        out_of_space: 0,
        evicted: 0,
        expired: 0,
        stood_ms: 0,
        dumped: DumpedBytes::default(),
        crowd: None,
        replicas: vec![replica; MAX_HEARTBEAT_REPLICAS],
    });
    let bytes = written(|b| heartbeat.write(b));
    assert!(split_frame(&bytes, &CONTROL).unwrap().is_some(), "{} bytes", bytes.len());
}

#[test]
fn settings_contain_an_address_that_can_be_dialled() {
    let of = |coordinator: &str| Settings {
        coordinator: coordinator.parse().unwrap(),
        eviction: Eviction::Lfu,
        memory_limit: "4GiB".into(),
    };
    for coordinator in ["10.0.0.1:7000", "[fe80::1]:1"] {
        let bytes = written(|b| of(coordinator).write(b));
        let (opcode, body) = only_frame(&bytes, &CONTROL);
        assert_eq!(opcode, control::opcode::SETTINGS);
        assert_eq!(Settings::read(body), Ok(of(coordinator)));
        assert!(Settings::read(&body[..3]).is_err());
        assert!(Settings::read(&[body, b"\xff"].concat()).is_err(), "not UTF-8");
    }
    for coordinator in ["10.0.0.1:0", "0.0.0.0:7000", "[::]:7000"] {
        let bytes = written(|b| of(coordinator).write(b));
        assert!(Settings::read(only_frame(&bytes, &CONTROL).1).is_err(), "{coordinator}");
    }
}

#[test]
fn a_dump_directory_is_an_absolute_path_and_nothing_else() {
    let written = |path: &str| written(|b| write_dump_directory(b, path));
    let read = |bytes: &[u8]| {
        let (opcode, body) = only_frame(bytes, &CONTROL);
        assert_eq!(opcode, control::opcode::DUMP_TO);
        read_dump_directory(body)
    };
    let longest = format!("/{}", "d".repeat(MAX_DUMP_DIRECTORY_BYTES - 1));
    for path in ["/", "/mnt/dumps of today", &longest] {
        assert_eq!(read(&written(path)).as_deref(), Ok(path));
    }
    for wrong in ["", "relative", "/with\0nul", &format!("{longest}d")] {
        assert!(read(&written(wrong)).is_err(), "{wrong:?}");
    }
    assert!(read_dump_directory(b"/\xff").is_err());
}

#[test]
fn requests_that_contradict_themselves_are_refused_with_a_status() {
    let header = |seq, first| WriteHeader {
        seq: RequestSeq(seq),
        first_incomplete: RequestSeq(first),
        begun: Default::default(),
        condition: Condition::Always,
    };
    let large = vec![0; MAX_VALUE_BYTES + 1];
    for (key, operation, status) in [
        (&b""[..], Operation::Get, Status::Invalid),
        (b"k", Operation::Put(header(1, 1), &large), Status::TooBig),
        (b"k", Operation::Put(header(0, 0), b""), Status::Invalid),
        (b"k", Operation::Delete(header(1, 2)), Status::Invalid),
        (b"k", Operation::Delete(header(1, 0)), Status::Invalid),
        (b"k", Operation::Resolve(header(1, 2), RequestHash(7)), Status::Invalid),
        (b"k", Operation::Resolve(header(1, 1), RequestHash(0)), Status::Invalid),
        (b"", Operation::Resolve(header(1, 1), RequestHash(7)), Status::Invalid),
    ] {
        let request = Request {
            id: RequestId(1),
            view: ViewVersion(1),
            digest: Digest::of(key),
            key,
            operation,
        };
        assert_eq!(request.validate().unwrap_err().0, status);
    }
}

#[test]
fn the_error_for_an_unknown_opcode_lists_the_known_ones() {
    let error = Request::read(0x77, &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "opcode 0x77 is not served here; supported: GET, PUT, DELETE, NOOP, VERIFY, RESOLVE, UPDATE, SCAN, MAP"
    );
    assert!(Question::read(0x10, &[]).unwrap_err().to_string().contains("MAP, STATUS"));
    assert!(Order::read(0x10, &[0; 8]).unwrap_err().to_string().contains("SHUTDOWN"));
    assert!(read_cluster_map(0x10, &[]).unwrap_err().to_string().contains("CLUSTER-MAP"));
    assert!(ServerMessage::read(0x10, &[]).unwrap_err().to_string().contains("HEARTBEAT"));
    assert!(Reader::new(&[]).finish().is_ok());
}
