//! Responses with long values, sent directly from the table to the socket.
//!
//! ```text
//!   GET a -> pin a, join the queue     the queue of readers: [ c1 | c2 | c3 | ... ]
//!                                                             |
//!   the end of a wake-up: one piece of each in turn <---------+   until the wake-up has sent enough;
//!   the reader joins the queue again behind the others            the rest waits for the next one
//! ```
//!
//! Values are sent from the table's memory, so a response of any length takes no further memory, and many readers of
//! one value share it. The value is that of the time of the lease check: a pinned entry stays unchanged while its key
//! is overwritten. The table is borrowed until the send returns, so no entry moves or is freed during the send.

use kv_core::replica::ConnectionId;

use super::{Hosted, Service};
use crate::net::output::PinnedValue;

impl Service {
    /// Sends the next piece, of at most `most` bytes, to a reader, and returns how many bytes were sent.
    pub(crate) fn send_piece(&mut self, id: ConnectionId, most: usize) -> usize {
        let Service { hosted, outputs, .. } = self;
        let hosted: &[Hosted] = hosted;
        let sent = outputs.send_piece(id, most, |value: &PinnedValue| {
            let hosted = hosted.iter().find(|hosted| hosted.replica.group() == value.group)?;
            hosted.replica.pinned_value(&value.pin)?.get(value.range.clone())
        });
        self.unpin_released();
        sent
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

    /// Applies the current memory limit to the tables, and reserves the part of it that the connections of the process
    /// hold.
    pub(super) fn leave_memory_to_connections(&mut self) {
        let memory = self.outputs.tally().memory();
        let (limit, part) = (memory.table_limit(), memory.held() / memory.tables());
        for hosted in &mut self.hosted {
            hosted.replica.set_memory_limit(limit);
            hosted.replica.lend_memory(part);
        }
    }
}
