//! Look-ahead: before the first of a connection's next requests is served, the table memory for all of them is
//! prefetched. The digests of writes are checked in batches.
//!
//! ```text
//!   received bytes   [ GET a | GET b | GET c | ... ]
//!                        1. slots of a, b, c, ...   prefetched
//!                        2. entries of a, b, c, ... prefetched, as the slots arrive
//!                        3. a, b, c, ...            served from the cache
//! ```
//!
//! The results are kept until the requests are served: the frames, the parsed requests with their hashes, and the
//! verified digests. Errors in a request are reported when it is served.

use kv_core::mutations::{self, Mutation};
use kv_core::table::{LOOK_AHEAD, TableHash};
use kv_protocol::client_message::Request;
use kv_protocol::error::FrameError;
use kv_protocol::frame::{Frame, FrameRules, split_frame};
use kv_protocol::ids::GroupId;
use kv_protocol::peer_message::BatchReader;
use kv_protocol::placement::Digest;

use super::Service;

/// A parsed request with the hash of its key.
#[derive(Clone, Copy)]
pub(crate) struct Hashed<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) hash: TableHash,
}

/// A frame of a client, with the request in it if the frame contains a valid one.
#[derive(Clone, Copy)]
pub(crate) struct ReadFrame<'a> {
    pub(crate) frame: Frame<'a>,
    pub(crate) request: Option<Hashed<'a>>,
    /// True if the request's digest was verified.
    pub(crate) is_proven: bool,
}

/// The next frames of a connection, which were read ahead.
#[derive(Default)]
pub(crate) struct Ahead<'a> {
    frames: [Option<ReadFrame<'a>>; LOOK_AHEAD],
    count: usize,
    /// The number of frames that were taken.
    taken: usize,
    /// A bit for each frame: set if the digest of its request was verified.
    proven: u32,
}

const _: () = assert!(LOOK_AHEAD <= u32::BITS as usize, "one bit for each frame");

impl<'a> Ahead<'a> {
    /// Returns whether all frames were taken, so that the next ones must be read.
    pub(crate) fn is_over(&self) -> bool {
        self.taken == self.count
    }

    /// Takes the next frame.
    pub(crate) fn take(&mut self) -> Option<ReadFrame<'a>> {
        let at = self.taken.min(self.count - 1);
        self.taken += 1;
        let bit = if mutations::is_open(Mutation::LookedAheadTooFar) { 0 } else { at };
        let is_proven = self.proven >> bit & 1 == 1;
        self.frames[at].map(|frame| ReadFrame { is_proven, ..frame })
    }
}

/// Writes whose digests are not checked yet.
#[derive(Default)]
struct Unproven<'a> {
    keys: [&'a [u8]; Digest::TOGETHER],
    digests: [[u8; 16]; Digest::TOGETHER],
    /// The bit of each write's frame in [`Ahead::proven`].
    bits: [u32; Digest::TOGETHER],
    count: usize,
}

impl<'a> Unproven<'a> {
    /// Adds a write. When enough writes for a batch are collected, checks them and returns the bits of those with a
    /// correct digest. Skips a long key, whose digest is checked when the request is served.
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
    /// Parses a frame of a client, and hashes the key of its request.
    #[inline]
    pub(crate) fn read_frame<'a>(&self, frame: Frame<'a>) -> ReadFrame<'a> {
        let request = Request::read(frame.opcode, frame.body).ok().map(|request| Hashed {
            request,
            hash: self.hash_secret.of_key(request.digest, request.key),
        });
        ReadFrame { frame, request, is_proven: false }
    }

    /// Reads the complete frames at the beginning of `received` into `ahead`, whose earlier frames were all taken. If
    /// there is no complete frame, `ahead` stays empty.
    ///
    /// # Errors
    /// [`FrameError`] if the first frame is invalid.
    pub(crate) fn look_ahead<'a>(
        &self,
        ahead: &mut Ahead<'a>,
        received: &'a [u8],
        rules: &FrameRules,
    ) -> Result<(), FrameError> {
        let (mut unproven, mut proven) = (Unproven::default(), 0);
        let (mut hashes, mut known) = ([TableHash(0); LOOK_AHEAD], 0);
        let (mut count, mut rest) = (0, received);
        while count < LOOK_AHEAD {
            let frame = match split_frame(rest, rules) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(error) if count == 0 => return Err(error),
                Err(_) => break,
            };
            rest = &rest[frame.consumed..];
            let read = self.read_frame(frame);
            if let Some(Hashed { request, hash }) = read.request {
                (hashes[known], known) = (hash, known + 1);
                if request.operation.write_header().is_some() {
                    proven |= unproven.add(count, request.key, request.digest);
                }
            }
            ahead.frames[count] = Some(read);
            count += 1;
        }
        if count > 1 {
            // A client's requests to one server nearly always belong to one group.
            let first = ahead.frames[..count].iter().flatten().find_map(|read| read.request);
            let group = first.map(|first| first.request.place(&self.identity.placement).0);
            if let Some(replica) = group.and_then(|group| self.replica(group)) {
                replica.prefetch(&hashes[..known]);
            }
            // For a single digest the batched computation is no faster.
            if unproven.count > 1 {
                proven |= unproven.prove();
            }
        }
        (ahead.count, ahead.taken, ahead.proven) = (count, 0, proven);
        Ok(())
    }

    /// Prefetches the table memory for the next writes of a batch. Returns the number of messages to apply before the
    /// next call, at least 1.
    pub(crate) fn look_ahead_in_batch(&self, group: GroupId, mut batch: BatchReader<'_>) -> usize {
        let (mut hashes, mut known) = ([TableHash(0); LOOK_AHEAD], 0);
        let Some(replica) = self.replica(group) else { return LOOK_AHEAD };
        while known < LOOK_AHEAD
            && let Some((digest, key)) = batch.skip_prepare()
        {
            hashes[known] = replica.hash_of(digest, key);
            known += 1;
        }
        if known > 1 {
            replica.prefetch(&hashes[..known]);
        }
        known.max(1)
    }
}
