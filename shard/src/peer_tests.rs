//! Tests of streams between two shards without sockets: resumption, replacement, unknown servers, damage.

use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Operation, ReplicaRole, Status};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{ClusterId, ClusterKey, Incarnation, ViewVersion};
use kv_protocol::key::{Challenge, Link, Nonce, Seal, opcode as key_opcode};
use kv_protocol::limits::MAX_PEER_BODY;
use kv_protocol::peer_message::{PeerHello, PeerRefusal, PeerRefusalReason, opcode as peer_opcode};
use kv_protocol::view::View;
use proptest::prelude::*;

use crate::handshake::Port;
use crate::shard::{Fate, Shard};
use crate::testing::{
    CLUSTER, GROUP, KEY, NOW, Pair, client, hello, key, member, put, request, shard, take_output,
    take_output_at, told, view,
};

fn peer_hello() -> PeerHello {
    PeerHello {
        cluster: CLUSTER,
        from: member(0),
        to: member(1),
        shard: kv_protocol::ShardId(0),
        shards: 1,
        view: view(),
    }
}

/// Dials a shard with this key and hello, and returns the accepted connection.
fn dial(shard: &mut Shard, key: ClusterKey, hello: &PeerHello) -> ConnectionId {
    const DIALLER: Nonce = Nonce(1);
    let mut bytes = Vec::new();
    Challenge { nonce: DIALLER, shard: hello.shard }.write(&mut bytes);
    let id = shard.adopt(NOW, Port::Servers, &bytes);
    let said = take_output(shard, id);
    let frame = split_frame(&said, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    assert_eq!(frame.opcode, key_opcode::PROOF);
    let own = u128::from_le_bytes(*frame.body.first_chunk().unwrap());
    bytes.clear();
    hello.write(&Seal::new(key, Link::Stream, DIALLER, Nonce(own)), &mut bytes);
    shard.handle_bytes(NOW, id, &bytes);
    id
}

/// Returns the secondary's response to a VERIFY of the key.
fn copy_at(secondary: &mut Shard) -> (Status, String) {
    let id = client(secondary);
    let verify = request(1, key(), Operation::Verify(ReplicaRole::Secondary));
    secondary.handle_bytes(NOW, id, &verify);
    let mut told = told(&take_output(secondary, id));
    let (_, status, value) = told.remove(0);
    (status, value)
}

fn refusal(bytes: &[u8]) -> PeerRefusal {
    let frame = split_frame(bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    assert_eq!(frame.opcode, peer_opcode::PEER_REFUSAL);
    PeerRefusal::read(frame.body).unwrap()
}

#[test]
fn writes_of_one_wake_up_travel_in_one_batch_and_are_acked_in_one() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    for seq in 1..=10 {
        pair.primary.handle_bytes(NOW, id, &put(seq, key(), b"v"));
    }
    let there = pair.said_by_primary();
    let rules = FrameRules::checked(MAX_PEER_BODY);
    let frame = split_frame(&there, &rules).unwrap().unwrap();
    assert_eq!((frame.opcode, frame.consumed), (peer_opcode::BATCH, there.len()));
    pair.secondary.handle_bytes(NOW, pair.accepted, &there);
    let back = pair.said_by_secondary();
    let frame = split_frame(&back, &rules).unwrap().unwrap();
    assert_eq!((frame.opcode, frame.consumed), (peer_opcode::BATCH, back.len()));
    pair.primary.handle_bytes(NOW, pair.dialled, &back);
    assert_eq!(told(&take_output(&mut pair.primary, id)).len(), 10);
}

#[test]
fn a_write_whose_stream_breaks_is_sent_again_and_gets_one_response() {
    for acked_on_the_way in [false, true] {
        let mut pair = Pair::joined();
        let id = client(&mut pair.primary);
        pair.primary.handle_bytes(NOW, id, &put(1, key(), b"v"));
        let there = pair.said_by_primary();
        if acked_on_the_way {
            pair.secondary.handle_bytes(NOW, pair.accepted, &there);
        }
        pair.rejoin();
        pair.exchange();
        let told = told(&take_output(&mut pair.primary, id));
        assert_eq!(told, [(Some(1), Status::Ok, String::new())]);
        assert_eq!(copy_at(&mut pair.secondary), (Status::Ok, "v".to_owned()));
    }
}

#[test]
fn a_stream_cut_at_any_byte_loses_nothing() {
    let value = "v".repeat(200_000);
    let mut uncut = Pair::joined();
    let id = client(&mut uncut.primary);
    uncut.primary.handle_bytes(NOW, id, &put(1, key(), value.as_bytes()));
    let length = uncut.said_by_primary().len();
    for cut in (0..length).step_by(9_973) {
        let mut pair = Pair::joined();
        let id = client(&mut pair.primary);
        pair.primary.handle_bytes(NOW, id, &put(1, key(), value.as_bytes()));
        let there = pair.said_by_primary();
        pair.secondary.handle_bytes(NOW, pair.accepted, &there[..cut]);
        pair.rejoin();
        pair.exchange();
        assert_eq!(told(&take_output(&mut pair.primary, id)).len(), 1, "cut at {cut}");
        assert!(copy_at(&mut pair.secondary).1 == value, "cut at {cut}");
    }
}

#[test]
fn a_damaged_batch_closes_the_stream_and_applies_nothing() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &put(1, key(), b"v"));
    let mut there = pair.said_by_primary();
    let middle = there.len() / 2;
    there[middle] ^= 1;
    pair.secondary.handle_bytes(NOW, pair.accepted, &there);
    let back = pair.said_by_secondary();
    assert_eq!(refusal(&back).reason, PeerRefusalReason::BrokenStream);
    assert_eq!(pair.secondary.fate(pair.accepted), Fate::Shut);
    assert_eq!(copy_at(&mut pair.secondary).0, Status::NotFound);
    assert_eq!(pair.secondary.service.counters().refused, 1);
    // The next stream resumes after the last valid write.
    pair.rejoin();
    pair.exchange();
    assert_eq!(told(&take_output(&mut pair.primary, id)).len(), 1);
}

