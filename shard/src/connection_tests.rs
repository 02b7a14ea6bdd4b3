//! Tests of clients' connections without sockets: served requests, rejected requests, and reasons to close.

use std::cell::{Cell, RefCell};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use kv_protocol::client_message::{
    Operation, Part, Question, Request, Response, Scan, ScanPage, Status, opcode as client_opcode,
    read_map_response,
};
use kv_protocol::frame::{Checksum, FrameRules, HEADER_BYTES, split_frame, write_frame};
use kv_protocol::ids::{
    BootId, Epoch, GroupId, Incarnation, MapRevision, Member, RequestHash, RequestId, ServerId,
    ShardId, ViewVersion,
};
use kv_protocol::limits::{
    CONNECTION_MEMORY_MIN, FRAME_DEADLINE, HELLO_DEADLINE, MAX_ERRORS_IN_A_ROW, MAX_OUTPUT_BYTES,
    MAX_RESPONSE_BODY, STALL_DEADLINE,
};
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::peer_message::opcode as peer_opcode;
use kv_protocol::placement::Placement;
use kv_protocol::view::{Peer, View};
use proptest::prelude::*;

use crate::connection_memory::{ConnectionMemory, FrameMemory};
use crate::handshake::Port;
use crate::shard::{Fate, Shard};
use crate::testing::{
    CLUSTER, GROUP, HEADER, NOW, Pair, WALL, client, frames, hello, hello_of_version, key, put,
    request, serve_readers, shard, shard_with_hash_tags, shard_with_memory, take_output,
    take_output_at, told, view,
};

fn raw(opcode: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_frame(&mut bytes, Checksum::Absent, opcode, |to| to.extend_from_slice(body));
    bytes
}

/// Creates a primary whose group has committed `key` = `value`, and a connection to it.
fn serving(value: &[u8]) -> (Pair, kv_core::replica::ConnectionId) {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &put(1, key(), value));
    pair.exchange();
    let said = take_output(&mut pair.primary, id);
    assert_eq!(told(&said), [(Some(1), Status::Ok, String::new())]);
    (pair, id)
}

fn ended(shard: &mut Shard, id: kv_core::replica::ConnectionId) -> bool {
    matches!(shard.fate(id), Fate::Close | Fate::Shut)
}

#[test]
fn requests_split_at_every_byte_get_the_same_responses() {
    let mut stream = Vec::new();
    stream.extend(request(1, key(), Operation::Get));
    stream.extend(request(2, b"another", Operation::Noop));
    stream.extend(put(3, key(), b""));
    let (mut whole, id) = serving(b"value");
    whole.primary.handle_bytes(NOW, id, &stream);
    whole.exchange();
    let expected = take_output(&mut whole.primary, id);
    assert_eq!(frames(&expected).len(), 3);
    for cut in 1..stream.len() {
        let (mut pair, id) = serving(b"value");
        pair.primary.handle_bytes(NOW, id, &stream[..cut]);
        pair.primary.handle_bytes(NOW, id, &stream[cut..]);
        pair.exchange();
        assert!(take_output(&mut pair.primary, id) == expected, "cut at byte {cut}");
    }
}

#[test]
fn a_hello_in_single_bytes_is_welcomed() {
    let mut shard = shard(0);
    let id = shard.adopt(NOW, Port::Clients, &[]);
    for byte in hello() {
        shard.handle_bytes(NOW, id, &[byte]);
    }
    let said = take_output(&mut shard, id);
    assert_eq!(frames(&said), [client_opcode::WELCOME]);
}

#[test]
fn a_write_gets_its_response_only_when_the_other_holder_has_it() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &put(1, key(), b"v"));
    assert!(pair.primary.unsent(id).is_empty(), "response before the write was sent");
    let there = pair.said_by_primary();
    assert!(pair.primary.unsent(id).is_empty(), "response before the write was acked");
    pair.secondary.handle_bytes(NOW, pair.accepted, &there);
    let back = pair.said_by_secondary();
    pair.primary.handle_bytes(NOW, pair.dialled, &back);
    assert_eq!(told(pair.primary.unsent(id)), [(Some(1), Status::Ok, String::new())]);
}

#[test]
fn a_resolve_gets_its_response_only_when_the_other_holder_has_its_record() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    let number = |id| Operation::Resolve(HEADER, RequestHash(id));
    // Another request precedes the RESOLVE, so that look-ahead examines the RESOLVE too.
    let mut stream = request(1, key(), Operation::Noop);
    stream.extend(request(2, key(), number(7)));
    pair.primary.handle_bytes(NOW, id, &stream);
    assert_eq!(told(&take_output(&mut pair.primary, id)), [(Some(1), Status::Ok, String::new())]);
    let there = pair.said_by_primary();
    pair.secondary.handle_bytes(NOW, pair.accepted, &there);
    let back = pair.said_by_secondary();
    pair.primary.handle_bytes(NOW, pair.dialled, &back);
    let said = told(&take_output(&mut pair.primary, id));
    assert_eq!(said, [(Some(2), Status::NotDone, String::new())]);
    let mut wrong = request(3, b"another", number(7));
    *wrong.last_mut().unwrap() ^= 1;
    wrong.extend(request(4, key(), number(0)));
    pair.primary.handle_bytes(NOW, id, &wrong);
    let said = told(&take_output(&mut pair.primary, id));
    assert_eq!(said.iter().map(|said| said.1).collect::<Vec<_>>(), [Status::Invalid; 2]);
    assert!(said[0].2.contains("MD5") && said[1].2.contains("hash"), "{said:?}");
}

