//! The derivation of views from facts, and of orders from durable views.
//!
//! ```text
//!   facts of every group -> reconcile::next_view -> decided -> Store -> durable -> orders, map
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use kv_protocol::control_message::{Order, OrderKind, ViewOrder, ViewPurpose};
use kv_protocol::map::ServerState;
use kv_protocol::{Member, Peer, ServerId, Time, View, ViewVersion};

use super::alarms::Alarm;
use super::leave::Vouch;
use super::reconcile::{Facts, Fate, Why, next_view};
use super::suspicion::{Doubt, Inquiry};
use super::{Cluster, Effect};
use crate::mutations::{self, Mutation};

/// The back-off before an order that a server could not carry out is given again.
const ORDER_PAUSE: Duration = Duration::from_millis(500);

/// The state of a group besides its view. It is not durable: after a restart of the coordinator the servers report
/// again, and inquiries begin anew.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Group {
    /// The version of the view whose candidate has caught up; `failed` is that of the view whose candidate has
    /// failed.
    pub(super) caught_up: ViewVersion,
    pub(super) failed: ViewVersion,
    /// The version of the view whose order the primary has reported as done.
    pub(super) confirmed: ViewVersion,
    pub(super) inquiry: Inquiry,
    pub(super) vouch: Vouch,
    /// The time at which the orders of the view are given again because a server could not carry one out.
    again_at: Option<Time>,
    /// The reason for the next view, if that view is decided but not durable yet.
    why: Option<Why>,
}

impl Cluster {
    /// Returns whether the primary has reported the order of this view as done.
    pub(super) fn is_confirmed(&self, view: &View) -> bool {
        self.groups[usize::from(view.group.0)].confirmed == view.version
    }

    /// Returns whether the view is confirmed or names no primary that could report.
    pub(super) fn is_confirmed_or_lost(&self, view: &View) -> bool {
        view.primary.is_none() || self.is_confirmed(view)
    }

    fn facts(&self, now: Time, view: &View) -> Facts {
        let group = &self.groups[usize::from(view.group.0)];
        let fate =
            |member: Option<Member>| member.map_or(Fate::Present, |member| self.fate(view, member));
        let judged = now >= self.judge_from;
        let fate = |member| match fate(member) {
            Fate::Gone if !judged => Fate::Present,
            fate => fate,
        };
        let (primary, other) = (fate(view.primary), fate(view.other()));
        let (primary, other) = self.unless_nobody_follows(view, primary, other);
        Facts {
            primary: self.unless_forgotten(view, view.primary, primary),
            other: self.unless_forgotten(view, view.other(), other),
            caught_up: group.caught_up == view.version,
            failed: group.failed == view.version,
            ready: self.ready_home(now, view),
            other_leaves: self.may_let_go(now, view),
            may_swap: self.may_swap(view) || self.may_hand_over(now, view),
        }
    }

    /// Applies two mutations that ignore a dead member. The simulator must detect them.
    fn unless_forgotten(&self, view: &View, member: Option<Member>, fate: Fate) -> Fate {
        let Some(server) = member.map(|member| member.server) else { return fate };
        let is_primary = view.primary == member;
        let c = mutations::is_open(Mutation::GroupCForgotten)
            && !is_primary
            && server == view.group.home_secondary(self.count());
        let third = mutations::is_open(Mutation::ThirdGroupForgotten)
            && is_primary
            && server != view.group.home_primary();
        if c || third { Fate::Present } else { fate }
    }

    /// Returns the process at the home server that has no copy of a group, if it can become a candidate now.
    fn ready_home(&self, now: Time, view: &View) -> Option<Member> {
        let homes = [view.group.home_primary(), view.group.home_secondary(self.count())];
        let holder = view.primary.map(|member| member.server);
        let missing = homes.into_iter().find(|home| Some(*home) != holder)?;
        let primary_up = view.primary.is_none_or(|member| self.server(member.server).is_up());
        let server = self.server(missing);
        let is_ready = server.is_up()
            && server.suspected.is_none()
            && !server.exited
            && !server.is_condemned
            && server.killed.is_none()
            && server.backoff.is_over(now)
            && self.may_become_holder(missing)
            && self.memory.durable().member(missing) == server.member;
        (is_ready && primary_up).then_some(server.member)
    }

