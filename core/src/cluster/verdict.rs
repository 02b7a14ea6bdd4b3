//! The suspect of a complaint: one verdict a server, from what all servers report of their partners
//! (consistency.md §5).
//!
//! ```text
//!      A ---- group A ---- B ---- group B ---- C          an edge: the two holders of a group
//!        A does not hear B   C hardly hears B             each end reports how long the other was silent
//! ```
//!
//! The suspect of a complaint is the end of its edge that explains more of what is reported: every other
//! group of it that has trouble counts, and so does a complaint that the accused end's other partner
//! contradicts. Group by group, a server that stands for a moment costs its partner in one group the place that
//! it should lose itself, because it is the primary there and answers as soon as it wakes.

use kv_protocol::control_message::Following;
use kv_protocol::{Member, Peer, View};

use super::Cluster;
use crate::holes::{self, Hole};

/// How well a member hears the other one of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hearing {
    /// A moment ago.
    Well,
    /// Not for longer than a vote bears.
    Faint,
    /// Not for so long that it complains.
    Silent,
}

/// What another group's trouble counts: faint hearing, and a complaint. An earlier verdict counts like one.
const FAINT: u32 = 1;
const COMPLAINT: u32 = 2;
/// What a complaint counts that is contradicted.
const CONTRADICTED: u32 = 1;

impl Cluster {
    /// The member of a view that is the suspect of its complaint; `None`: nothing tells the two apart.
    pub(super) fn suspect(&self, view: &View) -> Option<Member> {
        let (primary, secondary) = (view.primary?, view.secondary()?);
        if holes::is_open(Hole::VerdictByGroup) {
            return None;
        }
        let of_primary = self.suspicion(view, primary, secondary);
        let of_secondary = self.suspicion(view, secondary, primary);
        match of_primary.cmp(&of_secondary) {
            std::cmp::Ordering::Greater => Some(primary),
            std::cmp::Ordering::Less => Some(secondary),
            std::cmp::Ordering::Equal => None,
        }
    }

    /// How much speaks against one end of a view with a complaint.
    fn suspicion(&self, view: &View, of: Member, partner: Member) -> u32 {
        let elsewhere: u32 = self.other_pairs(view, of).map(|other| self.trouble(other)).sum();
        let earlier = if self.server(of.server).was_judged { COMPLAINT } else { 0 };
        let complains = self.hearing(view, of) == Some(Hearing::Silent);
        let is_contradicted = complains && self.is_heard_elsewhere(view, partner);
        elsewhere + earlier + if is_contradicted { CONTRADICTED } else { 0 }
    }

    /// Whether a member has another group, and is heard well by its partner in each.
    fn is_heard_elsewhere(&self, view: &View, member: Member) -> bool {
        let mut partners = self.other_pairs(view, member).filter_map(|other| {
            let partner =
                if other.primary == Some(member) { other.secondary() } else { other.primary };
            partner.map(|partner| self.hearing(other, partner))
        });
        let is_first_well = partners.next() == Some(Some(Hearing::Well));
        is_first_well && partners.all(|hearing| hearing == Some(Hearing::Well))
    }

    /// The other durable views of two holders that name a member.
    fn other_pairs<'a>(
        &'a self,
        view: &'a View,
        member: Member,
    ) -> impl Iterator<Item = &'a View> + 'a {
        self.views().iter().filter(move |other| {
            let is_its = other.primary == Some(member) || other.secondary() == Some(member);
            other.group != view.group && is_its && other.secondary().is_some()
        })
    }

    /// What the two holders of a group report of each other, the worse of the two.
    fn trouble(&self, view: &View) -> u32 {
        let ends = [view.primary, view.secondary()].into_iter().flatten();
        match ends.filter_map(|end| self.hearing(view, end)).max() {
            Some(Hearing::Silent) => COMPLAINT,
            Some(Hearing::Faint) => FAINT,
            Some(Hearing::Well) | None => 0,
        }
    }

    /// How well a member hears the other one of a view, by its latest heartbeat; the worst of its shards.
    /// `None`: it does not report on this view.
    fn hearing(&self, view: &View, member: Member) -> Option<Hearing> {
        let server = self.server(member.server);
        if self.is_dead(member) || !server.is_up() {
            return None;
        }
        let (_, heartbeat) = server.heartbeat.as_ref()?;
        let times = self.config.failure_timeout;
        let of_this = |r: &&kv_protocol::control_message::ReplicaReport| {
            r.group == view.group && r.view == view.version
        };
        let silences = heartbeat.replicas.iter().filter(of_this).map(|r| u128::from(r.silent_ms));
        let silence = silences.max()?;
        let complains_after = match holes::is_open(Hole::ComplaintWithinLease) {
            true => times.heard_within(),
            false => times.complains_after(),
        };
        Some(if silence > complains_after.as_millis() {
            Hearing::Silent
        } else if silence > times.heard_within().as_millis() {
            Hearing::Faint
        } else {
            Hearing::Well
        })
    }

    /// Whether a member, by its latest heartbeat, does not hear the other one of this view for so long that
    /// it complains, though both report here.
    pub(super) fn is_complained_of(&self, view: &View) -> bool {
        let (Some(primary), Some(secondary)) = (view.primary, view.secondary()) else {
            return false;
        };
        let hearings = [primary, secondary].map(|member| self.hearing(view, member));
        self.report_well(primary, secondary) && hearings.contains(&Some(Hearing::Silent))
    }

    /// Why the secondary of a view must go though it is heard: it does not keep up, by its own report or by
    /// its primary's.
    pub(super) fn cannot_follow(&self, view: &View) -> Option<Following> {
        let (primary, Peer::Secondary(secondary)) = (view.primary?, view.peer) else { return None };
        if !self.report_well(primary, secondary) || holes::is_open(Hole::HandshakeIsHeard) {
            return None;
        }
        let reports = [primary, secondary].into_iter().filter_map(|member| {
            let (_, heartbeat) = self.server(member.server).heartbeat.as_ref()?;
            Some(heartbeat.replicas.iter())
        });
        let of_this = reports.flatten().filter(|r| r.group == view.group && r.view == view.version);
        of_this.map(|r| r.following).max().filter(|following| following.has_failed())
    }

    fn report_well(&self, one: Member, other: Member) -> bool {
        [one, other].iter().all(|m| !self.is_dead(*m) && self.server(m.server).is_up())
    }
}
