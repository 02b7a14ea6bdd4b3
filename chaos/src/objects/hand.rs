//! One thread of operations on objects, with its client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kv_client::update::UpdateResult;
use kv_client::{Client, Error, Landing, Op, OpOptions, Options, Outcome as Response, Part};
use kv_history::Kind;
use kv_history::object::{
    Answer, Change, Guard, Lifetime, ObjectRecord, Outcome, Shown, Span, Text, Update,
};
use kv_protocol::placement::Placement;
use kv_protocol::update as wire;
use kv_testkit::objects::{Choice, Class, Known, PIECE_BYTES, outcome_of, to_wire};
use kv_testkit::random::Random;

use super::{Line, choose, wall_ms};
use crate::args::WorkerArgs;
use crate::clock::now_ns;
use crate::flight::Flight;
use crate::keys::KeyAge;
use crate::worker::{Journal, NUMBERS_A_THREAD, Over, ending, is_unsettled};

/// The number of keys whose last value is kept for conditions.
const MOST_KNOWN: usize = 64;
/// The number of the first value of each thread. All values stay below 2^50, so that sums with fractions are exact.
const VALUES_A_THREAD: u64 = 10_000_000;

/// One thread of operations on objects.
pub(crate) struct Hand<'a> {
    args: &'a WorkerArgs,
    /// The number of the thread among all threads of the run.
    number: u32,
    /// The current process number of the thread.
    process: u32,
    placement: Placement,
    client: Client,
    random: Random,
    known: BTreeMap<Vec<u8>, Known>,
    next_value: u64,
    journal: &'a Journal,
    flight: &'a Flight,
}

/// An operation to perform.
struct Plan {
    keys: Vec<Vec<u8>>,
    is_read: bool,
    shows_deadline: bool,
    updates: Vec<Update>,
}

impl Plan {
    fn key(&self) -> &[u8] {
        &self.keys[self.updates[0].key]
    }
}

