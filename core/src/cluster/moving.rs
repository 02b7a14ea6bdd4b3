//! The move of a place of the ring to another host while the cluster serves (`coord replace`).
//!
//! ```text
//!   request --> stored --> the process reports    leaves as after a stop signal (leave.rs), once every
//!                                                 other holder of its groups reports too
//!                          it is silent           removed from its views by inquiry and grace, as usual
//!                 no view names it any more --> a new process on the new host
//! ```
//!
//! The host of a silent process may never return, so the death of the process may be impossible to prove. No proof is
//! needed to fill its place: no durable view names it, and its successors as primary have waited until its lease ended.
//! The death stays unproven: the process is rejected if it reports again, and no other process receives a proof of its
//! death. A sole holder is not moved without proof of its death, because it may have the only copy.
//!
//! A server that leaves never wins an inquiry. So if another holder of the moving process's groups falls silent, the
//! leave is withdrawn and the move waits. Meanwhile the process can take over like any other holder.

use kv_protocol::{GroupId, Peer, ServerId, Time, View};

use super::respawn::Backoff;
use super::stop::Stage;
use super::{Cluster, Effect, LeaveReason};

/// The reason why a place is not moved to another host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplaceRefused {
    /// The cluster has no such place.
    #[error("there is no server {0} in this cluster of {1} servers; they are numbered from 0")]
    NoSuchServer(ServerId, u16),
    /// The cluster does not serve yet or is being stopped, or this coordinator's state is outdated.
    #[error("the cluster is starting or stopping; retry when it serves")]
    NotServing,
    /// The process may hold the only copy of a group.
    #[error(
        "server {server} may hold the only copy of group {group}; bring it back, or let the group get its second copy \
         first"
    )]
    SoleHolder {
        /// The place that is not moved.
        server: ServerId,
        /// The group of which it may hold the only copy.
        group: GroupId,
    },
}

impl Cluster {
    /// Moves a place of the ring to another host. The sole holder of a group leaves only when there is a second holder.
    /// The caller must have recorded the new host, so that the next stored state names it. The next process of the
    /// place is spawned on the new host.
    ///
    /// # Errors
    /// [`ReplaceRefused`] if there is no such place or the cluster does not serve; nothing is changed.
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

    /// Checks that a place can be moved to another host now, so that the move begins at once.
    ///
    /// # Errors
    /// [`ReplaceRefused`] if there is no such place, the cluster does not serve, or only the process at the place may
    /// hold some group.
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

    /// Returns a group that only the process at this place may hold; `None` if the process is proven dead or there is
    /// no such group. The view of such a group names no other holder, or one that is down.
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

    /// Returns whether a place is moving to another host and has no new process yet.
    pub fn is_moving(&self, id: ServerId) -> bool {
        self.memory.durable().moving.contains(&id)
    }

    /// Begins the leave of each moving process that reports and whose groups all have another reporting holder.
    /// Withdraws the leave when this no longer holds, unless the process itself requested it.
    pub(super) fn move_out(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if !self.recovers() {
            return;
        }
        for id in self.memory.durable().moving.clone() {
            let may_go = self.is_heard(id) && self.is_followed(id);
            let server = self.server_mut(id);
            match server.stage {
                Stage::Running if may_go => {
                    let member = server.member;
                    sink.push(Effect::Leaving { member, why: LeaveReason::Replaced });
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

    /// Returns whether every group whose view names the process at this place has another holder that reports. If
    /// the process is a candidate, the other holder is the primary.
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

    /// Returns whether a process leaves only because its place moves. Such a process never dumps as a last holder.
    pub(super) fn only_moves(&self, id: ServerId) -> bool {
        self.is_moving(id) && !self.server(id).wants_to_leave
    }

    /// Returns whether another host may get the place without a proof of death of its process. The caller must have
    /// checked that no view names the process.
    pub(super) fn is_given_up(&self, id: ServerId) -> bool {
        let server = self.server(id);
        self.is_moving(id) && (server.suspected.is_some() || server.started.is_none())
    }
}
