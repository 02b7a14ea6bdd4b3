//! The effect of an action on a state: the drivers of all machines.
//!
//! - This file: dispatches actions, and collects violations.
//! - `brain`, `node`, `replica`: the inputs of a machine, and its effects.
//! - `streams`: connections between replicas. `clients`: writes and reads.

use std::collections::VecDeque;

use kv_protocol::ids::Member;

use super::properties;
use super::replica::Input;
use super::scope::Scope;
use super::world::{Action, Machines, World};
use crate::invariants::Violation;

mod brain;
mod clients;
mod node;
mod replica;
mod streams;

use replica::Place;

/// The violations that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// All, including those that only the machines' internals reveal.
    #[default]
    Everything,
    /// Only those that clients can observe: a wrong value, a lost write, a write done twice, or an abandoned group.
    ByClients,
}

/// The transition function over states.
pub struct Explorer {
    /// All machines.
    pub machines: Machines,
    /// The scope.
    pub scope: Scope,
    /// The violations that count.
    pub judged: Judged,
    /// The descriptions of the events; `None` if they are not requested.
    pub words: Option<Vec<String>>,
    /// True while a build with mutations executes the steps to the initial state. Only panics count then: an
    /// invariant that is violated on this path is violated again in the search, or is irrelevant to it.
    pub(super) is_unjudged: bool,
    broken: Option<Violation>,
}

impl Explorer {
    /// Creates an explorer without known states.
    pub fn new(scope: Scope, judged: Judged) -> Explorer {
        let machines = Machines::default();
        Explorer { machines, scope, judged, words: None, is_unjudged: false, broken: None }
    }

    /// Returns the state after an action.
    ///
    /// # Errors
    /// The first invariant that the action violates.
    pub fn step(&mut self, world: &World, action: Action) -> Result<World, Violation> {
        self.broken = None;
        let mut next = world.clone();
        self.act(&mut next, action);
        streams::sweep(&mut next);
        if self.broken.is_none() {
            properties::check(self, &mut next);
        }
        match self.broken.take() {
            Some(violation) => Err(violation),
            None => Ok(next),
        }
    }

    /// Checks the invariants of a single state.
    ///
    /// # Errors
    /// The first invariant that the state violates.
    pub(super) fn judge(&mut self, world: &mut World) -> Result<(), Violation> {
        properties::check(self, world);
        self.broken.take().map_or(Ok(()), Err)
    }

    /// Records a violation, if it counts.
    pub fn note(&mut self, result: Result<(), Violation>) {
        let Err(violation) = result else { return };
        let counts = match self.judged {
            Judged::Everything => true,
            Judged::ByClients => matches!(violation.invariant, 0 | 13 | 16 | 17 | 19),
        };
        if counts && !self.is_unjudged {
            self.broken.get_or_insert(violation);
        }
    }

    pub(super) fn tell(&mut self, words: impl FnOnce() -> String) {
        if let Some(all) = &mut self.words {
            all.push(words());
        }
    }

    fn act(&mut self, world: &mut World, action: Action) {
        match action {
            Action::Order(p) => self.next_paper(world, p.into(), |process| &mut process.orders),
            Action::LateOrder(p) => self.next_paper(world, p.into(), |process| &mut process.late),
            Action::Report(p) => self.report(world, p.into(), false),
            Action::ReportTwice(p) => self.report(world, p.into(), true),
            Action::Inbox(p, s) => self.inbox(world, Place::of(p, s)),
            Action::Frame(c, side) => self.frame(world, c.into(), side.into()),
            Action::Wake(p, s) => {
                self.replica(world, Place::of(p, s), Input::Wake, None);
            }
            Action::Tick => self.tick(world),
            Action::Kill(p) => kill(world, p.into()),
            Action::Proof(p) => self.proof(world, p.into()),
            Action::Suspect(p) => self.suspect(world, p.into()),
            Action::Heartbeat(p) => {
                world.left.votes -= 1;
                self.heartbeat(world, p.into());
            }
            Action::Ghost(p) => {
                world.left.ghosts -= 1;
                self.heartbeat(world, p.into());
            }
            Action::Back(p) => {
                world.left.returns -= 1;
                self.connect(world, p.into());
            }
            Action::Break(c) => {
                world.left.breaks -= 1;
                streams::cut(&mut world.connections[usize::from(c)]);
            }
            Action::Ask(n, p) => self.ask_write(world, n, p.into()),
            Action::Read(key, p) => self.read(world, key, p.into()),
            Action::Spawned => self.spawned(world),
            Action::Stored => self.stored(world),
            Action::Restart => self.restart(world),
        }
    }

    fn panicked(&mut self, who: &str, words: &str) {
        let words = format!("{who} panics: {words}");
        self.broken.get_or_insert(Violation::new(0, words));
    }
}

/// Returns the process of a member, if it is alive.
pub fn running(world: &World, member: Member) -> Option<usize> {
    world.process_of(member).filter(|p| world.processes[*p].alive)
}

fn kill(world: &mut World, p: usize) {
    let process = &mut world.processes[p];
    if !process.is_condemned {
        world.left.kills -= 1;
    }
    (process.alive, process.is_condemned) = (false, false);
    process.orders.clear();
    process.late.clear();
    process.inboxes.iter_mut().for_each(VecDeque::clear);
    streams::end_all(world, p);
}
