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
//! that asks the store, such as DBSIZE, waits for all earlier ones, and all later ones wait for it.

use std::collections::VecDeque;

use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Operation, Response};
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{Time, WallTime};
use kv_protocol::limits::MAX_RESPONSE_BODY;
use kv_protocol::placement::{Digest, Placement};
use kv_redis::answer::Answer;
use kv_redis::ask::Ask;
use kv_redis::client::{Client, Server};
use kv_redis::command::{self, Context};
use kv_redis::error::Error;
use kv_redis::plan::{Finish, Plan};
use kv_redis::resp::{CommandParser, MAX_COMMAND_BYTES, Parsed, Reply, Version};

use super::gateway::{Delivery, Outcome, Owner};
use crate::address::Address;
use crate::service::Service;

/// The number of requests in flight above which no further command of the connection begins.
const IN_FLIGHT: usize = 128;
/// The maximum number of requests of one command.
const ASKS_MAX: usize = 65_536;
/// The capacity to which the input buffer of a connection is trimmed.
const IDLE_INPUT: usize = 1 << 10;

/// The input side of a Redis client's connection; its output is in the [`Service`].
pub(crate) struct RedisConnection {
    id: ConnectionId,
    input: Vec<u8>,
    parser: CommandParser,
    client: Client,
    /// The commands without a complete reply, and those behind them.
    pending: VecDeque<Pending>,
    /// The number of the first pending command.
    first: u64,
    /// A command that may not begin yet.
    held: Option<Held>,
    /// The keys of the requests in flight.
    in_flight: Vec<InFlight>,
    /// True after the last command that is served.
    is_ending: bool,
    counted: usize,
    from: Address,
}

/// A command whose reply is not sent yet.
enum Pending {
    /// The reply waits for those before it.
    Replied(Vec<u8>),
    /// The reply waits for answers.
    Waiting(Box<Waiting>),
}

struct Waiting {
    finish: Finish,
    /// The requests are reads.
    is_read: Vec<bool>,
    answers: Vec<Option<Outcome>>,
    missing: usize,
    reply: Vec<u8>,
    version: Version,
}

struct Held {
    asks: Vec<Ask>,
    finish: Finish,
    version: Version,
    reply: Vec<u8>,
}

struct InFlight {
    command: u64,
    part: usize,
    /// The digest of the key; `None` for a request that concerns no single key.
    key: Option<Digest>,
    is_write: bool,
}

/// The facts that commands use.
struct Facts {
    placement: Placement,
    wall: WallTime,
}

impl Server for Facts {
    fn placement(&self) -> Placement {
        self.placement
    }

    fn wall(&self) -> WallTime {
        self.wall
    }
}

impl RedisConnection {
    /// Creates the state of a connection.
    pub(crate) fn new(id: ConnectionId) -> RedisConnection {
        RedisConnection {
            id,
            input: Vec::new(),
            parser: CommandParser::new(MAX_COMMAND_BYTES),
            client: Client { id: id.0, ..Client::default() },
            pending: VecDeque::new(),
            first: 0,
            held: None,
            in_flight: Vec::new(),
            is_ending: false,
            counted: 0,
            from: Address::UNKNOWN,
        }
    }

    /// Sets the client address of the connection.
    pub(crate) fn set_address(&mut self, from: Address) {
        self.from = from;
    }

    /// Processes received bytes and serves the complete commands among them.
    pub(crate) fn handle_bytes(&mut self, now: Time, service: &mut Service, received: &[u8]) {
        self.input.extend_from_slice(received);
        self.go_on(now, service);
    }

    /// Continues with the commands that were held back.
    pub(crate) fn go_on(&mut self, now: Time, service: &mut Service) {
        if let Some(held) = self.held.take() {
            self.begin_or_hold(now, service, held);
        }
        let mut input = std::mem::take(&mut self.input);
        let mut taken = 0;
        while self.may_go_on(service) {
            match self.serve_next(now, service, &input[taken..]) {
                0 => break,
                consumed => taken += consumed,
            }
        }
        input.drain(..taken);
        if input.is_empty() && input.capacity() > IDLE_INPUT {
            input = Vec::new();
        }
        self.input = input;
        self.count_memory(now, service);
    }