#[test]
fn a_new_stream_replaces_the_old_one() {
    let mut pair = Pair::joined();
    let newer = dial(&mut pair.secondary, KEY, &peer_hello());
    assert_eq!(pair.secondary.fate(pair.accepted), Fate::Close);
    assert_eq!(pair.secondary.fate(newer), Fate::Read);
    pair.secondary.close(NOW, pair.accepted);
    let connected = |shard: &Shard| shard.service.reports(NOW).any(|report| report.connected);
    assert!(connected(&pair.secondary), "the close of the old stream detached the new one");
    pair.secondary.close(NOW, newer);
    assert!(!connected(&pair.secondary));
}

#[test]
fn unknown_servers_are_rejected_without_effect_on_an_established_stream() {
    let good = peer_hello();
    let mut imposter = good;
    imposter.from.incarnation = Incarnation(666);
    let mut older = good;
    older.view.version = ViewVersion(0);
    let mut from_nowhere = good;
    from_nowhere.view.version = ViewVersion(u64::MAX);
    let strangers = [
        PeerHello { cluster: ClusterId(0xbad), ..good },
        PeerHello { to: member(2), ..good },
        PeerHello { shards: 2, ..good },
        imposter,
        older,
        from_nowhere,
    ];
    for stranger in strangers {
        let mut pair = Pair::joined();
        let id = dial(&mut pair.secondary, KEY, &stranger);
        let said = take_output(&mut pair.secondary, id);
        let reason = refusal(&said).reason;
        assert!(
            matches!(reason, PeerRefusalReason::Stranger | PeerRefusalReason::OldView),
            "{stranger:?} was rejected as {reason:?}"
        );
        assert_eq!(pair.secondary.fate(id), Fate::Shut);
        assert_eq!(pair.secondary.fate(pair.accepted), Fate::Read, "{stranger:?}");
        let client = client(&mut pair.primary);
        pair.primary.handle_bytes(NOW, client, &put(1, key(), b"v"));
        pair.exchange();
        assert_eq!(told(&take_output(&mut pair.primary, client))[0].1, Status::Ok);
    }
}

#[test]
fn a_hello_under_another_key_is_rejected_without_effect_on_the_stream() {
    let mut pair = Pair::joined();
    let id = dial(&mut pair.secondary, ClusterKey(KEY.0 ^ 1), &peer_hello());
    let said = take_output(&mut pair.secondary, id);
    assert_eq!(refusal(&said).reason, PeerRefusalReason::Stranger);
    assert_eq!(pair.secondary.fate(pair.accepted), Fate::Read);
}

