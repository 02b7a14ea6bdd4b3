//! Groups whose dump nobody has reported, though it may lie there: a server that dumped and exited while
//! there was no coordinator has told nobody. What a restore would take counts.

use std::path::Path;

use kv_core::cluster::DurableState;
use kv_core::dump::DumpHeader;
use kv_core::restore;
use kv_protocol::{GroupId, Member, aside};

use super::{gather, in_thread};

/// Those of these groups of which none of the directories holds a dump that a restore would take.
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

/// Those of these groups of which the directory holds no dump that a restore would take.
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

/// Whether the directory holds a complete dump, by this very process, of every group that it was a holder of: it has
/// ended in order, whatever its exit status was.
pub(crate) async fn has_left(dir: &Path, state: &DurableState, member: Member) -> bool {
    let (dir, state) = (dir.to_owned(), state.clone());
    let is_whole = in_thread(move || {
        let servers = u16::try_from(state.servers.len()).ok()?;
        let all = (0..servers).map(GroupId);
        let held = all.filter(|group| state.holders(*group).any(|holder| holder == member));
        let is_dumped = |group: GroupId| {
            let role = if group.home_primary() == member.server { "primary" } else { "secondary" };
            let path = dir.join(format!("server_{}.{role}", member.server));
            let header = gather::check(&path, &state);
            header
                .is_ok_and(|header| header.origin.writer == member && header.origin.group == group)
        };
        let held: Vec<GroupId> = held.collect();
        Some(!held.is_empty() && held.into_iter().all(is_dumped))
    });
    is_whole.await.ok().flatten().unwrap_or(false)
}

/// All groups but those of `asked` that are found; `None`: there is no telling.
fn lost(dir: &Path, state: &DurableState, asked: &[GroupId]) -> Option<Vec<GroupId>> {
    let servers = u16::try_from(state.servers.len()).ok()?;
    let homes = asked.iter().flat_map(|group| {
        let (first, second) = (group.home_primary(), group.home_secondary(servers));
        let names = [format!("server_{first}.primary"), format!("server_{second}.secondary")];
        // A process that has followed in the place of the one that dumped has set its dump aside.
        let aside = names.each_ref().map(|name| aside::newest(name));
        names.into_iter().chain(aside)
    });
    let headers: Vec<DumpHeader> =
        homes.filter_map(|name| gather::check(&dir.join(name), state).ok()).collect();
    Some(restore::choose(state, &headers).ok()?.lost().collect())
}
