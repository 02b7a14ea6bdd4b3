//! A Redis client's connection: commands in, replies out, in order.
//!
//! ```text
//!   bytes -> commands -> plans --+--> reply at once
//!                                +--> requests to the gateway -> answers -> reply
//!
//!   replies   [ done | waits for 2 answers | done | waits for 1 ]   sent from the front
//! ```
//!
//! Several commands of a pipeline may be in flight. A command waits while an earlier one with the same key is in flight
//! and one of the two writes, so the commands on a key take effect in the order of the pipeline. A command without keys
//! that asks the store, such as DBSIZE, waits for all earlier ones, and all later ones wait for it. An EXEC with several
//! steps too.

use std::collections::VecDeque;

use smallvec::{SmallVec, smallvec};

use kv_core::mutations::{self, Mutation};
use kv_core::replica::ConnectionId;
use kv_protocol::client_message::Response;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{Time, WallTime};
use kv_protocol::limits::MAX_RESPONSE_BODY;
use kv_redis::answer::Answer;
use kv_redis::ask::{Ask, Digests, FreeFrames};
use kv_redis::client::Client;
use kv_redis::command::{self, Context};
use kv_redis::error::{self, Error};
use kv_redis::plan::{Asks, Finish, Plan};
use kv_redis::resp::{CommandParser, KeysAhead, MAX_COMMAND_BYTES, Parsed, Reply, Version};
use kv_redis::transaction;

use super::gateway::{Delivery, FLIGHT_BYTES, Outcome, Owner};
use super::host::Host;
use crate::handshake::Ends;
use crate::service::Service;

/// The number of requests in flight above which no further command of the connection begins.
const IN_FLIGHT: usize = 128;
/// The number of commands without a sent reply above which no further command begins.
const PENDING: usize = 1_024;
/// The maximum number of requests of one command.
const ASKS_MAX: usize = 65_536;
/// The capacity to which the input buffer of a connection is trimmed.
const IDLE_INPUT: usize = 1 << 10;
/// The number of arguments up to which they are collected without an allocation.
const SHORT_ARGS: usize = 8;
/// The capacity to which the queue of commands is trimmed.
const IDLE_PENDING: usize = 16;
/// The number of parsed bytes at the front of the input above which they are removed.
const PARSED_BYTES: usize = 16 << 10;

/// The input side of a Redis client's connection; its output is in the [`Service`].
pub(crate) struct RedisConnection {
    id: ConnectionId,
    input: Vec<u8>,
    /// The number of bytes at the front of the input that belong to commands already taken.
    parsed: usize,
    parser: CommandParser,
    client: Client,
    /// The commands without a complete reply, and those behind them.
    pending: VecDeque<Pending>,
    /// The number of the first pending command.
    first: u64,
    /// A command that may not begin yet.
    held: Option<Box<Step>>,
    /// True while the next command waits until all earlier ones have their replies.
    is_waiting: bool,
    in_flight: Vec<InFlight>,
    /// The sum of their weights.
    weight: usize,
    /// The memory of their requests and outcomes, and of the replies that wait.
    held_bytes: usize,
    /// True if requests have ended since the connection went on.
    has_deliveries: bool,
    /// True after the last command that is served.
    is_ending: bool,
    /// The number of bytes of this connection that are counted as connection memory.
    counted: usize,
}

/// A command whose reply is not sent yet.
enum Pending {
    /// The reply waits for those before it.
    Replied(Vec<u8>),
    /// The reply waits for answers.
    Waiting(Waiting),
}

/// A command, or a step of it, that asks the store.
struct Step {
    asks: Asks,
    finish: Finish,
    reply: PartialReply,
    /// The footprint, once it was needed.
    footprint: Option<Footprint>,
}

/// The beginning of a reply.
struct PartialReply {
    bytes: Vec<u8>,
    form: ReplyForm,
}

/// The form of a reply.
#[derive(Clone, Copy)]
struct ReplyForm {
    version: Version,
    /// True if the client has asked not to get it.
    is_silent: bool,
}

/// A step whose requests are in flight.
struct Waiting {
    finish: Finish,
    reply: ReplyForm,
    parts: SmallVec<[Part; 1]>,
    /// The number of parts without an outcome.
    missing: usize,
    /// The number of bytes of the outcomes.
    bytes: usize,
}

/// A request of a step.
struct Part {
    is_read: bool,
    is_costly: bool,
    outcome: Option<Outcome>,
}

