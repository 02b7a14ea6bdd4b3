//! The suspect of a complaint (consistency.md §5). There is one verdict per server, based on the reports of all
//! servers about the other holders of their groups.
//!
//! ```text
//!      A ---- group A ---- B ---- group B ---- C          an edge: the two holders of a group
//!        B silent to A       B late at C                  each holder reports how long the other was silent
//! ```
//!
//! The suspect of a complaint is the holder of the group that explains more of the reports. Late or missing messages in
//! all other groups of a holder count against it, and so does an earlier verdict. A holder's own complaint counts
//! against it as well if the complaint is contradicted: the messages of the other holder arrive in time in all its
//! other groups.
//!
//! Separate verdicts for each group would be worse. A server that hangs briefly is the primary in one of its groups,
//! and responds to the probe as soon as it resumes. The secondary of that group would then lose its place instead of
//! the hung server.

use kv_protocol::control_message::Following;
use kv_protocol::{Member, Peer, View};

use super::Cluster;
use crate::mutations::{self, Mutation};

/// A class for the age of the last message that a member of a group has received from the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hearing {
    /// Received recently.
    Well,
    /// Not received for longer than a vote tolerates.
    Faint,
    /// Not received for so long that the member reports a complaint.
    Silent,
}

/// The weight of late messages in another group.
const FAINT: u32 = 1;
/// The weight of a complaint in another group. An earlier verdict against the server has the same weight.
const COMPLAINT: u32 = 2;
/// The weight of a holder's own complaint if the other holder's messages arrive in time in all its other groups.
const CONTRADICTED: u32 = 1;

impl Cluster {
    /// Returns the suspect of a complaint between the two members of a view; `None` if the reports do not distinguish
    /// them.
    pub(super) fn suspect(&self, view: &View) -> Option<Member> {
        let (primary, secondary) = (view.primary?, view.secondary()?);
        if mutations::is_open(Mutation::VerdictByGroup) {
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

    /// Returns the weight of the evidence against one member of a view with a complaint.
    fn suspicion(&self, view: &View, of: Member, partner: Member) -> u32 {
        let elsewhere: u32 = self.other_pairs(view, of).map(|other| self.trouble(other)).sum();
        let earlier = if self.server(of.server).was_judged { COMPLAINT } else { 0 };
        let complains = self.hearing(view, of) == Some(Hearing::Silent);
        let is_contradicted = complains && self.is_heard_elsewhere(view, partner);
        elsewhere + earlier + if is_contradicted { CONTRADICTED } else { 0 }
    }

    /// Returns whether a member has other groups, and the other holder of each of them receives its messages in time.
    fn is_heard_elsewhere(&self, view: &View, member: Member) -> bool {
        let mut partners = self.other_pairs(view, member).filter_map(|other| {
            let partner =
                if other.primary == Some(member) { other.secondary() } else { other.primary };
            partner.map(|partner| self.hearing(other, partner))
        });
        let is_first_well = partners.next() == Some(Some(Hearing::Well));
        is_first_well && partners.all(|hearing| hearing == Some(Hearing::Well))
    }

    /// Returns the durable views, except that of the same group, that have two holders and name this member as one.
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

    /// Returns the weight of the worse report of the two holders of a group about each other.
    fn trouble(&self, view: &View) -> u32 {
        let ends = [view.primary, view.secondary()].into_iter().flatten();
        match ends.filter_map(|end| self.hearing(view, end)).max() {
            Some(Hearing::Silent) => COMPLAINT,
            Some(Hearing::Faint) => FAINT,
            Some(Hearing::Well) | None => 0,
        }
    }

    /// Returns how recently a member of a view received messages from the other one, by its latest heartbeat and for
    /// its worst shard. `None` if the member is dead or down, or if its heartbeat does not report on this view.
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
        let complains_after = match mutations::is_open(Mutation::ComplaintWithinLease) {
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

    /// Returns whether the latest heartbeat of a holder contains a complaint about the other one, although both report
    /// to the coordinator. A view without a secondary has no complaint.
    pub(super) fn is_complained_of(&self, view: &View) -> bool {
        let (Some(primary), Some(secondary)) = (view.primary, view.secondary()) else {
            return false;
        };
        let hearings = [primary, secondary].map(|member| self.hearing(view, member));
        self.report_well(primary, secondary) && hearings.contains(&Some(Hearing::Silent))
    }

    /// Returns the reason to remove the secondary of a view although it reports to the coordinator: it does not keep
    /// up, by its own report or by its primary's. `None` if there is no such reason.
    pub(super) fn cannot_follow(&self, view: &View) -> Option<Following> {
        let (primary, Peer::Secondary(secondary)) = (view.primary?, view.peer) else { return None };
        if !self.report_well(primary, secondary) || mutations::is_open(Mutation::HandshakeIsHeard) {
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
