//! The scopes: initial states, each with its own bounds on further events.

use kv_protocol::placement::Placement;
use kv_protocol::view::Peer;

use super::brain::BrainInput;
use super::client::{Script, Write};
use super::replica::{GROUP, Kind, SERVERS, reading};
use super::step::Explorer;
use super::world::{Action, Left, World};
use crate::invariants::Violation;

/// The initial state of a search. A and B are the first processes at places 0 and 1, and A+ is the successor of A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// View {A, B}, both at home.
    Home,
    /// View {B, candidate A} is durable, and no server has received it. A was removed after a tick of silence, and
    /// its heartbeats resumed before the removal was durable. A still has its copy and its old view.
    Outcast,
    /// View {B}: A was killed, and its death is proven. A+ is started and has not reported.
    Alone,
    /// View {B, candidate A+} is durable, and no server has received it.
    Candidate,
    /// View {B, A+} is durable, and no server has received it.
    Secondary,
    /// The hand-over view {A+, B} is durable, and no server has received it.
    HandOver,
    /// View {A+, B}, both at home again.
    HomeAgain,
}

/// One search: an initial state, and bounds on further events.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The name of the scope.
    pub name: &'static str,
    /// A description of the scope.
    pub words: &'static str,
    /// The initial state of the search.
    pub beginning: Beginning,
    /// The number of shards of the group.
    pub shards: u16,
    /// True if the completion of a store is a separate step; otherwise stores complete at once.
    pub slow_disk: bool,
    /// The writes that clients may request.
    pub script: Script,
    /// The number of these writes that are done before the search begins.
    pub done_before: u8,
    /// The bounds on further events.
    pub left: Left,
}

const NAMES: [&str; 16] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// Returns the first keys that belong to this shard of the group.
fn keys_of(shards: u16, shard: u16, count: usize) -> Vec<(&'static str, u8)> {
    let placement = Placement::new(SERVERS, shards);
    let is_here = |name: &&&str| {
        let (group, place) = placement.locate(name.as_bytes());
        group == GROUP && place.0 == shard
    };
    let number = u8::try_from(shard).expect("shards are few");
    NAMES.iter().filter(is_here).take(count).map(|name| (*name, number)).collect()
}

const fn write(client: u8, seq: u8, key: u8, kind: Kind) -> Write {
    Write { client, seq, key, kind, large: false }
}

const fn large(client: u8, seq: u8, key: u8) -> Write {
    Write { client, seq, key, kind: Kind::Put, large: true }
}

// The first put of client 1. In the following writes it puts the key again or deletes it, and client 2 puts the
// same key.
const SMALL: Write = write(1, 1, 0, Kind::Put);
const AGAIN: Write = write(1, 2, 0, Kind::Put);
const DELETE: Write = write(1, 2, 0, Kind::Delete);
const OTHER: Write = write(2, 1, 0, Kind::Put);

/// Returns a script of these writes, on the first keys of the only shard.
fn script(keys: usize, writes: &[Write]) -> Script {
    Script { writes: writes.to_vec(), keys: keys_of(1, 0, keys) }
}

/// Returns a scope of one shard and a fast disk, in which the first write is done before the search.
fn scope(
    name: &'static str,
    words: &'static str,
    beginning: Beginning,
    script: Script,
    left: Left,
) -> Scope {
    let (shards, slow_disk, done_before) = (1, false, 1);
    Scope { name, words, beginning, shards, slow_disk, script, done_before, left }
}

/// Returns bounds within which a server may fall silent and be removed, in this many ticks.
fn silence(ticks: u8) -> Left {
    Left { ticks, suspicions: 1, votes: 1, ..Left::default() }
}

/// Returns all searches.
pub fn all() -> Vec<Scope> {
    [at_home(), voted_out(), copies(), going_home(), replacements(), others()].concat()
}

fn at_home() -> Vec<Scope> {
    let none = Left::default();
    vec![
        scope(
            "writes",
            "two clients write and retry at home; the primary dies",
            Beginning::Home,
            script(1, &[SMALL, AGAIN, write(2, 1, 0, Kind::PutIfAbsent)]),
            Left { reads: 1, retries: 2, kills: 1, ..none },
        ),
        scope(
            "leases",
            "the primary falls silent, is voted out, and continues to serve by its own clock",
            Beginning::Home,
            script(1, &[SMALL, AGAIN]),
            silence(3),
        ),
        scope(
            "deaths",
            "both servers may die, and a stream may break; no server is replaced",
            Beginning::Home,
            script(1, &[SMALL, AGAIN]),
            Left { kills: 2, ticks: 1, breaks: 1, ..none },
        ),
    ]
}

