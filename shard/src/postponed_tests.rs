//! Tests of requests that take long: a connection gets its turn again after the others.

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Operation, Request, Scan, WriteHeader};
use kv_protocol::ids::{RequestId, RequestSeq, ShardId, ViewVersion};
use kv_protocol::placement::Placement;
use kv_protocol::update::{Action, Update, Updates};

use crate::shard::{Fate, Shard};
use crate::testing::{GROUP, HEADER, NOW, Pair, client, frames, key, request, take_output};

const SCANS: usize = 30;

fn scan(id: u64) -> Vec<u8> {
    let digest = Placement::new(3, 1).digest_at((GROUP, ShardId(0)));
    let (id, view, operation) = (RequestId(id), ViewVersion(0), Operation::Scan(Scan::default()));
    let mut bytes = Vec::new();
    Request { id, view, digest, key: b"*none*", operation }.write(&mut bytes);
    bytes
}

fn scans() -> Vec<u8> {
    (0..SCANS as u64).flat_map(scan).collect()
}

/// Serves postponed requests until there are none. Returns the number of responses after each turn.
fn turns(shard: &mut Shard, id: ConnectionId) -> Vec<usize> {
    let mut responses = Vec::new();
    while shard.postponed() > 0 {
        shard.serve_postponed(NOW);
        responses.push(frames(&take_output(shard, id)).len());
    }
    responses
}

#[test]
fn a_receive_with_many_scans_is_served_in_several_turns() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    // The last request arrives in two parts.
    let (bytes, last) = (scans(), request(99, key(), Operation::Noop));
    pair.primary.handle_bytes(NOW, id, &[&bytes[..], &last[..9]].concat());
    assert_eq!(pair.primary.fate(id), Fate::Wait, "it is not read meanwhile");
    let first = frames(&take_output(&mut pair.primary, id)).len();
    let later = turns(&mut pair.primary, id);
    assert!(later.iter().all(|count| *count <= first) && first <= SCANS / 4, "{first} {later:?}");
    assert_eq!(first + later.iter().sum::<usize>(), SCANS);
    assert_eq!(pair.primary.fate(id), Fate::Read);
    pair.primary.handle_bytes(NOW, id, &last[9..]);
    assert_eq!(frames(&take_output(&mut pair.primary, id)).len(), 1);
}

#[test]
fn a_receive_with_many_sums_is_served_in_several_turns() {
    let mut encoded = Vec::new();
    Update::new(Action::AddFloat(b"0.5")).write(&mut encoded);
    let add = |seq| {
        let header = WriteHeader { seq: RequestSeq(seq), ..HEADER };
        let updates = Updates::read(&encoded).unwrap();
        request(seq, key(), Operation::Update(header, updates))
    };
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    let bytes: Vec<u8> = (1..=60).flat_map(add).collect();
    pair.primary.handle_bytes(NOW, id, &bytes);
    let mut served = vec![pair.primary.service.counters().requests];
    while pair.primary.postponed() > 0 {
        pair.primary.serve_postponed(NOW);
        served.push(pair.primary.service.counters().requests);
    }
    assert_eq!(served.last(), Some(&60));
    assert!(served.len() >= 3, "{served:?}");
}

#[test]
fn a_receive_with_updates_of_a_long_value_is_served_in_several_turns() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    let number = |seq| WriteHeader { seq: RequestSeq(seq), ..HEADER };
    let put = request(1, key(), Operation::Put(number(1), &vec![7; 1 << 20]));
    pair.primary.handle_bytes(NOW, id, &put);
    let before = pair.primary.service.counters().requests;
    let mut encoded = Vec::new();
    Update::new(Action::Append(b"x")).write(&mut encoded);
    let append = |seq| {
        let updates = Updates::read(&encoded).unwrap();
        request(seq, key(), Operation::Update(number(seq), updates))
    };
    let bytes: Vec<u8> = (2..=9).flat_map(append).collect();
    pair.primary.handle_bytes(NOW, id, &bytes);
    let mut served = vec![pair.primary.service.counters().requests - before];
    while pair.primary.postponed() > 0 {
        pair.primary.serve_postponed(NOW);
        served.push(pair.primary.service.counters().requests - before);
    }
    served.dedup();
    assert_eq!(served, (1..=8).collect::<Vec<u64>>(), "each makes a megabyte");
}

#[test]
fn two_connections_with_scans_are_served_in_turn() {
    let mut pair = Pair::joined();
    let ids = [(); 2].map(|()| client(&mut pair.primary));
    for id in ids {
        pair.primary.handle_bytes(NOW, id, &scans());
        take_output(&mut pair.primary, id);
    }
    pair.primary.serve_postponed(NOW);
    pair.primary.serve_postponed(NOW);
    for id in ids {
        assert!(!take_output(&mut pair.primary, id).is_empty());
    }
}

#[test]
fn postponed_requests_are_served_after_the_end_of_the_input() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &scans());
    let first = frames(&take_output(&mut pair.primary, id)).len();
    pair.primary.handle_end_of_input(NOW, id);
    assert_ne!(pair.primary.fate(id), Fate::Close);
    let later: usize = turns(&mut pair.primary, id).iter().sum();
    assert_eq!(first + later, SCANS);
    assert_eq!(pair.primary.fate(id), Fate::Close);
}

#[test]
fn a_closed_connection_is_postponed_no_longer() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &scans());
    pair.primary.close(NOW, id);
    pair.primary.serve_postponed(NOW);
    assert_eq!(pair.primary.postponed(), 0);
}
