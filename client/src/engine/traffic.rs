//! The engine's traffic: connections opened and lost, requests sent, responses received.
//!
//! Invalid bytes from a server only close its connection. The operations on that connection are retried until their
//! deadlines.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kv_protocol::client_message::{Refusal, Response, Status, Welcome, opcode, read_map_response};
use kv_protocol::escape;
use kv_protocol::frame::{FrameBuffer, HEADER_BYTES};
use kv_protocol::ids::{ClientId, Epoch, GroupId, MapRevision, Member, RequestId, ShardId};
use kv_protocol::map::MapServer;
use kv_protocol::session::Session;

use super::Engine;
use super::counting::End;
use super::scanning::{is_valid_page, progress};
use super::updating::{conflict, has_all_results, logged_failure, rejection};
use crate::address::Address;
use crate::completion::{Ends, Reply};
use crate::connection::{Connection, MAX_OUTSTANDING, MAX_READS, ReceiveError, Received, Target};
use crate::error::Error;
use crate::events::{Event, tell_changes};
use crate::landing::{Inflow, LONG_BYTES, Landed, Landing};
use crate::log::Level;
use crate::map_source::Source;
use crate::operation::{Kind, OpId, Operation, Stage};
use crate::output::Released;
use crate::poller::Readiness;
use crate::route_cache::Place;
use crate::router::MapRefusal;

/// The longest response whose buffer an idle connection keeps.
const MAX_KEPT_INPUT: usize = 256 << 10;

/// The maximum number of bytes of a server's text that a message contains.
const MAX_REASON_BYTES: usize = 300;

/// The version of the protocol that introduced UPDATE, deadlines, and parts counted from the end.
const UPDATES_SINCE: u16 = 2;
/// The offset of the opcode in a frame's header.
const OPCODE_AT: usize = 5;

/// The parts of the previous map with which the new one is compared, to report the changes as events.
struct Before {
    revision: Option<(Epoch, MapRevision)>,
    servers: Vec<MapServer>,
}

/// The next step for a connection after a frame.
enum Flow {
    GoOn,
    /// The connection is no longer needed and is closed.
    Close,
}

impl Engine {
    // --- Connections -----------------------------------------------------------------------------

    /// Returns the connection to `target`, opening it if there is none.
    pub(super) fn connect(&mut self, target: Target, now: Instant) -> io::Result<u64> {
        if let Some(&token) = self.by_target.get(&target) {
            return Ok(token);
        }
        let hello = Connection::hello(&target, self.router.cluster(), self.client);
        let is_retired = match target {
            Target::Shard { client, .. } => !self.is_in_use(client),
            Target::Map { .. } => false,
        };
        let path = self.socket_of(&target);
        let opened = loop {
            let poller = &self.poller;
            let opened = self.connections.try_insert_with(|token| {
                let path = path.clone();
                let mut connection = Connection::open(target, path, hello, token, poller, now)?;
                connection.is_retired = is_retired;
                Ok::<_, io::Error>(connection)
            });
            match opened {
                Err(error) if is_out_of_descriptors(&error) && self.close_idle() => {}
                opened => break opened,
            }
        };
        let token = opened?;
        self.by_target.insert(target, token);
        self.wake_by(now + self.options.connect_timeout);
        Ok(token)
    }

    /// Returns the Unix-domain socket by which a target may be reached.
    fn socket_of(&self, target: &Target) -> Option<Arc<Path>> {
        match *target {
            Target::Shard { member, .. } => self.sockets.of_process(member),
            Target::Map { place } => self.sockets.of_server(place.server?),
        }
    }

    /// Returns the address of a process to which no connection could be opened: its socket if there is one, or else
    /// that of the map.
    pub(super) fn shown_address(&self, member: Member, address: SocketAddr) -> Address {
        let path = self.sockets.of_process(member).filter(|path| path.exists());
        path.map_or(Address::Tcp(address), Address::Unix)
    }