/// A command with requests in flight.
struct InFlight {
    command: u64,
    footprint: Footprint,
}

/// The properties of a step that matter to the other commands of its connection.
struct Footprint {
    /// The digests of its keys; `None` if it concerns all keys.
    keys: Option<Digests>,
    is_write: bool,
    /// The number of its requests or of its keys, whichever is larger.
    weight: usize,
    /// Its memory while it is in flight, without outcomes.
    bytes: usize,
}

impl RedisConnection {
    /// Creates the state of a connection.
    pub(crate) fn new(id: ConnectionId) -> RedisConnection {
        RedisConnection {
            id,
            input: Vec::new(),
            parsed: 0,
            parser: CommandParser::new(MAX_COMMAND_BYTES),
            client: Client { id: id.0, ..Client::default() },
            pending: VecDeque::new(),
            first: 0,
            held: None,
            is_waiting: false,
            in_flight: Vec::new(),
            weight: 0,
            held_bytes: 0,
            has_deliveries: false,
            is_ending: false,
            counted: 0,
        }
    }

    /// Sets the addresses of both ends, and the time when the connection began.
    pub(crate) fn set_ends(&mut self, ends: Ends, connected: WallTime) {
        (self.client.peer, self.client.local) = ends;
        self.client.connected = connected;
    }

