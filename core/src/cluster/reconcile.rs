//! The one rule of recovery (consistency.md §6): the next view of a group follows from its durable view, the fate of
//! its members and its home servers. No other history is kept.
//!
//! | the view names | and | the next view |
//! |---|---|---|
//! | P, S | P proven dead and S not, or P gone and S present | S alone (promoted) |
//! | P, S | S proven dead and P not, or S gone and P present | P alone |
//! | P, S | both proven dead | no member: LOST |
//! | P, candidate C | C has caught up, even if P is dead by now | P, S = C |
//! | P, candidate C | C dead, gone or failed, P not dead | P alone |
//! | P, alone or with a candidate | P proven dead | no member: LOST |
//! | P alone | P present, the other home server is ready | P, candidate |
//! | P, candidate C | C must leave | P alone |
//! | P, S | S must leave, P has just responded | P alone |
//! | P, S | P must leave, S has just responded | S, P: hand-over |
//! | P, S | S is the home primary, P the home secondary, no change in progress | S, P: hand-over |
//! | no member | | no member, until an operator restores the group |
//!
//! "Gone" is the verdict of an inquiry, without proof of death (suspicion.rs). If the table yields LOST but a holder
//! has made an orderly exit, the group rests in its dumps instead (leave.rs).

use kv_protocol::{Member, Peer, View, ViewVersion};

use crate::mutations::{self, Mutation};

/// The fate of a member that a view names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Present, as far as known.
    #[default]
    Present,
    /// Must leave by the verdict of an inquiry, without proof of death.
    Gone,
    /// Proven dead: its process has ended.
    Dead,
}

/// The facts, besides the view itself, that determine the next view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The fate of the primary.
    pub primary: Fate,
    /// The fate of the secondary or candidate.
    pub other: Fate,
    /// True if the candidate was reported as caught up, under exactly this view.
    pub caught_up: bool,
    /// True if the candidate was reported as failed, under exactly this view.
    pub failed: bool,
    /// The process at the home server of the group that is not the primary's, if it may become a candidate now.
    pub ready: Option<Member>,
    /// True if the secondary or candidate must leave, and no data is lost without it.
    pub other_leaves: bool,
    /// True if each member is at the home place of the other's role and no other change is in progress at either
    /// server. Also true if the primary must leave and the secondary can take the group over.
    pub may_swap: bool,
}

/// The reason for a new view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The first view of the group.
    Founded,
    /// The primary is dead or gone; its secondary takes over.
    TakeOver,
    /// The secondary or candidate is dead or gone, or the candidate has failed.
    Dropped,
    /// No holder is left.
    Lost,
    /// The secondary or candidate leaves in an orderly way.
    Left,
    /// A home server becomes candidate.
    Candidate,
    /// The candidate has caught up.
    CaughtUp,
    /// The group is handed over: back to its home primary, or from a primary that must leave.
    Switched,
}

/// Returns the next view of a group and its reason; `None` if the view stays.
pub fn next_view(view: &View, facts: &Facts) -> Option<(View, Why)> {
    let Some(primary) = view.primary else {
        let empty = facts.ready.filter(|_| mutations::is_open(Mutation::LostServedEmpty))?;
        return Some((make(view, Some(empty), Peer::None, false), Why::TakeOver));
    };
    let alone = |member| make(view, Some(member), Peer::None, false);
    let lost = make(view, None, Peer::None, false);
    match (view.peer, facts.primary, facts.other) {
        (Peer::Candidate(candidate), ..) if facts.caught_up => {
            let with = make(view, Some(primary), Peer::Secondary(candidate), false);
            Some((with, Why::CaughtUp))
        }
        (Peer::None | Peer::Candidate(_), Fate::Dead, _) => Some((lost, Why::Lost)),
        (Peer::Candidate(_), _, fate) if facts.failed || fate != Fate::Present => {
            Some((alone(primary), Why::Dropped))
        }
        (Peer::Secondary(_) | Peer::Candidate(_), Fate::Present, Fate::Present)
            if facts.other_leaves =>
        {
            Some((alone(primary), Why::Left))
        }
        (Peer::None, Fate::Present, _) => {
            let candidate = facts.ready?;
            let with = make(view, Some(primary), Peer::Candidate(candidate), false);
            Some((with, Why::Candidate))
        }
        (Peer::Secondary(_), Fate::Dead, Fate::Dead) => Some((lost, Why::Lost)),
        (Peer::Secondary(secondary), Fate::Dead, _)
        | (Peer::Secondary(secondary), Fate::Gone, Fate::Present) => {
            Some((alone(secondary), Why::TakeOver))
        }
        (Peer::Secondary(_), _, Fate::Dead) | (Peer::Secondary(_), Fate::Present, Fate::Gone) => {
            Some((alone(primary), Why::Dropped))
        }
        (Peer::Secondary(secondary), Fate::Present, Fate::Present) if facts.may_swap => {
            let swapped = make(view, Some(secondary), Peer::Secondary(primary), true);
            Some((swapped, Why::Switched))
        }
        _ => None,
    }
}

