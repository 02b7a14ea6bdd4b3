//! Tests of several transmissions of one write: which response counts, and when the outcome is unknown.

mod common;

use std::time::{Duration, Instant};

use common::{Act, Fake, SOON, Seen, anytime, first, key_of, open, within, writes};
use kv_client::{Client, Completion, Error, Op, ReplicaRole};
use kv_protocol::client_message::Status;

/// Returns a script that applies `script` to writes and serves all other requests.
fn for_writes(
    mut script: impl FnMut(&Seen) -> Act + Send + 'static,
) -> impl FnMut(&Seen) -> Act + Send + 'static {
    move |seen| if seen.seq > 0 { script(seen) } else { Act::Serve }
}

/// Polls the client until `is_enough` returns true.
fn poll_until(
    client: &mut Client,
    done: &mut Vec<Completion>,
    mut is_enough: impl FnMut(&[Completion]) -> bool,
) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_enough(done) {
        assert!(Instant::now() < deadline, "nothing more happens: {done:?}");
        client.poll(Duration::from_millis(1), done).unwrap();
    }
}

/// Makes server 0 send the response that it holds back, by a request to it as the secondary of group 2.
fn release_response_of_server_0(client: &mut Client) {
    client.verify(&key_of(2), ReplicaRole::Secondary, &anytime()).unwrap();
}

#[test]
fn a_write_that_every_server_rejected_as_unavailable_was_not_executed() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.noop(&key, &anytime()).unwrap();
    // After the map is fetched again, there is no server to which the write can be sent, so only rejected transmissions
    // have taken place.
    fake.change_map(|map| map.servers[0].clients = None);
    fake.script(|_| Act::Response(Status::Unavailable));
    let error = client.put(&key, b"v", &within(SOON)).unwrap_err();
    assert!(!writes(&fake).is_empty(), "it was sent");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[test]
fn an_unavailable_response_proves_nothing_about_an_earlier_transmission() {
    for earlier in [Act::Cut, Act::ServeThenCut, Act::Response(Status::WrongView)] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        let mut script = first(earlier.clone());
        fake.script(move |seen| match script(seen) {
            Act::Serve => Act::Response(Status::Unavailable),
            act => act,
        });
        let error = client.put(b"k", b"v", &within(SOON)).unwrap_err();
        assert!(writes(&fake).len() > 1, "it was sent again");
        assert!(matches!(error, Error::InDoubt { .. }), "{earlier:?}: {error}");
    }
}

#[test]
fn a_late_rejection_clears_the_transmission_that_it_belongs_to() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    fake.script(for_writes(|seen| match seen.server {
        0 => Act::ResponseStatusLater(Status::Unavailable),
        _ => Act::Response(Status::Unavailable),
    }));
    let mut done = Vec::new();
    client.submit(Op::Put { key: &key, value: b"v" }, &within(4 * SOON), 1).unwrap();
    poll_until(&mut client, &mut done, |_| !writes(&fake).is_empty());
    fake.promote(0, 1);
    poll_until(&mut client, &mut done, |_| writes(&fake).iter().any(|seen| seen.server == 1));
    fake.change_map(|map| map.servers[1].clients = None);
    release_response_of_server_0(&mut client);
    poll_until(&mut client, &mut done, |done| !done.is_empty());
    assert!(matches!(done[0].result, Err(Error::Unavailable { .. })), "{done:?}");
}

#[test]
fn a_late_temporary_response_does_not_disturb_a_later_transmission() {
    for status in
        [Status::WrongView, Status::Unavailable, Status::Busy, Status::Lost, Status::OutOfSpace]
    {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        fake.script(for_writes(move |seen| match seen.server {
            0 => Act::ResponseStatusLater(status),
            _ => Act::ResponseLater,
        }));
        let mut done = Vec::new();
        client.submit(Op::Put { key: &key_of(0), value: b"v" }, &anytime(), 1).unwrap();
        poll_until(&mut client, &mut done, |_| !writes(&fake).is_empty());
        fake.promote(0, 1);
        poll_until(&mut client, &mut done, |_| writes(&fake).len() == 2);
        release_response_of_server_0(&mut client);
        assert_eq!((client.in_flight(), client.statistics().retries), (1, 0), "{status:?}");
        // Now server 1 sends its response.
        client.noop(&key_of(1), &anytime()).unwrap();
        poll_until(&mut client, &mut done, |done| !done.is_empty());
        assert!(done[0].result.is_ok(), "{status:?}: {done:?}");
        assert_eq!(writes(&fake).len(), 2, "{status:?}: it is not sent a third time");
    }
}

