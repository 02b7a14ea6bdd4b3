//! The invariants, one a file, and the type of their violations.
//!
//! | | promise | file |
//! |---|---|---|
//! | 1 | at most one member serves | [`one_server`] |
//! | 2 | a lease ends before the grace | [`lease_before_grace`] |
//! | 3 | primary and secondary agree | [`copies_agree`] |
//! | 4 | a sequence number belongs to one write | [`numbers_are_unique`] |
//! | 5 | versions and epochs grow | [`versions_grow`] |
//! |  | and a version names one view | [`one_view`] |
//! | 6 | an acknowledged write is held by all members | [`acked_is_held`] |
//! | 7 | a member that takes over has every acknowledged write | [`taker_has_all`] |
//! | 8 | no read without a lease | [`lease_is_checked`] |
//! | 9 | nothing is accepted from an old view or process | [`nothing_old`] |
//! | 10 | a candidate in the union counts for every commit | [`union_is_true`] |
//! | 11 | a copy equals its source | [`copy_is_equal`] |
//! | 12 | a key's versions grow | [`newest_wins`] |
//! | 13 | exactly-once execution | [`once_only`] |
//! | 14 | only primaries respond | [`only_primaries_respond`] |
//! | 15 | keys are at home | [`keys_are_at_home`] |
//! | 16 | every key is one register | [`linearizable`] |
//! | 17 | a group is LOST only without a holder | [`lost_is_lost`] |
//! |  | and a restore loses nothing else | [`restored_has_all`] |
//! | 18 | memory is bounded | [`memory_is_bounded`] |
//! | 19 | all groups come home | [`home_again`] |
//! |  | and serve there | [`served_at_rest`] |
//! | 20 | no named process is killed | [`holders_are_spared`] |
//! |  | a leaving server gets no role | [`leavers_get_nothing`] |
//! |  | no last copy is wiped | [`copies_are_spared`] |
//! |  | a suspended server keeps its place | [`sleepers_stay`] |
//! |  | a slow server costs no other its place | [`slow_are_spared`] |
//! | 21 | no grace is owed to a dead process | [`dead_are_not_waited_for`] |
//! | 22 | holders accept each other's messages | [`streams_are_whole`] |
//! | 23 | sessions are kept | [`sessions_are_kept`] |
//! | 26 | a stop ends no process before its data is dumped | [`dumped_before_end`] |
//! | 27 | a value being sent does not change | [`pins_hold`] |
//! | 28 | no load moves a view | [`load_moves_no_view`] |
//! | 29 | every response has a request on its connection | [`responses_are_asked_for`] |
//!
//! A panic of a machine counts as number 0.

use std::fmt;

use kv_core::replica::{Inspection, Serves};
use kv_protocol::Time;
use kv_protocol::ids::GroupId;

pub mod acked_is_held;
pub mod copies_agree;
pub mod copies_are_spared;
pub mod copy_is_equal;
pub mod dead_are_not_waited_for;
pub mod dumped_before_end;
pub mod holders_are_spared;
pub mod home_again;
pub mod keys_are_at_home;
pub mod lease_before_grace;
pub mod lease_is_checked;
pub mod leavers_get_nothing;
pub mod linearizable;
pub mod load_moves_no_view;
pub mod lost_is_lost;
pub mod memory_is_bounded;
pub mod newest_wins;
pub mod nothing_old;
pub mod numbers_are_unique;
pub mod once_only;
pub mod one_server;
pub mod one_view;
pub mod only_primaries_respond;
pub mod pins_hold;
pub mod responses_are_asked_for;
pub mod restored_has_all;
pub mod served_at_rest;
pub mod sessions_are_kept;
pub mod sleepers_stay;
pub mod slow_are_spared;
pub mod streams_are_whole;
pub mod taker_has_all;
pub mod union_is_true;
pub mod versions_grow;

/// Returns whether a replica may serve reads at this reading of its clock.
pub fn may_serve(sight: &Inspection, now: Time) -> bool {
    match sight.serves {
        Serves::Never => false,
        Serves::Always => true,
        Serves::Before(end) => now < end,
    }
}

/// A violation of an invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The number of the invariant in the table of this module.
    pub invariant: u8,
    /// The group, if the violation concerns one.
    pub group: Option<GroupId>,
    /// The observation.
    pub words: String,
}

impl Violation {
    /// Creates a violation that concerns no particular group.
    pub fn new(invariant: u8, words: String) -> Violation {
        Violation { invariant, group: None, words }
    }

    /// Creates a violation in a group.
    pub fn of(group: GroupId, invariant: u8, words: fmt::Arguments<'_>) -> Violation {
        Violation { invariant, group: Some(group), words: format!("group {group}: {words}") }
    }
}
