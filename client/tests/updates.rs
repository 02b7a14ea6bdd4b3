//! Tests of updates and batches: their encoding, retries, doubts, errors, and servers without support for them.

mod common;

use common::{Act, Fake, SOON, Seen, anytime, first, key_of, now, open, within, writes};
use kv_client::update::{Action, UpdateResult};
use kv_client::{
    Condition, Doubt, Endpoints, Error, Expiry, Log, Op, OpOptions, Options, Part, Precondition,
    PutOptions, SequenceNumber, SharedClient, Status, Update,
};
use kv_protocol::client_message::{Operation, WriteHeader, opcode};
use kv_protocol::ids::{RequestHash, RequestSeq};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::update::Updates;

fn doubt_of(error: Error) -> Doubt {
    match error {
        Error::InDoubt { doubt: Some(doubt), .. } => doubt,
        error => panic!("{error}"),
    }
}

/// Returns keys of one group, shard 0, in a ring of three servers with one shard.
fn neighbours(count: usize) -> Vec<Vec<u8>> {
    let keys = (0..).map(|n| format!("near-{n}").into_bytes());
    keys.filter(|key| Placement::new(3, 1).locate(key).0.0 == 1).take(count).collect()
}

/// Returns the encoded updates of a request.
fn encoded(updates: &[Update<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    updates.iter().for_each(|update| update.write(&mut bytes));
    bytes
}

/// Returns the hash of an UPDATE.
fn hash_of(key: &[u8], updates: &[Update<'_>]) -> RequestHash {
    let (bytes, seq) = (encoded(updates), RequestSeq(1));
    let (begun, condition) = (SequenceNumber::ZERO, Condition::Always);
    let header = WriteHeader { seq, first_incomplete: seq, begun, condition };
    let operation = Operation::Update(header, Updates::read(&bytes).unwrap());
    RequestHash::of(Digest::of(key), &operation).unwrap()
}

fn opcodes(seen: &[Seen]) -> Vec<u8> {
    seen.iter().map(|seen| seen.opcode).collect()
}

/// Sets a script that never responds to updates, whether or not it executes them.
fn ignore_updates(fake: &Fake, are_done: bool) {
    fake.script(move |seen| match seen.opcode {
        opcode::UPDATE if are_done => Act::ServeThenCut,
        opcode::UPDATE => Act::Ignore,
        _ => Act::Serve,
    });
}

#[test]
fn every_convenience_has_its_effect() {
    let fake = Fake::start(3, 1);
    let (mut client, any) = (open(&fake), anytime());
    assert_eq!(client.add(b"n", 5, &any).unwrap(), 5);
    assert_eq!(client.add(b"n", -7, &any).unwrap(), -2);
    assert_eq!(client.add_float(b"f", "1.5", &any).unwrap(), "1.5");
    assert_eq!(client.append(b"t", b"abc", &any).unwrap(), 3);
    assert_eq!(client.set_range(b"t", 5, b"x", &any).unwrap(), 6);
    assert_eq!(client.get(b"t", &any).unwrap().bytes, b"abc\0\0x");
    assert_eq!(client.take(b"t", &any).unwrap().bytes, b"abc\0\0x");
    assert!(!client.exists(b"t", &any).unwrap());
    assert!(matches!(client.take(b"t", &any), Err(Error::NotFound { .. })));

    let put = client.put_if(b"k", b"1", Precondition::Absent, &any).unwrap();
    assert_eq!((put.copies, put.value), (2, None));
    assert!(client.exists(b"k", &any).unwrap());
    let with = PutOptions {
        condition: Precondition::Version(put.version),
        expiry: Expiry::After(60_000),
        returns_old_value: true,
    };
    let put = client.put_with(b"k", b"2", &with, &any).unwrap();
    assert_eq!(put.value.as_deref(), Some(&b"1"[..]));
    let deadline = put.deadline.expect("a deadline");
    assert!(deadline > now() && deadline <= now().after(60_000));
    assert_eq!(client.deadline(b"k", &any).unwrap(), Some(deadline));
    let got = client.get_with_deadline(b"k", &any).unwrap();
    assert_eq!(
        (&got.bytes[..], got.version, got.deadline),
        (&b"2"[..], put.version, Some(deadline))
    );

    let later = Expiry::After(120_000);
    assert!(client.expire(b"k", later, Precondition::Earlier, &any).is_err());
    client.expire(b"k", later, Precondition::Later, &any).unwrap();
    assert!(client.deadline(b"k", &any).unwrap() > Some(deadline));
    let got = client.get_and_expire(b"k", Expiry::After(1_000), &any).unwrap();
    assert_eq!(got.bytes, b"2");
    assert!(got.deadline < Some(deadline));
    assert!(client.persist(b"k", &any).unwrap());
    assert!(!client.persist(b"k", &any).unwrap());
    assert_eq!(client.deadline(b"k", &any).unwrap(), None);
    assert!(matches!(client.deadline(b"none", &any), Err(Error::NotFound { .. })));

    let error = client.delete_if(b"k", Precondition::Value(b"3"), &any).unwrap_err();
    assert!(matches!(error, Error::Conflict { value: None, .. }), "{error}");
    client.delete_if(b"k", Precondition::Value(b"2"), &any).unwrap();
    let [from, to] = &neighbours(2)[..] else { unreachable!() };
    client.put(from, b"v", &any).unwrap();
    client.copy(from, to, &any).unwrap();
    client.put(from, b"w", &any).unwrap();
    client.rename(from, to, &any).unwrap();
    assert_eq!(client.get(to, &any).unwrap().bytes, b"w");
    assert!(matches!(client.rename(from, to, &any), Err(Error::NotFound { .. })));
}

#[test]
fn a_part_may_count_from_the_end() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"0123456789", &anytime()).unwrap();
    for (from, most, expected) in
        [(3, 2, "78"), (3, 9, "789"), (20, 2, "01"), (20, 99, "0123456789")]
    {
        let part = Some(Part { from_end: true, ..Part::new(from, most) });
        let read = Op::Read { key: b"k", part, landing: kv_client::Landing::Memory };
        let got = client.call(read, &anytime(), |reply| (reply.value.to_vec(), reply.length));
        assert_eq!(got.unwrap(), (expected.as_bytes().to_vec(), 10));
    }
}

