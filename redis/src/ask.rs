//! A request to the store, as a frame of the native protocol without the fields that its sender sets.

use smallvec::{SmallVec, smallvec};

use kv_protocol::client_message::{
    Condition, Operation, Part, REQUEST_FIXED_BYTES, REQUEST_HEAD_BYTES, Request, Scan,
    WriteHeader, opcode,
};
use kv_protocol::frame::HEADER_BYTES;
use kv_protocol::ids::{GroupId, RequestId, RequestSeq, SequenceNumber, ShardId, ViewVersion};
use kv_protocol::limits::MAX_CLIENT_BODY;
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::update::{InvalidUpdate, Update, Updates};

use crate::error::{self, Error};

/// The offset of the opcode in a frame.
const OPCODE: usize = 5;
/// The offsets of the fields that the sender sets.
const ID: usize = HEADER_BYTES;
const VIEW: usize = ID + 8;
const SEQ: usize = VIEW + 8 + 16;
const FIRST_INCOMPLETE: usize = SEQ + 8;
const BEGUN: usize = FIRST_INCOMPLETE + 8;

/// The least capacity of a frame. The response to a request with a short value fits too.
const FRAME_CAPACITY: usize = 192;

/// The capacity above which the buffer of a frame is not kept, in bytes.
const FREE_FRAME_BYTES: usize = 512;
/// The number of buffers that are kept.
const FREE_FRAMES: usize = 1_024;

/// A request to the store.
#[derive(Clone, Debug)]
pub struct Ask {
    frame: Vec<u8>,
    digest: Digest,
    is_write: bool,
    is_costly: bool,
}

/// Buffers of past requests, for the frames of frequent ones.
#[derive(Debug, Default)]
pub struct FreeFrames(Vec<Vec<u8>>);

impl FreeFrames {
    /// Takes a buffer, or creates one.
    fn take(&mut self) -> Vec<u8> {
        self.0.pop().unwrap_or_default()
    }

    /// Keeps a buffer, unless it is long or there are enough.
    pub fn keep(&mut self, mut frame: Vec<u8>) {
        if frame.capacity() <= FREE_FRAME_BYTES && self.0.len() < FREE_FRAMES {
            frame.clear();
            self.0.push(frame);
        }
    }
}

/// The digests of the keys of a request.
pub type Digests = SmallVec<[Digest; 1]>;

/// An empty frame, in the place of one that was taken out.
impl Default for Ask {
    fn default() -> Ask {
        Ask { frame: Vec::new(), digest: Digest([0; 16]), is_write: false, is_costly: false }
    }
}

impl Ask {
    /// Creates a GET.
    pub fn get(key: &[u8]) -> Ask {
        Ask::of(key, Digest::of(key), Operation::Get)
    }

    /// Creates a GET in a free frame.
    pub fn get_in(frames: &mut FreeFrames, (key, digest): (&[u8], Digest)) -> Ask {
        Ask::in_frame(frames.take(), key, digest, Operation::Get)
    }

    /// Creates a GET of a part of the value.
    pub fn part(key: &[u8], part: Part) -> Ask {
        Ask::of(key, Digest::of(key), Operation::GetPart(part))
    }

    /// Creates a PUT in a free frame. It removes the deadline of the entry.
    pub fn put_in(
        frames: &mut FreeFrames,
        (key, digest): (&[u8], Digest),
        value: &[u8],
        condition: Condition,
    ) -> Ask {
        let operation = Operation::Put(unset(condition), value);
        Ask::in_frame(frames.take(), key, digest, operation)
    }

    /// Creates a DELETE.
    pub fn delete(key: &[u8]) -> Ask {
        Ask::of(key, Digest::of(key), Operation::Delete(unset(Condition::Always)))
    }

