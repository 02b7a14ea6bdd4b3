//! The driver of the replicas: inputs of a shard and their effects.

use kv_protocol::ids::ShardId;

use super::{Explorer, running, streams};
use crate::exhaustive::machine::StateId;
use crate::exhaustive::node::NodeInput;
use crate::exhaustive::replica::{Done, GROUP, Input, Sight, ViewKey};
use crate::exhaustive::world::{CLOSED, End, Machines, Told, World};
use crate::invariants::messages;

/// A shard of a process: the indices of the process and the shard.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) p: usize,
    pub(super) s: usize,
}

impl Place {
    pub(super) fn of(p: u8, s: u8) -> Place {
        Place { p: p.into(), s: s.into() }
    }

    pub(super) fn state(self, world: &World) -> StateId {
        world.processes[self.p].shards[self.s]
    }

    fn shard(self) -> ShardId {
        ShardId(u16::try_from(self.s).expect("shards are few"))
    }
}

/// The connection to which an input refers if it is not the replica's stream.
#[derive(Clone, Copy)]
pub(super) enum Over {
    /// A connection on which a hello has arrived.
    Hello(usize),
    /// A new connection to this process.
    Dialled(usize),
}

impl Explorer {
    /// Delivers a node's next message to a shard.
    pub(super) fn inbox(&mut self, world: &mut World, at: Place) {
        if let Some(told) = world.processes[at.p].inboxes[at.s].pop_front() {
            self.told(world, at, told);
        }
    }

    pub(super) fn told(&mut self, world: &mut World, at: Place, told: Told) {
        match told {
            Told::Exited(member) => {
                self.replica(world, at, Input::Exited(member), None);
            }
            Told::Install(number) => {
                let (order, view) = *self.machines.installs.get(number);
                let refused = self.replica(world, at, Input::Install(ViewKey(view)), None);
                if let Some(words) = refused {
                    self.tell(|| format!("rejected: {words}"));
                    self.node(world, at.p, NodeInput::Refused(order, at.shard(), words));
                }
            }
        }
    }

    /// Delivers the next frame to one side of a connection.
    pub(super) fn frame(&mut self, world: &mut World, c: usize, side: usize) {
        let connection = &mut world.connections[c];
        let Some(frame) = connection.to[side].pop_front() else { return };
        let (p, end) = connection.ends[side];
        let at = Place::of(p, connection.shard);
        let (input, over) = match (frame, end) {
            (CLOSED, _) => {
                connection.ends[side].1 = End::Gone;
                if end != End::Attached {
                    return;
                }
                (Input::Closed, None)
            }
            (_, End::Pending) => (Input::Hello(frame), Some(Over::Hello(c))),
            (_, _) => (Input::Frame(frame), None),
        };
        self.replica(world, at, input, over);
    }

    /// Wakes a replica with an input. Returns the reason if it rejects a view.
    pub(super) fn replica(
        &mut self,
        world: &mut World,
        at: Place,
        input: Input,
        over: Option<Over>,
    ) -> Option<String> {
        let before = self.sight(world, at).report;
        let refused = self.wake(world, at, input, over);
        // The driver dials the requested stream while the target process is alive.
        for _ in 0..4 {
            let Some(wanted) = self.sight(world, at).wants else { break };
            let Some(other) = running(world, wanted.to) else { break };
            self.wake(world, at, Input::Dialled, Some(Over::Dialled(other)));
        }
        let after = self.sight(world, at).report;
        if before != after {
            self.node(world, at.p, NodeInput::Shard(at.shard(), after));
        }
        refused
    }

    fn sight(&self, world: &World, at: Place) -> &Sight {
        self.machines.replicas.sight(at.state(world))
    }

    fn wake(
        &mut self,
        world: &mut World,
        at: Place,
        input: Input,
        over: Option<Over>,
    ) -> Option<String> {
        let state = at.state(world);
        let Machines { replicas, frames, .. } = &mut self.machines;
        let step = match replicas.take(frames, state, (world.tick, input)) {
            Ok(step) => step,
            Err(words) => {
                let who = world.processes[at.p].member.to_string();
                self.panicked(&who, &words);
                return None;
            }
        };
        world.processes[at.p].shards[at.s] = step.next;
        let mut refused = None;
        for done in &step.output {
            match done {
                Done::Send(frame) => streams::send(world, at, *frame),
                Done::Close => streams::close(world, at),
                Done::Accept => {
                    if let Some(Over::Hello(c)) = over {
                        streams::accept(&mut world.connections[c]);
                    }
                }
                Done::Refuse(frame) => {
                    if let Some(Over::Hello(c)) = over {
                        streams::refuse(&mut world.connections[c], *frame);
                    }
                }
                Done::Connect(frame) => {
                    let Some(Over::Dialled(other)) = over else {
                        panic!("only the dialling side connects")
                    };
                    streams::connect(world, at, other, *frame);
                }
                Done::Response(given) => self.responded(world, at, given),
                Done::NotInstalled(words) => refused = Some(words.clone()),
                Done::Misunderstood(error) => {
                    let other = streams::other_end(world, at);
                    let is_of_the_dead = other.is_none_or(|p| !world.processes[p].alive);
                    self.note(messages::streams_are_whole(GROUP, error, is_of_the_dead));
                }
                Done::Broken(violation) => self.note(Err(violation.clone())),
            }
        }
        refused
    }
}
