//! Tests of the library's guarantees, on a cluster with injected faults.

mod common;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use common::{Act, Fake, SOON, anytime, first, key_of, open, within, writes};
use kv_client::{
    Client, Completion, Condition, Error, Op, OpOptions, Options, ReplicaRole, SubmitError,
};
use kv_protocol::client_message::{Status, opcode};
use kv_protocol::ids::{ClusterId, Incarnation, ViewVersion};
use kv_protocol::limits::DEFAULT_DEADLINE;
use kv_protocol::map::{Map, ServerState};
use kv_protocol::placement::Placement;
use kv_protocol::view::Peer;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[test]
fn put_get_compare_and_set_and_delete_work_in_sequence() {
    let fake = Fake::start(3, 2);
    let mut client = open(&fake);
    for n in 0..50 {
        let key = format!("key {n}").into_bytes();
        let written = client.put(&key, &[n; 100], &anytime()).unwrap();
        assert_eq!(written.copies, 2);
        let value = client.get(&key, &anytime()).unwrap();
        assert_eq!((value.bytes, value.version), (vec![n; 100], written.version));
        for replica in [ReplicaRole::Primary, ReplicaRole::Secondary] {
            let found = client.verify(&key, replica, &anytime()).unwrap().unwrap();
            assert_eq!(found.bytes, [n; 100]);
        }
        client.noop(&key, &anytime()).unwrap();
        client.delete(&key, &anytime()).unwrap();
        assert!(matches!(client.get(&key, &anytime()), Err(Error::NotFound { .. })));
        assert!(matches!(client.delete(&key, &anytime()), Err(Error::NotFound { .. })));
    }
    assert_eq!(fake.maps_served(), 1, "the map is fetched once, at the first operation");
}

#[test]
fn nothing_is_connected_before_the_first_operation() {
    let client = Client::open("127.0.0.1:1", Options::default()).unwrap();
    assert_eq!(client.coordinators(), "127.0.0.1:1");
}

#[test]
fn a_value_of_sixteen_mebibytes_is_stored_and_one_byte_more_is_rejected() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let value: Vec<u8> = (0..16 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
    client.put(b"big", &value, &anytime()).unwrap();
    let mut buffer = Vec::new();
    client.get_into(b"big", &mut buffer, &anytime()).unwrap();
    assert!(buffer == value, "another value came back");
    let error = client.put(b"big", &vec![0; (16 << 20) + 1], &anytime()).unwrap_err();
    assert!(matches!(error, Error::TooBig { .. }), "{error}");
    let error = client.get(&[b'k'; 65_536], &anytime()).unwrap_err();
    assert!(matches!(error, Error::TooBig { .. }), "{error}");
    assert!(matches!(client.get(b"", &anytime()), Err(Error::Invalid { .. })));
}

#[test]
fn a_conditional_write_conflicts_with_the_version_found() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let absent = OpOptions { condition: Condition::IfAbsent, ..anytime() };
    let first = client.put(b"k", b"1", &absent).unwrap();
    let error = client.put(b"k", b"2", &absent).unwrap_err();
    assert!(
        matches!(error, Error::Conflict { version, .. } if version == first.version),
        "{error}"
    );
    let same = OpOptions { condition: Condition::IfVersion(first.version), ..anytime() };
    client.put(b"k", b"3", &same).unwrap();
    assert_eq!(client.get(b"k", &anytime()).unwrap().bytes, b"3");
}

#[test]
fn a_write_whose_response_is_cut_off_is_retried_under_its_number_and_executed_once() {
    for act in [Act::ServeThenCut, Act::Cut] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        fake.script(first(act));
        client.put(b"k", b"v", &anytime()).unwrap();
        let sent = writes(&fake);
        assert_eq!(sent.len(), 2);
        assert_eq!((sent[0].client, sent[0].seq), (sent[1].client, sent[1].seq));
        assert_eq!(fake.executed(), [(b"k".to_vec(), b"v".to_vec())]);
        assert_eq!(client.statistics().connections_lost, 1);
    }
}

