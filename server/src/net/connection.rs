//! A client's connection: received bytes in, requests to the shard's replicas, answers out.
//!
//! ```text
//!   bytes -> frames -> HELLO once -> requests -> Service::on_request -> answers
//!                          |             |
//!                          +-------------+--> what is wrong: ERROR or ANSWER in words,
//!                                             and a close where the stream has lost its place
//! ```
//!
//! A state machine over bytes: it knows no socket, no clock and no runtime.

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{
    Answer, Hello, Question, Refusal, Request, Status, Welcome, opcode as client_opcode,
};
use kv_protocol::error::{DecodeError, FrameError};
use kv_protocol::frame::{Frame, FrameBuffer, FrameRules, split_frame};
use kv_protocol::ids::{ClientId, ClusterId, SequenceNumber, Time, ViewVersion};
use kv_protocol::limits::{
    FRAME_DEADLINE, HELLO_DEADLINE, MAX_CLIENT_BODY, MAX_ERRORS_IN_A_ROW, MAX_HELLO_BODY,
    MAX_VALUE_BYTES,
};

use crate::service::{Ahead, Run, Service};

const HELLO_RULES: FrameRules = FrameRules::unchecked(MAX_HELLO_BODY);
/// Opcodes from here on are those of the cluster's own connections (docs/protocol.md).
const FIRST_FOREIGN_OPCODE: u8 = 0x40;
/// A connection that waits for requests keeps no larger buffer than this: thousands may be idle.
const IDLE_INPUT: usize = 1 << 10;
const REQUEST_RULES: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);

/// The input side of a client's connection; its output is in the [`Service`].
#[derive(Debug)]
pub(crate) struct Connection {
    input: FrameBuffer,
    session: Session,
    /// When the hello, or the frame that has come in part, is to be whole.
    deadline: Option<Time>,
    /// Whether the engine has the input buffer.
    is_lent: bool,
}

/// What the frames so far have made of the connection.
#[derive(Debug)]
struct Session {
    id: ConnectionId,
    client: Option<ClientId>,
    errors_in_a_row: u32,
}

/// Whether the frames after this one are to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Frame,
    Close,
}

impl Connection {
    /// A connection that was accepted at `now` and has not said hello.
    pub(crate) fn new(now: Time, id: ConnectionId) -> Connection {
        Connection {
            input: FrameBuffer::new(HELLO_RULES),
            session: Session { id, client: None, errors_in_a_row: 0 },
            deadline: Some(now + HELLO_DEADLINE),
            is_lent: false,
        }
    }