    /// Creates an UPDATE. All keys must be of one shard. The updates must be valid ([`Update::validate`]), and at most
    /// [`MAX_UPDATES`](kv_protocol::limits::MAX_UPDATES).
    pub fn update(key: &[u8], updates: &[Update<'_>]) -> Ask {
        let mut bytes = Vec::with_capacity(updates.iter().map(Update::wire_bytes).sum());
        updates.iter().for_each(|update| update.write(&mut bytes));
        let updates = Updates::read(&bytes).expect("the updates were encoded here");
        Ask::of(key, Digest::of(key), Operation::Update(unset(Condition::Always), updates))
    }

    /// Creates an UPDATE like [`Ask::update`], or returns why the store cannot have it.
    ///
    /// # Errors
    /// If an update or the request is too long.
    pub fn try_update(key: &[u8], updates: &[Update<'_>]) -> Result<Ask, Error> {
        for update in updates {
            update.validate().map_err(|invalid| match invalid {
                InvalidUpdate::ValueLength => error::TOO_LONG,
                other => Error::Text(format!("ERR {}", other.reason())),
            })?;
        }
        let bytes = updates.iter().map(Update::wire_bytes).sum::<usize>();
        if REQUEST_FIXED_BYTES + key.len() + bytes > MAX_CLIENT_BODY {
            return Err(error::TOO_LONG);
        }
        Ok(Ask::update(key, updates))
    }

    /// Creates a SCAN of a shard.
    pub fn scan(
        placement: Placement,
        place: (GroupId, ShardId),
        pattern: &[u8],
        scan: Scan,
    ) -> Ask {
        Ask::of(pattern, placement.digest_at(place), Operation::Scan(scan))
    }

    fn of(key: &[u8], digest: Digest, operation: Operation<'_>) -> Ask {
        Ask::in_frame(Vec::new(), key, digest, operation)
    }

    fn in_frame(mut frame: Vec<u8>, key: &[u8], digest: Digest, operation: Operation<'_>) -> Ask {
        let request = Request { id: RequestId(0), view: ViewVersion(0), digest, key, operation };
        let value = match operation {
            Operation::Put(_, value) => value.len(),
            Operation::Update(_, updates) => updates.bytes().len(),
            _ => 0,
        };
        let bytes = REQUEST_HEAD_BYTES + key.len() + value;
        frame.reserve(bytes.max(FRAME_CAPACITY));
        request.write(&mut frame);
        Ask { frame, digest, is_write: operation.write_header().is_some(), is_costly: false }
    }

    /// Returns the request. Its id, its view and the numbers of its write header are those that were set last.
    pub fn request(&self) -> Request<'_> {
        let opcode = self.frame[OPCODE];
        Request::read(opcode, &self.frame[HEADER_BYTES..]).expect("the frame was encoded here")
    }

    /// Marks a request of a command whose reply takes up to a millisecond to make.
    pub fn costly(self) -> Ask {
        Ask { is_costly: true, ..self }
    }

    /// Returns whether the request was marked as [`Ask::costly`].
    pub fn is_costly(&self) -> bool {
        self.is_costly
    }

    /// Returns whether the request is a write.
    pub fn is_write(&self) -> bool {
        self.is_write
    }

    /// Returns the group and shard of the request.
    pub fn place(&self, placement: &Placement) -> (GroupId, ShardId) {
        match placement.hash_tags() {
            false => placement.place_of(self.digest),
            true => self.request().place(placement),
        }
    }

    /// Returns the digests of all keys of the request; none for a SCAN.
    pub fn digests(&self) -> Digests {
        let mut digests = smallvec![self.digest];
        if matches!(self.frame[OPCODE], opcode::GET | opcode::PUT | opcode::DELETE) {
            return digests;
        }
        match self.request().operation {
            Operation::Scan(_) => digests.clear(),
            Operation::Update(_, updates) if updates.names_keys() => {
                for update in updates.iter() {
                    let keys = [update.key, update.second_key()];
                    digests.extend(keys.into_iter().flatten().map(Digest::of));
                }
            }
            _ => {}
        }
        digests
    }

    /// Returns the buffer of the frame, for the response.
    pub fn into_buffer(self) -> Vec<u8> {
        self.frame
    }

    /// Returns the frame.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Sets the id of the request and the view by which it is sent.
    pub fn set_route(&mut self, id: RequestId, view: ViewVersion) {
        self.set(ID, id.0);
        self.set(VIEW, view.0);
    }

    /// Sets the number of a write in its session, the first incomplete number, and the start of the session.
    pub fn set_session(
        &mut self,
        seq: RequestSeq,
        first_incomplete: RequestSeq,
        begun: SequenceNumber,
    ) {
        self.set(SEQ, seq.0);
        self.set(FIRST_INCOMPLETE, first_incomplete.0);
        self.set(BEGUN, begun.0);
    }

    fn set(&mut self, at: usize, number: u64) {
        self.frame[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
}

/// Returns a write header whose numbers the sender sets.
fn unset(condition: Condition) -> WriteHeader {
    WriteHeader {
        seq: RequestSeq(0),
        first_incomplete: RequestSeq(0),
        begun: SequenceNumber::ZERO,
        condition,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_protocol::frame::{FrameRules, split_frame};
    use kv_protocol::update::Action;

    #[test]
    fn the_fields_of_the_sender_are_those_that_the_store_reads() {
        let update = Update::new(Action::Add(3));
        let mut frames = FreeFrames::default();
        let asks = [
            Ask::put_in(&mut frames, (b"key", Digest::of(b"key")), b"value", Condition::IfAbsent),
            Ask::update(b"key", &[update]),
        ];
        for mut ask in asks {
            ask.set_route(RequestId(5), ViewVersion(6));
            ask.set_session(RequestSeq(8), RequestSeq(7), SequenceNumber(9));
            let rules = FrameRules::unchecked(MAX_CLIENT_BODY);
            let frame = split_frame(ask.frame(), &rules).unwrap().unwrap();
            assert_eq!(frame.consumed, ask.frame().len());
            let request = Request::read(frame.opcode, frame.body).unwrap();
            assert_eq!(request, ask.request());
            let header = request.operation.write_header().unwrap();
            assert_eq!((request.id, request.view), (RequestId(5), ViewVersion(6)));
            assert_eq!((header.seq, header.first_incomplete), (RequestSeq(8), RequestSeq(7)));
            assert_eq!(header.begun, SequenceNumber(9));
            assert_eq!(request.validate(), Ok(()));
        }
    }
}
