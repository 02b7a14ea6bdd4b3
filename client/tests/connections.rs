//! Tests of the lifetime of a connection, and of the limits on its requests.

mod common;

use std::time::{Duration, Instant};

use common::{Act, Fake, SOON, anytime, key_of, open, within};
use kv_client::{Client, Endpoints, Error, Log, MAX_IN_FLIGHT, Op, Options};
use kv_protocol::client_message::Status;
use kv_testkit::silent::Silent;

/// Returns options with a short connect timeout.
fn impatient() -> Options {
    Options { connect_timeout: Duration::from_millis(100), ..Options::default() }
}

/// Waits until the servers have at most `most` connections.
fn await_connections(fake: &Fake, most: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while fake.open_to_servers() > most {
        let open = fake.open_to_servers();
        assert!(Instant::now() < deadline, "{open} connections; at most {most} are needed");
        std::thread::yield_now();
    }
}

#[test]
fn a_coordinator_that_sends_only_welcome_is_asked_again_on_another_connection() {
    let fake = Fake::start(3, 1);
    fake.mute_coordinator(true);
    let mut client = Client::open(&fake.endpoint(), impatient()).unwrap();
    let error = client.get(b"k", &within(SOON)).unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("no map within the connect timeout"), "{error}");
    fake.mute_coordinator(false);
    client.put(b"k", b"v", &anytime()).unwrap();
}

/// The first call leaves a connection behind, which times out during the second call, after only part of the timeout
/// has passed in that call.
#[test]
fn a_failure_names_no_longer_timeout_than_the_time_its_call_had() {
    let fake = Fake::start(3, 1);
    fake.mute_coordinator(true);
    let connect_timeout = SOON + SOON / 2;
    let options = Options { connect_timeout, ..Options::default() };
    let mut client = Client::open(&fake.endpoint(), options).unwrap();
    client.get(b"k", &within(SOON)).unwrap_err();
    let error = client.get(b"k", &within(SOON)).unwrap_err().to_string();
    assert!(error.contains("no map within the connect timeout"), "{error}");
    assert!(!error.contains(&format!("{connect_timeout:?}")), "{error}");
}

#[test]
fn the_second_coordinator_is_asked_when_the_first_sends_only_welcome() {
    let mute = Fake::start(3, 1);
    mute.mute_coordinator(true);
    let fake = Fake::start(3, 1);
    let endpoints = format!("{},{}", mute.endpoint(), fake.endpoint());
    let mut client = Client::open(&endpoints, impatient()).unwrap();
    client.put(&key_of(0), b"v", &anytime()).unwrap();
}

#[test]
fn silent_coordinators_do_not_block_the_one_that_responds() {
    let (fake, silent) = (Fake::start(3, 1), Silent::all_kinds());
    let mut endpoints: Vec<String> = silent.iter().map(Silent::endpoint).collect();
    endpoints.push(fake.endpoint());
    let endpoints = Endpoints::resolve(&endpoints.join(","), &Log::default()).unwrap();
    let mut client = Client::with_endpoints(&endpoints, Options::default()).unwrap();
    let begun = Instant::now();
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    println!("the first operation with silent endpoints took {:?}", begun.elapsed());
    // From now on, requests for the map go to the endpoint that responded first, including those of other clients of
    // these endpoints.
    fake.promote(0, 1);
    client.put(&key_of(0), b"w", &within(SOON)).unwrap();
    let mut another = Client::with_endpoints(&endpoints, Options::default()).unwrap();
    another.put(&key_of(0), b"x", &within(SOON)).unwrap();
}

#[test]
fn repeatedly_expired_sessions_leave_no_connections_behind() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    for _ in 0..30 {
        for group in 0..3 {
            client.put(&key_of(group), b"v", &anytime()).unwrap();
        }
        fake.forget_sessions();
    }
    // One connection to each server for reads, and one under the client id of the newest session.
    await_connections(&fake, 6);
}

#[test]
fn the_connection_of_an_expired_session_carries_its_last_responses_and_then_closes() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"v", &anytime()).unwrap();
    fake.forget_sessions();
    client.put(&key, b"v", &anytime()).unwrap();
    await_connections(&fake, 2);
    // The second of three gets SESSION_EXPIRED before the others get their responses on the same connection.
    let mut acts = [Act::ResponseLater, Act::Response(Status::SessionExpired)].into_iter();
    fake.script(move |_| acts.next().unwrap_or(Act::Serve));
    for tag in 0..3 {
        client.submit(Op::Put { key: &key, value: b"w" }, &anytime(), tag).unwrap();
    }
    let mut done = Vec::new();
    while client.in_flight() > 0 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    assert_eq!(client.statistics().connections_lost, 0, "it ends by itself");
    await_connections(&fake, 2);
}

#[test]
fn a_connection_opened_for_a_write_of_an_expired_session_closes_after_it() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"v", &anytime()).unwrap();
    fake.forget_sessions();
    client.put(&key, b"v", &anytime()).unwrap();
    let mut acts = [Act::Ignore, Act::Response(Status::SessionExpired)].into_iter();
    fake.script(move |_| acts.next().unwrap_or(Act::Serve));
    for tag in 0..2 {
        client.submit(Op::Put { key: &key, value: b"w" }, &anytime(), tag).unwrap();
    }
    let mut done = Vec::new();
    while client.in_flight() > 1 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    // The first write is sent again, under its old client id.
    fake.cut(0);
    while client.in_flight() > 0 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    client.noop(&key, &anytime()).unwrap();
    client.put(&key, b"v", &anytime()).unwrap();
    await_connections(&fake, 2);
}

