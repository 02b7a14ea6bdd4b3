//! Installation of views: the one place where roles change (consistency.md §3, last part of §4, §6).
//!
//! | from \ named as | primary | secondary | candidate or nothing |
//! |---|---|---|---|
//! | no view yet | founding view, or any view if restored | founding view, or any view if restored | wiped |
//! | view that names only others | never | never | wiped |
//! | primary | keeps its log | hand-over view, and active: hands over | wiped |
//! | handing over | takes the group back | never | wiped |
//! | taking over | as a secondary | never | wiped |
//! | secondary | takes over, or waits for HANDOVER | under the same primary: keeps its copy | wiped |
//! | candidate | as a secondary, if its copy is complete | if its copy is complete | wiped |
//!
//! A correct coordinator creates no view that the table marks *never*, and none that treats an incomplete copy as
//! complete. Such a view is rejected. Installing the installed view again changes nothing.

use kv_protocol::client_message::Status;
use kv_protocol::ids::{Member, SequenceNumber, Time, ViewVersion};
use kv_protocol::view::{Peer, View};

use super::copy_in::CopyIn;
use super::flush::Flush;
use super::follower::Follower;
use super::lease::Standing;
use super::pending::{Committed, PendingLog};
use super::primary::{Candidacy, Primary, Sender};
use super::requests::Asker;
use super::{HandingOver, InstallError, Replica, Responses, Role};
use crate::mutations::{self, Mutation};

/// The version of a group's first view, the only view that makes empty replicas holders.
const FOUNDING: ViewVersion = ViewVersion(1);

/// The role in which a view names a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Primary,
    Secondary,
    Candidate,
    Nothing,
}

fn named_as(view: &View, me: Member) -> Named {
    match view.peer {
        _ if view.primary == Some(me) => Named::Primary,
        Peer::Secondary(member) if member == me => Named::Secondary,
        Peer::Candidate(member) if member == me => Named::Candidate,
        _ => Named::Nothing,
    }
}

impl Replica {
    /// Returns the role in which a view names this replica's process.
    pub(super) fn named(&self, view: &View) -> Named {
        named_as(view, self.config.me)
    }

    /// Installs a view. Installing the same view again changes nothing.
    ///
    /// # Errors
    /// [`InstallError`] if the view is of another group, is older than the installed view, contradicts it, or gives
    /// this replica a role that it cannot take; or if this replica is frozen. The installed view stays.
    pub fn install(
        &mut self,
        now: Time,
        view: View,
        responses: &mut impl Responses,
    ) -> Result<(), InstallError> {
        self.readings.note(now);
        let (group, version) = (self.config.group, view.version);
        let not_for_me = InstallError::NotForMe { group, version, me: self.config.me };
        if view.group != group || version == ViewVersion(0) {
            return Err(not_for_me);
        }
        if let Some(installed) = self.view {
            if version < installed.version {
                let installed = installed.version;
                return Err(InstallError::Old { group, got: version, installed });
            }
            if version == installed.version {
                return if view == installed {
                    Ok(())
                } else {
                    Err(InstallError::Contradiction { group, version })
                };
            }
        }
        if self.frozen {
            return Err(InstallError::Frozen { group });
        }
        let named = self.named(&view);
        if !self.may_become(named, &view) {
            return Err(not_for_me);
        }
        let was_primary = self.primary().is_some();
        let before = self.view.replace(view);
        self.hear(now);
        self.longest_gap = None;
        match named {
            Named::Primary => self.become_primary(now, before, &view, responses),
            Named::Secondary => self.become_secondary(responses),
            Named::Candidate => {
                if !mutations::is_open(Mutation::CandidateNotWiped) {
                    self.wipe(responses);
                }
                self.role = Role::Candidate(Follower::default(), CopyIn::default());
            }
            Named::Nothing => self.wipe(responses),
        }
        if !was_primary || self.primary().is_none() {
            self.flush = Flush::default();
        }
        Ok(())
    }