fn make(before: &View, primary: Option<Member>, peer: Peer, handover: bool) -> View {
    let version = ViewVersion(before.version.0 + 1);
    View { group: before.group, version, primary, peer, handover }
}

#[cfg(test)]
mod tests {
    use kv_protocol::{GroupId, Incarnation, ServerId};

    use super::*;

    fn member(server: u16) -> Member {
        Member { server: ServerId(server), incarnation: Incarnation(1) }
    }

    fn view(primary: Option<u16>, peer: Peer) -> View {
        make(
            &View {
                group: GroupId(0),
                version: ViewVersion(4),
                primary: None,
                peer: Peer::None,
                handover: false,
            },
            primary.map(member),
            peer,
            false,
        )
    }

    fn next(view: &View, facts: Facts) -> Option<(Option<u16>, Peer, Why)> {
        let (next, why) = next_view(view, &facts)?;
        assert_eq!(next.version.0, view.version.0 + 1);
        assert_eq!(next.handover, why == Why::Switched);
        Some((next.primary.map(|member| member.server.0), next.peer, why))
    }

    #[test]
    fn a_dead_or_judged_primary_is_followed_by_its_secondary() {
        let pair = view(Some(0), Peer::Secondary(member(1)));
        for primary in [Fate::Dead, Fate::Gone] {
            let facts = Facts { primary, ..Facts::default() };
            assert_eq!(next(&pair, facts), Some((Some(1), Peer::None, Why::TakeOver)));
        }
        // The only holder that may be alive stays a holder, even if it is silent.
        let facts = Facts { primary: Fate::Dead, other: Fate::Gone, ..Facts::default() };
        assert_eq!(next(&pair, facts), Some((Some(1), Peer::None, Why::TakeOver)));
    }

    #[test]
    fn no_member_is_judged_when_both_are_silent() {
        let pair = view(Some(0), Peer::Secondary(member(1)));
        let facts = Facts { primary: Fate::Gone, other: Fate::Gone, ..Facts::default() };
        assert_eq!(next(&pair, facts), None);
    }

    #[test]
    fn a_sole_holder_is_lost_only_by_proof_and_a_lost_group_stays_lost() {
        for peer in [Peer::None, Peer::Candidate(member(1))] {
            let sole = view(Some(0), peer);
            let silent = Facts { primary: Fate::Gone, ready: Some(member(1)), ..Facts::default() };
            assert_eq!(next(&sole, silent), None);
            let dead = Facts { primary: Fate::Dead, ready: Some(member(1)), ..Facts::default() };
            assert_eq!(next(&sole, dead), Some((None, Peer::None, Why::Lost)));
        }
        let ready = Facts { ready: Some(member(1)), ..Facts::default() };
        assert_eq!(next(&view(None, Peer::None), ready), None);
    }

    #[test]
    fn a_candidate_becomes_secondary_when_it_has_caught_up_and_is_dropped_when_it_fails() {
        let copying = view(Some(0), Peer::Candidate(member(1)));
        assert_eq!(next(&copying, Facts::default()), None);
        let caught_up = Facts { caught_up: true, ..Facts::default() };
        let secondary = Peer::Secondary(member(1));
        assert_eq!(next(&copying, caught_up), Some((Some(0), secondary, Why::CaughtUp)));
        let failed = Facts { failed: true, ..Facts::default() };
        assert_eq!(next(&copying, failed), Some((Some(0), Peer::None, Why::Dropped)));
        let gone = Facts { other: Fate::Gone, ..Facts::default() };
        assert_eq!(next(&copying, gone), Some((Some(0), Peer::None, Why::Dropped)));
    }

    #[test]
    fn a_caught_up_candidate_becomes_secondary_before_the_death_of_its_primary_counts() {
        let copying = view(Some(0), Peer::Candidate(member(1)));
        let facts = Facts { primary: Fate::Dead, caught_up: true, ..Facts::default() };
        assert_eq!(next(&copying, facts).unwrap().2, Why::CaughtUp);
    }

    #[test]
    fn a_leaver_is_dropped_from_views_in_which_the_other_member_stays() {
        let facts = Facts { other_leaves: true, may_swap: true, ..Facts::default() };
        for peer in [Peer::Secondary(member(1)), Peer::Candidate(member(1))] {
            let after = next(&view(Some(0), peer), facts);
            assert_eq!(after, Some((Some(0), Peer::None, Why::Left)));
        }
        let pair = view(Some(0), Peer::Secondary(member(1)));
        let dead = Facts { primary: Fate::Dead, ..facts };
        assert_eq!(next(&pair, dead).unwrap().0, Some(1), "the proof leaves it as the only holder");
    }

    #[test]
    fn a_group_goes_home_when_no_other_change_is_in_progress() {
        let away = view(Some(1), Peer::Secondary(member(0)));
        assert_eq!(next(&away, Facts::default()), None);
        let facts = Facts { may_swap: true, ..Facts::default() };
        let peer = Peer::Secondary(member(1));
        assert_eq!(next(&away, facts), Some((Some(0), peer, Why::Switched)));
    }
}
