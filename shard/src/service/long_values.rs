//! Responses with long values, sent directly from the table to the socket.
//!
//! ```text
//!   GET a -> pin a, join the queue     the queue of readers: [ c1 | c2 | c3 | ... ]
//!                                                             |
//!   the end of a wake-up: one piece of each in turn <---------+   until the wake-up has sent enough;
//!   the reader joins the queue again behind the others            the rest waits for the next one
//! ```
//!
//! Values are sent from the table's memory. So a response of any length takes no additional memory, and all readers of
//! one value share its memory. The response contains the value at the time of the lease check, because a pinned entry
//! does not change when its key is overwritten. A transmit borrows the shard, so no entry moves or is freed before the
//! send returns.

use std::io::IoSlice;

#[cfg(feature = "mutations")]
use kv_core::mutations::{self, Mutation};
use kv_core::replica::ConnectionId;
#[cfg(feature = "mutations")]
use kv_protocol::placement::Digest;

use super::{Hosted, Service};
use crate::event::{Event, EventKind};
use crate::output::PinnedValue;

impl Service {
    /// Closes a reader if a replica has cleared the table with one of the reader's values. Returns whether it was
    /// closed.
    pub(crate) fn close_if_lost(&mut self, id: ConnectionId) -> bool {
        let mut pinned = self.outputs.pinned(id);
        let Some(lost) = pinned.find(|value| value_in(&self.hosted, value).is_none()) else {
            return false;
        };
        let kind = EventKind::ValueLost { group: lost.group, connection: id };
        drop(pinned);
        self.events.push(Event { kind, to_log: None });
        self.outputs.kill(id);
        true
    }

    /// Returns the next bytes for a reader, at most `most`; `None` if it is closed, or if a replica has cleared its
    /// table.
    pub(crate) fn parts_for_reader(
        &self,
        id: ConnectionId,
        most: usize,
    ) -> Option<Vec<IoSlice<'_>>> {
        let Service { hosted, outputs, .. } = self;
        outputs.parts(id, most, |value| value_in(hosted, value))
    }

    /// Records that the socket of a reader has accepted `sent` of `offered` bytes.
    pub(crate) fn handle_transmitted(&mut self, id: ConnectionId, offered: usize, sent: usize) {
        let Service { hosted, outputs, .. } = self;
        let hosted: &[Hosted] = hosted;
        outputs.handle_transmitted(id, offered, sent, |value| value_in(hosted, value));
        self.unpin_released();
    }

    /// Releases the pins of completed or cancelled responses in their tables.
    pub(crate) fn unpin_released(&mut self) {
        if !self.outputs.has_released() {
            return;
        }
        for PinnedValue { group, pin, .. } in self.outputs.take_released() {
            if let Some(hosted) = self.hosted(group) {
                hosted.replica.unpin(pin);
            }
        }
    }

    /// Applies the memory limit and the policy of eviction to the tables if they have changed.
    pub(crate) fn apply_new_limit(&mut self) {
        let memory = self.outputs.tally().memory();
        let (limit, eviction) = (memory.table_limit(), memory.eviction());
        if limit != self.table_limit || eviction != self.eviction {
            self.leave_memory_to_connections();
        }
    }

    /// Applies the current memory limit to the tables, less each table's share of the memory that the connections of
    /// the process hold.
    pub(super) fn leave_memory_to_connections(&mut self) {
        let memory = self.outputs.tally().memory();
        let (limit, part) = (memory.table_limit(), memory.held() / memory.tables());
        self.table_limit = limit;
        self.eviction = memory.eviction();
        for hosted in &mut self.hosted {
            hosted.replica.set_memory_limit(limit);
            hosted.replica.lend_memory(part);
            hosted.replica.set_eviction(self.eviction);
        }
    }
}

/// Returns the bytes of a pinned value in the table; `None` if the replica has cleared its table.
fn value_in<'t>(hosted: &'t [Hosted], value: &PinnedValue) -> Option<&'t [u8]> {
    let hosted = hosted.iter().find(|hosted| hosted.replica.group() == value.group)?;
    #[cfg(feature = "mutations")]
    if mutations::is_open(Mutation::SentAfterWait) {
        let digest = Digest::of(&value.key);
        return hosted.replica.entry(digest, &value.key)?.value.get(value.range.clone());
    }
    hosted.replica.pinned_value(&value.pin)?.get(value.range.clone())
}
