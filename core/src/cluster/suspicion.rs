//! Who is judged to be gone without proof of its death (consistency.md §5).
//!
//! ```text
//!   silent to the coordinator, or link lost     the other member's next heartbeat is its vote:
//!        |                                      every shard heard it within 250 ms -> nothing
//!        +------------------------------------> otherwise                           -> Gone
//!
//!   a member says that the other is silent,     PROBE the primary; no answer: PROBE the other
//!   but both report here                        answered, and both heartbeats after that still
//!                                               tell the same -> the other one is Gone
//! ```
//!
//! The second look matters: a member that was asleep answers as soon as it wakes, and until its stream
//! stands again the other one's last heartbeat still complains. To drop that other one then would leave
//! the group with the weaker of the two.
//!
//! A sole holder is never judged: it is UNREACHABLE until it is heard, or proven dead.

use kv_protocol::control_message::{Order, OrderKind};
use kv_protocol::limits::{HEARD_WITHIN, LEASE};
use kv_protocol::{GroupId, Member, OrderId, Peer, Time, View};

use super::reconcile::Fate;
use super::{Cluster, Effect};
use crate::holes::{self, Hole};

/// How long a member may take to answer a probe.
const PROBE_PATIENCE: std::time::Duration = LEASE;

/// What is being found out about the link between a group's two members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Inquiry {
    #[default]
    None,
    /// This member is asked to answer.
    Asked { who: Member, order: OrderId, until: Time },
    /// The primary did not answer, and the other is asked.
    AskedOther { who: Member, order: OrderId, until: Time },
    /// One has answered; does the complaint last?
    Answered { gone: Member, at: Time },
    /// The member that must go: the other one has answered.
    Judged { gone: Member },
}

impl Inquiry {
    fn until(self) -> Option<Time> {
        match self {
            Inquiry::Asked { until, .. } | Inquiry::AskedOther { until, .. } => Some(until),
            Inquiry::None | Inquiry::Answered { .. } | Inquiry::Judged { .. } => None,
        }
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
        let judged = self.groups[usize::from(view.group.0)].inquiry;
        if judged == (Inquiry::Judged { gone: member }) || self.is_voted_gone(view, member) {
            return Fate::Gone;
        }
        Fate::Present
    }

    /// Proven: its process has exited, or another has its place, which happens only after proof.
    pub(super) fn is_dead(&self, member: Member) -> bool {
        let server = self.server(member.server);
        server.member != member || server.exited
    }

    /// Whether a member is suspected, and the other one's vote, given since, is that it does not hear
    /// it either.
    fn is_voted_gone(&self, view: &View, member: Member) -> bool {
        let Some(since) = self.server(member.server).suspected else { return false };
        let other = match view.primary == Some(member) {
            true => view.other(),
            false => view.primary,
        };
        let Some(voter) = other.filter(|voter| !self.is_dead(*voter)) else { return false };
        let voter = self.server(voter.server);
        let Some((at, heartbeat)) = voter.heartbeat.as_ref().filter(|_| voter.is_up()) else {
            return false;
        };
        let shards = heartbeat.replicas.iter().filter(|replica| replica.group == view.group);
        let heard = |silent_ms: u32| u128::from(silent_ms) <= HEARD_WITHIN.as_millis();
        let (mut all, mut count) = (true, 0);
        for replica in shards {
            count += 1;
            all &= replica.view == view.version && heard(replica.silent_ms);
        }
        *at > since && !(all && count == usize::from(self.config.shards))
    }

    /// Whether a member, by its latest heartbeat, does not hear the other one of this view for longer
    /// than a lease, though both report here.
    fn is_complained_of(&self, view: &View) -> bool {
        let (Some(primary), Peer::Secondary(secondary)) = (view.primary, view.peer) else {
            return false;
        };
        let reports_well = |member: Member| {
            let server = self.server(member.server);
            !self.is_dead(member) && server.is_up()
        };
        let complains = |member: Member| {
            let heartbeat = self.server(member.server).heartbeat.as_ref();
            heartbeat.is_some_and(|(_, heartbeat)| {
                heartbeat.replicas.iter().any(|replica| {
                    replica.group == view.group
                        && replica.view == view.version
                        && u128::from(replica.silent_ms) > LEASE.as_millis()
                })
            })
        };
        reports_well(primary)
            && reports_well(secondary)
            && (complains(primary) || complains(secondary))
    }

    /// Begins and advances the inquiries of all groups.
    pub(super) fn inquire(&mut self, now: Time, sink: &mut Vec<Effect>) {
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            match self.groups[n].inquiry {
                Inquiry::None if now >= self.judge_from && self.is_complained_of(&view) => {
                    let Some(primary) = view.primary else { continue };
                    let (order, until) = self.probe(now, primary, sink);
                    self.groups[n].inquiry = Inquiry::Asked { who: primary, order, until };
                }
                Inquiry::Asked { until, .. } if until <= now => {
                    let Some(other) = view.secondary() else { continue };
                    let (order, until) = self.probe(now, other, sink);
                    self.groups[n].inquiry = Inquiry::AskedOther { who: other, order, until };
                }
                Inquiry::AskedOther { until, .. } if until <= now => {
                    self.groups[n].inquiry = Inquiry::None;
                    sink.push(Effect::Unanswered { group: GroupId(view.group.0) });
                }
                Inquiry::Answered { gone, at } if self.have_beaten_since(&view, at) => {
                    self.groups[n].inquiry = match self.is_complained_of(&view) {
                        true => Inquiry::Judged { gone },
                        false => Inquiry::None,
                    };
                }
                _ => {}
            }
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

    fn probe(&mut self, now: Time, who: Member, sink: &mut Vec<Effect>) -> (OrderId, Time) {
        // An answer to an older probe proves nothing of today.
        self.server_mut(who.server).outstanding.retain(|order| order.kind != OrderKind::Probe);
        let order = self.give(who.server, OrderKind::Probe, sink);
        (order, now + PROBE_PATIENCE)
    }

    /// A member has answered a probe: it receives, so the other one of the view goes.
    pub(super) fn note_probe(&mut self, now: Time, order: &Order) {
        for n in 0..self.groups.len() {
            let view = self.memory.durable().views[n];
            let (Inquiry::Asked { who, order: asked, .. }
            | Inquiry::AskedOther { who, order: asked, .. }) = self.groups[n].inquiry
            else {
                continue;
            };
            if asked == order.id {
                let gone = match view.primary == Some(who) {
                    true => view.secondary(),
                    false => view.primary,
                };
                self.groups[n].inquiry =
                    gone.map_or(Inquiry::None, |gone| Inquiry::Answered { gone, at: now });
            }
        }
    }

    /// When an inquiry goes on by time alone.
    pub(super) fn next_inquiry_timeout(&self) -> Option<Time> {
        self.groups.iter().filter_map(|group| group.inquiry.until()).min()
    }
}
