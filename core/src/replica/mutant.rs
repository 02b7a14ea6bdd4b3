//! Mutations in which a replica does not reject messages of an older view. This module is compiled only with the
//! feature `mutations`, and is active only while such a mutation is enabled.

use kv_protocol::ids::{SequenceNumber, ViewVersion};
use kv_protocol::peer_message::{Ack, Effect, PeerMessage, Prepare};

use super::{Replica, Role};
use crate::mutations::{self, Mutation};

/// The state that remains after an accepted message of an older view.
#[derive(Debug, Default)]
pub(super) struct Mutant {
    /// An ack to send under the older view.
    pub(super) old_ack: Option<Ack>,
}

impl Replica {
    /// Accepts a message of an older view if the rule against it is disabled; returns whether it was accepted.
    pub(super) fn takes_old_message(
        &mut self,
        message: &PeerMessage<'_>,
        view: ViewVersion,
    ) -> bool {
        let (accepts, acks) = (
            mutations::is_open(Mutation::OldPrepareAccepted),
            mutations::is_open(Mutation::AckUnderOldView),
        );
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
        self.mutant.old_ack = Some(Ack { view, sn, echo, taken: 0 });
        true
    }

    fn apply_old(&mut self, prepare: &Prepare<'_>) {
        if self.follower().is_some() {
            // The ack is sent even if the write cannot be applied.
            let _ = self.on_prepare(prepare);
            return;
        }
        let hash = self.hash_of(prepare.digest, prepare.key);
        if let (Role::Primary(_), Effect::Put) = (&self.role, prepare.effect) {
            let _ = self.table.put(hash, prepare.key, prepare.value, prepare.deadline, prepare.sn);
        }
    }
}
