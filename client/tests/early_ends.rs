//! Tests of operations that the program ends before the deadline, and of the events that it receives.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Act, Fake, SOON, anytime, key_of, open, within};
use kv_client::{
    Client, Completion, Condition, Endpoints, Error, Event, Events, Interrupt, Log, Op, OpOptions,
    Options, SharedClient,
};
use kv_protocol::client_message::opcode;

/// A deadline that does not pass during a test.
const LONG: Duration = Duration::from_secs(60);

fn long() -> OpOptions {
    within(LONG)
}

fn shared(fake: &Fake, options: &Options) -> SharedClient {
    let endpoints = Endpoints::resolve(&fake.endpoint(), &Log::default()).unwrap();
    SharedClient::with_endpoints(&endpoints, options, 1).unwrap()
}

/// Polls for exactly one completion.
fn next(client: &mut Client) -> Completion {
    let (mut found, start) = (Vec::new(), Instant::now());
    while found.is_empty() {
        assert!(start.elapsed() < LONG, "no completion");
        client.poll(SOON, &mut found).unwrap();
    }
    assert_eq!(found.len(), 1, "{found:?}");
    found.pop().unwrap()
}

/// Polls until the servers have received `count` requests with this opcode.
fn await_requests(client: &mut Client, fake: &Fake, opcode: u8, count: usize) {
    let start = Instant::now();
    while fake.seen().iter().filter(|seen| seen.opcode == opcode).count() < count {
        assert!(start.elapsed() < LONG, "no request");
        assert_eq!(client.poll(Duration::from_millis(1), &mut Vec::new()).unwrap(), 0);
    }
}

#[test]
fn a_cancelled_write_is_in_doubt_if_it_was_sent_and_settled_as_any_other() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    fake.script(|seen| if seen.opcode == opcode::PUT { Act::Ignore } else { Act::Serve });
    let put = Op::Put { key: b"k", value: b"v" };
    let unsent = client.submit_to_cancel(put, &anytime(), 1).unwrap();
    assert!(client.cancel(unsent));
    assert!(!client.cancel(unsent), "it has ended");
    let ended = next(&mut client);
    assert!(matches!(ended.result, Err(Error::Cancelled { .. })), "{ended:?}");
    assert!(fake.seen().is_empty(), "nothing was sent");

    let sent = client.submit_to_cancel(put, &anytime(), 2).unwrap();
    await_requests(&mut client, &fake, opcode::PUT, 1);
    assert!(client.cancel(sent));
    let ended = next(&mut client);
    let Err(Error::InDoubt { doubt: Some(doubt), cause, .. }) = ended.result else {
        panic!("{ended:?}")
    };
    assert!(cause.contains("cancelled"), "{cause}");
    let error = client.resolve(&doubt, &anytime()).unwrap_err();
    assert!(matches!(error, Error::NotDone { .. }), "{error}");
    let counted = client.statistics();
    assert_eq!((counted.given_up, counted.in_doubt, counted.unsettled), (1, 1, 0));
    assert!(fake.executed().is_empty());
}

/// The operation on the same key then waits for another RESOLVE.
#[test]
fn a_cancelled_resolution_fails_no_operation_that_waits_for_it() {
    let fake = Fake::start(3, 1);
    let mut client = open(&fake);
    // The first PUT and the first RESOLVE get no response. All later requests are served.
    let mut lost = vec![opcode::PUT, opcode::RESOLVE];
    fake.script(move |seen| match lost.iter().position(|opcode| *opcode == seen.opcode) {
        Some(found) => {
            lost.swap_remove(found);
            Act::Ignore
        }
        None => Act::Serve,
    });
    let put = client.submit_to_cancel(Op::Put { key: b"k", value: b"v" }, &anytime(), 1).unwrap();
    await_requests(&mut client, &fake, opcode::PUT, 1);
    client.cancel(put);
    let Err(Error::InDoubt { doubt: Some(doubt), .. }) = next(&mut client).result else {
        panic!("not in doubt")
    };
    let resolve = client.submit_to_cancel(Op::Resolve { doubt: &doubt }, &anytime(), 2).unwrap();
    client.submit(Op::Put { key: b"k", value: b"w" }, &anytime(), 3).unwrap();
    await_requests(&mut client, &fake, opcode::RESOLVE, 1);
    assert!(client.cancel(resolve));
    let ended = next(&mut client);
    assert!(matches!(ended.result, Err(Error::Cancelled { .. })), "{ended:?}");
    let ended = next(&mut client);
    assert!(ended.tag == 3 && ended.result.is_ok(), "{ended:?}");
    assert_eq!(fake.executed(), [(b"k".to_vec(), b"w".to_vec())]);
}