#[test]
fn a_condition_that_does_not_hold_returns_the_current_value_if_it_is_requested() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let version = client.put(b"k", b"1", &anytime()).unwrap().version;
    let put = Update { condition: Precondition::Absent, ..Update::new(Action::Put(b"2")) };
    for returns_value in [false, true] {
        let update = Update { returns_value, ..put };
        match client.update(b"k", &update, &anytime()).unwrap_err() {
            Error::Conflict { version: found, value, .. } => {
                assert_eq!(found, version);
                assert_eq!(value.as_deref(), returns_value.then_some(&b"1"[..]));
            }
            error => panic!("{error}"),
        }
    }
}

#[test]
fn a_batch_is_encoded_as_one_request_and_has_a_result_for_each_update() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let keys = neighbours(3);
    let at = |key: usize, action| Update { key: Some(&keys[key]), ..Update::new(action) };
    let updates = [
        Update { returns_value: true, ..Update::new(Action::Put(b"a")) },
        at(1, Action::Add(3)),
        at(2, Action::Delete),
        Update { is_optional: true, condition: Precondition::Present, ..at(2, Action::Put(b"b")) },
        Update { returns_value: true, ..at(1, Action::Check) },
    ];
    let batch = client.batch(&keys[0], &updates, &anytime()).unwrap();
    let results = batch.results.iter().map(|result| (result.status, result.value.as_deref()));
    let expected = [
        (Status::Ok, None),
        (Status::Ok, Some(&b"3"[..])),
        (Status::NotFound, None),
        (Status::Conflict, None),
        (Status::Ok, Some(b"3")),
    ];
    assert_eq!(results.collect::<Vec<_>>(), expected);
    assert_eq!(batch.copies, 2);
    let sent = writes(&fake);
    assert_eq!((sent.len(), sent[0].opcode), (1, opcode::UPDATE));
    assert_eq!(sent[0].updates, encoded(&updates));
    // A batch of one update has the same form.
    let one = client.batch(&keys[1], &[Update::new(Action::Add(1))], &anytime()).unwrap();
    assert_eq!(one.results[0].value.as_deref(), Some(&b"4"[..]));
}