#[test]
fn an_unknown_opcode_gets_the_supported_ones_as_response_and_the_connection_stays() {
    let mut shard = shard(0);
    let id = client(&mut shard);
    let mut question = Vec::new();
    Question::Status.write(&mut question);
    for frame in [raw(0x3f, b""), question] {
        shard.handle_bytes(NOW, id, &frame);
        let told = told(&take_output(&mut shard, id));
        assert_eq!(told[0].1, Status::Unsupported);
        assert!(told[0].2.contains("GET, PUT, DELETE, NOOP, VERIFY, RESOLVE"), "{}", told[0].2);
        assert_eq!(shard.fate(id), Fate::Read);
    }
    assert_eq!(shard.service.counters().refused, 2);
}

#[test]
fn a_map_response_includes_the_newer_views_of_this_server() {
    let mut shard = shard(0);
    let id = client(&mut shard);
    let mut question = Vec::new();
    Question::Map.write(&mut question);
    shard.handle_bytes(NOW, id, &question);
    let told = told(&take_output(&mut shard, id));
    assert_eq!((told[0].1, told.len()), (Status::Unavailable, 1));
    let newer = View { version: ViewVersion(4), ..view() };
    for view in [view(), newer] {
        shard.service.install(NOW, view, None).unwrap();
    }
    let map = map_of_version(3);
    let views = map.views.clone();
    shard.service.set_map(map.into());
    shard.handle_bytes(NOW, id, &question);
    let bytes = take_output(&mut shard, id);
    let frame = split_frame(&bytes, &FrameRules::unchecked(MAX_RESPONSE_BODY)).unwrap().unwrap();
    assert_eq!(frame.opcode, client_opcode::MAP_RESPONSE);
    let responded = read_map_response(frame.body).unwrap();
    assert_eq!(responded.views[0], newer);
    assert_eq!(responded.views[1..], views[1..]);
    assert_eq!(shard.service.counters().refused, 0);
    shard.handle_bytes(NOW, id, &raw(client_opcode::MAP, b"a question has no body"));
    assert_eq!(self::told(&take_output(&mut shard, id))[0].1, Status::Invalid);
}

#[test]
fn before_the_cluster_serves_clients_receive_no_view() {
    let mut shard = shard(0);
    let id = client(&mut shard);
    shard.service.install(NOW, view(), None).unwrap();
    shard.service.set_map(map_of_version(0).into());
    let mut question = Vec::new();
    Question::Map.write(&mut question);
    shard.handle_bytes(NOW, id, &question);
    let bytes = take_output(&mut shard, id);
    let frame = split_frame(&bytes, &FrameRules::unchecked(MAX_RESPONSE_BODY)).unwrap().unwrap();
    assert_eq!(read_map_response(frame.body).unwrap().views[0].version, ViewVersion(0));
}

/// Returns a map of the tests' cluster whose views have this version.
fn map_of_version(version: u64) -> Map {
    let server = |id| MapServer {
        id: ServerId(id),
        incarnation: Incarnation(1),
        state: ServerState::Up,
        clients: None,
    };
    let view = |group| View {
        group: GroupId(group),
        version: ViewVersion(version),
        primary: Some(Member { server: ServerId(group), incarnation: Incarnation(1) }),
        peer: Peer::None,
        handover: false,
    };
    Map {
        hash_tags: false,
        cluster: CLUSTER,
        ancestors: Vec::new(),
        epoch: Epoch { number: 1, boot: BootId(1) },
        revision: MapRevision(1),
        shards: 1,
        servers: (0..3).map(server).collect(),
        views: (0..3).map(view).collect(),
    }
}

#[test]
fn opcodes_of_other_ports_close_the_connection_with_a_reason() {
    for opcode in [peer_opcode::PEER_HELLO, peer_opcode::BATCH, 0x80, 0x92] {
        let mut shard = shard(0);
        let id = client(&mut shard);
        shard.handle_bytes(NOW, id, &raw(opcode, b""));
        let told = told(&take_output(&mut shard, id));
        assert!(told[0].2.contains("the port for clients"), "{}", told[0].2);
        assert!(ended(&mut shard, id));
    }
}

#[test]
fn an_unknown_version_or_an_impossible_length_is_reported_and_closes_the_connection() {
    let mut version = request(1, key(), Operation::Get);
    version[4] = 9;
    let mut length = request(1, key(), Operation::Get);
    length[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, words, status) in [
        (version, "version 1 is supported", Status::Unsupported),
        (length, "invalid length of 4294967295 bytes", Status::TooBig),
    ] {
        let mut shard = shard(0);
        let id = client(&mut shard);
        shard.handle_bytes(NOW, id, &bytes);
        shard.handle_bytes(NOW, id, &request(2, key(), Operation::Get));
        let told = told(&take_output(&mut shard, id));
        assert_eq!(told.len(), 1, "a request was served after the error: {told:?}");
        assert!(told[0].2.contains(words) && told[0].1 == status, "{told:?}");
        assert!(ended(&mut shard, id));
    }
}

