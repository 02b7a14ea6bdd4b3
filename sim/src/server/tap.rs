//! Observers of the traffic on a shard's connections: they record requests and responses for the checks.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use kv_protocol::client_message::{Operation, Request, Response, Status, opcode as client_opcode};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{GroupId, RequestId, SequenceNumber, Time, ViewVersion};
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_PEER_BODY, MAX_RESPONSE_BODY};
use kv_protocol::peer_message::{BatchReader, opcode as peer_opcode};
use kv_protocol::placement::Placement;
use kv_shard::Port;

use crate::invariants::{Violation, messages};
use crate::network::ConnectionNumber;
use crate::object::changes_surely;

/// A response to a client.
#[derive(Clone, Copy, Debug)]
pub struct SentResponse {
    /// The group of the request's key.
    pub group: GroupId,
    /// The connection.
    pub to: ConnectionNumber,
    /// The request.
    pub request: RequestId,
    /// The status.
    pub status: Status,
    /// The number of copies that the response reports.
    pub copies: u8,
    /// The version in the response; for a write, its sequence number.
    pub version: SequenceNumber,
    /// The hash of the value and the deadline in a response to a write; 0 without both.
    pub rest: u64,
    /// True if the request changes an entry whenever its response is OK.
    pub changes: bool,
    /// True if its request was received in the same wake-up. Other responses may have waited for a slow reader.
    pub is_fresh: bool,
}

impl SentResponse {
    /// Returns whether the response acknowledges a write with OK. Only responses to writes report copies.
    pub fn is_acked(&self) -> bool {
        self.copies > 0 && self.status == Status::Ok
    }
}

/// A request of a client that has no response yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    group: GroupId,
    /// True for a read.
    pub(super) is_read: bool,
    /// True if the request changes an entry whenever its response is OK; false if this is unknown.
    changes: bool,
    /// The wake-up in which the request was last received.
    pub(super) wake: u64,
    /// The clock reading of that receive.
    pub(super) at: Time,
    /// The number of times that the request was received and has no response yet.
    times: u32,
}

/// The observer of one connection.
#[derive(Debug)]
pub(super) enum Tap {
    /// A client's connection.
    Client {
        input: FrameBuffer,
        output: FrameBuffer,
        /// True once bytes were received.
        has_begun: bool,
        /// The requests without a response.
        asked: BTreeMap<RequestId, Asked>,
    },
    /// A connection of a Redis client, or one on which this shard is a client.
    Other,
    /// A connection between two servers, with the bytes that this server receives.
    Peer(FrameBuffer),
}

impl Tap {
    /// Creates the observer of a connection of this port.
    pub(super) fn new(port: Port) -> Tap {
        match port {
            Port::Clients => Tap::Client {
                input: FrameBuffer::new(FrameRules::unchecked(MAX_CLIENT_BODY)),
                output: FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY)),
                has_begun: false,
                asked: BTreeMap::new(),
            },
            Port::Redis => Tap::Other,
            Port::Servers => Tap::Peer(FrameBuffer::new(FrameRules::checked(MAX_PEER_BODY))),
        }
    }

    /// Observes bytes received in this wake-up. Returns the number of requests that they complete, and the views of
    /// the stream messages that they complete.
    pub(super) fn received(
        &mut self,
        wake: u64,
        now: Time,
        placement: Placement,
        bytes: &[u8],
    ) -> (u64, Vec<ViewVersion>) {
        let (mut requests, mut views) = (0, Vec::new());
        self.look_for_redis(bytes);
        match self {
            // About the number of requests: each command begins with this byte.
            Tap::Other => requests = bytes.iter().filter(|byte| **byte == b'*').count() as u64,
            Tap::Client { input, asked, .. } => {
                input.extend(bytes);
                while let Some(frame) = input.next_frame().expect("it is well formed") {
                    if !client_opcode::is_request(frame.opcode) {
                        continue;
                    }
                    let request =
                        Request::read(frame.opcode, frame.body).expect("it is well formed");
                    let (group, _) = request.place(&placement);
                    let is_read = matches!(
                        request.operation,
                        Operation::Get | Operation::GetPart(_) | Operation::Scan(_)
                    );
                    let changes = match &request.operation {
                        Operation::Put(..) | Operation::Delete(_) => true,
                        Operation::Update(_, updates) => changes_surely(updates),
                        _ => false,
                    };
                    let times = 1 + asked.get(&request.id).map_or(0, |asked| asked.times);
                    let request_asked = Asked { group, is_read, changes, wake, at: now, times };
                    asked.insert(request.id, request_asked);
                    requests += 1;
                }
            }
            Tap::Peer(input) => {
                input.extend(bytes);
                while let Some(frame) = input.next_frame().expect("it is well formed") {
                    if frame.opcode == peer_opcode::BATCH {
                        let batch = BatchReader::new(frame.body).expect("it is well formed");
                        let messages = batch.map(|message| message.expect("it is well formed"));
                        views.extend(messages.map(|message| message.view()));
                    }
                }
            }
        }
        (requests, views)
    }

    /// Ends the observation if the first bytes are those of a Redis client.
    fn look_for_redis(&mut self, bytes: &[u8]) {
        if let Tap::Client { has_begun, .. } = self
            && !std::mem::replace(has_begun, true)
            && bytes.first() == Some(&b'*')
        {
            *self = Tap::Other;
        }
    }

    /// Returns the wake-up in which the oldest request of a group without a response was received.
    pub(super) fn oldest(&self, group: GroupId) -> Option<u64> {
        let Tap::Client { asked, .. } = self else { return None };
        asked.values().filter(|asked| asked.group == group).map(|asked| asked.wake).min()
    }

    /// Observes bytes sent in this wake-up; returns the responses that they complete, with their requests.
    ///
    /// # Errors
    /// A response without a request.
    pub(super) fn sent(
        &mut self,
        wake: u64,
        to: ConnectionNumber,
        bytes: &[u8],
    ) -> Result<Vec<(SentResponse, Asked)>, Violation> {
        let Tap::Client { output, asked, .. } = self else { return Ok(Vec::new()) };
        output.extend(bytes);
        let mut responses = Vec::new();
        while let Some(frame) = output.next_frame().expect("it is well formed") {
            if frame.opcode != client_opcode::RESPONSE {
                continue;
            }
            let response = Response::read(frame.body).expect("it is well formed");
            let Response { id: request, status, copies, version, .. } = response;
            let Some(asked) = ask_less(asked, request) else {
                return Err(messages::response_without_request(to, request));
            };
            let (group, is_fresh) = (asked.group, asked.wake == wake);
            let (rest, changes) = (hash_of_rest(&response), asked.changes);
            let responded = SentResponse {
                group,
                to,
                request,
                status,
                copies,
                version,
                rest,
                changes,
                is_fresh,
            };
            responses.push((responded, asked));
        }
        Ok(responses)
    }
}

/// Returns the hash of the value and the deadline in a response to a write; 0 without both.
fn hash_of_rest(response: &Response<'_>) -> u64 {
    if response.copies == 0 || !response.has_value && response.deadline.is_none() {
        return 0;
    }
    let mut hasher = DefaultHasher::new();
    (response.has_value, response.value, response.deadline).hash(&mut hasher);
    hasher.finish()
}

/// Removes one receive of the request with this id, and returns the request.
fn ask_less(asked: &mut BTreeMap<RequestId, Asked>, request: RequestId) -> Option<Asked> {
    let known = asked.get_mut(&request)?;
    known.times -= 1;
    match known.times {
        0 => asked.remove(&request),
        _ => Some(*known),
    }
}
