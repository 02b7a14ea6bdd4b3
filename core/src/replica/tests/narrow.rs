//! A slow link, on which writes and the beacons behind them are in flight for a long time. Both ends detect failures
//! from the bytes that arrive.

use kv_protocol::limits::LEASE;

use super::*;

/// The transfer time of one batch of a long value.
const BATCH_TIME: Duration = Duration::from_millis(30);

/// Returns all batches of a long value, sent without a beacon between them.
fn send_long(pair: &mut Pair) -> Vec<Vec<u8>> {
    let mut batches = Vec::new();
    loop {
        let (bytes, pumped) = pair.pump();
        batches.push(bytes);
        if pumped == Pumped::Done {
            return batches;
        }
    }
}

fn silent_ms(replica: &Replica, now: Time) -> u32 {
    replica.report(now).expect("it has a view").silent_ms
}

/// Lets time pass without a suspension of either end.
fn pass(pair: &mut Pair, time: Duration) {
    pair.now = pair.now + time;
    pair.primary.look(pair.now);
    pair.secondary.look(pair.now);
}

/// Ends two streams in the middle of a value. No write is acked on the second stream.
fn lose_streams(pair: &mut Pair) {
    for _ in 0..2 {
        let (bytes, _) = pair.pump();
        pair.receive_at_secondary(&bytes);
        pair.disconnect();
        pair.connect();
    }
}

#[test]
fn parts_of_a_long_value_are_acked_once_an_interval_and_count_as_signs_of_life() {
    let mut pair = Pair::new();
    let put = pair.put(b"long", &[7; 3 << 20]);
    let batches = send_long(&mut pair);
    let start = pair.now;
    let (mut acks, mut last) = (0, 0);
    for bytes in &batches {
        pass(&mut pair, BATCH_TIME);
        pair.receive_at_secondary(bytes);
        if let Some(ack) = pair.take_ack() {
            let is_whole = ack.sn == SequenceNumber(1);
            assert!(is_whole || ack.taken > last, "{} bytes after {last}", ack.taken);
            (acks, last) = (acks + 1, ack.taken);
            let message = PeerMessage::Ack(ack);
            pair.primary.on_peer_message(pair.now, &message, &mut pair.inbox).unwrap();
        }
        assert!(silent_ms(&pair.primary, pair.now) < 150, "the primary received no sign of life");
        assert!(
            silent_ms(&pair.secondary, pair.now) < 150,
            "the secondary received no sign of life"
        );
    }
    let elapsed = pair.now.since(start);
    assert!(elapsed > LEASE * 2, "the link was not narrow");
    let most = elapsed.as_millis() / BEACON_INTERVAL.as_millis() + 2;
    assert!(acks <= most, "{acks} acks in {elapsed:?}");
    assert_eq!(pair.status(put), Some(Status::Ok));
}

#[test]
fn acks_of_parts_renew_no_lease() {
    let mut pair = Pair::new();
    pair.put(b"short", b"value");
    pair.settle();
    pair.put(b"long", &[7; 3 << 20]);
    let batches = send_long(&mut pair);
    for bytes in &batches[..batches.len() - 1] {
        pass(&mut pair, BATCH_TIME);
        pair.receive_at_secondary(bytes);
        pair.ack();
    }
    // These acks echo the clock reading in the PREPARE.
    assert_eq!(pair.get(b"short").status, Status::Unavailable);
}

#[test]
fn parts_of_a_long_value_count_as_signs_of_life_after_a_stream_without_progress() {
    let mut pair = Pair::new();
    let put = pair.put(b"long", &[7; 3 << 20]);
    lose_streams(&mut pair);
    let batches = send_long(&mut pair);
    for bytes in &batches {
        pass(&mut pair, BATCH_TIME);
        pair.receive_at_secondary(bytes);
        pair.ack();
        assert!(silent_ms(&pair.primary, pair.now) < 200, "the primary received no sign of life");
    }
    assert_eq!(pair.status(put), Some(Status::Ok));
}

#[test]
fn acks_without_progress_are_no_signs_of_life_after_a_stream_without_progress() {
    let mut pair = Pair::new();
    pair.put(b"long", &[7; 3 << 20]);
    lose_streams(&mut pair);
    pair.now = pair.now + BEACON_INTERVAL;
    let (bytes, _) = pair.pump();
    pair.receive_at_secondary(&bytes);
    let ack = pair.take_ack().unwrap();
    assert!(ack.taken > 0);
    for _ in 0..10 {
        pass(&mut pair, BEACON_INTERVAL);
        pair.primary
            .on_peer_message(pair.now, &PeerMessage::Ack(ack), &mut pair.inbox)
            .expect("an ack of what was sent");
    }
    assert!(
        silent_ms(&pair.primary, pair.now) >= 900,
        "an ack of the same part counted as progress again"
    );
}

#[test]
fn bytes_of_an_incomplete_message_are_signs_of_life_and_acked_once_an_interval() {
    let mut pair = Pair::new();
    pass(&mut pair, BEACON_INTERVAL);
    let mut acks = 0;
    for _ in 0..100 {
        pass(&mut pair, BEACON_INTERVAL / 10);
        pair.secondary.on_part_of_message(pair.now);
        acks += usize::from(pair.take_ack().is_some());
        assert_eq!(silent_ms(&pair.secondary, pair.now), 0);
    }
    assert!((9..=11).contains(&acks), "{acks} acks in ten intervals");
    // A broken stream delivers nothing.
    pair.disconnect();
    let heard = pair.secondary.heard();
    pass(&mut pair, BEACON_INTERVAL);
    pair.secondary.on_part_of_message(pair.now);
    assert_eq!((pair.secondary.heard(), pair.take_ack()), (heard, None));
}
