//! A connection of the gateway to a shard of a server, as a client of the native protocol.

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Refusal, Response, Welcome, opcode};
use kv_protocol::frame::{Frame, FrameBuffer, FrameRules, split_frame};
use kv_protocol::ids::Time;
use kv_protocol::limits::{HELLO_DEADLINE, MAX_RESPONSE_BODY};

use crate::dial::LinkId;
use crate::service::Service;

/// The capacity to which the input buffer of a link is trimmed.
const KEPT_INPUT: usize = 256 << 10;

/// The input side of a link; its output is in the [`Service`].
#[derive(Debug)]
pub(crate) struct Link {
    input: FrameBuffer,
    id: ConnectionId,
    link: LinkId,
    /// The deadline of the handshake.
    deadline: Option<Time>,
}

impl Link {
    /// Creates the input of a link that was connected at `now`; its HELLO is in the output.
    pub(crate) fn new(now: Time, id: ConnectionId, link: LinkId) -> Link {
        let input = FrameBuffer::new(FrameRules::unchecked(MAX_RESPONSE_BODY));
        Link { input, id, link, deadline: Some(now + HELLO_DEADLINE) }
    }

    /// Processes received bytes and the complete frames among them. Closes the link if they are invalid.
    pub(crate) fn handle_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        let mut rest = received;
        loop {
            match self.input.next_frame_of(&mut rest) {
                Ok(Some(frame)) => {
                    let Some(is_ready) = take_frame(now, service, self.link, frame) else {
                        return service.outputs.kill(self.id);
                    };
                    if is_ready {
                        self.deadline = None;
                    }
                }
                Ok(None) => break,
                Err(_) => return service.outputs.kill(self.id),
            }
        }
        self.input.extend(rest);
        self.input.trim(KEPT_INPUT);
    }

    /// Handles the end of the connection.
    pub(crate) fn handle_closed(&mut self, now: Time, service: &mut Service) {
        service.handle_link_failed(now, self.link);
    }

    /// Returns when to close the link because its handshake is incomplete.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.deadline
    }
}

/// Takes the next response of the bytes that this shard's replicas have written; `None` after the last one.
pub(super) fn next_response<'a>(bytes: &mut &'a [u8]) -> Option<Response<'a>> {
    let frame = split_frame(bytes, &FrameRules::unchecked(MAX_RESPONSE_BODY)).ok()??;
    *bytes = &bytes[frame.consumed..];
    Response::read(frame.body).ok()
}

/// Processes a frame. Returns whether the handshake is complete; `None` if the link is of no use.
fn take_frame(now: Time, service: &mut Service, link: LinkId, frame: Frame<'_>) -> Option<bool> {
    match frame.opcode {
        opcode::RESPONSE => {
            let response = Response::read(frame.body).ok()?;
            service.handle_answer(now, response.id, &response);
            Some(false)
        }
        opcode::WELCOME => {
            let welcome = Welcome::read(frame.body).ok()?;
            service.handle_link_welcome(link, &welcome);
            Some(true)
        }
        opcode::ERROR => {
            let refusal = Refusal::read(frame.body).ok()?;
            service.count_refused(now, "link of the Redis gateway", refusal.reason);
            None
        }
        _ => None,
    }
}
