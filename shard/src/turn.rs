//! One turn of an engine: the order in which a wake-up serves its sockets, and the limits of the work for clients.
//!
//! ```text
//!   streams of other servers: everything received, and their output
//!   strangers (connections at the servers' port without a stream): a few
//!   clients: for a limited time; of each connection only a few requests that take long
//!   all output: for a limited time and a limited number of bytes to clients
//!   long values: a bounded part, a piece for each reader
//! ```
//!
//! So an ACK never waits for the requests of this server's clients. The PREPAREs of a wake-up are sent in batches, and
//! so are its ACKs. The streams are served again within a few milliseconds under any load of clients.

use std::time::Duration;

use kv_core::mutations::{self, Mutation};
use kv_core::replica::ConnectionId;
use kv_protocol::ids::Time;

use crate::{Shard, Transmit};

/// The time limit for serving clients in a turn, and then again for sending to them.
const CLIENTS_TIME: Duration = Duration::from_millis(1);
/// The number of bytes, without long values, after which a turn sends no more to clients. The kernel copies all of them
/// before the send returns.
const MOST_SENT: usize = 1 << 20;
/// The number of connections handled between two readings of the clock.
const STEPS_UNTIMED: u32 = 8;
/// The maximum number of pieces of work of one turn for strangers: connections at the servers' port without a
/// stream.
const MOST_STRANGERS: usize = 64;

/// The access of a turn to the sockets of a shard.
pub trait Engine {
    /// True if a send is complete when [`Engine::see_to`] returns. Then the send may have made room for more output of
    /// a stream.
    const SENDS_AT_ONCE: bool;

    /// Reads the shard's clock.
    fn now(&mut self) -> Time;

    /// Records which sockets have become ready since the last call, without waiting.
    fn look_again(&mut self, shard: &mut Shard);

    /// Serves everything that arrived on streams of other servers, and the completed or failed dials. Returns whether
    /// there was any such work.
    fn serve_streams(&mut self, shard: &mut Shard) -> bool;

    /// Returns the numbers of waiting pieces of work, for strangers and for clients.
    fn waiting(&mut self) -> Waiting;

    /// Serves the next piece of work of a stranger.
    fn serve_stranger(&mut self, shard: &mut Shard);

    /// Serves the next piece of work of a client. Returns a clock reading taken afterwards or at the receive;
    /// `None` if the engine took none.
    fn serve_client(&mut self, shard: &mut Shard) -> Option<Time>;

    /// Ends the clients' part of the turn.
    fn end_clients(&mut self, _shard: &mut Shard) {}

    /// Sends the bytes of a dirty connection, and carries out its [`Fate`](crate::Fate). Returns the number of
    /// bytes sent to a client.
    fn see_to(&mut self, shard: &mut Shard, now: Time, id: ConnectionId) -> usize;

    /// Passes all sends that were prepared so far to the kernel.
    fn submit(&mut self) {}

    /// Sends as many of these bytes as the socket has room for, without waiting; returns their number.
    fn send(&mut self, transmit: &Transmit<'_>) -> usize;
}

/// The number of pieces of work that wait for their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Work for strangers, and connections to accept.
    pub strangers: usize,
    /// Work of clients.
    pub clients: usize,
}

/// Runs one turn, which began at `now`, after [`Shard::begin_wake_up`]. `is_wanted` is true if output may be waiting.
/// After the turn some work may remain: waiting clients, postponed requests, dirty connections and readers.
pub fn run<E: Engine>(engine: &mut E, shard: &mut Shard, now: Time, is_wanted: bool) {
    if shard.has_stood() {
        engine.look_again(shard);
    }
    let is_late = mutations::is_open(Mutation::StreamsLast) && engine.waiting().clients > 0;
    let had_streams = !is_late && engine.serve_streams(shard);
    let mut budget = Budget::new(now);
    let waiting = engine.waiting();
    if (had_streams || is_wanted) && waiting != Waiting::default() {
        settle(engine, shard, &mut budget);
        engine.submit();
        budget.renew_time(engine.now());
    }
    for _ in 0..waiting.strangers.min(MOST_STRANGERS) {
        engine.serve_stranger(shard);
    }
    if waiting.strangers > 0 {
        budget.renew_time(engine.now());
    }
    for _ in 0..waiting.clients {
        if let Some(now) = engine.serve_client(shard)
            && !budget.has_more(now)
            && !mutations::is_open(Mutation::TurnUnbounded)
        {
            break;
        }
    }
    for _ in 0..shard.postponed() {
        shard.serve_postponed(engine.now());
        if !budget.has_more(engine.now()) {
            break;
        }
    }
    engine.end_clients(shard);
    let now = settle(engine, shard, &mut budget);
    if shard.has_readers() {
        // All short responses are sent before long values.
        engine.submit();
        while let Some(transmit) = shard.poll_transmit(now) {
            let sent = engine.send(&transmit);
            shard.handle_transmitted(now, sent);
        }
        settle(engine, shard, &mut budget);
    }
}

/// Ends a wake-up, or its part for streams: pumps the streams and handles the dirty ones. Then handles the other dirty
/// connections in order, as far as the budget allows. Restores the full time of the budget first.
///
/// The function reads the clock itself and returns the reading. The grace of an ACK would end too early if the
/// reading were older than the receipt of the acknowledged bytes.
fn settle<E: Engine>(engine: &mut E, shard: &mut Shard, budget: &mut Budget) -> Time {
    let now = engine.now();
    budget.renew_time(now);
    shard.finish_wake_up(now);
    let mut had_streams = false;
    while let Some(id) = shard.next_dirty_stream() {
        had_streams = true;
        engine.see_to(shard, now, id);
    }
    while budget.admits_step(|| engine.now())
        && let Some(id) = shard.next_dirty()
    {
        let sent = engine.see_to(shard, now, id);
        budget.spend(sent);
    }
    if had_streams && E::SENDS_AT_ONCE {
        // The sends may have made room for more output of a stream. It is appended now and sent in the next turn.
        shard.finish_wake_up(now);
    }
    now
}

/// The work for clients that a turn may still do.
struct Budget {
    until: Time,
    bytes: usize,
    steps: u32,
}

impl Budget {
    /// Creates the full budget of a turn that begins at `now`.
    fn new(now: Time) -> Budget {
        Budget { until: now + CLIENTS_TIME, bytes: MOST_SENT, steps: 0 }
    }

    /// Restores the full time and keeps the remaining bytes.
    fn renew_time(&mut self, now: Time) {
        (self.until, self.steps) = (now + CLIENTS_TIME, 0);
    }

    /// Returns whether time and bytes are left at `now`.
    fn has_more(&self, now: Time) -> bool {
        self.bytes > 0 && now < self.until
    }

    /// Returns whether the budget allows one more short step. Reads the clock only once in several steps.
    fn admits_step(&mut self, now: impl FnOnce() -> Time) -> bool {
        self.steps = (self.steps + 1) % STEPS_UNTIMED;
        if self.steps == 0 { self.has_more(now()) } else { self.bytes > 0 }
    }

    /// Deducts bytes that are sent to a client.
    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
#[path = "turn_tests.rs"]
mod tests;
