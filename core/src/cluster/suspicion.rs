//! Who is judged to be gone without proof of its death (consistency.md §5).
//!
//! ```text
//!   doubt                                asked (PROBE)          the answered one's next heartbeat
//!   a member is silent to the            the other member       hears it -> nothing, ask again
//!   coordinator, or its link is lost                            does not -> Gone
//!
//!   a member says that the other is      the one that is not    both still tell the same
//!   silent, but both report here         the suspect; if it     -> the one not asked is Gone
//!                                        does not answer, the
//!                                        suspect
//!
//!   the secondary does not keep up       the primary            it still does not -> Gone
//! ```
//!
//! The suspect follows from the reports of all servers (verdict.rs). Where nothing tells the two apart, the primary
//! is asked first, and stays if it answers.
//!
//! Whoever is to stay answers a fresh question first. A heartbeat alone proves nothing of today: it may
//! have waited while the coordinator itself was asleep, and its sender be dead by now; to drop the other
//! member on its word would lose the group. An answer that comes late, or is followed up late, is as old. The second look matters too: a member that was asleep
//! answers as soon as it wakes, and until its stream stands again the other one's last heartbeat still
//! complains. To drop that other one then would leave the group with the weaker of the two.
//!
//! Whoever is to leave never wins: it is not asked, and nothing follows from what it answered before it was told
//! (leave.rs).
//!
//! A sole holder is never judged: it is UNREACHABLE until it is heard, or proven dead.

use kv_protocol::control_message::{Order, OrderKind};
use kv_protocol::limits::HEARTBEAT_INTERVAL;
use kv_protocol::{Member, OrderId, Time, View};

use super::alarms::Alarm;
use super::reconcile::Fate;
use super::{Cluster, Effect};
use crate::holes::{self, Hole};

/// What is being found out about the two members of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Inquiry {
    #[default]
    None,
    /// One member is asked to answer, because of this doubt.
    Asked { doubt: Doubt, who: Member, order: OrderId, until: Time },
    /// It has answered; does the doubt about the other one last?
    Answered { doubt: Doubt, gone: Member, at: Time },
    /// The member that must go: the other one has answered.
    Judged { gone: Member, doubt: Doubt },
}

/// Why it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The coordinator does not hear this member.
    Silence(Member),
    /// Both report to the coordinator, but one does not hear the other, and nothing tells them apart: the
    /// primary is asked.
    Complaint,
    /// As above, but this member is the suspect: the other one is asked.
    Suspect(Member),
    /// As above, and the one that was asked first did not answer: the other one is asked.
    Mute,
    /// The secondary does not keep up: the primary is asked.
    CannotFollow,
}

impl Doubt {
    /// Whether it began with a complaint.
    fn is_complaint(self) -> bool {
        matches!(self, Doubt::Complaint | Doubt::Suspect(_) | Doubt::Mute)
    }
}

