//! Inquiries: they decide, without proof of death, that a member must leave its group (consistency.md §5).
//!
//! ```text
//!   doubt                                probed member (PROBE)   heartbeats after its response
//!   a member is silent to the            the other member        it receives the silent one -> nothing, probe again
//!   coordinator, or its link is lost                             it does not -> the silent one is Gone
//!
//!   a member reports a complaint about   the one that is not     the same complaint, the same suspect
//!   the other; both report here          the suspect; if it      -> the one not probed is Gone
//!                                        does not respond,
//!                                        the suspect
//!
//!   the secondary does not keep up       the primary             it still does not -> the secondary is Gone
//! ```
//!
//! The suspect follows from the reports of all servers (verdict.rs). If the reports do not distinguish the two members,
//! the primary is probed first, and stays if it responds.
//!
//! The member that is to stay must respond to a fresh probe. A heartbeat alone is no proof of life: it may have waited
//! while the coordinator itself was paused, and its sender may be dead by now. If the coordinator dropped the other
//! member on the report of a dead sender, the group would be lost. A response that arrives or is handled late is
//! ignored for the same reason.
//!
//! The heartbeats after the response are needed too. A member that was paused responds as soon as it resumes. Until the
//! stream is up again, the last heartbeat of the other member still complains about the paused one. If that complaint
//! decided, the other member would be dropped, and the group would be left to the member that was paused.
//!
//! A server that leaves never wins an inquiry: it is not probed, and a response from before its request has no effect
//! (leave.rs).
//!
//! A sole holder is never removed: it is UNREACHABLE until it reports, or is proven dead.

use kv_protocol::control_message::{Order, OrderKind};
use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::{Member, OrderId, Time, View};

use super::alarms::Alarm;
use super::reconcile::Fate;
use super::{Cluster, Effect};
use crate::mutations::{self, Mutation};

/// An inquiry into the two members of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Inquiry {
    #[default]
    None,
    /// A probe of member `who` is in progress because of this doubt.
    Asked { doubt: Doubt, who: Member, order: OrderId, until: Time },
    /// One member has responded; the next heartbeats show whether the doubt about the other one lasts.
    Answered { doubt: Doubt, gone: Member, at: Time },
    /// The other member has responded, so this member must leave the group.
    Judged { gone: Member, doubt: Doubt },
}

/// The reason for an inquiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// This member is silent to the coordinator.
    Silence(Member),
    /// Both members report to the coordinator, and one reports a complaint about the other. The reports do not show
    /// which one is at fault, so the primary is probed.
    Complaint,
    /// There is a complaint, and this member is the suspect. The other one is probed.
    Suspect(Member),
    /// There is a complaint, and the member to probe first did not respond or must leave. The other one is probed.
    Mute,
    /// The secondary does not keep up: the primary is probed.
    CannotFollow,
}

impl Doubt {
    /// Returns whether the doubt began with a complaint.
    fn is_complaint(self) -> bool {
        matches!(self, Doubt::Complaint | Doubt::Suspect(_) | Doubt::Mute)
    }
}

impl Cluster {
    /// Returns the fate of a member of a group's durable view.
    pub(super) fn fate(&self, view: &View, member: Member) -> Fate {
        if self.is_dead(member) {
            return Fate::Dead;
        }
        if mutations::is_open(Mutation::SoleKilledOnSilence)
            && view.secondary().is_none()
            && self.server(member.server).suspected.is_some()
        {
            return Fate::Dead;
        }
        match self.groups[usize::from(view.group.0)].inquiry {
            Inquiry::Judged { gone, .. } if gone == member && self.other_may_win(view, gone) => {
                Fate::Gone
            }
            _ => Fate::Present,
        }
    }

    /// Returns whether the process has exited, or another process has its place. A place gets another process only when
    /// the old one is proven dead, or when no view names the old one and it never reported or its place moves.
    pub(super) fn is_dead(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member != member || server.exited
    }

    /// Returns the member of a view that is silent to the coordinator while the other one is not; `None` if both or
    /// neither are. A silent primary with a candidate is not returned, because a candidate cannot take over.
    fn is_silent(&self, view: &View) -> Option<Member> {
        let (primary, other) = (view.primary?, view.other()?);
        let is_suspected = |member: Member| {
            !self.is_dead(member) && self.server(member.server).suspected.is_some()
        };
        match (is_suspected(primary), is_suspected(other)) {
            (true, false) => view.secondary().is_some().then_some(primary),
            (false, true) => Some(other),
            _ => None,
        }
    }