    /// Returns whether this replica can take the role that the view gives it, by the table in the module
    /// documentation.
    fn may_become(&self, named: Named, view: &View) -> bool {
        match (named, &self.role) {
            (Named::Candidate | Named::Nothing, _) => true,
            (Named::Primary | Named::Secondary, Role::Out) => {
                let is_founding = self.view.is_none() && view.version == FOUNDING;
                let is_fresh = self.view.is_none() && self.restored.is_some();
                is_founding || is_fresh || mutations::is_open(Mutation::LostServedEmpty)
            }
            (Named::Primary | Named::Secondary, Role::Candidate(_, copy)) => copy.is_complete(),
            (Named::Primary, _) => true,
            (Named::Secondary, Role::Secondary(_)) => {
                self.view.is_some_and(|installed| installed.primary == view.primary)
            }
            (Named::Secondary, Role::Primary(primary)) => view.handover && primary.is_active(),
            (Named::Secondary, Role::HandingOver(_) | Role::TakingOver(_)) => false,
        }
    }

    fn become_primary(
        &mut self,
        now: Time,
        before: Option<View>,
        view: &View,
        responses: &mut impl Responses,
    ) {
        let candidacy = match view.peer {
            Peer::Candidate(_) => Candidacy::Awaited { since: now },
            Peer::None | Peer::Secondary(_) => Candidacy::None,
        };
        self.role = match std::mem::replace(&mut self.role, Role::Out) {
            Role::Primary(mut primary) => {
                // A candidate that becomes secondary was in the union, so the lease that it grants continues.
                if before.and_then(|before| before.other()) != view.other() {
                    primary.lease = Default::default();
                }
                primary.candidacy = candidacy;
                Role::Primary(primary)
            }
            Role::HandingOver(old) => {
                Role::Primary(self.promoted(now, old.sender.log.into_new_stream(), candidacy))
            }
            Role::Out => {
                let last = self.restored.unwrap_or(SequenceNumber::ZERO);
                Role::Primary(self.promoted(now, PendingLog::starting_after(last), candidacy))
            }
            Role::TakingOver(follower)
            | Role::Secondary(follower)
            | Role::Candidate(follower, _)
                if view.handover =>
            {
                Role::TakingOver(follower.on_new_stream(&mut self.table))
            }
            Role::TakingOver(follower)
            | Role::Secondary(follower)
            | Role::Candidate(follower, _) => {
                let follower = follower.on_new_stream(&mut self.table);
                // All applied writes are committed now, and sequence numbers continue.
                let restarted = mutations::is_open(Mutation::SnRestarted);
                let last = if restarted { SequenceNumber::ZERO } else { follower.last };
                let log = PendingLog::starting_after(last);
                Role::Primary(self.promoted(now, log, candidacy))
            }
        };
        self.upkeep = self.upkeep.with_new_log();
        self.evictions.note_new_log();
        if let Some(sender) = self.sender_mut() {
            sender.on_new_view();
        }
        self.commit_if_alone(responses);
    }

    fn promoted(&self, now: Time, log: PendingLog, candidacy: Candidacy) -> Box<Primary> {
        let mut standing = Standing::on_promotion(self.acked, self.proven);
        standing.advance(now);
        if mutations::is_open(Mutation::PromoteWithoutGrace)
            || (mutations::is_open(Mutation::ProofOfAnotherIncarnation) && self.proven.is_some())
        {
            standing = Standing::Active;
        }
        Box::new(Primary::new(Sender::of(log), standing, candidacy))
    }

    fn become_secondary(&mut self, responses: &mut impl Responses) {
        self.role = match std::mem::replace(&mut self.role, Role::Out) {
            Role::Primary(mut primary) => {
                self.reject(primary.sender.log.take_waiters(), responses);
                let log = primary.sender.log.into_new_stream();
                Role::HandingOver(HandingOver { sender: Sender::of(log), is_said: false })
            }
            Role::Secondary(follower) | Role::Candidate(follower, _) => {
                Role::Secondary(follower.on_new_stream(&mut self.table))
            }
            Role::Out => {
                let last = self.restored.unwrap_or(SequenceNumber::ZERO);
                Role::Secondary(Follower::starting_after(last))
            }
            never @ (Role::HandingOver(_) | Role::TakingOver(_)) => never,
        };
    }

