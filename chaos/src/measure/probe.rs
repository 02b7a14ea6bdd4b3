//! Two clients of one key, a writer and a reader. Each has an operation in flight almost all the time. They record the
//! time of their first success after a given time. Their operations are part of the history that is checked at the end.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{sync::Arc, thread};

use anyhow::Context as _;
use kv_client::{Client, Error, OpOptions, Options};
use kv_history::{Function, Kind, Payload, Reason, Record};
use kv_testkit::wait_for;

use crate::clock::now_ns;
use crate::worker::{NUMBERS_A_THREAD, ending, value_of};

/// The pause between two operations.
const PAUSE: Duration = Duration::from_millis(1);
/// The timeout for the first success of both clients.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The number of the first client. The clients of the load have lower numbers.
const FIRST_CLIENT: u32 = 1_000;
/// The value that stands for "no success so far".
const NONE: i64 = i64::MAX;

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    /// The earliest start of an operation that counts.
    since: AtomicI64,
    /// The times at which the first successful PUT and GET ended.
    first: [AtomicI64; 2],
}

/// The two clients.
#[derive(Debug)]
pub(super) struct Probe {
    shared: Arc<Shared>,
    hands: Vec<JoinHandle<Vec<Record>>>,
}

impl Probe {
    /// Starts probe number `number`, which writes and reads a key. Returns when a write and a read have succeeded.
    pub(super) fn start(endpoint: &str, key: &str, number: u32) -> anyhow::Result<Probe> {
        let shared = Arc::new(Shared::default());
        let mut probe = Probe { shared: Arc::clone(&shared), hands: Vec::new() };
        shared.first.iter().for_each(|first| first.store(NONE, Ordering::SeqCst));
        for (which, f) in [Function::Write, Function::Read].into_iter().enumerate() {
            let number = FIRST_CLIENT + number * 2 + u32::from(f == Function::Read);
            let hand = Hand {
                client: Client::open(endpoint, Options::default())?,
                key: key.to_owned(),
                f,
                process: number * NUMBERS_A_THREAD,
                next_value: (u64::from(number) + 1) << 36,
                records: Vec::new(),
            };
            let shared = Arc::clone(&shared);
            probe.hands.push(thread::spawn(move || hand.work(&shared, which)));
        }
        probe.wait().context("before the first fault")?;
        Ok(probe)
    }

    /// Discards earlier successes. From now on only operations that begin at this time or later count.
    pub(super) fn look_from(&self, moment_ns: i64) {
        self.shared.since.store(moment_ns, Ordering::SeqCst);
        self.shared.first.iter().for_each(|first| first.store(NONE, Ordering::SeqCst));
    }

    /// Waits for the first success of a PUT and of a GET, and returns their times.
    pub(super) fn wait(&self) -> anyhow::Result<[i64; 2]> {
        wait_for("a PUT and a GET to succeed", TIMEOUT, || {
            let [put, get] = &self.shared.first;
            let found = [put.load(Ordering::SeqCst), get.load(Ordering::SeqCst)];
            (!found.contains(&NONE)).then_some(found)
        })
    }

    /// Stops both clients, and returns their histories.
    pub(super) fn end(mut self) -> Vec<Record> {
        self.shared.over.store(true, Ordering::SeqCst);
        let hands = std::mem::take(&mut self.hands);
        hands.into_iter().flat_map(|hand| hand.join().expect("a thread does not panic")).collect()
    }
}

/// One of the two clients.
struct Hand {
    client: Client,
    key: String,
    f: Function,
    process: u32,
    next_value: u64,
    records: Vec<Record>,
}

impl Hand {
    fn work(mut self, shared: &Shared, which: usize) -> Vec<Record> {
        while !shared.over.load(Ordering::SeqCst) {
            let start = now_ns();
            let is_done = self.act();
            if is_done && start >= shared.since.load(Ordering::SeqCst) {
                // Only the first success counts.
                let first = &shared.first[which];
                let _ = first.compare_exchange(NONE, now_ns(), Ordering::SeqCst, Ordering::SeqCst);
            }
            thread::sleep(PAUSE);
        }
        self.records
    }

    /// Performs one operation. Returns whether it succeeded; a read of an absent key counts as a success.
    fn act(&mut self) -> bool {
        let (key, options) = (self.key.clone().into_bytes(), OpOptions::default());
        let asked = Payload::One((self.f == Function::Write).then_some(self.next_value));
        self.note(Kind::Invoke, asked, None, None);
        let done = match self.f {
            Function::Write => {
                let value = self.next_value.to_le_bytes();
                self.next_value += 1;
                self.client
                    .put(&key, &value, &options)
                    .map(|written| (asked, Some(written.version)))
            }
            _ => match self.client.get(&key, &options) {
                Err(Error::NotFound { .. }) => Ok((Payload::One(None), None)),
                read => {
                    read.map(|read| (Payload::One(Some(value_of(&read.bytes))), Some(read.version)))
                }
            },
        };
        match done {
            Ok((value, version)) => {
                self.note(Kind::Ok, value, version.map(|version| version.0), None);
                true
            }
            Err(error) => {
                let (kind, reason) = ending(&error);
                self.note(kind, asked, None, Some(reason));
                self.process += u32::from(kind == Kind::Info);
                false
            }
        }
    }

    fn note(&mut self, kind: Kind, value: Payload, version: Option<u64>, error: Option<Reason>) {
        let (process, f, key, time_ns) = (self.process, self.f, self.key.clone(), now_ns());
        self.records.push(Record { process, kind, f, key, value, time_ns, version, error });
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::SeqCst);
        for hand in self.hands.drain(..) {
            let _ = hand.join();
        }
    }
}
