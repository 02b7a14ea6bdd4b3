//! Two clients of one key each, one that writes and one that reads, each with an operation in flight at
//! almost every moment: who asks for the first success after some moment is told when it came.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{sync::Arc, thread};

use anyhow::Context as _;
use kv_client::{Client, Error, OpOptions, Options};

use crate::clock::now_ns;
use crate::process::wait_for;

/// Between the end of an operation and the next.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a success may be waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Nothing is looked for, or nothing was found yet.
const NONE: i64 = i64::MAX;

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    /// Only what begins at this moment or later counts.
    since: AtomicI64,
    /// Ends of the first that counted: PUT, GET.
    first: [AtomicI64; 2],
}

/// The two clients.
#[derive(Debug)]
pub(super) struct Probe {
    shared: Arc<Shared>,
    hands: Vec<JoinHandle<()>>,
}

impl Probe {
    /// Begins to write and read a key. Returns when both have succeeded once.
    pub(super) fn start(endpoint: &str, key: &str) -> anyhow::Result<Probe> {
        let shared = Arc::new(Shared::default());
        let mut probe = Probe { shared: Arc::clone(&shared), hands: Vec::new() };
        for (which, first) in shared.first.iter().enumerate() {
            first.store(NONE, Ordering::SeqCst);
            let client = Client::open(endpoint, Options::default())?;
            let (shared, key) = (Arc::clone(&shared), key.as_bytes().to_vec());
            probe.hands.push(thread::spawn(move || work(client, &key, which, &shared)));
        }
        probe.wait().context("before anything was struck")?;
        Ok(probe)
    }

    /// From now on a first success is looked for among what begins at this moment or later.
    pub(super) fn look_from(&self, moment_ns: i64) {
        self.shared.since.store(moment_ns, Ordering::SeqCst);
        self.shared.first.iter().for_each(|first| first.store(NONE, Ordering::SeqCst));
    }

    /// When a PUT and a GET have first succeeded.
    pub(super) fn wait(&self) -> anyhow::Result<[i64; 2]> {
        wait_for("a PUT and a GET to succeed", PATIENCE, || {
            let [put, get] = &self.shared.first;
            let found = [put.load(Ordering::SeqCst), get.load(Ordering::SeqCst)];
            (!found.contains(&NONE)).then_some(found)
        })
    }
}

fn work(mut client: Client, key: &[u8], which: usize, shared: &Shared) {
    let options = OpOptions::default();
    while !shared.over.load(Ordering::SeqCst) {
        let start = now_ns();
        let done = match which {
            0 => client.put(key, b"probe", &options).map(drop),
            _ => match client.get(key, &options) {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(error),
            },
        };
        if done.is_ok() && start >= shared.since.load(Ordering::SeqCst) {
            // Only the first counts.
            let first = &shared.first[which];
            let _ = first.compare_exchange(NONE, now_ns(), Ordering::SeqCst, Ordering::SeqCst);
        }
        thread::sleep(PAUSE);
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
