//! Frames: the division of a byte stream into messages.
//!
//! ```text
//!  0        4         5        6          8
//!  +--------+---------+--------+----------+-----------------+- - - - - - -+
//!  | length | version | opcode | reserved | message         | CRC-32C     |
//!  | u32    | u8      | u8     | u16 = 0  |                 | checked only|
//!  +--------+---------+--------+----------+-----------------+- - - - - - -+
//!                                         |<---- length bytes ----------->|
//! ```
//!
//! `length` is the number of bytes after the header. On checked connections (between servers, and
//! between coordinator and servers) the last four of these bytes are a CRC-32C. It covers the
//! header and the message. Frames on clients' connections have no checksum.

use std::collections::TryReserveError;

use crate::codec::Writer;
use crate::error::FrameError;
use crate::limits::FRAME_VERSION;

/// The number of bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

/// The kind of checksum at the end of a connection's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Clients' connections: no checksum.
    Absent,
    /// The cluster's own connections: a CRC-32C of header and message.
    Crc32c,
}

/// The limits and format of a connection's frames.
#[derive(Clone, Copy, Debug)]
pub struct FrameRules {
    /// The longest message allowed, in bytes, without checksum.
    pub max_body: usize,
    /// The checksum of the frames.
    pub checksum: Checksum,
}

impl FrameRules {
    /// Returns the rules of a client connection with messages of up to `max_body` bytes.
    pub const fn unchecked(max_body: usize) -> FrameRules {
        FrameRules { max_body, checksum: Checksum::Absent }
    }

    /// Returns the rules of a connection inside the cluster with messages of up to `max_body` bytes.
    pub const fn checked(max_body: usize) -> FrameRules {
        FrameRules { max_body, checksum: Checksum::Crc32c }
    }
}

/// One whole frame, borrowed from the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The type of the message.
    pub opcode: u8,
    /// The message, without header and checksum.
    pub body: &'a [u8],
    /// The number of input bytes of this frame: header, message and checksum.
    pub consumed: usize,
}

/// Splits the first frame off `input`. Returns `None` if the frame is incomplete.
///
/// The fields of the header are checked as soon as they have arrived, so an invalid length is rejected before any
/// memory is reserved for it.
///
/// # Errors
/// [`FrameError`]: the stream is out of sync; close the connection.
#[inline]
pub fn split_frame<'a>(
    input: &'a [u8],
    rules: &FrameRules,
) -> Result<Option<Frame<'a>>, FrameError> {
    let Some((header, _)) = input.split_first_chunk::<HEADER_BYTES>() else {
        return check_partial_header(input, rules).map(|()| None);
    };
    check_partial_header(header, rules)?;
    let opcode = header[5];
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let consumed = HEADER_BYTES + length;
    if input.len() < consumed {
        return Ok(None);
    }
    let body = match rules.checksum {
        Checksum::Absent => &input[HEADER_BYTES..consumed],
        Checksum::Crc32c => {
            let (covered, trailer) = input[..consumed].split_at(consumed - CHECKSUM_BYTES);
            let got = u32::from_le_bytes([trailer[0], trailer[1], trailer[2], trailer[3]]);
            let computed = crc32c::crc32c(covered);
            if got != computed {
                return Err(FrameError::Checksum { got, computed });
            }
            &covered[HEADER_BYTES..]
        }
    };
    Ok(Some(Frame { opcode, body, consumed }))
}

/// Checks the header fields that have arrived in full.
#[inline]
fn check_partial_header(header: &[u8], rules: &FrameRules) -> Result<(), FrameError> {
    if let Some((length, _)) = header.split_first_chunk::<4>() {
        let announced = u32::from_le_bytes(*length);
        let trailer = match rules.checksum {
            Checksum::Absent => 0,
            Checksum::Crc32c => CHECKSUM_BYTES,
        };
        let limit = rules.max_body + trailer;
        if announced as usize > limit || (announced as usize) < trailer {
            return Err(FrameError::TooLong { announced, limit });
        }
    }
    if let Some(&got) = header.get(4)
        && got != FRAME_VERSION
    {
        return Err(FrameError::UnsupportedVersion { got });
    }
    if let Some(reserved) = header.get(6..8) {
        let got = u16::from_le_bytes([reserved[0], reserved[1]]);
        if got != 0 {
            return Err(FrameError::ReservedBits { got });
        }
    }
    Ok(())
}

/// Returns the header of a frame without checksum whose message has `length` bytes.
pub(crate) fn unchecked_header(opcode: u8, length: usize) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = crate::codec::length_u32(length, "frame").to_le_bytes();
    [a, b, c, d, FRAME_VERSION, opcode, 0, 0]
}