#[test]
fn a_hello_of_another_cluster_is_rejected_first() {
    let mut shard = shard(0);
    let mut bytes = Vec::new();
    kv_protocol::client_message::Hello::new(
        kv_protocol::ClusterId(0xbad),
        kv_protocol::ClientId(1),
        kv_protocol::ShardId(0),
    )
    .write(&mut bytes);
    let id = shard.adopt(NOW, Port::Clients, &bytes);
    let told = told(&take_output(&mut shard, id));
    assert_eq!(told[0].1, Status::WrongView);
    assert!(ended(&mut shard, id));
}

#[test]
fn errors_in_a_row_close_the_connection_and_a_valid_request_resets_the_count() {
    let mut shard = shard(0);
    let id = client(&mut shard);
    for _ in 0..3 {
        for n in 1..MAX_ERRORS_IN_A_ROW {
            shard.handle_bytes(NOW, id, &request(u64::from(n), b"", Operation::Get));
        }
        shard.handle_bytes(NOW, id, &request(1, key(), Operation::Get));
    }
    assert_eq!(shard.fate(id), Fate::Read);
    take_output(&mut shard, id);
    for n in 0..MAX_ERRORS_IN_A_ROW {
        shard.handle_bytes(NOW, id, &request(u64::from(n), b"", Operation::Get));
    }
    let told = told(&take_output(&mut shard, id));
    let (last, refusals) = told.split_last().unwrap();
    assert!(refusals.iter().all(|(id, status, _)| id.is_some() && *status == Status::Invalid));
    assert!(last.0.is_none() && last.2.contains("in a row"), "{last:?}");
    assert!(ended(&mut shard, id));
}

#[test]
fn a_write_with_a_wrong_digest_is_rejected_and_a_key_of_another_group_is_wrong_view() {
    let (mut pair, id) = serving(b"v");
    let mut forged = put(2, key(), b"other");
    // The digest follows the header, the request id and the view.
    forged[8 + 16] ^= 1;
    pair.primary.handle_bytes(NOW, id, &forged);
    let foreign = (0u32..)
        .map(u32::to_be_bytes)
        .find(|key| Placement::new(3, 1).locate(key).0.0 == 1)
        .unwrap();
    pair.primary.handle_bytes(NOW, id, &put(3, &foreign, b"v"));
    pair.primary.handle_bytes(NOW, id, &request(4, key(), Operation::Get));
    let told = told(&take_output(&mut pair.primary, id));
    assert_eq!((told[0].0, told[0].1), (Some(2), Status::Invalid));
    assert_eq!((told[1].0, told[1].1), (Some(3), Status::WrongView));
    assert_eq!(told[2], (Some(4), Status::Ok, "v".to_owned()));
}

#[test]
fn of_many_writes_in_one_receive_exactly_those_with_a_wrong_digest_are_rejected() {
    // Digests are checked in batches within windows of up to 32 requests, and the remaining ones individually.
    let places = [
        (2, 0),
        (2, 1),
        (4, 3),
        (5, 4),
        (8, 7),
        (9, 8),
        (10, 9),
        (32, 0),
        (32, 31),
        (40, 33),
        (67, 66),
    ];
    for (count, forged, with_reads) in places
        .into_iter()
        .flat_map(|(count, forged)| [(count, forged, false), (count, forged, true)])
    {
        let (mut pair, id) = serving(b"v");
        let mut stream = Vec::new();
        for n in 0..count {
            if with_reads {
                stream.extend(request(1_000 + n, key(), Operation::Get));
            }
            let mut write = put(2 + n, key(), b"other");
            if n == forged {
                write[8 + 16] ^= 1;
            }
            stream.extend(write);
        }
        pair.primary.handle_bytes(NOW, id, &stream);
        pair.exchange();
        let refused: Vec<Option<u64>> = told(&take_output(&mut pair.primary, id))
            .into_iter()
            .filter(|(_, status, _)| *status == Status::Invalid)
            .map(|(id, ..)| id)
            .collect();
        assert_eq!(refused, [Some(2 + forged)], "number {forged} of {count}, reads: {with_reads}");
    }
}

#[test]
fn a_full_output_stops_reading_and_no_request_is_lost_when_it_drains() {
    let value = vec![b'x'; 1 << 20];
    let (mut pair, id) = serving(&value);
    let shard = &mut pair.primary;
    let count = 12;
    let mut stream = Vec::new();
    for n in 1..=count {
        stream.extend(request(n, key(), Operation::Get));
    }
    shard.handle_bytes(NOW, id, &stream);
    assert_eq!(shard.fate(id), Fate::Wait);
    let waits = shard.service.outputs.get(id).unwrap().unsent_bytes();
    assert!(waits < value.len() + 100, "the output grows without bound: {waits} bytes");
    let received = take_output(shard, id);
    let ids: Vec<Option<u64>> = told(&received).into_iter().map(|(id, ..)| id).collect();
    assert_eq!(ids, (1..=count).map(Some).collect::<Vec<_>>());
    assert_eq!(shard.fate(id), Fate::Read);
}

