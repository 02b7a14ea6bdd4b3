//! Random writes, updates, losses, retries and expiries, compared with the model of updates.

use kv_protocol::update::{Action, Expiry, Precondition, Update, UpdateResult, Updates};

use super::*;
use crate::update::model::{Model, Reply};

const KEYS: [&[u8]; 6] = [&[0], &[1], &[2], &[3], &[4], &[5]];
const WALL: u64 = 1_800_000_000_000;
/// The number of writes of which one is chosen for a retry.
const RETRIED: usize = 12;

static LONG: [u8; 200_000] = [b'7'; 200_000];

#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    Delete(usize),
    PutIfAbsent(usize),
    Update(usize, Vec<Draft>),
    /// Advances the time by this number of milliseconds, with a wake-up of both replicas.
    Pass(u64),
    /// Advances the time without a wake-up, so that requests find entries that have expired.
    PassUnseen(u64),
    Deliver,
    Ack,
    Lose,
    Reconnect,
    /// Retries one of the last writes.
    Retry(usize),
}

/// An update without borrowed values.
#[derive(Clone, Debug)]
struct Draft {
    key: Option<usize>,
    action: Action<'static>,
    condition: When,
    expiry: Expiry,
    returns_value: bool,
    is_optional: bool,
}

#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    Absent,
    Present,
    /// The key has the value that it has before the request.
    SameValue,
    SameVersion,
    OtherValue,
    HasDeadline,
}

/// A write, its expected response and the ids of its requests.
struct Sent {
    key: &'static [u8],
    body: Body,
    header: WriteHeader,
    ids: Vec<u64>,
    expected: Expected,
}

enum Body {
    Put(Vec<u8>),
    Delete,
    Update(Vec<u8>),
}

/// The status, version, value and deadline of a response.
type Expected = (Status, u64, Option<Vec<u8>>, Option<u64>);

impl Sent {
    fn operation(&self) -> Operation<'_> {
        match &self.body {
            Body::Put(value) => Operation::Put(self.header, value),
            Body::Delete => Operation::Delete(self.header),
            Body::Update(bytes) => Operation::Update(self.header, Updates::read(bytes).unwrap()),
        }
    }
}

fn key() -> impl Strategy<Value = usize> {
    0..KEYS.len()
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![9 => 0usize..6, 1 => 60_000usize..LONG.len()]
}

