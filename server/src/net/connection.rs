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
//!
//! Memory: a long frame is received only as far as it came with other bytes, until all its memory is
//! reserved ([`crate::connection_memory`]); whatever else waits here is counted.

use std::sync::Arc;
use std::time::Duration;

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

use crate::connection_memory::FrameMemory;
use crate::crowd::Address;
use crate::service::{Ahead, Service};

const HELLO_RULES: FrameRules = FrameRules::unchecked(MAX_HELLO_BODY);
/// Opcodes from here on are those of the cluster's own connections (docs/protocol.md).
const FIRST_FOREIGN_OPCODE: u8 = 0x40;
/// A connection that waits for requests keeps no larger buffer than this: thousands may be idle.
const IDLE_INPUT: usize = 1 << 10;
const REQUEST_RULES: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);
/// A frame of more bytes that has come in part has the memory for its next bytes reserved, so many of them.
const RESERVED_FRAME: usize = 16 << 10;
const RESERVED_AHEAD: usize = 256 << 10;
/// A frame that gets no memory for its next bytes for this long is given up: those before it in the line may be of
/// clients that never send the rest. Its client sends it again.
const MEMORY_DEADLINE: Duration = Duration::from_secs(3);
/// A long frame of which nothing comes for this long makes room if another waits for its memory.
const STALL_UNDER_PRESSURE: Duration = Duration::from_millis(250);

/// The input side of a client's connection; its output is in the [`Service`].
#[derive(Debug)]
pub(crate) struct Connection {
    input: FrameBuffer,
    session: Session,
    /// When the hello, or the frame that has come in part, is to be whole.
    deadline: Option<Time>,
    /// Whether the engine has the input buffer.
    is_lent: bool,
    /// Of a long frame that has come in part.
    memory: Option<FrameMemory>,
    /// It is not read from before that has memory for its next bytes; since then.
    waits_since: Option<Time>,
    /// What the input buffer counts as among the memory of connections, beside what is reserved.
    counted: usize,
    last_input: Time,
}

/// What the frames so far have made of the connection.
#[derive(Debug)]
struct Session {
    id: ConnectionId,
    client: Option<ClientId>,
    from: Address,
    errors_in_a_row: u32,
}

/// Whether the frames after this one are to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Frame,
    Close,
}

impl Connection {
    /// Notes the address that the connection comes from.
    pub(crate) fn set_address(&mut self, from: Address) {
        self.session.from = from;
    }

    /// A connection that was accepted at `now` and has not said hello.
    pub(crate) fn new(now: Time, id: ConnectionId) -> Connection {
        Connection {
            input: FrameBuffer::new(HELLO_RULES),
            session: Session { id, client: None, from: Address::UNKNOWN, errors_in_a_row: 0 },
            deadline: Some(now + HELLO_DEADLINE),
            is_lent: false,
            memory: None,
            waits_since: None,
            counted: 0,
            last_input: now,
        }
    }