#[test]
fn deadlines_close_silent_and_slow_connections_and_those_that_receive_no_responses() {
    let just_before = |limit: Duration| NOW + (limit - Duration::from_millis(1));
    let mut silent = shard(0);
    let id = silent.adopt(NOW, Port::Clients, &[]);
    silent.enforce_deadlines(just_before(HELLO_DEADLINE), [id].into_iter());
    assert_eq!(silent.fate(id), Fate::Read);
    silent.enforce_deadlines(NOW + HELLO_DEADLINE, [id].into_iter());
    assert_eq!(silent.fate(id), Fate::Close);

    let mut slow = shard(0);
    let id = client(&mut slow);
    let bytes = request(1, key(), Operation::Get);
    slow.handle_bytes(NOW, id, &bytes[..1]);
    // More bytes of the same frame do not extend the deadline.
    slow.handle_bytes(just_before(FRAME_DEADLINE), id, &bytes[1..2]);
    slow.enforce_deadlines(just_before(FRAME_DEADLINE), [id].into_iter());
    assert_eq!(slow.fate(id), Fate::Read);
    slow.enforce_deadlines(NOW + FRAME_DEADLINE, [id].into_iter());
    assert_eq!(slow.fate(id), Fate::Close);

    let (mut pair, id) = serving(b"v");
    pair.primary.handle_bytes(NOW, id, &request(1, key(), Operation::Get));
    pair.primary.enforce_deadlines(just_before(STALL_DEADLINE), [id].into_iter());
    assert_eq!(pair.primary.fate(id), Fate::Read);
    pair.primary.enforce_deadlines(NOW + STALL_DEADLINE, [id].into_iter());
    assert_eq!(pair.primary.fate(id), Fate::Close);
}

#[test]
fn a_partial_request_gets_its_full_deadline_again_when_reading_resumes() {
    let value = vec![b'x'; 64 << 10];
    let (mut pair, id) = serving(&value);
    let shard = &mut pair.primary;
    let gets = (1..=MAX_OUTPUT_BYTES / value.len()).map(|n| n as u64);
    let mut stream: Vec<u8> = gets.flat_map(|n| request(n, key(), Operation::Get)).collect();
    let last = request(99, key(), Operation::Noop);
    stream.extend(&last[..1]);
    shard.handle_bytes(NOW, id, &stream);
    assert_eq!(shard.fate(id), Fate::Wait);
    // The client receives some bytes, so the connection does not stall, but the output stays full.
    let soon = NOW + Duration::from_secs(5);
    serve_readers(shard, soon, |_, _| 0);
    shard.handle_sent(soon, id, 1);
    shard.enforce_deadlines(NOW + FRAME_DEADLINE, [id].into_iter());
    assert_eq!(shard.fate(id), Fate::Wait, "the rest of the request was not read meanwhile");
    let later = NOW + FRAME_DEADLINE + Duration::from_secs(1);
    take_output_at(later, shard, id);
    let just_before = later + (FRAME_DEADLINE - Duration::from_millis(1));
    shard.enforce_deadlines(just_before, [id].into_iter());
    assert_eq!(shard.fate(id), Fate::Read);
    shard.enforce_deadlines(later + FRAME_DEADLINE, [id].into_iter());
    assert_eq!(shard.fate(id), Fate::Close);
}

#[test]
fn an_idle_client_is_left_alone() {
    let mut shard = shard(0);
    let id = client(&mut shard);
    shard.enforce_deadlines(NOW + Duration::from_secs(3_600), [id].into_iter());
    assert_eq!(shard.fate(id), Fate::Read);
}

#[test]
fn a_partial_value_is_not_visible_before_its_last_byte() {
    let (mut pair, id) = serving(b"old");
    let bytes = put(2, key(), &vec![b'n'; 300_000]);
    pair.primary.handle_bytes(NOW, id, &bytes[..bytes.len() - 1]);
    pair.exchange();
    let reader = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, reader, &request(1, key(), Operation::Get));
    let told = told(&take_output(&mut pair.primary, reader));
    assert_eq!(told, [(Some(1), Status::Ok, "old".to_owned())]);
    pair.primary.close(NOW, id);
    assert!(pair.said_by_primary().is_empty(), "a part of a frame was replicated");
}

#[test]
fn the_reason_of_a_rejection_is_sent_even_to_a_half_closed_connection() {
    let mut shard = shard(0);
    let id = shard.adopt(NOW, Port::Clients, &raw(client_opcode::GET, b""));
    shard.handle_end_of_input(NOW, id);
    assert_eq!(shard.fate(id), Fate::Wait);
    let said = take_output(&mut shard, id);
    assert_eq!(told(&said)[0].1, Status::Unsupported);
    assert_eq!(shard.fate(id), Fate::Close);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        has_hello in any::<bool>(),
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..8),
    ) {
        let mut shard = shard(0);
        let id = shard.adopt(NOW, Port::Clients, &[]);
        if has_hello {
            shard.handle_bytes(NOW, id, &hello());
        }
        for piece in &pieces {
            shard.handle_bytes(NOW, id, piece);
        }
        shard.handle_end_of_input(NOW, id);
        shard.finish_wake_up(NOW);
    }

    #[test]
    fn random_bodies_under_real_opcodes_never_panic(
        opcode in 0u8..0x20, body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let (mut pair, id) = serving(b"v");
        pair.primary.handle_bytes(NOW, id, &raw(opcode, &body));
        pair.exchange();
    }
}