#[test]
fn an_error_of_a_batch_names_the_update_that_failed() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let keys = neighbours(2);
    client.put(&keys[1], b"text", &anytime()).unwrap();
    let near = std::str::from_utf8(&keys[1]).unwrap();
    let fine = Update::new(Action::Put(b"v"));
    let other = |action| Update { key: Some(&keys[1]), ..Update::new(action) };
    for (update, verb) in [
        (other(Action::Add(1)), "add to"),
        (Update { condition: Precondition::Absent, ..other(Action::Check) }, "check"),
        (other(Action::SetRange { offset: 16 << 20, bytes: b"" }), "no error"),
    ] {
        let ended = client.batch(&keys[0], &[fine, update], &anytime());
        if verb == "no error" {
            ended.unwrap();
            continue;
        }
        let text = ended.unwrap_err().to_string();
        assert!(text.starts_with(&format!("{verb} \"{near}\" (update 2 of 2): ")), "{text}");
        assert!(matches!(client.get(&keys[0], &anytime()), Err(Error::NotFound { .. })));
    }
    client.put(&keys[1], i64::MAX.to_string().as_bytes(), &anytime()).unwrap();
    let error = client.add(&keys[1], 1, &anytime()).unwrap_err();
    assert!(matches!(error, Error::Overflow { .. }), "{error}");
    client.put(&keys[1], &vec![b'v'; 16 << 20], &anytime()).unwrap();
    let error = client.append(&keys[1], b"v", &anytime()).unwrap_err();
    assert!(matches!(error, Error::TooBig { .. }), "{error}");
    assert!(error.to_string().contains("the value would be longer than 16 MiB"), "{error}");
    let error = client.batch(&keys[0], &[fine, other(Action::Append(b"v"))], &anytime());
    let Err(Error::TooBig { action, reason }) = error else { panic!("{error:?}") };
    assert_eq!(action.index_in_batch(), Some(1));
    for words in ["a value has at most 16 MiB", "have 16 MiB + 256 KiB", "the results have 16 MiB"]
    {
        assert!(reason.contains(words), "{reason}");
    }
}

#[test]
fn a_retry_has_the_same_frame_and_gets_the_value_of_the_first_execution() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(first(Act::ServeThenCut));
    assert_eq!(client.add(b"n", 1, &anytime()).unwrap(), 1);
    let sent = writes(&fake);
    assert_eq!((sent.len(), &sent[0]), (2, &sent[1]));
    assert_eq!(sent[0].hash, Some(hash_of(b"n", &[Update::new(Action::Add(1))])));
    assert_eq!(client.get(b"n", &anytime()).unwrap().bytes, b"1");
}

#[test]
fn an_update_in_doubt_is_settled_with_its_value_or_never_done() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"n", b"41", &anytime()).unwrap();
    let update = Update::new(Action::Add(1));
    ignore_updates(&fake, true);
    let doubt = doubt_of(client.update(b"n", &update, &within(SOON)).unwrap_err());
    for _ in 0..2 {
        let updated = client.resolve_update(&doubt, &anytime()).unwrap();
        assert_eq!((updated.value.as_deref(), updated.copies), (Some(&b"42"[..]), 2));
    }
    let resolve = writes(&fake).pop().unwrap();
    assert_eq!((resolve.opcode, resolve.hash), (opcode::RESOLVE, Some(hash_of(b"n", &[update]))));
    ignore_updates(&fake, false);
    let doubt = doubt_of(client.update(b"n", &update, &within(SOON)).unwrap_err());
    let error = client.resolve_update(&doubt, &anytime()).unwrap_err();
    assert!(matches!(error, Error::NotDone { .. }), "{error}");
    assert_eq!(client.get(b"n", &anytime()).unwrap().bytes, b"42");
}