    /// Returns whether a member's latest heartbeat reports, for each of its shards of this group, a recent message from
    /// the other member.
    fn hears_other(&self, view: &View, voter: Member) -> bool {
        let Some((_, heartbeat)) = &self.server(voter.server).heartbeat else { return false };
        let shards = heartbeat.replicas.iter().filter(|replica| replica.group == view.group);
        // A shard publishes its observations once per interval, so the last message may be more recent than the report
        // shows.
        let within = (self.config.failure_timeout.heard_within() + HEARTBEAT_INTERVAL).as_millis();
        let heard = |silent_ms: u32| u128::from(silent_ms) <= within;
        let heard = shards.filter(|replica| heard(replica.silent_ms)).count();
        heard == usize::from(self.config.shards)
    }

    /// Returns whether the doubt still holds.
    fn is_doubted(&self, view: &View, doubt: Doubt) -> bool {
        match doubt {
            Doubt::Silence(member) => self.is_silent(view) == Some(member),
            Doubt::Complaint | Doubt::Suspect(_) | Doubt::Mute => self.is_complained_of(view),
            Doubt::CannotFollow => self.cannot_follow(view).is_some(),
        }
    }

    /// Begins and advances the inquiries of all groups.
    pub(super) fn inquire(&mut self, now: Time, sink: &mut Vec<Effect>) {
        if now < self.judge_from || !self.recovers() {
            return;
        }
        let timeout = self.config.failure_timeout.probe_timeout();
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let is_decided = self.memory.decided.views[n] != view;
            match self.groups[n].inquiry {
                // The decision did not lead to a view immediately. Newer facts may contradict it, so it is dropped.
                Inquiry::Judged { .. } if !is_decided => self.end_inquiry(n),
                Inquiry::None => self.begin_inquiry(now, n, &view, sink),
                Inquiry::Asked { doubt: doubt @ Doubt::Silence(_), until, .. }
                    if until <= now || !self.is_doubted(&view, doubt) =>
                {
                    self.end_inquiry(n);
                }
                // A member is now silent to the coordinator too. An inquiry about this silence decides sooner than the
                // one in progress, so clients wait less.
                Inquiry::Asked { doubt, .. }
                    if !matches!(doubt, Doubt::Silence(_)) && self.is_silent(&view).is_some() =>
                {
                    self.end_inquiry(n);
                    self.ask_about_silence(now, n, &view, sink);
                }
                // Newer reports identify the probed member as the suspect, so the other one must be probed.
                Inquiry::Asked { doubt: Doubt::Complaint | Doubt::Suspect(_), who, .. }
                    if self.suspect(&view) == Some(who) && self.is_complained_of(&view) =>
                {
                    self.end_inquiry(n);
                    self.begin_inquiry(now, n, &view, sink);
                }
                Inquiry::Asked {
                    doubt: Doubt::Complaint | Doubt::Suspect(_), who, until, ..
                } if until <= now => {
                    self.end_inquiry(n);
                    let other = if view.primary == Some(who) { view.other() } else { view.primary };
                    self.ask(now, n, &view, other, Doubt::Mute, sink);
                }
                Inquiry::Asked { doubt: Doubt::CannotFollow, until, .. } if until <= now => {
                    self.end_inquiry(n);
                }
                Inquiry::Asked { until, .. } if until <= now => {
                    self.end_inquiry(n);
                    self.alarms.raise(now, Alarm::Unanswered(view.group));
                    sink.push(Effect::Unanswered { group: view.group });
                }
                // The response is too old for a decision: this coordinator may have been paused since then.
                Inquiry::Answered { at, .. } if now.since(at) > timeout => self.end_inquiry(n),
                // The decision is made only when the next view can be stored at once.
                Inquiry::Answered { doubt, gone, at }
                    if self.have_beaten_since(&view, told_since(doubt, at))
                        && !self.memory.is_storing() =>
                {
                    self.judge(now, n, &view, doubt, gone);
                }
                _ => {}
            }
        }
    }

    /// Begins an inquiry into a group if there is a doubt.
    fn begin_inquiry(&mut self, now: Time, group: usize, view: &View, sink: &mut Vec<Effect>) {
        if self.is_silent(view).is_some() {
            self.ask_about_silence(now, group, view, sink);
        } else if self.is_complained_of(view) {
            match self.suspect(view) {
                Some(suspect) if view.primary == Some(suspect) => {
                    self.ask(now, group, view, view.secondary(), Doubt::Suspect(suspect), sink);
                }
                Some(suspect) => {
                    self.ask(now, group, view, view.primary, Doubt::Suspect(suspect), sink);
                }
                None => self.ask(now, group, view, view.primary, Doubt::Complaint, sink),
            }
        } else if self.cannot_follow(view).is_some() {
            self.ask(now, group, view, view.primary, Doubt::CannotFollow, sink);
        }
    }

    /// Decides about the other member, after one has responded and both have reported since.
    fn judge(&mut self, now: Time, group: usize, view: &View, doubt: Doubt, gone: Member) {
        let is_doubted = self.is_doubted(view, doubt);
        let is_gone = is_doubted
            && match doubt {
                Doubt::Silence(_) => view
                    .primary
                    .into_iter()
                    .chain(view.other())
                    .any(|voter| voter != gone && !self.hears_other(view, voter)),
                // Meanwhile the probed member may have become the suspect, or the other one may no longer be the
                // suspect.
                Doubt::Complaint | Doubt::Suspect(_) => match self.suspect(view) {
                    Some(suspect) => suspect == gone,
                    None => view.primary != Some(gone),
                },
                Doubt::Mute | Doubt::CannotFollow => true,
            };
        if let Doubt::Silence(silent) = doubt
            && !is_gone
            && is_doubted
        {
            self.alarms.raise(now, Alarm::KeptThoughSilent(silent.server));
        }
        if is_gone && doubt.is_complaint() {
            self.server_mut(gone.server).was_judged = true;
        }
        self.groups[group].inquiry =
            if is_gone { Inquiry::Judged { gone, doubt } } else { Inquiry::None };
    }

    /// Returns the doubt for which a member of a view must leave; `None` if there is no such decision.
    pub(super) fn judged_for(&self, view: &View, member: Member) -> Option<Doubt> {
        match self.groups[usize::from(view.group.0)].inquiry {
            Inquiry::Judged { gone, doubt } if gone == member => Some(doubt),
            _ => None,
        }
    }

    /// Returns whether a heartbeat of each member of a view has arrived after `at`. A member that is dead or down is
    /// ignored.
    fn have_beaten_since(&self, view: &View, at: Time) -> bool {
        let members = [view.primary, view.other()];
        members.into_iter().flatten().all(|member| {
            let server = self.server(member.server);
            let beaten = server.heartbeat.as_ref().is_some_and(|(beat, _)| *beat > at);
            beaten || self.is_dead(member) || !server.is_up()
        })
    }

    /// Probes the other member of a group if one is silent.
    fn ask_about_silence(&mut self, now: Time, group: usize, view: &View, sink: &mut Vec<Effect>) {
        let Some(silent) = self.is_silent(view) else { return };
        let other = if view.primary == Some(silent) { view.other() } else { view.primary };
        self.ask(now, group, view, other, Doubt::Silence(silent), sink);
    }

    /// Probes a member of a group because of a doubt. Does nothing if there is no such member, or if it must leave and
    /// the group has two holders.
    fn ask(
        &mut self,
        now: Time,
        group: usize,
        view: &View,
        who: Option<Member>,
        doubt: Doubt,
        sink: &mut Vec<Effect>,
    ) {
        // A primary that must leave is not probed, because its response must not remove the other member.
        let (who, doubt) = match (who, doubt) {
            (Some(primary), Doubt::Complaint) if !self.may_win(primary) => {
                (view.secondary(), Doubt::Mute)
            }
            asked => asked,
        };
        let has_two = view.secondary().is_some();
        let Some(who) = who.filter(|who| !has_two || self.may_win(*who)) else { return };
        let order = self.give(who.server, OrderKind::Probe, sink);
        let until = now + self.config.failure_timeout.probe_timeout();
        self.groups[group].inquiry = Inquiry::Asked { doubt, who, order, until };
    }

    /// Ends the inquiry of a group and drops its probe, so that a late response does not count for a later inquiry.
    pub(super) fn end_inquiry(&mut self, group: usize) {
        if let Inquiry::Asked { who, order, .. } = self.groups[group].inquiry {
            self.server_mut(who.server).outstanding.retain(|known| known.id != order);
        }
        self.groups[group].inquiry = Inquiry::None;
    }

    /// Records the response of a member to a probe. It shows that the member is alive and receives messages.
    pub(super) fn note_probe(&mut self, now: Time, order: &Order) {
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let Inquiry::Asked { doubt, who, order: asked, until } = self.groups[n].inquiry else {
                continue;
            };
            // A late response, for example after a pause of this coordinator, is outdated.
            if asked == order.id && now < until {
                let gone = if view.primary == Some(who) { view.other() } else { view.primary };
                self.groups[n].inquiry =
                    gone.map_or(Inquiry::None, |gone| Inquiry::Answered { doubt, gone, at: now });
            }
        }
    }

    /// Returns the time at which the next probe times out; `None` if no probe is in progress.
    pub(super) fn next_inquiry_timeout(&self) -> Option<Time> {
        let until = |inquiry| match inquiry {
            Inquiry::Asked { until, .. } => Some(until),
            Inquiry::None | Inquiry::Answered { .. } | Inquiry::Judged { .. } => None,
        };
        self.groups.iter().filter_map(|group| until(group.inquiry)).min()
    }
}

/// Returns the time after which both members of a group must have reported before a doubt is confirmed. Each shard
/// publishes its observations once per interval, so a complaint in the first heartbeat after a response may be older
/// than the response.
fn told_since(doubt: Doubt, responded: Time) -> Time {
    match doubt {
        Doubt::Silence(_) => responded,
        _ => responded + HEARTBEAT_INTERVAL,
    }
}