/// A socket that accepts a limited number of bytes.
#[derive(Default)]
struct Narrow {
    room: Cell<usize>,
    took: RefCell<Vec<u8>>,
}

impl Narrow {
    fn send_now(&self, parts: &[IoSlice<'_>]) -> usize {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let sent = all.len().min(self.room.get());
        self.room.set(self.room.get() - sent);
        self.took.borrow_mut().extend(&all[..sent]);
        sent
    }
}

/// Creates a pair as [`serving`] does, over a socket with room for `room` bytes.
fn serving_over(value: &[u8], room: usize) -> (Pair, kv_core::replica::ConnectionId, Narrow) {
    let (pair, id) = serving(value);
    let socket = Narrow::default();
    socket.room.set(room);
    (pair, id, socket)
}

const LONG: [u8; 16 << 10] = [7; 16 << 10];

#[test]
fn long_values_go_directly_to_the_socket_and_the_rest_follows_in_order() {
    let mut stream = Vec::new();
    (10..13).for_each(|id| stream.extend(request(id, key(), Operation::Get)));
    stream.extend(request(13, key(), Operation::Noop));
    stream.extend(put(14, key(), &[8; 9_000]));
    (15..40).for_each(|id| stream.extend(request(id, key(), Operation::Get)));
    stream.extend(request(40, b"key 6", Operation::Get));
    let (mut pair, id) = serving(&LONG);
    pair.primary.handle_bytes(NOW, id, &stream);
    pair.exchange();
    let expected = take_output(&mut pair.primary, id);
    assert_eq!(told(&expected).len(), 31);
    for room in [0, 1, 36, 37, 20_000, 49_000, 50_000, usize::MAX] {
        // Buffered requests are served from the buffer, so the requests arrive once in one piece and also in two.
        for cut in [0, 100, stream.len() - 50] {
            let (mut pair, id, socket) = serving_over(&LONG, room);
            pair.primary.handle_bytes(NOW, id, &stream[..cut]);
            pair.primary.handle_bytes(NOW, id, &stream[cut..]);
            pair.exchange();
            // The engine sends to the same socket when it has room again.
            loop {
                serve_readers(&mut pair.primary, NOW, |_, parts| socket.send_now(parts));
                let bytes = pair.primary.unsent(id).to_vec();
                if bytes.is_empty() && !pair.primary.has_readers() {
                    break;
                }
                socket.took.borrow_mut().extend(&bytes);
                pair.primary.handle_sent(NOW, id, bytes.len());
            }
            assert!(*socket.took.borrow() == expected, "room for {room} bytes, cut at {cut}");
            assert_eq!(pair.primary.service.counters().requests, 1 + 31);
        }
    }
}

#[test]
fn a_long_part_of_a_value_goes_directly_to_the_socket_too() {
    let value: Vec<u8> = (0..40_000u32).map(|at| u8::try_from(at / 3 % 251).unwrap()).collect();
    for room in [0, 39, 20_000, usize::MAX] {
        for (from, most) in [(0u32, 5_000u32), (1, 30_000), (35_000, 90_000)] {
            let (mut pair, id, socket) = serving_over(&value, room);
            let part = Part::new(from, most);
            pair.primary.handle_bytes(NOW, id, &request(10, key(), Operation::GetPart(part)));
            socket.took.borrow_mut().clear();
            loop {
                serve_readers(&mut pair.primary, NOW, |_, parts| socket.send_now(parts));
                let bytes = pair.primary.unsent(id).to_vec();
                if bytes.is_empty() && !pair.primary.has_readers() {
                    break;
                }
                socket.took.borrow_mut().extend(&bytes);
                pair.primary.handle_sent(NOW, id, bytes.len());
            }
            let took = socket.took.borrow();
            let response = Response::read(&took[HEADER_BYTES..]).unwrap();
            assert_eq!((response.status, response.whole), (Status::Part, 40_000));
            assert!(response.value == &value[part.of(value.len())], "{part:?}, room for {room}");
            assert_eq!(pair.primary.service.replica(GROUP).unwrap().pinned_len(), 0);
        }
    }
}

#[test]
fn no_value_goes_directly_to_the_socket_before_earlier_bytes() {
    let gets: Vec<u8> = (10..20).flat_map(|id| request(id, key(), Operation::Get)).collect();
    let (mut pair, id, socket) = serving_over(&LONG, usize::MAX);
    pair.primary.handle_bytes(NOW, id, &request(9, key(), Operation::Noop));
    let (on_their_way, _) = pair.primary.service.outputs.get(id).unwrap().take().unwrap();
    pair.primary.handle_bytes(NOW, id, &gets);
    serve_readers(&mut pair.primary, NOW, |_, parts| socket.send_now(parts));
    assert!(socket.took.borrow().is_empty(), "the value was sent before {on_their_way:?}");
    pair.primary.handle_sent(NOW, id, on_their_way.len());
    // One wake-up sends only a limited part.
    while serve_readers(&mut pair.primary, NOW, |_, parts| socket.send_now(parts)) {}
    assert_eq!(told(&socket.took.borrow()).len(), 10);
}

#[test]
fn without_a_lease_no_value_goes_directly_to_the_socket() {
    let (mut pair, id, socket) = serving_over(&LONG, usize::MAX);
    let gets: Vec<u8> = (10..20).flat_map(|id| request(id, key(), Operation::Get)).collect();
    pair.primary.handle_bytes(NOW + Duration::from_secs(1), id, &gets);
    serve_readers(&mut pair.primary, NOW, |_, parts| socket.send_now(parts));
    assert!(socket.took.borrow().is_empty(), "read without a lease");
    let said = take_output(&mut pair.primary, id);
    assert!(told(&said).iter().all(|(_, status, _)| *status == Status::Unavailable), "{said:?}");
}

#[test]
fn a_long_value_stays_the_one_that_was_read_however_late_it_is_sent() {
    let (mut pair, id) = serving(&[1; 1 << 20]);
    let pinned = |pair: &Pair| pair.primary.service.replica(GROUP).unwrap().pinned_len();
    pair.primary.handle_bytes(NOW, id, &request(2, key(), Operation::Get));
    assert_eq!(pinned(&pair), 1);
    let other = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, other, &put(2, key(), &[2; 100]));
    pair.exchange();
    assert_eq!(told(&take_output(&mut pair.primary, other)).len(), 1);
    let said = take_output(&mut pair.primary, id);
    let text = String::from_utf8(vec![1; 1 << 20]).unwrap();
    assert_eq!(told(&said), [(Some(2), Status::Ok, text)]);
    assert_eq!(pinned(&pair), 0, "the pin is kept although the value was sent");

