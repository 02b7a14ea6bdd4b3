//! The connections of one shard, and the functions with which the engine drives them (see the crate's
//! documentation).
//!
//! After every operation on a connection, the engine checks its [`Fate`], which determines the next step.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kv_core::mutations::{self, Mutation};
use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, ShardId, Time, WallTime};
use kv_redis::client::End;

use crate::address::Address;
use crate::connection::Connection;
use crate::connection_table::ConnectionTable;
use crate::dial::DialTarget;
use crate::handshake::{Handshake, HelloBounds, Port};
use crate::input::Input;
use crate::peer::Peer;
use crate::redis::connection::RedisConnection;
use crate::service::Service;

/// The maximum number of bytes that one wake-up sends to readers of long values, one piece each in turn. The kernel
/// copies this amount in about 50 µs, and a short request may wait that long.
const READERS_BYTES: usize = 128 << 10;
/// The maximum number of bytes that one transmit sends to a reader.
const READER_PIECE: usize = 64 << 10;
/// The interval between two calls above which the shard counts as not scheduled. It exceeds the regular interval
/// between two ticks, which is 100 ms.
const LONGEST_TICK: Duration = Duration::from_millis(150);
/// The maximum number of consecutive ticks that postpone their work because the shard was not scheduled.
const MOST_DEFERRED: u32 = 8;
/// The minimum cost of a piece, in bytes of [`READERS_BYTES`], because a send that fails takes time too.
const READER_COST: usize = 16 << 10;

/// The next step for a connection, which the engine carries out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Read from the connection.
    Read,
    /// Do not read from the connection for now: its output is full, it waits for memory, or its input has ended.
    Wait,
    /// All output is sent. Shut down the sending direction, then read and discard input until the other side closes.
    Shut,
    /// Hand the socket, with the bytes of [`Shard::take_handshake`], to the executor of this shard.
    HandOver(ShardId),
    /// Close the connection.
    Close,
}

/// Bytes to send to one connection immediately. They borrow the shard, so no entry of a table moves or is freed
/// before the send returns.
pub struct Transmit<'a> {
    /// The connection that receives the bytes.
    pub id: ConnectionId,
    /// The slices to send, in order.
    pub parts: Vec<IoSlice<'a>>,
}

/// The connections and the replicas of one shard.
pub struct Shard {
    /// The replicas, and the outputs of the connections.
    pub service: Service,
    bounds: HelloBounds,
    /// The receiving sides. The sending sides are in `service.outputs`.
    receivers: ConnectionTable<Receiver>,
    /// Accepted connections, oldest first, in one queue for each port. Some may have completed their hello meanwhile.
    awaiting_hello: [VecDeque<ConnectionId>; 3],
    /// The number of bytes of long values that this wake-up may still send.
    readers_left: usize,
    /// The reader of the transmit in progress, and the number of bytes offered to its socket.
    transmitting: Option<(ConnectionId, usize)>,
    /// The connections of Redis clients whose requests have ended, and that do not know it yet.
    answered: Vec<ConnectionId>,
    called_at: Time,
    /// True if the shard was not called for longer than [`LONGEST_TICK`] and has not yet processed the input that
    /// arrived meanwhile.
    has_stood: bool,
    /// The number of consecutive ticks that have postponed their work because of `has_stood`.
    deferred: u32,
    /// The time of the last receive, for a debug assertion.
    received_at: Time,
}

/// The receiving side of a connection.
struct Receiver {
    input: Input,
    address: Address,
}

impl Shard {
    /// Creates a shard without connections.
    pub fn new(service: Service, bounds: HelloBounds) -> Shard {
        Shard {
            service,
            bounds,
            receivers: ConnectionTable::default(),
            awaiting_hello: Default::default(),
            readers_left: READERS_BYTES,
            transmitting: None,
            answered: Vec::new(),
            called_at: Time::default(),
            has_stood: false,
            deferred: 0,
            received_at: Time::default(),
        }
    }

    /// Registers a connection that was just accepted. If too many connections of the port are without a hello, closes
    /// the oldest of them.
    pub fn open_accepted(&mut self, now: Time, port: Port) -> ConnectionId {
        let id = self.service.outputs.open(now);
        let next = match port {
            Port::Servers => self.service.identity.shard,
            Port::Clients | Port::Redis => self.service.next_for_redis(),
        };
        self.put(id, Input::Handshake(Handshake::new(now, port, next)));
        self.bound_awaiting_hello(port, id);
        id
    }

