//! The stream between the two holders: order, retransmission, fragments, and hellos of unknown members.

use kv_protocol::limits::{LEASE, MAX_VALUE_BYTES};

use super::*;

#[test]
fn unacked_writes_are_sent_again_on_the_next_stream() {
    let mut pair = Pair::apart(None);
    let before = pair.put(b"a", b"1");
    pair.connect();
    let lost = pair.put(b"b", b"2");
    pair.pump(); // lost with the connection
    pair.disconnect();
    let applied = pair.put(b"c", b"3");
    pair.connect();
    pair.deliver(); // applied, but the ack is lost
    pair.disconnect();
    assert_eq!(pair.inbox.0.len(), 0);
    pair.connect();
    // The WELCOME names the last write applied, which counts as an ack.
    for id in [before, lost, applied] {
        assert_eq!(pair.status(id), Some(Status::Ok));
    }
    assert_eq!(pair.secondary.report(pair.now).unwrap().last, SequenceNumber(3));
    assert_eq!(contents(&pair.primary), contents(&pair.secondary));
}

#[test]
fn a_repeated_prepare_is_acked_and_not_applied() {
    let mut pair = Pair::new();
    pair.put(b"k", b"1");
    let (first, _) = pair.pump();
    pair.receive_at_secondary(&first);
    pair.put(b"k", b"2");
    pair.settle();
    pair.receive_at_secondary(&first);
    assert_eq!(contents(&pair.secondary)[&b"k"[..]], (b"2".to_vec(), 2));
    assert_eq!(pair.take_ack().unwrap().sn, SequenceNumber(2));
}

#[test]
fn a_gap_in_the_stream_is_rejected() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.pump(); // lost, although the stream stays up
    pair.put(b"b", b"2");
    let (bytes, _) = pair.pump();
    let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    let message = BatchReader::new(frame.body).unwrap().next().unwrap().unwrap();
    let got = pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox);
    let (expected, found) = (SequenceNumber(1), SequenceNumber(2));
    assert_eq!(got, Err(StreamError::Gap { expected, got: found }));
    assert_eq!(contents(&pair.secondary).len(), 0);
}

#[test]
fn an_ack_of_a_write_that_was_never_sent_is_rejected() {
    let mut pair = Pair::new();
    let put = pair.put(b"a", b"1");
    let ack = kv_protocol::peer_message::Ack {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        echo: pair.now,
        taken: 0,
    };
    let got = pair.primary.on_peer_message(pair.now, &PeerMessage::Ack(ack), &mut pair.inbox);
    assert!(matches!(got, Err(StreamError::Impossible { .. })), "{got:?}");
    assert_eq!(pair.given(put), None);
}

#[test]
fn messages_of_another_view_are_refused() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    let (old, _) = pair.pump();
    pair.primary.install(pair.now, view(2), &mut pair.inbox).unwrap();
    pair.connect();
    let frame = split_frame(&old, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    for message in BatchReader::new(frame.body).unwrap() {
        let got = pair.secondary.on_peer_message(pair.now, &message.unwrap(), &mut pair.inbox);
        assert!(matches!(got, Err(StreamError::View { .. })), "{got:?}");
    }
    pair.settle();
    assert_eq!(contents(&pair.secondary).len(), 1, "sent again under the new view");
}

#[test]
fn a_large_value_travels_in_fragments_with_beacons_between() {
    let mut pair = Pair::new();
    let value: Vec<u8> = (0..5_000_000u32).map(|n| n.to_le_bytes()[0]).collect();
    let put = pair.put(b"big", &value);
    let mut beacons = 0;
    loop {
        let (bytes, pumped) = pair.pump();
        let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
        for message in BatchReader::new(frame.body).unwrap() {
            let message = message.unwrap();
            match &message {
                PeerMessage::Prepare(prepare) => assert!(prepare.value.len() <= FRAGMENT_BYTES),
                PeerMessage::Fragment(fragment) => assert!(fragment.bytes.len() <= FRAGMENT_BYTES),
                PeerMessage::Beacon(_) => beacons += 1,
                other => panic!("unexpected message from the primary: {other:?}"),
            }
            pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox).unwrap();
        }
        pair.ack();
        if pumped == Pumped::Done {
            break;
        }
        pair.now = pair.now + BEACON_INTERVAL;
    }
    assert!(beacons > 10, "only {beacons} beacons");
    assert_eq!(pair.status(put), Some(Status::Ok));
    assert_eq!(pair.get(b"big").value, value);
    let id = pair.request(b"big", Operation::Verify(ReplicaRole::Secondary));
    assert_eq!(pair.given(id).unwrap().value, value);
}

