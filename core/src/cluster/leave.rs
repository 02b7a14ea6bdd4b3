//! The leave of a server that must stop while others continue. New views hand its groups to their other holders
//! while it still serves. Then the server exits (consistency.md §11).
//!
//! ```text
//!   request --> Parting ------ no view names it any more ------------> SHUTDOWN, exits, is replaced
//!                | primary of P, S      S has responded: S, P by hand-over
//!                | secondary of P, S    P has responded: P alone
//!                | candidate            P alone
//!                | sole holder          waits for a candidate to catch up
//!                +--- timeout, or no candidate comes ----------------> drains, dumps, exits: its dump is the last
//!                |                                                     holder's and counts: the group rests in it
//!                +--- no holder of any group stays ------------------> the cluster is stopped (stop.rs)
//! ```
//!
//! From its request on, a server that leaves (a leaver) never wins an inquiry. It never becomes a sole holder without
//! proof of the other's death, a candidate or the target of a hand-over. Otherwise the other holder would wipe its
//! copy, and the leaver would exit with the only one. If two leavers hold the same group, the one with the earlier
//! request leaves first. The other one waits until the place of the first is filled again. Before a view drops the
//! leaver, the holder that stays must respond to a fresh probe. Otherwise the group could be left to a server that is
//! dead but not yet detected as dead.

use std::time::Duration;

use kv_protocol::control_message::{Order, OrderKind};
use kv_protocol::limits::LEASE;
use kv_protocol::{Member, OrderId, Peer, ServerId, Time, View, ViewVersion};

use super::durable::LastHolders;
use super::reconcile::Fate;
use super::stop::Stage;
use super::{Cluster, Effect};
use crate::mutations::{self, Mutation};

/// The time within which requests to leave count as simultaneous, so that stop signals to all servers stop the cluster.
const TOGETHER: Duration = Duration::from_millis(200);
/// The time for which a leaver waits until others hold its groups, not counting time in which this coordinator was
/// suspended. Service managers give a process 30 s or more to stop, and the dump must be written within that time too.
pub const LEAVE_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval of notices to a waiting leaver that its request is in progress. Without them it would exit on its own.
const KEEP_WAITING: Duration = Duration::from_secs(1);
/// The timeout for the probe of a holder that is to stay. It allows for a distant host.
const VOUCH_TIMEOUT: Duration = LEASE.saturating_mul(2);
/// The time for which the response to that probe counts.
const VOUCH_COUNTS: Duration = LEASE;

/// The probe of the holder that is to stay, and its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Vouch {
    /// No probe was sent.
    #[default]
    None,
    /// A probe in progress under the view of this version.
    Asked { order: OrderId, version: ViewVersion, until: Time },
    /// A response under the view of this version.
    Given { version: ViewVersion, at: Time },
}

/// The effects of leaves on views and faults.
impl Cluster {
    /// Returns whether the exit of a process is or will be orderly. An orderly exit is no fault.
    pub(super) fn leaves_in_order(&self, member: Member) -> bool {
        let server = self.server(member.server);
        let is_leaving = !server.exited && server.stage != Stage::Running;
        server.member == member && (server.left || is_leaving)
    }

    /// Returns whether a process has made an orderly exit, with all its data in complete dumps.
    pub(super) fn has_left(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member == member && server.left
    }

    /// Returns whether the process has reported complete dumps of everything that it holds, in a stop.
    pub fn has_reported_dumps(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member == member && server.stage.has_complete_dumps()
    }

    /// Returns whether the exit of a process may have been orderly: it was, or the process was leaving and its exit
    /// status is unknown. A coordinator cannot read the exit status of a process started by an earlier coordinator.
    fn may_have_left(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member == member && (server.left || server.stage != Stage::Running)
    }

    /// Returns whether a response of this member may remove the other member of a view.
    pub(super) fn may_win(&self, member: Member) -> bool {
        self.server(member.server).stage == Stage::Running
            || mutations::is_open(Mutation::LeaverWins)
    }

