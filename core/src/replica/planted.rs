//! What messages of an older view do to a replica that does not refuse them: only where a hole is
//! open, and only in builds that can open one.

use kv_protocol::ids::{SequenceNumber, ViewVersion};
use kv_protocol::peer_message::{Ack, Effect, PeerMessage, Prepare};

use super::{Replica, Role};
use crate::holes::{self, Hole};

/// What such messages leave.
#[derive(Debug, Default)]
pub(super) struct Planted {
    /// An ack under the older view.
    pub(super) old_ack: Option<Ack>,
}

impl Replica {
    /// Takes a message of an older view, where the rule against that is left out.
    pub(super) fn takes_old_message(
        &mut self,
        message: &PeerMessage<'_>,
        view: ViewVersion,
    ) -> bool {
        let (accepts, acks) =
            (holes::is_open(Hole::OldPrepareAccepted), holes::is_open(Hole::AckUnderOldView));
        if view > self.view_version() || !(accepts || acks) {
            return false;
        }
        let (sn, echo) = match message {
            PeerMessage::Prepare(prepare) => {
                if accepts {
                    self.apply_old(prepare);
                }
                (prepare.sn, prepare.t_send)
            }
            PeerMessage::Beacon(beacon) => (SequenceNumber::ZERO, beacon.t_send),
            _ => return false,
        };
        self.planted.old_ack = Some(Ack { view, sn, echo, taken: 0 });
        true
    }

    fn apply_old(&mut self, prepare: &Prepare<'_>) {
        if self.follower().is_some() {
            // Whatever does not fit is acked all the same.
            let _ = self.on_prepare(prepare);
            return;
        }
        let hash = self.hash_of(prepare.digest, prepare.key);
        if let (Role::Primary(_), Effect::Put) = (&self.role, prepare.effect) {
            let _ = self.table.put(hash, prepare.key, prepare.value, prepare.sn);
        }
    }
}
