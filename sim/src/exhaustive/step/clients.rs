//! The clients: requests, and the check of responses against an atomic store.

use kv_protocol::client_message::Status;

use super::Explorer;
use super::replica::Place;
use crate::exhaustive::client::is_definite;
use crate::exhaustive::replica::{Asked, Done, Given, Input, What};
use crate::exhaustive::world::{Machines, World};
use crate::exhaustive::{properties, trace};
use crate::invariants::Violation;

/// The offset of the numbers of reads. The number of a read is this offset plus the index of its key.
const READ_ID: u64 = 100;

impl Explorer {
    /// Sends a write to a process, for the first time or as a retry.
    pub(super) fn ask_write(&mut self, world: &mut World, n: u8, p: usize) {
        if n < world.clients.asked {
            world.left.retries -= 1;
        }
        world.clients.asked = world.clients.asked.max(n + 1);
        let asked = world.clients.request(&self.scope.script, n);
        let s = usize::from(self.scope.script.shard_of(usize::from(n)));
        self.replica(world, Place { p, s }, Input::Ask(asked), None);
    }

    /// Reads a key at a process.
    pub(super) fn read(&mut self, world: &mut World, key: u8, p: usize) {
        world.left.reads -= 1;
        let (asked, s) = self.read_of(key);
        self.replica(world, Place { p, s }, Input::Ask(asked), None);
    }

    fn read_of(&self, key: u8) -> (Asked, usize) {
        let (name, shard) = self.scope.script.keys[usize::from(key)];
        let asked = Asked { id: READ_ID + u64::from(key), key: name, what: What::Get };
        (asked, usize::from(shard))
    }

    /// Checks the value that a read of a key at a process would return now. The state does not change.
    pub(in crate::exhaustive) fn probe(&mut self, world: &World, key: u8, p: usize) {
        let (asked, s) = self.read_of(key);
        let state = Place { p, s }.state(world);
        let Machines { replicas, frames, .. } = &mut self.machines;
        let Ok(step) = replicas.take(frames, state, (world.tick, Input::Ask(asked))) else {
            return;
        };
        for done in &step.output {
            match done {
                Done::Broken(violation) => self.note(Err(violation.clone())),
                Done::Response(given) if given.id == asked.id && is_definite(given.status) => {
                    let mut clients = world.clients.clone();
                    let read = clients.on_read(&self.scope.script, key, given.writer);
                    let who = world.processes[p].member;
                    let named = |(invariant, words)| {
                        Violation::new(invariant, format!("{words} (read at {who} now)"))
                    };
                    self.note(read.map_err(named));
                }
                _ => {}
            }
        }
    }

    /// Handles a replica's response.
    pub(super) fn responded(&mut self, world: &mut World, at: Place, given: &Given) {
        let Given { id, status, copies, version, writer } = *given;
        let who = world.processes[at.p].member;
        self.tell(|| trace::response_words(who, given));
        if !is_definite(status) {
            return;
        }
        let named = |(invariant, words)| Violation::new(invariant, words);
        if id >= READ_ID {
            let key = u8::try_from(id - READ_ID).expect("keys are few");
            let read = world.clients.on_read(&self.scope.script, key, writer);
            return self.note(read.map_err(named));
        }
        let n = u8::try_from(id - 1).expect("writes are few");
        let written = world.clients.on_written(&self.scope.script, n, status, version);
        self.note(written.map_err(named));
        if copies > 0 && status == Status::Ok {
            properties::on_acked(self, world, at.p, at.s, given);
        }
    }
}
