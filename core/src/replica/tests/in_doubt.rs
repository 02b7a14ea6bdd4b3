//! The settlement of writes in doubt (consistency.md §8).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use kv_protocol::ids::RequestHash;

use super::group::{Group, named, view_of};
use super::*;
use crate::arena::{CHUNK_BYTES_MIN, SwitchedChunks};

const PUT: Operation<'_> = Operation::Put(
    WriteHeader {
        seq: RequestSeq(1),
        first_incomplete: RequestSeq(1),
        begun: SequenceNumber::ZERO,
        condition: Condition::Always,
    },
    b"v",
);

/// Returns a RESOLVE for a write.
fn resolve(key: &[u8], write: Operation<'_>) -> Operation<'static> {
    let header = WriteHeader { condition: Condition::Always, ..*write.write_header().unwrap() };
    Operation::Resolve(header, RequestHash::of(Digest::of(key), &write).unwrap())
}

#[test]
fn a_write_that_was_executed_is_settled_with_its_first_response() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", PUT);
    pair.settle();
    let conflict = Operation::Put(header(2, Condition::IfAbsent), b"w");
    pair.request_as(2, b"k", conflict);
    let missing = Operation::Delete(header(3, Condition::Always));
    pair.request_as(3, b"l", missing);
    pair.settle();
    for (id, key, write) in [(1, b"k", PUT), (2, b"k", conflict), (3, b"l", missing)] {
        pair.request_as(10 + id, key, resolve(key, write));
        assert_eq!(pair.given(10 + id), pair.given(id));
    }
    let statuses = [1, 2, 3].map(|id| pair.status(id).unwrap());
    assert_eq!(statuses, [Status::Ok, Status::Conflict, Status::NotFound]);
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(3));
}

#[test]
fn a_pending_write_is_settled_when_it_is_committed() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", PUT);
    pair.request_as(2, b"k", resolve(b"k", PUT));
    pair.request_as(3, b"k", PUT);
    assert_eq!(pair.given(2), None);
    pair.settle();
    assert_eq!([1, 2, 3].map(|id| pair.status(id)), [Some(Status::Ok); 3]);
}

#[test]
fn a_delayed_request_does_not_take_the_response_of_a_retry() {
    let mut pair = Pair::new();
    // The first request is a retry on a new connection. Delayed requests from lost connections arrive after it.
    for id in 1..=20 {
        pair.request_as(id, b"k", PUT);
    }
    pair.settle();
    let given: Vec<u64> = (1..=20).filter(|id| pair.given(*id).is_some()).collect();
    // The number of waiting requests is bounded.
    assert_eq!(given, [1, 14, 15, 16, 17, 18, 19, 20]);
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
}

#[test]
fn an_unknown_write_is_settled_as_not_done_once_both_holders_have_recorded_it() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", resolve(b"k", PUT));
    pair.deliver();
    assert_eq!(pair.given(1), None, "response before the ack");
    pair.ack();
    let given = pair.given(1).unwrap();
    assert_eq!((given.status, given.copies, given.version.0), (Status::NotDone, 2, 0));
    pair.request_as(2, b"k", PUT);
    pair.request_as(3, b"k", resolve(b"k", PUT));
    assert_eq!([pair.given(2).unwrap(), pair.given(3).unwrap()], [given.clone(), given]);
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
    assert_eq!(contents(&pair.primary).len(), 0);
    assert_eq!(pair.primary.content(), pair.secondary.content());
}

#[test]
fn a_write_that_arrives_after_its_settlement_waits_for_it_and_is_not_executed() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", resolve(b"k", PUT));
    pair.request_as(2, b"k", PUT);
    assert_eq!(pair.given(2), None);
    pair.settle();
    assert_eq!([1, 2].map(|id| pair.status(id)), [Some(Status::NotDone); 2]);
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn a_settlement_outlives_its_primary_and_a_copy() {
    let mut group = Group::new();
    let asked = group.ask(0, b"k", resolve(b"k", PUT));
    group.settle();
    assert_eq!(group.status(asked), Some(Status::NotDone));
    group.lose_the_primary();
    let late = group.ask(1, b"k", PUT);
    assert_eq!(group.status(late), Some(Status::NotDone));
    group.install(1, view_of(3, 1, Peer::Candidate(named(2))));
    group.settle();
    group.install(1, view_of(4, 1, Peer::Secondary(named(2))));
    group.settle();
    group.silent.push(1);
    group.install(2, view_of(5, 2, Peer::None));
    group.replicas[2].on_exited(group.now, named(1));
    let later = group.ask(2, b"k", PUT);
    assert_eq!(group.status(later), Some(Status::NotDone));
    assert_eq!(contents(&group.replicas[2]).len(), 0);
}

#[test]
fn a_settlement_lost_with_its_primary_has_no_effect() {
    let mut group = Group::new();
    group.silent.push(1);
    let asked = group.ask(0, b"k", resolve(b"k", PUT));
    group.settle();
    assert_eq!(group.status(asked), None);
    group.silent.clear();
    group.lose_the_primary();
    let late = group.ask(1, b"k", PUT);
    assert_eq!(group.status(late), Some(Status::Ok));
    let again = group.ask(1, b"k", resolve(b"k", PUT));
    assert_eq!(group.status(again), Some(Status::Ok));
}

