//! Client ids for sessions that cannot continue under the old one.

use kv_protocol::ids::ClientId;

/// A source of client ids for sessions that cannot continue under the old one.
#[derive(Debug, Default)]
pub(crate) struct FreshIds {
    given: u128,
}

impl FreshIds {
    /// Returns an id that was never used. Each id is random, because a counter would give the same ids in a clone of
    /// this process. If the system provides no random number, the id is `client` plus a counter.
    pub(crate) fn next(&mut self, client: ClientId) -> ClientId {
        self.given += 1;
        let mut drawn = [0; 16];
        match getrandom::fill(&mut drawn) {
            Ok(()) => ClientId(u128::from_le_bytes(drawn)),
            Err(_) => ClientId(client.0.wrapping_add(self.given)),
        }
    }
}
