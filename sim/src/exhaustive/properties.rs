//! The invariants that a state of one group can violate.
//!
//! | | invariant | checked |
//! |---|---|---|
//! | 1 | at most one member may serve | in every state |
//! | 2 | a lease ends before the grace | in every state |
//! | 3 | primary and secondary have equal contents at equal writes | in every state |
//! | 4 | a sequence number of the log belongs to one write | at every response |
//! | 5 | versions and epochs grow; a version names one view, durable before any server has it | in every state |
//! | 6, 10 | an acknowledged write is held by all members, and by a candidate in the union | at every response |
//! | 7 | a member that may serve has every acknowledged write | in every state |
//! | 8, 9, 11, 14 | see [`crate::invariants`] | at every message and response |
//! | 10 | a union begins after the grace; its candidate does not fail once reported as caught up | in every state |
//! | 10 | a new secondary has a complete copy | at every view |
//! | 12, 13, 16, 17 | a key is one register, a write is done at most once | at every response, on every possible read |
//! | 17 | a group is LOST only when no holder is alive | at every view |
//! | 19 | no view names a member proven dead, once all others have reported | in every state |
//! | 20 | no process that a durable view names is killed | at every kill |

use kv_core::replica::{Inspection, Serves};
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::Member;
use kv_protocol::view::{Peer, View};

use super::replica::{GROUP, Given, Sight, reading};
use super::step::{Explorer, running};
use super::world::{Process, World};
use crate::invariants::{Violation, may_serve};

/// Checks a whole state.
pub fn check(explorer: &mut Explorer, world: &mut World) {
    for shard in 0..explorer.scope.shards {
        let s = usize::from(shard);
        let found = replicas(explorer, world, s).and_then(|()| union(explorer, world, s));
        explorer.note(found);
    }
    let durable = only_durable_views(explorer, world);
    explorer.note(durable);
    let named = no_dead_member(explorer, world);
    explorer.note(named);
    for key in 0..explorer.scope.script.keys.len() {
        let s = usize::from(explorer.scope.script.keys[key].1);
        let key = u8::try_from(key).expect("keys are few");
        for p in 0..world.processes.len() {
            if world.processes[p].alive && inside(explorer, world, p, s).state.is_primary() {
                explorer.probe(world, key, p);
            }
        }
    }
}

fn sight<'a>(explorer: &'a Explorer, world: &World, p: usize, s: usize) -> &'a Sight {
    explorer.machines.replicas.sight(world.processes[p].shards[s])
}

fn inside<'a>(explorer: &'a Explorer, world: &World, p: usize, s: usize) -> &'a Inspection {
    &sight(explorer, world, p, s).inside
}

fn broken(invariant: u8, words: String) -> Result<(), Violation> {
    Err(Violation::new(invariant, words))
}

fn alive(world: &World) -> impl Iterator<Item = (usize, Member)> {
    let all = world.processes.iter().enumerate();
    all.filter(|(_, process)| process.alive).map(|(p, process)| (p, process.member))
}

/// Checks every replica of a shard, and every pair of them.
fn replicas(explorer: &Explorer, world: &World, s: usize) -> Result<(), Violation> {
    let now = reading(world.tick);
    let mut serving = None;
    for (p, member) in alive(world) {
        let me = inside(explorer, world, p, s);
        if may_serve(me, now) {
            if let Some(other) = serving.replace(member) {
                return broken(1, format!("{other} and {member} may both serve"));
            }
            let acked = world.clients.acked(&explorer.scope.script, shard_number(s));
            if me.last.0 < acked {
                let words = format!(
                    "{member} may serve at write {}, though write {acked} was acknowledged",
                    me.last
                );
                return broken(7, words);
            }
        }
        for (q, other) in alive(world).filter(|(q, _)| *q != p) {
            pair(member, me, other, inside(explorer, world, q, s))?;
        }
    }
    Ok(())
}

fn pair(member: Member, me: &Inspection, other: Member, its: &Inspection) -> Result<(), Violation> {
    if let (Some(mine), Some(yours)) = (me.view, its.view)
        && mine.version == yours.version
        && mine != yours
    {
        return broken(5, format!("view {} differs: {mine:?} and {yours:?}", mine.version));
    }
    let is_partner = me.view.is_some_and(|view| view.other() == Some(other));
    if let Some(lease) = me.lease_until.filter(|_| is_partner && me.serves != Serves::Never) {
        match its.grace {
            None => return broken(2, format!("{member} has a lease, but {other} has no grace")),
            Some((to, grace)) if to == member && lease >= grace => {
                let words = format!(
                    "the lease of {member} ends at {lease:?}, the grace of {other} at {grace:?}"
                );
                return broken(2, words);
            }
            Some(_) => {}
        }
    }
    let are_copies = me.state == ReplicaState::Active
        && its.state == ReplicaState::Secondary
        && me.view == its.view
        && me.last == me.committed
        && me.last == its.last;
    if are_copies && me.content != its.content {
        return broken(3, format!("{member} and {other} differ at write {}", me.last));
    }
    Ok(())
}