    /// Closes the connection that has been idle for longest, to free its descriptor. Returns false if none is idle.
    fn close_idle(&mut self) -> bool {
        let idle = self.connections.iter().filter(|(_, connection)| connection.is_idle());
        let Some((token, _)) = idle.min_by_key(|(_, connection)| connection.heard_at) else {
            return false;
        };
        if let Some(connection) = self.connections.remove(token) {
            self.close(&connection, "it was idle, and its descriptor was needed");
        }
        true
    }

    pub(super) fn ask_for_map(&mut self, now: Instant) {
        let (source, place) = self.map_source.next(now);
        match self.connect(Target::Map { place }, now) {
            Ok(token) => self.map_source.asking(source, token, now),
            Err(error) => self.on_no_map(source, &error.to_string(), now),
        }
    }

    /// Handles a source that provided no usable map.
    fn on_no_map(&mut self, source: Source, why: &str, now: Instant) {
        let has_asked_all = self.map_source.failed(source, why, &mut self.random, now);
        self.is_stranded |= has_asked_all && self.other_cluster.is_some();
    }

    /// Closes a failed connection, if it still exists, and retries its operations.
    pub(super) fn lose(&mut self, token: u64, why: &str, now: Instant) {
        if let Some(connection) = self.connections.remove(token) {
            self.bury(connection, why, now);
        }
    }

    /// Closes a connection that the client no longer needs and that was removed from the table.
    fn close(&mut self, connection: &Connection, why: &str) {
        self.forget(connection);
        self.note_closed(connection, &End::Closed(why));
    }

    fn forget(&mut self, connection: &Connection) {
        self.by_target.remove(&connection.target);
        connection.unregister(&self.poller);
    }

    /// Closes a connection that is retired and idle.
    fn close_if_done(&mut self, token: u64) {
        if self.connections.get(token).is_some_and(Connection::is_done)
            && let Some(connection) = self.connections.remove(token)
        {
            self.close(&connection, "no session uses its client id any more");
        }
    }

    fn bury(&mut self, connection: Connection, why: &str, now: Instant) {
        self.forget(&connection);
        self.note_closed(&connection, &End::Lost(why));
        let token = connection.token();
        let address = &connection.address;
        let member = match connection.target {
            Target::Map { .. } => {
                let words = || format!("no map from {address}: {why}");
                self.options.log.write(Level::Info, words);
                if let Some(source) = self.map_source.source_of(token) {
                    self.on_no_map(source, why, now);
                }
                if let Some(at) = self.map_source.ask_at() {
                    self.wake_by(at);
                }
                return;
            }
            Target::Shard { member, .. } => member,
        };
        let trouble = format!("server {} at {address}: {why}", member.server);
        let words = || format!("connection lost: {trouble}");
        self.options.log.write(Level::Warning, words);
        let trouble = trouble.into();
        let mut any = false;
        for &id in connection.backlog.iter().chain(connection.outstanding.values()) {
            let Some(operation) = self.operations.get_mut(id) else { continue };
            if operation.queued.is_some_and(|(on, _)| on == token) {
                operation.was_not_sent();
            }
            if matches!(operation.stage, Stage::Assigned { connection: on, .. } if on == token) {
                any = true;
                self.back_off(id, &trouble, now);
            }
        }
        if any {
            self.want_map(Some(member.server));
        }
    }

    // --- Sending ---------------------------------------------------------------------------------

    /// Sends an operation of a connection's backlog.
    fn transmit_backlog(&mut self, id: OpId, token: u64, now: Instant, ends: &mut dyn Ends) {
        let wanted = Stage::Assigned { connection: token, request: None };
        // If the stage differs, the operation was in the backlog twice, or has since been routed elsewhere.
        if self.operations.get(id).is_some_and(|operation| operation.stage == wanted) {
            self.transmit(id, token, now, ends);
        }
    }