    /// Processes received bytes and serves the complete commands among them.
    pub(crate) fn handle_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        if !self.input.is_empty() || self.held.is_some() {
            self.input.extend_from_slice(received);
            return self.go_on(now, service);
        }
        // A usual command is parsed where it was received.
        let consumed = self.serve(now, service, received);
        self.input.extend_from_slice(&received[consumed..]);
        self.count_memory(now, service);
    }

    /// Continues with the commands that were held back.
    pub(crate) fn go_on(&mut self, now: Time, service: &mut Service) {
        if std::mem::take(&mut self.has_deliveries) {
            // The engine may have to read again.
            service.outputs.mark_dirty(self.id);
        }
        // After a write in doubt, a later command could take effect before it.
        if let Some(step) = self.held.take().filter(|_| !self.is_ending) {
            self.begin_or_hold(now, service, *step);
        }
        if !self.input.is_empty() {
            self.serve_input(now, service);
        }
        self.count_memory(now, service);
    }

    /// Serves the complete commands in `bytes`, as far as they may begin. Returns the number of their bytes.
    fn serve(&mut self, now: Time, service: &mut Service, bytes: &[u8]) -> usize {
        self.is_waiting &= !self.pending.is_empty();
        let (mut at, mut ahead) = (0, KeysAhead::empty());
        while self.may_go_on(service) {
            if ahead.is_over() && at < bytes.len() {
                ahead = KeysAhead::read(&bytes[at..]);
            }
            ahead.pass();
            match self.serve_next(now, service, &bytes[at..], &ahead) {
                0 => break,
                consumed => at += consumed,
            }
        }
        at
    }

    fn serve_input(&mut self, now: Time, service: &mut Service) {
        let input = std::mem::take(&mut self.input);
        self.parsed += self.serve(now, service, &input[self.parsed..]);
        self.input = input;
        if self.parsed == self.input.len() {
            self.input.clear();
            self.parsed = 0;
            self.input.shrink_to(IDLE_INPUT);
        } else if self.parsed >= PARSED_BYTES && self.parsed * 2 >= self.input.len() {
            self.input.drain(..self.parsed);
            self.parsed = 0;
        }
    }

    /// Returns whether a further command could begin.
    fn has_room(&self) -> bool {
        let is_within_transaction =
            self.client.running.is_some() && !mutations::is_open(Mutation::BegunWithinTransaction);
        self.held.is_none()
            && !self.is_waiting
            && !is_within_transaction
            && !self.is_ending
            && self.weight < IN_FLIGHT
            && self.pending.len() < PENDING
    }

    fn may_go_on(&self, service: &mut Service) -> bool {
        if !self.has_room() {
            return false;
        }
        if service.is_gateway_busy() {
            service.outputs.postpone(self.id);
        }
        service.outputs.may_serve(self.id)
    }

    /// Serves the command at the beginning of `bytes`. Returns the number of its bytes; 0 if it is incomplete.
    fn serve_next(
        &mut self,
        now: Time,
        service: &mut Service,
        bytes: &[u8],
        ahead: &KeysAhead<'_>,
    ) -> usize {
        let form = ReplyForm { version: self.client.version, is_silent: false };
        let mut reply = PartialReply { bytes: service.outputs.take_buffer(), form };
        let (consumed, plan) = match self.parser.parse(bytes) {
            Ok(Parsed::Incomplete { .. }) => {
                service.outputs.recycle(reply.bytes);
                return 0;
            }
            Ok(Parsed::Nothing { consumed }) => {
                service.outputs.recycle(reply.bytes);
                return consumed;
            }
            Ok(Parsed::Command { args, consumed }) => {
                let mut short = [&[][..]; SHORT_ARGS];
                let mut long = Vec::new();
                let args = args.collect_into(&mut short, &mut long);
                if is_of_http(args[0]) {
                    let reason = "these are lines of HTTP, perhaps sent by a web page in a browser";
                    service.count_refused(now, "Redis connection", reason);
                    service.outputs.kill(self.id);
                    self.is_ending = true;
                    return bytes.len();
                }
                // It begins again when the replies before it are complete.
                let found = command::find(args[0]);
                if !self.pending.is_empty() && found.is_some_and(|command| command.waits()) {
                    self.is_waiting = true;
                    service.outputs.recycle(reply.bytes);
                    return 0;
                }
                service.count_command();
                self.client.begin_command();
                let frames = &mut std::mem::take(&mut service.gateway.free_frames);
                let (client, server) = (&mut self.client, &Host { service, now });
                let digest = args.get(1).and_then(|key| ahead.digest_of(key));
                let mut context = Context { args, client, server, digest, frames };
                let plan = command::perform(&mut context, found, &mut reply.writer());
                service.gateway.free_frames = std::mem::take(frames);
                reply.form.is_silent = self.client.is_silent();
                (consumed, plan)
            }
            Err(error) => {
                let text = String::from_utf8_lossy(&error.text()).into_owned();
                service.count_refused(now, "Redis command", &text);
                self.is_ending = true;
                reply.writer().protocol_error(error);
                (bytes.len(), Ok(Plan::Replied))
            }
        };
        match self.step_of(now, service, plan, reply) {
            Ok(step) => self.begin_or_hold(now, service, step),
            Err(reply) => self.reply(now, service, reply),
        }
        consumed
    }

    /// Returns the step that a plan asks for, or else the complete reply.
    fn step_of(
        &mut self,
        now: Time,
        service: &Service,
        mut plan: Result<Plan, Error>,
        mut reply: PartialReply,
    ) -> Result<Step, Vec<u8>> {
        let error = loop {
            plan = match plan {
                Ok(Plan::Ask { asks, finish }) if asks.len() <= ASKS_MAX => {
                    return Ok(Step { asks, finish, reply, footprint: None });
                }
                Ok(Plan::Ask { finish, .. }) => finish(Err(TOO_MANY_KEYS), &mut reply.writer()),
                Ok(Plan::GoOn(ended)) => {
                    let (client, server) = (&mut self.client, &Host { service, now });
                    let frames = &mut FreeFrames::default();
                    let mut context = Context { args: &[], client, server, digest: None, frames };
                    transaction::go_on(&mut context, ended, &mut reply.writer())
                }
                Ok(Plan::Replied) => return Err(reply.complete()),
                Ok(Plan::Watched(keys)) => {
                    self.client.watched.extend(keys);
                    return Err(reply.complete());
                }
                Ok(Plan::Close) => {
                    self.is_ending = true;
                    return Err(reply.complete());
                }
                Err(error) => break error,
            };
        };
        reply.bytes.clear();
        reply.writer().error(&error);
        Err(reply.complete())
    }

    /// Sends the complete reply of the newest command, or keeps it until those before it are complete.
    fn reply(&mut self, now: Time, service: &mut Service, reply: Vec<u8>) {
        if self.pending.is_empty() {
            self.first += 1;
            self.send(service, reply);
            self.close_if_ending(now, service);
        } else {
            self.held_bytes += reply.capacity();
            self.pending.push_back(Pending::Replied(reply));
        }
    }

    fn send(&self, service: &mut Service, reply: Vec<u8>) {
        service.outputs.append(self.id, |bytes| bytes.extend_from_slice(&reply));
        service.outputs.recycle(reply);
    }

    /// Sends the replies that wait for no other.
    fn send_complete(&mut self, now: Time, service: &mut Service) {
        while let Some(Pending::Replied(reply)) = self.pending.front_mut() {
            let reply = std::mem::take(reply);
            self.held_bytes -= reply.capacity();
            self.pending.pop_front();
            self.first += 1;
            self.send(service, reply);
        }
        self.close_if_ending(now, service);
    }

    /// Closes the connection after the last reply.
    fn close_if_ending(&self, now: Time, service: &mut Service) {
        if self.is_ending
            && self.pending.is_empty()
            && let Some(output) = service.outputs.get(self.id)
        {
            output.close_after_last_words(now);
        }
    }

    /// Begins the newest command, or holds it back while it may not begin.
    fn begin_or_hold(&mut self, now: Time, service: &mut Service, mut step: Step) {
        if !self.may_begin(&mut step) {
            self.held = Some(Box::new(step));
            return;
        }
        let Step { asks, finish, mut reply, footprint } = step;
        // In the usual case this shard serves the only request at once.
        let mut finish = Some(finish);
        let served = match &asks[..] {
            [ask] => service.read_here(now, ask, |response| {
                let finish = finish.take()?;
                Some(finish_with_one(Answer::of(response, true), finish, &mut reply))
            }),
            _ => None,
        };
        let step = match (served.flatten(), finish) {
            (Some(plan), _) => self.step_of(now, service, plan, reply),
            (None, Some(finish)) => Ok(Step { asks, finish, reply, footprint }),
            (None, None) => return,
        };
        match step {
            Ok(step) => {
                let command = self.first + self.pending.len() as u64;
                self.pending.push_back(Pending::Replied(Vec::new()));
                self.begin(now, service, command, step);
            }
            Err(reply) => self.reply(now, service, reply),
        }
    }

    /// Returns whether a command may begin now.
    fn may_begin(&self, step: &mut Step) -> bool {
        if self.in_flight.is_empty() {
            return true;
        }
        let Step { asks, footprint, .. } = step;
        let footprint = footprint.get_or_insert_with(|| Footprint::of(asks));
        self.weight + footprint.weight <= IN_FLIGHT
            && self.in_flight.iter().all(|other| !footprint.conflicts_with(&other.footprint))
    }

    /// Begins a step of a pending command.
    fn begin(&mut self, now: Time, service: &mut Service, command: u64, step: Step) {
        let Step { asks, finish, reply, footprint } = step;
        let footprint = footprint.unwrap_or_else(|| Footprint::of(&asks));
        self.weight += footprint.weight;
        self.held_bytes += footprint.bytes;
        self.in_flight.push(InFlight { command, footprint });
        let part = |ask: &Ask| {
            let (is_read, is_costly) = (!ask.is_write(), ask.is_costly());
            Part { is_read, is_costly, outcome: None }
        };
        let parts: SmallVec<[Part; 1]> = match &asks[..] {
            [ask] => smallvec![part(ask)],
            asks => asks.iter().map(part).collect(),
        };
        // A step that asks the store has written nothing, so its buffer can serve others meanwhile.
        service.outputs.recycle(reply.bytes);
        let waiting = Waiting { finish, reply: reply.form, missing: parts.len(), parts, bytes: 0 };
        if let Some(place) = self.pending_mut(command) {
            *place = Pending::Waiting(waiting);
        }
        if let Some(output) = service.outputs.get(self.id) {
            output.expect_response();
        }
        for (part, ask) in asks.into_iter().enumerate() {
            service.start(now, Owner { connection: self.id, command, part }, ask);
        }
    }

    fn pending_mut(&mut self, command: u64) -> Option<&mut Pending> {
        let at = usize::try_from(command.checked_sub(self.first)?).ok()?;
        self.pending.get_mut(at)
    }

    /// Processes the end of a request. Returns whether this is the first one since the connection went on. The caller
    /// then continues it with [`RedisConnection::go_on`] after all deliveries.
    pub(crate) fn handle_delivery(
        &mut self,
        now: Time,
        service: &mut Service,
        delivery: Delivery,
    ) -> bool {
        let Owner { command, part, .. } = delivery.owner;
        let Some(Pending::Waiting(waiting)) = self.pending_mut(command) else { return false };
        let bytes = delivery.outcome.bytes();
        waiting.parts[part].outcome = Some(delivery.outcome);
        waiting.bytes += bytes;
        waiting.missing -= 1;
        let is_complete = waiting.missing == 0;
        self.held_bytes += bytes;
        if is_complete {
            self.finish(now, service, command);
        }
        !std::mem::replace(&mut self.has_deliveries, true)
    }

    /// Continues a command whose requests have all ended.
    fn finish(&mut self, now: Time, service: &mut Service, command: u64) {
        let Some(place) = self.pending_mut(command) else { return };
        let Pending::Waiting(waiting) = std::mem::replace(place, Pending::Replied(Vec::new()))
        else {
            return;
        };
        if let Some(output) = service.outputs.get(self.id) {
            output.note_reply();
        }
        let Waiting { finish, reply, parts, bytes, .. } = waiting;
        self.held_bytes -= bytes;
        if let Some(at) = self.in_flight.iter().position(|other| other.command == command) {
            let InFlight { footprint, .. } = self.in_flight.swap_remove(at);
            self.weight -= footprint.weight;
            self.held_bytes -= footprint.bytes;
        }
        let mut reply = PartialReply { bytes: service.outputs.take_buffer(), form: reply };
        if parts.iter().any(|part| part.is_costly) {
            service.gateway.note_costly_reply();
        }
        let plan = self.continue_with(&parts, finish, &mut reply);
        for part in parts {
            if let Some(Outcome::Response(frame)) = part.outcome {
                service.gateway.free_frames.keep(frame);
            }
        }
        match self.step_of(now, service, plan, reply) {
            Ok(step) => self.begin(now, service, command, step),
            Err(reply) => {
                let at_once = mutations::is_open(Mutation::RepliesByCompletion);
                if at_once {
                    service.outputs.append(self.id, |bytes| bytes.extend_from_slice(&reply));
                }
                let reply = if at_once { Vec::new() } else { reply };
                self.held_bytes += reply.capacity();
                if let Some(place) = self.pending_mut(command) {
                    *place = Pending::Replied(reply);
                }
                self.send_complete(now, service);
            }
        }
    }

    /// Continues a command with the outcomes of its requests.
    fn continue_with(
        &mut self,
        parts: &[Part],
        finish: Finish,
        reply: &mut PartialReply,
    ) -> Result<Plan, Error> {
        // The usual case.
        if let [Part { is_read, outcome: Some(outcome), .. }] = parts
            && let Some(response) = response_of(outcome)
        {
            if !is_read {
                self.client.copies = response.copies;
            }
            return finish_with_one(Answer::of(&response, *is_read), finish, reply);
        }
        let answers = answers_of(parts);
        match &answers {
            Ok(answers) => {
                let of_writes = parts.iter().zip(answers).filter(|(part, _)| !part.is_read);
                if let Some(copies) = of_writes.map(|(_, answer)| answer.copies).min() {
                    self.client.copies = copies;
                }
            }
            // The client must not send further commands as if it knew the state.
            Err(error) => self.is_ending |= *error == error::IN_DOUBT,
        }
        finish(answers.as_deref().map_err(Clone::clone), &mut reply.writer())
    }

    fn count_memory(&mut self, now: Time, service: &mut Service) {
        let footprint = self.held.as_ref().and_then(|step| step.footprint.as_ref());
        let of_step = footprint.map_or(0, |footprint| footprint.bytes);
        if self.pending.is_empty() && self.pending.capacity() > IDLE_PENDING {
            self.pending.shrink_to(IDLE_PENDING);
        }
        let of_pending = self.pending.capacity() * size_of::<Pending>();
        let of_commands = self.held_bytes + of_step + of_pending;
        let held = self.input.capacity() + of_commands + self.client.held_bytes();
        let before = std::mem::replace(&mut self.counted, held);
        service.outputs.tally().change(before, held);
        if held > before && service.outputs.tally().memory().is_used_up() {
            let reason = "the memory budget of connections is used up; raise --connection-memory";
            service.count_refused(now, "connection", reason);
            service.outputs.kill(self.id);
        }
    }

    /// Returns the memory of requests, outcomes and waiting replies, in bytes.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes + self.weight
    }

    /// Returns whether more bytes may be read from the socket.
    pub(crate) fn wants_input(&self, service: &mut Service) -> bool {
        self.has_room()
            && !service.outputs.is_full(self.id)
            && service.outputs.get(self.id).is_some_and(|output| !output.is_half_closed())
    }

    /// Releases the memory that a connection without a command in flight keeps for its next one.
    pub(crate) fn trim(&mut self, now: Time, service: &mut Service) {
        if self.idle().is_some() {
            self.input = Vec::new();
            self.pending = VecDeque::new();
            self.in_flight = Vec::new();
            self.count_memory(now, service);
        }
    }

    /// Returns the connection's id if no command is in flight or being received.
    pub(crate) fn idle(&self) -> Option<ConnectionId> {
        (self.pending.is_empty() && self.input.is_empty()).then_some(self.id)
    }

    /// Stops counting the memory of this connection, which is being closed.
    pub(crate) fn handle_closed(&mut self, service: &mut Service) {
        service.outputs.tally().change(std::mem::take(&mut self.counted), 0);
    }
}

