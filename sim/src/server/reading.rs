//! Slow readers: values stay pinned over many wake-ups, as if a long response were sent piece by piece.

use kv_core::table::Pin;
use kv_protocol::client_message::{Operation, Request};
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::GroupId;

use super::{Output, Shard};
use crate::invariants::pins_hold;

/// The maximum number of values pinned at a time.
const PINNED_MOST: usize = 24;
/// A pin lasts for this many wake-ups, and up to as many more.
const WAKES_A_PIN: u64 = 200;

/// A value on its way to a reader.
#[derive(Debug)]
pub(super) struct Reading {
    group: GroupId,
    pin: Pin,
    value: Vec<u8>,
    wakes_left: u64,
}

impl Shard {
    /// Pins the value that a request reads.
    pub(super) fn begin_reading(&mut self, group: GroupId, request: &Request<'_>) {
        let reads = matches!(request.operation, Operation::Get | Operation::GetPart(_));
        if !self.identity.bounds.has_slow_readers || !reads || self.readings.len() >= PINNED_MOST {
            return;
        }
        let Some(hosted) = self.hosted_of(group).filter(|hosted| keeps(hosted.replica.state()))
        else {
            return;
        };
        let Some(pin) = hosted.replica.pin(request.digest, request.key) else { return };
        let value = hosted.replica.pinned_value(&pin).expect("it was just pinned").to_vec();
        let wakes_left = WAKES_A_PIN + request.id.0 * 37 % WAKES_A_PIN;
        self.readings.push(Reading { group, pin, value, wakes_left });
    }

    /// Checks every pinned value. Releases those that are sent, or whose table was wiped.
    pub(super) fn go_on_reading(&mut self, output: &mut Vec<Output>) {
        for mut reading in std::mem::take(&mut self.readings) {
            let group = reading.group;
            let Some(hosted) = self.hosted_of(group) else { continue };
            if !keeps(hosted.replica.state()) {
                hosted.replica.unpin(reading.pin);
                continue;
            }
            let pinned = hosted.replica.pinned_value(&reading.pin);
            output
                .extend(pins_hold::check(group, &reading.value, pinned).err().map(Output::Broken));
            reading.wakes_left -= 1;
            match reading.wakes_left {
                0 => hosted.replica.unpin(reading.pin),
                _ => self.readings.push(reading),
            }
        }
    }
}

/// Returns whether a replica in this state keeps its entries.
fn keeps(state: ReplicaState) -> bool {
    !matches!(state, ReplicaState::Out | ReplicaState::Candidate)
}