#[test]
fn a_batch_in_doubt_is_settled_with_its_results_or_the_update_that_failed() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let keys = neighbours(2);
    let other = Update { key: Some(&keys[1]), ..Update::new(Action::Add(2)) };
    let updates = [Update::new(Action::Put(b"v")), other];
    ignore_updates(&fake, true);
    let doubt = doubt_of(client.batch(&keys[0], &updates, &within(SOON)).unwrap_err());
    let value = client.resolve_update(&doubt, &anytime()).unwrap().value.unwrap();
    let results = UpdateResult::read_all(&value).unwrap();
    assert_eq!(results[1].value, Some(&b"2"[..]));
    let updates = [Update { condition: Precondition::Absent, ..other }, other];
    let doubt = doubt_of(client.batch(&keys[0], &updates, &within(SOON)).unwrap_err());
    for _ in 0..2 {
        match client.resolve_update(&doubt, &anytime()).unwrap_err() {
            Error::Conflict { action, value: None, .. } => {
                assert_eq!(action.index_in_batch(), Some(0));
            }
            error => panic!("{error}"),
        }
    }
}

/// Without this rule, the batch could take effect after the operation.
#[test]
fn operations_on_every_key_of_a_batch_wait_until_the_batch_is_settled() {
    let keys = neighbours(3);
    for is_batch in [false, true] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        let other = |key: usize| Update { key: Some(&keys[key]), ..Update::new(Action::Add(2)) };
        ignore_updates(&fake, false);
        let updates = [Update::new(Action::Put(b"v")), other(1)];
        let doubt = doubt_of(client.batch(&keys[0], &updates, &within(SOON)).unwrap_err());
        fake.script(|_| Act::Serve);
        let before = fake.seen().len();
        if is_batch {
            client.batch(&keys[2], &[other(2), other(1)], &anytime()).unwrap();
            assert_eq!(opcodes(&fake.seen()[before..]), [opcode::RESOLVE, opcode::UPDATE]);
        } else {
            assert!(!client.exists(&keys[1], &anytime()).unwrap());
            assert_eq!(opcodes(&fake.seen()[before..]), [opcode::RESOLVE, opcode::GET]);
        }
        let error = client.resolve(&doubt, &anytime()).unwrap_err();
        assert!(matches!(error, Error::NotDone { .. }), "{error}");
        assert_eq!(client.statistics().unsettled, 0);
    }
}

#[test]
fn a_batch_across_shards_is_rejected_before_it_is_sent() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let (own, foreign) = (key_of(0), key_of(1));
    let put = Update::new(Action::Put(b"v"));
    let updates = [put, Update { key: Some(&foreign), ..put }];
    let text = client.batch(&own, &updates, &anytime()).unwrap_err().to_string();
    for words in [&own, &foreign].map(|key| String::from_utf8_lossy(key).into_owned()) {
        assert!(text.contains(&words), "{text}");
    }
    assert!(text.contains("is in group 0, shard 0") && text.contains("is in group 1"), "{text}");
    let error = client.rename(&own, &foreign, &anytime()).unwrap_err();
    assert!(matches!(error, Error::CrossShard { .. }), "{error}");
    assert_eq!(fake.seen(), []);
    // The server checks too.
    fake.script(first(Act::Response(Status::CrossShard)));
    let error = client.add(&own, 1, &anytime()).unwrap_err();
    assert!(matches!(error, Error::CrossShard { .. }), "{error}");
}

