//! Tests of a client that many threads share: leading and following, and the state after a panic.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Act, Fake, SOON, anytime, key_of, within};
use kv_client::{Condition, Endpoints, Error, Log, Op, Options, SharedClient};

fn shared(fake: &Fake) -> SharedClient {
    let endpoints = Endpoints::resolve(&fake.endpoint(), &Log::default()).unwrap();
    SharedClient::with_endpoints(&endpoints, &Options::default(), 1).unwrap()
}

#[test]
fn threads_share_one_connection_to_each_server() {
    let fake = Fake::start(3, 1);
    let client = shared(&fake);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let client = &client;
            scope.spawn(move || {
                for n in 0..100 {
                    let key = format!("{thread}-{n}").into_bytes();
                    client.put(&key, &key, &anytime()).unwrap();
                    let take = |responded: kv_client::Reply<'_>| responded.value.to_vec();
                    assert_eq!(client.call(Op::Get { key: &key }, &anytime(), take).unwrap(), key);
                }
            });
        }
    });
    assert_eq!(fake.open_to_servers(), 3);
}

/// The leader may be a thread whose own call takes long.
#[test]
fn no_thread_waits_for_the_slow_call_of_another() {
    let fake = Fake::start(3, 1);
    let client = shared(&fake);
    let slow = key_of(0);
    let of_script = slow.clone();
    fake.script(move |seen| if seen.key == of_script { Act::Ignore } else { Act::Serve });
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| client.put(&slow, b"v", &within(5 * SOON)));
        let start = Instant::now();
        let other = key_of(1);
        for _ in 0..20 {
            client.put(&other, b"v", &anytime()).unwrap();
        }
        let brief = client.put(&slow, b"w", &within(Duration::from_millis(100)));
        assert!(matches!(brief, Err(Error::InDoubt { .. })), "{brief:?}");
        assert!(start.elapsed() < 3 * SOON, "{:?}", start.elapsed());
        assert!(matches!(waits.join().unwrap(), Err(Error::InDoubt { .. })));
    });
}

#[test]
fn the_operations_of_a_batch_end_once_each_whatever_their_number() {
    let fake = Fake::start(3, 1);
    let client = shared(&fake);
    let keys: Vec<Vec<u8>> = (0..5_000).map(|n| format!("key-{n}").into_bytes()).collect();
    let ends: Vec<AtomicUsize> = (0..5_000).map(|_| AtomicUsize::new(0)).collect();
    let mut each = |at: usize, result: Result<kv_client::Reply<'_>, Error>| {
        result.unwrap();
        ends[at].fetch_add(1, Ordering::SeqCst);
    };
    let puts = keys.iter().map(|key| (Op::Put { key, value: b"v" }, Condition::Always));
    client.batch(puts, &anytime(), &mut each).unwrap();
    assert!(ends.iter().all(|count| count.load(Ordering::SeqCst) == 1));
    assert_eq!(fake.executed().len(), 5_000);
}

#[test]
fn a_panic_in_a_call_ends_the_client_and_fails_calls_of_other_threads() {
    let fake = Fake::start(3, 1);
    let client = shared(&fake);
    client.put(b"k", b"v", &anytime()).unwrap();
    let call = || client.call(Op::Get { key: b"k" }, &anytime(), |_| panic!("on purpose"));
    assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
    std::thread::scope(|scope| {
        let other = scope.spawn(|| client.put(b"k", b"v", &anytime()));
        assert!(matches!(other.join().unwrap(), Err(Error::Defect)));
    });
}

#[test]
fn a_call_from_a_destructor_during_unwinding_works() {
    struct Destructor<'a>(&'a SharedClient);
    impl Drop for Destructor<'_> {
        fn drop(&mut self) {
            self.0.put(b"k", b"v", &anytime()).unwrap();
        }
    }
    let fake = Fake::start(3, 1);
    let client = shared(&fake);
    let panicking = || {
        let _destructor = Destructor(&client);
        panic!("on purpose");
    };
    assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
    client.put(b"k", b"w", &anytime()).unwrap();
}