    /// Queues the request of an operation on the open connection to which it is assigned.
    pub(super) fn transmit(&mut self, id: OpId, token: u64, now: Instant, ends: &mut dyn Ends) {
        if self.operations.get(id).is_some_and(|operation| operation.queued.is_some()) {
            // An earlier transmission is still queued on another connection.
            self.release(id);
        }
        let Some(operation) = self.operations.get_mut(id) else { return };
        let Some(connection) = self.connections.get_mut(token) else {
            // The connection was lost while its backlog was sent.
            return self.make_ready(id);
        };
        let version = connection.version;
        if let Target::Shard { member, .. } = connection.target
            && version < UPDATES_SINCE
            && operation.needs_updates()
        {
            return self.finish_unsupported(id, member.server, version, ends);
        }
        if let (true, Some(place)) = (operation.kind.is_write(), operation.place)
            && let Some(Place { session, .. }) = self.routes.get_mut(place)
        {
            // A write of an abandoned session keeps the session fields of its last transmission under that session.
            if operation.session.is_some_and(|(client, _)| client == session.client()) {
                operation.begun = session.begun(|| connection.session_start(place.0));
                operation.first_incomplete = session.first_incomplete();
            } else if operation.doubtful == 0 {
                // A new session, with its own connection, has begun since the operation was assigned.
                return self.make_ready(id);
            }
            operation.doubtful += 1;
        }
        let request = RequestId(connection.outstanding.insert(id));
        operation.stage = Stage::Assigned { connection: token, request: Some(request) };
        operation.address(request);
        operation.queued = Some((token, request));
        let is_first = connection.output.push_request(id, request);
        if connection.outstanding.len() > MAX_OUTSTANDING {
            return self.lose(token, "too many of its requests have no response", now);
        }
        if connection.output.is_much()
            && let Err(error) = connection.flush(&mut self.operations, &self.poller)
        {
            return self.lose(token, &error.to_string(), now);
        }
        if is_first {
            self.dirty.push(token);
        }
    }

