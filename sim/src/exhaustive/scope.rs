//! Where a search begins, and what may happen from there: a bound of its own for each.

use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::Peer;

use super::brain::BrainInput;
use super::client::{Script, Write};
use super::replica::{GROUP, Kind, SERVERS, reading};
use super::step::Explorer;
use super::world::{Action, Left, World};
use crate::invariants::Violation;

/// Where a search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// {A, B}, both at home.
    Home,
    /// {B}: A was killed, and its end is proven. A+ is started and has not reported.
    Alone,
    /// {B, candidate A+} is durable, and nobody is told.
    Candidate,
    /// {B, A+} is durable, and nobody is told.
    Secondary,
    /// The hand-over view {A+, B} is durable, and nobody is told.
    HandOver,
    /// {A+, B}, both at home again.
    HomeAgain,
}

/// One search.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// What it is for.
    pub words: &'static str,
    /// Where it begins.
    pub beginning: Beginning,
    /// Shards of the group.
    pub shards: u16,
    /// Whether storing a view is a step of its own; otherwise it is done at once.
    pub slow_disk: bool,
    /// What clients may write.
    pub script: Script,
    /// So many of these writes are done before everything else.
    pub done_before: u8,
    /// What may happen.
    pub left: Left,
}

const NAMES: [&str; 16] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// The first keys that live in this shard of the group.
fn keys_of(shards: u16, shard: u16, count: usize) -> Vec<(&'static str, u8)> {
    let placement = Placement::new(SERVERS, shards);
    let is_here = |name: &&&str| {
        let (group, place) = placement.locate(Digest::of(name.as_bytes()));
        group == GROUP && place.0 == shard
    };
    let number = u8::try_from(shard).expect("shards are few");
    NAMES.iter().filter(is_here).take(count).map(|name| (*name, number)).collect()
}

fn write(client: u8, seq: u8, key: u8, kind: Kind) -> Write {
    Write { client, seq, key, kind, large: false }
}

fn large(client: u8, seq: u8, key: u8) -> Write {
    Write { client, seq, key, kind: Kind::Put, large: true }
}

/// All searches.
pub fn all() -> Vec<Scope> {
    use Beginning::*;
    use Kind::*;
    let one = |keys: usize, writes: Vec<Write>| Script { writes, keys: keys_of(1, 0, keys) };
    let none = Left::default();
    let base = Scope {
        name: "",
        words: "",
        beginning: Home,
        shards: 1,
        slow_disk: false,
        script: one(1, vec![write(1, 1, 0, Put)]),
        done_before: 1,
        left: none,
    };
    let mut two_keys = keys_of(2, 0, 1);
    two_keys.extend(keys_of(2, 1, 1));
    vec![
        Scope {
            name: "writes",
            words: "two clients write and retry at home; the primary dies",
            script: one(
                1,
                vec![write(1, 1, 0, Put), write(1, 2, 0, Put), write(2, 1, 0, PutIfAbsent)],
            ),
            left: Left { reads: 1, retries: 2, kills: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "leases",
            words: "the primary falls silent, is voted out, and goes on by its own clock",
            script: one(1, vec![write(1, 1, 0, Put), write(1, 2, 0, Put)]),
            left: Left { ticks: 3, suspicions: 1, votes: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "deaths",
            words: "either server dies; nobody replaces it",
            script: one(1, vec![write(1, 1, 0, Put), write(1, 2, 0, Put)]),
            left: Left { kills: 2, ticks: 1, breaks: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "outcast",
            words: "the primary is voted out, lives, and comes back as candidate",
            script: one(2, vec![write(1, 1, 0, Put), write(1, 2, 1, Put), write(1, 3, 0, Delete)]),
            done_before: 2,
            left: Left { ticks: 1, suspicions: 1, votes: 1, returns: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "copy",
            words: "a candidate is copied to while clients write",
            beginning: Candidate,
            script: one(
                2,
                vec![large(1, 1, 0), large(2, 1, 1), write(1, 2, 0, Put), write(2, 2, 1, Delete)],
            ),
            done_before: 2,
            left: Left { breaks: 1, ticks: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "copy, then a death",
            words: "a candidate is copied to, becomes secondary, and the primary dies",
            beginning: Candidate,
            script: one(1, vec![large(1, 1, 0), write(1, 2, 0, Put)]),
            left: Left { kills: 1, retries: 1, reads: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "copy, then silence",
            words: "a candidate is copied to while the primary takes over, and falls silent",
            beginning: Candidate,
            left: Left { ticks: 3, suspicions: 1, votes: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "hand-over",
            words: "the group goes home; either server dies or falls silent",
            beginning: HandOver,
            script: one(1, vec![write(1, 1, 0, Put), write(1, 2, 0, Put)]),
            left: Left { ticks: 3, kills: 1, suspicions: 1, votes: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "away",
            words: "the candidate is made secondary, and the group goes home; somebody dies",
            beginning: Secondary,
            script: one(1, vec![write(1, 1, 0, Put), write(1, 2, 0, Put)]),
            left: Left { ticks: 1, kills: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "home again",
            words: "after a whole recovery the new primary falls silent",
            beginning: HomeAgain,
            left: Left { ticks: 3, suspicions: 1, votes: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "alone",
            words: "the only holder falls silent, or dies, while its replacement starts",
            beginning: Alone,
            left: Left { ticks: 1, kills: 1, suspicions: 1, spawns: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "candidates",
            words: "candidates die and follow each other; reports and heartbeats come late",
            beginning: Candidate,
            left: Left { kills: 2, spawns: 1, late_reports: 1, ghosts: 1, ..none },
            ..base.clone()
        },
        Scope {
            name: "terms",
            words: "the coordinator dies, with a view on its way to the disk",
            slow_disk: true,
            left: Left { restarts: 1, kills: 1, returns: 2, ..none },
            ..base.clone()
        },
        Scope {
            name: "two shards",
            words: "a candidate of two shards is copied to and becomes secondary; the primary dies",
            beginning: Candidate,
            shards: 2,
            script: Script {
                writes: vec![write(1, 1, 0, Put), write(2, 1, 1, Put), write(2, 2, 1, Put)],
                keys: two_keys,
            },
            done_before: 2,
            left: Left { kills: 1, ..none },
            ..base.clone()
        },
    ]
}

impl Scope {
    /// Leads to where the search begins.
    ///
    /// # Errors
    /// A promise that is broken on the way.
    pub fn begin(&self, explorer: &mut Explorer) -> Result<World, Violation> {
        explorer.scope.slow_disk = false;
        explorer.is_unjudged = cfg!(feature = "holes");
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
        if self.beginning != Beginning::Home {
            world = self.recover(explorer, world)?;
        }
        world.left = self.left;
        explorer.scope.slow_disk = self.slow_disk;
        explorer.is_unjudged = false;
        explorer.judge(&mut world)?;
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

/// Lets everything arrive, and everybody wake who wants to, until nothing is left or `is_there`.
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
    panic!("a beginning does not come to rest");
}
