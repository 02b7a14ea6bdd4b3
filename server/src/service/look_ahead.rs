//! Looking ahead: the table memory that the next requests of a connection need is asked for before the first
//! of them is served.
//!
//! ```text
//!   received bytes   [ GET a | GET b | GET c | ... ]
//!                        1. slots of a, b, c, ...   asked for
//!                        2. entries of a, b, c, ... asked for, as the slots come
//!                        3. a, b, c, ...            served, with their memory at hand
//! ```
//!
//! It is a hint. What is wrong with a request is found when it is served.

use kv_core::table::TableHash;
use kv_protocol::client_message::Request;
use kv_protocol::frame::{FrameRules, split_frame};

use super::Service;

/// Most requests whose memory is asked for at once: it has to stay in the nearest cache until it is used.
const MOST: usize = 32;

impl Service {
    /// Asks for the memory of the whole requests at the beginning of these bytes, up to a bound. How many
    /// frames that were, at least 1: after so many it is time to look ahead again.
    pub(crate) fn look_ahead(&self, received: &[u8], rules: &FrameRules) -> usize {
        let mut known = [(0, TableHash(0)); MOST];
        let (mut frames, mut count, mut rest) = (0, 0, received);
        while frames < MOST
            && let Ok(Some(frame)) = split_frame(rest, rules)
        {
            rest = &rest[frame.consumed..];
            frames += 1;
            // Alone it would wait for its memory here instead of there.
            if frames == 1 && rest.is_empty() {
                return 1;
            }
            if let Ok(request) = Request::read(frame.opcode, frame.body) {
                let (group, _) = self.identity.placement.locate(request.digest);
                if let Some(at) = self.place_of(group) {
                    let hash = self.hosted[at].replica.prefetch_slot(request.digest, request.key);
                    known[count] = (at, hash);
                    count += 1;
                }
            }
        }
        for (at, hash) in &known[..count] {
            self.hosted[*at].replica.prefetch_entry(*hash);
        }
        frames.max(1)
    }
}