#[test]
fn a_resolve_of_another_write_with_the_same_number_is_a_mismatch() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", PUT);
    let other = Operation::Put(*PUT.write_header().unwrap(), b"w");
    pair.request_as(2, b"k", resolve(b"k", other));
    assert_eq!(pair.status(2), Some(Status::SessionMismatch));
    // The same in the reverse order: the settlement uses the number first.
    let mut pair = Pair::new();
    pair.request_as(1, b"k", resolve(b"k", PUT));
    pair.request_as(2, b"k", other);
    assert_eq!(pair.status(2), Some(Status::SessionMismatch));
}

#[test]
fn a_completed_number_is_no_longer_settled() {
    let mut pair = Pair::new();
    let later = WriteHeader { first_incomplete: RequestSeq(5), ..header(5, Condition::Always) };
    pair.request_as(1, b"k", Operation::Put(later, b"v"));
    pair.settle();
    pair.request_as(2, b"k", resolve(b"k", PUT));
    assert_eq!(pair.status(2), Some(Status::SessionExpired));
    let ahead = WriteHeader { first_incomplete: RequestSeq(1), ..header(65, Condition::Always) };
    pair.request_as(3, b"k", Operation::Resolve(ahead, RequestHash(7)));
    assert_eq!(pair.status(3), Some(Status::Invalid));
}

#[test]
fn an_expired_session_is_not_settled_and_its_writes_are_never_executed() {
    let mut pair = Pair::new();
    pair.put(b"other", b"1");
    pair.settle();
    pair.primary.sessions.forget(SequenceNumber(1));
    for (id, request) in [(11, resolve(b"k", PUT)), (12, PUT)] {
        pair.request_as(id, b"k", request);
        assert_eq!(pair.status(id), Some(Status::SessionExpired));
    }
    // The result is the same if the client writes in another session with the same id.
    let begun = pair.primary.session_start();
    let fresh = WriteHeader { begun, ..header(1, Condition::Always) };
    pair.request_as(13, b"k", Operation::Put(fresh, b"2"));
    pair.settle();
    for (id, request) in [(14, resolve(b"k", PUT)), (15, PUT)] {
        pair.request_as(id, b"k", request);
        assert_eq!(pair.status(id), Some(Status::SessionExpired));
    }
}

#[test]
fn an_expired_session_is_reported_only_after_both_holders_have_expired_it() {
    let mut pair = Pair::new();
    pair.put(b"other", b"1");
    pair.settle();
    pair.disconnect();
    let end = pair.now + SESSION_IDLE * 4 / 3;
    while pair.now < end {
        pair.now = pair.now + BEACON_INTERVAL;
        pair.primary.look(pair.now);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
    }
    assert_eq!(pair.primary.session_count(), 0);
    pair.request_as(11, b"k", resolve(b"k", PUT));
    assert_eq!(pair.status(11), Some(Status::Busy));
    pair.connect();
    pair.settle();
    pair.request_as(12, b"k", resolve(b"k", PUT));
    assert_eq!(pair.status(12), Some(Status::SessionExpired));
}

#[test]
fn at_the_memory_limit_writes_are_settled() {
    let mut pair = Pair::apart(Some(0));
    pair.connect();
    pair.request_as(1, b"k", PUT);
    assert_eq!(pair.status(1), Some(Status::OutOfSpace));
    pair.request_as(2, b"k", resolve(b"k", PUT));
    pair.settle();
    assert_eq!(pair.status(2), Some(Status::NotDone));
}

/// Checks that a server settles writes even if its table cannot get its first chunk.
#[test]
fn a_server_without_any_memory_settles_writes() {
    let is_exhausted = Arc::new(AtomicBool::new(true));
    let chunks = SwitchedChunks::new(CHUNK_BYTES_MIN, is_exhausted);
    let mut pair = Pair::apart(None);
    pair.primary = Replica::new(pair.primary.config, Box::new(chunks));
    pair.primary.install(pair.now, view(1), &mut pair.inbox).unwrap();
    pair.connect();
    pair.settle();
    pair.request_as(1, b"k", PUT);
    assert_eq!(pair.status(1), Some(Status::OutOfSpace));
    pair.request_as(2, b"k", resolve(b"k", PUT));
    pair.settle();
    assert_eq!(pair.status(2), Some(Status::NotDone));
    assert_eq!(pair.secondary.report(pair.now).unwrap().last, SequenceNumber(1));
}

#[test]
fn a_draining_primary_settles_known_writes_and_logs_no_settlement() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", PUT);
    pair.primary.drain();
    pair.request_as(2, b"k", resolve(b"k", PUT));
    let unknown = Operation::Delete(header(2, Condition::Always));
    pair.request_as(3, b"l", resolve(b"l", unknown));
    assert_eq!(pair.status(3), Some(Status::Unavailable));
    pair.settle();
    assert_eq!(pair.status(2), Some(Status::Ok));
    assert!(pair.primary.is_drained());
}