/// Appends one frame whose message `fill` writes.
pub fn write_frame(
    output: &mut Vec<u8>,
    checksum: Checksum,
    opcode: u8,
    fill: impl FnOnce(&mut Vec<u8>),
) {
    let start = output.len();
    begin_frame(output, opcode);
    fill(output);
    end_frame(output, start, checksum);
}

/// Appends the header of a frame whose message follows.
pub(crate) fn begin_frame(output: &mut Vec<u8>, opcode: u8) {
    output.put_bytes(&[0, 0, 0, 0, FRAME_VERSION, opcode, 0, 0]);
}

/// Ends the frame that begins at `start`: fills in the length and appends the checksum.
pub(crate) fn end_frame(output: &mut Vec<u8>, start: usize, checksum: Checksum) {
    let trailer = match checksum {
        Checksum::Absent => 0,
        Checksum::Crc32c => CHECKSUM_BYTES,
    };
    let length = output.len() - start - HEADER_BYTES + trailer;
    let length = crate::codec::length_u32(length, "frame");
    output[start..start + 4].copy_from_slice(&length.to_le_bytes());
    if checksum == Checksum::Crc32c {
        let crc = crc32c::crc32c(&output[start..]);
        output.put_u32(crc);
    }
}

/// A buffer of received bytes, from which whole frames are taken. Its size depends on the number of bytes received,
/// never on the length in a header.
///
/// ```text
///   received bytes -> extend() -> [ consumed | frame frame par ] -> next_frame()
/// ```
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// The number of bytes at the front that belong to frames already taken.
    taken: usize,
    rules: FrameRules,
}

impl FrameBuffer {
    /// Creates an empty buffer for a connection with these rules.
    pub fn new(rules: FrameRules) -> FrameBuffer {
        FrameBuffer { bytes: Vec::new(), taken: 0, rules }
    }

    /// Changes the rules, for example after a hello.
    pub fn set_rules(&mut self, rules: FrameRules) {
        self.rules = rules;
    }

    /// Appends received bytes.
    pub fn extend(&mut self, received: &[u8]) {
        self.reclaim();
        self.bytes.extend_from_slice(received);
    }

    /// Appends at most as many received bytes as the partial frame lacks, and returns their number. The caller can
    /// process the other bytes in place.
    pub fn complete(&mut self, received: &[u8]) -> usize {
        self.reclaim();
        let header = HEADER_BYTES.saturating_sub(self.bytes.len()).min(received.len());
        let (header, others) = received.split_at(header);
        self.bytes.extend_from_slice(header);
        // The header is complete now, so the length of the frame is known.
        let rest = &others[..self.missing().min(others.len())];
        self.bytes.extend_from_slice(rest);
        header.len() + rest.len()
    }