    /// Removes an operation's request from the connection on which it is queued, so that its frame may change or be
    /// freed. If a part of the request was sent, the connection is closed.
    pub(super) fn release(&mut self, id: OpId) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        let Some((token, request)) = operation.was_not_sent() else { return };
        let Some(connection) = self.connections.get_mut(token) else { return };
        // No response to it will arrive.
        connection.outstanding.remove(request.0);
        if connection.output.release(id, &self.operations) == Released::Cut {
            self.lose(token, "an operation ended with its request partly sent", Instant::now());
        }
    }

    pub(super) fn flush_dirty(&mut self, now: Instant) {
        while let Some(token) = self.dirty.pop() {
            let Some(connection) = self.connections.get_mut(token) else { continue };
            if connection.is_writable()
                && let Err(error) = connection.flush(&mut self.operations, &self.poller)
            {
                self.lose(token, &error.to_string(), now);
            }
        }
    }

    // --- Receiving -------------------------------------------------------------------------------

    pub(super) fn on_readiness(&mut self, event: Readiness, now: Instant, ends: &mut dyn Ends) {
        let token = event.token;
        match self.exchange(event, now, ends) {
            Ok(Flow::Close) => {
                if let Some(connection) = self.connections.remove(token) {
                    self.close(&connection, "it is no longer needed");
                }
            }
            Ok(Flow::GoOn) => {
                let Some(connection) = self.connections.get_mut(token) else { return };
                if connection.is_open && !connection.backlog.is_empty() {
                    for id in std::mem::take(&mut connection.backlog) {
                        self.transmit_backlog(id, token, now, ends);
                    }
                }
                self.close_if_done(token);
            }
            Err(why) => self.lose(token, &why, now),
        }
    }

    /// Sends and receives on one connection. An error is the reason to close the connection.
    fn exchange(
        &mut self,
        event: Readiness,
        now: Instant,
        ends: &mut dyn Ends,
    ) -> Result<Flow, String> {
        let token = event.token;
        if event.writable
            && let Some(connection) = self.connections.get_mut(token)
        {
            connection.check_connect().map_err(|error| error.to_string())?;
            let flushed = connection.flush(&mut self.operations, &self.poller);
            flushed.map_err(|error| error.to_string())?;
        }
        if !event.readable {
            return Ok(Flow::GoOn);
        }
        for _ in 0..MAX_READS {
            if ends.is_enough() {
                // The poller will report the remaining bytes again.
                break;
            }
            let Some(connection) = self.connections.get_mut(token) else { break };
            if let Some(inflow) = &mut connection.inflow {
                let from = Some((token, inflow.request()));
                let operation = self.operations.get(inflow.operation);
                if operation.is_none_or(|operation| operation.lands_from != from) {
                    inflow.discard();
                }
            }
            let received = match connection.receive(now) {
                Ok(Received::End) if connection.has_partial_input() => {
                    return Err(
                        "the peer closed the connection in the middle of a response".to_owned()
                    );
                }
                Ok(Received::End) => return Err("it closed the connection".to_owned()),
                Ok(received) => received,
                Err(error) => {
                    if let ReceiveError::NoMemory { bytes } = error {
                        self.fail_reads(token, bytes, ends);
                    }
                    return Err(error.to_string());
                }
            };
            self.heard_at = Some(now);
            match self.take_frames(token, now, ends)? {
                Flow::Close => return Ok(Flow::Close),
                Flow::GoOn if received == Received::Last => break,
                Flow::GoOn => {}
            }
        }
        Ok(Flow::GoOn)
    }

    /// Ends the reads whose response may have exhausted memory, so that they are not retried until their deadlines.
    fn fail_reads(&mut self, token: u64, bytes: usize, ends: &mut dyn Ends) {
        let Some(connection) = self.connections.get_mut(token) else { return };
        let waiting: Vec<OpId> = connection.outstanding.values().copied().collect();
        for id in waiting {
            let Some(operation) = self.operations.get(id) else { continue };
            if matches!(operation.kind, Kind::Get | Kind::Verify(_) | Kind::Scan) {
                let action = operation.action();
                self.finish(id, Err(Error::NoMemory { action, bytes }), ends);
            }
        }
    }

    /// Processes the complete frames. The connection may no longer exist afterwards.
    fn take_frames(
        &mut self,
        token: u64,
        now: Instant,
        ends: &mut dyn Ends,
    ) -> Result<Flow, String> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(Flow::GoOn) };
        if let Some(inflow) = connection.inflow.take_if(|inflow| inflow.missing() == 0) {
            let request = inflow.request();
            match inflow
                .end(|response, landed| self.on_response(token, response, Some(landed), now, ends))
            {
                Some(reply) => reply?,
                None => self.forget_request(token, request),
            }
            return Ok(Flow::GoOn);
        }
        if connection.inflow.is_some() {
            return Ok(Flow::GoOn);
        }
        let mut input = connection.take_input();
        loop {
            match input.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    match self.on_frame(token, frame.opcode, frame.body, now, ends)? {
                        Flow::GoOn => {}
                        Flow::Close => return Ok(Flow::Close),
                    }
                }
                Err(error) => return Err(format!("it sent {error}")),
            }
        }
        self.begin_inflow(token, &mut input);
        if let Some(connection) = self.connections.get_mut(token) {
            // The capacity of a buffer that grew for a response of that size may be up to twice as large.
            input.trim(2 * (MAX_KEPT_INPUT + 4_096));
            connection.restore_input(input);
        }
        Ok(Flow::GoOn)
    }

    /// Redirects the rest of a partly received long value to the destination that the caller chose.
    fn begin_inflow(&mut self, token: u64, input: &mut FrameBuffer) {
        let missing = input.missing();
        let waiting = input.waiting();
        if missing < LONG_BYTES || waiting.get(OPCODE_AT) != Some(&opcode::RESPONSE) {
            return;
        }
        let Some(connection) = self.connections.get_mut(token).filter(|c| c.is_open) else {
            return;
        };
        // Errors are reported once the whole response has arrived.
        let Ok(response) = Response::read(&waiting[HEADER_BYTES..]) else { return };
        let Some(&id) = connection.outstanding.get(response.id.0) else { return };
        let Some(operation) = self.operations.get_mut(id) else { return };
        let landing = match (response.status, operation.part) {
            // A server without support for parts sends the whole value, of which the caller gets a later part.
            (Status::Ok, Some(part)) if part.from > 0 => Landing::Buffer,
            _ => operation.landing,
        };
        let Some(inflow) = Inflow::begin(id, landing, &response, missing) else { return };
        // A transfer of the value over another connection for the same operation is abandoned, because only one
        // transfer may write.
        operation.lands_from = Some((token, response.id));
        connection.inflow = Some(inflow);
        let taken = waiting.len();
        input.skip(taken);
    }

    /// Removes a request whose response is no longer wanted on this connection.
    fn forget_request(&mut self, token: u64, request: RequestId) {
        if let Some(connection) = self.connections.get_mut(token) {
            connection.outstanding.remove(request.0);
        }
    }

    fn on_frame(
        &mut self,
        token: u64,
        opcode: u8,
        body: &[u8],
        now: Instant,
        ends: &mut dyn Ends,
    ) -> Result<Flow, String> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(Flow::GoOn) };
        let is_open = connection.is_open;
        let nonsense =
            |error: kv_protocol::DecodeError| format!("it sent an invalid frame: {error}");
        let is_for_map = matches!(connection.target, Target::Map { .. });
        if opcode == opcode::RESPONSE && is_open && !is_for_map {
            // This is the most frequent opcode, so it is checked first.
            connection.responses += 1;
            let response = Response::read(body).map_err(nonsense)?;
            self.on_response(token, &response, None, now, ends)?;
            return Ok(Flow::GoOn);
        }
        let (target, address) = (connection.target, connection.address.clone());
        match opcode {
            opcode::ERROR => {
                let Refusal { status, reason } = Refusal::read(body).map_err(nonsense)?;
                // The server belongs to another cluster.
                if !is_open && status == Status::WrongView {
                    self.note_misled(target, &address);
                }
                Err(format!("it rejected the connection ({status}): {}", words(reason.as_bytes())))
            }
            opcode::WELCOME if !is_open => {
                connection.is_open = true;
                let welcome = Welcome::read(body).map_err(nonsense)?;
                connection.starts = welcome.starts;
                connection.version = welcome.version;
                if let Err(why) = self.check_welcome(target, &welcome) {
                    self.note_misled(target, &address);
                    return Err(why);
                }
                self.note_opened(target, address);
                Ok(Flow::GoOn)
            }
            opcode::MAP_RESPONSE if is_open && is_for_map => {
                let map = read_map_response(body).map_err(nonsense)?;
                let words = format!("map {} received from {address}", map.revision);
                let got = map.cluster;
                let before = self.servers_to_compare();
                if let Err(refusal) = self.router.learn(map) {
                    let is_other = matches!(refusal, MapRefusal::OtherCluster { .. });
                    self.other_cluster = is_other.then_some(got).or(self.other_cluster);
                    return Err(refusal.to_string());
                }
                self.other_cluster = None;
                self.options.log.write(Level::Info, || words);
                self.counts.maps += 1;
                self.tell_map(before, address);
                // Responses to the other requests for the map are no longer needed.
                for other in self.map_source.on_map(token, self.router.servers(), now) {
                    if let Some(connection) = self.connections.remove(other) {
                        self.close(&connection, "another connection received the map first");
                    }
                }
                self.on_new_map(now);
                Ok(Flow::Close)
            }
            other => Err(format!("it sent an unexpected opcode, {other:#04x}")),
        }
    }

    /// Returns the servers known before a new map is applied, if the program wants events.
    fn servers_to_compare(&self) -> Option<Before> {
        self.options.events.is_set().then(|| Before {
            revision: self.router.revision(),
            servers: self.router.all_servers().to_vec(),
        })
    }

    /// Reports the changes of a new map as events.
    fn tell_map(&self, before: Option<Before>, source: Address) {
        let (Some(before), Some(now)) = (before, self.router.revision()) else { return };
        if before.revision == Some(now) {
            return;
        }
        let events = &self.options.events;
        events.tell(&Event::MapChanged { revision: now.1, source });
        tell_changes(events, &before.servers, self.router.all_servers());
    }

    /// Records that another process than the intended one listens on a socket, so that its address is used from now on.
    fn note_misled(&mut self, target: Target, address: &Address) {
        if let (Target::Shard { member, .. }, Address::Unix(_)) = (target, address) {
            self.sockets.note_misled(member);
        }
    }

    /// Checks that the process that sent WELCOME is the intended one.
    fn check_welcome(&self, target: Target, welcome: &Welcome) -> Result<(), String> {
        // A map of another cluster states whether that cluster was restored from this one.
        if let (Target::Shard { .. }, Some(cluster)) = (target, self.router.cluster())
            && welcome.cluster != cluster
        {
            return Err(format!("it belongs to cluster {}, not {cluster}", welcome.cluster));
        }
        match (target, welcome.server) {
            // Servers provide the map too.
            (Target::Map { .. }, _) => Ok(()),
            (Target::Shard { member, .. }, Some(server)) if server == member => Ok(()),
            (Target::Shard { member, .. }, server) => Err(match server {
                Some(server) => format!("process {server} responds at this address, not {member}"),
                None => format!("a coordinator responds at this address, not server {member}"),
            }),
        }
    }

    /// Processes a response. An error is the reason to close the connection.
    fn on_response(
        &mut self,
        token: u64,
        response: &Response<'_>,
        landed: Option<&Landed>,
        now: Instant,
        ends: &mut dyn Ends,
    ) -> Result<(), String> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        let Some(&id) = connection.outstanding.get(response.id.0) else {
            return Err(format!("it responded to unknown request {}", response.id));
        };
        // The operation may have ended.
        let Some(operation) = self.operations.get_mut(id) else {
            connection.outstanding.remove(response.id.0);
            return Ok(());
        };
        // In both cases the request stays outstanding, so that the operation is retried when the connection is closed.
        if !may_respond(operation, response.status) {
            let (status, verb) = (response.status, operation.kind.verb());
            return Err(format!(
                "its response to \"{verb}\" was {status}, which is not valid for this operation"
            ));
        }
        if let (Status::Part, Some(part)) = (response.status, operation.part)
            && part.of(response.whole as usize).len() != response.value.len()
        {
            let (bytes, whole) = (response.value.len(), response.whole);
            return Err(format!(
                "it sent {bytes} bytes of a value of {whole} bytes, which is not the requested part"
            ));
        }
        if !has_all_results(operation, response) {
            return Err("its response to a batch does not have a result for each update".to_owned());
        }
        if !is_valid_page(operation, response) {
            return Err(
                "its response to a scan is not a page after the requested position".to_owned()
            );
        }
        connection.outstanding.remove(response.id.0);
        if let Some(error) = logged_failure(operation, response) {
            self.finish(id, Err(error), ends);
            return Ok(());
        }
        let here = Stage::Assigned { connection: token, request: Some(response.id) };
        // A final response to an earlier transmission counts; otherwise the later transmission decides.
        let is_current = operation.stage == here;
        match response.status {
            Status::Ok | Status::Part => {
                let scan = progress(operation, self.router.scan_tokens(), response.value);
                let reply = Reply { scan, ..reply(operation, response, landed) };
                self.finish(id, Ok(reply), ends);
            }
            Status::NotFound => {
                let action = operation.action();
                self.finish(id, Err(Error::NotFound { action }), ends);
            }
            Status::Conflict => {
                let error = conflict(operation, response);
                self.finish(id, Err(error), ends);
            }
            Status::NotDone => {
                let action = operation.action();
                self.finish(id, Err(Error::NotDone { action }), ends);
            }
            Status::SessionExpired => self.on_session_expired(id, now, ends),
            Status::SessionMismatch => self.on_session_mismatch(id, ends),
            // A pending write also gets this response when its server loses its role.
            Status::WrongView if is_current => {
                let (trouble, server) = (spoken(operation, response), operation.server);
                self.back_off(id, &trouble.into(), now);
                self.want_map(server);
            }
            Status::WrongView => {}
            Status::Lost => {
                if is_current {
                    let (action, cause) = (operation.action(), spoken(operation, response));
                    let error = if operation.kind.is_write() {
                        Error::InDoubt { action, cause, doubt: None }
                    } else {
                        Error::Lost { action, cause }
                    };
                    self.finish(id, Err(error), ends);
                }
            }
            // The server has not logged this transmission and never will, because a logged write gets its own response.
            // Earlier transmissions, to this server or others, stay in doubt.
            Status::Unavailable | Status::Busy => {
                operation.doubtful = operation.doubtful.saturating_sub(1);
                if is_current {
                    let trouble = spoken(operation, response);
                    self.back_off(id, &trouble.into(), now);
                    self.after_refusal(id, response.status);
                }
            }
            _ => self.on_refused(id, response, is_current, ends),
        }
        Ok(())
    }

    /// Handles the effects of a temporary rejection, apart from the back-off.
    fn after_refusal(&mut self, id: OpId, status: Status) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        if status == Status::Busy {
            operation.was_busy = true;
        } else {
            // A partitioned server may not have received its exclusion from the view, so the map is fetched from
            // another one.
            let server = operation.server;
            self.want_map(server);
        }
    }

    /// Handles a permanent rejection: this transmission had no effect.
    fn on_refused(
        &mut self,
        id: OpId,
        response: &Response<'_>,
        is_current: bool,
        ends: &mut dyn Ends,
    ) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        operation.doubtful = operation.doubtful.saturating_sub(1);
        if !is_current {
            return;
        }
        let (action, reason) = (operation.action(), spoken(operation, response));
        let error = if operation.doubtful > 0 {
            let cause = format!("a retry was rejected: {reason}");
            Error::InDoubt { action, cause, doubt: None }
        } else if let Some(error) = rejection(operation, response, &action) {
            error
        } else {
            match response.status {
                Status::TooBig => Error::TooBig { action, reason },
                Status::OutOfSpace => Error::OutOfSpace { action, reason },
                Status::Invalid => Error::Invalid { action, reason },
                _ => Error::Protocol { action, reason },
            }
        };
        self.finish(id, Err(error), ends);
    }

    /// Handles SESSION_EXPIRED: the server does not know the write's session, so it has not executed this transmission.
    ///
    /// If no other transmission can have been executed, the session expired while it was idle, or its first writes
    /// never arrived. Then a new session begins under another client id, and the write gets a number of that session.
    /// Otherwise the outcome of the write is unknown to the caller.
    fn on_session_expired(&mut self, id: OpId, now: Instant, ends: &mut dyn Ends) {
        let Some(operation) = self.operations.get_mut(id) else { return };
        let (Some(place), Some((client, _)), 1) =
            (operation.place, operation.session, operation.doubtful)
        else {
            // An earlier transmission of the write may have been executed, or the operation is a RESOLVE. For any other
            // operation, this response is invalid.
            let action = operation.action();
            let cause = "the servers have expired this client's session".to_owned();
            operation.is_forgotten = true;
            let error = if operation.kind.is_write() || operation.kind == Kind::Resolve {
                Error::InDoubt { action, cause, doubt: None }
            } else {
                Error::Protocol { action, reason: cause }
            };
            return self.finish(id, Err(error), ends);
        };
        operation.session = None;
        operation.doubtful = 0;
        self.begin_session_anew(place, client, "the servers had expired this client's session");
        self.back_off(id, &"the servers had expired this client's session".into(), now);
        self.leave_session(place, None);
    }

    /// Handles SESSION_MISMATCH: another write had this number in this client's session. Another process uses the same
    /// client id, such as a clone of this virtual machine. The number belongs to the other write, so this one was not
    /// executed and never will be. The other process keeps the session.
    fn on_session_mismatch(&mut self, id: OpId, ends: &mut dyn Ends) {
        let Some(operation) = self.operations.get(id) else { return };
        let (action, place, session) = (operation.action(), operation.place, operation.session);
        let (Some(place), Some((client, _))) = (place, session) else {
            let reason =
                "SESSION_MISMATCH in response to an operation that is not a write".to_owned();
            return self.finish(id, Err(Error::Protocol { action, reason }), ends);
        };
        let error = if operation.kind == Kind::Resolve {
            // The number may have been reused after its session expired, so the outcome of this write stays unknown.
            let cause = "another process uses this client's id".to_owned();
            Error::InDoubt { action, cause, doubt: None }
        } else {
            Error::SharedIdentity { action }
        };
        self.begin_session_anew(place, client, "another process uses this client's id");
        self.finish(id, Err(error), ends);
        self.leave_session(place, None);
    }

    /// Begins a session under another client id for a place, unless that has been done already.
    fn begin_session_anew(&mut self, place: (GroupId, ShardId), client: ClientId, why: &str) {
        let Some(Place { session, .. }) = self.routes.get_mut(place) else { return };
        if session.client() != client {
            return;
        }
        *session = Session::new(self.fresh_ids.next(self.client));
        self.retire(client);
        self.counts.sessions_begun_anew += 1;
        self.options.log.write(Level::Info, || format!("{why}; a new session begins"));
        self.options.events.tell(&Event::SessionBegunAnew { why });
    }

    /// Returns whether a client id belongs to a session or is used for reads.
    fn is_in_use(&self, client: ClientId) -> bool {
        client == self.client || self.routes.iter().any(|place| place.session.client() == client)
    }

    /// Retires a client id that no session uses: each of its connections closes when it is idle.
    fn retire(&mut self, client: ClientId) {
        if self.is_in_use(client) {
            return;
        }
        let mut retired = Vec::new();
        for (token, connection) in self.connections.iter_mut() {
            if connection.target.is_of(client) {
                connection.is_retired = true;
                retired.push(token);
            }
        }
        for token in retired {
            self.close_if_done(token);
        }
    }
}

