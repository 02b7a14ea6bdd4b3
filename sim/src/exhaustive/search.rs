//! Breadth-first search: visits every state within the bounds in order of distance. So the first violation has a
//! shortest trace.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use kv_protocol::ids::Member;

use super::replica::reading;
use super::scope::Scope;
use super::step::{Explorer, Judged};
use super::world::{Action, World};
use crate::invariants::Violation;

/// Limits at which a search stops early.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The maximum number of actions after the scope's initial state.
    pub depth: u32,
    /// The maximum number of states.
    pub states: usize,
    /// The maximum duration.
    pub time: Duration,
    /// True if the descriptions of the machines' states are verified during the search, which is slow.
    pub is_audited: bool,
}

/// The reason why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every state within the scope's bounds was visited.
    Exhausted,
    /// An invariant is violated.
    Broken,
    /// The limit on the number of actions was reached.
    Depth,
    /// The limit on the number of states was reached.
    States,
    /// The limit on the duration was reached.
    Time,
}

/// The result of a search.
#[derive(Debug)]
pub struct Found {
    /// The reason why the search ended.
    pub end: End,
    /// The number of distinct states.
    pub states: usize,
    /// The number of actions executed.
    pub transitions: u64,
    /// The number of levels of the search that were expanded, including an incomplete last one.
    pub depth: u32,
    /// The number of distinct states of replicas.
    pub replica_states: usize,
    /// The number of distinct states of the coordinator's brain.
    pub brain_states: usize,
    /// The number of steps of machines that were executed twice, after different paths to the same state.
    pub audits: u64,
    /// The violated invariant, with the shortest path to the violation.
    pub broken: Option<(Violation, Vec<Action>)>,
    /// The duration.
    pub time: Duration,
}

/// The last step of the path to a state.
#[derive(Clone, Copy)]
struct Reached {
    from: u32,
    by: Action,
}

/// Visits every state within a scope's bounds. `progress` receives the number of states, the depth, and the
/// number of states of this depth still to expand.
pub fn search(
    scope: &Scope,
    judged: Judged,
    limits: Limits,
    mut progress: impl FnMut(usize, u32, usize),
) -> Found {
    let start = Instant::now();
    let mut explorer = Explorer::new(scope.clone(), judged);
    let machines = &mut explorer.machines;
    machines.replicas.is_audited = limits.is_audited;
    machines.nodes.is_audited = limits.is_audited;
    machines.brains.is_audited = limits.is_audited;
    let mut found = Found {
        end: End::Exhausted,
        states: 1,
        transitions: 0,
        depth: 0,
        replica_states: 0,
        brain_states: 0,
        audits: 0,
        broken: None,
        time: Duration::ZERO,
    };
    let first = match scope.begin(&mut explorer) {
        Ok(first) => first,
        Err(violation) => {
            found.broken = Some((violation, Vec::new()));
            found.end = End::Broken;
            return found;
        }
    };
    let mut seen = HashSet::from([fingerprint(&first)]);
    // The path to every state; that of the initial state is empty.
    let mut ways: Vec<Reached> = vec![Reached { from: u32::MAX, by: Action::Tick }];
    let mut level = vec![(0, first)];
    let mut actions = Vec::new();
    'levels: while !level.is_empty() {
        if found.depth >= limits.depth {
            found.end = End::Depth;
            break;
        }
        let mut next_level = Vec::new();
        found.depth += 1;
        for (number, (id, world)) in level.iter().enumerate() {
            if number % 4_096 == 0 {
                progress(ways.len(), found.depth, level.len() - number);
                if start.elapsed() >= limits.time {
                    found.end = End::Time;
                    break 'levels;
                }
            }
            actions.clear();
            explorer.actions(world, &mut actions);
            for &by in &actions {
                found.transitions += 1;
                let reached = Reached { from: *id, by };
                match explorer.step(world, by) {
                    Ok(next) => {
                        if !seen.insert(fingerprint(&next)) {
                            continue;
                        }
                        if ways.len() >= limits.states {
                            found.end = End::States;
                            break 'levels;
                        }
                        ways.push(reached);
                        let id = u32::try_from(ways.len() - 1).expect("fewer than 2^32 states");
                        next_level.push((id, next));
                    }
                    Err(violation) => {
                        found.broken = Some((violation, way_to(&ways, reached)));
                        found.end = End::Broken;
                        break 'levels;
                    }
                }
            }
        }
        level = next_level;
    }
    found.states = ways.len();
    found.replica_states = explorer.machines.replicas.len();
    found.brain_states = explorer.machines.brains.len();
    let machines = &explorer.machines;
    found.audits = machines.replicas.audits + machines.nodes.audits + machines.brains.audits;
    found.time = start.elapsed();
    found
}