    /// Takes received bytes and serves the whole frames among them.
    pub(crate) fn on_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        if self.is_closing(service) {
            return;
        }
        self.last_input = now;
        self.take_bytes(now, service, received);
        self.claim_memory(now, service);
    }

    fn take_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
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
        let mut ahead = Ahead::default();
        while !rest.is_empty() && service.outputs.may_serve(self.session.id) {
            if ahead.is_over() {
                ahead = service.look_ahead(rest, &REQUEST_RULES);
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

    /// Its id, if it is between two requests.
    pub(crate) fn idle(&self) -> Option<ConnectionId> {
        let is_idle = self.session.client.is_some() && !self.is_lent && !self.input.is_partial();
        is_idle.then_some(self.session.id)
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
        self.last_input = now;
        if !self.is_closing(service) {
            self.resume(now, service);
            self.claim_memory(now, service);
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
        self.claim_memory(now, service);
    }

    /// Has memory for the next bytes of a long frame that has come in part reserved, and all other counted.
    fn claim_memory(&mut self, now: Time, service: &mut Service) {
        let length = self.input.length_of_partial();
        if length > RESERVED_FRAME {
            if self.has_reserved(service, length) {
                self.stop_waiting(service);
            } else if self.waits_since.is_none() {
                self.waits_since = Some(now);
                service.waiting_frames.push_back(self.session.id);
            }
        } else {
            self.stop_waiting(service);
            // A frame that has come whole keeps its memory until it is served.
            if !self.input.is_partial() || length > 0 {
                self.memory = None;
            }
        }
        self.count_memory(now, service);
    }

    /// Whether the memory for the next bytes of its frame of this length is reserved, by now.
    fn has_reserved(&mut self, service: &mut Service, length: usize) -> bool {
        let came = self.input.waiting().len();
        let memory = self
            .memory
            .get_or_insert_with(|| FrameMemory::new(Arc::clone(service.outputs.tally().memory())));
        let is_reserved = memory.reserve(came + (length - came).min(RESERVED_AHEAD));
        if is_reserved {
            self.input.reserve_missing(RESERVED_AHEAD);
        }
        is_reserved
    }

    /// Leaves the line: bytes that came though it was not to be read from made the frame whole.
    fn stop_waiting(&mut self, service: &mut Service) {
        if self.waits_since.take().is_some() {
            let id = self.session.id;
            service.waiting_frames.retain(|waiting| *waiting != id);
        }
    }

    /// Whether it goes on waiting for memory; what there is now is reserved.
    pub(crate) fn still_waits(&mut self, now: Time, service: &mut Service) -> bool {
        if self.waits_since.is_none() {
            return false;
        }
        let length = self.input.length_of_partial();
        if !self.has_reserved(service, length) {
            return true;
        }
        self.waits_since = None;
        self.deadline = Some(now + FRAME_DEADLINE);
        self.last_input = now;
        self.count_memory(now, service);
        // It is read from again.
        service.outputs.mark_dirty(self.session.id);
        false
    }

    fn count_memory(&mut self, now: Time, service: &mut Service) {
        let held = match &self.memory {
            Some(memory) => self.input.waiting().len().saturating_sub(memory.bytes()),
            None => self.input.capacity(),
        };
        let before = std::mem::replace(&mut self.counted, held);
        service.outputs.tally().change(before, held);
        if held > before && service.outputs.tally().memory().is_used_up() {
            service.count_refused(now, "connection", "the memory of connections is used up");
            service.outputs.kill(self.session.id);
        }
    }

    /// Whether it has memory reserved and sends nothing, or takes no responses so that its request waits: it is
    /// closed if another waits for memory.
    pub(crate) fn is_stalled_under_pressure(&self, now: Time) -> bool {
        self.memory.is_some()
            && self.waits_since.is_none()
            && self.last_input + STALL_UNDER_PRESSURE <= now
    }

    /// Gives up what it counts as; it ends.
    pub(crate) fn on_closed(&mut self, service: &mut Service) {
        service.outputs.tally().change(std::mem::take(&mut self.counted), 0);
    }

    /// Serves the whole frames that are kept.
    fn resume(&mut self, now: Time, service: &mut Service) {
        let mut served = false;
        while service.outputs.may_serve(self.session.id) {
            let was_greeted = self.session.client.is_some();
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
        if served {
            // The frame that waits now, if any, is another.
            self.memory = None;
            self.stop_waiting(service);
        }
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
        self.waits_since.is_none()
            && !service.outputs.is_full(id)
            && service.outputs.get(id).is_some_and(|output| !output.is_half_closed())
    }

    /// When to close it for what its input lacks.
    pub(crate) fn deadline(&self, service: &mut Service) -> Option<Time> {
        if let Some(since) = self.waits_since {
            return Some(since + MEMORY_DEADLINE);
        }
        // While its output is full, nothing is read: the frame cannot be completed.
        self.deadline.filter(|_| self.session.client.is_none() || self.wants_input(service))
    }

    fn is_closing(&self, service: &mut Service) -> bool {
        service.outputs.get(self.session.id).is_none_or(|output| output.is_closing())
    }
}

impl Session {
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
            opcode if client_opcode::is_request(opcode) => {
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
        service.on_request(now, self.id, (client, self.from), &request);
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
            whole: 0,
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