    fn may_go_on(&self, service: &mut Service) -> bool {
        self.held.is_none()
            && !self.is_ending
            && self.in_flight.len() < IN_FLIGHT
            && service.outputs.may_serve(self.id)
    }

    /// Serves the command at the beginning of `bytes`. Returns the number of its bytes; 0 if it is incomplete.
    fn serve_next(&mut self, now: Time, service: &mut Service, bytes: &[u8]) -> usize {
        let mut reply = service.outputs.take_buffer();
        let version = self.client.version;
        let (consumed, plan) = match self.parser.parse(bytes) {
            Ok(Parsed::Incomplete { .. }) => {
                service.outputs.recycle(reply);
                return 0;
            }
            Ok(Parsed::Nothing { consumed }) => {
                service.outputs.recycle(reply);
                return consumed;
            }
            Ok(Parsed::Command { args, consumed }) => {
                let args: Vec<&[u8]> = args.iter().collect();
                let facts =
                    Facts { placement: service.identity.placement, wall: service.wall(now) };
                let client = &mut self.client;
                let mut context = Context { args: &args, client, server: &facts };
                let plan = command::perform(&mut context, &mut Reply::new(&mut reply, version));
                service.count_request();
                (consumed, plan)
            }
            Err(error) => {
                let text = String::from_utf8_lossy(&error.text()).into_owned();
                service.count_refused(now, "Redis command", &text);
                self.is_ending = true;
                (bytes.len(), Err(Error::Text(text)))
            }
        };
        self.take_plan(now, service, plan, (version, reply));
        consumed
    }

    /// Carries out the plan of the next command.
    fn take_plan(
        &mut self,
        now: Time,
        service: &mut Service,
        plan: Result<Plan, Error>,
        (version, mut reply): (Version, Vec<u8>),
    ) {
        match plan {
            Ok(Plan::Ask { asks, finish }) if asks.len() <= ASKS_MAX => {
                let held = Held { asks, finish, version, reply };
                return self.begin_or_hold(now, service, held);
            }
            Ok(Plan::Ask { .. }) => {
                Reply::new(&mut reply, version).error(&TOO_MANY_KEYS);
            }
            Ok(Plan::Replied) => {}
            Ok(Plan::Close) => self.is_ending = true,
            Err(error) => {
                reply.clear();
                Reply::new(&mut reply, version).error(&error);
            }
        }
        self.reply(now, service, reply);
    }

    /// Sends a complete reply, or keeps it until those before it are complete.
    fn reply(&mut self, now: Time, service: &mut Service, reply: Vec<u8>) {
        if !self.pending.is_empty() {
            return self.pending.push_back(Pending::Replied(reply));
        }
        self.first += 1;
        self.send(now, service, reply);
    }

    fn send(&mut self, now: Time, service: &mut Service, reply: Vec<u8>) {
        service.outputs.append(self.id, |bytes| bytes.extend_from_slice(&reply));
        service.outputs.recycle(reply);
        if self.is_ending
            && self.pending.is_empty()
            && let Some(output) = service.outputs.get(self.id)
        {
            output.close_after_last_words(now);
        }
    }

    /// Begins a command, or holds it back while it may not begin.
    fn begin_or_hold(&mut self, now: Time, service: &mut Service, held: Held) {
        if !self.may_begin(&held.asks) {
            self.held = Some(held);
            return;
        }
        let Held { asks, finish, version, mut reply } = held;
        // In the usual case the command has one request, which this shard serves at once.
        if let [ask] = &asks[..]
            && self.pending.is_empty()
        {
            let mut finish = Some(finish);
            let served = service.read_here(now, ask, |response| {
                let finish = finish.take().expect("it is called once");
                finish_with(&[response], &[true], finish, version, &mut reply)
            });
            match (served, finish) {
                (Some(plan), _) => return self.take_plan(now, service, plan, (version, reply)),
                (None, Some(finish)) => {
                    return self.begin(now, service, Held { asks, finish, version, reply });
                }
                (None, None) => return,
            }
        }
        self.begin(now, service, Held { asks, finish, version, reply });
    }

