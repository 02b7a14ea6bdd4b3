//! Errors and limits of updates: each has its status, and the request changes nothing.

use kv_protocol::ids::ClientId;
use kv_protocol::limits::{MAX_KEY_BYTES, MAX_UPDATES};
use kv_protocol::update::{Action, Expiry, Precondition, Update, UpdateResult, Updates};

use super::*;

const MIB: usize = 1 << 20;

fn of<'a>(key: &'a [u8], action: Action<'a>) -> Update<'a> {
    Update { key: Some(key), ..Update::new(action) }
}

#[test]
fn every_error_of_an_update_has_its_status_and_changes_nothing() {
    let (max, min) = (i64::MAX.to_string(), i64::MIN.to_string());
    let beyond = "9223372036854775808";
    let add_float = |amount: &'static str| Action::AddFloat(amount.as_bytes());
    let full = vec![b'v'; MAX_VALUE_BYTES];
    let full = std::str::from_utf8(&full).unwrap();
    for (value, action, status) in [
        ("text", Action::Add(1), Status::NotANumber),
        ("", Action::Add(1), Status::NotANumber),
        ("1.0", Action::Add(1), Status::NotANumber),
        (" 1", Action::Add(1), Status::NotANumber),
        ("01", Action::Add(1), Status::NotANumber),
        (beyond, Action::Add(-1), Status::NotANumber),
        (&max, Action::Add(1), Status::Overflow),
        (&max, Action::Add(i64::MAX), Status::Overflow),
        (&min, Action::Add(-1), Status::Overflow),
        (&min, Action::Add(i64::MIN), Status::Overflow),
        ("text", add_float("1"), Status::NotANumber),
        ("", add_float("1"), Status::NotANumber),
        ("1", add_float("text"), Status::NotANumber),
        ("1", add_float(""), Status::NotANumber),
        ("1", add_float("nan"), Status::NotANumber),
        ("nan", add_float("1"), Status::NotANumber),
        ("1", add_float("1e5000"), Status::NotANumber),
        ("1", add_float("inf"), Status::Overflow),
        ("1", add_float("-inf"), Status::Overflow),
        ("inf", add_float("1"), Status::Overflow),
        ("1e4932", add_float("1e4932"), Status::Overflow),
        ("-1e4932", add_float("-1e4932"), Status::Overflow),
        (full, Action::Append(b"x"), Status::TooBig),
        (&full[1..], Action::Append(b"xy"), Status::TooBig),
    ] {
        let case = format!("{action:?} to {} bytes {}", value.len(), &value[..value.len().min(9)]);
        let mut pair = Pair::new();
        pair.put(b"k", value.as_bytes());
        pair.settle();
        let before = contents(&pair.primary);
        let update = Update::new(action);
        let given = pair.updated(b"k", &[update]);
        assert_eq!((given.status, given.has_value), (status, false), "{case}");
        assert_eq!(given.version.0, 1, "the version of the entry: {case}");

        let other = of(b"other", Action::Put(b"v"));
        let given = pair.updated(b"k", &[other, update]);
        assert_eq!((given.status, &given.value[..]), (status, &b"1"[..]), "{case}");
        assert!(contents(&pair.primary) == before, "{case}");

        let given = pair.updated(b"k", &[other, Update { is_optional: true, ..update }]);
        assert_eq!(given.status, Status::Ok, "{case}");
        let results = UpdateResult::read_all(&given.value).unwrap();
        assert_eq!([results[0].status, results[1].status], [Status::Ok, status], "{case}");
        let mut after = before;
        after.insert(b"other".to_vec(), (b"v".to_vec(), given.version.0));
        assert!(contents(&pair.primary) == after, "{case}");
        assert!(contents(&pair.secondary) == after, "{case}");
        assert_eq!(pair.primary.content(), pair.secondary.content(), "{case}");
    }
}

#[test]
fn values_of_maximum_length_are_made_by_append_and_set_range() {
    let mut pair = Pair::new();
    pair.put(b"k", &vec![b'v'; MAX_VALUE_BYTES - 1]);
    pair.settle();
    let length = MAX_VALUE_BYTES.to_string().into_bytes();
    let given = pair.updated(b"k", &[Update::new(Action::Append(b"x"))]);
    assert_eq!((given.status, &given.value), (Status::Ok, &length));
    let offset = u32::try_from(MAX_VALUE_BYTES - 2).unwrap();
    let given = pair.updated(b"new", &[Update::new(Action::SetRange { offset, bytes: b"xy" })]);
    assert_eq!((given.status, &given.value), (Status::Ok, &length));
    assert!(contents(&pair.primary) == contents(&pair.secondary));
    assert!(contents(&pair.primary).values().all(|(value, _)| value.len() == MAX_VALUE_BYTES));
}

