//! One client process of the load: a few closed loops over the keys in use, each with a separate client. The loops of a
//! process use registers (this file) or objects ([`crate::objects`]). Every operation is recorded.
//!
//! The process ends when its standard input ends, so it does not outlive the process that started it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kv_client::{Client, Condition, Error, OpOptions, Options, SequenceNumber, Written};
use kv_history::{Function, Kind, Payload, Reason, Record, Value};
use kv_protocol::placement::Placement;
use kv_testkit::random::Random;
use serde::Serialize;

use crate::args::WorkerArgs;
use crate::clock::now_ns;
use crate::flight::Flight;
use crate::keys::{self, KeyAge};
use crate::objects;
use crate::objects::scanner::Scanner;

/// The number of process numbers of one thread. Each operation in doubt uses up one.
pub(crate) const NUMBERS_A_THREAD: u32 = 100_000;
/// The number of keys whose last value is kept for compare-and-set.
const MOST_SEEN: usize = 256;
/// One in this many values is long enough to be sent in fragments.
const LARGE_ONE_IN: u64 = 800;
const LARGE_BYTES: usize = 150 << 10;

/// Returns the client that has this process number.
pub(crate) fn client_of(process: u32) -> u32 {
    process / NUMBERS_A_THREAD
}

/// The last observation of a key by a thread: version and value, or `None` for an absent key.
type Seen = Option<(SequenceNumber, Value)>;

/// Runs the load until standard input ends.
pub(crate) fn run(args: &WorkerArgs) -> anyhow::Result<()> {
    let journal = Journal::create(&args.history)?;
    let flight = Flight::open(&args.flight)?;
    let over = Over::default();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let (journal, flight, over) = (&journal, &flight, &over);
        let mut threads: Vec<_> = (0..args.threads)
            .map(|thread| {
                scope.spawn(move || match args.objects {
                    true => objects::hand::Hand::new(args, thread, journal, flight)?.work(over),
                    false => Hand::new(args, thread, journal, flight)?.work(over),
                })
            })
            .collect();
        if args.objects {
            threads.push(scope.spawn(move || Scanner::new(args, journal)?.work(over)));
        }
        let mut ignored = [0; 64];
        while matches!(std::io::stdin().read(&mut ignored), Ok(1..)) {}
        over.0.store(true, Ordering::SeqCst);
        threads.into_iter().try_for_each(|thread| thread.join().expect("a thread does not panic"))
    })?;
    journal.close()
}

/// True once the load is over.
#[derive(Debug, Default)]
pub(crate) struct Over(AtomicBool);

impl Over {
    pub(crate) fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The history of the process, as a file of JSON lines.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: Mutex<BufWriter<File>>,
}

impl Journal {
    fn create(path: &Path) -> anyhow::Result<Journal> {
        let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
        Ok(Journal { path: path.to_owned(), file: Mutex::new(BufWriter::new(file)) })
    }

    /// Appends a line.
    pub(crate) fn write(&self, line: &impl Serialize) -> anyhow::Result<()> {
        let line = serde_json::to_string(line).context("encode a line of the history")?;
        let mut file = self.file.lock().unwrap_or_else(|error| error.into_inner());
        writeln!(file, "{line}")
            .with_context(|| format!("write {}; check the free space", self.path.display()))
    }

    fn close(self) -> anyhow::Result<()> {
        let mut file = self.file.into_inner().unwrap_or_else(|error| error.into_inner());
        file.flush().with_context(|| format!("write {}", self.path.display()))
    }
}

/// One thread of the load, with its client.
struct Hand<'a> {
    args: &'a WorkerArgs,
    /// The number of the thread among all threads of the run.
    number: u32,
    /// The current process number of the thread.
    process: u32,
    placement: Placement,
    client: Client,
    random: Random,
    seen: HashMap<String, Seen>,
    next_value: Value,
    journal: &'a Journal,
    flight: &'a Flight,
}

/// An operation to perform.
struct Plan {
    key: String,
    f: Function,
    asked: Payload,
    condition: Condition,
    value: Vec<u8>,
}

