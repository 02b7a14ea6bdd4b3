//! One shard as the engine drives it: connections in, bytes in and out, and time.
//!
//! ```text
//!   engine                         Shard
//!   accepted a socket       ->     open_greeting
//!   got a socket handed over ->    adopt (with the bytes received so far)
//!   connected to a peer     ->     open_stream
//!   received bytes, an end  ->     on_bytes, on_end_of_input
//!   end of a wake-up        ->     finish_wake_up, then for every next_dirty: send unsent bytes,
//!                                  on_sent, check fate; then serve_readers, and the dirty ones again
//!   a tick                  ->     on_tick
//! ```
//!
//! After every operation on a connection, the engine checks its [`Fate`], which determines the next step.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, ShardId, Time};

use crate::crowd::Address;
use crate::descriptors::ConnectionBounds;
use crate::net::Machine;
use crate::net::connection::Connection;
use crate::net::listener::{Greeting, Port};
use crate::net::output::slot_of;
use crate::net::peer::Peer;
use crate::service::Service;

/// Bytes of long values that one wake-up sends to all readers together, one piece each in turn. The kernel copies this
/// many in about 50 µs, which is how long a short request waits behind them.
const READERS_BYTES: usize = 128 << 10;
/// The most bytes of one piece.
const READER_PIECE: usize = 64 << 10;
/// The minimum that a piece counts against [`READERS_BYTES`]: a send that fails takes time too.
const READER_COST: usize = 16 << 10;

/// The next step for a connection, which the engine carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Read from it.
    Read,
    /// Do not read from it until its output has drained.
    Wait,
    /// All output is sent: shut down the sending direction, then read and discard input until the other side closes.
    Shut,
    /// Hand the socket, with [`Shard::take_greeting`], to the executor of this shard.
    HandOver(ShardId),
    /// Close it.
    Close,
}

/// The connections and the replicas of one shard.
pub(crate) struct Shard {
    pub(crate) service: Service,
    bounds: ConnectionBounds,
    machines: Vec<Option<Machine>>,
    /// The address of each connection, by the same slots.
    addresses: Vec<Address>,
    /// Accepted connections that may not have completed their hello, oldest first, for each port.
    awaiting_hello: [VecDeque<ConnectionId>; 2],
}

impl Shard {
    /// Creates a shard without connections.
    pub(crate) fn new(service: Service, bounds: ConnectionBounds) -> Shard {
        Shard {
            service,
            bounds,
            machines: Vec::new(),
            addresses: Vec::new(),
            awaiting_hello: Default::default(),
        }
    }

    /// Registers a connection that was just accepted.
    pub(crate) fn open_greeting(&mut self, now: Time, port: Port) -> ConnectionId {
        let id = self.service.outputs.open(now);
        self.put(id, Machine::Greeting(Greeting::new(now, port)));
        self.bound_awaiting_hello(port, id);
        id
    }

    /// Adopts a connection that requested this shard, with the bytes received so far. [`Shard::set_address`] must be
    /// called before it is served.
    pub(crate) fn adopt(&mut self, now: Time, port: Port, received: &[u8]) -> ConnectionId {
        let id = self.service.outputs.open(now);
        self.put(id, machine_of(port, now, id));
        if port == Port::Servers {
            self.bound_awaiting_hello(port, id);
        }
        self.on_bytes(now, id, received);
        id
    }

    /// Adopts a connection that was accepted on this executor and requested this shard.
    pub(crate) fn adopt_greeting(&mut self, now: Time, id: ConnectionId) {
        if let Some((port, received)) = self.take_greeting(id) {
            self.put(id, machine_of(port, now, id));
            self.set_address(id, self.addresses[slot_of(id)]);
            self.on_bytes(now, id, &received);
        }
    }

    /// Takes the port and all received bytes of a connection that is to be handed over.
    pub(crate) fn take_greeting(&mut self, id: ConnectionId) -> Option<(Port, Vec<u8>)> {
        match self.machine(id)? {
            Machine::Greeting(greeting) => Some((greeting.port, greeting.take_received())),
            Machine::Client(_) | Machine::Peer(_) => None,
        }
    }

    /// Registers a connection that was dialled for a group's stream.
    pub(crate) fn open_stream(&mut self, now: Time, group: GroupId) -> ConnectionId {
        let id = self.service.outputs.open(now);
        self.service.on_dialled(now, group, id);
        let peer = Peer::dialled(now, id, group, &mut self.service);
        self.put(id, Machine::Peer(peer));
        id
    }

    /// Processes bytes received on a connection.
    pub(crate) fn on_bytes(&mut self, now: Time, id: ConnectionId, received: &[u8]) {
        self.service.outputs.set_now(now);
        if self.service.outputs.get(id).is_none_or(|output| output.is_closing()) {
            return;
        }
        if let Some(Some(machine)) = self.machines.get_mut(slot_of(id)) {
            machine.on_bytes(now, &mut self.service, received);
        }
    }