#[test]
fn a_late_final_response_counts() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(for_writes(|seen| if seen.server == 0 { Act::ResponseLater } else { Act::Ignore }));
    let mut done = Vec::new();
    client.submit(Op::Put { key: &key_of(0), value: b"v" }, &anytime(), 1).unwrap();
    poll_until(&mut client, &mut done, |_| !writes(&fake).is_empty());
    fake.promote(0, 1);
    poll_until(&mut client, &mut done, |_| writes(&fake).len() == 2);
    release_response_of_server_0(&mut client);
    poll_until(&mut client, &mut done, |done| !done.is_empty());
    assert!(done[0].result.is_ok(), "{done:?}");
}

#[test]
fn a_write_in_doubt_is_settled_before_the_next_one_to_its_key() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    client.put(b"k", b"1", &anytime()).unwrap();
    fake.script(|_| Act::Ignore);
    let error = client.put(b"k", b"2", &within(SOON / 4)).unwrap_err();
    assert!(matches!(error, Error::InDoubt { .. }), "{error}");
    fake.script(|_| Act::Serve);
    client.put(b"k", b"3", &anytime()).unwrap();
    let marks: Vec<_> =
        writes(&fake).iter().map(|seen| (seen.seq, seen.first_incomplete)).collect();
    assert_eq!(marks, [(1, 1), (2, 2), (2, 2), (3, 3)]);
}

#[test]
fn a_write_of_an_abandoned_session_keeps_its_session_fields() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.put(&key, b"1", &anytime()).unwrap();
    let mut acts = [Act::Ignore, Act::Response(Status::SessionExpired)].into_iter();
    fake.script(move |_| acts.next().unwrap_or(Act::Serve));
    let mut done = Vec::new();
    for tag in 0..2 {
        client.submit(Op::Put { key: &key, value: b"2" }, &anytime(), tag).unwrap();
    }
    poll_until(&mut client, &mut done, |done| !done.is_empty());
    // The new session continues past the first incomplete number of the old one.
    for _ in 0..3 {
        client.put(&key, b"3", &anytime()).unwrap();
    }
    fake.cut(0);
    poll_until(&mut client, &mut done, |done| done.len() == 2);
    assert!(done.iter().all(|completion| completion.result.is_ok()), "{done:?}");
    let sent = writes(&fake);
    let (lost, again) = (&sent[1], sent.last().unwrap());
    assert_eq!(again, lost, "the same client id, number and first incomplete number");
    assert_eq!((again.seq, again.first_incomplete), (2, 2));
}

#[test]
fn a_waiting_operation_follows_a_newer_view_that_arrived_before_it_was_overdue() {
    let mut fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.noop(&key, &anytime()).unwrap();
    fake.script(for_writes(|seen| if seen.server == 0 { Act::Ignore } else { Act::Serve }));
    let start = Instant::now();
    client.submit(Op::Put { key: &key, value: b"v" }, &anytime(), 1).unwrap();
    let mut done = Vec::new();
    poll_until(&mut client, &mut done, |_| !writes(&fake).is_empty());
    // A rejection by another server makes the client fetch the map. After that, no source of the map is left.
    fake.promote(0, 1);
    let maps = client.statistics().maps;
    let mut refuse = first(Act::Response(Status::WrongView));
    fake.script(move |seen| match seen.seq {
        0 => refuse(seen),
        _ if seen.server == 0 => Act::Ignore,
        _ => Act::Serve,
    });
    client.noop(&key_of(1), &anytime()).unwrap();
    while client.statistics().maps == maps {
        client.poll(Duration::from_millis(1), &mut done).unwrap();
    }
    fake.kill_coordinator();
    poll_until(&mut client, &mut done, |done| !done.is_empty());
    assert!(done[0].result.is_ok(), "{done:?}");
    assert!(start.elapsed() >= Duration::from_millis(150), "it is given time for its response");
    assert_eq!(writes(&fake).len(), 2);
}

#[test]
fn an_overdue_operation_is_sent_again_as_soon_as_a_newer_view_arrives() {
    // Without this rule, the operation would wait for its next check, 250 ms after it was sent. A busy machine can be
    // slow, so one fast attempt of several is enough.
    let is_swift = || {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        let key = key_of(0);
        client.noop(&key, &anytime()).unwrap();
        fake.promote(0, 1);
        fake.script(|seen| if seen.server == 0 { Act::Ignore } else { Act::Serve });
        let start = Instant::now();
        client.put(&key, b"v", &anytime()).unwrap();
        start.elapsed() < Duration::from_millis(250)
    };
    assert!((0..20).any(|_| is_swift()));
}