#[test]
fn a_batch_beyond_the_limit_of_its_changes_or_results_is_too_big() {
    let value = vec![b'v'; 12 * MIB];
    let mut pair = Pair::new();
    pair.put(b"k", &value);
    pair.put(b"short", b"");
    pair.settle();
    let copies = [b"a", b"b"].map(|to| of(b"k", Action::Copy(to)));
    let returns = |key| Update { returns_value: true, ..of(key, Action::Check) };
    for (updates, failed_at) in [
        (&[copies[0], copies[1]][..], b"1"),
        (&[of(b"k", Action::Rename(b"a")), of(b"a", Action::Append(&value[..4 * MIB]))], b"1"),
        (&[returns(b"short"), returns(b"k"), returns(b"k")], b"2"),
        (&[of(b"short", Action::Delete), returns(b"k"), returns(b"k")], b"2"),
    ] {
        let before = contents(&pair.primary);
        for is_optional in [false, true] {
            let updates: Vec<Update<'_>> =
                updates.iter().map(|update| Update { is_optional, ..*update }).collect();
            let given = pair.updated(b"k", &updates);
            assert_eq!((given.status, &given.value[..]), (Status::TooBig, &failed_at[..]));
        }
        assert!(contents(&pair.primary) == before);
    }
    // One of each is possible.
    let given = pair.updated(b"k", &[copies[0], returns(b"short"), returns(b"a")]);
    assert_eq!((given.status, given.value.len()), (Status::Ok, value.len() + 3 * 14));
    assert!(contents(&pair.primary) == contents(&pair.secondary));
}

/// The removals of expired entries are changes of the request that finds them. The other holder rejects a write with
/// more bytes of changes than [`MAX_CHANGES_BYTES`](kv_protocol::limits::MAX_CHANGES_BYTES).
#[test]
fn removals_of_expired_entries_count_for_the_limit_of_the_changes() {
    let wall = WallTime::from_millis(1_800_000_000_000);
    let mut pair = Pair::new();
    pair.primary.note_wall(pair.now, wall);
    pair.secondary.note_wall(pair.now, wall);
    let long: Vec<Vec<u8>> = (0..5).map(|byte| vec![byte; MAX_KEY_BYTES]).collect();
    for key in &long {
        let put = Update { expiry: Expiry::After(100), ..of(key, Action::Put(b"v")) };
        assert_eq!(pair.updated(b"k", &[put]).status, Status::Ok);
    }
    pair.put(b"k", &vec![b'v'; MAX_VALUE_BYTES]);
    pair.settle();
    pair.now = pair.now + Duration::from_millis(200);
    let mut updates = vec![Update::new(Action::Rename(b"to"))];
    updates.extend(long.iter().map(|key| of(key, Action::Check)));
    let given = pair.updated(b"k", &updates);
    assert_eq!((given.status, &given.value[..]), (Status::TooBig, &b"4"[..]));
    let keys = |replica: &Replica| contents(replica).into_keys().collect::<Vec<_>>();
    // The entries that were found to be expired are removed all the same, because the response depends on it.
    assert_eq!(keys(&pair.primary), [&long[4][..], b"k"]);
    assert_eq!(keys(&pair.secondary), [&long[4][..], b"k"]);
    assert_eq!(pair.updated(b"k", &updates).status, Status::Ok);
    assert_eq!(keys(&pair.secondary), [b"to"]);
    assert_eq!(pair.primary.content(), pair.secondary.content());
}

#[test]
fn invalid_requests_are_rejected_with_their_status() {
    let full = vec![b'v'; MAX_VALUE_BYTES + 1];
    let put = Update::new(Action::Put(b"v"));
    let time = Expiry::At(WallTime::from_millis(1));
    let expiries = [Expiry::Never, Expiry::After(1), time, Expiry::KeepOrAfter(1)];
    let offset = u32::try_from(MAX_VALUE_BYTES).unwrap();
    let mut cases = vec![
        (Update::new(Action::Put(&full)), Status::TooBig),
        (Update::new(Action::Append(&full)), Status::TooBig),
        (Update::new(Action::SetRange { offset, bytes: b"x" }), Status::TooBig),
        (Update::new(Action::SetRange { offset: u32::MAX, bytes: b"" }), Status::TooBig),
        (Update { condition: Precondition::Value(&full), ..put }, Status::TooBig),
        (Update::new(Action::Rename(b"")), Status::Invalid),
        (Update::new(Action::Copy(&full[..=MAX_KEY_BYTES])), Status::Invalid),
    ];
    for condition in [Precondition::Later, Precondition::Earlier] {
        for expiry in [Expiry::Never, Expiry::Keep, Expiry::KeepOrAfter(1)] {
            cases.push((Update { condition, expiry, ..put }, Status::Invalid));
        }
    }
    for action in [Action::Delete, Action::Check, Action::Rename(b"x"), Action::Copy(b"x")] {
        for expiry in expiries {
            cases.push((Update { expiry, ..Update::new(action) }, Status::Invalid));
        }
    }
    for (update, status) in cases {
        let mut bytes = Vec::new();
        put.write(&mut bytes);
        update.write(&mut bytes);
        let updates = Updates::read(&bytes).unwrap();
        let operation = Operation::Update(header(1, Condition::Always), updates);
        let (id, view, digest) = (RequestId(1), ViewVersion(1), Digest::of(b"k"));
        let request = Request { id, view, digest, key: b"k", operation };
        let rejected = request.validate().map_err(|(status, _)| status);
        assert_eq!(rejected, Err(status), "{:?} {:?}", update.condition, update.expiry);
    }
}