    /// Returns whether a command with these requests may begin now.
    fn may_begin(&self, asks: &[Ask]) -> bool {
        if self.in_flight.is_empty() {
            return true;
        }
        if self.in_flight.len() + asks.len() > IN_FLIGHT {
            return false;
        }
        asks.iter().all(|ask| {
            let request = InFlight::of(ask, 0, 0);
            self.in_flight.iter().all(|other| !request.conflicts_with(other))
        })
    }

    /// Begins a command.
    fn begin(&mut self, now: Time, service: &mut Service, held: Held) {
        let Held { asks, finish, version, reply } = held;
        let command = self.first + self.pending.len() as u64;
        let requests = asks.iter().enumerate().map(|(part, ask)| InFlight::of(ask, command, part));
        let requests: Vec<InFlight> = requests.collect();
        let is_read = requests.iter().map(|request| !request.is_write).collect();
        let answers: Vec<Option<Outcome>> = asks.iter().map(|_| None).collect();
        let missing = answers.len();
        let waiting = Waiting { finish, is_read, answers, missing, reply, version };
        self.pending.push_back(Pending::Waiting(Box::new(waiting)));
        self.in_flight.extend(requests);
        if let Some(output) = service.outputs.get(self.id) {
            output.expect_response();
        }
        for (part, ask) in asks.into_iter().enumerate() {
            service.start(now, Owner { connection: self.id, command, part }, ask);
        }
    }

    /// Delivers the outcome of a request.
    pub(crate) fn handle_delivery(&mut self, now: Time, service: &mut Service, delivery: Delivery) {
        let Owner { command, part, .. } = delivery.owner;
        self.in_flight.retain(|request| (request.command, request.part) != (command, part));
        let at = command.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let Some(Pending::Waiting(waiting)) = at.and_then(|at| self.pending.get_mut(at)) else {
            return;
        };
        waiting.answers[part] = Some(delivery.outcome);
        waiting.missing -= 1;
        if waiting.missing == 0 {
            self.finish(now, service, command);
        }
        self.go_on(now, service);
    }

    /// Continues a command all of whose answers have arrived.
    fn finish(&mut self, now: Time, service: &mut Service, command: u64) {
        let at = usize::try_from(command - self.first).expect("it is a pending command");
        let place = &mut self.pending[at];
        let Pending::Waiting(waiting) = std::mem::replace(place, Pending::Replied(Vec::new()))
        else {
            return;
        };
        if let Some(output) = service.outputs.get(self.id) {
            output.note_reply();
        }
        let Waiting { finish, is_read, answers, mut reply, version, .. } = *waiting;
        let plan = match responses_of(&answers) {
            Ok(responses) => {
                let responses: Vec<&Response<'_>> = responses.iter().collect();
                if !is_read.iter().all(|is_read| *is_read) {
                    let copies = responses.iter().map(|response| response.copies);
                    self.client.copies = copies.min().unwrap_or(0);
                }
                finish_with(&responses, &is_read, finish, version, &mut reply)
            }
            Err(error) => {
                // The client must not take a later reply for that of this command's effect.
                self.is_ending |= error == IN_DOUBT;
                Err(error)
            }
        };
        match plan {
            Ok(Plan::Ask { asks, finish }) => {
                let requests =
                    asks.iter().enumerate().map(|(part, ask)| InFlight::of(ask, command, part));
                let requests: Vec<InFlight> = requests.collect();
                let is_read = requests.iter().map(|request| !request.is_write).collect();
                let answers: Vec<Option<Outcome>> = asks.iter().map(|_| None).collect();
                let missing = answers.len();
                let waiting = Waiting { finish, is_read, answers, missing, reply, version };
                self.pending[at] = Pending::Waiting(Box::new(waiting));
                self.in_flight.extend(requests);
                if let Some(output) = service.outputs.get(self.id) {
                    output.expect_response();
                }
                for (part, ask) in asks.into_iter().enumerate() {
                    service.start(now, Owner { connection: self.id, command, part }, ask);
                }
                return;
            }
            Ok(Plan::Replied) => {}
            Ok(Plan::Close) => self.is_ending = true,
            Err(error) => {
                reply.clear();
                Reply::new(&mut reply, version).error(&error);
            }
        }
        self.pending[at] = Pending::Replied(reply);
        while let Some(Pending::Replied(_)) = self.pending.front() {
            self.first += 1;
            if let Some(Pending::Replied(reply)) = self.pending.pop_front() {
                self.send(now, service, reply);
            }
        }
    }

