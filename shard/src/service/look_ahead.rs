//! Look-ahead: prefetches the table memory for a connection's next requests before serving the first of them, and
//! checks the digests of its writes several at once.
//!
//! ```text
//!   received bytes   [ GET a | GET b | GET c | ... ]
//!                        1. slots of a, b, c, ...   prefetched
//!                        2. entries of a, b, c, ... prefetched, as the slots arrive
//!                        3. a, b, c, ...            served from the cache
//! ```
//!
//! Look-ahead is a hint. Errors in a request are found when it is served. Only a digest that was verified here is not
//! computed again there.

use kv_core::mutations::{self, Mutation};
use kv_core::table::{LOOK_AHEAD, TableHash};
use kv_protocol::client_message::Request;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::GroupId;
use kv_protocol::peer_message::{BatchReader, PeerMessage};
use kv_protocol::placement::Digest;

use super::Service;

/// Results of looking ahead at the next frames.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ahead {
    /// Frames that were examined and are not served yet.
    frames: usize,
    /// Bits of the frames whose digest was verified; the lowest bit belongs to the next frame.
    proven: u32,
}

const _: () = assert!(LOOK_AHEAD <= u32::BITS as usize, "a bit each");

impl Ahead {
    /// Returns whether it is time to look ahead again.
    pub(crate) fn is_over(&self) -> bool {
        self.frames == 0
    }

    /// Takes the next frame; returns whether its digest was verified.
    pub(crate) fn take(&mut self) -> bool {
        let is_proven = self.proven & 1 == 1;
        let moves = u32::from(!mutations::is_open(Mutation::LookedAheadTooFar));
        *self = Ahead { frames: self.frames.saturating_sub(1), proven: self.proven >> moves };
        is_proven
    }
}

/// Writes whose digests are still to be checked.
#[derive(Default)]
struct Unproven<'a> {
    keys: [&'a [u8]; Digest::TOGETHER],
    digests: [[u8; 16]; Digest::TOGETHER],
    /// The bits of their frames.
    bits: [u32; Digest::TOGETHER],
    count: usize,
}

impl<'a> Unproven<'a> {
    /// Adds a write. Once as many are collected as are checked at once, checks them and returns the bits of the correct
    /// ones.
    fn add(&mut self, frame: usize, key: &'a [u8], digest: Digest) -> u32 {
        if key.len() > Digest::MAX_TOGETHER_BYTES {
            return 0;
        }
        (self.keys[self.count], self.digests[self.count]) = (key, digest.0);
        self.bits[self.count] = 1 << frame;
        self.count += 1;
        if self.count == Digest::TOGETHER { self.prove() } else { 0 }
    }

    /// Checks the collected writes and returns the bits of those with a correct digest.
    fn prove(&mut self) -> u32 {
        let computed = Digest::of_several(&self.keys[..self.count]);
        let pairs = computed.iter().zip(&self.digests).zip(&self.bits).take(self.count);
        let right = pairs.filter(|((computed, given), _)| computed.0 == **given);
        self.count = 0;
        right.fold(0, |proven, (_, bit)| proven | bit)
    }
}

impl Service {
    /// Examines the complete requests at the beginning of `received`.
    pub(crate) fn look_ahead(&self, received: &[u8], rules: &FrameRules) -> Ahead {
        let (mut unproven, mut proven) = (Unproven::default(), 0);
        let (mut hashes, mut known) = ([TableHash(0); LOOK_AHEAD], 0);
        let (mut replica, mut frames, mut rest) = (None, 0, received);
        while frames < LOOK_AHEAD
            && let Ok(Some(frame)) = split_frame(rest, rules)
        {
            rest = &rest[frame.consumed..];
            frames += 1;
            // Prefetching for a single request gains nothing: the wait would only move here.
            if frames == 1 && rest.is_empty() {
                return Ahead { frames, proven };
            }
            if let Ok(request) = Request::read(frame.opcode, frame.body) {
                // A client's requests to one server nearly always belong to one group.
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
        // For a single digest the batched computation is no faster.
        if unproven.count > 1 {
            proven |= unproven.prove();
        }
        Ahead { frames: frames.max(1), proven }
    }

    /// Prefetches for the next messages of a batch; returns how many were examined, at least 1.
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