#[test]
fn a_connection_with_too_many_outstanding_requests_is_closed() {
    let fake = Fake::start(3, 1);
    // The connect timeout is so long that it does not apply in this test.
    let connect_timeout = Duration::from_secs(60);
    let options = Options { window: MAX_IN_FLIGHT, connect_timeout, ..Options::default() };
    let mut client = Client::open(&fake.endpoint(), options).unwrap();
    client.noop(b"k", &anytime()).unwrap();
    fake.script(|_| Act::Ignore);
    let mut done = Vec::new();
    // The loop sends twice as many requests as can be in flight. After the operations have ended, their responses may
    // still arrive.
    for _ in 0..2 {
        for tag in 0..MAX_IN_FLIGHT as u64 {
            client.submit(Op::Noop { key: b"k" }, &within(2 * SOON), tag).unwrap();
        }
        while client.in_flight() > 0 {
            client.poll(SOON, &mut done).unwrap();
        }
    }
    assert_eq!(client.statistics().connections_lost, 0);
    fake.script(|_| Act::Serve);
    client.noop(b"k", &anytime()).unwrap();
    assert_eq!(client.statistics().connections_lost, 1, "one more is one too many");
}

#[test]
fn a_write_not_sent_whole_by_its_deadline_is_not_in_doubt_and_never_executed() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"connected", &anytime()).unwrap();
    // The server blocks in its first request until the gate opens.
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    fake.script(move |_| {
        let _ = opened.recv();
        Act::Serve
    });
    let long = vec![b'v'; 16 << 20];
    let mut done = Vec::new();
    for (tag, value) in [(1, &b"first"[..]), (2, &long), (3, b"third")] {
        client.submit(Op::Put { key: &key, value }, &within(SOON), tag).unwrap();
    }
    while done.len() < 3 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    for completion in &done {
        let is_in_doubt = matches!(completion.result, Err(Error::InDoubt { .. }));
        assert_eq!(is_in_doubt, completion.tag == 1, "{completion:?}");
        let is_undone = matches!(completion.result, Err(Error::Unavailable { .. }));
        assert_eq!(is_undone, completion.tag != 1, "{completion:?}");
    }
    drop(gate);
    client.put(&key, b"last", &anytime()).unwrap();
    // The server still reads the bytes received before the end of the connection. Nothing after them can be executed.
    await_connections(&fake, 1);
    let values: Vec<_> = fake.executed().into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, [&b"connected"[..], b"first", b"last"]);
}

#[test]
fn a_request_sent_whole_before_a_truncated_one_is_retried_and_executed_once() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"connected", &anytime()).unwrap();
    let (gate, opened) = std::sync::mpsc::channel::<()>();
    fake.script(move |_| {
        let _ = opened.recv();
        Act::Serve
    });
    let long = vec![b'v'; 16 << 20];
    client.submit(Op::Put { key: &key, value: b"first" }, &anytime(), 1).unwrap();
    client.submit(Op::Put { key: &key, value: &long }, &within(SOON), 2).unwrap();
    let mut done = Vec::new();
    while done.is_empty() {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert_eq!(done[0].tag, 2);
    assert!(matches!(done[0].result, Err(Error::Unavailable { .. })), "{done:?}");
    drop(gate);
    while done.len() < 2 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert!(done[1].result.is_ok(), "{done:?}");
    let values: Vec<_> = fake.executed().into_iter().map(|(_, value)| value).collect();
    assert_eq!(values, [&b"connected"[..], b"first"]);
}

#[test]
fn an_operation_that_waits_for_welcome_is_sent_once_even_if_a_newer_view_arrives() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.get(&key_of(1), &anytime()).unwrap_err();
    fake.withhold_welcome(0, true);
    let (key, mut done) = (key_of(0), Vec::new());
    client.submit(Op::Put { key: &key, value: b"v" }, &anytime(), 1).unwrap();
    let maps = fake.maps_served();
    // The primary stays the same, so the operation stays on its connection.
    fake.change_map(|map| map.views[0].version.0 += 1);
    let deadline = Instant::now() + Duration::from_secs(5);
    while fake.maps_served() == maps {
        assert!(Instant::now() < deadline, "an overdue operation requests a newer view");
        client.poll(Duration::from_millis(10), &mut done).unwrap();
    }
    client.poll(Duration::from_millis(10), &mut done).unwrap();
    fake.withhold_welcome(0, false);
    while done.is_empty() {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert!(done[0].result.is_ok(), "{done:?}");
    assert_eq!(fake.executed().len(), 1);
}

#[test]
fn a_backlog_whose_connection_ends_while_it_is_sent_is_sent_on_the_next_one() {
    const COUNT: u64 = 600;
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(&key_of(0), b"v", &anytime()).unwrap();
    fake.cut(0);
    fake.cut_after_welcome(1);
    let mut done = Vec::new();
    for tag in 0..COUNT {
        client.submit(Op::Get { key: &key_of(0) }, &anytime(), tag).unwrap();
    }
    while client.in_flight() > 0 {
        client.poll(Duration::from_secs(1), &mut done).unwrap();
    }
    assert_eq!(done.len() as u64, COUNT);
    let failed = done.iter().find(|completion| completion.result.is_err());
    assert!(failed.is_none(), "{failed:?}");
}