fn voted_out() -> Vec<Scope> {
    let none = Left::default();
    vec![
        scope(
            "outcast",
            "the old primary lives and becomes candidate while its successor waits for its grace to end",
            Beginning::Outcast,
            script(1, &[SMALL, DELETE]),
            Left { ticks: 2, ..none },
        ),
        scope(
            "outcast, then a death",
            "the same; a server dies",
            Beginning::Outcast,
            script(1, &[SMALL, AGAIN]),
            Left { ticks: 2, kills: 1, ..none },
        ),
        Scope {
            slow_disk: true,
            ..scope(
                "vote",
                "a server is voted out, and its heartbeats resume before that is durable",
                Beginning::Home,
                script(1, &[SMALL, DELETE]),
                Left { returns: 1, ..silence(2) },
            )
        },
    ]
}

fn copies() -> Vec<Scope> {
    let none = Left::default();
    // Two large values are stored, and clients overwrite one of them.
    let over = |name, words, writes: &[Write], left| {
        let writes = [&[large(1, 1, 0), large(2, 1, 1)], writes].concat();
        let scope = scope(name, words, Beginning::Candidate, script(2, &writes), left);
        Scope { done_before: 2, ..scope }
    };
    vec![
        over(
            "copy",
            "a candidate receives a copy while clients overwrite copied keys",
            &[write(1, 2, 1, Kind::Put), write(2, 2, 1, Kind::Delete)],
            Left { ticks: 1, ..none },
        ),
        over(
            "copy and delete",
            "a candidate receives a copy while clients delete copied keys",
            &[write(1, 2, 1, Kind::Delete), write(2, 2, 1, Kind::Put)],
            none,
        ),
        over(
            "copy that breaks",
            "the same, and a stream breaks",
            &[write(1, 2, 1, Kind::Delete)],
            Left { breaks: 1, ..none },
        ),
        scope(
            "copy again",
            "a copy fails, and the same process is candidate again after a pause",
            Beginning::Candidate,
            script(1, &[SMALL, DELETE]),
            Left { breaks: 1, ticks: 1, ..none },
        ),
        scope(
            "copy, then a death",
            "a candidate receives a copy and becomes secondary; the primary dies",
            Beginning::Candidate,
            script(1, &[large(1, 1, 0), AGAIN]),
            Left { kills: 1, retries: 1, reads: 1, ..none },
        ),
        scope(
            "copy, then silence",
            "a candidate receives a copy; the current primary falls silent",
            Beginning::Candidate,
            script(1, &[SMALL]),
            silence(2),
        ),
    ]
}

fn going_home() -> Vec<Scope> {
    let none = Left::default();
    vec![
        scope(
            "hand-over",
            "the group goes home; a server dies",
            Beginning::HandOver,
            script(1, &[SMALL, AGAIN, OTHER]),
            Left { kills: 1, breaks: 1, ..none },
        ),
        scope(
            "slow hand-over",
            "the group goes home, and time passes",
            Beginning::HandOver,
            script(1, &[SMALL, AGAIN, OTHER]),
            Left { ticks: 3, ..none },
        ),
        scope(
            "silent hand-over",
            "the group goes home; a server falls silent",
            Beginning::HandOver,
            script(1, &[SMALL, AGAIN]),
            silence(3),
        ),
        scope(
            "away",
            "the candidate is made secondary, and the group goes home; a server dies",
            Beginning::Secondary,
            script(1, &[SMALL, AGAIN]),
            Left { ticks: 1, kills: 1, ..none },
        ),
        scope(
            "home again",
            "after a whole recovery the new primary falls silent",
            Beginning::HomeAgain,
            script(1, &[SMALL, AGAIN]),
            silence(3),
        ),
    ]
}

fn replacements() -> Vec<Scope> {
    let none = Left::default();
    vec![
        scope(
            "alone",
            "the only holder falls silent, or dies, while its replacement starts",
            Beginning::Alone,
            script(1, &[SMALL]),
            Left { ticks: 1, kills: 1, suspicions: 1, spawns: 1, ..none },
        ),
        scope(
            "candidates",
            "candidates die and are replaced, and reports arrive late; the primary may die",
            Beginning::Candidate,
            script(1, &[SMALL]),
            Left { kills: 2, spawns: 1, ticks: 1, late_reports: 1, ..none },
        ),
        scope(
            "ghosts",
            "heartbeats of dead processes arrive while a candidate receives a copy",
            Beginning::Candidate,
            script(1, &[SMALL]),
            Left { ghosts: 1, kills: 1, ..none },
        ),
    ]
}