#[test]
fn a_large_value_cut_by_a_reconnect_arrives_whole() {
    let mut pair = Pair::new();
    let value = vec![7; 3_000_000];
    pair.put(b"big", &value);
    let (bytes, pumped) = pair.pump();
    assert_eq!(pumped, Pumped::More);
    pair.receive_at_secondary(&bytes);
    pair.disconnect();
    pair.connect();
    pair.settle();
    assert_eq!(contents(&pair.secondary), contents(&pair.primary));
    assert_eq!(pair.get(b"big").value, value);
}

#[test]
fn beacons_are_sent_only_on_an_idle_stream() {
    let mut pair = Pair::apart(None);
    pair.connect();
    let first = pair.primary.next_timeout().unwrap();
    assert!(first <= pair.now, "a new stream sends a message at once");
    pair.settle();
    assert_eq!(pair.primary.next_timeout(), Some(pair.now + BEACON_INTERVAL));
    assert_eq!(pair.pump().0, Vec::<u8>::new());
    pair.now = pair.now + BEACON_INTERVAL;
    assert_ne!(pair.pump().0, Vec::<u8>::new());
}

#[test]
fn a_fragment_beyond_its_value_is_refused() {
    let mut pair = Pair::new();
    let record = kv_protocol::peer_message::CompletionRecord {
        client: ALICE,
        seq: RequestSeq(1),
        first_incomplete: RequestSeq(1),
        status: Status::Ok,
        version: SequenceNumber(1),
        request: Default::default(),
    };
    let prepare = kv_protocol::peer_message::Prepare {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        t_send: pair.now,
        effect: kv_protocol::peer_message::Effect::Put,
        record,
        digest: Digest::of(b"big"),
        key: b"big",
        deadline: None,
        response_length: 0,
        response: &[],
        value_length: 12,
        value: b"12345",
    };
    let mut take = |message| pair.secondary.on_peer_message(pair.now, &message, &mut pair.inbox);
    take(PeerMessage::Prepare(prepare)).unwrap();
    let fragment = |offset, bytes| {
        let (view, sn) = (ViewVersion(1), SequenceNumber(1));
        PeerMessage::Fragment(kv_protocol::peer_message::Fragment { view, sn, offset, bytes })
    };
    let wrong = Err(StreamError::Fragment { sn: SequenceNumber(1) });
    assert_eq!(take(fragment(5, b"12345678")), wrong, "too long");
    assert_eq!(take(fragment(4, b"1234567")), wrong, "not where it should be");
    // A write that arrives before the previous one is complete counts as a gap too.
    let next = kv_protocol::peer_message::Prepare { sn: SequenceNumber(2), ..prepare };
    assert!(matches!(take(PeerMessage::Prepare(next)), Err(StreamError::Gap { .. })));
    let again = PeerMessage::Prepare(prepare);
    assert!(
        matches!(take(again), Err(StreamError::Gap { .. })),
        "half of the value has arrived already"
    );
    take(fragment(5, b"1234567")).unwrap();
    assert_eq!(contents(&pair.secondary).len(), 1);
}

#[test]
fn a_new_stream_sends_no_ack_of_the_old_one_and_accepts_none_before_its_handshake() {
    let mut pair = Pair::new();
    pair.put(b"a", b"1");
    pair.deliver();
    pair.disconnect();
    let ack = kv_protocol::peer_message::Ack {
        view: ViewVersion(1),
        sn: SequenceNumber(1),
        echo: pair.now,
        taken: 0,
    };
    let got = pair.primary.on_peer_message(pair.now, &PeerMessage::Ack(ack), &mut pair.inbox);
    assert_eq!(got, Err(StreamError::Echo { sn: SequenceNumber(1) }));
    pair.connect();
    assert_eq!(pair.take_ack(), None);
}