    /// Adopts a connection that requested this shard, and processes `received`. Requests in `received` count for
    /// [`Address::UNKNOWN`]. To count them for the client's address, pass no bytes here; call [`Shard::set_address`],
    /// then [`Shard::handle_bytes`].
    pub fn adopt(&mut self, now: Time, port: Port, received: &[u8]) -> ConnectionId {
        let id = self.service.outputs.open(now);
        self.put(id, input_of(port, now, id));
        if port == Port::Servers {
            self.bound_awaiting_hello(port, id);
        }
        self.handle_bytes(now, id, received);
        id
    }

    /// Adopts a connection that was accepted on this executor and requested this shard.
    pub fn adopt_accepted(&mut self, now: Time, id: ConnectionId) {
        if let Some((port, received)) = self.take_handshake(id) {
            let address = self.receiver(id).map_or(Address::UNKNOWN, |receiver| receiver.address);
            let ends = match self.input(id) {
                Some(Input::Handshake(handshake)) => handshake.ends.take(),
                _ => None,
            };
            self.put(id, input_of(port, now, id));
            self.set_address(id, address);
            if let Some(ends) = ends {
                self.set_ends(now, id, *ends);
            }
            self.handle_bytes(now, id, &received);
        }
    }

    /// Takes the port and all received bytes of a connection that is to be handed over; `None` if its handshake is
    /// over.
    pub fn take_handshake(&mut self, id: ConnectionId) -> Option<(Port, Vec<u8>)> {
        match self.input(id)? {
            Input::Handshake(handshake) => Some((handshake.port, handshake.take_received())),
            Input::Client(_) | Input::Redis(_) | Input::Peer(_) | Input::Link(_) => None,
        }
    }

    /// Registers a connection that was dialled for this target.
    pub fn open_dialled(&mut self, now: Time, target: impl Into<DialTarget>) -> ConnectionId {
        let id = self.service.outputs.open(now);
        let group = match target.into() {
            DialTarget::Stream(group) => group,
            DialTarget::Link(link) => {
                let input = Input::Link(self.service.handle_link_dialled(now, link, id));
                self.put(id, input);
                return id;
            }
        };
        self.service.handle_dialled(now, group, id);
        let peer = Peer::dialled(now, id, group, &mut self.service);
        self.put(id, Input::Peer(peer));
        id
    }

    /// Begins a wake-up. `now` must be read after the bytes of the wake-up were received.
    pub fn begin_wake_up(&mut self, now: Time) {
        self.service.outputs.set_now(now);
        self.note_call(now);
        self.service.apply_new_limit();
        self.service.begin_gateway_turn();
    }

    /// Processes bytes received on a connection. Bytes for a closing or closed connection are discarded.
    pub fn handle_bytes(&mut self, now: Time, id: ConnectionId, received: &[u8]) {
        self.note_received(now);
        if self.service.outputs.get(id).is_none_or(|output| output.is_closing()) {
            return;
        }
        if let Some(receiver) = self.receivers.get_mut(id) {
            receiver.input.handle_bytes(now, &mut self.service, received);
        }
    }

    /// Returns whether a connection has not yet named the shard that it requests.
    pub fn is_in_handshake(&mut self, id: ConnectionId) -> bool {
        matches!(self.input(id), Some(Input::Handshake(_)))
    }

    /// Returns whether a connection waits for at least `least` bytes of one frame.
    pub fn lacks(&mut self, id: ConnectionId, least: usize) -> bool {
        self.input(id).is_some_and(|input| input.lacks(least))
    }

    /// Lends the input buffer of a connection that lacks at least `least` bytes of one frame ([`Shard::lacks`]), with
    /// the number of missing bytes; `None` for any other connection. The engine appends received bytes directly to it.
    /// The engine must not pass other bytes of the connection before [`Shard::take_input_back`].
    pub fn lend_input(&mut self, id: ConnectionId, least: usize) -> Option<(Vec<u8>, usize)> {
        self.input(id)?.lend_input(least)
    }

