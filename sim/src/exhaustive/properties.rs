//! The promises of consistency.md §11 that a state of one group can break.
//!
//! | | promise | seen |
//! |---|---|---|
//! | 1 | one member may serve | in every state |
//! | 2 | a lease ends before the grace | in every state |
//! | 3 | primary and secondary hold the same at the same write | in every state |
//! | 4 | a number of the log is one write | at every answer |
//! | 5 | versions and epochs grow; a version names one view, and is durable before anybody has it | in every state |
//! | 6, 10 | what is acknowledged is held by the members, and by a candidate in the union | at every answer |
//! | 7 | whoever may serve has every acknowledged write | in every state |
//! | 8, 9, 11, 14 | as in [`crate::invariants`] | at every message and answer |
//! | 10 | the union is not entered in the grace, nor left after the report; who is made secondary has a whole copy | in every state, at every view |
//! | 12, 13, 16, 17 | every key is one atomic register, every write is done at most once | at every answer, and for every read that would be answered now |
//! | 17 | a group is LOST only when no holder lives | at every view |
//! | 19 | no view names a member that is proven dead, once all others are heard | in every state |
//! | 20 | no process that a durable view names is killed | at every kill |

use kv_core::replica::{Inspection, Serves};
use kv_protocol::control_message::ReplicaState;
use kv_protocol::ids::Member;
use kv_protocol::view::{Peer, View};

use super::replica::{GROUP, Given, Sight, reading};
use super::step::{Explorer, running};
use super::world::{Process, World};
use crate::invariants::{Violation, may_serve};

/// Looks at a whole state.
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

/// What two replicas of a shard must not be at the same time.
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
        return broken(5, format!("view {} is {mine:?} and {yours:?}", mine.version));
    }
    let is_partner = me.view.is_some_and(|view| view.other() == Some(other));
    if let Some(lease) = me.lease_until.filter(|_| is_partner && me.serves != Serves::Never) {
        match its.grace {
            None => return broken(2, format!("{member} has a lease, and {other} owes no grace")),
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

/// No union is entered before the grace is over, and a candidate that was told to have caught up is not
/// left behind under the same view.
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
            return broken(10, format!("the union of view {version} was left after the report"));
        }
    }
    Ok(())
}

/// Nobody has been told of a view that a crash of the coordinator could take back.
fn only_durable_views(explorer: &Explorer, world: &World) -> Result<(), Violation> {
    let durable = explorer.machines.brains.sight(world.brain).view.version;
    for (p, member) in alive(world) {
        for s in 0..usize::from(explorer.scope.shards) {
            let installed = inside(explorer, world, p, s).view.map(|view| view.version);
            if let Some(version) = installed.filter(|version| *version > durable) {
                let words = format!("{member} is in view {version}, and only {durable} is durable");
                return broken(5, words);
            }
        }
    }
    Ok(())
}

/// Step 0 is complete as soon as it is durable.
fn no_dead_member(explorer: &Explorer, world: &World) -> Result<(), Violation> {
    let sight = explorer.machines.brains.sight(world.brain);
    let named =
        |member: Member| sight.view.primary == Some(member) || sight.view.other() == Some(member);
    let stays = world.processes.iter().find(|process| process.proven && named(process.member));
    // A coordinator that was started again first hears everybody who is not proven dead.
    let is_awaited = |process: &Process| {
        let is_current = sight.places.iter().any(|place| place.member == process.member);
        is_current && !process.proven && !process.link.1
    };
    let is_restarted = world.left.restarts < explorer.scope.left.restarts;
    let waits = is_restarted && world.processes.iter().any(is_awaited);
    match stays.filter(|_| world.storing.is_none() && !waits) {
        Some(process) => {
            let member = process.member;
            broken(19, format!("{member} is proven dead, and the group waits for it for ever"))
        }
        None => Ok(()),
    }
}

/// A view is durable.
pub fn on_view(explorer: &mut Explorer, world: &World, before: &View, view: &View) {
    if view.primary.is_none() {
        let holders = [before.primary, before.secondary()].into_iter().flatten();
        let alive: Vec<Member> = holders.filter(|m| running(world, *m).is_some()).collect();
        if let Some(member) = alive.first() {
            let words = format!("the group is given up as LOST, though {member} lives");
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
            let words = format!("shard {s}: {candidate} is made secondary without a whole copy");
            explorer.note(broken(10, words));
        }
    }
}

/// A write was answered OK by a process.
pub fn on_acked(explorer: &mut Explorer, world: &World, p: usize, s: usize, given: &Given) {
    let me = *inside(explorer, world, p, s);
    let Some(view) = me.view else { return };
    let must_hold = match view.peer {
        Peer::Secondary(member) if given.copies == 2 => Some((member, 6)),
        // What was written before the union, and is answered again now, the copy may have yet to bring.
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
            "write {} of {GROUP} was answered with {} copies, but {member} is at write {}",
            given.version, given.copies, its.last
        );
        explorer.note(broken(invariant, words));
    }
}

fn shard_number(s: usize) -> u8 {
    u8::try_from(s).expect("shards are few")
}