    /// Drops the role, the table and the sessions, and rejects waiting requests. The view, the last ack and the last
    /// proof of death stay.
    fn wipe(&mut self, responses: &mut impl Responses) {
        if let Some(sender) = self.sender_mut() {
            let waiters = sender.log.take_waiters();
            self.reject(waiters, responses);
        }
        self.role = Role::Out;
        self.table.clear();
        self.sessions.clear();
        self.restored = None;
    }

    /// Rejects the waiting requests, so that their clients retry at the new primary.
    fn reject(&self, waiters: Vec<Asker>, responses: &mut impl Responses) {
        for asker in waiters {
            let reason = "no longer the primary; fetch the map and retry with the same number";
            self.refuse(asker, Status::WrongView, reason, responses);
        }
    }

    /// Handles the proven death of a process. The death ends a grace only if this replica sent its last ack to that
    /// process. In a hand-over view, the death of the old primary lets this replica take over.
    pub fn on_exited(&mut self, now: Time, member: Member) {
        self.readings.note(now);
        self.proven = Some(member);
        // There is no grace for a dead process. A later proof of another death does not restore the grace.
        self.acked.take_if(|acked| acked.to == member);
        match &mut self.role {
            Role::Primary(primary) => {
                primary.standing.on_exited(member);
                if mutations::is_open(Mutation::ProofOfAnotherIncarnation) {
                    primary.standing = Standing::Active;
                }
            }
            Role::TakingOver(_) => self.take_over_if_free(now),
            _ => {}
        }
    }

    /// Takes over in a hand-over view if the old primary is proven dead. The new primary serves only after this
    /// proof or a HANDOVER. The end of its grace is not enough, because the old primary may hold writes that this
    /// replica lacks.
    fn take_over_if_free(&mut self, now: Time) {
        let Some(old) = self.view.and_then(|view| view.secondary()) else { return };
        let graced = mutations::is_open(Mutation::GraceInHandover)
            && self.acked.is_none_or(|acked| now >= acked.until);
        if self.proven == Some(old) || graced {
            self.finish_taking_over();
        }
    }

    /// Makes this replica the serving primary. No other live replica has writes of the old primary that this one
    /// lacks.
    pub(super) fn finish_taking_over(&mut self) {
        self.role = match std::mem::replace(&mut self.role, Role::Out) {
            Role::TakingOver(follower) => {
                let follower = follower.on_new_stream(&mut self.table);
                let sender = Sender::starting_after(follower.last);
                let primary = Primary::new(sender, Standing::Active, Candidacy::None);
                Role::Primary(Box::new(primary))
            }
            other => other,
        };
    }

    /// Commits the pending writes and becomes the secondary, because the new primary has all writes and serves.
    pub(super) fn finish_handing_over(&mut self) {
        let role = std::mem::replace(&mut self.role, Role::Out);
        self.role = match role {
            Role::HandingOver(mut old) => {
                let last = old.sender.log.last();
                while let Some(write) = old.sender.log.commit_oldest() {
                    let sn = old.sender.log.committed();
                    let Committed { effect, staged, mut more, .. } = write;
                    self.apply_committed(sn, effect, staged, more.as_deref_mut());
                }
                Role::Secondary(Follower::starting_after(last))
            }
            other => other,
        };
    }

    /// Ends the grace of this replica if its time has passed.
    pub(super) fn advance_standing(&mut self, now: Time) {
        match &mut self.role {
            Role::Primary(primary) => primary.standing.advance(now),
            Role::TakingOver(_) if mutations::is_open(Mutation::GraceInHandover) => {
                self.take_over_if_free(now);
            }
            _ => {}
        }
    }
}