    /// Returns whether a connection has not yet named the shard that it requests.
    pub(crate) fn is_greeting(&mut self, id: ConnectionId) -> bool {
        matches!(self.machine(id), Some(Machine::Greeting(_)))
    }

    /// Returns whether a connection waits for at least `least` bytes of one frame.
    pub(crate) fn lacks(&mut self, id: ConnectionId, least: usize) -> bool {
        self.machine(id).is_some_and(|machine| machine.lacks(least))
    }

    /// Lends the input buffer of such a connection, with the number of missing bytes, so that the engine receives
    /// directly behind its contents. Until [`Shard::take_input_back`] the connection must be given no other bytes.
    pub(crate) fn lend_input(
        &mut self,
        id: ConnectionId,
        least: usize,
    ) -> Option<(Vec<u8>, usize)> {
        self.machine(id)?.lend_input(least)
    }

    /// Takes a lent input buffer back and processes the received bytes.
    pub(crate) fn take_input_back(&mut self, now: Time, id: ConnectionId, buffer: Vec<u8>) {
        self.service.outputs.set_now(now);
        if self.service.outputs.get(id).is_some()
            && let Some(Some(machine)) = self.machines.get_mut(slot_of(id))
        {
            machine.take_input_back(now, &mut self.service, buffer);
        }
    }

    /// Handles the end of input: the other side has shut down its sending direction.
    pub(crate) fn on_end_of_input(&mut self, now: Time, id: ConnectionId) {
        let answers_are_due =
            self.machine(id).is_some_and(|machine| machine.is_served_after_end_of_input());
        if let Some(output) = self.service.outputs.get(id) {
            if answers_are_due || output.is_closing() {
                output.close_after_answers(now);
            } else {
                output.kill();
            }
        }
    }

    /// Removes a connection's first `count` unsent bytes, and continues work that waited for room in the output.
    pub(crate) fn on_sent(&mut self, now: Time, id: ConnectionId, count: usize) {
        self.service.outputs.set_now(now);
        self.service.outputs.on_sent(now, id, count);
        self.go_on_if_drained(now, id);
    }

    /// Returns the bytes that a connection has to send.
    pub(crate) fn unsent(&mut self, id: ConnectionId) -> &[u8] {
        self.service.outputs.get(id).map_or(&[], |output| output.unsent())
    }

    /// Returns the next step for a connection.
    pub(crate) fn fate(&mut self, id: ConnectionId) -> Fate {
        let Some(output) = self.service.outputs.get(id) else { return Fate::Close };
        if output.is_over() {
            return Fate::Close;
        }
        if output.is_closing() {
            return match (output.is_half_closed(), output.has_said_last_words()) {
                (true, _) => Fate::Wait,
                (false, true) => Fate::Shut,
                (false, false) => Fate::Read,
            };
        }
        let Some(Some(machine)) = self.machines.get_mut(slot_of(id)) else { return Fate::Close };
        if let Machine::Greeting(greeting) = machine
            && let Some(shard) = greeting.wanted()
        {
            return Fate::HandOver(shard);
        }
        if machine.wants_input(&mut self.service) { Fate::Read } else { Fate::Wait }
    }

    /// Removes a connection that the engine closes.
    pub(crate) fn close(&mut self, now: Time, id: ConnectionId) {
        if self.service.outputs.get(id).is_none() {
            return;
        }
        let machine = self.machines.get_mut(slot_of(id)).and_then(Option::take);
        if let Some(mut machine) = machine {
            machine.on_closed(now, &mut self.service);
        }
        self.service.outputs.close(id);
        self.service.unpin_released();
    }

    /// Sends each reader of a long value a piece in turn, until the wake-up has sent enough. Returns whether readers
    /// are left. Then the engine must wake up again at once, and serve all other work first.
    pub(crate) fn serve_readers(&mut self, now: Time) -> bool {
        self.service.outputs.set_now(now);
        let mut left = READERS_BYTES;
        while left > 0
            && let Some(id) = self.service.outputs.next_reader()
        {
            let sent = self.service.send_piece(id, READER_PIECE.min(left));
            left = left.saturating_sub(sent.max(READER_COST));
            self.go_on_if_drained(now, id);
        }
        self.service.outputs.has_readers()
    }

    /// Grants memory to waiting connections, in order, as far as it is available.
    fn grant_memory(&mut self, now: Time) {
        while let Some(&id) = self.service.waiting_frames.front() {
            let is_there = self.service.outputs.get(id).is_some();
            if is_there
                && let Some(Some(machine)) = self.machines.get_mut(slot_of(id))
                && machine.still_waits(now, &mut self.service)
            {
                return;
            }
            self.service.waiting_frames.pop_front();
        }
    }

    fn go_on_if_drained(&mut self, now: Time, id: ConnectionId) {
        if self.service.outputs.has_room_again(id)
            && let Some(Some(machine)) = self.machines.get_mut(slot_of(id))
        {
            machine.on_output_drained(now, &mut self.service);
        }
    }