#[test]
fn many_writes_survive_many_cuts_and_each_is_executed_once() {
    let fake = Fake::start(3, 2);
    let mut client = open(&fake);
    let mut count = 0;
    fake.script(move |_| {
        count += 1;
        match count % 41 {
            0 => Act::ServeThenCut,
            20 => Act::Cut,
            30 => Act::Response(Status::Unavailable),
            _ => Act::Serve,
        }
    });
    let mut done = Vec::new();
    for n in 0..500u64 {
        let (key, value) = (format!("k{n}"), n.to_string());
        let op = Op::Put { key: key.as_bytes(), value: value.as_bytes() };
        client.submit(op, &anytime(), n).unwrap();
    }
    while client.in_flight() > 0 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert_eq!(done.len(), 500);
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    let executed = fake.executed();
    let keys: HashSet<_> = executed.iter().map(|(key, _)| key).collect();
    assert_eq!((executed.len(), keys.len()), (500, 500));
}

#[test]
fn no_session_has_more_than_sixty_four_writes_in_flight() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    // The map is fetched first, so that the operations are sent in their order.
    client.noop(&key, &anytime()).unwrap();
    // The first sixty-four writes get no response, so a sixty-fifth transmission would be visible.
    fake.script(|_| Act::Ignore);
    for tag in 0..200 {
        // The waiting writes have the shorter deadline, so none of them gets the number of a write that has ended.
        let deadline = if tag < 64 { 2 * SOON } else { SOON };
        client.submit(Op::Put { key: &key, value: b"" }, &within(deadline), tag).unwrap();
    }
    let mut done = Vec::new();
    while writes(&fake).len() < 64 {
        client.poll(Duration::from_millis(1), &mut done).unwrap();
    }
    client.poll(Duration::from_millis(50), &mut done).unwrap();
    assert_eq!(writes(&fake).len(), 64);
    while client.in_flight() > 0 {
        client.poll(SOON, &mut done).unwrap();
    }
    let doubtful = |c: &&Completion| matches!(c.result, Err(Error::InDoubt { .. }));
    let unsent = |c: &&Completion| matches!(c.result, Err(Error::Unavailable { .. }));
    assert_eq!(done.iter().filter(doubtful).count(), 64);
    assert_eq!(done.iter().filter(unsent).count(), 136, "{:?}", done.last());
    // The first incomplete number of the next write shows that the writes in doubt have ended for the session.
    fake.script(|_| Act::Serve);
    client.put(&key, b"v", &anytime()).unwrap();
    assert!(writes(&fake).iter().any(|seen| seen.seq == 65 && seen.first_incomplete == 65));
}

#[test]
fn responses_in_any_order_reach_their_operations() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"v", &anytime()).unwrap();
    let absent: Vec<u8> = (0..)
        .map(|n| format!("absent-{n}").into_bytes())
        .find(|key| Placement::new(3, 1).locate(key).0.0 == 0)
        .unwrap();
    let held = absent.clone();
    fake.script(move |seen| if seen.key == held { Act::ResponseLater } else { Act::Serve });
    client.submit(Op::Get { key: &absent }, &anytime(), 1).unwrap();
    client.submit(Op::Get { key: &key }, &anytime(), 2).unwrap();
    let mut done = Vec::new();
    while done.len() < 2 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    let by_tag: HashMap<u64, _> = done.into_iter().map(|c| (c.tag, c.result)).collect();
    assert_eq!(by_tag[&2].as_ref().unwrap().value, b"v");
    assert!(matches!(by_tag[&1], Err(Error::NotFound { .. })));
}

#[test]
fn submit_is_bounded_by_the_window() {
    let fake = Fake::start(3, 1);
    let options = Options { window: 3, ..Options::default() };
    let mut client = Client::open(&fake.endpoint(), options).unwrap();
    for tag in 0..3 {
        client.submit(Op::Get { key: b"k" }, &anytime(), tag).unwrap();
    }
    let full = client.submit(Op::Get { key: b"k" }, &anytime(), 3);
    assert!(matches!(full, Err(SubmitError::Full { operations: 3, .. })), "{full:?}");
    let mut done = Vec::new();
    while client.in_flight() > 0 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    client.submit(Op::Get { key: b"k" }, &anytime(), 3).unwrap();
}