#[test]
fn keys_of_one_hash_tag_go_to_one_server_if_the_map_has_hash_tags() {
    let placement = Placement::new(3, 1).with_hash_tags(true);
    let fake = Fake::start_placing(placement);
    let mut client = open(&fake);
    // By the whole keys, the two are of different groups.
    let keys = [&b"{t}a"[..], b"{t}c"];
    let plain = Placement::new(3, 1);
    assert_ne!(plain.locate(keys[0]), plain.locate(keys[1]));
    for key in keys {
        client.put(key, b"v", &anytime()).unwrap();
    }
    let seen = fake.seen();
    let (group, _) = placement.locate(b"t");
    assert!(seen.iter().all(|seen| seen.server == group.0), "{seen:?}");
    // A request has the digest of the whole key. A server of the fake cluster accepts no other one.
    let updates = keys.map(|key| Update { key: Some(key), ..Update::new(Action::Append(b"w")) });
    client.batch(keys[0], &updates, &anytime()).unwrap();
}

#[test]
fn an_invalid_batch_is_rejected_before_it_is_sent() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let error = client.batch(b"k", &[], &anytime()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let options = OpOptions { condition: Condition::IfAbsent, ..anytime() };
    let error = client.add(b"k", 1, &options).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    let unkeyed = Update { key: Some(b""), ..Update::new(Action::Add(1)) };
    let error = client.update(b"k", &unkeyed, &anytime()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(fake.seen(), []);
}

#[test]
fn a_server_of_version_1_serves_everything_but_updates_and_deadlines() {
    let fake = Fake::start(3, 1);
    fake.support_version(1);
    let mut client = open(&fake);
    client.put(b"k", b"v", &anytime()).unwrap();
    assert_eq!(client.get_part(b"k", (0, 1), &anytime()).unwrap().bytes, b"v");
    let error = client.add(b"k", 1, &anytime()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { version: 1, .. }), "{error}");
    assert!(error.to_string().contains("speaks protocol 1"), "{error}");
    let error = client.get_with_deadline(b"k", &anytime()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(fake.seen().iter().all(|seen| seen.opcode != opcode::UPDATE));
    // The number of the update that was not sent does not hold up later writes.
    client.put(b"k", b"w", &anytime()).unwrap();
    client.put(b"k", b"x", &anytime()).unwrap();
    let last = writes(&fake).pop().unwrap();
    assert_eq!(last.first_incomplete, last.seq);
}

#[test]
fn an_update_that_may_have_been_executed_by_a_newer_server_ends_in_doubt() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.noop(b"k", &anytime()).unwrap();
    fake.support_version(1);
    ignore_updates(&fake, true);
    let error = client.add(b"k", 1, &anytime()).unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    assert!(error.to_string().contains("speaks protocol 1"), "{error}");
}

#[test]
fn a_response_without_a_result_for_each_update_closes_the_connection() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(first(Act::Response(Status::Ok)));
    let add = Update::new(Action::Add(1));
    let batch = client.batch(b"k", &[add, add], &anytime()).unwrap();
    assert_eq!(batch.results.len(), 2);
    assert_eq!(client.statistics().connections_lost, 1);
    assert_eq!(writes(&fake).len(), 2);
}

#[test]
fn a_long_value_of_an_update_is_received_whole() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let value: Vec<u8> = (0..3_u32 << 20).map(|n| n.to_le_bytes()[1]).collect();
    client.put(b"k", &value, &anytime()).unwrap();
    assert!(client.take(b"k", &anytime()).unwrap().bytes == value);
}

#[test]
fn threads_of_a_shared_client_update_and_settle_batches() {
    let fake = Fake::start(3, 1);
    let endpoints = Endpoints::resolve(&fake.endpoint(), &Log::default()).unwrap();
    let client = SharedClient::with_endpoints(&endpoints, &Options::default(), 1).unwrap();
    let keys = neighbours(2);
    let add = Update::new(Action::Add(2));
    let both = [add, Update { key: Some(&keys[1]), ..add }];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| client.update_all(&keys[0], &both, &anytime()).unwrap());
        }
    });
    let updated = client.update(&keys[1], &add, &anytime()).unwrap();
    assert_eq!(updated.value.as_deref(), Some(&b"10"[..]));
    ignore_updates(&fake, false);
    let doubt = doubt_of(client.update_all(&keys[0], &both, &within(SOON)).unwrap_err());
    assert!(matches!(client.resolve(&doubt, &anytime()), Err(Error::NotDone { .. })));
}
