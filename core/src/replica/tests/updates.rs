//! Updates at both holders: evaluation against the pending state, responses of retries, batches, and long responses.

use kv_protocol::update::{Action, Expiry, Precondition, Update, UpdateResult, Updates};

use super::ending::stay_awake;
use super::*;

impl Pair {
    /// Sends an UPDATE and returns its request id.
    pub(super) fn update(&mut self, key: &[u8], updates: &[Update<'_>]) -> u64 {
        let header = self.header(Condition::Always);
        self.requests += 1;
        self.update_as(self.requests, key, updates, header);
        self.requests
    }

    fn update_as(&mut self, id: u64, key: &[u8], updates: &[Update<'_>], header: WriteHeader) {
        let mut bytes = Vec::new();
        updates.iter().for_each(|update| update.write(&mut bytes));
        let updates = Updates::read(&bytes).unwrap();
        assert_eq!(updates.validate(), Ok(()));
        self.request_as(id, key, Operation::Update(header, updates));
    }

    /// Sends an UPDATE, settles it, and returns the response.
    pub(super) fn updated(&mut self, key: &[u8], updates: &[Update<'_>]) -> Given {
        let id = self.update(key, updates);
        self.settle();
        self.given(id).expect("it is committed")
    }

    fn check_copies(&self) {
        assert_eq!(self.primary.content(), self.secondary.content());
        assert_eq!(self.primary.recount(), self.primary.content());
        assert_eq!(self.secondary.recount(), self.secondary.content());
        assert_eq!(contents(&self.primary), contents(&self.secondary));
    }
}

const ADD: Update<'_> = Update {
    key: None,
    action: Action::Add(1),
    condition: Precondition::None,
    expiry: Expiry::Keep,
    returns_value: false,
    is_optional: false,
};

#[test]
fn an_update_sees_pending_writes_and_replicas_only_apply() {
    let mut pair = Pair::new();
    pair.put(b"n", b"40");
    let first = pair.update(b"n", &[ADD]);
    let second = pair.update(b"n", &[ADD]);
    let appended = pair.update(b"n", &[Update::new(Action::Append(b"0"))]);
    assert_eq!(pair.status(first), None, "it waits for the other holder");
    pair.settle();
    let [first, second, appended] = [first, second, appended].map(|id| pair.given(id).unwrap());
    assert_eq!((first.value, second.value, appended.value), ("41".into(), "42".into(), "3".into()));
    assert!(first.has_value && first.version < second.version);
    assert_eq!(pair.get(b"n").value, b"420");
    pair.check_copies();
}

#[test]
fn a_retry_gets_the_first_response_with_its_value_from_either_holder() {
    let mut pair = Pair::new();
    let header = pair.header(Condition::Always);
    pair.update_as(101, b"n", &[ADD], header);
    pair.settle();
    pair.updated(b"n", &[ADD]);
    pair.update_as(103, b"n", &[ADD], header);
    assert_eq!(pair.given(103), pair.given(101), "the sum of the first execution");
    assert_eq!(pair.get(b"n").value, b"2");
    let record = |replica: &Replica| replica.response_of(ALICE, RequestSeq(1)).to_vec();
    assert_eq!(record(&pair.primary), record(&pair.secondary));
    assert!(!record(&pair.secondary).is_empty());
    pair.check_copies();
}

#[test]
fn an_error_of_an_update_is_logged_and_changes_nothing() {
    let mut pair = Pair::new();
    pair.put(b"t", b"text");
    let max = i64::MAX.to_string();
    pair.put(b"m", max.as_bytes());
    for (key, action, status) in [
        (&b"t"[..], Action::Add(1), Status::NotANumber),
        (b"t", Action::AddFloat(b"1"), Status::NotANumber),
        (b"m", Action::Add(1), Status::Overflow),
        (b"a", Action::SetExpiry, Status::NotFound),
        (b"a", Action::Rename(b"b"), Status::NotFound),
        (b"a", Action::Delete, Status::NotFound),
    ] {
        let before = pair.primary.progress();
        let given = pair.updated(key, &[Update::new(action)]);
        assert_eq!(given.status, status, "{action:?}");
        assert!(pair.primary.progress() > before, "a retry gets the same response");
    }
    assert_eq!((pair.get(b"t").value, pair.get(b"m").value), (b"text".to_vec(), max.into()));
    pair.check_copies();
}

#[test]
fn a_batch_is_one_write_with_one_version_or_nothing() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    let of = |key, action| Update { key: Some(key), ..Update::new(action) };
    let batch = [
        of(b"a", Action::Rename(b"c")),
        of(b"b", Action::Put(b"2")),
        Update { returns_value: true, ..of(b"c", Action::Check) },
        of(b"c", Action::Append(b"x")),
    ];
    let before = contents(&pair.primary);
    let id = pair.update(b"a", &batch);
    assert_eq!(contents(&pair.primary), before, "nothing of it can be read before its commit");
    pair.settle();
    let given = pair.given(id).unwrap();
    assert_eq!(given.status, Status::Ok);
    let results = UpdateResult::read_all(&given.value).unwrap();
    assert_eq!(results[2].value, Some(&b"1"[..]));
    assert_eq!(results[3].value, Some(&b"2"[..]), "the length");
    let all = contents(&pair.primary);
    let expected = [(b"b", &b"2"[..]), (b"c", b"1x")];
    let expected = expected.map(|(key, value)| (key.to_vec(), (value.to_vec(), given.version.0)));
    assert_eq!(all.clone().into_iter().collect::<Vec<_>>(), expected);
    pair.check_copies();

    let fails = [
        of(b"b", Action::Put(b"3")),
        Update { condition: Precondition::Absent, ..of(b"c", Action::Put(b"3")) },
    ];
    let given = pair.updated(b"b", &fails);
    assert_eq!((given.status, &given.value[..]), (Status::Conflict, &b"1"[..]));
    assert_eq!(contents(&pair.primary), all);
    let optional = fails.map(|update| Update { is_optional: true, ..update });
    let given = pair.updated(b"b", &optional);
    let results = UpdateResult::read_all(&given.value).unwrap();
    assert_eq!(
        results.iter().map(|r| r.status).collect::<Vec<_>>(),
        [Status::Ok, Status::Conflict]
    );
    assert_eq!(pair.get(b"b").value, b"3");
    pair.check_copies();
}

#[test]
fn long_values_and_responses_arrive_in_fragments() {
    let mut pair = Pair::new();
    let length = 3 * FRAGMENT_BYTES + 17;
    let long: Vec<u8> = (0..=250).cycle().take(length).collect();
    pair.put(b"l", &long);
    pair.settle();
    let returned = Update { returns_value: true, ..Update::new(Action::Put(&long[1..])) };
    let given = pair.updated(b"l", &[returned]);
    assert_eq!((given.has_value, given.value), (true, long.clone()), "the old value");
    let moved = pair.updated(b"l", &[Update::new(Action::Rename(b"other"))]);
    assert_eq!(moved.status, Status::Ok);
    assert_eq!(pair.get(b"other").value, &long[1..]);
    let taken = Update { returns_value: true, ..Update::new(Action::Delete) };
    let given = pair.updated(b"other", &[taken]);
    assert_eq!(given.value, &long[1..]);
    assert_eq!(contents(&pair.secondary), BTreeMap::new());
    pair.check_copies();
    // The values are kept until the client has completed the writes.
    assert!(pair.primary.retained_bytes() > 2 * length);
    pair.seq += 100;
    pair.put(b"k", b"v");
    pair.settle();
    assert_eq!(pair.primary.retained_bytes(), 0);
    assert_eq!(pair.secondary.retained_bytes(), 0);
}

#[test]
fn a_stream_that_breaks_amid_a_response_sends_all_of_it_again() {
    let mut pair = Pair::new();
    let long = vec![7; 2 * FRAGMENT_BYTES];
    pair.put(b"l", &long);
    pair.settle();
    let taken = Update { returns_value: true, ..Update::new(Action::Delete) };
    let id = pair.update(b"l", &[taken]);
    let (bytes, pumped) = pair.pump();
    assert_eq!(pumped, Pumped::More, "the response has several fragments");
    pair.receive_at_secondary(&bytes);
    assert_eq!(contents(&pair.secondary).len(), 1, "the write is incomplete");
    pair.disconnect();
    pair.connect();
    pair.settle();
    assert_eq!(pair.given(id).unwrap().value, long);
    pair.check_copies();
}

impl Pair {
    /// Sends an UPDATE as the first write of a client that ends after it, and settles it.
    fn update_of_new_client(&mut self, client: u128, key: &[u8], update: Update<'_>) -> Given {
        let mut bytes = Vec::new();
        update.write(&mut bytes);
        let begun = self.primary.session_start();
        let header = WriteHeader { begun, ..header(1, Condition::Always) };
        self.requests += 1;
        let request = Request {
            id: RequestId(self.requests),
            view: ViewVersion(1),
            digest: Digest::of(key),
            key,
            operation: Operation::Update(header, Updates::read(&bytes).unwrap()),
        };
        let hash = self.primary.hash_of(request.digest, key);
        let asker = (CONNECTION, ClientId(client));
        self.primary.on_request(self.now, asker, &request, hash, &mut self.inbox);
        self.settle();
        self.given(self.requests).expect("it is committed")
    }