    fn count_memory(&mut self, now: Time, service: &mut Service) {
        let replies = self.pending.iter().map(|pending| match pending {
            Pending::Replied(reply) => reply.capacity(),
            Pending::Waiting(waiting) => waiting.reply.capacity() + size_of::<Waiting>(),
        });
        let held = self.input.capacity() + replies.sum::<usize>();
        let before = std::mem::replace(&mut self.counted, held);
        service.outputs.tally().change(before, held);
        if held > before && service.outputs.tally().memory().is_used_up() {
            let reason = "the memory budget of connections is used up; raise --connection-memory";
            service.count_refused(now, "connection", reason);
            service.outputs.kill(self.id);
        }
    }

    /// Returns whether more bytes may be read from the socket.
    pub(crate) fn wants_input(&self, service: &mut Service) -> bool {
        self.may_go_on(service)
            && service.outputs.get(self.id).is_some_and(|output| !output.is_half_closed())
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

impl InFlight {
    fn of(ask: &Ask, command: u64, part: usize) -> InFlight {
        let request = ask.request();
        let key = match request.operation {
            Operation::Scan(_) => None,
            _ => Some(request.digest),
        };
        InFlight { command, part, key, is_write: request.operation.write_header().is_some() }
    }

    /// Returns whether this request must not be in flight together with another one of the connection.
    fn conflicts_with(&self, other: &InFlight) -> bool {
        match (self.key, other.key) {
            (Some(key), Some(of_other)) => (self.is_write || other.is_write) && key == of_other,
            _ => true,
        }
    }
}

/// The error of a command with too many keys.
const TOO_MANY_KEYS: Error = Error::Stated("ERR a command has at most 65,536 keys in this store");
/// The error of a write whose effect is unknown. The connection ends after it.
const IN_DOUBT: Error = Error::Stated(
    "ERR outcome unknown: no server responded before the deadline, and the write may still take effect",
);
/// The error of a request that no server could serve.
const NOT_SERVED: Error = Error::Stated(
    "TRYAGAIN no server could serve the key before the deadline; nothing was changed by this command",
);

/// Returns the responses to the requests of a command.
fn responses_of(answers: &[Option<Outcome>]) -> Result<Vec<Response<'_>>, Error> {
    let in_doubt = answers.iter().any(|answer| matches!(answer, Some(Outcome::InDoubt)));
    if in_doubt {
        return Err(IN_DOUBT);
    }
    answers.iter().map(|answer| answer.as_ref().and_then(response_of).ok_or(NOT_SERVED)).collect()
}

fn response_of(outcome: &Outcome) -> Option<Response<'_>> {
    let Outcome::Response(frame) = outcome else { return None };
    let frame = split_frame(frame, &FrameRules::unchecked(MAX_RESPONSE_BODY)).ok()??;
    Response::read(frame.body).ok()
}

/// Continues a command with its responses.
fn finish_with(
    responses: &[&Response<'_>],
    is_read: &[bool],
    finish: Finish,
    version: Version,
    reply: &mut Vec<u8>,
) -> Result<Plan, Error> {
    let answers =
        responses.iter().zip(is_read).map(|(response, is_read)| Answer::of(response, *is_read));
    let answers: Vec<Answer<'_>> = answers.collect::<Result<_, Error>>()?;
    finish(&answers, &mut Reply::new(reply, version))
}