    // The pin also ends when the connection of its reader is closed.
    pair.primary.handle_bytes(NOW, other, &put(3, key(), &[3; 5_000]));
    pair.exchange();
    pair.primary.handle_bytes(NOW, id, &request(4, key(), Operation::Get));
    assert_eq!(pinned(&pair), 1);
    pair.primary.close(NOW, id);
    assert_eq!(pinned(&pair), 0);
}

#[test]
fn readers_of_long_values_take_turns_and_a_wake_up_sends_a_bounded_part() {
    let (mut pair, first, socket) = serving_over(&[1; 4 << 20], usize::MAX);
    let second = client(&mut pair.primary);
    let other = Narrow::default();
    other.room.set(usize::MAX);
    let mut send = |id, parts: &[IoSlice<'_>]| match id == second {
        true => other.send_now(parts),
        false => socket.send_now(parts),
    };
    for id in [first, second] {
        pair.primary.handle_bytes(NOW, id, &request(2, key(), Operation::Get));
    }
    assert!(
        serve_readers(&mut pair.primary, NOW, &mut send),
        "both readers wait for their next turns"
    );
    let (one, two) = (socket.took.borrow().len(), other.took.borrow().len());
    assert_eq!(one, two);
    assert!(one > 0 && one + two <= 1 << 20, "{one} bytes each in one wake-up");
    while serve_readers(&mut pair.primary, NOW, &mut send) {}
    assert_eq!(told(&socket.took.borrow()).len(), 1);
    assert_eq!(told(&other.took.borrow()).len(), 1);
}

#[test]
fn a_reader_that_receives_nothing_is_closed_and_one_that_waits_for_its_turn_is_not() {
    let (mut pair, id) = serving(&[1; 1 << 20]);
    pair.primary.handle_bytes(NOW, id, &request(2, key(), Operation::Get));
    let late = NOW + STALL_DEADLINE;
    pair.primary.enforce_deadlines(late, [id].into_iter());
    assert_eq!(pair.primary.fate(id), Fate::Wait, "the engine has not offered it any bytes yet");
    serve_readers(&mut pair.primary, late, |_, _| 0);
    pair.primary.enforce_deadlines(late + STALL_DEADLINE, [id].into_iter());
    assert_eq!(pair.primary.fate(id), Fate::Close);
}

/// Returns the first part of a PUT of one mebibyte, as one receive delivers it.
fn part_of_a_put() -> Vec<u8> {
    let mut bytes = put(1, key(), &[5; 1 << 20]);
    bytes.truncate(100_000);
    bytes
}

