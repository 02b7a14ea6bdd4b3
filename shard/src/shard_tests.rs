//! Tests of connections before their hello, and of streams that are dialled again.

use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::Status;
use kv_protocol::ids::ShardId;

use super::*;
use crate::handshake::MAX_AWAITING_HELLO;
use crate::testing::{
    GROUP, NOW, Pair, WALL, client, hello, hello_of, key, put, shard, take_output, told, view,
};

#[test]
fn silent_connections_make_room_for_newer_ones() {
    let mut shard = shard(0);
    let silent: Vec<ConnectionId> =
        (0..MAX_AWAITING_HELLO).map(|_| shard.open_accepted(NOW, Port::Clients)).collect();
    shard.handle_bytes(NOW, silent[0], &hello());
    shard.adopt_accepted(NOW, silent[0]);
    let newest = shard.open_accepted(NOW, Port::Clients);
    assert_eq!(shard.fate(silent[1]), Fate::Read, "a connection with a hello still counts");
    let one_more = shard.open_accepted(NOW, Port::Clients);
    assert_eq!(shard.fate(silent[1]), Fate::Close, "the oldest silent connection is still open");
    for id in [silent[0], silent[2], newest, one_more] {
        assert_ne!(shard.fate(id), Fate::Close);
    }
}

#[test]
fn a_connection_goes_to_its_requested_shard_with_all_received_bytes() {
    let mut shard = shard(0);
    let id = shard.open_accepted(NOW, Port::Clients);
    let mut bytes = hello();
    bytes.extend_from_slice(b"more");
    shard.handle_bytes(NOW, id, &bytes[..5]);
    assert_eq!(shard.fate(id), Fate::Read);
    shard.handle_bytes(NOW, id, &bytes[5..]);
    assert_eq!(shard.fate(id), Fate::HandOver(ShardId(0)));
    assert_eq!(shard.take_handshake(id), Some((Port::Clients, bytes)));
    shard.close(NOW, id);
    assert_eq!(shard.fate(id), Fate::Close);
}

#[test]
fn a_lost_stream_is_dialled_again_with_growing_back_off() {
    let mut shard = shard(0);
    let address = "127.0.0.1:1".parse().unwrap();
    shard.service.install(NOW, view(), Some(address)).unwrap();
    let mut now = NOW;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        assert_eq!(shard.due_dials(now), [(DialTarget::Stream(GROUP), address)]);
        assert!(shard.due_dials(now).is_empty(), "dialled twice at once");
        shard.handle_dial_failed(now, GROUP, "refused");
        let due = shard.service.poll_dial().unwrap();
        pauses.push(due.since(now));
        now = due;
    }
    assert_eq!(pauses[..4], [1, 2, 4, 8].map(Duration::from_millis));
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_millis(100)));
    assert_eq!(pauses.last(), Some(&Duration::from_millis(100)));
}

#[test]
fn a_repeated_order_keeps_the_established_stream() {
    let mut pair = Pair::joined();
    let address = "127.0.0.1:1".parse().unwrap();
    pair.primary.service.install(NOW, view(), Some(address)).unwrap();
    assert_eq!(pair.primary.fate(pair.dialled), Fate::Read);
    assert!(pair.primary.due_dials(NOW).is_empty());
    assert!(take_output(&mut pair.primary, pair.dialled).is_empty());
}

#[test]
fn a_stream_that_is_repeatedly_lost_is_dialled_with_growing_back_off_until_an_ack() {
    let mut pair = Pair::joined();
    let mut now = NOW;
    let lose_and_dial = |now: &mut Time, pair: &mut Pair| {
        pair.primary.close(*now, pair.dialled);
        pair.secondary.close(*now, pair.accepted);
        let due = pair.primary.service.poll_dial().unwrap();
        let pause = due.since(*now);
        *now = due;
        let now = *now;
        assert_eq!(pair.primary.due_dials(now).len(), 1);
        pair.dialled = pair.primary.open_dialled(now, GROUP);
        pair.accepted = pair.secondary.adopt(now, Port::Servers, &[]);
        // The first round carries the challenge and the proof, the second one the hello and the welcome.
        for _ in 0..2 {
            let there = take_output(&mut pair.primary, pair.dialled);
            pair.secondary.handle_bytes(now, pair.accepted, &there);
            let back = take_output(&mut pair.secondary, pair.accepted);
            pair.primary.handle_bytes(now, pair.dialled, &back);
        }
        assert!(
            pair.primary.service.reports(NOW).any(|report| report.connected),
            "the stream was not welcomed"
        );
        pause
    };
    let pauses: Vec<Duration> = (0..4).map(|_| lose_and_dial(&mut now, &mut pair)).collect();
    assert_eq!(pauses, [1, 2, 4, 8].map(Duration::from_millis));
    // The beacon is acked.
    pair.exchange_at(now);
    assert_eq!(lose_and_dial(&mut now, &mut pair), Duration::from_millis(1));
}