fn draft() -> impl Strategy<Value = Draft> {
    let name = || key().prop_map(|key| KEYS[key]);
    let bytes = || length().prop_map(|length| &LONG[..length]);
    let action = prop_oneof![
        1 => Just(Action::Check),
        3 => bytes().prop_map(Action::Put),
        1 => Just(Action::Delete),
        3 => (-9i64..9).prop_map(Action::Add),
        1 => Just(Action::AddFloat(b"0.5")),
        3 => bytes().prop_map(Action::Append),
        1 => (0u32..9, bytes()).prop_map(|(offset, bytes)| Action::SetRange { offset, bytes }),
        1 => name().prop_map(Action::Rename),
        1 => name().prop_map(Action::Copy),
        1 => Just(Action::SetExpiry),
    ];
    let condition = prop_oneof![
        8 => Just(When::Always),
        1 => Just(When::Absent),
        1 => Just(When::Present),
        2 => Just(When::SameValue),
        1 => Just(When::SameVersion),
        1 => Just(When::OtherValue),
        1 => Just(When::HasDeadline),
    ];
    let expiry = prop_oneof![
        4 => Just(Expiry::Keep),
        1 => Just(Expiry::Never),
        3 => (0u64..300).prop_map(Expiry::After),
        1 => (0u64..300).prop_map(Expiry::KeepOrAfter),
        1 => Just(Expiry::At(WallTime::from_millis(1))),
    ];
    let flags = (any::<bool>(), any::<bool>());
    let key = prop::option::of(key());
    (key, action, condition, expiry, flags).prop_map(|(key, action, condition, expiry, flags)| {
        let (returns_value, is_optional) = flags;
        let keeps =
            matches!(action, Action::Check | Action::Delete | Action::Rename(_) | Action::Copy(_));
        let expiry = if keeps { Expiry::Keep } else { expiry };
        Draft { key, action, condition, expiry, returns_value, is_optional }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let put_length = prop_oneof![0usize..40, 60_000usize..200_000];
    prop_oneof![
        4 => (key(), put_length).prop_map(|(k, n)| Step::Put(k, n)),
        2 => key().prop_map(Step::Delete),
        2 => key().prop_map(Step::PutIfAbsent),
        6 => (key(), draft()).prop_map(|(k, draft)| Step::Update(k, vec![draft])),
        3 => (key(), prop::collection::vec(draft(), 2..5)).prop_map(|(k, all)| Step::Update(k, all)),
        2 => (1u64..200).prop_map(Step::Pass),
        2 => (1u64..200).prop_map(Step::PassUnseen),
        3 => Just(Step::Deliver),
        3 => Just(Step::Ack),
        1 => Just(Step::Lose),
        1 => Just(Step::Reconnect),
        2 => (0..RETRIED).prop_map(Step::Retry),
    ]
}

/// A pair, the model of its newest state, and all writes so far.
struct Run {
    pair: Pair,
    model: Model,
    sent: Vec<Sent>,
}

impl Run {
    fn new() -> Run {
        let mut pair = Pair::new();
        let wall = WallTime::from_millis(WALL);
        pair.primary.note_wall(pair.now, wall);
        pair.secondary.note_wall(pair.now, wall);
        Run { pair, model: Model { wall: WALL, ..Model::default() }, sent: Vec::new() }
    }

    fn perform(&mut self, step: &Step) {
        let put = |value| Update::new(Action::Put(value));
        match step {
            Step::Put(key, length) => {
                let (key, value) = (KEYS[*key], vec![KEYS[*key][0]; *length]);
                let expected = self.expect(key, &[put(&value)]);
                self.send(key, Body::Put(value), Condition::Always, expected);
            }
            Step::PutIfAbsent(key) => {
                let update = Update { condition: Precondition::Absent, ..put(b"new") };
                let expected = self.expect(KEYS[*key], &[update]);
                let body = Body::Put(b"new".to_vec());
                self.send(KEYS[*key], body, Condition::IfAbsent, expected);
            }
            Step::Delete(key) => {
                let expected = self.expect(KEYS[*key], &[Update::new(Action::Delete)]);
                self.send(KEYS[*key], Body::Delete, Condition::Always, expected);
            }
            Step::Update(key, drafts) => self.update(KEYS[*key], drafts),
            Step::Pass(millis) => {
                self.pass(*millis);
                self.wake();
            }
            Step::PassUnseen(millis) => self.pass(*millis),
            Step::Deliver => self.pair.deliver(),
            Step::Ack => self.pair.ack(),
            Step::Lose => self.pair.disconnect(),
            Step::Reconnect => self.reconnect(),
            Step::Retry(back) => {
                if let Some(at) = self.sent.len().checked_sub(1 + back) {
                    self.retry(at);
                }
            }
        }
    }

    fn update(&mut self, key: &'static [u8], drafts: &[Draft]) {
        let entries = self.model.entries.clone();
        let updates = drafts.iter().map(|draft| {
            let of = draft.key.map(|key| KEYS[key]);
            let entry = entries.get(of.unwrap_or(key));
            let condition = match draft.condition {
                When::Always => Precondition::None,
                When::Absent => Precondition::Absent,
                When::Present => Precondition::Present,
                When::SameValue => Precondition::Value(entry.map_or(&[], |entry| &entry.value)),
                When::SameVersion => {
                    let version = entry.map_or(0, |entry| entry.version);
                    Precondition::Version(SequenceNumber(version))
                }
                When::OtherValue => Precondition::Value(b"other"),
                When::HasDeadline => Precondition::HasDeadline,
            };
            let Draft { action, expiry, returns_value, is_optional, .. } = *draft;
            Update { key: of, action, condition, expiry, returns_value, is_optional }
        });
        let updates: Vec<Update<'_>> = updates.collect();
        let mut bytes = Vec::new();
        updates.iter().for_each(|update| update.write(&mut bytes));
        assert_eq!(Updates::read(&bytes).unwrap().validate(), Ok(()));
        let expected = self.expect(key, &updates);
        self.send(key, Body::Update(bytes), Condition::Always, expected);
    }

    /// Executes the next write in the model, and returns its response.
    fn expect(&mut self, key: &[u8], updates: &[Update<'_>]) -> Expected {
        let version = self.pair.primary.progress().0.0 + 1;
        let reply = self.model.execute(key, updates, version);
        let Reply { status, is_done, found, failed_at, mut results, .. } = reply;
        let version = if is_done { version } else { found };
        if updates.len() == 1 {
            let (_, value, deadline) = results.remove(0);
            return (status, version, value, deadline);
        }
        let mut value = Vec::new();
        for (status, value_of_one, deadline) in &results {
            let deadline = deadline.map(WallTime::from_millis);
            let result = UpdateResult { status: *status, value: value_of_one.as_deref(), deadline };
            result.write(&mut value);
        }
        if let Some(index) = failed_at {
            value = index.to_string().into_bytes();
        }
        (status, version, Some(value), None)
    }

    fn send(&mut self, key: &'static [u8], body: Body, condition: Condition, expected: Expected) {
        let header = self.pair.header(condition);
        let sent = Sent { key, body, header, ids: Vec::new(), expected };
        self.sent.push(sent);
        self.retry(self.sent.len() - 1);
    }

    fn retry(&mut self, at: usize) {
        let id = self.pair.request(self.sent[at].key, self.sent[at].operation());
        self.sent[at].ids.push(id);
    }

    fn pass(&mut self, millis: u64) {
        self.pair.now = self.pair.now + Duration::from_millis(millis);
        self.model.wall += millis;
    }

    fn wake(&mut self) {
        let Pair { primary, secondary, inbox, now, .. } = &mut self.pair;
        primary.on_timeout(*now, inbox);
        secondary.on_timeout(*now, inbox);
    }

    fn reconnect(&mut self) {
        self.pair.disconnect();
        self.pair.connect();
    }

    /// Checks every response. The last writes are retried once more, now that they are committed.
    fn check_responses(&mut self) {
        for at in self.sent.len().saturating_sub(RETRIED)..self.sent.len() {
            self.retry(at);
            let last = *self.sent[at].ids.last().unwrap();
            assert!(self.pair.given(last).is_some(), "retry {last} of a committed write");
        }
        for Sent { ids, expected, .. } in &self.sent {
            assert!(self.pair.given(ids[0]).is_some(), "request {}", ids[0]);
            // A write drops the oldest of many retries that wait for it.
            for id in ids {
                let Some(given) = self.pair.given(*id) else { continue };
                let (status, version, value, deadline) = expected;
                assert_eq!((given.status, given.version.0), (*status, *version), "request {id}");
                assert_eq!(given.has_value, value.is_some(), "request {id}");
                assert!(given.value == value.as_deref().unwrap_or(&[]), "value of request {id}");
                assert_eq!(given.deadline.map(WallTime::millis), *deadline, "request {id}");
            }
        }
    }

    /// Checks that both holders have the entries of the model. An entry that has expired may still exist.
    fn check_contents(&self) {
        let Pair { primary, secondary, .. } = &self.pair;
        let held = contents(primary);
        assert!(held == contents(secondary), "the entries of the holders differ");
        let mut model = self.model.clone();
        let all = model.entries.clone();
        model.remove_expired();
        for (key, (value, version)) in &held {
            let entry = all.get(key).unwrap_or_else(|| panic!("{key:?} was removed"));
            assert_eq!(*version, entry.version, "{key:?}");
            assert!(*value == *entry.value, "value of {key:?}");
        }
        assert!(model.entries.keys().all(|key| held.contains_key(key)), "an entry is missing");
        assert_eq!(primary.content(), secondary.content());
        assert_eq!(primary.recount(), primary.content());
        assert_eq!(secondary.recount(), secondary.content());
        let records = |replica: &Replica| {
            let records = replica.completion_records(0..usize::MAX);
            let mut all: Vec<_> =
                records.map(|r| (r.record.seq, r.record.status, r.record.version)).collect();
            all.sort_by_key(|record| record.0);
            all.into_iter()
                .map(|(seq, status, version)| {
                    (seq, status, version, replica.response_of(ALICE, seq).to_vec())
                })
                .collect::<Vec<_>>()
        };
        assert!(records(primary) == records(secondary), "the records of the holders differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Checks that writes take effect once, in order, at both holders, whatever is lost and sent again. The responses
    /// must equal those of the model, which executes the writes one after the other.
    #[test]
    fn losses_and_retries_do_not_change_the_outcome(steps in prop::collection::vec(step(), 1..80)) {
        let mut run = Run::new();
        steps.iter().for_each(|step| run.perform(step));
        run.reconnect();
        run.pair.settle();
        run.pair.settle();
        run.check_responses();
        run.check_contents();

        // All deadlines pass.
        for millis in [1_000, 5, 5] {
            run.pass(millis);
            run.wake();
            run.pair.settle();
            run.pair.settle();
        }
        run.model.remove_expired();
        run.check_contents();
        prop_assert_eq!(contents(&run.pair.secondary).len(), run.model.entries.len());
    }
}
