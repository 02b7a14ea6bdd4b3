//! What ends: sessions that nobody uses, and the service before a dump.

use kv_protocol::limits::{HEARD_WITHIN, LEASE};

use super::group::*;
use super::*;
use crate::dump::{DumpedShard, HeldAs};

#[test]
fn a_draining_primary_commits_what_is_pending_and_takes_no_more() {
    let mut pair = Pair::new();
    let pending = pair.put(b"a", b"1");
    pair.primary.drain();
    assert!(!pair.primary.is_drained());
    let late = pair.put(b"b", b"2");
    assert_eq!(pair.status(late), Some(Status::Unavailable));
    pair.settle();
    assert!(pair.primary.is_drained());
    assert_eq!(pair.status(pending), Some(Status::Ok));
    assert_eq!(pair.get(b"a").value, b"1", "reads go on");
}

#[test]
fn an_idle_session_is_forgotten_by_both() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.now = pair.now + SESSION_IDLE + Duration::from_secs(1);
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.settle();
    for replica in [&pair.primary, &pair.secondary] {
        assert_eq!(replica.completion_records(0..usize::MAX).count(), 0);
        assert_eq!(replica.report(pair.now).unwrap().last, SequenceNumber(2));
    }
}

#[test]
fn idle_sessions_go_as_fast_as_they_came() {
    let mut pair = Pair::new();
    let clients = 2_000u64;
    for client in 0..clients {
        let write = Operation::Put(header(1, Condition::Always), b"v");
        let request = Request {
            id: RequestId(10_000 + client),
            view: ViewVersion(1),
            digest: Digest::of(b"k"),
            key: b"k",
            operation: write,
        };
        let client = ClientId(u128::from(client));
        pair.primary.on_request(pair.now, CONNECTION, client, &request, &mut pair.inbox);
    }
    pair.settle();
    assert_eq!(pair.secondary.session_count(), 2_000);
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    let forgotten_by = pair.now + SESSION_IDLE + SESSION_IDLE / 5;
    while let Some(due) = pair.primary.next_timeout()
        && due <= forgotten_by
    {
        pair.now = pair.now.max(due);
        pair.primary.on_timeout(pair.now, &mut pair.inbox);
        pair.settle();
    }
    assert_eq!(pair.primary.session_count(), 0);
    assert_eq!(pair.secondary.session_count(), 0);
}

#[test]
fn a_draining_primary_logs_nothing_of_its_own_either() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.primary.drain();
    pair.now = pair.now + SESSION_IDLE * 2;
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    assert!(pair.primary.is_drained());
    assert_eq!(pair.primary.session_count(), 1);
}

#[test]
fn a_frozen_holder_acknowledges_nothing_after_its_dump_began() {
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
            assert_eq!(got, Ok(()), "it is heard, and that is all");
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
        assert_eq!(pair.get(b"a").value, b"1", "reads go on");
        assert_eq!(pair.status(before), Some(Status::Ok));
    }
}

impl Pair {
    /// Carries everything both ways once, as a driver does that goes on where an end is frozen.
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
fn a_frozen_holder_is_heard_and_hears_and_changes_nothing_by_it() {
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
            assert!(due > pair.now || pair.now == start, "its driver would never sleep");
            pair.now = pair.now.max(due);
            pair.carry();
        }
        for replica in [&pair.primary, &pair.secondary] {
            let silent = replica.report(pair.now).unwrap().silent_ms;
            assert!(u128::from(silent) < HEARD_WITHIN.as_millis(), "{freeze:?}: {silent} ms");
            assert_eq!(contents(replica).len(), 1);
        }
        assert_eq!(pair.given(pending), None, "{freeze:?}: acknowledged, and in no dump");
        assert_eq!(pair.get(b"a").value, b"1", "its lease is renewed, so reads go on");
        // Whoever acked owes a grace for it, frozen or not.
        assert!(pair.secondary.inspect().grace.is_some_and(|(_, until)| until > pair.now + LEASE));
    }
}

#[test]
fn a_frozen_holder_installs_no_view_so_nothing_is_acknowledged_or_wiped_under_its_dump() {
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
        assert_eq!(pair.given(pending), None, "acknowledged, and in no dump");
        assert_eq!(contents(&pair.primary).len(), 1);
        assert_eq!(pair.primary.dumped(), Ok(dumped));
        // What is installed already is no change.
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
    assert_eq!(group.state(0), ReplicaState::Active, "its copy is not yet found to be equal");
    let pending = group.put(0, b"a", b"1");
    assert_eq!(group.given(pending), None, "it waits for the candidate");
    group.replicas[0].freeze();
    group.cut(2);
    assert_eq!(group.given(pending), None, "acknowledged, and in no dump");
    assert_eq!(group.replicas[0].dumped().unwrap().last, SequenceNumber(8));
}

#[test]
fn a_dump_says_what_its_writer_was_to_the_shard_and_which_write_was_its_last() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.settle();
    pair.put(b"b", b"2");
    let (sent, _) = pair.pump();
    pair.receive_at_secondary(&sent);
    let (shard, view) = (ShardId(0), ViewVersion(1));
    let line = |held_as, last| DumpedShard { shard, held_as, view, last: SequenceNumber(last) };
    assert_eq!(pair.primary.dumped(), Ok(line(HeldAs::Primary, 1)), "one is not committed yet");
    assert_eq!(pair.secondary.dumped(), Ok(line(HeldAs::Secondary, 2)));
}

#[test]
fn a_candidate_is_dumped_only_with_a_complete_copy_and_whoever_holds_nothing_never() {
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
    assert_eq!(state(&group, 1), Err(ReplicaState::Out), "it was removed, and wiped");
}

#[test]
fn a_retry_keeps_its_session_alive() {
    let mut pair = Pair::new();
    let write = Operation::Put(header(1, Condition::Always), b"v");
    pair.request_as(1, b"k", write);
    pair.settle();
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    pair.now = pair.now + SESSION_IDLE / 2;
    pair.request_as(2, b"k", write);
    pair.now = pair.now + SESSION_IDLE / 2 + Duration::from_secs(1);
    pair.primary.on_timeout(pair.now, &mut pair.inbox);
    assert_eq!(pair.primary.session_count(), 1);
}
