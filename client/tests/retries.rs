//! What several sendings of one write come to: which answer counts, and when nobody knows.

mod common;

use std::time::{Duration, Instant};

use common::{Act, Fake, SOON, Seen, anytime, first, key_of, open, within, writes};
use kv_client::{Client, Completion, Error, Op, ReplicaRole};
use kv_protocol::client_message::Status;

/// Runs `script` for writes and serves the rest.
fn for_writes(
    mut script: impl FnMut(&Seen) -> Act + Send + 'static,
) -> impl FnMut(&Seen) -> Act + Send + 'static {
    move |seen| if seen.seq > 0 { script(seen) } else { Act::Serve }
}

/// Turns the client until `is_enough`.
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

/// Has server 0 send the answer that it holds back: it is the secondary of group 2.
fn release_answer_of_server_0(client: &mut Client) {
    client.verify(&key_of(2), ReplicaRole::Secondary, &anytime()).unwrap();
}

#[test]
fn a_write_that_every_server_asked_refused_as_unavailable_was_not_done() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    client.noop(&key, &anytime()).unwrap();
    // When it asks for the map, nobody is left to send to: the refusals are all that happened.
    fake.change_map(|map| map.servers[0].clients = None);
    fake.script(|_| Act::Answer(Status::Unavailable));
    let error = client.put(&key, b"v", &within(SOON)).unwrap_err();
    assert!(!writes(&fake).is_empty(), "it was sent");
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[test]
fn a_refusal_as_unavailable_proves_nothing_about_an_earlier_sending() {
    for earlier in [Act::Cut, Act::ServeThenCut, Act::Answer(Status::WrongView)] {
        let fake = Fake::start(3, 1);
        let mut client = open(&fake);
        let mut script = first(earlier.clone());
        fake.script(move |seen| match script(seen) {
            Act::Serve => Act::Answer(Status::Unavailable),
            act => act,
        });
        let error = client.put(b"k", b"v", &within(SOON)).unwrap_err();
        assert!(writes(&fake).len() > 1, "it was sent again");
        assert!(matches!(error, Error::InDoubt { .. }), "{earlier:?}: {error}");
    }
}

#[test]
fn a_late_refusal_clears_the_sending_it_answers() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    let key = key_of(0);
    fake.script(for_writes(|seen| match seen.server {
        0 => Act::AnswerStatusLater(Status::Unavailable),
        _ => Act::Answer(Status::Unavailable),
    }));
    let mut done = Vec::new();
    client.submit(Op::Put { key: &key, value: b"v" }, &within(4 * SOON), 1).unwrap();
    poll_until(&mut client, &mut done, |_| !writes(&fake).is_empty());
    fake.promote(0, 1);
    poll_until(&mut client, &mut done, |_| writes(&fake).iter().any(|seen| seen.server == 1));
    fake.change_map(|map| map.servers[1].clients = None);
    release_answer_of_server_0(&mut client);
    poll_until(&mut client, &mut done, |done| !done.is_empty());
    assert!(matches!(done[0].result, Err(Error::Unavailable { .. })), "{done:?}");
}
