//! Expiry of idle sessions, and the end of service before a dump.

use kv_protocol::limits::{HEARD_WITHIN, LEASE};

use super::group::*;
use super::*;
use crate::dump::{DumpedShard, HeldAs};

#[test]
fn a_draining_primary_commits_pending_writes_and_accepts_no_new_ones() {
    let mut pair = Pair::new();
    let pending = pair.put(b"a", b"1");
    pair.primary.drain();
    assert!(!pair.primary.is_drained());
    let late = pair.put(b"b", b"2");
    assert_eq!(pair.status(late), Some(Status::Unavailable));
    pair.settle();
    assert!(pair.primary.is_drained());
    assert_eq!(pair.status(pending), Some(Status::Ok));
    assert_eq!(pair.get(b"a").value, b"1", "reads continue");
}

/// Lets time pass, with wake-ups of the primary as frequent as in a server.
pub(super) fn stay_awake(pair: &mut Pair, time: Duration) {
    let end = pair.now + time;
    while pair.now < end {
        pair.now = pair.now + BEACON_INTERVAL;
        pair.primary.look(pair.now);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
        pair.settle();
    }
}

/// A time after the last write of a session at which the session has certainly expired. It exceeds the idle time
/// because the search for idle sessions runs at intervals.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(SESSION_IDLE.as_secs() * 4 / 3);

#[test]
fn both_holders_expire_an_idle_session_and_its_first_write_is_not_executed_again() {
    let mut pair = Pair::new();
    let put = Operation::Put(header(1, Condition::IfAbsent), b"1");
    pair.request_as(1, b"a", put);
    pair.settle();
    stay_awake(&mut pair, FORGOTTEN_AFTER);
    for replica in [&pair.primary, &pair.secondary] {
        assert_eq!(replica.completion_records(0..usize::MAX).count(), 0);
        assert_eq!(replica.report(pair.now).unwrap().last, SequenceNumber(2));
    }
    pair.request_as(2, b"a", put);
    assert_eq!(pair.status(2), Some(Status::SessionExpired), "indistinguishable from a retry");
    // A session that begins later counts as new.
    let begun = pair.primary.session_start();
    let later = WriteHeader { begun, ..header(1, Condition::Always) };
    pair.request_as(3, b"a", Operation::Put(later, b"2"));
    pair.settle();
    assert_eq!(pair.status(3), Some(Status::Ok));
}

#[test]
fn a_suspended_machine_expires_no_session() {
    let mut pair = Pair::new();
    let put = Operation::Put(header(1, Condition::IfAbsent), b"1");
    pair.request_as(1, b"a", put);
    pair.settle();
    let first = pair.given(1);
    for _ in 0..3 {
        pair.primary.look(pair.now);
        pair.now = pair.now + SESSION_IDLE * 2;
        pair.primary.look(pair.now);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
        stay_awake(&mut pair, SESSION_IDLE / 5);
    }
    pair.request_as(2, b"a", put);
    assert_eq!(pair.given(2), first);
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
}

#[test]
fn a_session_with_a_pending_write_is_not_forgotten() {
    let mut pair = Pair::new();
    let put = Operation::Put(header(1, Condition::IfAbsent), b"1");
    pair.request_as(1, b"a", put);
    pair.disconnect();
    let end = pair.now + FORGOTTEN_AFTER;
    while pair.now < end {
        pair.now = pair.now + BEACON_INTERVAL;
        pair.primary.look(pair.now);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
    }
    pair.request_as(2, b"a", put);
    assert_eq!(pair.status(2), None, "it waits for the pending write");
    assert_eq!(pair.primary.report(pair.now).unwrap().last, SequenceNumber(1));
}

#[test]
fn no_number_of_new_clients_is_rejected_and_sessions_that_write_are_kept() {
    let mut pair = Pair::new();
    let first = Operation::Put(header(1, Condition::IfAbsent), b"1");
    pair.request_as(1, b"a", first);
    pair.settle();
    let responded = pair.given(1);
    let clients = u64::try_from(MAX_SESSIONS + SESSIONS_FORGOTTEN_AT_ONCE).unwrap() + 10;
    for client in 1..=clients {
        let request = Request {
            id: RequestId(10_000 + client),
            view: ViewVersion(1),
            digest: Digest::of(b"k"),
            key: b"k",
            operation: Operation::Put(header(1, Condition::Always), b"v"),
        };
        let begun = pair.primary.session_start();
        let operation = Operation::Put(WriteHeader { begun, ..header(1, Condition::Always) }, b"v");
        let request = Request { operation, ..request };
        let id = ClientId(u128::from(client));
        let hash = pair.primary.hash_of(request.digest, request.key);
        pair.primary.on_request(pair.now, (CONNECTION, id), &request, hash, &mut pair.inbox);
        if client % 2_000 == 0 {
            pair.settle();
            // This client writes from time to time, so its records stay.
            let again = header(1 + client / 2_000, Condition::Always);
            pair.request_as(1_000_000 + client, b"a", Operation::Put(again, b"again"));
        }
    }
    pair.settle();
    let refused = (10_001..10_000 + clients).find(|id| pair.status(*id) != Some(Status::Ok));
    assert_eq!(refused, None);
    assert!(pair.primary.session_count() <= MAX_SESSIONS);
    assert_eq!(pair.primary.session_count(), pair.secondary.session_count());
    assert_eq!(pair.primary.content(), pair.secondary.content());
    pair.request_as(2, b"a", first);
    assert_eq!(pair.given(2), responded);
}

