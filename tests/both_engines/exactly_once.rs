//! Tests that a write whose response was lost is executed once, however often it is sent.

use std::time::Duration;

use crate::common::Cluster;
use crate::common::proxy::Proxy;
use crate::common::raw::{Raw, request};
use kv_client::{Client, Condition, Op, OpOptions, Options, SubmitError};
use kv_protocol::client_message::{Operation, Status, WriteHeader};
use kv_protocol::ids::{ClientId, RequestHash, RequestId, RequestSeq, SequenceNumber, ShardId};
use kv_protocol::placement::Digest;

fn if_absent(seq: u64) -> WriteHeader {
    WriteHeader {
        seq: RequestSeq(seq),
        first_incomplete: RequestSeq(seq),
        begun: Default::default(),
        condition: Condition::IfAbsent,
    }
}

#[test]
fn the_library_retries_a_write_whose_response_was_lost_and_it_is_executed_once() {
    let cluster = Cluster::start();
    let proxy = Proxy::before(&cluster);
    let mut client = Client::open(&proxy.endpoint(), Options::default()).expect("open a client");
    let once = OpOptions { condition: Condition::IfAbsent, ..OpOptions::default() };
    let mut versions = Vec::new();
    for n in 0..20u8 {
        // The response is dropped once, twice or three times in a row.
        proxy.cut_next_responses(1 + usize::from(n % 3));
        let key = cluster.key_at(0, 0, &format!("once {n}"));
        // A second execution would find the key and respond CONFLICT.
        let written = client.put(&key, &[n], &once).expect("a put that is executed once");
        assert_eq!(written.copies, 2);
        versions.push(written.version);
        let value = cluster.open().get(&key, &OpOptions::default()).expect("a get");
        assert_eq!((value.bytes, value.version), (vec![n], written.version));
    }
    assert_eq!(proxy.responses_cut(), (0..20).map(|n| 1 + n % 3).sum::<usize>());
    // Each write has one sequence number, however often it was sent.
    let expected: Vec<_> = (1..=20).map(SequenceNumber).collect();
    assert_eq!(versions, expected);
}

#[test]
fn pipelined_writes_are_each_executed_once_however_often_their_connections_are_cut() {
    const WRITES: usize = 3_000;
    let cluster = Cluster::builder().shards(2).start();
    let proxy = Proxy::before(&cluster);
    let mut client = Client::open(&proxy.endpoint(), Options::default()).expect("open a client");
    let once = OpOptions { condition: Condition::IfAbsent, deadline: Some(crate::common::TIMEOUT) };
    let keys: Vec<Vec<u8>> = (0..WRITES).map(|n| format!("once {n}").into_bytes()).collect();
    let (mut taken, mut done, mut ended) = (0, 0, Vec::new());
    while done < WRITES {
        while let Some(key) = keys.get(taken) {
            match client.submit(Op::Put { key, value: key }, &once, taken as u64) {
                Ok(()) => taken += 1,
                Err(SubmitError::Full { .. }) => break,
                Err(error) => panic!("write {taken}: {error}"),
            }
        }
        client.poll(Duration::from_secs(1), &mut ended).expect("poll");
        for completion in ended.drain(..) {
            let outcome = completion.result.unwrap_or_else(|error| {
                panic!("write {} was executed twice, or never: {error}", completion.tag)
            });
            assert_eq!(outcome.copies, 2);
            done += 1;
            if done % 100 == 0 {
                proxy.cut_next_responses(1);
            }
        }
    }
    assert!(proxy.responses_cut() >= 10, "only {} responses were dropped", proxy.responses_cut());
    let placement = cluster.placement();
    let dumps = cluster.stop();
    dumps.assert_copies_agree();
    assert_eq!(dumps.entries().len(), WRITES);
    // There are as many sequence numbers as writes, so no write was logged twice.
    let places: u64 = dumps
        .primary
        .iter()
        .flat_map(|dump| {
            (0..2).map(|shard| {
                let of_shard = dump
                    .entries
                    .iter()
                    .filter(|entry| placement.locate(&entry.key).1 == ShardId(shard));
                of_shard.map(|entry| entry.sn.0).max().unwrap_or(0)
            })
        })
        .sum();
    assert_eq!(places, WRITES as u64);
}

