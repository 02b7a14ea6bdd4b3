//! A client's connection: received bytes in, requests to the shard's replicas, responses out.
//!
//! ```text
//!   bytes -> frames -> HELLO once -> requests -> Service::handle_request -> responses
//!                          |             |
//!                          +-------------+--> errors: ERROR or RESPONSE with the reason,
//!                                             and a close if the frame boundaries are lost
//! ```
//!
//! The connection is a state machine over bytes. It does not depend on a socket, a clock or a runtime.
//!
//! The memory for the next bytes of a partial long frame is reserved before they are received
//! ([`crate::connection_memory`]). All other buffered bytes are counted.

use std::sync::Arc;
use std::time::Duration;

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{
    Hello, Question, Refusal, Request, Response, Status, Welcome, opcode as client_opcode,
};
use kv_protocol::error::FrameError;
use kv_protocol::frame::{Frame, FrameBuffer, FrameRules, split_frame};
use kv_protocol::ids::{ClientId, ClusterId, SequenceNumber, Time, ViewVersion};
use kv_protocol::limits::{
    FRAME_DEADLINE, HELLO_DEADLINE, MAX_CLIENT_BODY, MAX_ERRORS_IN_A_ROW, MAX_HELLO_BODY,
    MAX_VALUE_BYTES,
};

use crate::address::Address;
use crate::connection_memory::FrameMemory;
use crate::service::{Ahead, Hashed, ReadFrame, Service};

const HELLO_RULES: FrameRules = FrameRules::unchecked(MAX_HELLO_BODY);
/// The lowest opcode of the cluster's internal connections (docs/protocol.md).
const FIRST_FOREIGN_OPCODE: u8 = 0x40;
/// The capacity to which the input buffer of a connection is trimmed. It is small because thousands of connections
/// may be idle.
const IDLE_INPUT: usize = 1 << 10;
const REQUEST_RULES: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);
/// The length above which memory is reserved for the next bytes of a partial frame.
const RESERVED_FRAME: usize = 16 << 10;
/// The maximum number of missing bytes for which memory is reserved at a time.
const RESERVED_AHEAD: usize = 256 << 10;
/// The time after which a connection is closed if it gets no memory for its long frame: the frames before it in the
/// queue may never be completed. The client retries.
const MEMORY_DEADLINE: Duration = Duration::from_secs(3);
/// The time without input after which a connection with a long frame is closed, if another connection waits for memory.
const STALL_UNDER_PRESSURE: Duration = Duration::from_millis(250);

/// The amount of work after which the further requests of a connection are postponed, so that a turn ends in time.
pub(crate) const WORK_AT_ONCE: u32 = 16;

/// The input side of a client's connection; its output is in the [`Service`].
#[derive(Debug)]
pub(crate) struct Connection {
    input: FrameBuffer,
    session: Session,
    /// The deadline of the hello or of the partial frame.
    deadline: Option<Time>,
    /// True while the engine has the input buffer.
    is_lent: bool,
    /// The reserved memory of a partial long frame.
    memory: Option<FrameMemory>,
    /// The time since which the connection waits for memory. Until the connection gets memory, the engine does not
    /// read it.
    waits_since: Option<Time>,
    /// The bytes of the input buffer that are counted as connection memory, in addition to the reserved bytes.
    counted: usize,
    last_input: Time,
}

/// The protocol state of a connection: its client, and the errors since the last valid request.
#[derive(Debug)]
struct Session {
    id: ConnectionId,
    client: Option<ClientId>,
    from: Address,
    errors_in_a_row: u32,
    /// The work for requests since the connection was last given its turn.
    work: u32,
}

/// The decision whether to serve the frames after the current one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Frame,
    Close,
}

impl Connection {
    /// Sets the client address of the connection.
    pub(crate) fn set_address(&mut self, from: Address) {
        self.session.from = from;
    }

    /// Creates the state of a connection that was accepted at `now`.
    pub(crate) fn new(now: Time, id: ConnectionId) -> Connection {
        Connection {
            input: FrameBuffer::new(HELLO_RULES),
            session: Session {
                id,
                client: None,
                from: Address::UNKNOWN,
                errors_in_a_row: 0,
                work: 0,
            },
            deadline: Some(now + HELLO_DEADLINE),
            is_lent: false,
            memory: None,
            waits_since: None,
            counted: 0,
            last_input: now,
        }
    }