/// Checks the dialler against an acceptor without the key: another program may listen on the port of a dead server.
#[test]
fn an_acceptor_without_the_key_gets_no_hello_and_its_newer_view_does_not_count() {
    let newer = View { version: ViewVersion(9), primary: Some(member(1)), ..view() };
    let refuses = PeerRefusal { reason: PeerRefusalReason::OldView, view: Some(newer) };
    let mut refusal = Vec::new();
    refuses.write(&mut refusal);
    let mut proof = Vec::new();
    Seal::new(ClusterKey(KEY.0 ^ 1), Link::Stream, Nonce(1), Nonce(2)).write_proof(&mut proof);
    for bytes in [refusal, proof] {
        let mut pair = Pair::joined();
        pair.primary.close(NOW, pair.dialled);
        let id = pair.primary.open_dialled(NOW, GROUP);
        let said = take_output(&mut pair.primary, id);
        let frame = split_frame(&said, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
        assert_eq!((frame.opcode, frame.consumed), (key_opcode::CHALLENGE, said.len()));
        pair.primary.handle_bytes(NOW, id, &bytes);
        assert!(take_output(&mut pair.primary, id).is_empty(), "no hello was sent");
        let is_old = |report: ReplicaReport| report.view == view().version;
        assert!(pair.primary.service.reports(NOW).any(is_old));
        assert_ne!(pair.primary.fate(id), Fate::Read);
    }
}

#[test]
fn a_client_at_the_servers_port_is_closed() {
    let mut shard = shard(1);
    let id = shard.adopt(NOW, Port::Servers, &hello());
    let said = take_output(&mut shard, id);
    assert_eq!(refusal(&said).reason, PeerRefusalReason::Stranger);
    assert_eq!(shard.fate(id), Fate::Shut);
    assert_eq!(shard.service.counters().refused, 1);
}

#[test]
fn a_stream_that_receives_nothing_has_bounded_output() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    let value = vec![0; 1 << 20];
    for seq in 1..=20 {
        pair.primary.handle_bytes(NOW, id, &put(seq, key(), &value));
        pair.primary.finish_wake_up(NOW);
    }
    let unsent = pair.primary.unsent(pair.dialled).len();
    assert!(unsent < 256 << 10, "{unsent} bytes wait for a peer that receives none");
    pair.exchange();
    assert_eq!(told(&take_output(&mut pair.primary, id)).len(), 20);
    assert_eq!(pair.primary.service.replica(GROUP).unwrap().view_version(), ViewVersion(1));
}

#[test]
fn a_slow_batch_is_a_sign_of_life_at_both_ends_before_it_is_complete() {
    let mut pair = Pair::joined();
    let id = client(&mut pair.primary);
    pair.primary.handle_bytes(NOW, id, &put(1, key(), &[7; 64 << 10]));
    let there = pair.said_by_primary();
    let mut now = NOW;
    for piece in there.chunks(there.len() / 20) {
        now = now + Duration::from_millis(50);
        pair.secondary.handle_bytes(now, pair.accepted, piece);
        pair.secondary.finish_wake_up(now);
        let back = take_output_at(now, &mut pair.secondary, pair.accepted);
        pair.primary.handle_bytes(now, pair.dialled, &back);
        for shard in [&mut pair.primary, &mut pair.secondary] {
            shard.service.handle_timeout(now);
            let replica = shard.service.replica(GROUP).expect("it hosts the group");
            let silence = now.since(replica.heard());
            assert!(silence <= Duration::from_millis(150), "{silence:?}");
        }
    }
    assert_eq!(told(&take_output(&mut pair.primary, id))[0].1, Status::Ok);
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_end_or_wait(
        stands in any::<bool>(),
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..6),
    ) {
        let mut pair = Pair::joined();
        let id = if stands {
            pair.accepted
        } else {
            pair.secondary.adopt(NOW, Port::Servers, &[])
        };
        for piece in &pieces {
            pair.secondary.handle_bytes(NOW, id, piece);
            pair.primary.handle_bytes(NOW, pair.dialled, piece);
        }
        pair.secondary.finish_wake_up(NOW);
        pair.primary.finish_wake_up(NOW);
    }
}