#[test]
fn submit_is_bounded_by_the_bytes_in_flight() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let value = vec![0; 16 << 20];
    let put = Op::Put { key: b"k", value: &value };
    for tag in 0..3 {
        client.submit(put, &anytime(), tag).unwrap();
    }
    // The fourth operation would exceed the limit, because the keys count in addition to 64 MiB of values.
    let full = client.submit(put, &anytime(), 3);
    let held = 3 * (value.len() + 1);
    assert!(
        matches!(full, Err(SubmitError::Full { operations: 3, bytes }) if bytes == held),
        "{full:?}"
    );
    client.submit(Op::Get { key: b"k" }, &anytime(), 3).unwrap();
    let mut done = Vec::new();
    while client.in_flight() > 0 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    client.submit(put, &anytime(), 4).unwrap();
}

#[test]
fn a_write_is_unavailable_and_not_in_doubt_if_its_server_died_before_it_was_sent() {
    let mut fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(1);
    client.put(&key, b"v", &anytime()).unwrap();
    fake.kill(1);
    fake.change_map(|map| map.servers[1].state = ServerState::Down);
    let start = Instant::now();
    let error = client.put(&key, b"w", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("reports server 1 as down"), "{error}");
    let error = client.get(&key, &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(start.elapsed() >= 2 * SOON && start.elapsed() < 4 * SOON);
    assert!(client.statistics().connections_lost > 0);
    // Other groups are still served.
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    client.put(&key_of(2), b"v", &anytime()).unwrap();
}

#[test]
fn a_write_is_in_doubt_if_its_server_died_after_it_was_sent() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(|_| Act::Cut);
    let error = client.put(b"k", b"v", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    let error = client.get(b"k", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[test]
fn a_silent_server_times_a_read_out_and_leaves_a_write_in_doubt() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(|_| Act::Ignore);
    let error = client.get(b"k", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let error = client.put(b"k", b"v", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    assert!(fake.maps_served() >= 4, "the map is requested after 150 ms, then every 100 ms");
}

#[test]
fn a_waiting_write_follows_a_newer_view_under_the_same_number() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    fake.script(|seen| if seen.server == 0 { Act::Ignore } else { Act::Serve });
    client.submit(Op::Put { key: &key, value: b"v" }, &anytime(), 7).unwrap();
    let mut done = Vec::new();
    while fake.seen().is_empty() {
        client.poll(Duration::from_millis(1), &mut done).unwrap();
    }
    fake.promote(0, 1);
    let start = Instant::now();
    while done.is_empty() {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert!(start.elapsed() < Duration::from_millis(1_000), "{:?}", start.elapsed());
    assert!(done[0].result.is_ok(), "{done:?}");
    let sent = writes(&fake);
    assert_eq!(sent.iter().map(|seen| seen.server).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((sent[0].client, sent[0].seq), (sent[1].client, sent[1].seq));
    assert_eq!(sent[1].view, ViewVersion(2));
}

#[test]
fn wrong_view_makes_the_client_fetch_the_map_and_follow_it() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"v", &anytime()).unwrap();
    fake.promote(0, 2);
    client.put(&key, b"w", &anytime()).unwrap();
    let sent = writes(&fake);
    // How often the old server is tried before the map arrives depends on timing.
    let mut servers: Vec<u16> = sent.iter().map(|seen| seen.server).collect();
    servers.dedup();
    assert_eq!(servers, [0, 2]);
    assert!(sent[1..].iter().all(|seen| seen.seq == 2), "{sent:?}");
}

#[test]
fn an_older_map_never_sends_the_client_back() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    fake.promote(0, 2);
    client.put(&key, b"v", &anytime()).unwrap();
    // The map has view 1 on server 0 again, and a failure in another group makes the client fetch it.
    fake.change_map(|map| map.views[0].version = ViewVersion(1));
    fake.script(first(Act::Response(Status::WrongView)));
    let deadline = Instant::now() + Duration::from_secs(10);
    while fake.maps_served() < 2 {
        assert!(Instant::now() < deadline, "the map is not fetched again");
        client.get(&key_of(1), &anytime()).unwrap_err();
    }
    client.put(&key, b"w", &anytime()).unwrap();
    assert!(writes(&fake).iter().all(|seen| seen.server == 2));
}

#[test]
fn an_expired_session_is_replaced_if_the_write_cannot_have_been_executed() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    fake.forget_sessions();
    client.put(b"k", b"2", &anytime()).unwrap();
    client.put(b"k", b"3", &anytime()).unwrap();
    let sent = writes(&fake);
    assert_eq!(sent.iter().map(|seen| seen.seq).collect::<Vec<_>>(), [1, 2, 1, 2]);
    assert_ne!(sent[1].client, sent[2].client);
    assert_eq!(fake.executed().len(), 3);
}

#[test]
fn a_retry_whose_session_has_expired_is_in_doubt() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    let mut count = 0;
    fake.script(move |_| {
        count += 1;
        if count == 1 { Act::Cut } else { Act::Response(Status::SessionExpired) }
    });
    let error = client.put(b"k", b"2", &anytime()).unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    assert_eq!(writes(&fake).len(), 3, "it is not executed as a new write");
}