#[test]
fn a_draining_primary_logs_no_internal_writes() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.drain();
    stay_awake(&mut pair, FORGOTTEN_AFTER);
    assert!(pair.primary.is_drained());
    assert_eq!(pair.primary.session_count(), 1);
}

#[test]
fn a_frozen_holder_acknowledges_no_write_after_its_dump_began() {
    for freeze_primary in [true, false] {
        let mut pair = Pair::new();
        let before = pair.put(b"a", b"1");
        pair.settle();
        let pending = pair.put(b"b", b"2");
        let (sent, _) = pair.pump();
        if freeze_primary {
            pair.receive_at_secondary(&sent);
            pair.primary.freeze();
            let ack = PeerMessage::Ack(pair.take_ack().unwrap());
            let got = pair.primary.on_peer_message(pair.now, &ack, &mut pair.inbox);
            assert_eq!(got, Ok(()), "only the sign of life counts");
            let late = pair.put(b"c", b"3");
            assert_eq!(pair.status(late), Some(Status::Unavailable));
            assert_eq!(pair.pump().0, Vec::<u8>::new());
        } else {
            pair.secondary.freeze();
            let frame = split_frame(&sent, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
            let message = BatchReader::new(frame.body).unwrap().next().unwrap().unwrap();
            let got = pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox);
            assert_eq!(got, Err(StreamError::Frozen));
            let hello = pair.primary.peer_hello(CLUSTER).unwrap();
            let refusal =
                pair.secondary.on_peer_hello(pair.now, &hello, &mut pair.inbox).unwrap_err();
            assert_eq!(refusal.reason, PeerRefusalReason::Stopping);
            assert_eq!(contents(&pair.secondary).len(), 1);
        }
        assert_eq!(pair.given(pending), None);
        assert_eq!(contents(&pair.primary).len(), 1);
        let done = pair.primary.completion_records(0..usize::MAX).count();
        assert_eq!(done, 1, "a record of a write that is not in the table");
        assert_eq!(pair.get(b"a").value, b"1", "reads continue");
        assert_eq!(pair.status(before), Some(Status::Ok));
    }
}

impl Pair {
    /// Delivers everything in both directions once, like a driver that continues while one end is frozen.
    fn carry(&mut self) {
        for from_primary in [true, false] {
            let (from, to) = match from_primary {
                true => (&mut self.primary, &mut self.secondary),
                false => (&mut self.secondary, &mut self.primary),
            };
            let mut bytes = Vec::new();
            from.pump(self.now, &mut bytes);
            let Some(frame) = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap()
            else {
                continue;
            };
            for message in BatchReader::new(frame.body).unwrap() {
                let taken = to.on_peer_message(self.now, &message.unwrap(), &mut self.inbox);
                assert!(matches!(taken, Ok(()) | Err(StreamError::Frozen)), "{taken:?}");
            }
        }
    }
}

#[test]
fn a_frozen_holder_exchanges_signs_of_life_without_changing_its_content() {
    for freeze in [[true, false], [false, true], [true, true]] {
        let mut pair = Pair::new();
        pair.put(b"a", b"1");
        pair.settle();
        let pending = pair.put(b"b", b"2");
        let replicas = [&mut pair.primary, &mut pair.secondary];
        for (replica, _) in replicas.into_iter().zip(freeze).filter(|(_, is_frozen)| *is_frozen) {
            replica.freeze();
        }
        let start = pair.now;
        while pair.now < start + LEASE * 4 {
            let due = pair.primary.next_timeout().expect("its next beacon");
            assert!(due > pair.now || pair.now == start, "its driver would never become idle");
            pair.now = pair.now.max(due);
            pair.carry();
        }
        for replica in [&pair.primary, &pair.secondary] {
            let silent = replica.report(pair.now).unwrap().silent_ms;
            assert!(u128::from(silent) < HEARD_WITHIN.as_millis(), "{freeze:?}: {silent} ms");
            assert_eq!(contents(replica).len(), 1);
        }
        assert_eq!(pair.given(pending), None, "{freeze:?}: acknowledged, but in no dump");
        assert_eq!(pair.get(b"a").value, b"1", "its lease is renewed, so reads continue");
        // The sender of an ack observes a grace for it, frozen or not.
        assert!(pair.secondary.inspect().grace.is_some_and(|(_, until)| until > pair.now + LEASE));
    }
}