    /// Takes a lent input buffer back and processes the received bytes.
    pub fn take_input_back(&mut self, now: Time, id: ConnectionId, buffer: Vec<u8>) {
        self.note_received(now);
        if self.service.outputs.get(id).is_some()
            && let Some(receiver) = self.receivers.get_mut(id)
        {
            receiver.input.take_input_back(now, &mut self.service, buffer);
        }
    }

    /// Handles the end of input, after the other side has shut down its sending direction.
    pub fn handle_end_of_input(&mut self, now: Time, id: ConnectionId) {
        if mutations::is_open(Mutation::HalfClosedStreamKept) && self.is_stream(id) {
            return;
        }
        let responses_are_due = !mutations::is_open(Mutation::HalfClosedClientDropped)
            && self.input(id).is_some_and(|input| input.is_served_after_end_of_input());
        if let Some(output) = self.service.outputs.get(id) {
            if responses_are_due || output.is_closing() {
                output.close_after_responses(now);
            } else {
                output.kill();
            }
        }
    }

    /// Records that a connection's first `count` unsent bytes were sent, and continues work that waited for room in
    /// the output.
    pub fn handle_sent(&mut self, now: Time, id: ConnectionId, count: usize) {
        self.service.outputs.set_now(now);
        self.service.outputs.handle_sent(now, id, count);
        self.go_on_if_drained(now, id);
    }

    /// Returns the bytes that a connection has to send.
    pub fn unsent(&mut self, id: ConnectionId) -> &[u8] {
        self.service.outputs.get(id).map_or(&[], |output| output.unsent())
    }

    /// Takes all bytes that a connection has to send. Returns the buffer and the offset of the first byte. The bytes
    /// count as unsent until [`Shard::handle_sent`]. Returns `None` if there are none, or if the engine still has
    /// earlier ones.
    pub fn take_unsent(&mut self, id: ConnectionId) -> Option<(Vec<u8>, usize)> {
        self.service.outputs.get(id)?.take()
    }

