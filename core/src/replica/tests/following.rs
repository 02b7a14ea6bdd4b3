//! A follower that cannot apply writes. Its handshakes are not signs of life, and both ends report the problem.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_protocol::FailureTimeout;
use kv_protocol::control_message::Following;
use kv_protocol::peer_message::PeerRefusal;

use super::*;
use crate::arena::{CHUNK_BYTES_MIN, SwitchedChunks};

/// A value that is larger than the free part of the chunk that the table already has.
static LARGE: [u8; CHUNK_BYTES_MIN] = [7; CHUNK_BYTES_MIN];

/// Creates a pair whose secondary has no memory while the returned flag is true.
fn pair() -> (Pair, Arc<AtomicBool>) {
    let is_exhausted = Arc::new(AtomicBool::new(false));
    let mut pair = Pair::apart(None);
    let chunks = SwitchedChunks::new(CHUNK_BYTES_MIN, Arc::clone(&is_exhausted));
    pair.secondary = Replica::new(pair.secondary.config, Box::new(chunks));
    pair.connect();
    pair.put(b"small", b"value");
    pair.settle();
    (pair, is_exhausted)
}

/// Connects if no stream is up, and sends one batch. Disconnects at the first message that is rejected.
fn try_stream(pair: &mut Pair) -> Result<(), StreamError> {
    if !pair.connected {
        pair.connect();
    }
    let (bytes, _) = pair.pump();
    let frame = split_frame(&bytes, &FrameRules::checked(MAX_PEER_BODY)).unwrap().unwrap();
    let mut messages = BatchReader::new(frame.body).unwrap();
    let taken = messages.try_for_each(|message| {
        pair.secondary.on_peer_message(pair.now, &message.unwrap(), &mut pair.inbox)
    });
    match taken {
        Ok(()) => pair.ack(),
        Err(_) => pair.disconnect(),
    }
    taken
}

fn report(replica: &Replica, now: Time) -> ReplicaReport {
    replica.report(now).expect("it has a view")
}

#[test]
fn a_secondary_without_memory_counts_as_silent_however_often_it_reconnects() {
    let (mut pair, is_exhausted) = pair();
    is_exhausted.store(true, Ordering::Relaxed);
    let write = pair.put(b"large", &LARGE);
    let start = pair.now;
    let complains_after = FailureTimeout::DEFAULT.complains_after();
    while pair.now.since(start) <= complains_after {
        let ended = try_stream(&mut pair);
        assert_eq!(ended, Err(StreamError::OutOfMemory { sn: SequenceNumber(2) }));
        pair.now = pair.now + Duration::from_millis(20);
        pair.primary.look(pair.now);
        pair.secondary.look(pair.now);
    }
    let silent_ms = u128::from(report(&pair.primary, pair.now).silent_ms);
    assert!(
        silent_ms > complains_after.as_millis(),
        "{silent_ms} ms: handshakes counted as signs of life"
    );
    assert_eq!(report(&pair.primary, pair.now).following, Following::NoProgress);
    assert_eq!(report(&pair.secondary, pair.now).following, Following::OutOfMemory);
    assert_eq!(pair.status(write), None);
    // With memory available again, the pending write completes and the earlier failure no longer counts.
    is_exhausted.store(false, Ordering::Relaxed);
    while try_stream(&mut pair).is_ok() && pair.status(write).is_none() {}
    assert_eq!(pair.status(write), Some(Status::Ok));
    for replica in [&pair.primary, &pair.secondary] {
        assert_eq!(report(replica, pair.now).following, Following::KeepsUp);
        assert!(report(replica, pair.now).silent_ms <= 100);
    }
}

#[test]
fn a_refusal_for_lack_of_memory_is_reported_until_a_write_is_acked_or_the_view_changes() {
    let refusal = PeerRefusal { reason: PeerRefusalReason::NoMemory, view: None };
    for is_acked in [true, false] {
        let (mut pair, _) = pair();
        let write = pair.put(b"key", b"value");
        pair.primary.on_peer_refusal(pair.now, &refusal, &mut pair.inbox);
        pair.disconnect();
        assert_eq!(report(&pair.primary, pair.now).following, Following::OutOfMemory);
        if is_acked {
            try_stream(&mut pair).unwrap();
            assert_eq!(pair.status(write), Some(Status::Ok));
        } else {
            let alone = View { peer: Peer::None, ..view(2) };
            pair.primary.install(pair.now, alone, &mut pair.inbox).unwrap();
        }
        assert_eq!(report(&pair.primary, pair.now).following, Following::KeepsUp);
    }
}

#[test]
fn streams_that_end_without_pending_writes_are_no_failure() {
    let (mut pair, _) = pair();
    for _ in 0..100 {
        pair.disconnect();
        pair.connect();
    }
    assert_eq!(report(&pair.primary, pair.now).following, Following::KeepsUp);
}