impl PartialReply {
    fn writer(&mut self) -> Reply<'_> {
        Reply::new(&mut self.bytes, self.form.version)
    }

    fn complete(mut self) -> Vec<u8> {
        if self.form.is_silent {
            self.bytes.clear();
        }
        self.bytes
    }
}

impl Footprint {
    fn of(asks: &[Ask]) -> Footprint {
        let each = FLIGHT_BYTES + size_of::<Part>();
        if let [ask] = asks {
            let keys = ask.digests();
            let bytes = ask.frame().len() + each + size_of_val(&keys[..]) + size_of::<InFlight>();
            let (weight, is_of_all) = (keys.len().max(1), keys.is_empty());
            let keys = (!is_of_all).then_some(keys);
            return Footprint { keys, is_write: ask.is_write(), weight, bytes };
        }
        let mut keys = Digests::new();
        let (mut is_write, mut is_of_all, mut frames) = (false, false, 0);
        for ask in asks {
            let digests = ask.digests();
            is_of_all |= digests.is_empty();
            is_write |= ask.is_write();
            frames += ask.frame().len();
            keys.extend(digests);
        }
        let weight = keys.len().max(asks.len());
        let bytes = frames + asks.len() * each + size_of_val(&keys[..]) + size_of::<InFlight>();
        Footprint { keys: (!is_of_all).then_some(keys), is_write, weight, bytes }
    }