#[test]
fn long_requests_beyond_the_budget_wait_in_order_and_stalled_ones_make_room() {
    let memory = ConnectionMemory::new(Some(CONNECTION_MEMORY_MIN), None, 2);
    let mut shard = shard_with_memory(0, Arc::clone(&memory));
    let ids: Vec<_> = (0..60).map(|_| client(&mut shard)).collect();
    for &id in &ids {
        shard.handle_bytes(NOW, id, &part_of_a_put());
        assert!(memory.held() <= CONNECTION_MEMORY_MIN, "{} bytes", memory.held());
    }
    let waiting = |shard: &mut Shard| -> Vec<usize> {
        (0..ids.len()).filter(|n| shard.fate(ids[*n]) == Fate::Wait).collect()
    };
    let all = waiting(&mut shard);
    assert!(all.len() > 30, "{all:?} wait");
    // Short requests need no reservation.
    let short = client(&mut shard);
    shard.handle_bytes(NOW, short, &request(1, key(), Operation::Noop));
    assert_eq!(told(&take_output(&mut shard, short)).len(), 1);

    // When a connection with memory ends, the first in the queue continues.
    shard.close(NOW, ids[0]);
    shard.finish_wake_up(NOW);
    assert_eq!(waiting(&mut shard), all[1..]);

    // Connections that send nothing are closed while others wait for memory, and only then.
    let mut now = NOW;
    let mut rounds = 0;
    while !waiting(&mut shard).is_empty() {
        now = now + Duration::from_millis(300);
        shard.enforce_deadlines(now, ids.iter().copied());
        for &id in &ids {
            if shard.fate(id) == Fate::Close {
                shard.close(now, id);
            }
        }
        shard.finish_wake_up(now);
        rounds += 1;
        assert!(rounds < 60, "connections still wait for memory after {rounds} rounds");
    }
    let now = now + Duration::from_secs(1);
    shard.enforce_deadlines(now, ids.iter().copied());
    assert!(
        ids.iter().any(|id| shard.fate(*id) == Fate::Read),
        "no other connection needs its memory"
    );
    for id in ids.into_iter().chain([short]) {
        shard.close(now, id);
    }
    assert!(
        memory.held() < 64 << 10,
        "a shard reports small changes only later: {}",
        memory.held()
    );
}

#[test]
fn requests_of_clients_that_receive_no_responses_take_bounded_memory() {
    let memory = ConnectionMemory::new(Some(CONNECTION_MEMORY_MIN), None, 2);
    let mut shard = shard_with_memory(0, Arc::clone(&memory));
    let noops: Vec<u8> = (1..3_000).flat_map(|id| request(id, key(), Operation::Noop)).collect();
    let mut ids = Vec::new();
    while !memory.is_used_up() {
        let id = client(&mut shard);
        for _ in 0..10 {
            if shard.fate(id) == Fate::Read {
                shard.handle_bytes(NOW, id, &noops);
            }
        }
        ids.push(id);
        assert!(ids.len() < 1_000, "{} bytes are counted", memory.held());
    }
    assert!(memory.held() <= CONNECTION_MEMORY_MIN, "{} bytes", memory.held());
    let one_more = shard.adopt(NOW, Port::Clients, &hello());
    assert_eq!(shard.fate(one_more), Fate::Close);
    // Connections that receive no responses are closed.
    let later = NOW + Duration::from_secs(1);
    shard.enforce_deadlines(later, ids.iter().copied());
    for id in ids {
        assert_eq!(shard.fate(id), Fate::Close);
        shard.close(later, id);
    }
    client(&mut shard);
}

#[test]
fn a_raised_memory_limit_applies_from_the_next_wake_up() {
    let memory = ConnectionMemory::new(None, Some(256 << 10), 2);
    let mut shard = shard_with_memory(0, Arc::clone(&memory));
    shard.service.install(NOW, View { peer: Peer::None, ..view() }, None).unwrap();
    let id = client(&mut shard);
    let large = put(1, key(), &[5; 1 << 20]);
    shard.handle_bytes(NOW, id, &large);
    assert_eq!(told(&take_output(&mut shard, id))[0].1, Status::OutOfSpace);
    memory.set_memory_limit(Some(64 << 20));
    // No tick runs in between.
    shard.begin_wake_up(NOW);
    shard.handle_bytes(NOW, id, &large);
    assert_eq!(told(&take_output(&mut shard, id))[0].1, Status::Ok);
}

#[test]
fn memory_that_connections_hold_is_not_available_to_tables() {
    const VALUE: usize = 1 << 20;
    let memory = ConnectionMemory::new(None, Some(128 << 20), 2);
    let mut shard = shard_with_memory(0, Arc::clone(&memory));
    shard.service.install(NOW, View { peer: Peer::None, ..view() }, None).unwrap();
    let id = client(&mut shard);
    let placement = Placement::new(3, 1);
    let mut keys = (0u32..).map(u32::to_be_bytes).filter(|key| placement.locate(key).0 == GROUP);
    let mut seq = 0;
    let mut fill = |shard: &mut Shard| {
        shard.begin_wake_up(NOW);
        shard.finish_wake_up(NOW);
        shard.handle_tick(NOW, WALL);
        for written in 0.. {
            seq += 1;
            let bytes = put(seq, &keys.next().expect("a key"), &[5; VALUE]);
            shard.handle_bytes(NOW, id, &bytes);
            match told(&take_output(shard, id))[0].1 {
                Status::Ok => {}
                Status::OutOfSpace => return written,
                status => panic!("{status:?}"),
            }
        }
        unreachable!("memory is limited")
    };
    // A partial frame reserves 60 MiB, so each table leaves 30 of its 64 MiB free.
    let mut frame = FrameMemory::new(Arc::clone(&memory));
    assert!(frame.reserve(60 << 20));
    let beside = fill(&mut shard);
    assert!((24..=34).contains(&beside), "{beside} values");
    drop(frame);
    let alone = beside + fill(&mut shard);
    assert!((54..=64).contains(&alone), "{alone} values");
}

