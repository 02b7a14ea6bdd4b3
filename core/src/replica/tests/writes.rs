//! Guarantees to clients: the time of the response to a write, the state that reads return, and the requests that
//! are rejected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::arena::{CHUNK_BYTES_MIN, SwitchedChunks};

#[test]
fn a_write_gets_its_response_only_when_both_tables_have_it() {
    let mut pair = Pair::new();
    let put = pair.put(b"k", b"v");
    assert_eq!(pair.given(put), None);
    pair.deliver();
    assert_eq!(contents(&pair.secondary).len(), 1);
    assert_eq!(pair.given(put), None, "response before the ack");
    pair.ack();
    let given = pair.given(put).unwrap();
    assert_eq!((given.status, given.copies, given.version.0), (Status::Ok, 2, 1));
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn reads_see_only_what_is_committed() {
    let mut pair = Pair::new();
    pair.put(b"k", b"old");
    pair.settle();
    pair.put(b"k", b"new");
    pair.deliver();
    assert_eq!(pair.get(b"k").value, b"old");
    pair.ack();
    assert_eq!(pair.get(b"k").value, b"new");
    assert_eq!(pair.get(b"other").status, Status::NotFound);
}

#[test]
fn a_part_of_a_value_is_sent_with_the_length_of_the_whole() {
    let mut pair = Pair::new();
    let put = pair.put(b"k", b"0123456789");
    pair.settle();
    let version = pair.given(put).unwrap().version;
    let mut read = |from, most, all_or_nothing| {
        let id = pair
            .request(b"k", Operation::GetPart(Part { all_or_nothing, ..Part::new(from, most) }));
        let Given { status, version: seen, value, whole, .. } = pair.given(id).unwrap();
        assert_eq!(seen, version);
        (status, String::from_utf8(value).unwrap(), whole)
    };
    let part = |bytes: &str| (Status::Part, bytes.to_owned(), 10);
    assert_eq!(read(2, 3, false), part("234"));
    assert_eq!(read(8, 5, false), part("89"));
    assert_eq!(read(10, 5, false), part(""));
    assert_eq!(read(u32::MAX, u32::MAX, false), part(""));
    assert_eq!(read(0, 0, false), part(""));
    assert_eq!(read(0, 9, true), part(""));
    assert_eq!(read(3, 7, true), part("3456789"));
    for all_or_nothing in [true, false] {
        assert_eq!(read(0, 10, all_or_nothing), (Status::Ok, "0123456789".to_owned(), 0));
    }
    let part = Part::new(0, 1);
    let missing = pair.request(b"other", Operation::GetPart(part));
    assert_eq!(pair.status(missing), Some(Status::NotFound));
}

#[test]
fn conditions_are_decided_against_pending_writes() {
    let mut pair = Pair::new();
    pair.put(b"k", b"1");
    let wins = pair.put_if(b"k", b"2", Condition::IfVersion(SequenceNumber(1)));
    let loses = pair.put_if(b"k", b"3", Condition::IfVersion(SequenceNumber(1)));
    pair.delete(b"k");
    let absent = pair.put_if(b"k", b"4", Condition::IfAbsent);
    let present = pair.put_if(b"k", b"5", Condition::IfAbsent);
    pair.delete(b"k");
    let nothing_left = pair.delete(b"k");
    assert_eq!(pair.inbox.0.len(), 0, "even a failed condition waits for the writes before it");
    pair.settle();
    assert_eq!(pair.status(wins), Some(Status::Ok));
    let conflict = pair.given(loses).unwrap();
    assert_eq!((conflict.status, conflict.version.0), (Status::Conflict, 2));
    assert_eq!(pair.status(absent), Some(Status::Ok));
    assert_eq!(pair.status(present), Some(Status::Conflict));
    assert_eq!(pair.status(nothing_left), Some(Status::NotFound));
    assert_eq!(contents(&pair.primary).len(), 0);
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn a_retried_write_is_executed_once_and_gets_its_first_response() {
    let mut pair = Pair::new();
    let write = Operation::Put(header(1, Condition::IfAbsent), b"v");
    pair.request_as(1, b"k", write);
    // The first connection breaks; the retry waits for the pending write.
    pair.request_as(2, b"k", write);
    assert_eq!(pair.inbox.0.len(), 0);
    pair.settle();
    let first = pair.given(2).unwrap();
    assert_eq!(pair.given(1), Some(first.clone()));
    assert_eq!(first.status, Status::Ok);
    // A second execution would find the key present.
    pair.request_as(3, b"k", write);
    assert_eq!(pair.given(3), Some(first));
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
}

#[test]
fn an_expired_write_is_not_executed() {
    let mut pair = Pair::new();
    let newest = WriteHeader { first_incomplete: RequestSeq(5), ..header(5, Condition::Always) };
    pair.request_as(1, b"k", Operation::Put(newest, b"v"));
    pair.settle();
    pair.request_as(2, b"k", Operation::Put(header(4, Condition::Always), b"late"));
    assert_eq!(pair.status(2), Some(Status::SessionExpired));
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
}

#[test]
fn another_write_with_the_number_of_an_earlier_one_is_rejected_and_not_executed() {
    let mut pair = Pair::new();
    pair.request_as(1, b"k", Operation::Put(header(1, Condition::Always), b"v"));
    let others: [(&[u8], Operation<'_>); 4] = [
        (b"k", Operation::Put(header(1, Condition::Always), b"w")),
        (b"l", Operation::Put(header(1, Condition::Always), b"v")),
        (b"k", Operation::Put(header(1, Condition::IfAbsent), b"v")),
        (b"k", Operation::Delete(header(1, Condition::Always))),
    ];
    for (id, (key, operation)) in (2..).zip(others) {
        pair.request_as(id, key, operation);
        assert_eq!(pair.status(id), Some(Status::SessionMismatch), "while the first is pending");
    }
    pair.settle();
    assert_eq!(pair.status(1), Some(Status::Ok));
    for (id, (key, operation)) in (12..).zip(others) {
        pair.request_as(id, key, operation);
        assert_eq!(pair.status(id), Some(Status::SessionMismatch), "once it is committed");
    }
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
    assert_eq!(contents(&pair.primary)[&b"k"[..]].0, b"v");
}

#[test]
fn a_primary_without_memory_commits_accepted_writes_and_rejects_others() {
    let is_exhausted = Arc::new(AtomicBool::new(false));
    let chunks = SwitchedChunks::new(CHUNK_BYTES_MIN, Arc::clone(&is_exhausted));
    let mut pair = Pair::apart(None);
    pair.primary = Replica::new(pair.primary.config, Box::new(chunks));
    pair.primary.install(pair.now, view(1), &mut pair.inbox).unwrap();
    pair.connect();
    pair.put(b"first", b"value");
    pair.settle();
    is_exhausted.store(true, Ordering::Relaxed);
    let mut accepted = Vec::new();
    let refused = loop {
        let put = pair.put(format!("key-{}", accepted.len()).as_bytes(), b"value");
        match pair.status(put) {
            None => accepted.push(put),
            status => break status,
        }
    };
    assert_eq!(refused, Some(Status::OutOfSpace));
    assert!(accepted.len() > 100, "only {} writes fit a chunk", accepted.len());
    pair.settle();
    assert!(accepted.iter().all(|&put| pair.status(put) == Some(Status::Ok)));
    assert_eq!(contents(&pair.primary).len(), 1 + accepted.len());
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn at_the_memory_limit_writes_are_rejected_while_reads_and_deletes_work() {
    let mut pair = Pair::apart(Some(200_000));
    pair.connect();
    let mut stored = 0;
    let refused = loop {
        let put = pair.put(format!("key-{stored}").as_bytes(), &[1; 1_000]);
        pair.settle();
        match pair.status(put).unwrap() {
            Status::Ok => stored += 1,
            status => break status,
        }
        assert!(stored < 1_000, "the limit is not kept");
    };
    assert_eq!(refused, Status::OutOfSpace);
    assert!(stored > 100, "only {stored} entries of 1,000 bytes in 200,000");
    assert_eq!(pair.get(b"key-0").value, [1; 1_000]);
    let delete = pair.delete(b"key-0");
    pair.settle();
    assert_eq!(pair.status(delete), Some(Status::Ok));
    let put = pair.put(b"again", &[1; 900]);
    pair.settle();
    assert_eq!(pair.status(put), Some(Status::Ok));
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn too_many_pending_writes_are_rejected_as_busy() {
    let mut pair = Pair::apart(None);
    let mut refused = None;
    for n in 0..100 {
        let put = pair.put(format!("{n}").as_bytes(), &vec![0; 1 << 20]);
        if let Some(status) = pair.status(put) {
            refused = Some((n, status));
            break;
        }
    }
    assert_eq!(refused, Some((63, Status::Busy)), "63 writes of a MiB and a key fit 64 MiB");
}

#[test]
fn the_number_of_pending_writes_is_bounded() {
    let mut pair = Pair::apart(None);
    let mut refused = None;
    for n in 0..=MAX_PENDING_WRITES as u64 {
        let write = Operation::Put(header(1, Condition::Always), b"");
        let request = Request {
            id: RequestId(n),
            view: ViewVersion(1),
            digest: Digest::of(b"k"),
            key: b"k",
            operation: write,
        };
        let client = ClientId(u128::from(n));
        let hash = pair.primary.hash_of(request.digest, request.key);
        pair.primary.on_request(pair.now, (CONNECTION, client), &request, hash, &mut pair.inbox);
        refused = refused.or(pair.status(n).map(|status| (n, status)));
    }
    assert_eq!(refused, Some((MAX_PENDING_WRITES as u64, Status::Busy)));
}

#[test]
fn a_replica_without_the_view_is_unavailable_and_a_wrong_role_is_reported() {
    let mut pair = Pair::apart(None);
    let early = pair.request(b"k", Operation::Verify(ReplicaRole::Secondary));
    assert_eq!(pair.status(early), Some(Status::Unavailable));
    pair.connect();
    let request = Request {
        id: RequestId(77),
        view: ViewVersion(1),
        digest: Digest::of(b"k"),
        key: b"k",
        operation: Operation::Get,
    };
    let hash = pair.secondary.hash_of(request.digest, request.key);
    pair.secondary.on_request(pair.now, (CONNECTION, ALICE), &request, hash, &mut pair.inbox);
    assert_eq!(pair.status(77), Some(Status::WrongView));
}
