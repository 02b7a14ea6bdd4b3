//! A replica whose dump has begun: nothing of its content changes any more, and it stays there for the others.
//!
//! ```text
//!   takes      no write, no view, no hello; of acks only that the other holder is there
//!   sends      beacons, and acks of beacons: the other holder hears it, and it hears the other holder
//!   answers    reads, by its lease like any primary; no probe, so nobody is removed on its word
//! ```
//!
//! An ack from here names what was applied before, which is in the dump. An ack that comes commits nothing: it would
//! be acknowledged, and be in no dump. It renews the lease, because whoever acks owes a grace, frozen or not.

use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::Time;
use kv_protocol::peer_message::{BatchWriter, Beacon, PeerMessage};

use super::{Pumped, Replica, Role, StreamError};

impl Replica {
    /// Changes nothing any more, so that a dump is the last word: from now on no write is taken, applied,
    /// sent or committed, and no view is installed. What is pending stays unanswered. Reads and beacons
    /// go on.
    pub fn freeze(&mut self) {
        self.draining = true;
        self.frozen = true;
    }

    /// Whether its dump has begun: nobody may be removed on its word.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Takes of a message only what says that the other holder is there.
    pub(super) fn on_message_when_frozen(
        &mut self,
        now: Time,
        message: &PeerMessage<'_>,
    ) -> Result<(), StreamError> {
        if message.view() != self.view_version() {
            return Err(StreamError::Frozen);
        }
        self.hear(now);
        match message {
            PeerMessage::Beacon(beacon) => self.on_beacon(beacon),
            PeerMessage::Ack(ack) => {
                let Role::Primary(primary) = &mut self.role else {
                    return Err(StreamError::Frozen);
                };
                if primary.sender.has_sent(ack.echo) {
                    primary.lease.renew(ack.echo, self.config.failure_timeout);
                }
                Ok(())
            }
            _ => Err(StreamError::Frozen),
        }
    }

    /// Beacons, and acks of what came before; a candidate says no more, because its copy goes no further.
    pub(super) fn fill_frozen_batch(&mut self, now: Time, batch: &mut BatchWriter<'_>) -> Pumped {
        if self.state() != ReplicaState::Candidate {
            self.pump_acks(now, batch);
        }
        let view = self.view_version();
        let interval = self.config.failure_timeout.beacon_interval();
        if let Some(sender) = self.sender_mut()
            && sender.beacon_due(interval).is_some_and(|due| due <= now)
        {
            batch.push(&PeerMessage::Beacon(Beacon { view, t_send: now }));
            sender.note_sent(now);
        }
        Pumped::Done
    }

    /// When its next beacon is due.
    pub(super) fn next_frozen_timeout(&self) -> Option<Time> {
        let interval = self.config.failure_timeout.beacon_interval();
        self.sender().and_then(|sender| sender.beacon_due(interval))
    }
}