    /// Processes received bytes and serves the complete frames among them.
    pub(crate) fn handle_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        if self.is_closing(service) {
            return;
        }
        self.last_input = now;
        self.take_bytes(now, service, received);
        self.claim_memory(now, service);
    }

    fn take_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        let (has_hello, is_cut) = (self.session.client.is_some(), self.input.is_partial());
        let mut rest = received;
        if has_hello && is_cut {
            rest = &rest[self.input.complete(rest)..];
        }
        // True if the buffer starts with a complete frame, which waits for room in the output.
        let is_kept_back = is_cut && rest.len() == received.len();
        if !has_hello || is_kept_back {
            self.input.extend(received);
            return self.resume(now, service);
        }
        if is_cut {
            self.resume(now, service);
            if self.input.is_partial() || self.is_closing(service) {
                return self.input.extend(rest);
            }
        }
        // In the usual case the received bytes contain complete frames, which are served without a copy.
        if let Some(rest) = self.session.serve_all(now, service, rest) {
            self.input.extend(rest);
            self.deadline = self.input.is_partial().then(|| now + FRAME_DEADLINE);
        }
    }

    /// Returns the connection's id if its hello is complete and no request is being received.
    pub(crate) fn idle(&self) -> Option<ConnectionId> {
        let is_idle = self.session.client.is_some() && !self.is_lent && !self.input.is_partial();
        is_idle.then_some(self.session.id)
    }

    /// Returns the number of missing bytes of the partial frame.
    pub(crate) fn missing(&self) -> usize {
        self.input.missing()
    }

    /// Lends the input buffer, with the number of missing bytes, if at least `least` bytes of one frame are missing.
    pub(crate) fn lend_input(&mut self, least: usize) -> Option<(Vec<u8>, usize)> {
        let missing = self.input.missing();
        if missing < least || self.is_lent {
            return None;
        }
        self.is_lent = true;
        Some((self.input.lend(), missing))
    }

    /// Takes the input buffer back and processes the bytes that were received into it.
    pub(crate) fn take_input_back(&mut self, now: Time, service: &mut Service, buffer: Vec<u8>) {
        self.is_lent = false;
        self.input.take_back(buffer);
        self.last_input = now;
        if !self.is_closing(service) {
            self.resume(now, service);
            self.claim_memory(now, service);
        }
    }

    /// Continues with the frames that were held back while the output was full. A partial frame gets a new deadline,
    /// because the rest of it could not be read meanwhile.
    pub(crate) fn handle_output_drained(&mut self, now: Time, service: &mut Service) {
        if self.is_lent {
            return;
        }
        if self.session.client.is_some() {
            self.deadline = None;
        }
        self.resume(now, service);
        self.claim_memory(now, service);
    }

    /// Reserves memory for the next bytes of a partial long frame, and counts all other memory.
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
            // A complete frame keeps its memory until it is served.
            if !self.input.is_partial() || length > 0 {
                self.memory = None;
            }
        }
        self.count_memory(now, service);
    }

    /// Reserves memory for the next bytes of the partial frame of this length; returns whether it is reserved.
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

    /// Leaves the queue for memory, if the connection is in it.
    fn stop_waiting(&mut self, service: &mut Service) {
        if self.waits_since.take().is_some() {
            let id = self.session.id;
            service.waiting_frames.retain(|waiting| *waiting != id);
        }
    }

    /// Reserves memory if it is available now; returns whether the connection still waits for memory.
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
        // The engine must resume reading.
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
            let reason = "the memory budget of connections is used up; raise --connection-memory";
            service.count_refused(now, "connection", reason);
            service.outputs.kill(self.session.id);
        }
    }

    /// Returns whether the connection has reserved memory but has made no progress for [`STALL_UNDER_PRESSURE`]: its
    /// client sends nothing, or its request waits because the client receives no responses. Such a connection is closed
    /// if another one waits for memory.
    pub(crate) fn is_stalled_under_pressure(&self, now: Time) -> bool {
        self.memory.is_some()
            && self.waits_since.is_none()
            && self.last_input + STALL_UNDER_PRESSURE <= now
    }

    /// Stops counting the memory of this connection, which is being closed.
    pub(crate) fn handle_closed(&mut self, service: &mut Service) {
        service.outputs.tally().change(std::mem::take(&mut self.counted), 0);
    }

    /// Serves the complete frames in the input buffer.
    fn resume(&mut self, now: Time, service: &mut Service) {
        let mut served = false;
        self.session.work = 0;
        while self.session.may_go_on(service) {
            let had_hello = self.session.client.is_some();
            match self.input.next_frame() {
                Ok(Some(frame)) => {
                    served = true;
                    let read = service.read_frame(frame);
                    if self.session.serve(now, service, &read) == Next::Close {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => return self.session.lose_place(now, service, error),
            }
            if !had_hello && self.session.client.is_some() {
                self.input.set_rules(REQUEST_RULES);
            }
        }
        self.input.trim(IDLE_INPUT);
        if served {
            // If a frame waits now, it is a new one, for which no memory is reserved yet.
            self.memory = None;
            self.stop_waiting(service);
        }
        if self.session.client.is_none() {
            return;
        }
        match self.deadline {
            _ if !self.input.is_partial() => self.deadline = None,
            // A new frame waits, so it gets a new deadline.
            _ if served => self.deadline = Some(now + FRAME_DEADLINE),
            None => self.deadline = Some(now + FRAME_DEADLINE),
            Some(_) => {}
        }
    }

    /// Returns whether more bytes may be read from the socket.
    pub(crate) fn wants_input(&self, service: &mut Service) -> bool {
        let id = self.session.id;
        self.waits_since.is_none()
            && !service.outputs.is_full(id)
            && service.outputs.get(id).is_some_and(|output| !output.is_half_closed())
    }

    /// Returns when to close the connection because its input is incomplete.
    pub(crate) fn deadline(&self, service: &mut Service) -> Option<Time> {
        if let Some(since) = self.waits_since {
            return Some(since + MEMORY_DEADLINE);
        }
        // While the output is full the connection is not read, so the partial frame cannot be completed and has no
        // deadline.
        self.deadline.filter(|_| self.session.client.is_none() || self.wants_input(service))
    }

    fn is_closing(&self, service: &mut Service) -> bool {
        service.outputs.get(self.session.id).is_none_or(|output| output.is_closing())
    }
}

impl Session {
    /// Serves the complete frames at the beginning of `received`, as long as the output has room. Returns the remaining
    /// bytes, or `None` if the connection closes.
    fn serve_all<'a>(
        &mut self,
        now: Time,
        service: &mut Service,
        received: &'a [u8],
    ) -> Option<&'a [u8]> {
        self.work = 0;
        if !service.outputs.may_serve(self.id) {
            return Some(received);
        }
        // Look-ahead gains nothing for a single request.
        match split_frame(received, &REQUEST_RULES) {
            Ok(Some(frame)) if frame.consumed == received.len() => {
                let read = service.read_frame(frame);
                (self.serve(now, service, &read) == Next::Frame).then_some(&[])
            }
            _ => self.serve_ahead(now, service, received),
        }
    }

    /// Returns whether the next request may be served now. If the requests so far took long, postpones it.
    fn may_go_on(&self, service: &mut Service) -> bool {
        if self.work >= WORK_AT_ONCE {
            service.outputs.postpone(self.id);
        }
        service.outputs.may_serve(self.id)
    }

    /// Does the same as [`Session::serve_all`], with look-ahead.
    fn serve_ahead<'a>(
        &mut self,
        now: Time,
        service: &mut Service,
        received: &'a [u8],
    ) -> Option<&'a [u8]> {
        let (mut ahead, mut rest) = (Ahead::default(), received);
        while !rest.is_empty() && self.may_go_on(service) {
            if ahead.is_over() {
                if let Err(error) = service.look_ahead(&mut ahead, rest, &REQUEST_RULES) {
                    self.lose_place(now, service, error);
                    return None;
                }
                if ahead.is_over() {
                    break;
                }
            }
            let Some(read) = ahead.take() else { break };
            rest = &rest[read.frame.consumed..];
            if self.serve(now, service, &read) == Next::Close {
                return None;
            }
        }
        Some(rest)
    }

    /// Serves one frame.
    fn serve(&mut self, now: Time, service: &mut Service, read: &ReadFrame<'_>) -> Next {
        let frame = read.frame;
        let Some(client) = self.client else {
            return self.take_hello(now, service, frame);
        };
        match frame.opcode {
            opcode if client_opcode::is_request(opcode) => match &read.request {
                Some(request) => self.serve_request(now, service, client, request, read.is_proven),
                None => self.refuse_layout(now, service, frame),
            },
            client_opcode::MAP => match Question::read(frame.opcode, frame.body) {
                Ok(_) => {
                    self.errors_in_a_row = 0;
                    service.respond_to_map(self.id);
                    Next::Frame
                }
                Err(error) => self.refuse_frame(now, service, Status::Invalid, &error.to_string()),
            },
            client_opcode::HELLO => self.part(
                now,
                service,
                Status::Invalid,
                "HELLO is permitted only as the first frame of a connection",
            ),
            // The opcode belongs to another port; close the connection.
            FIRST_FOREIGN_OPCODE.. => self.part(
                now,
                service,
                Status::Unsupported,
                "this is the port for clients; connect to the port for servers",
            ),
            _ => match Request::read(frame.opcode, frame.body) {
                Err(error) => {
                    self.refuse_frame(now, service, Status::Unsupported, &error.to_string())
                }
                Ok(_) => unreachable!("opcodes of requests are served above"),
            },
        }
    }

    fn take_hello(&mut self, now: Time, service: &mut Service, frame: Frame<'_>) -> Next {
        if frame.opcode != client_opcode::HELLO {
            let reason = format!(
                "the first frame of a client's connection must be HELLO, but has opcode {:#04x}",
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
        if let Err((status, reason)) = hello.check_placement(identity.placement) {
            return self.part(now, service, status, reason);
        }
        let shards = identity.placement.shards();
        if hello.shard.0 >= shards {
            let reason = format!(
                "shard {} does not exist: this cluster has {shards} shards, counted from 0",
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
            version: hello.agreed_version(),
        };
        service.outputs.append(self.id, |bytes| welcome.write(bytes));
        Next::Frame
    }

    fn serve_request(
        &mut self,
        now: Time,
        service: &mut Service,
        client: ClientId,
        hashed: &Hashed<'_>,
        is_proven: bool,
    ) -> Next {
        let request = &hashed.request;
        let judged = request.validate().and_then(|()| match is_proven {
            true => Ok(()),
            false => service.check_digest(request),
        });
        if let Err((status, reason)) = judged {
            service.respond_with_refusal(self.id, request.id, status, reason);
            return self.count_error(now, service, reason);
        }
        self.errors_in_a_row = 0;
        service.handle_request(now, self.id, (client, self.from), hashed);
        self.work += service.work_of(request);
        Next::Frame
    }

    /// Rejects a request that does not have the layout of its opcode: with a RESPONSE if it contains an id, else with
    /// an ERROR.
    fn refuse_layout(&mut self, now: Time, service: &mut Service, frame: Frame<'_>) -> Next {
        let reason = match Request::read(frame.opcode, frame.body) {
            Err(error) => error.to_string(),
            Ok(_) => unreachable!("a request with its layout is served"),
        };
        let Some(id) = Request::read_id(frame.body) else {
            return self.refuse_frame(now, service, Status::Invalid, &reason);
        };
        let response = Response {
            id,
            status: Status::Invalid,
            copies: 0,
            view: ViewVersion(0),
            version: SequenceNumber::ZERO,
            value: reason.as_bytes(),
            whole: 0,
            has_value: false,
            deadline: None,
        };
        service.outputs.append(self.id, |bytes| response.write(bytes));
        self.count_error(now, service, &reason)
    }

    /// Sends an ERROR for a frame that is not served. The connection stays open unless there were too many errors in a
    /// row.
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
            format!("{MAX_ERRORS_IN_A_ROW} malformed requests in a row; the last one: {reason}");
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

    /// Sends the reason as an ERROR, then closes the connection.
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

#[cfg(test)]
#[path = "postponed_tests.rs"]
mod postponed_tests;
