//! A replica whose dump has begun. Its content no longer changes, but it still responds to the other holder and to
//! clients.
//!
//! ```text
//!   accepts    no write, view or hello; a message counts only as a sign of life of the other holder
//!   sends      beacons, and acks of beacons: both holders keep receiving signs of life
//!   responds   to reads, under its lease like any primary; to no probe, so its reports remove no member
//! ```
//!
//! An ack that a frozen replica sends names only writes applied before the dump, which the dump contains. An ack
//! that it receives commits no write: such a write would be acknowledged, but missing in every dump. The ack renews
//! the lease, because its sender, frozen or not, observes a grace for it.

use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::Time;
use kv_protocol::peer_message::{BatchWriter, Beacon, PeerMessage};

use super::{Pumped, Replica, Role, StreamError};

impl Replica {
    /// Stops all changes of content, so that the dump is final. From now on no write is accepted, applied, sent or
    /// committed, and no view is installed. Pending writes get no response. Reads and beacons continue.
    pub fn freeze(&mut self) {
        self.draining = true;
        self.frozen = true;
    }

    /// Returns whether the dump of this replica has begun. The coordinator must then not remove a member because of
    /// this replica's reports.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Handles a message of the other holder as a sign of life. A beacon is acked and an ack renews the lease; nothing
    /// else has an effect.
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

    /// Fills a batch with the beacon and the ack that are due. A candidate sends no acks, because its copy does not
    /// continue.
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

    /// Returns the time at which the next beacon is due; `None` without a stream on which this replica sends beacons.
    pub(super) fn next_frozen_timeout(&self) -> Option<Time> {
        let interval = self.config.failure_timeout.beacon_interval();
        self.sender().and_then(|sender| sender.beacon_due(interval))
    }
}
