//! The invariants, and the type of their violations.
//!
//! Each function checks an invariant, or returns the violation that its caller has detected. The doc comment of the
//! function gives the number of the invariant. If several functions check one invariant, the table lists the first one;
//! the others follow it in the file.
//!
//! | | invariant | function |
//! |---|---|---|
//! | 1 | at most one member serves | [`leases::one_server`] |
//! | 2 | a lease ends before the grace | [`leases::lease_before_grace`] |
//! | 3 | primary and secondary agree | [`copies::digests_agree`] |
//! | 4 | a sequence number belongs to one write | [`writes::numbers_are_unique`] |
//! | 5 | versions and epochs grow | [`views::versions_grow`] |
//! |  | and a version names one view | [`views::version_names_one_view`] |
//! | 6 | an acknowledged write is held by all members | [`commits::acked_is_held`] |
//! | 7 | a member that takes over has every acknowledged write | [`commits::taker_has_all`] |
//! | 8 | no read without a lease | [`leases::lease_is_checked`] |
//! | 9 | nothing is accepted from an old view or process | [`messages::message_is_of_this_view`] |
//! | 10 | a candidate in the union counts for every commit | [`commits::union_is_true`] |
//! | 11 | a copy equals its source | [`copies::copy_differs`] |
//! | 12 | a key's versions grow | [`writes::newest_wins`] |
//! | 13 | exactly-once execution | [`writes::once_only`] |
//! | 14 | only primaries respond | [`messages::only_primaries_respond`] |
//! | 15 | keys are at home | [`copies::keys_are_at_home`] |
//! | 16 | every key is one register | [`writes::linearizable`] |
//! |  | that may lose its value by eviction | [`evictions::as_cached`] |
//! |  | and loses it by a flush | [`flushes::as_flushed`] |
//! | 17 | a group is LOST only without a holder | [`groups::lost_is_lost`] |
//! |  | and a restore loses nothing else | [`stops::restored_has_all`] |
//! | 18 | memory is bounded | [`copies::memory_is_bounded`] |
//! |  | and expired entries are removed | [`copies::expired_are_removed`] |
//! | 19 | all groups come home | [`groups::home_again`] |
//! |  | and serve there | [`groups::served_at_rest`] |
//! | 20 | no process that a view names is killed | [`roles::holders_are_spared`] |
//! |  | a leaving server gets no role | [`roles::leavers_get_nothing`] |
//! |  | no last copy is wiped | [`roles::copies_are_spared`] |
//! |  | a suspended server keeps its place | [`slowness::sleepers_stay`] |
//! |  | a slow server costs no other its place | [`slowness::slow_are_spared`] |
//! | 21 | no replica waits for a dead process | [`leases::dead_are_not_waited_for`] |
//! | 22 | holders accept each other's messages | [`messages::streams_are_whole`] |
//! | 23 | sessions are kept | [`writes::sessions_are_kept`] |
//! | 26 | a stop ends no process before its data is dumped | [`stops::dumped_before_shutdown`] |
//! | 27 | a value being sent does not change | [`messages::pinned_value_is_gone`] |
//! | 28 | no load moves a view | [`slowness::load_moves_no_view`] |
//! | 29 | every response has a request on its connection | [`messages::response_without_request`] |
//! | 30 | every key that exists throughout a scan comes | [`scans::every_key_comes`] |
//! | 31 | every Redis command gets its reply, in order and in time | [`redis::replies_in_time`] |
//! | 32 | the commands of a Redis connection on one key take effect in order | [`redis::own_commands_take_effect_in_order`] |
//!
//! A panic of a state machine counts as number 0.

use std::fmt;

use kv_core::replica::{Inspection, Serves};
use kv_protocol::Time;
use kv_protocol::ids::GroupId;

pub mod commits;
pub mod copies;
pub mod evictions;
pub mod flushes;
pub mod groups;
pub mod leases;
pub mod messages;
pub mod redis;
pub mod roles;
pub mod scans;
pub mod slowness;
pub mod stops;
pub mod views;
pub mod writes;

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