/// Checks that no union is entered before the grace is over. Also checks that a candidate that was reported as
/// caught up does not fail under the same view.
fn union(explorer: &Explorer, world: &mut World, s: usize) -> Result<(), Violation> {
    let processes: Vec<usize> = alive(world).map(|(p, _)| p).collect();
    for p in processes {
        let me = inside(explorer, world, p, s);
        if me.in_union && me.state == ReplicaState::InGrace {
            return broken(10, "a union was entered before the grace was over".to_owned());
        }
        let version = me.view.map_or(0, |view| view.version.0);
        let place = (u8::try_from(p).expect("processes are few"), shard_number(s));
        let is_at = |&(p, s, _): &(u8, u8, u64)| (p, s) == place;
        let told = world.caught_up.iter().find(|told| is_at(told)).map(|told| told.2);
        if me.state == ReplicaState::CaughtUp && told != Some(version) {
            world.caught_up.retain(|told| !is_at(told));
            world.caught_up.push((place.0, place.1, version));
        } else if told.is_some_and(|told| told != version) {
            world.caught_up.retain(|told| !is_at(told));
        } else if told == Some(version) && me.state == ReplicaState::CopyFailed {
            return broken(
                10,
                format!("a candidate of view {version} fails after it had caught up"),
            );
        }
    }
    Ok(())
}

/// Checks that every installed view is durable, so that a crash of the coordinator cannot revert it.
fn only_durable_views(explorer: &Explorer, world: &World) -> Result<(), Violation> {
    let durable = explorer.machines.brains.sight(world.brain).view.version;
    for (p, member) in alive(world) {
        for s in 0..usize::from(explorer.scope.shards) {
            let installed = inside(explorer, world, p, s).view.map(|view| view.version);
            if let Some(version) = installed.filter(|version| *version > durable) {
                let words = format!("{member} has view {version}, but only {durable} is durable");
                return broken(5, words);
            }
        }
    }
    Ok(())
}

/// Checks that no view names a process that is proven dead. The check is skipped while a state is being stored, and
/// while a restarted coordinator waits for processes.
fn no_dead_member(explorer: &Explorer, world: &World) -> Result<(), Violation> {
    let sight = explorer.machines.brains.sight(world.brain);
    let named =
        |member: Member| sight.view.primary == Some(member) || sight.view.other() == Some(member);
    let stays = world.processes.iter().find(|process| process.proven && named(process.member));
    // A restarted coordinator makes no view before every process that is not proven dead has reported.
    let is_awaited = |process: &Process| {
        let is_current = sight.places.iter().any(|place| place.member == process.member);
        is_current && !process.proven && !process.link.1
    };
    let is_restarted = world.left.restarts < explorer.scope.left.restarts;
    let waits = is_restarted && world.processes.iter().any(is_awaited);
    match stays.filter(|_| world.storing.is_none() && !waits) {
        Some(process) => {
            let member = process.member;
            broken(19, format!("{member} is proven dead, but the view still names it"))
        }
        None => Ok(()),
    }
}

/// Checks a view that has become durable.
pub fn on_view(explorer: &mut Explorer, world: &World, before: &View, view: &View) {
    if view.primary.is_none() {
        let holders = [before.primary, before.secondary()].into_iter().flatten();
        let alive: Vec<Member> = holders.filter(|m| running(world, *m).is_some()).collect();
        if let Some(member) = alive.first() {
            let words = format!("the group is LOST although {member} is alive");
            explorer.note(broken(17, words));
        }
    }
    let (Peer::Candidate(candidate), Peer::Secondary(secondary)) = (before.peer, view.peer) else {
        return;
    };
    let Some(p) = running(world, candidate).filter(|_| candidate == secondary) else { return };
    for s in 0..usize::from(explorer.scope.shards) {
        let me = inside(explorer, world, p, s);
        let is_candidate = me.view.is_some_and(|installed| installed.version >= before.version);
        if !is_candidate || (me.state == ReplicaState::Candidate && !me.is_complete) {
            let words = format!("shard {s}: {candidate} is made secondary without a complete copy");
            explorer.note(broken(10, words));
        }
    }
}

/// Checks a write that a process has acknowledged with OK.
pub fn on_acked(explorer: &mut Explorer, world: &World, p: usize, s: usize, given: &Given) {
    let me = *inside(explorer, world, p, s);
    let Some(view) = me.view else { return };
    let must_hold = match view.peer {
        Peer::Secondary(member) if given.copies == 2 => Some((member, 6)),
        // If a write from before the union is acknowledged again now, it may not have been copied yet.
        Peer::Candidate(member) if me.in_union && given.version > me.copied_from.0 => {
            Some((member, 10))
        }
        _ => None,
    };
    let Some((member, invariant)) = must_hold else { return };
    let Some(q) = running(world, member) else { return };
    let its = inside(explorer, world, q, s);
    let is_later = its.view.is_some_and(|installed| installed.version > view.version);
    if !is_later && its.last.0 < given.version {
        let words = format!(
            "write {} of {GROUP} was acknowledged with {} copies, but {member} is at write {}",
            given.version, given.copies, its.last
        );
        explorer.note(broken(invariant, words));
    }
}

fn shard_number(s: usize) -> u8 {
    u8::try_from(s).expect("shards are few")
}
