//! Long values, straight from the table to the socket.
//!
//! ```text
//!   GET a -> pin a, join the line      the line of readers: [ c1 | c2 | c3 | ... ]
//!                                                             |
//!   the end of a wake-up: one piece of each in turn <---------+   until the wake-up has sent enough;
//!   the reader joins the line again behind the others             the rest waits for the next one
//! ```
//!
//! Values are sent from where they lie, so a response takes no memory however long it is, and many readers
//! of one value share it. The value is the one at the time of the lease check: a pinned entry stays as it
//! is while its key is written. The table is borrowed until the send has returned, so nothing moves or goes
//! meanwhile.

use kv_core::replica::ConnectionId;

use super::{Hosted, Service};
use crate::net::output::PinnedValue;

impl Service {
    /// Sends the next piece to a reader, at most so many bytes; how many it took.
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

    /// Gives pins that ended back to their tables.
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

    /// Has the tables keep to the memory limit of this moment, and leave as much of it as the connections of the
    /// process hold.
    pub(super) fn leave_memory_to_connections(&mut self) {
        let memory = self.outputs.tally().memory();
        let (limit, part) = (memory.table_limit(), memory.held() / memory.tables());
        for hosted in &mut self.hosted {
            hosted.replica.set_memory_limit(limit);
            hosted.replica.lend_memory(part);
        }
    }
}