    /// Returns whether the holder that remains without `gone` may become the sole holder.
    pub(super) fn other_may_win(&self, view: &View, gone: Member) -> bool {
        let winner = if view.primary == Some(gone) { view.secondary() } else { view.primary };
        view.secondary().is_none() || winner.is_none_or(|winner| self.may_win(winner))
    }

    /// Returns whether a server may become candidate or the target of a hand-over.
    pub(super) fn may_become_holder(&self, id: ServerId) -> bool {
        self.server(id).stage == Stage::Running || mutations::is_open(Mutation::LeaverMadeHolder)
    }

    /// Returns the time of a leaver's request. `None` if the process is not leaving or is dead, or while further
    /// requests that count as simultaneous may still arrive.
    fn parts(&self, now: Time, member: Member) -> Option<Duration> {
        match self.server(member.server).stage {
            Stage::Parting(asked)
                if !self.is_dead(member) && self.awake.0.at(now) >= asked + TOGETHER =>
            {
                Some(asked)
            }
            _ => None,
        }
    }

    /// Returns whether a holder stays when a leaver exits: the holder is up, and it is not leaving or its request is
    /// later than the leaver's.
    fn stays_after(&self, other: Member, leaver: Member, asked: Duration) -> bool {
        if mutations::is_open(Mutation::LeaverMadeHolder) {
            return !self.is_dead(other);
        }
        let goes_later = match self.server(other.server).stage {
            Stage::Running => true,
            Stage::Parting(at) => (at, other.server) > (asked, leaver.server),
            _ => false,
        };
        goes_later && !self.is_dead(other) && self.server(other.server).is_up()
    }

    /// Returns whether the next view may drop the secondary or candidate because it leaves. The primary must stay, and
    /// must have responded to a probe if the leaver is a secondary.
    pub(super) fn may_let_go(&self, now: Time, view: &View) -> bool {
        let (Some(primary), Some(leaver)) = (view.primary, view.other()) else { return false };
        let Some(asked) = self.parts(now, leaver) else { return false };
        let is_vouched = matches!(view.peer, Peer::Candidate(_)) || self.is_vouched(now, view);
        // The old primary of a hand-over leaves once the new primary has reported that it serves.
        let has_handed_over = !view.handover || self.is_confirmed(view);
        is_vouched && has_handed_over && self.stays_after(primary, leaver, asked)
    }

    /// Returns whether the primary of a view leaves and can hand over to a secondary that stays and has responded to a
    /// probe.
    pub(super) fn may_hand_over(&self, now: Time, view: &View) -> bool {
        let (Some(leaver), Peer::Secondary(secondary)) = (view.primary, view.peer) else {
            return false;
        };
        let Some(asked) = self.parts(now, leaver) else { return false };
        self.is_confirmed(view)
            && self.is_vouched(now, view)
            && self.server(leaver.server).is_up()
            && self.stays_after(secondary, leaver, asked)
    }

    /// Adjusts the fates of two holders if one of them has made an orderly exit. The next view drops the leaver only if
    /// the other holder is up or proven dead. If the other holder is only silent, the view names both, because the
    /// leaver's dump may be the only remaining copy.
    pub(super) fn unless_nobody_follows(
        &self,
        view: &View,
        primary: Fate,
        other: Fate,
    ) -> (Fate, Fate) {
        let (Some(first), Peer::Secondary(second)) = (view.primary, view.peer) else {
            return (primary, other);
        };
        let waits = |left: Member, fate: Fate, for_whom: Member, its: Fate| {
            let server = self.server(for_whom.server);
            let is_there = server.is_up() && server.suspected.is_none();
            fate == Fate::Dead && self.may_have_left(left) && its != Fate::Dead && !is_there
        };
        if waits(first, primary, second, other) || waits(second, other, first, primary) {
            return (Fate::Present, Fate::Present);
        }
        (primary, other)
    }

