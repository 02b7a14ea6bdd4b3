//! Tests of writes that end in doubt: they are settled, and take no effect afterwards.

mod common;

use std::time::Duration;

use common::{Act, Fake, SOON, Seen, anytime, key_of, open, within, writes};
use kv_client::{Doubt, Error, Op, SharedClient};
use kv_protocol::client_message::{Status, opcode};

/// Sets a script that never responds to writes, whether or not it executes them.
fn ignore_writes(fake: &Fake, are_done: bool) {
    fake.script(move |seen| match seen.opcode {
        opcode::PUT | opcode::DELETE if are_done => Act::ServeThenCut,
        opcode::PUT | opcode::DELETE => Act::Ignore,
        _ => Act::Serve,
    });
}

fn doubt_of(error: Error) -> Doubt {
    match error {
        Error::InDoubt { doubt: Some(doubt), .. } => doubt,
        error => panic!("{error}"),
    }
}

fn opcodes(seen: &[Seen]) -> Vec<u8> {
    seen.iter().map(|seen| seen.opcode).collect()
}

#[test]
fn a_write_that_was_not_executed_is_settled_for_ever_by_one_request() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    ignore_writes(&fake, false);
    let doubt = doubt_of(client.put(b"k", b"v", &within(SOON)).unwrap_err());
    let error = client.resolve(&doubt, &anytime()).unwrap_err();
    assert!(matches!(error, Error::NotDone { .. }), "{error}");
    let sent = writes(&fake);
    let (put, resolve) = (&sent[0], sent.last().unwrap());
    assert_eq!(
        (resolve.opcode, resolve.client, resolve.seq),
        (opcode::RESOLVE, put.client, put.seq)
    );
    assert_eq!(resolve.first_incomplete, put.seq, "its number is open until it is settled");
    let error = client.resolve(&doubt, &anytime()).unwrap_err();
    assert!(matches!(error, Error::NotDone { .. }), "{error}");
    assert_eq!(writes(&fake).len(), sent.len(), "the second one sends no request");
    fake.script(|_| Act::Serve);
    client.put(b"k", b"w", &anytime()).unwrap();
    let after = writes(&fake).pop().unwrap();
    assert_eq!((after.seq, after.first_incomplete), (put.seq + 1, put.seq + 1));
    assert_eq!(fake.executed().len(), 1);
}

#[test]
fn a_write_that_was_executed_is_settled_with_the_version_and_copies_of_its_response() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    // The write is executed, but no server ever responds to it.
    let mut is_first = true;
    fake.script(move |seen| match seen.opcode {
        opcode::PUT if std::mem::take(&mut is_first) => Act::ServeThenCut,
        opcode::PUT => Act::Ignore,
        _ => Act::Serve,
    });
    let doubt = doubt_of(client.put(b"k", b"v", &within(SOON)).unwrap_err());
    let written = client.resolve(&doubt, &anytime()).unwrap();
    assert_eq!(written.copies, 2);
    assert_eq!(client.get(b"k", &anytime()).unwrap().version, written.version);
}

#[test]
fn any_client_of_the_cluster_may_resolve_a_write() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    ignore_writes(&fake, false);
    let doubt = doubt_of(client.put(b"k", b"v", &within(SOON)).unwrap_err());
    let mut other = open(&fake);
    let error = other.resolve(&doubt, &anytime()).unwrap_err();
    assert!(matches!(error, Error::NotDone { .. }), "{error}");
    let elsewhere = Fake::start(3, 1);
    elsewhere.change_map(|map| map.cluster = kv_protocol::ids::ClusterId(77));
    let fresh = doubt_of(client.put(b"k2", b"v", &within(SOON)).unwrap_err());
    let error = open(&elsewhere).resolve(&fresh, &anytime()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
}