    /// Takes back the buffer of [`Shard::take_unsent`] after the send.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        self.service.outputs.recycle(buffer);
    }

    /// Schedules a connection for the engine's check at the end of the wake-up.
    pub fn mark_dirty(&mut self, id: ConnectionId) {
        self.service.outputs.mark_dirty(id);
    }

    /// Takes one dirty connection: a stream if one is dirty, else the connection that has been dirty for longest.
    pub fn next_dirty(&mut self) -> Option<ConnectionId> {
        self.service.outputs.next_dirty()
    }

    /// Takes one dirty stream.
    pub fn next_dirty_stream(&mut self) -> Option<ConnectionId> {
        self.service.outputs.next_dirty_stream()
    }

    /// Returns the number of connections with requests that [`Shard::serve_postponed`] serves.
    pub fn postponed(&self) -> usize {
        self.service.outputs.postponed()
    }

    /// Continues with the requests of one connection that were postponed because those before them took long.
    pub fn serve_postponed(&mut self, now: Time) {
        self.service.outputs.set_now(now);
        if let Some(id) = self.service.outputs.next_postponed()
            && let Some(receiver) = self.receivers.get_mut(id)
        {
            receiver.input.handle_output_drained(now, &mut self.service);
        }
    }

    /// Returns whether a connection is dirty.
    pub fn has_dirty(&self) -> bool {
        self.service.outputs.has_dirty()
    }

    /// Returns whether a connection carries, or carried, the stream of a group.
    pub fn is_stream(&mut self, id: ConnectionId) -> bool {
        self.service.outputs.is_stream(id)
    }

    /// Marks a connection for closing, because its socket has failed.
    pub fn handle_failure(&mut self, id: ConnectionId) {
        self.service.outputs.kill(id);
    }

    /// Returns whether a connection is to be closed now.
    pub fn is_over(&mut self, id: ConnectionId) -> bool {
        self.service.outputs.get(id).is_none_or(|output| output.is_over())
    }

    /// Returns the next step for a connection.
    pub fn fate(&mut self, id: ConnectionId) -> Fate {
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
        let Some(receiver) = self.receivers.get_mut(id) else { return Fate::Close };
        if let Input::Handshake(handshake) = &receiver.input
            && let Some(shard) = handshake.wanted()
        {
            return Fate::HandOver(shard);
        }
        if receiver.input.wants_input(&mut self.service) { Fate::Read } else { Fate::Wait }
    }

    /// Removes a connection that the engine closes.
    pub fn close(&mut self, now: Time, id: ConnectionId) {
        if self.service.outputs.get(id).is_none() {
            return;
        }
        let receiver = self.receivers.remove(id);
        if let Some(mut receiver) = receiver {
            receiver.input.handle_closed(now, &mut self.service);
        }
        self.service.outputs.close(id);
        self.service.unpin_released();
    }

    /// Returns the next bytes to send to a reader of long values, one piece for each reader in turn. After the send,
    /// the engine must call [`Shard::handle_transmitted`]. Returns `None` when there is no reader or the wake-up has
    /// sent enough. If [`Shard::has_readers`] is true then, the engine must wake up again at once and serve all other
    /// work first.
    pub fn poll_transmit(&mut self, now: Time) -> Option<Transmit<'_>> {
        self.service.outputs.set_now(now);
        let most = READER_PIECE.min(self.readers_left);
        let next = if most > 0 { self.next_reader() } else { None };
        let Some(id) = next else {
            self.readers_left = READERS_BYTES;
            return None;
        };
        let parts = self.service.parts_for_reader(id, most)?;
        self.transmitting = Some((id, parts.iter().map(|part| part.len()).sum()));
        Some(Transmit { id, parts })
    }

    /// Takes the next reader from the queue. Closes readers of values whose table was cleared.
    fn next_reader(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.service.outputs.next_reader() {
            if !self.service.close_if_lost(id) {
                return Some(id);
            }
        }
        None
    }

    /// Records that the socket has accepted `sent` bytes of the last transmit. `sent` is 0 if the send failed; the next
    /// ordinary send returns the error again.
    pub fn handle_transmitted(&mut self, now: Time, sent: usize) {
        let Some((id, offered)) = self.transmitting.take() else { return };
        let sent = sent.min(offered);
        self.service.handle_transmitted(id, offered, sent);
        self.readers_left = self.readers_left.saturating_sub(sent.max(READER_COST));
        self.go_on_if_drained(now, id);
    }

    /// Returns whether a reader of long values waits for its turn.
    pub fn has_readers(&self) -> bool {
        self.service.outputs.has_readers()
    }

    /// Delivers the answers to the requests of Redis clients, whose connections may then begin further ones.
    fn deliver_answers(&mut self, now: Time) {
        loop {
            while let Some(delivery) = self.service.next_delivery(now) {
                let id = delivery.owner.connection;
                if let Some(receiver) = self.receivers.get_mut(id)
                    && let Input::Redis(connection) = &mut receiver.input
                    && connection.handle_delivery(now, &mut self.service, delivery)
                {
                    self.answered.push(id);
                }
            }
            if self.answered.is_empty() {
                return;
            }
            let mut answered = std::mem::take(&mut self.answered);
            for id in answered.drain(..) {
                if let Some(receiver) = self.receivers.get_mut(id) {
                    receiver.input.handle_output_drained(now, &mut self.service);
                }
            }
            self.answered = answered;
        }
    }

    /// Grants available memory to waiting connections, in order.
    fn grant_memory(&mut self, now: Time) {
        while let Some(&id) = self.service.waiting_frames.front() {
            let is_there = self.service.outputs.get(id).is_some();
            if is_there
                && let Some(receiver) = self.receivers.get_mut(id)
                && receiver.input.still_waits(now, &mut self.service)
            {
                return;
            }
            self.service.waiting_frames.pop_front();
        }
    }

    fn go_on_if_drained(&mut self, now: Time, id: ConnectionId) {
        if self.service.outputs.has_room_again(id)
            && let Some(receiver) = self.receivers.get_mut(id)
        {
            receiver.input.handle_output_drained(now, &mut self.service);
        }
    }

    /// Ends a wake-up: grants memory to waiting connections, and appends the replicas' messages to their streams in
    /// batches.
    ///
    /// `now` must be read after the bytes of the wake-up were received, because an ACK begins a grace.
    pub fn finish_wake_up(&mut self, now: Time) {
        debug_assert!(now >= self.received_at, "a clock reading from before a receive");
        self.service.outputs.set_now(now);
        self.has_stood = false;
        self.grant_memory(now);
        self.deliver_answers(now);
        self.service.pump(now);
    }

    /// Performs the timed work of the replicas. The engine must call it at least every 100 ms. After more than 150 ms
    /// without a call, the work is postponed until the input that arrived meanwhile is processed. Otherwise the shard
    /// would treat its own pause as silence of other servers.
    ///
    /// `wall` is a reading of the wall clock, taken at `now`.
    pub fn handle_tick(&mut self, now: Time, wall: WallTime) {
        self.service.outputs.set_now(now);
        self.note_call(now);
        self.service.note_wall(now, wall);
        self.service.look(now);
        // The number of postponed ticks is limited, so that timers run even if every turn takes long.
        let waits = self.has_stood && self.deferred < MOST_DEFERRED;
        self.deferred = if waits { self.deferred + 1 } else { 0 };
        if !waits || mutations::is_open(Mutation::JudgedBeforeRead) {
            self.service.handle_timeout(now);
        }
    }

    /// Returns whether the shard was not called for too long and has not yet processed the input that arrived
    /// meanwhile.
    pub fn has_stood(&self) -> bool {
        self.has_stood
    }

    fn note_received(&mut self, now: Time) {
        self.service.outputs.set_now(now);
        if cfg!(debug_assertions) {
            self.received_at = now;
        }
    }

    fn note_call(&mut self, now: Time) {
        self.has_stood |= now.since(self.called_at) > LONGEST_TICK;
        self.called_at = now;
    }

    /// Closes those of `ids` that have exceeded a deadline, or that stall while connection memory is short. Closes none
    /// while the work of [`Shard::handle_tick`] is postponed. Releases the buffers of those that are idle. The engine must call this function a few times a second.
    pub fn enforce_deadlines(&mut self, now: Time, ids: impl Iterator<Item = ConnectionId>) {
        if self.deferred > 0 {
            return;
        }
        let memory = Arc::clone(self.service.outputs.tally().memory());
        let (is_tight, is_awaited) = (memory.is_tight(), memory.is_awaited());
        for id in ids {
            let Some(output) = self.service.outputs.get(id) else { continue };
            if is_tight && output.is_stalled_under_pressure(now) {
                self.close_for_memory(now, id, "it received no responses while memory was short");
                continue;
            }
            if output.deadline().is_some_and(|due| due <= now) {
                let was_closing = output.is_closing() || output.is_half_closed();
                self.service.outputs.kill(id);
                if !was_closing {
                    let reason = "it received no responses before the deadline";
                    self.service.count_refused(now, "connection", reason);
                }
                continue;
            }
            let Some(Receiver { input, .. }) = self.receivers.get_mut(id) else {
                continue;
            };
            if is_awaited && input.is_stalled_under_pressure(now) {
                self.close_for_memory(
                    now,
                    id,
                    "its long request stalled while others waited for memory",
                );
                continue;
            }
            if let Input::Redis(connection) = input {
                connection.trim(now, &mut self.service);
            }
            if input.deadline(&mut self.service).is_some_and(|due| due <= now) {
                self.service.outputs.kill(id);
                let reason = "it did not complete its hello or a frame before the deadline";
                self.service.count_refused(now, "connection", reason);
            }
        }
    }

    /// Sets the origin of a connection, for the limits on each origin.
    pub fn set_address(&mut self, id: ConnectionId, from: Address) {
        if let Some(receiver) = self.receiver(id) {
            receiver.address = from;
            if let Input::Client(connection) = &mut receiver.input {
                connection.set_address(from);
            }
        }
    }

    /// Returns whether the client of a connection may ask for the addresses of its ends.
    pub fn shows_ends(&mut self, id: ConnectionId) -> bool {
        match self.input(id) {
            Some(Input::Handshake(handshake)) => handshake.port == Port::Redis,
            Some(Input::Redis(_)) => true,
            Some(Input::Client(_) | Input::Peer(_) | Input::Link(_)) | None => false,
        }
    }

    /// Sets the addresses of both ends of a connection, the peer's first.
    pub fn set_ends(&mut self, now: Time, id: ConnectionId, ends: (Option<End>, Option<End>)) {
        let connected = self.service.wall(now);
        match self.input(id) {
            Some(Input::Handshake(handshake)) => handshake.ends = Some(Box::new(ends)),
            Some(Input::Redis(connection)) => connection.set_ends(ends, connected),
            Some(Input::Client(_) | Input::Peer(_) | Input::Link(_)) | None => {}
        }
    }

    /// Closes up to `most` client connections from this address, beginning with those that have been idle for
    /// longest. Returns the number of connections that it closed.
    pub fn close_idle(&mut self, from: Address, most: usize) -> usize {
        let Shard { service, receivers, .. } = self;
        let mut idle: Vec<(Time, ConnectionId)> = receivers
            .values()
            .filter(|receiver| receiver.address == from)
            .filter_map(|receiver| match &receiver.input {
                Input::Client(connection) => connection.idle(),
                Input::Redis(connection) => connection.idle(),
                Input::Handshake(_) | Input::Peer(_) | Input::Link(_) => None,
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

    /// Returns the connections to dial now. The engine reports each result with [`Shard::open_dialled`] or
    /// [`Shard::handle_dial_failed`].
    pub fn due_dials(&mut self, now: Time) -> Vec<(DialTarget, SocketAddr)> {
        let streams = self.service.due_dials(now).into_iter();
        let mut due: Vec<(DialTarget, SocketAddr)> =
            streams.map(|(group, address)| (group.into(), address)).collect();
        self.service.add_due_links(now, &mut due);
        due
    }

    /// Records that a connection could not be dialled, and schedules a retry.
    pub fn handle_dial_failed(&mut self, now: Time, target: impl Into<DialTarget>, error: &str) {
        match target.into() {
            DialTarget::Stream(group) => self.service.handle_dial_failed(now, group, error),
            DialTarget::Link(link) => self.service.handle_link_failed(now, link),
        }
    }

    /// Returns everything about a group on which the behaviour of this shard depends, as text. All output must be sent
    /// and no frame may be incomplete. The text omits times and log limits of dials, and connections other than the
    /// group's stream.
    pub fn describe(&self, group: GroupId) -> String {
        let receiver = self.service.stream(group).and_then(|id| self.receivers.get(id));
        let stage = match receiver {
            Some(Receiver { input: Input::Peer(peer), .. }) => peer.describe(),
            _ => String::new(),
        };
        let (called_at, deferred) = (self.called_at, self.deferred);
        format!("{stage} {called_at:?} {deferred} {}", self.service.describe(group))
    }

    /// Returns the memory that the commands of a Redis connection hold, in bytes.
    #[cfg(test)]
    pub(crate) fn redis_bytes(&mut self, id: ConnectionId) -> Option<usize> {
        match self.input(id)? {
            Input::Redis(connection) => Some(connection.held_bytes()),
            _ => None,
        }
    }

    fn input(&mut self, id: ConnectionId) -> Option<&mut Input> {
        self.receiver(id).map(|receiver| &mut receiver.input)
    }

    fn receiver(&mut self, id: ConnectionId) -> Option<&mut Receiver> {
        self.service.outputs.get(id)?;
        self.receivers.get_mut(id)
    }

    fn put(&mut self, id: ConnectionId, input: Input) {
        if matches!(input, Input::Client(_) | Input::Redis(_)) {
            self.service.outputs.count_memory(id);
        }
        self.receivers.insert(id, Receiver { input, address: Address::UNKNOWN });
    }

    /// Adds `newest` to the connections of this port without a completed hello. If there are too many of them, closes
    /// the oldest.
    fn bound_awaiting_hello(&mut self, port: Port, newest: ConnectionId) {
        let queue = port as usize;
        let mut silent = std::mem::take(&mut self.awaiting_hello[queue]);
        silent.push_back(newest);
        let most = match port {
            Port::Clients | Port::Redis => self.bounds.clients,
            Port::Servers => self.bounds.servers,
        };
        if silent.len() > most {
            silent.retain(|&id| self.input(id).is_some_and(|input| input.is_stranger()));
        }
        if silent.len() > most
            && let Some(oldest) = silent.pop_front()
        {
            self.service.outputs.kill(oldest);
        }
        self.awaiting_hello[queue] = silent;
    }
}

/// Creates the input of a connection whose handshake is over.
fn input_of(port: Port, now: Time, id: ConnectionId) -> Input {
    match port {
        Port::Redis => Input::Redis(Box::new(RedisConnection::new(id))),
        Port::Clients => Input::Client(Connection::new(now, id)),
        Port::Servers => Input::Peer(Peer::accepted(now, id)),
    }
}

#[cfg(test)]
#[path = "shard_tests.rs"]
mod tests;