    /// Puts a value and takes it as a client that ends after it.
    fn take_as(&mut self, client: u128, value: &[u8]) -> Given {
        self.put(b"l", value);
        self.settle();
        self.update_of_new_client(client, b"l", TAKE)
    }
}

const TAKE: Update<'_> = Update { action: Action::Delete, returns_value: true, ..ADD };
const MIB: usize = 1 << 20;
/// Longer than the minimum age of sessions that expire because of their values, and the interval of the check.
const OLD: Duration = Duration::from_secs(12);

#[test]
fn too_many_kept_values_of_young_sessions_are_busy_but_numbers_are_not() {
    let mut pair = Pair::new();
    let long = vec![1; 15 * MIB];
    let statuses: Vec<Status> = (100..105).map(|n| pair.take_as(n, &long).status).collect();
    assert_eq!(statuses, [[Status::Ok; 4].as_slice(), &[Status::Busy]].concat());
    let head = pair.primary.retained_bytes() / 4 - long.len();
    let rest = MAX_RETAINED_BYTES - pair.primary.retained_bytes() - head;
    assert_eq!(pair.take_as(110, &long[..rest]).status, Status::Ok);
    assert_eq!(pair.primary.retained_bytes(), MAX_RETAINED_BYTES);
    stay_awake(&mut pair, OLD / 2);
    assert_eq!(pair.take_as(105, &long).status, Status::Busy, "the others may still retry");
    let added = pair.update_of_new_client(106, b"n", ADD);
    assert_eq!((added.status, added.value), (Status::Ok, b"1".to_vec()));
    assert_eq!(pair.primary.retained_bytes(), MAX_RETAINED_BYTES);
    assert!(pair.primary.response_of(ClientId(100), RequestSeq(1)).len() > 15 * MIB);
    pair.check_copies();
}

#[test]
fn old_sessions_with_kept_values_make_room_for_others_and_young_ones_stay() {
    let mut pair = Pair::new();
    let long = vec![1; 15 * MIB];
    for client in 100..103 {
        assert_eq!(pair.take_as(client, &long).status, Status::Ok);
        stay_awake(&mut pair, Duration::from_secs(2));
    }
    stay_awake(&mut pair, OLD);
    assert!(pair.primary.retained_bytes() > 45 * MIB, "every further response fits");
    assert_eq!(pair.take_as(103, &long).status, Status::Ok);
    stay_awake(&mut pair, Duration::from_secs(2));
    for client in 104..106 {
        assert_eq!(pair.take_as(client, &long).status, Status::Ok, "{client}");
    }
    for replica in [&pair.primary, &pair.secondary] {
        let kept = |client| replica.response_of(ClientId(client), RequestSeq(1)).len() > 15 * MIB;
        assert_eq!([100, 101, 103, 104, 105].map(kept), [false, false, true, true, true]);
        assert!(replica.retained_bytes() <= MAX_RETAINED_BYTES);
    }
    pair.check_copies();
    let written = pair.put(b"a", b"1");
    pair.settle();
    assert_eq!(pair.status(written), Some(Status::Ok), "a session that writes stays");
}