fn way_to(ways: &[Reached], last: Reached) -> Vec<Action> {
    let (mut actions, mut at) = (vec![last.by], last.from);
    while let Some(reached) = ways.get(at as usize).filter(|_| at != 0) {
        actions.push(reached.by);
        at = reached.from;
    }
    actions.reverse();
    actions
}

/// Returns a 64-bit SipHash of a state. Among a hundred million states, the probability of a collision is about 1 in
/// 3,700.
fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

impl Explorer {
    /// Collects every action that is possible in a state.
    pub fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let brain = self.machines.brains.sight(world.brain);
        let down = brain.places.iter().any(|place| place.is_down && !place.exited);
        let current = |member: Member| brain.places.iter().any(|place| place.member == member);
        let exited = |member: Member| {
            brain.places.iter().all(|place| place.member != member || place.exited)
        };
        for (p, process) in world.processes.iter().enumerate() {
            let n = u8::try_from(p).expect("processes are few");
            let (left, member) = (&world.left, process.member);
            if !process.reports.is_empty() {
                actions.push(Action::Report(n));
                actions.extend((left.late_reports > 0).then_some(Action::ReportTwice(n)));
            }
            if !process.alive {
                actions.extend((!exited(member)).then_some(Action::Proof(n)));
                let is_noticed = !process.link.1 || exited(member);
                actions.extend((!is_noticed && left.suspicions > 0).then_some(Action::Suspect(n)));
                let is_ghost = left.ghosts > 0 && !current(member);
                actions.extend(is_ghost.then_some(Action::Ghost(n)));
                continue;
            }
            actions.extend((!process.orders.is_empty()).then_some(Action::Order(n)));
            actions.extend((!process.late.is_empty()).then_some(Action::LateOrder(n)));
            if process.is_condemned || left.kills > 0 {
                actions.push(Action::Kill(n));
            }
            match process.link.1 {
                true if left.suspicions > 0 => actions.push(Action::Suspect(n)),
                true => {}
                false if left.returns > 0 => actions.push(Action::Back(n)),
                false => {}
            }
            if process.link.1 && down && left.votes > 0 {
                actions.push(Action::Heartbeat(n));
            }
            self.actions_of_shards(world, n, actions);
        }
        for (c, connection) in world.connections.iter().enumerate() {
            let c = u8::try_from(c).expect("connections are few");
            for side in 0..2u8 {
                let is_waiting = !connection.to[usize::from(side)].is_empty();
                let (p, _) = connection.ends[usize::from(side)];
                if is_waiting && world.processes[usize::from(p)].alive {
                    actions.push(Action::Frame(c, side));
                }
            }
            if world.left.breaks > 0 {
                actions.push(Action::Break(c));
            }
        }
        actions.extend((world.left.ticks > 0).then_some(Action::Tick));
        actions.extend(world.storing.map(|_| Action::Stored));
        let may_spawn = world.left.spawns > 0 && !world.spawning.is_empty();
        actions.extend(may_spawn.then_some(Action::Spawned));
        actions.extend((world.left.restarts > 0).then_some(Action::Restart));
    }

    fn actions_of_shards(&self, world: &World, n: u8, actions: &mut Vec<Action>) {
        let process = &world.processes[usize::from(n)];
        for (s, state) in process.shards.iter().enumerate() {
            let s = u8::try_from(s).expect("shards are few");
            let sight = self.machines.replicas.sight(*state);
            if sight.due.is_some_and(|due| due <= reading(world.tick)) {
                actions.push(Action::Wake(n, s));
            }
            if !process.inboxes[usize::from(s)].is_empty() {
                actions.push(Action::Inbox(n, s));
            }
            // A replica that is not a primary rejects requests without a change of state, so they are not explored.
            if !sight.inside.state.is_primary() {
                continue;
            }
            let script = &self.scope.script;
            let asked = usize::from(world.clients.asked);
            for number in 0..script.writes.len().min(asked + 1) {
                let is_here = script.shard_of(number) == s;
                let is_free = number == asked || world.left.retries > 0;
                if is_here && is_free {
                    actions.push(Action::Ask(u8::try_from(number).expect("writes are few"), n));
                }
            }
            for (key, (_, shard)) in script.keys.iter().enumerate() {
                if world.left.reads > 0 && *shard == s {
                    actions.push(Action::Read(u8::try_from(key).expect("keys are few"), n));
                }
            }
        }
    }
}