    /// Records the last holders of a group if the next view names no holder.
    pub(super) fn remember_last_holders(&mut self, before: &View, next: &View) {
        let Some(primary) = before.primary.filter(|_| next.primary.is_none()) else { return };
        if mutations::is_open(Mutation::LastHoldersForgotten) {
            return;
        }
        self.remember(LastHolders { group: before.group, primary, secondary: before.secondary() });
    }

    fn remember(&mut self, holders: LastHolders) {
        self.memory.decided.last_holders.retain(|last| last.group != holders.group);
        self.memory.decided.last_holders.push(holders);
    }

    /// Handles the end of a group's last holders. If one of them has made an orderly exit, the group is not LOST,
    /// because the complete dump of this holder has all acknowledged writes. A view that names a candidate is first
    /// followed by one without it; then the group rests and keeps its view. Returns whether the group rests, and the
    /// view to make first, if any.
    pub(super) fn rest_instead_of_loss(&mut self, before: &View) -> (bool, Option<View>) {
        let (Some(primary), secondary) = (before.primary, before.secondary()) else {
            return (false, None);
        };
        let has_dumps = self.has_left(primary) || secondary.is_some_and(|held| self.has_left(held));
        if !has_dumps || mutations::is_open(Mutation::LastHoldersForgotten) {
            return (false, None);
        }
        if matches!(before.peer, Peer::Candidate(_)) {
            let version = ViewVersion(before.version.0 + 1);
            return (true, Some(View { version, peer: Peer::None, handover: false, ..*before }));
        }
        self.remember(LastHolders { group: before.group, primary, secondary });
        (true, None)
    }
}

/// Execution of leaves.
impl Cluster {
    /// Handles a server's request to leave. If the cluster has not served, there is no data to hand over, so the
    /// server drains at once.
    pub(super) fn begin_leave(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        if !self.has_served() {
            return self.drain(now, id, sink);
        }
        self.server_mut(id).stage = Stage::Parting(self.awake.0.look(now));
    }

    /// Returns whether no holder of any group stays, and at least one server has made an orderly exit or is leaving.
    fn all_leave(&self) -> bool {
        let is_orderly = |server: &super::Server| {
            server.left || (!server.exited && server.stage != Stage::Running)
        };
        let stays = |member: Member| {
            !self.is_dead(member) && self.server(member.server).stage == Stage::Running
        };
        let held =
            self.memory.durable().views.iter().flat_map(|view| [view.primary, view.secondary()]);
        self.recovers() && self.servers.iter().any(is_orderly) && !held.flatten().any(stays)
    }

    /// Stops the cluster if all holders are to leave. No server is left to hand over to, and only a stop makes the
    /// two dumps of each group agree.
    pub(super) fn stop_if_all_leave(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if self.all_leave() {
            sink.push(Effect::AllLeave);
            self.on_stop(now, sink);
        }
    }

