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

use kv_core::table::{LOOK_AHEAD, TableHash};
use kv_protocol::client_message::Request;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::GroupId;
use kv_protocol::peer_message::{BatchReader, PeerMessage};

use super::Service;

impl Service {
    /// Looks at the whole requests at the beginning of these bytes. How many frames that were, at least 1:
    /// after so many it is time to look ahead again.
    pub(crate) fn look_ahead(&self, received: &[u8], rules: &FrameRules) -> usize {
        let (mut hashes, mut known) = ([TableHash(0); LOOK_AHEAD], 0);
        let (mut replica, mut frames, mut rest) = (None, 0, received);
        while frames < LOOK_AHEAD
            && let Ok(Some(frame)) = split_frame(rest, rules)
        {
            rest = &rest[frame.consumed..];
            frames += 1;
            // Alone it would wait for its memory here instead of there.
            if frames == 1 && rest.is_empty() {
                return 1;
            }
            if let Ok(request) = Request::read(frame.opcode, frame.body) {
                // A client's requests to one server are nearly always of one group.
                if replica.is_none() {
                    let (group, _) = self.identity.placement.locate(request.digest);
                    replica = self.replica(group);
                }
                if let Some(replica) = replica {
                    hashes[known] = replica.hash_of(request.digest, request.key);
                    known += 1;
                }
            }
        }
        if let Some(replica) = replica {
            replica.prefetch(&hashes[..known]);
        }
        frames.max(1)
    }

    /// Looks at the next messages of a batch; how many, at least 1.
    pub(crate) fn look_ahead_in_batch(&self, group: GroupId, batch: BatchReader<'_>) -> usize {
        let (mut hashes, mut known, mut messages) = ([TableHash(0); LOOK_AHEAD], 0, 0);
        let Some(replica) = self.replica(group) else { return LOOK_AHEAD };
        for message in batch.take(LOOK_AHEAD) {
            messages += 1;
            if let Ok(PeerMessage::Prepare(prepare)) = message {
                hashes[known] = replica.hash_of(prepare.digest, prepare.key);
                known += 1;
            }
        }
        if messages > 1 {
            replica.prefetch(&hashes[..known]);
        }
        messages.max(1)
    }
}