#[test]
fn an_older_view_and_another_view_of_the_same_version_are_refused() {
    let mut pair = Pair::new();
    let hello = pair.primary.peer_hello(CLUSTER).unwrap();
    pair.primary.install(pair.now, view(2), &mut pair.inbox).unwrap();
    pair.connect();
    let old = pair.secondary.judge_hello(&hello).unwrap_err();
    assert_eq!((old.reason, old.view), (PeerRefusalReason::OldView, Some(view(2))));
    let other = PeerHello { view: View { handover: true, ..view(2) }, ..hello };
    let refusal = pair.secondary.judge_hello(&other).unwrap_err();
    assert_eq!(refusal.reason, PeerRefusalReason::Stranger);
    let at_a_primary = PeerHello { from: member(1), to: member(0), ..hello };
    assert!(pair.primary.judge_hello(&at_a_primary).is_err());
}

#[test]
fn a_hello_of_an_unknown_member_is_refused_first() {
    let mut pair = Pair::new();
    let hello = pair.primary.peer_hello(CLUSTER).unwrap();
    let forged = [
        PeerHello { to: Member { incarnation: Incarnation(0), ..hello.to }, ..hello },
        PeerHello { from: member(2), ..hello },
        PeerHello { shard: ShardId(1), ..hello },
        PeerHello { shards: 2, ..hello },
        PeerHello { view: View { group: GroupId(1), ..hello.view }, ..hello },
        PeerHello { view: View { peer: Peer::None, ..hello.view }, ..hello },
        PeerHello { view: View { version: ViewVersion(0), ..hello.view }, ..hello },
        PeerHello { view: View { version: ViewVersion(u64::MAX), ..hello.view }, ..hello },
    ];
    pair.put(b"k", b"v");
    pair.settle();
    for hello in forged {
        let refusal = pair.secondary.on_peer_hello(pair.now, &hello, &mut pair.inbox).unwrap_err();
        let old = hello.view.version == ViewVersion(0);
        let expected = if old { PeerRefusalReason::OldView } else { PeerRefusalReason::Stranger };
        assert_eq!(refusal.reason, expected, "{hello:?}");
    }
    assert_eq!(contents(&pair.secondary).len(), 1);
    assert_eq!(pair.secondary.view_version(), ViewVersion(1));
}

#[test]
fn a_value_that_takes_longer_than_a_lease_to_send_does_not_silence_the_stream() {
    let mut pair = Pair::new();
    pair.put(b"small", b"value");
    pair.settle();
    let large = vec![7; MAX_VALUE_BYTES];
    let put = pair.put(b"large", &large);
    let start = pair.now;
    loop {
        // The link or the machine is slow.
        pair.now = pair.now + Duration::from_millis(50);
        let (bytes, pumped) = pair.pump();
        pair.receive_at_secondary(&bytes);
        pair.ack();
        let report = pair.primary.report(pair.now).expect("it has a view");
        assert!(report.silent_ms <= 200, "it would complain: {} ms", report.silent_ms);
        assert_eq!(pair.get(b"small").status, Status::Ok, "it holds the lease");
        if pumped == Pumped::Done {
            break;
        }
    }
    assert!(pair.now.since(start) > LEASE * 2, "the link was not slow");
    assert_eq!(pair.status(put), Some(Status::Ok));
}

#[test]
fn the_longest_gap_under_a_view_includes_the_current_silence() {
    let mut pair = Pair::new();
    pair.put(b"key", b"value");
    pair.settle();
    let gap_of = |pair: &Pair| pair.primary.report(pair.now).expect("it has a view").longest_gap_ms;
    let start = gap_of(&pair);
    for millis in [40, 170, 90] {
        pair.now = pair.now + Duration::from_millis(millis);
        pair.put(b"key", b"value");
        pair.settle();
    }
    assert!(start < 170, "{start} ms, although no message was late");
    assert!((170..200).contains(&gap_of(&pair)), "{} ms", gap_of(&pair));
    pair.now = pair.now + Duration::from_millis(300);
    assert!(gap_of(&pair) >= 300, "the other holder is silent now");
}