    /// Returns whether a group may be handed over to its home primary. Its holders must have exchanged their home
    /// roles, both must be up and stay, and no other change may be in progress at either server.
    fn may_swap(&self, view: &View) -> bool {
        let (Some(primary), Peer::Secondary(secondary)) = (view.primary, view.peer) else {
            return false;
        };
        let at_each_others_home = primary.server == view.group.home_secondary(self.count())
            && secondary.server == view.group.home_primary();
        let touches = |other: &View, server: ServerId| {
            other.primary.is_some_and(|member| member.server == server)
                || other.other().is_some_and(|member| member.server == server)
        };
        let at_rest = |other: &View| {
            let touched = touches(other, primary.server) || touches(other, secondary.server);
            let is_busy = matches!(other.peer, Peer::Candidate(_))
                || (other.handover && !self.is_confirmed(other))
                || self.memory.decided.views[usize::from(other.group.0)].version != other.version;
            !(touched && is_busy)
        };
        at_each_others_home
            && self.may_become_holder(primary.server)
            && self.may_become_holder(secondary.server)
            && self.is_confirmed(view)
            && self.server(primary.server).is_up()
            && self.server(secondary.server).is_up()
            && self.memory.durable().views.iter().all(at_rest)
            && self.memory.decided.views.iter().all(at_rest)
    }