#[test]
fn a_retried_delete_whose_response_was_lost_is_reported_as_done_and_not_as_not_found() {
    let cluster = Cluster::start();
    let proxy = Proxy::before(&cluster);
    let mut client = Client::open(&proxy.endpoint(), Options::default()).expect("open a client");
    client.put(b"k", b"v", &OpOptions::default()).expect("a put");
    proxy.cut_next_responses(1);
    let deleted = client.delete(b"k", &OpOptions::default()).expect("a delete, done once");
    assert_eq!(deleted.copies, 2);
    assert_eq!(proxy.responses_cut(), 1);
}

#[test]
fn a_repeated_client_id_and_number_get_the_first_response_over_a_new_connection() {
    let cluster = Cluster::start();
    let server = cluster.server(0).clients.expect("started").parse().expect("an address");
    let key = cluster.key_at(0, 0, "raw");
    let client = ClientId(0xfeed);
    let bytes = request(RequestId(1), &key, Operation::Put(if_absent(1), b"first"));

    // The write is sent, and the connection closes before any response is read.
    let mut lost = Raw::welcomed(server, client, ShardId(0));
    lost.send(&bytes);
    drop(lost);

    let mut again = Raw::welcomed(server, client, ShardId(0));
    again.send(&bytes);
    let first = again.response();
    assert_eq!((first.status, first.version), (Status::Ok, SequenceNumber(1)));
    for _ in 0..3 {
        again.send(&bytes);
        assert_eq!(again.response(), first, "the response to a retry");
    }
    // A write of another client, or with another number, is a different write.
    let mut other = Raw::welcomed(server, ClientId(0xbeef), ShardId(0));
    assert_eq!(other.ask(&key, Operation::Put(if_absent(1), b"x")).status, Status::Conflict);
    assert_eq!(again.ask(&key, Operation::Put(if_absent(2), b"x")).status, Status::Conflict);
    assert_eq!(again.ask(&key, Operation::Get).value, b"first");
}

#[test]
fn a_write_in_doubt_is_settled_from_its_record_or_is_never_done() {
    let cluster = Cluster::start();
    let server = cluster.server(0).clients.expect("started").parse().expect("an address");
    let key = cluster.key_at(0, 0, "raw");
    let client = ClientId(0xfeed);
    let mut first = Raw::welcomed(server, client, ShardId(0));
    let mut second = Raw::welcomed(server, client, ShardId(0));
    let (done, late) = (Operation::Put(if_absent(1), b"v"), Operation::Put(if_absent(2), b"w"));
    let resolve = |write: Operation<'_>| {
        let header = *write.write_header().expect("a write");
        let hash = RequestHash::of(Digest::of(&key), &write).expect("a write");
        Operation::Resolve(header, hash)
    };
    let response = first.ask(&key, done);
    assert_eq!((response.status, response.version), (Status::Ok, SequenceNumber(1)));
    assert_eq!(second.ask(&key, resolve(done)), response);
    let settled = second.ask(&key, resolve(late));
    assert_eq!((settled.status, settled.copies), (Status::NotDone, 2));
    // The write itself arrives only after its RESOLVE.
    assert_eq!(first.ask(&key, late), settled);
    assert_eq!(first.ask(&key, Operation::Get).value, b"v");
}

#[test]
fn a_write_number_that_the_client_declared_finished_is_expired_and_not_executed() {
    let cluster = Cluster::start();
    let server = cluster.server(0).clients.expect("started").parse().expect("an address");
    let key = cluster.key_at(0, 0, "raw");
    let mut raw = Raw::welcomed(server, ClientId(1), ShardId(0));
    for seq in 1..=2u8 {
        let always = WriteHeader { condition: Condition::Always, ..if_absent(seq.into()) };
        assert_eq!(raw.ask(&key, Operation::Put(always, &[seq])).status, Status::Ok);
    }
    let late = WriteHeader { condition: Condition::Always, ..if_absent(1) };
    assert_eq!(raw.ask(&key, Operation::Put(late, b"late")).status, Status::SessionExpired);
    assert_eq!(raw.ask(&key, Operation::Get).value, [2]);
}
