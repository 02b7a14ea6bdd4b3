//! A search for dumps that no server has reported, because a server that dumps and exits without a coordinator cannot
//! report them. Only dumps that a restore would use count.

use std::path::Path;

use kv_core::cluster::DurableState;
use kv_core::dump::DumpHeader;
use kv_core::restore;
use kv_protocol::{GroupId, Member, aside};

use super::{gather, in_thread};

/// Returns the groups among `groups` for which none of the directories has a dump that a restore would use.
pub(crate) async fn not_in_any(
    dirs: &[&Path],
    state: &DurableState,
    groups: &[GroupId],
) -> Vec<GroupId> {
    let mut missing = groups.to_owned();
    for dir in dirs {
        missing = not_in(dir, state, &missing).await;
    }
    missing
}

/// Returns the groups among `groups` for which the directory has no dump that a restore would use.
async fn not_in(dir: &Path, state: &DurableState, groups: &[GroupId]) -> Vec<GroupId> {
    if groups.is_empty() {
        return Vec::new();
    }
    let (dir, state, asked) = (dir.to_owned(), state.clone(), groups.to_owned());
    let missing = in_thread(move || {
        let lost = lost(&dir, &state, &asked)?;
        Some(asked.into_iter().filter(|group| lost.contains(group)).collect::<Vec<_>>())
    });
    missing.await.ok().flatten().unwrap_or_else(|| groups.to_owned())
}

/// Returns the groups of which this process held a replica, each with the name of its dump.
pub(crate) fn dumps_of(state: &DurableState, member: Member) -> Vec<(GroupId, String)> {
    let servers = u16::try_from(state.servers.len()).unwrap_or(u16::MAX);
    let held = (0..servers)
        .map(GroupId)
        .filter(|group| state.holders(*group).any(|holder| holder == member));
    let named = |group: GroupId| {
        let role = if group.home_primary() == member.server { "primary" } else { "secondary" };
        (group, format!("server_{}.{role}", member.server))
    };
    held.map(named).collect()
}

/// Returns whether the directory has a complete dump, written by this process, of every group of which it held a
/// replica. If so, the exit of the process was orderly, regardless of its exit status.
pub(crate) async fn has_left(dir: &Path, state: &DurableState, member: Member) -> bool {
    let (dir, state) = (dir.to_owned(), state.clone());
    let is_whole = in_thread(move || {
        let is_dumped = |(group, name): (GroupId, String)| {
            let header = gather::check(&dir.join(name), &state);
            header
                .is_ok_and(|header| header.origin.writer == member && header.origin.group == group)
        };
        let held = dumps_of(&state, member);
        Some(!held.is_empty() && held.into_iter().all(is_dumped))
    });
    is_whole.await.ok().flatten().unwrap_or(false)
}

/// Returns the groups among `asked` without a usable dump, or `None` if that is unknown.
fn lost(dir: &Path, state: &DurableState, asked: &[GroupId]) -> Option<Vec<GroupId>> {
    let servers = u16::try_from(state.servers.len()).ok()?;
    let homes = asked.iter().flat_map(|group| {
        let (first, second) = (group.home_primary(), group.home_secondary(servers));
        let names = [format!("server_{first}.primary"), format!("server_{second}.secondary")];
        // A later process of the server may have set the dump aside.
        let aside = names.each_ref().map(|name| aside::newest(name));
        names.into_iter().chain(aside)
    });
    let headers: Vec<DumpHeader> =
        homes.filter_map(|name| gather::check(&dir.join(name), state).ok()).collect();
    Some(restore::choose(state, &headers).ok()?.lost().collect())
}