    /// Returns whether this step must not be in flight together with another one of the connection.
    fn conflicts_with(&self, other: &Footprint) -> bool {
        let (Some(keys), Some(of_other)) = (&self.keys, &other.keys) else { return true };
        if mutations::is_open(Mutation::ReadBeforeOwnWrite) && !self.is_write {
            return false;
        }
        (self.is_write || other.is_write) && keys.iter().any(|key| of_other.contains(key))
    }
}

/// Returns whether a command is a line of an HTTP request. A web page can make a browser send such a request to any
/// address, with commands in its body. Redis closes these connections too.
fn is_of_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"post") || name.eq_ignore_ascii_case(b"host:")
}

/// The error of a command with too many keys.
const TOO_MANY_KEYS: Error = Error::Stated("ERR a command has at most 65,536 keys in this store");
/// Returns the responses to the requests of a step that has ended.
fn answers_of(parts: &[Part]) -> Result<Vec<Answer<'_>>, Error> {
    if parts.iter().any(|part| matches!(part.outcome, Some(Outcome::InDoubt))) {
        return Err(error::IN_DOUBT);
    }
    if parts.iter().any(|part| matches!(part.outcome, Some(Outcome::Lost))) {
        return Err(error::LOST);
    }
    let has_response = |part: &Part| matches!(part.outcome, Some(Outcome::Response(_)));
    let is_changed = parts.iter().any(|part| !part.is_read && has_response(part));
    let not_served = if is_changed { error::SERVED_IN_PART } else { error::NOT_SERVED };
    let responses = parts.iter().map(|part| part.outcome.as_ref().and_then(response_of));
    let answers = responses.zip(parts).map(|(response, part)| {
        Answer::of(&response.ok_or_else(|| not_served.clone())?, part.is_read)
    });
    answers.collect()
}

fn response_of(outcome: &Outcome) -> Option<Response<'_>> {
    let Outcome::Response(frame) = outcome else { return None };
    let frame = split_frame(frame, &FrameRules::unchecked(MAX_RESPONSE_BODY)).ok()??;
    Response::read(frame.body).ok()
}

/// Continues a command with its only response, or with the error that it means.
fn finish_with_one(
    answer: Result<Answer<'_>, Error>,
    finish: Finish,
    reply: &mut PartialReply,
) -> Result<Plan, Error> {
    let answer = answer.as_ref().map(std::slice::from_ref).map_err(Clone::clone);
    finish(answer, &mut reply.writer())
}