#[test]
fn final_statuses_end_the_operation_at_once() {
    for (status, is_right) in [
        (Status::OutOfSpace, (|e| matches!(e, Error::OutOfSpace { .. })) as fn(&Error) -> bool),
        (Status::TooBig, |e| matches!(e, Error::TooBig { .. })),
        (Status::Invalid, |e| matches!(e, Error::Invalid { .. })),
        (Status::Unsupported, |e| matches!(e, Error::Protocol { .. })),
        // After a write was sent, only a completion record is definite.
        (Status::Lost, |e| matches!(e, Error::InDoubt { .. })),
    ] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        fake.script(move |_| Act::Response(status));
        let error = client.put(b"k", b"v", &anytime()).unwrap_err();
        assert!(is_right(&error), "{status:?}: {error:?}");
        assert_eq!(fake.seen().len(), 1);
        assert!(error.to_string().contains("on purpose"), "the server's reason: {error}");
        assert!(error.to_string().contains(&format!("{status}: ")), "the wire name: {error}");
    }
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(|_| Act::Response(Status::Lost));
    assert!(matches!(client.get(b"k", &anytime()), Err(Error::Lost { .. })));
}

#[test]
fn an_operation_on_a_group_that_the_map_reports_lost_ends_at_once() {
    let fake = Fake::start(3, 1);
    fake.change_map(|map| {
        map.views[1].primary = None;
        map.views[1].peer = Peer::None;
    });
    let mut client = open(&fake);
    assert!(matches!(client.get(&key_of(1), &anytime()), Err(Error::Lost { .. })));
    assert!(matches!(client.put(&key_of(1), b"", &anytime()), Err(Error::Lost { .. })));
    client.put(&key_of(0), b"v", &anytime()).unwrap();
}

#[test]
fn a_busy_server_is_retried_and_named_at_the_deadline() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(first(Act::Response(Status::Busy)));
    client.put(b"k", b"v", &anytime()).unwrap();
    fake.script(|_| Act::Response(Status::Busy));
    let error = client.put(b"k", b"v", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "nothing was done: {error}");
}

#[test]
fn invalid_bytes_from_a_server_cause_no_panic_and_no_call_past_its_deadline() {
    let header = |length: u32, opcode: u8| {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([1, opcode, 0, 0]);
        bytes
    };
    let mut unknown_id = header(28, opcode::RESPONSE);
    unknown_id.extend([0xff; 8]);
    unknown_id.extend([0; 20]);
    let mut bad_status = header(28, opcode::RESPONSE);
    bad_status.extend([0xee; 28]);
    for nonsense in [
        header(u32::MAX, opcode::RESPONSE),
        header(0, opcode::RESPONSE),
        header(0, 0xff),
        header(0, opcode::WELCOME),
        header(0, opcode::MAP_RESPONSE),
        header(1, opcode::ERROR),
        unknown_id,
        bad_status,
        vec![0xff; 4_096],
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
    ] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        let sent = nonsense.clone();
        fake.script(move |_| Act::Send(sent.clone()));
        let start = Instant::now();
        let error = client.put(b"k", b"v", &within(Duration::from_millis(80))).unwrap_err();
        assert!(matches!(error, Error::InDoubt { .. }), "{nonsense:02x?}: {error}");
        assert!(start.elapsed() < Duration::from_secs(2));
        let error = client.get(b"k", &within(Duration::from_millis(80))).unwrap_err();
        // An incomplete frame counts as silence.
        let is_right = matches!(error, Error::Unavailable { .. } | Error::Timeout { .. });
        assert!(is_right, "{nonsense:02x?}: {error}");
        // The client recovers as soon as the server does. A read detects this and leaves no write in doubt.
        fake.script(|_| Act::Serve);
        client.get(b"k", &anytime()).unwrap_err();
        client.put(b"k", b"w", &anytime()).unwrap();
    }
}