#[test]
fn an_interrupt_ends_calls_of_other_threads_and_rejects_those_that_begin() {
    let fake = Fake::start(3, 1);
    let interrupt = Interrupt::new().unwrap();
    let options = Options { interrupt: Some(interrupt.clone()), ..Options::default() };
    let client = shared(&fake, &options);
    client.ping(b"k", &anytime()).unwrap();
    fake.script(|_| Act::Ignore);
    std::thread::scope(|scope| {
        let read = scope.spawn(|| client.call(Op::Get { key: b"a" }, &long(), |_| ()));
        let write = scope.spawn(|| client.put(b"b", b"v", &long()));
        let start = Instant::now();
        while client.statistics().unwrap().requests < 3 {
            assert!(start.elapsed() < LONG, "not sent");
        }
        let start = Instant::now();
        interrupt.interrupt().unwrap();
        let (read, write) = (read.join().unwrap(), write.join().unwrap());
        assert!(start.elapsed() < LONG / 2);
        assert!(matches!(read, Err(Error::Interrupted { .. })), "{read:?}");
        assert!(matches!(write, Err(Error::InDoubt { doubt: Some(_), .. })), "{write:?}");
    });
    let sent = fake.seen().len();
    let late = client.put(b"c", b"v", &anytime());
    assert!(matches!(late, Err(Error::Interrupted { .. })), "{late:?}");
    let puts = [b"d", b"e"].map(|key| (Op::Put { key, value: b"v" }, Condition::Always));
    let mut ends = 0;
    let mut each = |_: usize, result: Result<kv_client::Reply<'_>, Error>| {
        assert!(matches!(result, Err(Error::Interrupted { .. })), "{result:?}");
        ends += 1;
    };
    client.batch(puts.into_iter(), &anytime(), &mut each).unwrap();
    assert_eq!((ends, fake.seen().len()), (2, sent));
    interrupt.resume().unwrap();
    fake.script(|_| Act::Serve);
    client.put(b"c", b"v", &anytime()).unwrap();
}

#[test]
fn an_interrupt_ends_a_call_and_a_poll_and_keeps_submitted_operations() {
    let fake = Fake::start(3, 1);
    let interrupt = Interrupt::new().unwrap();
    let options = Options { interrupt: Some(interrupt.clone()), ..Options::default() };
    let mut client = Client::open(&fake.endpoint(), options).unwrap();
    client.noop(b"k", &anytime()).unwrap();
    fake.script(|_| Act::Ignore);
    client.submit(Op::Get { key: b"a" }, &long(), 1).unwrap();
    std::thread::scope(|scope| {
        for is_poll in [true, false] {
            let start = Instant::now();
            let sent = fake.seen().len();
            let (fake, interrupt) = (&fake, &interrupt);
            let ends = scope.spawn(move || {
                while fake.seen().len() == sent && start.elapsed() < LONG {
                    std::thread::yield_now();
                }
                interrupt.interrupt().unwrap();
            });
            if is_poll {
                let polled = client.poll(LONG, &mut Vec::new()).unwrap();
                assert_eq!((polled, client.is_interrupted()), (0, true));
            } else {
                let read = client.get(b"b", &long());
                assert!(matches!(read, Err(Error::Interrupted { .. })), "{read:?}");
            }
            assert!(start.elapsed() < LONG / 2);
            ends.join().unwrap();
            interrupt.resume().unwrap();
        }
    });
    assert_eq!(client.in_flight(), 1);
    fake.script(|_| Act::Serve);
    // The connection is lost and the operation is retried, or its deadline passes.
    fake.cut(0);
    fake.cut(1);
    fake.cut(2);
    let ended = next(&mut client);
    assert!(matches!(ended.result, Err(Error::NotFound { .. })), "{ended:?}");
}