/// Returns the scopes that need a slow disk or two shards.
fn others() -> Vec<Scope> {
    let none = Left::default();
    let two_keys = [keys_of(2, 0, 1), keys_of(2, 1, 1)].concat();
    let writes = vec![SMALL, write(2, 1, 1, Kind::Put), write(2, 2, 1, Kind::Put)];
    vec![
        Scope {
            slow_disk: true,
            ..scope(
                "terms",
                "the coordinator dies while a view is being stored",
                Beginning::Home,
                script(1, &[SMALL, AGAIN]),
                Left { restarts: 1, kills: 1, returns: 2, ..none },
            )
        },
        Scope {
            shards: 2,
            done_before: 2,
            ..scope(
                "two shards",
                "two shards are copied to a candidate, which becomes secondary; the primary dies",
                Beginning::Candidate,
                Script { writes, keys: two_keys },
                Left { kills: 1, ..none },
            )
        },
    ]
}

impl Scope {
    /// Executes the steps that lead to the initial state of the search.
    ///
    /// # Errors
    /// The invariant that one of these steps violates.
    pub fn begin(&self, explorer: &mut Explorer) -> Result<World, Violation> {
        explorer.scope.slow_disk = false;
        explorer.is_unjudged = cfg!(feature = "mutations");
        let mut world = World::new(&mut explorer.machines, self, &self.script);
        world.left = Left { kills: 1, spawns: 3, ..Left::default() };
        explorer.brain(&mut world, BrainInput::Wake);
        world = explorer.step(&world, Action::Spawned)?;
        world = explorer.step(&world, Action::Spawned)?;
        world = settle(explorer, world, |_, _| false)?;
        for n in 0..self.done_before {
            world = explorer.step(&world, Action::Ask(n, 0))?;
            world = settle(explorer, world, |_, _| false)?;
        }
        world = match self.beginning {
            Beginning::Home => world,
            Beginning::Outcast => self.vote_out(explorer, world)?,
            _ => self.recover(explorer, world)?,
        };
        world.left = self.left;
        explorer.scope.slow_disk = self.slow_disk;
        explorer.is_unjudged = false;
        explorer.judge(&mut world)?;
        Ok(world)
    }

    fn vote_out(&self, explorer: &mut Explorer, mut world: World) -> Result<World, Violation> {
        world.left = Left { suspicions: 1, ticks: 1, votes: 1, returns: 1, ..Left::default() };
        explorer.scope.slow_disk = true;
        for action in [Action::Suspect(0), Action::Tick, Action::Heartbeat(1), Action::Back(0)] {
            world = explorer.step(&world, action)?;
        }
        while world.storing.is_some() {
            world = explorer.step(&world, Action::Stored)?;
        }
        Ok(world)
    }

    fn recover(&self, explorer: &mut Explorer, world: World) -> Result<World, Violation> {
        let mut world = explorer.step(&world, Action::Kill(0))?;
        world = settle(explorer, world, |_, _| false)?;
        world = explorer.step(&world, Action::Proof(0))?;
        world = settle(explorer, world, |_, _| false)?;
        if self.beginning == Beginning::Alone {
            return Ok(world);
        }
        if world.spawning.is_empty() {
            return Err(Violation::new(
                0,
                format!("no replacement is started, so {:?} is not reached", self.beginning),
            ));
        }
        world = explorer.step(&world, Action::Spawned)?;
        let beginning = self.beginning;
        settle(explorer, world, move |explorer, world| {
            let view = explorer.machines.brains.sight(world.brain).view;
            match beginning {
                Beginning::Candidate => matches!(view.peer, Peer::Candidate(_)),
                Beginning::Secondary => view.secondary().is_some(),
                Beginning::HandOver => view.handover,
                _ => false,
            }
        })
    }
}

/// Delivers all messages and runs all due wake-ups, until none is left or `is_there` returns true.
fn settle(
    explorer: &mut Explorer,
    mut world: World,
    is_there: impl Fn(&Explorer, &World) -> bool,
) -> Result<World, Violation> {
    for _ in 0..1_000 {
        if is_there(explorer, &world) {
            return Ok(world);
        }
        let mut actions = Vec::new();
        explorer.actions(&world, &mut actions);
        let is_delivery = |action: &Action| match action {
            Action::Order(_) | Action::Report(_) | Action::Inbox(..) | Action::Frame(..) => true,
            Action::Wake(p, s) => {
                let state = world.processes[usize::from(*p)].shards[usize::from(*s)];
                let due = explorer.machines.replicas.sight(state).due;
                due.is_some_and(|due| due <= reading(world.tick))
            }
            _ => false,
        };
        let Some(action) = actions.into_iter().find(is_delivery) else { return Ok(world) };
        world = explorer.step(&world, action)?;
    }
    panic!("the cluster does not settle before the search");
}