#[test]
fn a_response_that_does_not_fit_the_request_closes_the_connection() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(first(Act::Response(Status::Conflict)));
    let error = client.get(b"k", &anytime()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "requested again: {error}");
    assert_eq!((fake.seen().len(), client.statistics().connections_lost), (2, 1));
}

#[test]
fn a_foreign_process_at_a_servers_address_receives_no_requests() {
    let fake = Fake::start(3, 1);
    fake.change_map(|map| {
        map.servers[0].incarnation = Incarnation(5);
        map.views[0].primary.as_mut().unwrap().incarnation = Incarnation(5);
    });
    let mut client = open(&fake);
    let error = client.put(&key_of(0), b"v", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(fake.seen().is_empty());
}

#[test]
fn another_cluster_at_the_coordinators_address_is_rejected_with_a_reason() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    fake.change_map(|map| map.cluster = ClusterId(0xbad));
    fake.cut(0);
    let error = client.get(&key_of(0), &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::OtherCluster { .. }), "{error}");
    assert!(error.to_string().contains("cluster"), "{error}");
}

#[test]
fn the_error_names_an_unreachable_coordinator_and_suggests_a_check() {
    let mut fake = Fake::start(3, 1);
    fake.kill_coordinator();
    let endpoint = fake.endpoint();
    let mut client = open(&fake);
    let error = client.get(b"k", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&endpoint) && text.contains("is the coordinator running at"), "{text}");
}

#[test]
fn the_second_coordinator_is_asked_when_the_first_does_not_respond() {
    let mut dead = Fake::start(3, 1);
    dead.kill_coordinator();
    let fake = Fake::start(3, 1);
    let endpoints = format!("{},{}", dead.endpoint(), fake.endpoint());
    let mut client = Client::open(&endpoints, Options::default()).unwrap();
    client.put(b"k", b"v", &anytime()).unwrap();
}

#[test]
fn a_server_that_is_an_endpoint_provides_the_map_too() {
    let mut fake = Fake::start(3, 1);
    fake.kill_coordinator();
    let address = fake.server(1);
    let mut client = Client::open(&address.to_string(), Options::default()).unwrap();
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    assert_eq!(fake.maps_of_servers().first(), Some(&1));
}

#[test]
fn a_server_without_a_map_is_skipped() {
    let mut fake = Fake::start(3, 1);
    fake.kill_coordinator();
    fake.withhold_map(1);
    let endpoints = format!("{},{}", fake.server(1), fake.server(2));
    let mut client = Client::open(&endpoints, Options::default()).unwrap();
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    assert_eq!(fake.maps_of_servers().first(), Some(&2));
}

#[test]
fn without_a_coordinator_the_map_comes_from_another_server_than_the_unavailable_one() {
    let mut fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(&key_of(0), b"before", &anytime()).unwrap();
    assert!(fake.maps_of_servers().is_empty(), "the coordinator was up");
    fake.kill_coordinator();
    // Server 0 is partitioned from the others and has not received its exclusion from the view.
    fake.script(|seen| match seen.server {
        0 => Act::Response(Status::Unavailable),
        _ => Act::Serve,
    });
    fake.withhold_map(0);
    fake.promote(0, 1);
    client.put(&key_of(0), b"after", &anytime()).unwrap();
    assert_eq!(fake.maps_of_servers().first(), Some(&1));
    assert_eq!(fake.seen().last().unwrap().server, 1);
}

#[test]
fn a_silent_coordinator_delays_one_request_for_the_map_and_not_every_one() {
    let fake = Fake::start(3, 1);
    let options = Options { connect_timeout: Duration::from_millis(300), ..Options::default() };
    let mut client = Client::open(&fake.endpoint(), options).unwrap();
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    fake.mute_coordinator(true);
    for server in [1, 2, 0] {
        fake.promote(0, server);
        fake.script(move |seen| match seen.server == server {
            true => Act::Serve,
            false => Act::Response(Status::WrongView),
        });
        client.put(&key_of(0), b"v", &within(Duration::from_millis(550))).unwrap();
    }
    assert!(fake.maps_of_servers().len() >= 3);
}

