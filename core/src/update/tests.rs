//! Random requests, compared with the model.

use kv_testkit::random::Random;

use super::model::{Entry, Model, Outcome, Reply};
use super::*;
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_RETAINED_RESPONSE};

/// The number of requests of a sequence.
const REQUESTS: usize = 8;
/// The wall time at the start of a sequence.
const WALL: u64 = 1_800_000_000_000;
/// One of so many sequences has values and keys near their limits.
const LONG_EVERY: u64 = 4_000;

const SHORT_KEYS: [&[u8]; 5] = [b"a", b"b", b"key", b"key 4", b"\0\xff"];

const SHORT_VALUES: [&[u8]; 20] = [
    b"",
    b"0",
    b"1",
    b"-7",
    b"41",
    b"007",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"1.5",
    b"-0.25",
    b"3e2",
    b"1.1e4932",
    b"inf",
    b"nan",
    b"text",
    b"text",
    b"some longer text with spaces",
    b"\0\x01\xfe\xff",
    b"1 ",
];

/// The keys and values from which the requests of a sequence are chosen.
struct Pool {
    keys: Vec<Vec<u8>>,
    values: Vec<Vec<u8>>,
    is_long: bool,
}

impl Pool {
    fn short() -> Pool {
        let [keys, values] = [&SHORT_KEYS[..], &SHORT_VALUES]
            .map(|all| all.iter().map(|bytes| bytes.to_vec()).collect());
        Pool { keys, values, is_long: false }
    }

    fn long() -> Pool {
        let keys = (b'a'..b'f').map(|byte| vec![byte; MAX_KEY_BYTES]).collect();
        let mut values = Pool::short().values;
        values.truncate(6);
        for less in [0, 1, 14, 40, MAX_KEY_BYTES, MAX_VALUE_BYTES / 2] {
            values.push(vec![b'v'; MAX_VALUE_BYTES - less]);
        }
        Pool { keys, values, is_long: true }
    }

    fn key<'a>(&'a self, random: &mut Random) -> &'a [u8] {
        &self.keys[random.index(self.keys.len())]
    }

    fn value<'a>(&'a self, random: &mut Random) -> &'a [u8] {
        &self.values[random.index(self.values.len())]
    }

    fn action<'a>(&'a self, random: &mut Random) -> Action<'a> {
        match random.below(14) {
            0 => Action::Check,
            1..=3 => Action::Put(self.value(random)),
            4 => Action::Delete,
            5 | 6 => Action::Add(match random.below(6) {
                0 => i64::MAX,
                1 => i64::MIN,
                _ => random.below(20).cast_signed() - 10,
            }),
            7 => Action::AddFloat(self.value(random)),
            8 | 9 => Action::Append(self.value(random)),
            10 => {
                let bytes = self.value(random);
                let most = MAX_VALUE_BYTES - bytes.len();
                let most = if self.is_long { most } else { most.min(40) };
                let offset = u32::try_from(random.length(0, most)).expect("it is below 16 MiB");
                Action::SetRange { offset, bytes }
            }
            11 => Action::Rename(self.key(random)),
            12 => Action::Copy(self.key(random)),
            _ => Action::SetExpiry,
        }
    }

    fn condition<'a>(&'a self, random: &mut Random, entry: Option<&'a Entry>) -> Precondition<'a> {
        match random.below(18) {
            0 => Precondition::Absent,
            1 => Precondition::Present,
            2 => Precondition::Version(SequenceNumber(match entry {
                Some(entry) if random.per_mille(700) => entry.version,
                _ => random.below(4),
            })),
            3 => Precondition::Value(match entry {
                Some(entry) if random.per_mille(700) => &entry.value,
                _ => self.value(random),
            }),
            4 => Precondition::NoDeadline,
            5 => Precondition::HasDeadline,
            6 => Precondition::Later,
            7 => Precondition::Earlier,
            _ => Precondition::None,
        }
    }

    /// Returns a random update that is valid. Conditions often hold in the state of `model`.
    fn update<'a>(
        &'a self,
        random: &mut Random,
        model: &'a Model,
        request_key: &[u8],
    ) -> Update<'a> {
        loop {
            let key = random.per_mille(700).then(|| self.key(random));
            let entry = model.entries.get(key.unwrap_or(request_key));
            let update = Update {
                key,
                action: self.action(random),
                condition: self.condition(random, entry),
                expiry: expiry(random, model.wall),
                returns_value: random.per_mille(500),
                is_optional: random.per_mille(500),
            };
            if update.validate().is_ok() {
                return update;
            }
        }
    }
}

fn expiry(random: &mut Random, wall: u64) -> Expiry {
    let millis = random.below(60);
    match random.below(10) {
        0 | 1 => Expiry::Never,
        2 | 3 => Expiry::After(millis),
        4 => Expiry::At(WallTime::from_millis(wall - 20 + millis)),
        5 => [
            Expiry::After(u64::MAX),
            Expiry::At(WallTime::MAX),
            Expiry::At(WallTime::from_millis(0)),
            Expiry::KeepOrAfter(u64::MAX),
        ][random.index(4)],
        6 => Expiry::KeepOrAfter(millis),
        _ => Expiry::Keep,
    }
}

/// The outcomes that were seen in a run.
#[derive(Default)]
struct Seen {
    statuses: Vec<Status>,
    failures_that_remove: usize,
}