    /// Probes the holders that must stay. Probes leavers too, as a notice that their requests are in progress.
    pub(super) fn lead_out(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if !self.recovers() {
            return;
        }
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let (Some(primary), Peer::Secondary(secondary)) = (view.primary, view.peer) else {
                continue;
            };
            for (leaver, other) in [(primary, secondary), (secondary, primary)] {
                let asked = self.parts(now, leaver);
                if asked.is_some_and(|asked| self.stays_after(other, leaver, asked)) {
                    self.ask_to_stay(now, n, &view, other, sink);
                }
            }
        }
        for id in (0..self.count()).map(ServerId) {
            let server = self.server(id);
            let is_due = server.kept_waiting.is_none_or(|told| now.since(told) >= KEEP_WAITING);
            let is_probed = server.outstanding.iter().any(|order| order.kind == OrderKind::Probe);
            let waits = matches!(server.stage, Stage::Parting(_)) && !server.exited;
            if waits && is_due && !is_probed {
                self.server_mut(id).kept_waiting = Some(now);
                self.give(id, OrderKind::Probe, sink);
            }
        }
    }

    fn ask_to_stay(
        &mut self,
        now: Time,
        group: usize,
        view: &View,
        who: Member,
        sink: &mut Vec<Effect>,
    ) {
        let is_asked = match self.groups[group].vouch {
            Vouch::None => false,
            Vouch::Asked { version, until, .. } => version == view.version && now < until,
            Vouch::Given { .. } => self.is_vouched(now, view),
        };
        if is_asked {
            return;
        }
        if let Vouch::Asked { order, .. } = self.groups[group].vouch {
            for server in &mut self.servers {
                server.outstanding.retain(|known| known.id != order);
            }
        }
        let order = self.give(who.server, OrderKind::Probe, sink);
        let until = now + VOUCH_TIMEOUT;
        self.groups[group].vouch = Vouch::Asked { order, version: view.version, until };
    }

    /// Returns whether the holder that is to stay has recently responded under this view.
    fn is_vouched(&self, now: Time, view: &View) -> bool {
        match self.groups[usize::from(view.group.0)].vouch {
            Vouch::Given { version, at } => version == view.version && now.since(at) < VOUCH_COUNTS,
            Vouch::None | Vouch::Asked { .. } => false,
        }
    }

    /// Records the response of a holder that is to stay.
    pub(super) fn note_vouch(&mut self, now: Time, order: &Order) {
        for group in &mut self.groups {
            if let Vouch::Asked { order: asked, version, until } = group.vouch
                && asked == order.id
                && now < until
            {
                group.vouch = Vouch::Given { version, at: now };
            }
        }
    }

    /// Advances a leaver: shuts it down once no view names it. If no other server gets its groups in time, or none can,
    /// orders it to drain and dump as a last holder.
    pub(super) fn part(&mut self, now: Time, id: ServerId, sink: &mut Vec<Effect>) {
        let member = self.member(id);
        let Stage::Parting(asked) = self.server(id).stage else { return };
        if !self.memory.durable().names(member) && !self.memory.decided.names(member) {
            return self.let_go(now, id, sink);
        }
        let is_tired = self.awake.0.at(now) >= asked + LEAVE_TIMEOUT || self.is_waiting_in_vain(id);
        // If only the place of a process moves, there is no deadline: the process exits when another holder has its
        // groups.
        if is_tired && !self.only_moves(id) {
            self.server_mut(id).outstanding.clear();
            self.drain(now, id, sink);
        }
    }

    /// Returns whether a server is the only holder of a group whose other home place repeatedly could not be filled.
    fn is_waiting_in_vain(&self, id: ServerId) -> bool {
        let member = self.member(id);
        let mut sole = self
            .memory
            .durable()
            .views
            .iter()
            .filter(|view| view.primary == Some(member) && view.secondary().is_none());
        sole.any(|view| {
            let homes = [view.group.home_primary(), view.group.home_secondary(self.count())];
            homes.into_iter().any(|home| home != id && self.server(home).backoff.is_alarming())
        })
    }

    /// Returns whether a server holds the group of its place, and whether it holds the group of its predecessor.
    pub(super) fn held_tables(&self, id: ServerId) -> (bool, bool) {
        let member = self.member(id);
        let before = ServerId((id.0 + self.count() - 1) % self.count());
        let holds = |place: ServerId| {
            self.memory.durable().holders(place.home_group()).any(|holder| holder == member)
        };
        (holds(id), holds(before))
    }

    /// Returns the time of the next step of a leave that depends on time alone; `None` if there is none.
    pub(super) fn next_leave_timeout(&self) -> Option<Time> {
        let parting = self.servers.iter().filter(|server| !server.exited);
        let due = parting.filter_map(|server| match server.stage {
            Stage::Parting(asked) if self.awake.0.at(self.now) < asked + TOGETHER => {
                Some(self.awake.0.next_look(asked + TOGETHER))
            }
            Stage::Parting(asked)
                if self.only_moves(server.member.server)
                    && self.awake.0.at(self.now) >= asked + TOGETHER =>
            {
                None
            }
            Stage::Parting(asked) => Some(self.awake.0.next_look(asked + LEAVE_TIMEOUT)),
            _ => None,
        });
        due.min()
    }
}