/// Without this rule, the write could take effect after the read.
#[test]
fn the_next_operation_on_the_key_is_sent_when_the_write_is_settled() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    ignore_writes(&fake, false);
    let doubt = doubt_of(client.put(b"k", b"v", &within(SOON)).unwrap_err());
    let before = fake.seen().len();
    // An operation on another key of the same place does not wait.
    let other = (0..).map(|n| format!("other-{n}").into_bytes()).find(|key| {
        kv_protocol::placement::Placement::new(3, 1).locate(key)
            == kv_protocol::placement::Placement::new(3, 1).locate(b"k")
    });
    assert!(matches!(client.get(&other.unwrap(), &anytime()), Err(Error::NotFound { .. })));
    assert!(matches!(client.get(b"k", &anytime()), Err(Error::NotFound { .. })));
    assert_eq!(opcodes(&fake.seen()[before..]), [opcode::GET, opcode::RESOLVE, opcode::GET]);
    assert!(matches!(client.resolve(&doubt, &anytime()), Err(Error::NotDone { .. })));
    assert_eq!(fake.seen().len(), before + 3, "it is settled already");
}

#[test]
fn an_operation_behind_a_write_that_cannot_be_settled_ends_at_its_deadline() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(|seen| if seen.seq > 0 { Act::Ignore } else { Act::Serve });
    let doubt = doubt_of(client.put(b"k", b"v", &within(SOON)).unwrap_err());
    let error = client.get(b"k", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("in doubt"), "{error}");
    let error = client.resolve(&doubt, &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. } | Error::Unavailable { .. }), "{error}");
    fake.script(|_| Act::Serve);
    assert!(matches!(client.get(b"k", &anytime()), Err(Error::NotFound { .. })));
}

#[test]
fn writes_in_doubt_that_fill_the_window_are_settled_by_the_next_write() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let place = kv_protocol::placement::Placement::new(3, 1);
    let keys = (0..).map(|n| format!("key-{n}").into_bytes());
    let keys = keys.filter(|key| place.locate(key).0.0 == 0);
    let keys: Vec<Vec<u8>> = keys.take(65).collect();
    ignore_writes(&fake, false);
    for (tag, key) in (0..).zip(&keys[..64]) {
        client.submit(Op::Put { key, value: b"v" }, &within(SOON), tag).unwrap();
    }
    let mut done = Vec::new();
    while done.len() < 64 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    let before = fake.seen().len();
    fake.script(|_| Act::Serve);
    client.put(&keys[64], b"w", &anytime()).unwrap();
    let seen = opcodes(&fake.seen()[before..]);
    assert!(seen.iter().filter(|&&opcode| opcode == opcode::RESOLVE).count() >= 1, "{seen:?}");
    assert_eq!(fake.executed().len(), 1);
    for completion in done {
        let doubt = doubt_of(completion.result.unwrap_err());
        assert!(matches!(client.resolve(&doubt, &anytime()), Err(Error::NotDone { .. })));
    }
}

#[test]
fn a_write_of_an_expired_session_stays_in_doubt_and_is_not_resolved_again() {
    for response in [Status::SessionExpired, Status::SessionMismatch] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        ignore_writes(&fake, false);
        let doubt = doubt_of(client.put(b"k", b"v", &within(SOON)).unwrap_err());
        fake.script(move |seen| match seen.opcode {
            opcode::RESOLVE => Act::Response(response),
            _ => Act::Serve,
        });
        for _ in 0..2 {
            let error = client.resolve(&doubt, &anytime()).unwrap_err();
            assert!(matches!(error, Error::InDoubt { doubt: None, .. }), "{error}");
        }
        assert!(matches!(client.get(b"k", &anytime()), Err(Error::NotFound { .. })));
    }
}

#[test]
fn threads_of_a_shared_client_settle_each_other_s_writes() {
    let fake = Fake::start(3, 1);
    let endpoints =
        kv_client::Endpoints::resolve(&fake.endpoint(), &kv_client::Log::default()).unwrap();
    let client =
        SharedClient::with_endpoints(&endpoints, &kv_client::Options::default(), 1).unwrap();
    let key = key_of(0);
    ignore_writes(&fake, false);
    let doubt = doubt_of(client.put(&key, b"v", &within(SOON)).unwrap_err());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let got = client.call(Op::Get { key: &key }, &anytime(), |_| ());
            assert!(matches!(got, Err(Error::NotFound { .. })), "{got:?}");
        });
    });
    let before = fake.seen().len();
    assert!(matches!(client.resolve(&doubt, &anytime()), Err(Error::NotDone { .. })));
    assert_eq!(fake.seen().len(), before);
}
