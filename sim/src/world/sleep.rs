//! Suspensions of machines for longer than sessions are kept, and clones of clients. Both occur only in runs with a
//! short idle timeout of sessions.
//!
//! ```text
//!   a client alone     its write is in flight, its response lost; it retries after the session has expired
//!   all machines       no session expires
//!   a clone            two clients write under one name and the same sequence numbers
//! ```

use kv_protocol::ids::ClientId;

use super::*;
use crate::nemesis::pause_coordinator;

/// The number of suspensions of clients' machines in such a run.
const SLEEPS: u64 = 4;
/// The time within which all suspended machines resume, in nanoseconds.
const WAKES_WITHIN: u64 = 10_000_000;

impl World {
    pub(super) fn plan_sleep(&mut self) {
        if !self.config.forgets_soon() {
            return;
        }
        let idle = self.config.bounds.session_idle;
        let idle = u64::try_from(idle.as_nanos()).expect("the timeout is short");
        let faulty = self.config.faulty;
        for _ in 0..SLEEPS {
            // The first client only reads.
            let client = 1 + self.random.index(self.config.clients - 1);
            let at = self.random.between(faulty / 20, faulty / 2);
            let sleep = self.random.between(idle * 14 / 10, idle * 18 / 10);
            self.at(at, Happening::SleepClient(client, sleep));
        }
        let at = self.random.between(faulty / 20, faulty / 2);
        if self.random.per_mille(500) {
            let sleep = self.random.between(idle * 14 / 10, idle * 3);
            self.at(at, Happening::SleepAll(sleep));
        }
        if self.random.per_mille(500) {
            self.at(at / 2, Happening::Clone);
        }
    }

    /// Suspends a client's machine. With `alone`, the suspension begins once a write is in flight, the client's
    /// connections break, and responses sent meanwhile are lost.
    pub(super) fn sleep_client(&mut self, client: usize, sleep: u64, alone: bool) {
        if self.is_healing || self.now < self.asleep_until[client] {
            return;
        }
        let writes = self.clients[client].flights.values();
        let has_write = writes.filter(|flight| flight.is_waiting()).any(Flight::is_write);
        if alone && !has_write {
            return self.after(1_000_000, Happening::SleepClient(client, sleep));
        }
        let until = self.now + sleep;
        self.asleep_until[client] = until;
        self.at(until, Happening::ClientSlept(client, sleep));
        if alone {
            let is_its = |actor: Actor| actor == Actor::Client { client };
            for number in self.network.live(|connection| connection.ends.into_iter().any(is_its)) {
                self.break_connection(number);
                // The client does not receive messages that are in transit.
                let end = self.network.get(number).end_of(Actor::Client { client });
                self.network.deafen(number, end);
            }
        }
    }

    /// Suspends all machines, which resume one after the other.
    pub(super) fn sleep_all(&mut self, sleep: u64) {
        let is_served =
            self.coordinator.cluster.as_ref().is_some_and(|cluster| cluster.has_served());
        if self.is_healing || !is_served {
            return;
        }
        for process in 0..self.processes.len() {
            let until = self.now + sleep + self.random.between(0, WAKES_WITHIN);
            if self.processes[process].paused_until < until {
                self.pause(process, until - self.now);
            }
        }
        let wakes_after = self.random.between(0, WAKES_WITHIN);
        pause_coordinator(self, sleep + wakes_after);
        for client in 0..self.clients.len() {
            let wakes_after = self.random.between(0, WAKES_WITHIN);
            self.sleep_client(client, sleep + wakes_after, false);
        }
        self.slept += sleep;
        self.all_asleep_until = self.now + sleep;
    }

    /// Gives every client that shares a name with another one a new name.
    pub(super) fn end_clones(&mut self) {
        let shared = &self.checks.shared;
        for client in &mut self.clients {
            if client.names().any(|name| shared.contains(&name)) {
                client.take_new_name();
            }
        }
    }

    /// Turns the last client into a clone of another.
    pub(super) fn clone_client(&mut self) {
        let last = self.clients.len() - 1;
        let other = 1 + self.random.index(last - 1);
        let [clone, other] = self.clients.get_disjoint_mut([last, other]).expect("two clients");
        let mut wishes = Vec::new();
        clone.become_clone_of(other, &mut wishes);
        let names: Vec<ClientId> = other.names().collect();
        self.checks.shared.extend(names);
        self.grant(last, wishes);
        self.wake_client(last);
    }
}