    /// Ends a wake-up: grants memory to waiting connections, and appends the replicas' messages to their streams in
    /// batches.
    pub(crate) fn finish_wake_up(&mut self, now: Time) {
        self.service.outputs.set_now(now);
        self.grant_memory(now);
        self.service.pump(now);
    }

    /// Performs the timed work of the replicas.
    pub(crate) fn on_tick(&mut self, now: Time) {
        self.service.outputs.set_now(now);
        self.service.on_time(now);
    }

    /// Closes the connections that missed a deadline, or that stall while others wait for memory. It must be called a
    /// few times a second.
    pub(crate) fn enforce_deadlines(&mut self, now: Time, ids: impl Iterator<Item = ConnectionId>) {
        let memory = Arc::clone(self.service.outputs.tally().memory());
        let (is_tight, is_awaited) = (memory.is_tight(), memory.is_awaited());
        for id in ids {
            let Some(output) = self.service.outputs.get(id) else { continue };
            if is_tight && output.is_stalled_under_pressure(now) {
                self.close_for_memory(now, id, "its answers were not taken and others need memory");
                continue;
            }
            if output.deadline().is_some_and(|due| due <= now) {
                let was_closing = output.is_closing() || output.is_half_closed();
                self.service.outputs.kill(id);
                if !was_closing {
                    let reason = "its answers were not taken";
                    self.service.count_refused(now, "connection", reason);
                }
                continue;
            }
            let Some(Some(machine)) = self.machines.get_mut(slot_of(id)) else { continue };
            if is_awaited && machine.is_stalled_under_pressure(now) {
                self.close_for_memory(now, id, "it sent nothing of a frame and others need memory");
                continue;
            }
            if machine.deadline(&mut self.service).is_some_and(|due| due <= now) {
                self.service.outputs.kill(id);
                let reason = "it did not complete its hello or a frame in time";
                self.service.count_refused(now, "connection", reason);
            }
        }
    }

    /// Sets the client address of a connection.
    pub(crate) fn set_address(&mut self, id: ConnectionId, from: Address) {
        self.addresses[slot_of(id)] = from;
        if let Some(Machine::Client(connection)) = &mut self.machines[slot_of(id)] {
            connection.set_address(from);
        }
    }

    /// Closes up to `most` idle client connections from this address, those that have been idle for longest, and
    /// returns how many it closed.
    pub(crate) fn close_idle(&mut self, from: Address, most: usize) -> usize {
        let Shard { service, machines, addresses, .. } = self;
        let mut idle: Vec<(Time, ConnectionId)> = machines
            .iter()
            .zip(addresses)
            .filter(|(_, address)| **address == from)
            .filter_map(|(machine, _)| match machine {
                Some(Machine::Client(connection)) => connection.idle(),
                _ => None,
            })
            .filter_map(|id| Some((service.outputs.get(id)?.idle_since()?, id)))
            .collect();
        if most < idle.len() {
            idle.select_nth_unstable(most);
            idle.truncate(most);
        }
        for (_, id) in &idle {
            service.outputs.kill(*id);
        }
        idle.len()
    }

    fn close_for_memory(&mut self, now: Time, id: ConnectionId, reason: &str) {
        self.service.outputs.kill(id);
        self.service.count_refused(now, "connection", reason);
    }

    /// Returns the streams to dial now.
    pub(crate) fn due_dials(&mut self, now: Time) -> Vec<(GroupId, SocketAddr)> {
        self.service.due_dials(now)
    }

    fn machine(&mut self, id: ConnectionId) -> Option<&mut Machine> {
        self.service.outputs.get(id)?;
        self.machines.get_mut(slot_of(id))?.as_mut()
    }

    fn put(&mut self, id: ConnectionId, machine: Machine) {
        let slot = slot_of(id);
        if slot >= self.machines.len() {
            self.machines.resize_with(slot + 1, || None);
            self.addresses.resize(slot + 1, Address::UNKNOWN);
        }
        if matches!(machine, Machine::Client(_)) {
            self.service.outputs.count_memory(id);
        }
        self.machines[slot] = Some(machine);
    }

    /// Bounds the number of connections without a completed hello: beyond the limit the oldest is closed.
    fn bound_awaiting_hello(&mut self, port: Port, newest: ConnectionId) {
        let queue = port as usize;
        let mut silent = std::mem::take(&mut self.awaiting_hello[queue]);
        silent.push_back(newest);
        let most = match port {
            Port::Clients => self.bounds.silent_clients,
            Port::Servers => self.bounds.silent_peers,
        };
        if silent.len() > most {
            silent.retain(|&id| self.machine(id).is_some_and(|machine| machine.is_stranger()));
        }
        if silent.len() > most
            && let Some(oldest) = silent.pop_front()
        {
            self.service.outputs.kill(oldest);
        }
        self.awaiting_hello[queue] = silent;
    }
}

fn machine_of(port: Port, now: Time, id: ConnectionId) -> Machine {
    match port {
        Port::Clients => Machine::Client(Connection::new(now, id)),
        Port::Servers => Machine::Peer(Peer::accepted(now, id)),
    }
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