impl Cluster {
    /// What is known of a member of a group's durable view.
    pub(super) fn fate(&self, view: &View, member: Member) -> Fate {
        if self.is_dead(member) {
            return Fate::Dead;
        }
        if holes::is_open(Hole::SoleKilledOnSilence)
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

    /// Its process has exited, or another has its place. That happens after proof, or, where the place was given to
    /// another host, when no view names it any more: nothing follows from its death then.
    pub(super) fn is_dead(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member != member || server.exited
    }

    /// The member of a view that the coordinator does not hear, though it hears the other one. That a
    /// primary with a mere candidate is silent leads nowhere.
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

    /// Whether a member says, by its latest heartbeat, that each of its shards of this group has heard
    /// the other member a moment ago.
    fn hears_other(&self, view: &View, voter: Member) -> bool {
        let Some((_, heartbeat)) = &self.server(voter.server).heartbeat else { return false };
        let shards = heartbeat.replicas.iter().filter(|replica| replica.group == view.group);
        let within = self.config.failure_timeout.heard_within().as_millis();
        let heard = |silent_ms: u32| u128::from(silent_ms) <= within;
        let heard = shards.filter(|replica| heard(replica.silent_ms)).count();
        heard == usize::from(self.config.shards)
    }

    /// Whether there is still reason to ask.
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
        let patience = self.config.failure_timeout.probe_patience();
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let is_decided = self.memory.decided.views[n] != view;
            match self.groups[n].inquiry {
                // Nothing followed from it at once, and what is known now may speak against it.
                Inquiry::Judged { .. } if !is_decided => self.end_inquiry(n),
                Inquiry::None => self.begin_inquiry(now, n, &view, sink),
                Inquiry::Asked { doubt: doubt @ Doubt::Silence(_), until, .. }
                    if until <= now || !self.is_doubted(&view, doubt) =>
                {
                    self.end_inquiry(n);
                }
                // Whoever was complained of, or did not answer yet, is silent here too: nothing is to be
                // learnt from it any more, and its clients wait.
                Inquiry::Asked { doubt, .. }
                    if !matches!(doubt, Doubt::Silence(_)) && self.is_silent(&view).is_some() =>
                {
                    self.end_inquiry(n);
                    self.ask_about_silence(now, n, &view, sink);
                }
                // What was reported since tells the two apart, and the suspect is the one that is asked.
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
                // What it says now may have waited while this coordinator was asleep.
                Inquiry::Answered { at, .. } if now.since(at) > patience => self.end_inquiry(n),
                // Judged only when the next view can be stored at once.
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

    /// Asks about a group, if there is a reason.
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

    /// One member has answered, and both have reported since: must the other one go?
    fn judge(&mut self, now: Time, group: usize, view: &View, doubt: Doubt, gone: Member) {
        let is_doubted = self.is_doubted(view, doubt);
        let is_gone = is_doubted
            && match doubt {
                Doubt::Silence(_) => view
                    .primary
                    .into_iter()
                    .chain(view.other())
                    .any(|voter| voter != gone && !self.hears_other(view, voter)),
                // The one that was asked may have become the suspect meanwhile, or the other one be none any
                // more.
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

    /// Why a member of a view was judged, if it was.
    pub(super) fn judged_for(&self, view: &View, member: Member) -> Option<Doubt> {
        match self.groups[usize::from(view.group.0)].inquiry {
            Inquiry::Judged { gone, doubt } if gone == member => Some(doubt),
            _ => None,
        }
    }

    /// Whether both members of a view have sent a heartbeat after this; if one cannot any more, there is
    /// nothing to wait for.
    fn have_beaten_since(&self, view: &View, at: Time) -> bool {
        let members = [view.primary, view.other()];
        members.into_iter().flatten().all(|member| {
            let server = self.server(member.server);
            let beaten = server.heartbeat.as_ref().is_some_and(|(beat, _)| *beat > at);
            beaten || self.is_dead(member) || !server.is_up()
        })
    }

    /// Asks the member of a group that is not silent.
    fn ask_about_silence(&mut self, now: Time, group: usize, view: &View, sink: &mut Vec<Effect>) {
        let Some(silent) = self.is_silent(view) else { return };
        let other = if view.primary == Some(silent) { view.other() } else { view.primary };
        self.ask(now, group, view, other, Doubt::Silence(silent), sink);
    }

    /// Asks a member of a group to answer.
    fn ask(
        &mut self,
        now: Time,
        group: usize,
        view: &View,
        who: Option<Member>,
        doubt: Doubt,
        sink: &mut Vec<Effect>,
    ) {
        // A primary that is to leave is not asked: its word must not remove the other one.
        let (who, doubt) = match (who, doubt) {
            (Some(primary), Doubt::Complaint) if !self.may_win(primary) => {
                (view.secondary(), Doubt::Mute)
            }
            asked => asked,
        };
        let has_two = view.secondary().is_some();
        let Some(who) = who.filter(|who| !has_two || self.may_win(*who)) else { return };
        let order = self.give(who.server, OrderKind::Probe, sink);
        let until = now + self.config.failure_timeout.probe_patience();
        self.groups[group].inquiry = Inquiry::Asked { doubt, who, order, until };
    }

    /// The inquiry of a group is over; an answer that still comes proves nothing of a later one.
    pub(super) fn end_inquiry(&mut self, group: usize) {
        if let Inquiry::Asked { who, order, .. } = self.groups[group].inquiry {
            self.server_mut(who.server).outstanding.retain(|known| known.id != order);
        }
        self.groups[group].inquiry = Inquiry::None;
    }

    /// A member has answered a probe: it lives and receives, so it may stay.
    pub(super) fn note_probe(&mut self, now: Time, order: &Order) {
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let Inquiry::Asked { doubt, who, order: asked, until } = self.groups[n].inquiry else {
                continue;
            };
            // One that comes late, as after a sleep of this coordinator, is not of today either.
            if asked == order.id && now < until {
                let gone = if view.primary == Some(who) { view.other() } else { view.primary };
                self.groups[n].inquiry =
                    gone.map_or(Inquiry::None, |gone| Inquiry::Answered { doubt, gone, at: now });
            }
        }
    }

    /// When an inquiry goes on by time alone.
    pub(super) fn next_inquiry_timeout(&self) -> Option<Time> {
        let until = |inquiry| match inquiry {
            Inquiry::Asked { until, .. } => Some(until),
            Inquiry::None | Inquiry::Answered { .. } | Inquiry::Judged { .. } => None,
        };
        self.groups.iter().filter_map(|group| until(group.inquiry)).min()
    }
}

/// After when both members of a group must have reported for a doubt to last. A shard publishes what it
/// heard every interval: a complaint in the first heartbeat after an answer may be from before it.
fn told_since(doubt: Doubt, answered: Time) -> Time {
    match doubt {
        Doubt::Silence(_) => answered,
        _ => answered + HEARTBEAT_INTERVAL,
    }
}
