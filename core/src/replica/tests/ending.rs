//! What ends: sessions that nobody uses, and the service before a dump.

use super::*;

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
            assert_eq!(got, Err(StreamError::Frozen));
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
