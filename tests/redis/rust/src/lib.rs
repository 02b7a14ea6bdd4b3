//! The command line of the programs, and increments by a client whose server is killed.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The counters, whose keys belong to all servers.
const KEYS: usize = 30;
/// The time after which a client without a reply fails.
const LIMIT: Duration = Duration::from_secs(30);

/// What the command line asks for.
pub enum Task {
    /// All operations, at each of these servers.
    All(Vec<String>),
    /// Increments until standard input ends, at one of these servers, and at the next one when its connection ends.
    Increments(Vec<String>),
}

/// Returns what the command line asks for: HOST:PORT of each server, for [`Task::Increments`] after a first word
/// `increments`.
pub fn task() -> Task {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "increments") {
        words.remove(0);
        return Task::Increments(words);
    }
    Task::All(words)
}

/// Splits HOST:PORT.
pub fn host_and_port(server: &str) -> (&str, u16) {
    let (host, port) = server.rsplit_once(':').expect("HOST:PORT");
    (host, port.parse().expect("a port"))
}

/// The increments of a key.
#[derive(Clone, Copy, Default)]
struct Count {
    acknowledged: i64,
    in_doubt: i64,
}

impl Count {
    /// Fails unless a value has all acknowledged increments, each once, and at most those in doubt.
    fn check(self, value: i64) {
        let possible = self.acknowledged..=self.acknowledged + self.in_doubt;
        assert!(possible.contains(&value), "the counter is {value}, and not in {possible:?}");
    }
}

/// Increments counters one by one until standard input ends. `open` connects to a server, and returns nothing if that
/// fails. `increment` returns the reply, or nothing if the connection has ended.
///
/// This is the only client, so each reply shows whether an acknowledged increment was lost or counted twice.
pub async fn increments<C>(
    servers: &[String],
    open: impl AsyncFn(&str) -> Option<C>,
    increment: impl AsyncFn(&mut C, &str) -> Option<i64>,
) {
    let is_over = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            is_over.store(true, Ordering::Relaxed);
        }
    });
    let mut counts = [Count::default(); KEYS];
    let (mut done, mut ended) = (0, 0);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    for server in servers.iter().cycle() {
        assert!(last.elapsed() < LIMIT, "no reply of any server");
        let Some(mut connection) = open(server).await else { continue };
        loop {
            if is_over.load(Ordering::Relaxed) {
                println!(
                    "passed: {done} increments at {} servers, the longest took {} ms",
                    ended + 1,
                    longest.as_millis()
                );
                return;
            }
            let key = done % KEYS;
            let Some(value) = increment(&mut connection, &format!("counter{key}")).await else {
                counts[key].in_doubt += 1;
                ended += 1;
                break;
            };
            counts[key].acknowledged += 1;
            counts[key].check(value);
            // If the reply tells whether increments in doubt took effect, they are no longer in doubt.
            counts[key] = Count { acknowledged: value, in_doubt: 0 };
            done += 1;
            longest = longest.max(last.elapsed());
            last = Instant::now();
            if done == KEYS {
                println!("started");
            }
        }
    }
}