impl<'a> Hand<'a> {
    pub(crate) fn new(
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
            known: BTreeMap::new(),
            next_value: u64::from(number) * VALUES_A_THREAD,
            journal,
            flight,
        })
    }

    /// Performs operations until the load is over.
    pub(crate) fn work(mut self, over: &Over) -> anyhow::Result<()> {
        let pause = Duration::from_secs(1) / self.args.rate.max(1);
        let mut due = Instant::now();
        while !over.is_over() {
            let plan = self.plan();
            if !plan.is_read {
                let (group, _) = self.placement.locate(plan.key());
                self.flight.set(self.number, Some(group.0));
            }
            let (from, start) = (wall_ms(), now_ns());
            let result = self.act(&plan);
            let (end, to) = (now_ns(), wall_ms());
            self.flight.set(self.number, None);
            let answer = self.answer(&plan, result)?;
            let is_open = answer == Answer::InDoubt;
            let is_conflict = matches!(&answer, Answer::Shown { updates, .. }
                if updates.len() == 1 && updates[0].outcome == Outcome::Conflict);
            self.journal.write(&Line::Object(ObjectRecord {
                keys: plan.keys.iter().map(|key| String::from_utf8_lossy(key).into()).collect(),
                client: self.process,
                start,
                end: if is_open { i64::MAX } else { end },
                wall: Span { from, to: if is_open { i64::MAX } else { to } },
                is_read: plan.is_read,
                // The client library does not pass the deadline on in a conflict.
                shows_deadline: plan.shows_deadline && !is_conflict,
                updates: plan.updates,
                answer,
            }))?;
            if is_open {
                self.process += 1;
            }
            due = (due + pause).max(Instant::now() - pause);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn plan(&mut self) -> Plan {
        let age = if self.random.per_mille(80) { KeyAge::Past } else { KeyAge::Current };
        let (class, keys) = choose(self.placement, &mut self.random, now_ns(), age);
        let key = self.random.index(keys.len());
        if age == KeyAge::Past || self.random.per_mille(350) {
            return self.read(keys, key);
        }
        let updates = match class {
            Class::Expiring if self.random.per_mille(300) => vec![self.expiry(key)],
            Class::Item if self.random.per_mille(300) => vec![self.swap(&keys, key)],
            _ => {
                let Hand { random, known, next_value, .. } = self;
                let mut choice = Choice { random, known, keys: &keys, now: wall_ms(), next_value };
                choice.updates(class, key)
            }
        };
        Plan { keys, is_read: false, shows_deadline: true, updates }
    }

    fn read(&mut self, keys: Vec<Vec<u8>>, key: usize) -> Plan {
        let random = &mut self.random;
        let (change, shows_deadline) = match random.below(10) {
            0 | 1 => {
                let from = random.index(4 * PIECE_BYTES);
                let most = 1 + random.index(2 * PIECE_BYTES);
                let from_end = random.per_mille(500);
                (Change::CheckPart { from, most, from_end }, random.per_mille(500))
            }
            2 => (Change::CheckPart { from: 0, most: 0, from_end: false }, true),
            3..6 => (Change::Check, false),
            _ => (Change::Check, true),
        };
        let update = Update { returns_value: true, ..Update::new(key, change) };
        Plan { keys, is_read: true, shows_deadline, updates: vec![update] }
    }

    /// Chooses an update of the deadline of an entry, or a PUT that keeps it.
    fn expiry(&mut self, key: usize) -> Update {
        let random = &mut self.random;
        let millis = i64::try_from(random.between(20, 2_000)).expect("a short time");
        let (guard, lifetime) = match random.below(7) {
            0 => (Guard::HasDeadline, Lifetime::Never),
            1 => (Guard::HasDeadline, Lifetime::After(millis)),
            2 => (Guard::NoDeadline, Lifetime::After(millis)),
            // Most deadlines are earlier than this one.
            3 => (Guard::Later, Lifetime::After(millis + 5_000)),
            4 => (Guard::Earlier, Lifetime::At(wall_ms() + millis)),
            5 => (Guard::Always, Lifetime::After(millis)),
            _ => {
                return Update { lifetime: Lifetime::Keep, ..self.put(key) };
            }
        };
        let returns_value = random.per_mille(500);
        Update { guard, lifetime, returns_value, ..Update::new(key, Change::SetExpiry) }
    }

    /// Chooses a PUT on the condition that the entry is the one that the client has read last.
    fn swap(&mut self, keys: &[Vec<u8>], key: usize) -> Update {
        let guard = match self.known.get(&keys[key]) {
            Some(known) if self.random.per_mille(500) => Guard::Version(known.version),
            Some(known) => Guard::Value(known.value.clone()),
            None => Guard::Absent,
        };
        Update { guard, ..self.put(key) }
    }

    /// Creates a PUT of a number that no other PUT of the run writes.
    fn put(&mut self, key: usize) -> Update {
        self.next_value += 1;
        let value = (self.next_value * 1_000).to_string().into_bytes();
        Update::new(key, Change::Put(value.into()))
    }

    fn act(&mut self, plan: &Plan) -> Result<Response, Error> {
        let (key, options) = (plan.key(), OpOptions::default());
        if plan.is_read {
            let with_deadline = plan.shows_deadline;
            let part = match plan.updates[0].change {
                Change::CheckPart { from, most, from_end } => {
                    let number = |length| u32::try_from(length).expect("texts are short");
                    let part = Part::new(number(from), number(most));
                    Some(Part { from_end, with_deadline, ..part })
                }
                _ => with_deadline.then_some(Part::WITH_DEADLINE),
            };
            let read = Op::Read { key, part, landing: Landing::Memory };
            return self.client.call(read, &options, |reply| reply.into());
        }
        let mut amounts = vec![String::new(); plan.updates.len()];
        let updates: Vec<wire::Update<'_>> = plan
            .updates
            .iter()
            .zip(&mut amounts)
            .map(|(update, amount)| {
                let own = (update.key != plan.updates[0].key).then(|| &plan.keys[update.key][..]);
                to_wire(&plan.keys, update, own, amount)
            })
            .collect();
        let update = Op::Update { key, updates: &updates };
        let done = self.client.call(update, &options, |reply| reply.into());
        self.settle(done)
    }

    /// Settles three of four writes that end in doubt. The others remain in doubt, as in a program that does not settle
    /// its writes.
    fn settle(&mut self, done: Result<Response, Error>) -> Result<Response, Error> {
        let Err(Error::InDoubt { doubt: Some(doubt), .. }) = &done else { return done };
        if self.random.below(4) == 0 {
            return done;
        }
        let settled =
            self.client.call(Op::Resolve { doubt }, &OpOptions::default(), |reply| reply.into());
        match settled {
            Err(error) if is_unsettled(&error) => done,
            settled => settled,
        }
    }

    /// Returns the content of a response.
    fn answer(&mut self, plan: &Plan, result: Result<Response, Error>) -> anyhow::Result<Answer> {
        let count = plan.updates.len();
        let alone = |outcome, version, value: Option<Text>, deadline| {
            let shown = Shown { outcome, value, deadline };
            Answer::Shown { version, updates: vec![shown] }
        };
        let millis = |deadline: kv_client::WallTime| deadline.millis().cast_signed();
        if let [update] = &plan.updates[..] {
            let has_whole = plan.is_read && update.change == Change::Check;
            match &result {
                Ok(Response { version, value, .. }) if has_whole => {
                    let known = Known { version: version.0, value: Text::from(&value[..]) };
                    if self.known.len() >= MOST_KNOWN {
                        self.known.clear();
                    }
                    self.known.insert(plan.key().to_vec(), known);
                }
                Err(Error::NotFound { .. }) => drop(self.known.remove(plan.key())),
                _ => {}
            }
        }
        Ok(match result {
            Ok(Response { version, value, .. }) if count > 1 => {
                let results = UpdateResult::read_all(&value)
                    .ok()
                    .with_context(|| format!("the results of a batch are malformed: {value:?}"))?;
                let shown = |result: &UpdateResult<'_>| {
                    let outcome = outcome_of(result.status)
                        .with_context(|| format!("an update of a batch got {result:?}"))?;
                    let value = result.value.map(Text::from);
                    Ok(Shown { outcome, value, deadline: result.deadline.map(millis) })
                };
                let updates: anyhow::Result<Vec<Shown>> = results.iter().map(shown).collect();
                Answer::Shown { version: version.0, updates: updates? }
            }
            Ok(Response { version, value, has_value, deadline, .. }) => {
                let value = (has_value || plan.is_read).then(|| Text::from(value));
                alone(Outcome::Done, version.0, value, deadline.map(millis))
            }
            Err(Error::NotFound { .. }) => alone(Outcome::NotFound, 0, None, None),
            Err(Error::Conflict { version, value, .. }) if count == 1 => {
                alone(Outcome::Conflict, version.0, value.map(|value| Text::from(&value[..])), None)
            }
            Err(
                ref error @ (Error::Conflict { ref action, .. }
                | Error::NotANumber { ref action }
                | Error::Overflow { ref action }),
            ) => {
                let outcome = match error {
                    Error::Conflict { .. } => Outcome::Conflict,
                    Error::NotANumber { .. } => Outcome::NotANumber,
                    _ => Outcome::Overflow,
                };
                let index = action.index_in_batch().or((count == 1).then_some(0));
                let index = index.with_context(|| format!("the error names no update: {error}"))?;
                Answer::Failed { index, outcome }
            }
            Err(error) => match ending(&error) {
                (Kind::Info, _) => Answer::InDoubt,
                (_, reason) => {
                    if reason == kv_history::Reason::Refused {
                        eprintln!("worker {}: {error}", self.number);
                    }
                    Answer::Refused(reason)
                }
            },
        })
    }
}