/// Evaluates a request and compares everything with the model, whose entries become those after the request.
fn check(
    model: &mut Model,
    request_key: &[u8],
    updates: &[Update<'_>],
    version: u64,
    seen: &mut Seen,
) {
    let mut bytes = Vec::new();
    updates.iter().for_each(|update| update.write(&mut bytes));
    let encoded = Updates::read(&bytes).expect("well-formed updates");
    let wall = WallTime::from_millis(model.wall);
    let before = model.entries.clone();
    let evaluation = evaluate(request_key, &encoded, wall, |key| {
        let Entry { value, deadline, version } = before.get(key)?;
        let deadline = deadline.map(WallTime::from_millis);
        Some(Current { value, version: SequenceNumber(*version), deadline })
    });

    let mut after = before.clone();
    let mut keys = Vec::new();
    let mut changed_bytes = 0;
    for KeyChange { key, stored } in &evaluation.changes {
        assert!(!keys.contains(key), "two changes of a key");
        keys.push(*key);
        changed_bytes += CHANGE_FIXED_BYTES + key.len();
        match stored {
            Some(Stored { value, deadline }) => {
                changed_bytes += value.len();
                let deadline = deadline.map(WallTime::millis);
                assert!(deadline.is_none_or(|deadline| deadline > model.wall), "it has expired");
                let value = value.to_vec().into();
                after.insert(key.to_vec(), Entry { value, deadline, version });
            }
            None => drop(after.remove(*key)),
        }
    }
    assert!(changed_bytes <= MAX_CHANGES_BYTES, "{changed_bytes} bytes of changes");
    let response = evaluation.response.as_deref().unwrap_or(&[]);
    assert!(response.len() <= MAX_RETAINED_RESPONSE);

    let expected = model.execute(request_key, updates, version);
    assert_eq!(evaluation.status, expected.status);
    assert_eq!(evaluation.is_done, expected.is_done);
    assert_eq!(evaluation.found, SequenceNumber(expected.found));
    check_response(response, &expected, updates.len() > 1);
    // Values are too long for a message.
    assert!(after == model.entries, "the entries after the request differ");

    seen.statuses.push(expected.status);
    seen.statuses.sort_unstable_by_key(|status| *status as u8);
    seen.statuses.dedup();
    let is_failure = !matches!(expected.status, Status::Ok | Status::NotFound);
    seen.failures_that_remove += usize::from(is_failure && expected.saw_expired);
}

fn check_response(response: &[u8], expected: &Reply, is_batch: bool) {
    let response = RetainedResponse::read(response).expect("a response");
    let deadline = |deadline: Option<WallTime>| deadline.map(WallTime::millis);
    if !is_batch {
        let (_, value, expected_deadline) = &expected.results[0];
        assert!(response.value == value.as_deref(), "the values differ");
        assert_eq!(deadline(response.deadline), *expected_deadline);
        return;
    }
    assert_eq!(response.deadline, None);
    let value = response.value.expect("a batch has a value");
    if let Some(index) = expected.failed_at {
        assert_eq!(value, index.to_string().as_bytes());
        return;
    }
    let results = UpdateResult::read_all(value).expect("results");
    let results = results
        .into_iter()
        .map(|result| (result.status, result.value.map(<[u8]>::to_vec), deadline(result.deadline)));
    assert!(results.collect::<Vec<Outcome>>() == expected.results, "the results differ");
}

/// Compares sequences of random requests. Each begins without entries.
fn compare(sequences: u64) {
    let mut random = Random::announced();
    let (short, long) = (Pool::short(), Pool::long());
    let mut seen = Seen::default();
    for sequence in 1..=sequences {
        let pool = if sequence % LONG_EVERY == 0 { &long } else { &short };
        let mut model = Model { wall: WALL, ..Model::default() };
        for version in 1..=REQUESTS as u64 {
            let request_key = pool.key(&mut random);
            let count = if random.per_mille(400) { 1 } else { random.length(1, 6) };
            let state = model.clone();
            let updates: Vec<Update<'_>> =
                (0..count).map(|_| pool.update(&mut random, &state, request_key)).collect();
            check(&mut model, request_key, &updates, version, &mut seen);
            model.wall += random.below(30);
        }
    }
    assert_eq!(
        seen.statuses,
        [
            Status::Ok,
            Status::NotFound,
            Status::Conflict,
            Status::TooBig,
            Status::NotANumber,
            Status::Overflow,
        ]
    );
    assert!(seen.failures_that_remove > 0);
}

/// A request with several updates would otherwise execute the others, although a condition does not hold.
#[test]
fn a_condition_on_the_deadline_of_an_absent_entry_ends_a_request_with_several_updates() {
    let guard = Update { condition: Precondition::HasDeadline, ..Update::new(Action::Check) };
    let put = Update { key: Some(b"other"), ..Update::new(Action::Put(b"v")) };
    let status_of = |updates: &[Update<'_>]| {
        let mut bytes = Vec::new();
        updates.iter().for_each(|update| update.write(&mut bytes));
        let read = Updates::read(&bytes).unwrap();
        let evaluation = evaluate(b"key", &read, WallTime::from_millis(1), |_| None);
        (evaluation.status, evaluation.changes.len())
    };
    assert_eq!(status_of(&[guard, put]), (Status::Conflict, 0));
    assert_eq!(status_of(&[Update { is_optional: true, ..guard }, put]), (Status::Ok, 1));
    assert_eq!(status_of(&[guard]), (Status::NotFound, 0));
}

#[test]
fn random_requests_do_what_the_model_does() {
    compare(20_000);
}

#[test]
#[ignore = "takes minutes; `make sim` runs it"]
fn a_million_sequences_of_random_requests_do_what_the_model_does() {
    compare(1_000_000);
}