    /// Decides the next view of every group, but only when the decisions can be stored at once. If a decision
    /// waited for an earlier store, newer facts could contradict it before it is durable.
    pub(super) fn decide_views(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if !self.recovers() || self.memory.is_storing() {
            return;
        }
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let rests = self.memory.decided.rests(view.group);
            if self.memory.decided.views[n] != view || self.stop.is_some() || rests {
                continue;
            }
            let facts = self.facts(now, &view);
            let Some((mut next, mut why)) = next_view(&view, &facts) else { continue };
            if why == Why::Lost
                && let (true, instead) = self.rest_instead_of_loss(&view)
            {
                let Some(alone) = instead else { continue };
                (next, why) = (alone, Why::Left);
            }
            self.memory.decided.views[n] = next;
            self.groups[n].why = Some(why);
            self.remember_last_holders(&view, &next);
            if mutations::is_open(Mutation::SentBeforeFsync) {
                self.tell_view(&view, &next, sink);
            }
        }
    }

    /// Applies the consequences of a view change once the view is durable, because it may be withdrawn until then. A
    /// dropped candidate counts as a failure of its process, and so does a secondary that does not keep up. The removal
    /// of a holder counts as a fault if the holder is dead or was removed for its silence. The loss of a group counts
    /// as a second fault, unless the exit of its last holder is orderly.
    fn note_decision(&mut self, now: Time, before: &View, why: Why, sink: &mut Vec<Effect>) {
        match (why, before.peer) {
            (Why::Dropped, Peer::Candidate(candidate)) if !self.leaves_in_order(candidate) => {
                self.note_failure(now, candidate.server, sink);
                self.condemn_useless(candidate);
            }
            (Why::Dropped, Peer::Secondary(secondary)) => {
                self.note_removed(now, before, secondary, sink);
            }
            (Why::TakeOver, _) => {
                if let Some(primary) = before.primary {
                    self.note_removed(now, before, primary, sink);
                }
            }
            (Why::Lost, _) => {
                let Some(last) = before.primary else { return };
                if self.leaves_in_order(last) {
                    return;
                }
                // The other home server of the group has failed too. If no recovery is in progress, that was the first
                // fault.
                let homes =
                    [before.group.home_primary(), before.group.home_secondary(self.count())];
                let away = homes.into_iter().find(|home| *home != last.server);
                if self.memory.decided.recovering.is_none()
                    && let Some(home) = away
                {
                    self.note_fault(now, self.member(home), sink);
                }
                self.note_fault(now, last, sink);
                self.note_loss(now, before.group, last, sink);
            }
            _ => {}
        }
    }

    /// Records the removal of a holder from its group.
    fn note_removed(&mut self, now: Time, before: &View, holder: Member, sink: &mut Vec<Effect>) {
        let doubt = self.judged_for(before, holder);
        let is_fault = self.is_dead(holder) || matches!(doubt, Some(Doubt::Silence(_)));
        if is_fault || mutations::is_open(Mutation::AliveCountsAsFault) {
            self.note_fault(now, holder, sink);
        }
        if doubt == Some(Doubt::CannotFollow)
            && let Some(reason) = self.cannot_follow(before)
        {
            let (server, group) = (holder.server, before.group);
            self.alarms.raise(now, Alarm::CannotFollow { server, group, reason });
            sink.push(Effect::CannotFollow { server, group, reason });
            self.note_cannot_follow(now, server, sink);
        }
        if mutations::is_open(Mutation::AliveIsReplaced) && !self.memory.decided.names(holder) {
            self.server_mut(holder.server).is_condemned = true;
        }
    }

    /// Announces every view that a store has made durable, and applies its consequences.
    pub(super) fn tell_durable(&mut self, now: Time, before: &[View], sink: &mut Vec<Effect>) {
        for (n, before) in before.iter().enumerate() {
            let view = self.memory.durable().views[n];
            if view.version != before.version {
                if let Some(why) = self.groups[n].why.take() {
                    self.note_decision(now, before, why, sink);
                }
                self.tell_view(before, &view, sink);
            }
        }
    }

    fn tell_view(&mut self, before: &View, view: &View, sink: &mut Vec<Effect>) {
        sink.push(Effect::ViewChanged { before: *before, view: *view });
        self.revision += 1;
        let group = usize::from(view.group.0);
        self.end_inquiry(group);
        self.groups[group].again_at = None;
        for server in &mut self.servers {
            server.retire(view.group);
        }
        self.order_view(view, Some(before), sink);
        for member in [before.primary, before.other()].into_iter().flatten() {
            let stays = view.primary == Some(member) || view.other() == Some(member);
            if !stays && !self.is_dead(member) && self.server(member.server).orders_connected {
                self.order(member.server, ViewPurpose::Leave, view, None, sink);
            }
            // A proof is sent again with every view, so that it does not depend on an earlier order.
            self.tell_proof(view, member, sink);
        }
    }

    /// Gives the orders that put a view into effect.
    fn order_view(&mut self, view: &View, before: Option<&View>, sink: &mut Vec<Effect>) {
        let Some(primary) = view.primary else { return };
        let was_primary = before.is_some_and(|before| before.primary == view.primary);
        let purpose = match view.peer {
            Peer::None if was_primary => ViewPurpose::DropSecondary,
            Peer::None => ViewPurpose::TakeOver,
            Peer::Secondary(_) => ViewPurpose::SetSecondary,
            Peer::Candidate(candidate) if candidate.server == view.group.home_primary() => {
                ViewPurpose::UpdatePrimary
            }
            Peer::Candidate(_) => ViewPurpose::UpdateSecondary,
        };
        if !self.is_dead(primary) {
            self.order(primary.server, purpose, view, view.other(), sink);
        }
        if let Some(old) = view.secondary().filter(|old| view.handover && !self.is_dead(*old)) {
            self.order(old.server, ViewPurpose::SwitchPrimary, view, Some(primary), sink);
        }
    }

    fn order(
        &mut self,
        to: ServerId,
        purpose: ViewPurpose,
        view: &View,
        other: Option<Member>,
        sink: &mut Vec<Effect>,
    ) {
        // A server that is dumping installs no views.
        if !self.server(to).stage.takes_views() {
            return;
        }
        let other = other.and_then(|member| self.servers_address(member));
        self.give(to, OrderKind::View(ViewOrder { purpose, view: *view, other }), sink);
    }

    fn servers_address(&self, member: Member) -> Option<SocketAddr> {
        let server = self.server(member.server);
        server.address(|started| started.servers_port).filter(|_| server.member == member)
    }

    /// Gives a group's primary the proof that a process is dead, if it is and no proof for its place is outstanding.
    ///
    /// So at most one proof for each place is outstanding, however many processes of the place end while no order
    /// reaches the primary. The oldest one is enough, because only a proof about a process that the primary has
    /// followed has an effect. A later process of the place gets a group only by a copy from this primary. The primary
    /// reports such a copy on an order that it has received after the outstanding proof.
    fn tell_proof(&mut self, view: &View, member: Member, sink: &mut Vec<Effect>) {
        let Some(primary) = view.primary.filter(|primary| *primary != member) else { return };
        let is_of_place = |order: &Order| match order.kind {
            OrderKind::Exited(other) => other.server == member.server,
            _ => false,
        };
        let is_told = self.server(primary.server).outstanding.iter().any(is_of_place);
        if self.is_dead(member) && !self.is_dead(primary) && !is_told {
            self.give(primary.server, OrderKind::Exited(member), sink);
        }
    }

    /// Sends the proof of a process's death to every primary that may be waiting for it.
    pub(super) fn tell_proofs(&mut self, member: Member, sink: &mut Vec<Effect>) {
        let servers = self.count();
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let homes = [view.group.home_primary(), view.group.home_secondary(servers)];
            if homes.contains(&member.server) {
                self.tell_proof(&view, member, sink);
            }
        }
    }

    /// Gives all orders of the durable views, after a restart.
    pub(super) fn order_all_views(&mut self, sink: &mut Vec<Effect>) {
        for view in self.memory.durable().views.clone() {
            self.order_view(&view, None, sink);
        }
    }

    /// Records a report on an order that puts a view into effect, unless the group has a newer view.
    pub(super) fn note_view_report(
        &mut self,
        now: Time,
        to: ServerId,
        order: &ViewOrder,
        done: bool,
    ) {
        let group = usize::from(order.view.group.0);
        let is_current = self.memory.durable().views[group].version == order.view.version
            || mutations::is_open(Mutation::StaleUpdatedAccepted);
        if !is_current {
            return;
        }
        let version = self.memory.durable().views[group].version;
        let is_primary = order.view.primary.is_some_and(|primary| primary.server == to);
        let group = &mut self.groups[group];
        match order.purpose {
            ViewPurpose::UpdatePrimary | ViewPurpose::UpdateSecondary if done => {
                group.caught_up = version;
            }
            ViewPurpose::UpdatePrimary | ViewPurpose::UpdateSecondary => group.failed = version,
            _ if done && is_primary => group.confirmed = version,
            _ if done => {}
            _ => group.again_at = Some(now + ORDER_PAUSE),
        }
        self.revision += 1;
    }

    /// Gives the orders of a view again when the back-off after a failed one is over.
    pub(super) fn order_again(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for n in 0..self.groups.len() {
            if self.groups[n].again_at.is_some_and(|again| again <= now) {
                self.groups[n].again_at = None;
                let view = self.memory.durable().views[n];
                for server in &mut self.servers {
                    server.retire(view.group);
                }
                self.order_view(&view, None, sink);
            }
        }
    }

    pub(super) fn next_order_again(&self) -> Option<Time> {
        self.groups.iter().filter_map(|group| group.again_at).min()
    }

    /// Returns whether a group rests in dumps, or its only holder that has not left is down.
    pub(super) fn is_unreachable(&self, view: &View) -> bool {
        if self.memory.durable().rests(view.group) {
            return true;
        }
        let down = |member: Member| self.server(member.server).state != ServerState::Up;
        match (view.primary, view.secondary()) {
            (Some(primary), None) => down(primary),
            (Some(primary), Some(secondary)) => {
                (self.has_left(primary) && down(secondary))
                    || (self.has_left(secondary) && down(primary))
            }
            (None, _) => false,
        }
    }
}