#[test]
fn an_operation_waits_for_a_cluster_that_is_starting() {
    let fake = Fake::start(3, 1);
    let mut ready = None;
    fake.change_map(|map| {
        ready = Some(map.clone());
        for view in &mut map.views {
            view.version = ViewVersion(0);
            view.primary = None;
            view.peer = Peer::None;
        }
    });
    let mut client = open(&fake);
    let error = client.put(b"k", b"v", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    client.submit(Op::Put { key: b"k", value: b"v" }, &anytime(), 1).unwrap();
    let mut done = Vec::new();
    client.poll(Duration::from_millis(20), &mut done).unwrap();
    assert!(done.is_empty());
    fake.change_map(|map| *map = ready.unwrap());
    client.poll(Duration::from_secs(5), &mut done).unwrap();
    assert!(done[0].result.is_ok(), "{done:?}");
}

/// Returns whether a client's descriptor is readable now.
fn is_readable(client: &mut Client) -> bool {
    let descriptor = client.descriptor().unwrap();
    let mut fds = [PollFd::new(&descriptor, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn a_completion_during_a_call_keeps_the_descriptor_readable_until_it_is_collected() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"v", &anytime()).unwrap();
    assert!(!is_readable(&mut client));
    // Both operations use one connection, and the submitted one is sent first.
    client.submit(Op::Get { key: b"k" }, &anytime(), 7).unwrap();
    client.get(b"k", &anytime()).unwrap();
    assert!(is_readable(&mut client), "no socket will signal it");
    let mut done = Vec::new();
    assert_eq!(client.poll(Duration::ZERO, &mut done).unwrap(), 1);
    assert_eq!(done[0].tag, 7);
    assert!(!is_readable(&mut client));
    // The result is the same if the descriptor is requested only now.
    let mut other = open(&fake);
    other.submit(Op::Get { key: b"k" }, &anytime(), 8).unwrap();
    other.get(b"k", &anytime()).unwrap();
    assert!(is_readable(&mut other));
}

#[test]
fn a_write_whose_number_another_process_used_fails_and_the_next_uses_another_client_id() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    fake.script(first(Act::Response(Status::SessionMismatch)));
    let error = client.put(b"k", b"2", &anytime()).unwrap_err();
    assert!(matches!(error, Error::SharedIdentity { .. }), "{error}");
    client.put(b"k", b"3", &anytime()).unwrap();
    let sent = writes(&fake);
    assert_eq!(sent.iter().map(|seen| seen.seq).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!(sent[0].client, sent[1].client);
    assert_ne!(sent[1].client, sent[2].client);
}

#[test]
fn an_operation_fails_at_once_if_another_cluster_has_replaced_the_known_one() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    fake.change_map(|map| map.cluster = ClusterId(0xbeef));
    fake.script(|_| Act::Cut);
    let begun = Instant::now();
    let error = client.get(b"k", &anytime()).unwrap_err();
    assert!(matches!(error, Error::OtherCluster { .. }), "{error}");
    let error = client.put(b"k", b"2", &anytime()).unwrap_err();
    assert!(matches!(error, Error::OtherCluster { .. }), "it was never sent: {error}");
    assert!(begun.elapsed() < DEFAULT_DEADLINE / 2, "{:?}", begun.elapsed());
}

#[test]
fn a_write_that_was_sent_before_another_cluster_replaced_its_own_is_in_doubt() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    fake.change_map(|map| map.cluster = ClusterId(0xbeef));
    fake.script(|_| Act::Cut);
    let error = client.put(b"k", b"2", &anytime()).unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    assert!(error.to_string().contains("was not restored from it"), "{error}");
}

#[test]
fn a_client_continues_its_session_in_a_cluster_restored_from_its_own() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    let restored = |map: &mut Map| {
        map.ancestors = vec![std::mem::replace(&mut map.cluster, ClusterId(0xbeef))];
        map.views.iter_mut().for_each(|view| view.version.0 += 1);
    };
    fake.change_map(restored);
    fake.script(first(Act::ServeThenCut));
    client.put(b"k", b"2", &anytime()).unwrap();
    let sent = writes(&fake);
    assert_eq!(sent.iter().map(|seen| seen.seq).collect::<Vec<_>>(), [1, 2, 2]);
    assert_eq!(sent[0].client, sent[2].client);
    assert_eq!(fake.executed().len(), 2);
}