    /// Takes the next whole frame, first from the buffered bytes, then from the received ones. Copies only those
    /// received bytes that complete a partial frame. Afterwards `received` contains the bytes not taken. After `None`,
    /// the caller must append these bytes ([`FrameBuffer::extend`]).
    ///
    /// # Errors
    /// The errors of [`split_frame`]; the buffer must not be used afterwards.
    pub fn next_frame_of<'a, 'r: 'a>(
        &'a mut self,
        received: &mut &'r [u8],
    ) -> Result<Option<Frame<'a>>, FrameError> {
        if self.is_partial() {
            let taken = self.complete(received);
            *received = &received[taken..];
            return self.next_frame();
        }
        let frame = split_frame(received, &self.rules)?;
        if let Some(frame) = &frame {
            *received = &received[frame.consumed..];
        }
        Ok(frame)
    }

    /// Reserves `room` bytes in the buffer and calls `read`, which appends received bytes directly
    /// to it.
    ///
    /// # Errors
    /// If there is no memory for `room` more bytes. In that case `read` is not called.
    pub fn fill<T>(
        &mut self,
        room: usize,
        read: impl FnOnce(&mut Vec<u8>) -> T,
    ) -> Result<T, TryReserveError> {
        self.reclaim();
        self.bytes.try_reserve(room)?;
        Ok(read(&mut self.bytes))
    }

    /// Frees the memory if no bytes are buffered and the capacity exceeds `kept` bytes.
    pub fn trim(&mut self, kept: usize) {
        if !self.is_partial() {
            self.reclaim();
            if self.bytes.capacity() > kept {
                self.bytes = Vec::new();
            }
        }
    }

    /// Takes the next whole frame. Returns `None` if more bytes are needed.
    ///
    /// # Errors
    /// The errors of [`split_frame`]; the buffer must not be used afterwards.
    #[inline]
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let frame = split_frame(&self.bytes[self.taken..], &self.rules)?;
        if let Some(frame) = &frame {
            self.taken += frame.consumed;
        }
        Ok(frame)
    }

    /// Skips this many buffered bytes, at most all. The caller has taken them directly from [`FrameBuffer::waiting`].
    pub fn skip(&mut self, bytes: usize) {
        self.taken = (self.taken + bytes).min(self.bytes.len());
    }

    /// Returns whether a partial frame is buffered.
    pub fn is_partial(&self) -> bool {
        self.taken < self.bytes.len()
    }

    /// Returns the buffered bytes.
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Returns the number of bytes that the partial frame lacks; 0 if its header is incomplete or invalid.
    pub fn missing(&self) -> usize {
        let waiting = self.waiting();
        let Some((header, _)) = waiting.split_first_chunk::<HEADER_BYTES>() else { return 0 };
        if check_partial_header(header, &self.rules).is_err() {
            return 0;
        }
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        (HEADER_BYTES + length).saturating_sub(waiting.len())
    }

    /// Returns the full length of the partial frame, including the header; 0 if its header is incomplete or invalid,
    /// or if the frame is complete.
    pub fn length_of_partial(&self) -> usize {
        match self.missing() {
            0 => 0,
            missing => self.waiting().len() + missing,
        }
    }

    /// Reserves room for the rest of the partial frame, but at most as many bytes as were received, or `least` if that
    /// is more. Does nothing if there is already room for `least` bytes or for the rest. The length in the header is
    /// not trusted, because a peer can announce any length. If the allocation fails, the buffer grows step by step.
    pub fn reserve_missing(&mut self, least: usize) {
        self.reclaim();
        let most = self.waiting().len().max(least);
        if self.bytes.capacity() - self.bytes.len() < least.min(self.missing()) {
            let _ = self.bytes.try_reserve_exact(self.missing().min(most));
        }
    }

    /// Returns the allocated size of the buffer, in bytes.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Lends the buffer to a receiver that appends to it. The caller must return it with
    /// [`FrameBuffer::take_back`] before any other call.
    pub fn lend(&mut self) -> Vec<u8> {
        self.reclaim();
        std::mem::take(&mut self.bytes)
    }

    /// Takes the buffer back, with the received bytes.
    pub fn take_back(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.bytes.is_empty(), "bytes were appended while the buffer was lent");
        self.bytes = bytes;
    }

    /// Returns the buffered bytes, for a connection that is handed to another executor.
    pub fn into_waiting(mut self) -> Vec<u8> {
        self.bytes.drain(..self.taken);
        self.bytes
    }

    /// Moves the buffered bytes to the front, so that the space of taken bytes is reused.
    fn reclaim(&mut self) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
        } else if self.taken > 0 {
            self.bytes.drain(..self.taken);
        }
        self.taken = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHECKED: FrameRules = FrameRules::checked(64);
    const UNCHECKED: FrameRules = FrameRules::unchecked(64);

    #[test]
    fn a_length_beyond_the_limit_is_refused_from_four_bytes() {
        for announced in [65u32, u32::MAX, 1 << 31] {
            let header = announced.to_le_bytes();
            let got = split_frame(&header, &UNCHECKED);
            assert_eq!(got, Err(FrameError::TooLong { announced, limit: 64 }));
        }
    }

    #[test]
    fn a_checked_frame_too_short_for_its_checksum_is_refused() {
        let announced = 3u32;
        let header = announced.to_le_bytes();
        let got = split_frame(&header, &CHECKED);
        assert_eq!(got, Err(FrameError::TooLong { announced, limit: 68 }));
    }

    #[test]
    fn another_version_is_named() {
        let got = split_frame(&[0, 0, 0, 0, 9], &UNCHECKED);
        assert_eq!(got, Err(FrameError::UnsupportedVersion { got: 9 }));
    }

    #[test]
    fn any_flipped_bit_of_a_checked_frame_is_found() {
        let mut whole = Vec::new();
        write_frame(&mut whole, Checksum::Crc32c, 7, |b| b.put_bytes(b"hello"));
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let got = split_frame(&damaged, &CHECKED);
            assert!(!matches!(got, Ok(Some(_))), "bit {bit} flipped was accepted");
        }
    }

    #[test]
    fn a_lent_buffer_reports_its_missing_bytes_and_continues_with_the_received_ones() {
        let mut whole = Vec::new();
        write_frame(&mut whole, Checksum::Absent, 7, |b| b.put_bytes(&[9; 50]));
        let mut buffer = FrameBuffer::new(UNCHECKED);
        buffer.extend(&whole[..5]);
        assert_eq!(buffer.missing(), 0, "the header is not there");
        buffer.extend(&whole[5..20]);
        assert_eq!(buffer.missing(), whole.len() - 20);
        let mut lent = buffer.lend();
        lent.extend_from_slice(&whole[20..]);
        buffer.take_back(lent);
        assert_eq!(buffer.next_frame().unwrap().unwrap().body, [9; 50]);
        assert!(!buffer.is_partial());
        assert_eq!(buffer.missing(), 0);
    }

    #[test]
    fn an_empty_buffer_frees_memory_beyond_the_kept_capacity() {
        let rules = FrameRules::unchecked(1 << 20);
        let mut buffer = FrameBuffer::new(rules);
        let mut whole = Vec::new();
        write_frame(&mut whole, Checksum::Absent, 7, |b| b.put_bytes(&[9; 1 << 20]));
        buffer.extend(&whole);
        buffer.trim(0);
        assert!(buffer.next_frame().unwrap().is_some());
        buffer.trim(2 << 20);
        assert!(buffer.bytes.capacity() >= 1 << 20, "freed a capacity below the kept one");
        buffer.trim(1 << 10);
        assert_eq!(buffer.bytes.capacity(), 0);
    }

    /// The opcodes and bodies of frames, in order.
    type Seen = Vec<(u8, Vec<u8>)>;

    /// Returns the frames that `take` finds in a stream of these bodies received in pieces of these lengths.
    fn cut_up(
        bodies: &[Vec<u8>],
        cuts: &[usize],
        checked: bool,
        take: impl Fn(&mut FrameBuffer, &[u8], &mut Seen),
    ) -> Seen {
        let rules = if checked { CHECKED } else { UNCHECKED };
        let mut stream = Vec::new();
        for (n, body) in (0u8..).zip(bodies) {
            write_frame(&mut stream, rules.checksum, n, |b| b.put_bytes(body));
        }
        let (mut buffer, mut seen) = (FrameBuffer::new(rules), Vec::new());
        let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (received, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            take(&mut buffer, received, &mut seen);
            rest = later;
        }
        assert!(!buffer.is_partial());
        seen
    }

    proptest! {
        #[test]
        fn frames_survive_any_split_of_the_bytes(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..8),
            cuts in prop::collection::vec(1usize..20, 1..64),
            checked in any::<bool>(),
        ) {
            let seen = cut_up(&bodies, &cuts, checked, |buffer, received, seen| {
                buffer.extend(received);
                while let Some(frame) = buffer.next_frame().unwrap() {
                    seen.push((frame.opcode, frame.body.to_vec()));
                }
            });
            prop_assert_eq!(seen, (0u8..).zip(bodies).collect::<Vec<_>>());
        }

        #[test]
        fn frames_survive_being_taken_from_the_received_bytes(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..8),
            cuts in prop::collection::vec(1usize..200, 1..64),
            checked in any::<bool>(),
        ) {
            let seen = cut_up(&bodies, &cuts, checked, |buffer, mut received, seen| {
                while let Some(frame) = buffer.next_frame_of(&mut received).unwrap() {
                    seen.push((frame.opcode, frame.body.to_vec()));
                }
                buffer.extend(received);
                let is_one_frame = buffer.missing() > 0 || buffer.waiting().len() < HEADER_BYTES;
                assert!(is_one_frame, "more was copied than one frame");
            });
            prop_assert_eq!(seen, (0u8..).zip(bodies).collect::<Vec<_>>());
        }

        #[test]
        fn frames_survive_being_received_into_the_buffer(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 1..8),
            cuts in prop::collection::vec(1usize..20, 1..64),
        ) {
            let mut stream = Vec::new();
            for (n, body) in (0u8..).zip(&bodies) {
                write_frame(&mut stream, Checksum::Absent, n, |b| b.put_bytes(body));
            }
            let mut buffer = FrameBuffer::new(UNCHECKED);
            let mut seen = Vec::new();
            let mut rest = &stream[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                buffer.fill(32, |bytes| bytes.extend_from_slice(now)).unwrap();
                rest = later;
                while let Some(frame) = buffer.next_frame().unwrap() {
                    seen.push((frame.opcode, frame.body.to_vec()));
                }
                buffer.trim(16);
            }
            prop_assert_eq!(seen, (0u8..).zip(bodies).collect::<Vec<_>>());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = split_frame(&bytes, &CHECKED);
            let _ = split_frame(&bytes, &UNCHECKED);
        }
    }
}