/// Returns an event function, and the list to which it appends each event as text.
fn recorded() -> (Events, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&told);
    let events = Events::to(move |event: &Event<'_>| to.lock().unwrap().push(format!("{event:?}")));
    (events, told)
}

#[test]
fn an_expired_session_and_a_lost_connection_are_reported_as_events_and_counted() {
    let fake = Fake::start(3, 1);
    let (events, told) = recorded();
    let options = Options { events, ..Options::default() };
    let mut client = Client::open(&fake.endpoint(), options).unwrap();
    let key = key_of(1);
    client.put(&key, b"v", &anytime()).unwrap();
    fake.forget_sessions();
    client.put(&key, b"w", &anytime()).unwrap();
    fake.cut(1);
    client.put(&key, b"x", &anytime()).unwrap();
    let told = told.lock().unwrap();
    let count = |word: &str| told.iter().filter(|event| event.starts_with(word)).count() as u64;
    let counted = client.statistics();
    assert_eq!((count("SessionBegunAnew"), counted.sessions_begun_anew), (1, 1), "{told:#?}");
    assert_eq!(count("ConnectionOpened"), counted.connections_opened, "{told:#?}");
    assert_eq!(count("ConnectionLost"), counted.connections_lost, "{told:#?}");
    assert!(counted.connections_lost > 0);
    let open = counted.connections_opened - counted.connections_lost - count("ConnectionClosed");
    assert_eq!(counted.connections_open, open, "{told:#?}");
    assert_eq!((count("MapChanged"), count("ServerUp")), (1, 3), "{told:#?}");
    let server = &counted.servers[1];
    assert_eq!((server.requests, server.responses), (counted.requests, counted.responses));
    assert_eq!(counted.operations, 3);
}

#[test]
fn a_call_from_within_a_log_or_event_function_is_rejected() {
    let fake = Fake::start(3, 1);
    let client = Arc::new(Mutex::new(None::<Arc<SharedClient>>));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let call = {
        let (client, outcomes) = (Arc::clone(&client), Arc::clone(&outcomes));
        move || {
            let client = client.lock().unwrap().clone().unwrap();
            let outcome = client.put(b"within", b"v", &anytime()).map(|_| ());
            outcomes.lock().unwrap().push(outcome);
            outcomes.lock().unwrap().push(client.statistics().map(|_| ()));
        }
    };
    let (of_log, of_events) = (call.clone(), call);
    let options = Options {
        log: Log::to(move |_, _| of_log()),
        events: Events::to(move |_| of_events()),
        ..Options::default()
    };
    let opened = Arc::new(shared(&fake, &options));
    *client.lock().unwrap() = Some(Arc::clone(&opened));
    opened.put(b"k", b"v", &anytime()).unwrap();
    let outcomes = outcomes.lock().unwrap();
    assert!(outcomes.len() >= 4, "of a map in the log, and of events");
    for outcome in outcomes.iter() {
        assert!(matches!(outcome, Err(Error::WithinCallback)), "{outcome:?}");
    }
    assert_eq!(fake.executed().len(), 1);
    *client.lock().unwrap() = None;
}

#[test]
fn a_ping_of_all_groups_sends_each_server_one_request() {
    let fake = Fake::start(3, 2);
    let client = shared(&fake, &Options::default());
    let parts = Mutex::new(Vec::new());
    let mut each = |part: usize, took: Result<Duration, Error>| {
        took.unwrap();
        parts.lock().unwrap().push(part);
    };
    client.ping_all(&anytime(), &mut each).unwrap();
    let mut parts = parts.into_inner().unwrap();
    parts.sort_unstable();
    assert_eq!(parts, [0, 1, 2]);
    assert!(client.statistics().unwrap().servers.iter().all(|server| server.responses > 0));
}
