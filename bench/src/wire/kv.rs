//! This store's own protocol on a plain socket to one shard of one group. It costs the generator as little CPU time as
//! the other protocols. It handles no failures, so any change of the cluster ends the run. Programs use the client
//! library instead.

use std::collections::VecDeque;

use kv_protocol::client_message::{
    Condition, Operation, Refusal, Request as WireRequest, Response, Status, WriteHeader, opcode,
};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{RequestId, RequestSeq, SequenceNumber, ViewVersion};
use kv_protocol::limits::{MAX_RESPONSE_BODY, SESSION_WINDOW};
use kv_protocol::placement::Digest;
use kv_protocol::update::{Action, Precondition, Update, Updates};

use super::{Reply, Wire};
use crate::driver::{Outcome, Request};

/// The frame rules of client connections.
pub(crate) const RULES: FrameRules = FrameRules::unchecked(MAX_RESPONSE_BODY);

/// The operation of a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum WriteKind {
    /// Sets the key (PUT)
    #[default]
    Put,
    /// Sets the key if it exists (UPDATE with a condition)
    PutIf,
    /// Adds 1 to the number in the key (UPDATE)
    Add,
}

impl WriteKind {
    /// Returns the operation. `updates` is a buffer for its encoding.
    fn operation<'a>(
        self,
        header: WriteHeader,
        value: &'a [u8],
        updates: &'a mut Vec<u8>,
    ) -> Operation<'a> {
        let update = match self {
            WriteKind::Put => return Operation::Put(header, value),
            WriteKind::PutIf => {
                Update { condition: Precondition::Present, ..Update::new(Action::Put(value)) }
            }
            WriteKind::Add => Update::new(Action::Add(1)),
        };
        updates.clear();
        update.write(updates);
        Operation::Update(header, Updates::read(updates).expect("an update that was just written"))
    }
}

/// One connection to a shard. See the module.
#[derive(Debug)]
pub(crate) struct Kv {
    /// The version of the group's view.
    view: ViewVersion,
    /// The start of this connection's session.
    begun: SequenceNumber,
    /// The number of the next write of this connection's session (consistency.md §8).
    next: u64,
    /// The writes in flight: their numbers and their slots.
    open: VecDeque<(u64, u32)>,
    kind: WriteKind,
    /// A buffer for the encoding of an UPDATE.
    updates: Vec<u8>,
}

impl Kv {
    /// Creates a connection after the handshake, with the group's view and the start of the session from its
    /// WELCOME.
    pub(crate) fn new(view: ViewVersion, begun: SequenceNumber, kind: WriteKind) -> Kv {
        Kv { view, begun, next: 1, open: VecDeque::new(), kind, updates: Vec::new() }
    }

    fn first_incomplete(&self) -> u64 {
        self.open.front().map_or(self.next, |(seq, _)| *seq)
    }
}

impl Wire for Kv {
    fn has_room(&self) -> bool {
        self.next - self.first_incomplete() < SESSION_WINDOW
    }

    fn request(&mut self, request: &Request<'_>, output: &mut Vec<u8>) {
        let operation = match request.value {
            None => Operation::Get,
            Some(value) => {
                let seq = self.next;
                self.open.push_back((seq, request.slot));
                self.next += 1;
                let header = WriteHeader {
                    seq: RequestSeq(seq),
                    first_incomplete: RequestSeq(self.first_incomplete()),
                    begun: self.begun,
                    condition: Condition::Always,
                };
                self.kind.operation(header, value, &mut self.updates)
            }
        };
        let id = RequestId(request.slot.into());
        let digest = Digest::of(request.key);
        WireRequest { id, view: self.view, digest, key: request.key, operation }.write(output);
    }

    fn reply<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, String> {
        let Some(frame) = split_frame(input, &RULES).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        if frame.opcode == opcode::ERROR {
            let refusal = Refusal::read(frame.body).map_err(|error| error.to_string())?;
            return Err(format!("connection rejected ({}): {}", refusal.status, refusal.reason));
        }
        if frame.opcode != opcode::RESPONSE {
            return Err(format!("an unexpected frame with opcode {}", frame.opcode));
        }
        let response = Response::read(frame.body).map_err(|error| error.to_string())?;
        let slot =
            u32::try_from(response.id.0).map_err(|_| "a response without a request".to_owned())?;
        let write = self.open.iter().position(|(_, open)| *open == slot);
        if let Some(write) = write {
            self.open.remove(write);
        }
        let outcome = match response.status {
            Status::Ok if write.is_some() && response.copies < 2 => Outcome::SingleCopy,
            Status::Ok => Outcome::Done(response.value),
            Status::NotFound => Outcome::Missing,
            status => {
                let reason = String::from_utf8_lossy(response.value);
                return Err(format!("a request was rejected ({status}): {reason}"));
            }
        };
        Ok(Some(Reply { consumed: frame.consumed, ended: Some((slot, outcome)) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(slot: u32) -> Request<'static> {
        Request { slot, key: b"k", value: Some(b"v") }
    }

    fn response(id: u64, status: Status, copies: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (view, version) = (ViewVersion(1), SequenceNumber(1));
        Response {
            id: RequestId(id),
            status,
            copies,
            view,
            version,
            value: b"",
            whole: 0,
            has_value: false,
            deadline: None,
        }
        .write(&mut bytes);
        bytes
    }

    #[test]
    fn no_write_begins_sixty_four_numbers_after_the_first_incomplete_one() {
        let mut kv = Kv::new(ViewVersion(1), SequenceNumber::ZERO, WriteKind::Put);
        let mut output = Vec::new();
        for slot in 0..64 {
            assert!(kv.has_room());
            kv.request(&put(slot), &mut output);
        }
        assert!(!kv.has_room());
        kv.reply(&response(5, Status::Ok, 2)).unwrap().unwrap();
        assert!(!kv.has_room(), "the first has not ended");
        kv.reply(&response(0, Status::Ok, 2)).unwrap().unwrap();
        assert!(kv.has_room());
        output.clear();
        kv.request(&put(0), &mut output);
        let frame = split_frame(&output, &RULES).unwrap().unwrap();
        let request = WireRequest::read(frame.opcode, frame.body).unwrap();
        let Operation::Put(header, _) = request.operation else { panic!("{request:?}") };
        assert_eq!((header.seq.0, header.first_incomplete.0), (65, 2));
    }

    #[test]
    fn a_write_with_one_copy_is_distinguished_and_a_rejection_ends_the_run() {
        let mut kv = Kv::new(ViewVersion(1), SequenceNumber::ZERO, WriteKind::Put);
        kv.request(&put(0), &mut Vec::new());
        let bytes = response(0, Status::Ok, 1);
        let reply = kv.reply(&bytes).unwrap().unwrap();
        assert_eq!(reply.ended, Some((0, Outcome::SingleCopy)));
        assert!(kv.reply(&response(0, Status::WrongView, 0)).unwrap_err().contains("WRONG_VIEW"));
    }
}
