//! What one turn of an engine may do for clients before the streams of other servers are looked at again.

use std::time::Duration;

use kv_protocol::ids::Time;

use crate::clock;

/// How long a turn serves clients, and how long it then sends to them.
const CLIENTS_TIME: Duration = Duration::from_millis(1);
/// Most bytes whose sending to clients one turn asks for. The kernel copies them all before it returns.
const MOST_SENT_IN_A_TURN: usize = 1 << 20;
/// Connections that are seen to between two looks at the clock.
const STEPS_UNTIMED: u32 = 8;
/// Most connections of the servers' port without a hello that one turn serves.
pub(crate) const MOST_KNOCKING: usize = 64;

/// What a turn may still do for clients.
pub(crate) struct Budget {
    until: Time,
    bytes: usize,
    steps: u32,
}

impl Budget {
    /// All of it, from now on.
    pub(crate) fn new(now: Time) -> Budget {
        Budget { until: now + CLIENTS_TIME, bytes: MOST_SENT_IN_A_TURN, steps: 0 }
    }

    /// Gives the same bytes, and all the time again.
    pub(crate) fn renew_time(&mut self) {
        (self.until, self.steps) = (clock::now() + CLIENTS_TIME, 0);
    }

    /// Whether there is time and room for more.
    pub(crate) fn has_more(&self) -> bool {
        self.has_more_at(clock::now())
    }

    /// The same at a time that was just read.
    pub(crate) fn has_more_at(&self, now: Time) -> bool {
        self.bytes > 0 && now < self.until
    }

    /// The same for a short step: the clock is not read for each.
    pub(crate) fn admits_step(&mut self) -> bool {
        self.steps = (self.steps + 1) % STEPS_UNTIMED;
        if self.steps == 0 { self.has_more() } else { self.bytes > 0 }
    }

    /// Counts bytes that are sent to a client.
    pub(crate) fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}
