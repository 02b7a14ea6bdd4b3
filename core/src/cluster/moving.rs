//! A place of the ring that is given to another host while the cluster serves (`coord replace`).
//!
//! ```text
//!   asked --> stored --> the process is heard    led out as one that was told to stop (leave.rs), while every
//!                                                other holder of its groups is heard, too
//!                        it is silent            out of its views by inquiry and grace, as ever
//!                 no view names it any more --> a new process, on the new host
//! ```
//!
//! The host of a silent process may be gone for good, so nobody can prove its death. No proof is needed to fill its
//! place: no durable view names it, and whoever serves in its stead has waited for its lease. It stays unproven. It is
//! refused wherever it reports, and nobody is told that it has ended. A sole holder stays where it is: without proof of
//! its death it may have the only copy.
//!
//! Whoever leaves never wins an inquiry. So when another holder of its groups falls silent, the move waits: the process
//! has not been told to stop, and takes over as any other.

use kv_protocol::{GroupId, Peer, ServerId, Time, View};

use super::respawn::Backoff;
use super::stop::Stage;
use super::{Cluster, Effect};

/// Why a place is not given to another host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceRefused {
    /// There is no such place.
    #[error("there is no server {0} in this cluster of {1}")]
    NoSuchServer(ServerId, u16),
    /// The cluster does not serve yet, or is being stopped.
    #[error("the cluster is starting or stopping; ask again when it serves")]
    NotServing,
    /// The process may hold the only copy of a group.
    #[error(
        "server {server} may hold the only copy of group {group}; bring it back, or let the group get its second copy \
         first"
    )]
    SoleHolder {
        /// The place.
        server: ServerId,
        /// The group.
        group: GroupId,
    },
}

impl Cluster {
    /// Gives a place of the ring to another host; the only holder of a group waits for another one. The caller has noted the new host, so that the next state that is
    /// stored names it; the next process of the place is spawned there.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn on_replace(
        &mut self,
        now: Time,
        id: ServerId,
        sink: &mut Vec<Effect>,
    ) -> Result<(), ReplaceRefused> {
        self.may_move(id)?;
        if !self.memory.decided.moving.contains(&id) {
            self.memory.decided.moving.push(id);
        }
        self.server_mut(id).backoff = Backoff::default();
        self.advance(now, sink);
        Ok(())
    }

    /// Whether a place may be given to another host now: the move begins at once.
    ///
    /// # Errors
    /// Why not.
    pub fn may_replace(&self, id: ServerId) -> Result<(), ReplaceRefused> {
        self.may_move(id)?;
        match self.sole_group(id) {
            Some(group) => Err(ReplaceRefused::SoleHolder { server: id, group }),
            None => Ok(()),
        }
    }

    fn may_move(&self, id: ServerId) -> Result<(), ReplaceRefused> {
        if id.0 >= self.count() {
            return Err(ReplaceRefused::NoSuchServer(id, self.count()));
        }
        if !self.has_served() || self.stop.is_some() || self.is_outdated {
            return Err(ReplaceRefused::NotServing);
        }
        Ok(())
    }

    /// A group that only the process at this place may hold, if that is not proven dead: its view names no other
    /// holder, or one that is down, which the next view leaves out.
    fn sole_group(&self, id: ServerId) -> Option<GroupId> {
        let member = self.member(id);
        let is_sole = |view: &&View| {
            let other = match view.primary {
                Some(primary) if primary == member => view.secondary(),
                primary if view.secondary() == Some(member) => primary,
                _ => return false,
            };
            other.is_none_or(|other| !self.is_up(other))
        };
        let sole = self.memory.durable().views.iter().find(is_sole)?;
        (!self.is_dead(member) && !self.memory.durable().rests(sole.group)).then_some(sole.group)
    }

    /// Whether a place is on its way to another host.
    pub fn is_moving(&self, id: ServerId) -> bool {
        self.memory.durable().moving.contains(&id)
    }

    /// Leads out what is heard at places that are on their way to other hosts.
    pub(super) fn move_out(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if !self.recovers() {
            return;
        }
        for id in self.memory.durable().moving.clone() {
            let may_go = self.is_heard(id) && self.is_followed(id);
            let server = self.server_mut(id);
            match server.stage {
                Stage::Running if may_go => {
                    sink.push(Effect::Leaving { member: server.member });
                    self.begin_leave(now, id, sink);
                }
                Stage::Parting(_) if !may_go && !server.wants_to_leave => {
                    server.stage = Stage::Running;
                }
                _ => {}
            }
        }
    }

    fn is_heard(&self, id: ServerId) -> bool {
        let server = self.server(id);
        server.is_up() && server.suspected.is_none() && !server.exited
    }

    /// Whether every group that names the process at this place has another holder that is heard, or, where it is
    /// candidate, its primary.
    fn is_followed(&self, id: ServerId) -> bool {
        let member = self.member(id);
        self.memory.durable().views.iter().all(|view| {
            let other = match (view.primary, view.peer) {
                (Some(primary), Peer::Secondary(secondary)) if primary == member => Some(secondary),
                (Some(primary), Peer::Secondary(other) | Peer::Candidate(other))
                    if other == member =>
                {
                    Some(primary)
                }
                (Some(primary), _) if primary == member => None,
                _ => return true,
            };
            other.is_some_and(|other| !self.is_dead(other) && self.is_heard(other.server))
        })
    }

    /// Whether the process at a place has no end in sight for which it would dump: it only moves.
    pub(super) fn only_moves(&self, id: ServerId) -> bool {
        self.is_moving(id) && !self.server(id).wants_to_leave
    }

    /// Whether the process at a place need not be proven dead before another one, elsewhere, has the place. The caller
    /// has seen that no view names it.
    pub(super) fn is_given_up(&self, id: ServerId) -> bool {
        let server = self.server(id);
        self.is_moving(id) && (server.suspected.is_some() || server.started.is_none())
    }
}
