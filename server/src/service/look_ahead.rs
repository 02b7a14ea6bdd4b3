//! Looking ahead: the table memory that the next requests of a connection need is asked for before the first
//! of them is served, and the digests of its writes are checked several at once.
//!
//! ```text
//!   received bytes   [ GET a | GET b | GET c | ... ]
//!                        1. slots of a, b, c, ...   asked for
//!                        2. entries of a, b, c, ... asked for, as the slots come
//!                        3. a, b, c, ...            served, with their memory at hand
//! ```
//!
//! It is a hint. What is wrong with a request is found when it is served; only a digest that is found right
//! here is not computed again there.

use kv_core::table::{LOOK_AHEAD, TableHash};
use kv_protocol::client_message::Request;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::GroupId;
use kv_protocol::peer_message::{BatchReader, PeerMessage};
use kv_protocol::placement::Digest;

use super::Service;

/// What was found about the frames that come next.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ahead {
    /// How many were looked at and are not served yet.
    frames: usize,
    /// In which of them a digest is that of its key; the lowest bit is the next one's.
    proven: u32,
}

const _: () = assert!(LOOK_AHEAD <= u32::BITS as usize, "a bit each");

impl Ahead {
    /// Whether it is time to look ahead again.
    pub(crate) fn is_over(&self) -> bool {
        self.frames == 0
    }

    /// Takes the next frame. Whether its digest is known to be that of its key.
    pub(crate) fn take(&mut self) -> bool {
        let is_proven = self.proven & 1 == 1;
        *self = Ahead { frames: self.frames.saturating_sub(1), proven: self.proven >> 1 };
        is_proven
    }
}

/// Writes whose digests are to be checked.
#[derive(Default)]
struct Unproven<'a> {
    keys: [&'a [u8]; Digest::TOGETHER],
    digests: [[u8; 16]; Digest::TOGETHER],
    /// The bits of their frames.
    bits: [u32; Digest::TOGETHER],
    count: usize,
}

impl<'a> Unproven<'a> {
    /// Adds one; which of them are right, once there are as many as are checked at once.
    fn add(&mut self, frame: usize, key: &'a [u8], digest: Digest) -> u32 {
        if key.len() > Digest::MAX_TOGETHER_BYTES {
            return 0;
        }
        (self.keys[self.count], self.digests[self.count]) = (key, digest.0);
        self.bits[self.count] = 1 << frame;
        self.count += 1;
        if self.count == Digest::TOGETHER { self.prove() } else { 0 }
    }

    /// The bits of those that are right.
    fn prove(&mut self) -> u32 {
        let computed = Digest::of_several(&self.keys[..self.count]);
        let pairs = computed.iter().zip(&self.digests).zip(&self.bits).take(self.count);
        let right = pairs.filter(|((computed, given), _)| computed.0 == **given);
        self.count = 0;
        right.fold(0, |proven, (_, bit)| proven | bit)
    }
}

impl Service {
    /// Looks at the whole requests at the beginning of these bytes.
    pub(crate) fn look_ahead(&self, received: &[u8], rules: &FrameRules) -> Ahead {
        let (mut unproven, mut proven) = (Unproven::default(), 0);
        let (mut hashes, mut known) = ([TableHash(0); LOOK_AHEAD], 0);
        let (mut replica, mut frames, mut rest) = (None, 0, received);
        while frames < LOOK_AHEAD
            && let Ok(Some(frame)) = split_frame(rest, rules)
        {
            rest = &rest[frame.consumed..];
            frames += 1;
            // Alone it would wait for its memory here instead of there.
            if frames == 1 && rest.is_empty() {
                return Ahead { frames, proven };
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
                if request.operation.write_header().is_some() {
                    proven |= unproven.add(frames - 1, request.key, request.digest);
                }
            }
        }
        if let Some(replica) = replica {
            replica.prefetch(&hashes[..known]);
        }
        // One alone is as quick by itself.
        if unproven.count > 1 {
            proven |= unproven.prove();
        }
        Ahead { frames: frames.max(1), proven }
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