    /// Takes received bytes and serves the whole frames among them.
    pub(crate) fn on_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        if self.is_closing(service) {
            return;
        }
        let (is_greeted, is_cut) = (self.session.client.is_some(), self.input.is_partial());
        let mut rest = received;
        if is_greeted && is_cut {
            rest = &rest[self.input.complete(rest)..];
        }
        // A frame that waits whole waits for room in the output.
        let is_kept_back = is_cut && rest.len() == received.len();
        if !is_greeted || is_kept_back {
            self.input.extend(received);
            return self.resume(now, service);
        }
        if is_cut {
            self.resume(now, service);
            if self.input.is_partial() || self.is_closing(service) {
                return self.input.extend(rest);
            }
        }
        // The usual case: whole frames, served out of the bytes as they were received.
        let (mut ahead, mut seen) = (Ahead::default(), Run::default());
        while !rest.is_empty() && self.session.may_serve(service) {
            if ahead.is_over() {
                ahead = service.look_ahead(rest, &REQUEST_RULES);
            }
            if self.session.serve_directly(now, service, rest, &mut seen) {
                rest = &rest[seen.bytes..];
                ahead.pass(seen.frames);
                seen = Run::default();
                continue;
            }
            let is_proven = ahead.take();
            match split_frame(rest, &REQUEST_RULES) {
                Ok(Some(frame)) => {
                    rest = &rest[frame.consumed..];
                    if self.session.serve(now, service, frame, is_proven) == Next::Close {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => return self.session.lose_place(now, service, error),
            }
        }
        self.input.extend(rest);
        self.deadline = self.input.is_partial().then(|| now + FRAME_DEADLINE);
    }

    /// How many bytes the frame that has come in part lacks.
    pub(crate) fn missing(&self) -> usize {
        self.input.missing()
    }

    /// Lends the input buffer, if at least so many bytes of one frame are missing; with their number.
    pub(crate) fn lend_input(&mut self, least: usize) -> Option<(Vec<u8>, usize)> {
        let missing = self.input.missing();
        if missing < least || self.is_lent {
            return None;
        }
        self.is_lent = true;
        Some((self.input.lend(), missing))
    }

    /// Takes the input buffer back, with what was received behind what it held.
    pub(crate) fn take_input_back(&mut self, now: Time, service: &mut Service, buffer: Vec<u8>) {
        self.is_lent = false;
        self.input.take_back(buffer);
        if !self.is_closing(service) {
            self.resume(now, service);
        }
    }

    /// Goes on with the frames that were kept back while the output was full. A frame that was cut
    /// then has all its time from now on: its rest could not be read before.
    pub(crate) fn on_output_drained(&mut self, now: Time, service: &mut Service) {
        if self.is_lent {
            return;
        }
        if self.session.client.is_some() {
            self.deadline = None;
        }
        self.resume(now, service);
    }

    /// Serves the whole frames that are kept.
    fn resume(&mut self, now: Time, service: &mut Service) {
        let (mut served, mut seen) = (false, Run::default());
        while self.session.may_serve(service) {
            let was_greeted = self.session.client.is_some();
            if self.session.serve_directly(now, service, self.input.waiting(), &mut seen) {
                self.input.skip(seen.bytes);
                seen = Run::default();
                served = true;
                continue;
            }
            match self.input.next_frame() {
                Ok(Some(frame)) => {
                    served = true;
                    if self.session.serve(now, service, frame, false) == Next::Close {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => return self.session.lose_place(now, service, error),
            }
            if !was_greeted && self.session.client.is_some() {
                self.input.set_rules(REQUEST_RULES);
            }
        }
        self.input.trim(IDLE_INPUT);
        if self.session.client.is_none() {
            return;
        }
        match self.deadline {
            _ if !self.input.is_partial() => self.deadline = None,
            // The frame that waits now is another than the one that was waited for.
            _ if served => self.deadline = Some(now + FRAME_DEADLINE),
            None => self.deadline = Some(now + FRAME_DEADLINE),
            Some(_) => {}
        }
    }

    /// Whether more bytes may be read from the socket.
    pub(crate) fn wants_input(&self, service: &mut Service) -> bool {
        let id = self.session.id;
        service.outputs.get(id).is_some_and(|output| !output.is_full() && !output.is_half_closed())
    }

    /// When to close it for what its input lacks.
    pub(crate) fn deadline(&self, service: &mut Service) -> Option<Time> {
        // While its output is full, nothing is read: the frame cannot be completed.
        self.deadline.filter(|_| self.session.client.is_none() || self.wants_input(service))
    }

    fn is_closing(&self, service: &mut Service) -> bool {
        service.outputs.get(self.session.id).is_none_or(|output| output.is_closing())
    }
}

impl Session {
    fn may_serve(&self, service: &mut Service) -> bool {
        service.outputs.get(self.id).is_some_and(|output| !output.is_full() && !output.is_closing())
    }

    /// Serves the run of reads at the beginning of these bytes if they can be answered directly. What was seen
    /// of the bytes and is left to be served one by one is not looked at twice.
    fn serve_directly(
        &mut self,
        now: Time,
        service: &mut Service,
        waiting: &[u8],
        seen: &mut Run,
    ) -> bool {
        if seen.frames > 0 {
            seen.frames -= 1;
            return false;
        }
        if self.client.is_none() {
            return false;
        }
        *seen = service.answer_directly(now, self.id, waiting, &REQUEST_RULES);
        if seen.is_answered {
            self.errors_in_a_row = 0;
        } else {
            // The first of them is served now.
            seen.frames = seen.frames.saturating_sub(1);
        }
        seen.is_answered
    }

    /// Serves one frame, whose digest may be known to be right.
    fn serve(
        &mut self,
        now: Time,
        service: &mut Service,
        frame: Frame<'_>,
        is_proven: bool,
    ) -> Next {
        let Some(client) = self.client else {
            return self.greet(now, service, frame);
        };
        match frame.opcode {
            client_opcode::GET..=client_opcode::VERIFY => {
                self.serve_request(now, service, client, frame, is_proven)
            }
            client_opcode::MAP => match Question::read(frame.opcode, frame.body) {
                Ok(_) => {
                    self.errors_in_a_row = 0;
                    service.answer_map(self.id);
                    Next::Frame
                }
                Err(error) => self.refuse_frame(now, service, Status::Invalid, &error.to_string()),
            },
            client_opcode::HELLO => {
                self.part(now, service, Status::Invalid, "a connection has one HELLO, its first")
            }
            // Opcodes of other ports: whoever sends them has lost his way altogether.
            FIRST_FOREIGN_OPCODE.. => self.part(
                now,
                service,
                Status::Unsupported,
                "this is the clients' port; peers and coordinators have ports of their own",
            ),
            _ => match Request::read(frame.opcode, frame.body) {
                Err(error) => {
                    self.refuse_frame(now, service, Status::Unsupported, &error.to_string())
                }
                Ok(_) => unreachable!("opcodes of requests are served above"),
            },
        }
    }

    fn greet(&mut self, now: Time, service: &mut Service, frame: Frame<'_>) -> Next {
        if frame.opcode != client_opcode::HELLO {
            let reason = format!(
                "the first frame of a client's connection is HELLO, not opcode {:#04x}",
                frame.opcode
            );
            return self.part(now, service, Status::Unsupported, &reason);
        }
        let hello = match Hello::read(frame.body) {
            Ok(hello) => hello,
            Err(error) => return self.part(now, service, Status::Invalid, &error.to_string()),
        };
        let identity = service.identity;
        if hello.cluster != ClusterId(0) && hello.cluster != identity.cluster {
            let reason = format!(
                "this server belongs to cluster {}, not {}; fetch the map again",
                identity.cluster, hello.cluster
            );
            return self.part(now, service, Status::WrongView, &reason);
        }
        let shards = identity.placement.shards();
        if hello.shard.0 >= shards {
            let reason = format!(
                "shard {} does not exist: this cluster has {shards}, counted from 0",
                hello.shard
            );
            return self.part(now, service, Status::Invalid, &reason);
        }
        self.client = Some(hello.client);
        let welcome = Welcome {
            cluster: identity.cluster,
            server: Some(identity.me),
            servers: identity.placement.servers(),
            shards,
            max_value: u32::try_from(MAX_VALUE_BYTES).expect("16 MiB fit 32 bits"),
            starts: service.session_starts(),
        };
        service.outputs.append(self.id, |bytes| welcome.write(bytes));
        Next::Frame
    }

    fn serve_request(
        &mut self,
        now: Time,
        service: &mut Service,
        client: ClientId,
        frame: Frame<'_>,
        is_proven: bool,
    ) -> Next {
        let request = match Request::read(frame.opcode, frame.body) {
            Ok(request) => request,
            Err(error) => return self.refuse_layout(now, service, frame, error),
        };
        let judged = request.validate().and_then(|()| match is_proven {
            true => Ok(()),
            false => service.check_digest(&request),
        });
        if let Err((status, reason)) = judged {
            service.answer_refusal(self.id, request.id, status, reason);
            return self.count_error(now, service, reason);
        }
        self.errors_in_a_row = 0;
        service.on_request(now, self.id, client, &request);
        Next::Frame
    }

    /// A request without the layout of its opcode: answered if it has an id at least.
    fn refuse_layout(
        &mut self,
        now: Time,
        service: &mut Service,
        frame: Frame<'_>,
        error: DecodeError,
    ) -> Next {
        let reason = error.to_string();
        let Some(id) = Request::read_id(frame.body) else {
            return self.refuse_frame(now, service, Status::Invalid, &reason);
        };
        let answer = Answer {
            id,
            status: Status::Invalid,
            copies: 0,
            view: ViewVersion(0),
            version: SequenceNumber::ZERO,
            value: reason.as_bytes(),
        };
        service.outputs.append(self.id, |bytes| answer.write(bytes));
        self.count_error(now, service, &reason)
    }

    /// Says that a frame is not served; the connection stays.
    fn refuse_frame(
        &mut self,
        now: Time,
        service: &mut Service,
        status: Status,
        reason: &str,
    ) -> Next {
        service.outputs.append(self.id, |bytes| Refusal { status, reason }.write(bytes));
        self.count_error(now, service, reason)
    }

    fn count_error(&mut self, now: Time, service: &mut Service, reason: &str) -> Next {
        self.errors_in_a_row += 1;
        if self.errors_in_a_row < MAX_ERRORS_IN_A_ROW {
            service.count_refused(now, "request", reason);
            return Next::Frame;
        }
        let reason =
            format!("{MAX_ERRORS_IN_A_ROW} malformed requests in a row, the last: {reason}");
        self.part(now, service, Status::Invalid, &reason)
    }

    fn lose_place(&mut self, now: Time, service: &mut Service, error: FrameError) {
        let status = match error {
            FrameError::UnsupportedVersion { .. } => Status::Unsupported,
            FrameError::TooLong { .. } => Status::TooBig,
            _ => Status::Invalid,
        };
        self.part(now, service, status, &error.to_string());
    }

    /// Says why, then closes.
    fn part(&mut self, now: Time, service: &mut Service, status: Status, reason: &str) -> Next {
        service.count_refused(now, "client connection", reason);
        service.outputs.append(self.id, |bytes| Refusal { status, reason }.write(bytes));
        if let Some(output) = service.outputs.get(self.id) {
            output.close_after_last_words(now);
        }
        Next::Close
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