/// The result of an operation.
struct End {
    kind: Kind,
    value: Payload,
    version: Option<u64>,
    error: Option<Reason>,
}

impl<'a> Hand<'a> {
    fn new(
        args: &'a WorkerArgs,
        thread: u32,
        journal: &'a Journal,
        flight: &'a Flight,
    ) -> anyhow::Result<Hand<'a>> {
        let number = args.index * args.threads + thread;
        Ok(Hand {
            args,
            number,
            process: number * NUMBERS_A_THREAD,
            placement: args.placement(),
            client: Client::open(&args.endpoint, Options::default())?,
            random: Random::new(args.seed ^ (u64::from(number) << 32)),
            seen: HashMap::new(),
            // The values are unique over all threads, and JSON numbers represent them exactly.
            next_value: (u64::from(number) + 1) << 36,
            journal,
            flight,
        })
    }

    fn work(mut self, over: &Over) -> anyhow::Result<()> {
        let pause = Duration::from_secs(1) / self.args.rate.max(1);
        let mut due = Instant::now();
        while !over.is_over() {
            let plan = self.plan();
            self.note(&plan, Kind::Invoke, plan.asked, None, None)?;
            if plan.f != Function::Read {
                let (group, _) = self.placement.locate(plan.key.as_bytes());
                self.flight.set(self.number, Some(group.0));
            }
            let end = self.act(&plan);
            self.flight.set(self.number, None);
            self.note(&plan, end.kind, end.value, end.version, end.error)?;
            if end.kind == Kind::Info {
                self.process += 1;
            }
            due = (due + pause).max(Instant::now() - pause);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn note(
        &self,
        plan: &Plan,
        kind: Kind,
        value: Payload,
        version: Option<u64>,
        error: Option<Reason>,
    ) -> anyhow::Result<()> {
        let (process, f, key, time_ns) = (self.process, plan.f, plan.key.clone(), now_ns());
        let record = Record { process, kind, f, key, value, time_ns, version, error };
        self.journal.write(&record)
    }

    fn plan(&mut self) -> Plan {
        let (random, now) = (&mut self.random, now_ns());
        let kind = random.below(100);
        let read = |key| Plan {
            key,
            f: Function::Read,
            asked: Payload::One(None),
            condition: Condition::Always,
            value: Vec::new(),
        };
        if kind < 6 {
            return read(keys::choose(random, now, KeyAge::Past));
        }
        let key = keys::choose(random, now, KeyAge::Current);
        if kind < 45 {
            return read(key);
        }
        if kind < 55 {
            return Plan { f: Function::Delete, ..read(key) };
        }
        let new = self.next_value;
        self.next_value += 1;
        let value = bytes_of(new, random);
        let seen = self.seen.get(&key).filter(|_| kind < 75);
        let (condition, old) = match seen {
            Some(Some((version, old))) => (Condition::IfVersion(*version), Some(*old)),
            Some(None) => (Condition::IfAbsent, None),
            None => {
                let asked = Payload::One(Some(new));
                return Plan { f: Function::Write, asked, value, ..read(key) };
            }
        };
        Plan { key, f: Function::Cas, asked: Payload::Pair([old, Some(new)]), condition, value }
    }

    fn act(&mut self, plan: &Plan) -> End {
        let key = plan.key.as_bytes();
        let options = OpOptions { condition: plan.condition, ..OpOptions::default() };
        let done = match plan.f {
            Function::Read => match self.client.get(key, &options) {
                Ok(read) => {
                    let value = value_of(&read.bytes);
                    self.remember(&plan.key, Some((read.version, value)));
                    let version = Some(read.version.0);
                    let value = Payload::One(Some(value));
                    return End { kind: Kind::Ok, value, version, error: None };
                }
                Err(error) => Err(error),
            },
            Function::Delete => self.client.delete(key, &options),
            Function::Write | Function::Cas => self.client.put(key, &plan.value, &options),
        };
        match self.settle(done) {
            Ok(written) => {
                let now = match plan.asked {
                    Payload::One(new) | Payload::Pair([_, new]) => new,
                };
                self.remember(&plan.key, now.map(|value| (written.version, value)));
                let version = Some(written.version.0);
                End { kind: Kind::Ok, value: plan.asked, version, error: None }
            }
            Err(Error::NotFound { .. }) => {
                self.remember(&plan.key, None);
                let (kind, error) = match plan.f {
                    Function::Read => (Kind::Ok, None),
                    _ => (Kind::Fail, Some(Reason::NotFound)),
                };
                End { kind, value: Payload::One(None), version: None, error }
            }
            Err(error) => {
                self.seen.remove(&plan.key);
                let (kind, reason) = ending(&error);
                if reason == Reason::Refused {
                    eprintln!("worker {}: {error}", self.number);
                }
                End { kind, value: plan.asked, version: None, error: Some(reason) }
            }
        }
    }

    /// Settles three of four writes that end in doubt. The others remain in doubt, as in a program that does not settle
    /// its writes.
    fn settle(&mut self, done: Result<Written, Error>) -> Result<Written, Error> {
        let Err(Error::InDoubt { doubt: Some(doubt), .. }) = &done else { return done };
        if self.random.below(4) == 0 {
            return done;
        }
        match self.client.resolve(doubt, &OpOptions::default()) {
            // The write could not be settled, so its result remains unknown.
            Err(error) if is_unsettled(&error) => done,
            settled => settled,
        }
    }

    fn remember(&mut self, key: &str, seen: Seen) {
        if self.seen.len() >= MOST_SEEN {
            self.seen.clear();
        }
        self.seen.insert(key.to_owned(), seen);
    }
}

/// Returns whether a RESOLVE ended without settling its write.
pub(crate) fn is_unsettled(error: &Error) -> bool {
    matches!(
        error,
        Error::InDoubt { .. }
            | Error::Timeout { .. }
            | Error::Unavailable { .. }
            | Error::Busy { .. }
            | Error::Lost { .. }
            | Error::OtherCluster { .. }
    )
}

/// Returns the kind and reason with which a failed operation ends in the history.
pub(crate) fn ending(error: &Error) -> (Kind, Reason) {
    match error {
        Error::InDoubt { .. } => (Kind::Info, Reason::InDoubt),
        Error::Timeout { .. } => (Kind::Info, Reason::Timeout),
        Error::Conflict { .. } => (Kind::Fail, Reason::Conflict),
        Error::NotDone { .. } => (Kind::Fail, Reason::NotDone),
        Error::Lost { .. } => (Kind::Fail, Reason::Lost),
        Error::Unavailable { .. } | Error::Busy { .. } | Error::OutOfSpace { .. } => {
            (Kind::Fail, Reason::Unavailable)
        }
        _ => (Kind::Fail, Reason::Refused),
    }
}

/// Encodes a value as its number, followed by padding of random length that repeats the number's first byte.
fn bytes_of(value: Value, random: &mut Random) -> Vec<u8> {
    let mut bytes = value.to_le_bytes().to_vec();
    let length = match random.below(LARGE_ONE_IN) {
        0 => LARGE_BYTES,
        1..=400 => usize::try_from(random.between(200, 900)).expect("it is small"),
        _ => usize::try_from(random.between(8, 64)).expect("it is small"),
    };
    bytes.resize(length, bytes[0]);
    bytes
}

/// Decodes a value. If the bytes are not those of one value, returns a value that no client writes.
pub(crate) fn value_of(bytes: &[u8]) -> Value {
    match bytes.split_first_chunk() {
        Some((number, filler)) if filler.iter().all(|byte| *byte == number[0]) => {
            Value::from_le_bytes(*number)
        }
        _ => Value::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_value_is_decoded_and_a_torn_one_is_invalid() {
        let mut random = Random::new(1);
        for value in [1, 77 << 36, (1 << 53) - 1] {
            let mut bytes = bytes_of(value, &mut random);
            assert_eq!(value_of(&bytes), value);
            bytes.push(!bytes[0]);
            assert_eq!(value_of(&bytes), Value::MAX);
        }
        assert_eq!(value_of(b"short"), Value::MAX);
    }
}