#[test]
fn a_request_has_at_most_1024_updates() {
    let mut bytes = Vec::new();
    let check = of(b"a", Action::Check);
    (0..MAX_UPDATES).for_each(|_| check.write(&mut bytes));
    assert_eq!(Updates::read(&bytes).unwrap().count(), 1_024);
    check.write(&mut bytes);
    assert!(Updates::read(&bytes).is_err());
    assert!(Updates::read(&[]).is_err());
    let mut pair = Pair::new();
    let names: Vec<Vec<u8>> = (0..MAX_UPDATES).map(|n| n.to_string().into_bytes()).collect();
    let puts: Vec<Update<'_>> = names.iter().map(|name| of(name, Action::Put(name))).collect();
    assert_eq!(pair.updated(b"k", &puts).status, Status::Ok);
    let moved: Vec<Vec<u8>> = names.iter().map(|name| [b"to ", &name[..]].concat()).collect();
    let moves: Vec<Update<'_>> =
        names.iter().zip(&moved).map(|(name, to)| of(name, Action::Rename(to))).collect();
    assert_eq!(pair.updated(b"k", &moves).status, Status::Ok, "2,048 changes");
    assert_eq!(contents(&pair.primary).len(), MAX_UPDATES);
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn keys_of_one_hash_tag_are_changed_together_only_in_a_cluster_with_hash_tags() {
    // By the whole keys, `{t}a` and `{t}c` are in different shards.
    let keys = [&b"{t}a"[..], b"{t}c"];
    let plain = Placement::new(1, 2);
    assert_ne!(plain.locate(keys[0]), plain.locate(keys[1]));
    for (hash_tags, expected) in [(false, Status::CrossShard), (true, Status::Ok)] {
        let placement = plain.with_hash_tags(hash_tags);
        let mut inbox = Inbox::default();
        let now = Time::from_nanos(1_000_000_000);
        let (_, shard) = placement.locate(keys[0]);
        let mut replica = replica_at(placement, shard, 0, None);
        replica.install(now, View { peer: Peer::None, ..view(1) }, &mut inbox).unwrap();
        let mut bytes = Vec::new();
        keys.iter().for_each(|key| of(key, Action::Put(b"v")).write(&mut bytes));
        let updates = Updates::read(&bytes).unwrap();
        let operation = Operation::Update(header(1, Condition::Always), updates);
        let (key, digest) = (keys[0], Digest::of(keys[0]));
        let request = Request { id: RequestId(1), view: ViewVersion(1), digest, key, operation };
        let hash = replica.hash_of(digest, key);
        replica.on_request(now, (CONNECTION, ClientId(1)), &request, hash, &mut inbox);
        assert_eq!(inbox.0[&1].status, expected);
        assert_eq!(contents(&replica).len(), if hash_tags { 2 } else { 0 });
    }
}

#[test]
fn keys_of_another_shard_are_rejected_and_nothing_is_changed() {
    let placement = Placement::new(1, 2);
    let shard_of = |key: &[u8]| placement.locate(key).1;
    let names: Vec<Vec<u8>> = (0..50u8).map(|n| vec![b'k', n]).collect();
    let [here, there] = [0, 1].map(|shard| {
        names.iter().filter(|name| shard_of(name) == ShardId(shard)).collect::<Vec<_>>()
    });
    let mut inbox = Inbox::default();
    let now = Time::from_nanos(1_000_000_000);
    let mut replica = replica_in(placement, 0, None);
    let alone = View { peer: Peer::None, ..view(1) };
    replica.install(now, alone, &mut inbox).unwrap();
    let mut seq = 0;
    let mut send = |updates: &[Update<'_>]| {
        let mut bytes = Vec::new();
        updates.iter().for_each(|update| update.write(&mut bytes));
        seq += 1;
        let operation =
            Operation::Update(header(seq, Condition::Always), Updates::read(&bytes).unwrap());
        let (key, digest) = (&here[0][..], Digest::of(here[0]));
        let request = Request { id: RequestId(seq), view: ViewVersion(1), digest, key, operation };
        let hash = replica.hash_of(digest, key);
        let asker = (CONNECTION, ClientId(0xa11ce));
        replica.on_request(now, asker, &request, hash, &mut inbox);
        (inbox.0[&seq].status, contents(&replica))
    };
    let put = Update::new(Action::Put(b"v"));
    let (status, all) = send(&[put, of(here[1], Action::Put(b"v"))]);
    assert_eq!((status, all.len()), (Status::Ok, 2));
    for update in [
        of(there[0], Action::Put(b"w")),
        of(there[0], Action::Check),
        of(here[0], Action::Rename(there[0])),
        of(here[0], Action::Copy(there[0])),
        Update { is_optional: true, ..of(there[0], Action::Delete) },
    ] {
        for updates in [&[update][..], &[of(here[1], Action::Delete), update]] {
            let (status, now) = send(updates);
            assert_eq!(status, Status::CrossShard, "{update:?}");
            assert_eq!(now, all, "{update:?}");
        }
    }
}