/// Returns a SCAN of a place.
fn scan_of(id: u64, place: (GroupId, ShardId), pattern: &[u8], scan: Scan) -> Vec<u8> {
    let mut bytes = Vec::new();
    let digest = Placement::new(3, 1).digest_at(place);
    let (id, view, operation) = (RequestId(id), ViewVersion(0), Operation::Scan(scan));
    Request { id, view, digest, key: pattern, operation }.write(&mut bytes);
    bytes
}

#[test]
fn a_scan_is_served_by_the_shard_that_its_digest_names() {
    let (mut pair, id) = serving(b"value");
    let here = (GROUP, ShardId(0));
    let all = Scan { cursor: 0, values: true, deadlines: false };
    let mut stream = scan_of(2, here, b"", all);
    // Another request follows, so that look-ahead examines the SCAN too.
    stream.extend(request(3, key(), Operation::Noop));
    pair.primary.handle_bytes(NOW, id, &stream);
    let said = take_output(&mut pair.primary, id);
    let first = split_frame(&said, &FrameRules::unchecked(MAX_RESPONSE_BODY)).unwrap().unwrap();
    let response = Response::read(first.body).unwrap();
    assert_eq!((response.id, response.status), (RequestId(2), Status::Ok));
    let page = ScanPage::read(response.value).unwrap();
    let items: Vec<_> = page.items().map(|item| (item.key, item.value)).collect();
    assert_eq!((page.next, page.entries, items), (0, 1, vec![(key(), Some(&b"value"[..]))]));
    assert_eq!(told(&said[first.consumed..])[0].1, Status::Ok);

    let elsewhere = (GroupId((GROUP.0 + 1) % 3), ShardId(0));
    let no_cursor = Scan { cursor: u64::MAX, ..all };
    for (bytes, status) in [
        (scan_of(4, elsewhere, b"", all), Status::WrongView),
        (scan_of(5, here, b"", no_cursor), Status::Invalid),
    ] {
        pair.primary.handle_bytes(NOW, id, &bytes);
        assert_eq!(told(&take_output(&mut pair.primary, id))[0].1, status);
    }
}

#[test]
fn with_hash_tags_a_request_is_placed_by_the_tag_of_its_key() {
    // By the whole key, this one is of another group, which server 0 does not hold.
    let tagged = [&b"{"[..], key(), b"}0"].concat();
    assert_eq!(Placement::new(3, 1).locate(&tagged).0, GroupId(1));
    let write = || [put(1, &tagged, b"v"), request(2, &tagged, Operation::Noop)].concat();

    let mut plain = Pair::joined();
    let id = client(&mut plain.primary);
    plain.primary.handle_bytes(NOW, id, &write());
    assert_eq!(told(&take_output(&mut plain.primary, id))[0].1, Status::WrongView);

    let mut pair = Pair::joined_of([0, 1].map(shard_with_hash_tags));
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &write());
    pair.exchange();
    let said = told(&take_output(&mut pair.primary, id));
    assert!(said.len() == 2 && said.iter().all(|(_, status, _)| *status == Status::Ok), "{said:?}");
    pair.primary.handle_bytes(NOW, id, &request(3, &tagged, Operation::Get));
    assert_eq!(told(&take_output(&mut pair.primary, id)), [(Some(3), Status::Ok, "v".to_owned())]);

    // The pattern of a SCAN has no tag, whatever it looks like.
    let all = Scan { cursor: 0, values: false, deadlines: false };
    let pattern = b"{elsewhere}*";
    let by_tag = Placement::new(3, 1).with_hash_tags(true).locate(pattern);
    assert_ne!(by_tag.0, GROUP);
    for (place, status) in [((GROUP, ShardId(0)), Status::Ok), (by_tag, Status::WrongView)] {
        pair.primary.handle_bytes(NOW, id, &scan_of(4, place, pattern, all));
        assert_eq!(told(&take_output(&mut pair.primary, id))[0].1, status, "{place:?}");
    }
}

#[test]
fn a_client_that_does_not_know_hash_tags_is_rejected_by_name() {
    let welcomed = |mut shard: Shard, version| {
        let id = shard.adopt(NOW, Port::Clients, &[]);
        shard.handle_bytes(NOW, id, &hello_of_version(version));
        let said = take_output(&mut shard, id);
        let reason = String::from_utf8_lossy(&said).into_owned();
        (frames(&said), reason, ended(&mut shard, id))
    };
    let (opcodes, reason, is_over) = welcomed(shard_with_hash_tags(0), 1);
    assert_eq!((&opcodes[..], is_over), (&[client_opcode::ERROR][..], true));
    assert!(reason.contains("hash tags") && reason.contains("upgrade the client"), "{reason}");
    for (shard, version) in [(shard_with_hash_tags(0), 2), (shard(0), 1), (shard(0), 2)] {
        assert_eq!(welcomed(shard, version).0, [client_opcode::WELCOME]);
    }
}