#[test]
fn a_frozen_holder_installs_no_view_so_its_dump_stays_final() {
    let alone = View { peer: Peer::None, ..view(2) };
    let out = View { primary: Some(member(7)), ..alone };
    for next in [alone, out] {
        let mut pair = Pair::new();
        pair.put(b"a", b"1");
        pair.settle();
        let pending = pair.put(b"b", b"2");
        pair.primary.freeze();
        let dumped = pair.primary.dumped().unwrap();
        let got = pair.primary.install(pair.now, next, &mut pair.inbox);
        assert_eq!(got, Err(InstallError::Frozen { group: GroupId(0) }));
        assert_eq!(pair.given(pending), None, "acknowledged, but in no dump");
        assert_eq!(contents(&pair.primary).len(), 1);
        assert_eq!(pair.primary.dumped(), Ok(dumped));
        // Installing the installed view again changes nothing.
        let again = pair.primary.install(pair.now, view(1), &mut pair.inbox);
        assert_eq!(again, Ok(()));
    }
}

#[test]
fn a_frozen_primary_that_loses_its_candidate_commits_nothing_alone() {
    let mut group = Group::new();
    for n in 0..8u8 {
        group.put(0, &[n], &vec![n; 1 << 20]);
    }
    group.settle();
    let candidate = Peer::Candidate(named(2));
    group.install(0, view_of(2, 0, Peer::None));
    group.install(0, view_of(3, 0, candidate));
    while !group.replicas[0].inspect().in_union {
        assert!(group.step(), "it never enters the union");
    }
    assert_eq!(group.state(0), ReplicaState::Active, "its copy is not yet compared");
    let pending = group.put(0, b"a", b"1");
    assert_eq!(group.given(pending), None, "it waits for the candidate");
    group.replicas[0].freeze();
    group.cut(2);
    assert_eq!(group.given(pending), None, "acknowledged, but in no dump");
    assert_eq!(group.replicas[0].dumped().unwrap().last, SequenceNumber(8));
}

#[test]
fn a_dump_names_the_role_and_the_last_write_of_each_shard() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.put(b"b", b"2");
    let (sent, _) = pair.pump();
    pair.receive_at_secondary(&sent);
    let (shard, view) = (ShardId(0), ViewVersion(1));
    let line = |held_as, last| DumpedShard {
        shard,
        held_as,
        view,
        last: SequenceNumber(last),
        forgotten: SequenceNumber::ZERO,
    };
    assert_eq!(pair.primary.dumped(), Ok(line(HeldAs::Primary, 1)), "one is not committed yet");
    assert_eq!(pair.secondary.dumped(), Ok(line(HeldAs::Secondary, 2)));
}

#[test]
fn a_candidate_is_dumped_only_with_a_complete_copy_and_an_empty_replica_never() {
    let mut group = Group::new();
    let state = |group: &Group, at: usize| group.replicas[at].dumped().map_err(|none| none.state);
    assert_eq!(state(&group, 2), Err(ReplicaState::Out));
    let candidate = Peer::Candidate(named(2));
    group.install(0, view_of(2, 0, Peer::None));
    group.install(2, view_of(3, 0, candidate));
    assert_eq!(state(&group, 2), Err(ReplicaState::Candidate));
    group.install(0, view_of(3, 0, candidate));
    group.settle();
    assert_eq!(state(&group, 2).unwrap().held_as, HeldAs::Candidate);
    group.install(1, view_of(3, 0, candidate));
    assert_eq!(state(&group, 1), Err(ReplicaState::Out), "it was removed and wiped");
}

#[test]
fn a_dump_has_the_session_of_a_client_whose_only_records_belong_to_pending_writes() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    // The second write is pending when the dump begins. It states that the first has completed.
    let second = WriteHeader { first_incomplete: RequestSeq(2), ..header(2, Condition::Always) };
    pair.request(b"a", Operation::Put(second, b"2"));
    pair.primary.freeze();
    let dumped: Vec<LoggedRecord> = pair.primary.records_for_dump(0..usize::MAX).collect();
    assert_eq!(dumped.len(), 1, "{dumped:?}");
    let mut group = Group::new();
    for LoggedRecord { sn, record } in dumped {
        group.replicas[2].load_record(sn, record, &[]);
    }
    // Sessions that had written nothing for long are not in the dump.
    group.replicas[2].finish_load(SequenceNumber(9), SequenceNumber(5));
    group.install(2, view_of(5, 2, Peer::None));
    group.ask_as(2, 7, b"a", Operation::Put(second, b"2"));
    assert_eq!(group.status(7), Some(Status::Ok), "it was not executed before");
    let first = header(1, Condition::Always);
    group.ask_as(2, 8, b"a", Operation::Put(first, b"1"));
    assert_eq!(group.status(8), Some(Status::SessionExpired), "it was executed");
}
