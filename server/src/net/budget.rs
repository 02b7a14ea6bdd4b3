//! The limit of the work for clients in one turn of an engine, after which the streams of other servers are checked
//! again.

use std::time::Duration;

use kv_protocol::ids::Time;

use crate::clock;

/// The time for which a turn serves clients, and the time for which it then sends to them.
const CLIENTS_TIME: Duration = Duration::from_millis(1);
/// The most bytes that one turn sends to clients. The kernel copies all of them before the send returns.
const MOST_SENT_IN_A_TURN: usize = 1 << 20;
/// Connections handled between two readings of the clock.
const STEPS_UNTIMED: u32 = 8;
/// The most connections at the servers' port without a hello that one turn serves.
pub(crate) const MOST_KNOCKING: usize = 64;

/// The work for clients that a turn may still do.
pub(crate) struct Budget {
    until: Time,
    bytes: usize,
    steps: u32,
}

impl Budget {
    /// Creates the full budget of a turn that begins at `now`.
    pub(crate) fn new(now: Time) -> Budget {
        Budget { until: now + CLIENTS_TIME, bytes: MOST_SENT_IN_A_TURN, steps: 0 }
    }

    /// Restores the full time and keeps the remaining bytes.
    pub(crate) fn renew_time(&mut self) {
        (self.until, self.steps) = (clock::now() + CLIENTS_TIME, 0);
    }

    /// Returns whether time and bytes are left; reads the clock.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more_at(clock::now())
    }

    /// Returns whether time and bytes are left at `now`, which was just read.
    pub(crate) fn has_more_at(&self, now: Time) -> bool {
        self.bytes > 0 && now < self.until
    }

    /// Returns whether budget for one short step is left; reads the clock only once in several steps.
    pub(crate) fn admits_step(&mut self) -> bool {
        self.steps = (self.steps + 1) % STEPS_UNTIMED;
        if self.steps == 0 { self.has_more() } else { self.bytes > 0 }
    }

    /// Deducts bytes that are sent to a client.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}
