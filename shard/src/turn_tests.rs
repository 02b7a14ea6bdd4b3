//! Tests of a turn in which receiving takes time.

use kv_protocol::FailureTimeout;

use super::*;
use crate::testing::{GROUP, NOW, Pair, WALL, member};

/// The time that a receive from a stream takes.
const LATE: Duration = Duration::from_millis(400);

/// An engine with one stream, and one client with waiting work.
struct Slow {
    stream: ConnectionId,
    /// The bytes of the stream, in portions. Each look finds one more portion.
    bytes: Vec<Vec<u8>>,
    /// The number of portions that were recorded as ready.
    noted: usize,
    now: Time,
    sent: Vec<u8>,
}

impl Engine for Slow {
    const SENDS_AT_ONCE: bool = true;

    fn now(&mut self) -> Time {
        self.now
    }

    fn look_again(&mut self, _: &mut Shard) {
        self.noted = self.bytes.len();
    }

    fn serve_streams(&mut self, shard: &mut Shard) -> bool {
        self.now = self.now + LATE;
        for bytes in self.bytes.drain(..self.noted) {
            shard.handle_bytes(self.now, self.stream, &bytes);
        }
        true
    }

    fn waiting(&mut self) -> Waiting {
        Waiting { strangers: 0, clients: 1 }
    }

    fn serve_stranger(&mut self, _: &mut Shard) {}

    fn serve_client(&mut self, _: &mut Shard) -> Option<Time> {
        None
    }

    fn see_to(&mut self, shard: &mut Shard, now: Time, id: ConnectionId) -> usize {
        let bytes = shard.unsent(id).to_vec();
        shard.handle_sent(now, id, bytes.len());
        self.sent.extend(bytes);
        0
    }

    fn send(&mut self, _: &Transmit<'_>) -> usize {
        0
    }
}

#[test]
fn the_grace_of_an_ack_begins_after_the_acknowledged_bytes_were_received() {
    let mut pair = Pair::joined();
    let later = NOW + Duration::from_millis(100);
    pair.primary.handle_tick(later, WALL);
    pair.primary.finish_wake_up(later);
    let beacon = pair.primary.unsent(pair.dialled).to_vec();
    assert!(!beacon.is_empty());
    let (stream, now) = (pair.accepted, later);
    let mut engine = Slow { stream, bytes: vec![beacon], noted: 1, now, sent: Vec::new() };
    pair.secondary.begin_wake_up(later);
    run(&mut engine, &mut pair.secondary, later, true);
    assert!(!engine.sent.is_empty(), "the beacon was not acknowledged");
    let grace = pair.secondary.service.replica(GROUP).unwrap().inspect().grace;
    assert_eq!(grace, Some((member(0), later + LATE + FailureTimeout::DEFAULT.grace())));
}

#[test]
fn a_shard_that_was_not_scheduled_checks_its_sockets_before_it_runs_its_timers() {
    let mut pair = Pair::joined();
    let later = NOW + Duration::from_millis(100);
    pair.primary.handle_tick(later, WALL);
    pair.primary.finish_wake_up(later);
    let beacon = pair.primary.unsent(pair.dialled).to_vec();
    // The shard is not called for a while. The engine has not yet recorded the bytes that arrived meanwhile.
    let stood = later + Duration::from_secs(2);
    let (stream, now) = (pair.accepted, stood);
    let mut engine = Slow { stream, bytes: vec![beacon], noted: 0, now, sent: Vec::new() };
    pair.secondary.handle_tick(stood, WALL);
    pair.secondary.begin_wake_up(stood);
    run(&mut engine, &mut pair.secondary, stood, true);
    assert!(engine.bytes.is_empty(), "the bytes were not read from the socket");
    assert!(!pair.secondary.has_stood());
}