/// Returns whether the error means that the process or the system has no free descriptor.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Returns whether a correct server can send this status in response to the operation.
fn may_respond(operation: &Operation, status: Status) -> bool {
    match status {
        Status::NotFound => !matches!(operation.kind, Kind::Put | Kind::Noop | Kind::Scan),
        Status::Conflict => operation.is_conditional() || operation.kind == Kind::Resolve,
        Status::NotDone => operation.kind.is_write() || operation.kind == Kind::Resolve,
        Status::Part => operation.part.is_some(),
        Status::NotANumber | Status::Overflow => {
            operation.kind.is_update() || operation.kind == Kind::Resolve
        }
        Status::CrossShard => operation.kind.is_update(),
        _ => true,
    }
}

fn reply<'a>(
    operation: &Operation,
    response: &Response<'a>,
    landed: Option<&'a Landed>,
) -> Reply<'a> {
    let reads = matches!(operation.kind, Kind::Get | Kind::Verify(_) | Kind::Scan);
    // A RESOLVE has the response of the write, which may be an update.
    let updates = operation.kind.is_update() || operation.kind == Kind::Resolve;
    let (value, length) = match (response.status, operation.part) {
        _ if updates && response.has_value => (response.value, response.value.len()),
        _ if !reads => (&[][..], 0),
        (Status::Part, _) => (response.value, response.whole as usize),
        // A server without support for parts sends the whole value.
        (_, Some(part)) => (&response.value[part.of(response.value.len())], response.value.len()),
        _ => (response.value, response.value.len()),
    };
    Reply {
        value,
        has_value: reads || (updates && response.has_value),
        length,
        deadline: response.deadline,
        landed,
        version: response.version,
        copies: if reads || operation.kind == Kind::Noop { 0 } else { response.copies },
        scan: None,
    }
}

/// Returns a description of a server's response, for a message.
pub(super) fn spoken(operation: &Operation, response: &Response<'_>) -> String {
    let status = response.status;
    match (operation.server, response.value) {
        (Some(server), []) => format!("server {server} responded {status}"),
        (Some(server), reason) => {
            format!("server {server} responded {status}: {}", words(reason))
        }
        (None, reason) => format!("{status}: {}", words(reason)),
    }
}

/// Escapes and shortens a server's text for a message.
fn words(reason: &[u8]) -> String {
    escape::readable(&reason[..reason.len().min(MAX_REASON_BYTES)]).to_string()
}