#[test]
fn the_end_of_a_drain_is_published_at_once() {
    let mut idle = shard(0);
    idle.service.take_news();
    idle.service.drain();
    assert!(idle.service.take_news() && idle.service.is_drained());
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &put(1, key(), b"v"));
    pair.primary.service.drain();
    pair.primary.service.take_news();
    assert!(!pair.primary.service.take_news() && !pair.primary.service.is_drained());
    pair.exchange();
    assert!(pair.primary.service.take_news() && pair.primary.service.is_drained());
}

#[test]
fn silence_counts_only_while_the_shard_itself_runs() {
    let mut pair = Pair::joined();
    let silent_ms = |pair: &mut Pair, now| {
        pair.secondary.handle_tick(now, WALL);
        pair.secondary.service.reports(now).next().expect("a view").silent_ms
    };
    let heard = silent_ms(&mut pair, NOW);
    assert_eq!(heard, 0);
    // The whole machine was paused. Messages that the primary sent during the pause are not read yet.
    let woke = NOW + Duration::from_secs(2);
    let report = pair.secondary.service.reports(woke).next().expect("a view");
    assert!(report.silent_ms <= 100, "the suspension counts as silence of the primary");
    assert!(silent_ms(&mut pair, woke) <= 100, "the suspension became a vote against the primary");
    let mut silences = (1..=6).map(|n| silent_ms(&mut pair, woke + Duration::from_millis(n * 100)));
    assert!(
        silences.any(|silent_ms| silent_ms > 500),
        "the primary is silent, but the report does not show it"
    );
    // Messages arrive and then stop again. Now the whole silence counts.
    let later = woke + Duration::from_secs(1);
    pair.primary.finish_wake_up(later);
    let said = take_output(&mut pair.primary, pair.dialled);
    pair.secondary.handle_bytes(later, pair.accepted, &said);
    let last = (0..=6).map(|n| silent_ms(&mut pair, later + Duration::from_millis(n * 100))).last();
    assert_eq!(last, Some(600));
    // A message arrives between two checks, and then the process is paused.
    let heard = later + Duration::from_millis(650);
    pair.primary.finish_wake_up(heard);
    let said = take_output(&mut pair.primary, pair.dialled);
    pair.secondary.handle_bytes(heard, pair.accepted, &said);
    assert!(
        silent_ms(&mut pair, heard + Duration::from_secs(2)) <= 100,
        "the pause counts as silence"
    );
}

#[test]
fn the_longest_idle_connections_of_an_address_are_closed_and_no_busy_ones() {
    let (crowd, other) = (Address::LOOPBACK, Address::UNKNOWN);
    let mut shard = shard(0);
    let mut open = |millis: u64, from: Address| {
        let now = NOW + Duration::from_millis(millis);
        let id = shard.adopt(now, Port::Clients, &hello());
        shard.set_address(id, from);
        let welcome = shard.unsent(id).len();
        shard.handle_sent(now, id, welcome);
        id
    };
    let (oldest, of_other, asks) = (open(0, crowd), open(0, other), open(0, crowd));
    let (second, newest) = (open(10, crowd), open(20, crowd));
    // This connection has sent a part of a request.
    shard.handle_bytes(NOW, asks, &[1, 0, 0]);
    assert_eq!(shard.close_idle(crowd, 2), 2);
    for closed in [oldest, second] {
        assert_eq!(shard.fate(closed), Fate::Close);
    }
    for kept in [of_other, asks, newest] {
        assert_eq!(shard.fate(kept), Fate::Read);
    }
    assert_eq!(shard.close_idle(crowd, 9), 1, "the newest connection is the only idle one left");
}

#[test]
fn an_address_that_begins_sessions_without_end_delays_only_its_own_clients() {
    let mut pair = Pair::joined();
    let (crowd, other) = (Address::LOOPBACK, Address::numbered(7));
    let ask = |pair: &mut Pair, client: u128, seq: u64, from: Address| {
        let id = pair.primary.adopt(NOW, Port::Clients, &[]);
        pair.primary.set_address(id, from);
        pair.primary.handle_bytes(NOW, id, &hello_of(client));
        take_output(&mut pair.primary, id);
        pair.primary.handle_bytes(NOW, id, &put(seq, key(), b"v"));
        pair.exchange();
        let told = told(&take_output(&mut pair.primary, id));
        pair.primary.close(NOW, id);
        told[0].1
    };
    let mut clients = 100..;
    let begun = clients.by_ref().take_while(|n| ask(&mut pair, *n, 1, crowd) == Status::Ok).count();
    assert_eq!(begun, 16_384);
    assert_eq!(ask(&mut pair, clients.next().unwrap(), 1, crowd), Status::Busy);
    assert_eq!(ask(&mut pair, 100, 2, crowd), Status::Ok, "it has a session");
    assert_eq!(ask(&mut pair, 7, 1, other), Status::Ok, "it comes from another address");
}
