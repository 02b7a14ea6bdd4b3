//! The requests of a shard's Redis connections on their way to the primaries of their keys.
//!
//! ```text
//!   start -> Flight: waiting --+-- this shard --> replica ---- response ---+-> answers -> connection
//!              ^               |                                           |
//!              |               +-- link -----> other shard -- response ----+
//!              |                                                           |
//!              +----- a link is lost, the view changes, UNAVAILABLE, ... <-+
//! ```
//!
//! A write keeps its number in its session until it has a definite response, so it takes effect once. At the deadline of
//! its command a request is given up. A write that may still take effect is then reported as in doubt.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kv_core::hash::HashSecret;
use kv_core::mutations::{self, Mutation};
use kv_core::replica::ConnectionId;
use kv_protocol::client_message::{Hello, Operation, Response, SessionStart, Status, Welcome};
use kv_protocol::ids::{
    ClientId, Member, RequestId, SequenceNumber, ServerId, ShardId, Time, ViewVersion,
};
use kv_protocol::map::Map;
use kv_redis::ask::{Ask, FreeFrames};

use super::lanes::{LaneId, Lanes, Place, WriteNumber};
use super::link::Link;
use crate::address::Address;
use crate::connection::WORK_AT_ONCE;
use crate::dial::{DialTarget, LinkId};
use crate::service::{Hashed, Service};

/// The number of commands with one unit of work.
const COMMANDS_OF_WORK: u64 = 64;
/// The first back-off of a request that cannot be served yet. It doubles up to [`PAUSE_LAST`].
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_LAST: Duration = Duration::from_millis(64);
/// The capacity up to which the buffer of a request is kept for its response.
const SHORT_FRAME: usize = 4 << 10;
/// The back-off before a failed link is dialled again.
const REDIAL: Duration = Duration::from_millis(20);

/// The part of a command that a request belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The connection of the client.
    pub(crate) connection: ConnectionId,
    /// The number of the command on the connection.
    pub(crate) command: u64,
    /// The index of the request in its command.
    pub(crate) part: usize,
}

/// The end of a request.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) owner: Owner,
    pub(crate) outcome: Outcome,
}

/// The outcome of a request.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The frame of a definite response.
    Response(Vec<u8>),
    /// No server could serve the request before the deadline. It has had no effect and will have none.
    NotServed,
    /// No server is left that holds the key. The request has had no effect and will have none.
    Lost,
    /// A write whose effect is unknown.
    InDoubt,
}

impl Outcome {
    /// Returns the memory of the outcome, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Outcome::Response(frame) => frame.capacity(),
            Outcome::NotServed | Outcome::Lost | Outcome::InDoubt => 0,
        }
    }
}

/// The requests in flight, and the routes to the shards that serve them.
#[derive(Default)]
pub(crate) struct Gateway {
    /// The client id of the first lane; `None` until the first request.
    first_client: Option<ClientId>,
    flights: Flights,
    /// The buffers of past requests.
    pub(super) free_frames: FreeFrames,
    lanes: Lanes,
    links: BTreeMap<LinkName, LinkId>,
    link_states: BTreeMap<LinkId, LinkState>,
    links_made: u64,
    /// The requests that no server has, in the order in which they are tried.
    waiting: VecDeque<RequestId>,
    /// The time at which the first of them that waits for a time is tried.
    retry_at: Option<Time>,
    /// The requests by deadline. Some may have ended meanwhile.
    deadlines: VecDeque<(Time, RequestId)>,
    answers: VecDeque<Delivery>,
    /// The connection whose output is the responses of this shard's replicas.
    loopback: Option<ConnectionId>,
    /// The number of random numbers that commands have taken.
    randoms: Cell<u64>,
    /// The work for requests that this shard has served since the wake-up began.
    work: u32,
    /// True if a reply of this wake-up took long to make.
    has_costly_reply: bool,
    /// The number of commands so far.
    commands: u64,
    /// The places of which no lane had room when waiting requests were tried last.
    full: Vec<Place>,
    /// True if waiting requests may be sent now: the views have changed, or a lane has room.
    has_news: bool,
    /// True if the views may have changed since the requests were sent.
    has_new_views: bool,
}

/// The name of a link: a shard of a server, and the lane whose client id it has.
type LinkName = (ServerId, ShardId, LaneId);

struct LinkState {
    name: LinkName,
    address: SocketAddr,
    stage: LinkStage,
    starts: Vec<SessionStart>,
    /// The requests to send once the link is ready.
    queue: Vec<RequestId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkStage {
    /// To be dialled at this time.
    Due(Time),
    Dialling,
    /// Connected, without a WELCOME yet.
    Connected(ConnectionId),
    Ready(ConnectionId),
}

/// A request in flight.
struct Flight {
    ask: Ask,
    owner: Owner,
    place: Place,
    is_write: bool,
    /// The number of a write in its session, once it has one.
    number: Option<WriteNumber>,
    at: Stage,
    /// The number of times that it was passed to a server without a response that shows that it had no effect.
    doubts: u32,
    pause: Duration,
}

impl Flight {
    /// Returns whether this is a write that a server may have executed, or may still execute.
    fn may_take_effect(&self) -> bool {
        self.is_write && self.doubts > 0
    }
}

/// The memory of a request in flight, besides its frame.
pub(crate) const FLIGHT_BYTES: usize = size_of::<Flight>() + size_of::<(Time, RequestId)>();

/// The holder of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// No server, until this time at least.
    Waiting(Time),
    /// The replica of this shard.
    Here,
    /// A link.
    Link(LinkId),
}

/// The destination of a request.
enum Route {
    Here(ViewVersion),
    Server(ServerId, SocketAddr, ViewVersion),
    /// No server is known to serve the group now.
    None,
    /// No server is left that holds the group.
    Lost,
}

/// The requests in flight by id: generation (32 bits) and slot (32 bits).
#[derive(Default)]
struct Flights {
    slots: Vec<(u32, Option<Flight>)>,
    free: Vec<u32>,
}

impl Flights {
    fn insert(&mut self, flight: Flight) -> RequestId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 requests are in flight")
        });
        let (generation, place) = &mut self.slots[slot as usize];
        *place = Some(flight);
        RequestId(u64::from(*generation) << 32 | u64::from(slot))
    }

    fn slot(id: RequestId) -> (u32, usize) {
        let low = id.0 & u64::from(u32::MAX);
        (u32::try_from(id.0 >> 32).unwrap_or_default(), usize::try_from(low).unwrap_or(usize::MAX))
    }

    fn get(&mut self, id: RequestId) -> Option<&mut Flight> {
        let (wanted, slot) = Flights::slot(id);
        let (generation, flight) = self.slots.get_mut(slot)?;
        flight.as_mut().filter(|_| *generation == wanted)
    }

    fn remove(&mut self, id: RequestId) -> Option<Flight> {
        self.get(id)?;
        let (_, slot) = Flights::slot(id);
        let (generation, flight) = &mut self.slots[slot];
        *generation = generation.wrapping_add(1);
        self.free.push(u32::try_from(slot).unwrap_or_default());
        flight.take()
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = (RequestId, &mut Flight)> {
        (0u64..).zip(&mut self.slots).filter_map(|(slot, (generation, flight))| {
            Some((RequestId(u64::from(*generation) << 32 | slot), flight.as_mut()?))
        })
    }
}

impl Gateway {
    /// Removes a request. `is_settled` is false for a write that may still take effect.
    fn remove(&mut self, id: RequestId, is_settled: bool) -> Option<Flight> {
        let flight = self.flights.remove(id)?;
        if let Some(number) = flight.number {
            self.lanes.end(flight.place, number, is_settled);
            self.has_news |= !self.waiting.is_empty();
        }
        Some(flight)
    }

    /// Records that a waiting request is to be tried at this time.
    fn try_again_at(&mut self, at: Time) {
        self.retry_at = Some(self.retry_at.map_or(at, |first| first.min(at)));
    }

    /// Counts a command of this wake-up, or a request of one.
    pub(crate) fn count_command(&mut self) {
        self.commands += 1;
        if self.commands.is_multiple_of(COMMANDS_OF_WORK) {
            self.work += 1;
        }
    }

    /// Notes that a reply takes long to make. No further response is delivered in this wake-up.
    pub(crate) fn note_costly_reply(&mut self) {
        self.has_costly_reply = true;
    }

    /// Returns the next number of a sequence that clients cannot foresee, because they do not know the secret.
    pub(super) fn random(&self, secret: HashSecret) -> u64 {
        self.randoms.set(self.randoms.get() + 1);
        secret.of_client(ClientId(self.randoms.get().into()))
    }
}

impl Service {
    /// Begins a request of a Redis client. Its end is delivered to the connection.
    pub(crate) fn start(&mut self, now: Time, owner: Owner, ask: Ask) {
        let place = ask.place(&self.identity.placement);
        let is_write = ask.is_write();
        let at = Stage::Waiting(now);
        let pause = PAUSE_FIRST;
        let flight = Flight { ask, owner, place, is_write, number: None, at, doubts: 0, pause };
        let id = self.gateway.flights.insert(flight);
        self.gateway.deadlines.push_back((now + self.redis_deadline, id));
        self.gateway.count_command();
        self.dispatch(now, id);
    }

    /// Serves a GET of a Redis client at once, if this shard can. Passes the response to `take`.
    pub(crate) fn read_here<R>(
        &mut self,
        now: Time,
        ask: &Ask,
        take: impl FnOnce(&Response<'_>) -> R,
    ) -> Option<R> {
        let (group, shard) = ask.place(&self.identity.placement);
        if ask.is_write() || shard != self.identity.shard {
            return None;
        }
        let replica = self.replica_mut(group)?;
        let request = ask.request();
        if !matches!(request.operation, Operation::Get | Operation::GetPart(_)) {
            return None;
        }
        let hash = replica.hash_of(request.digest, request.key);
        let response = replica.response_to_read(now, &request, hash)?;
        let is_found = response.status != Status::NotFound;
        let taken = take(&response);
        if is_found {
            replica.note_use(hash);
        }
        Some(taken)
    }

    /// Begins a wake-up, with its full amount of work.
    pub(crate) fn begin_gateway_turn(&mut self) {
        self.gateway.has_news |= self.is_gateway_busy() || self.gateway.has_costly_reply;
        (self.gateway.work, self.gateway.has_costly_reply) = (0, false);
    }

    /// Returns whether the requests of Redis clients have taken so long in this wake-up that further ones are postponed.
    pub(crate) fn is_gateway_busy(&self) -> bool {
        self.gateway.work >= WORK_AT_ONCE
    }

    /// Passes a request to the shard that serves it, or lets it wait.
    fn dispatch(&mut self, now: Time, id: RequestId) {
        let Some(first_client) = self.first_client() else { return self.put_back(id, now) };
        let Some(flight) = self.gateway.flights.get(id) else { return };
        let (place, is_write) = (flight.place, flight.is_write);
        let connection = flight.owner.connection;
        let route = self.route(place);
        if self.is_gateway_busy() {
            self.outputs.postpone(connection);
            return self.put_back(id, now);
        }
        let view = match route {
            Route::Here(view) | Route::Server(_, _, view) => view,
            Route::None => return self.put_back(id, now),
            Route::Lost => return self.give_up(id, Outcome::Lost),
        };
        let Gateway { flights, lanes, .. } = &mut self.gateway;
        let Some(flight) = flights.get(id) else { return };
        if mutations::is_open(Mutation::RetriedUnderNewNumber)
            && flight.doubts > 0
            && let Some(number) = flight.number.take()
        {
            lanes.end(place, number, true);
        }
        if is_write && flight.number.is_none() {
            flight.number = lanes.begin(place, first_client);
            if flight.number.is_none() {
                if !self.gateway.full.contains(&place) {
                    self.gateway.full.push(place);
                }
                return self.put_back(id, now);
            }
        }
        flight.ask.set_route(id, view);
        let lane = flight.number.map_or(LaneId::FIRST, |(lane, _)| lane);
        match route {
            Route::Server(server, address, _) => {
                let link = self.link_to((server, place.1, lane), address, now);
                if let Some(flight) = self.gateway.flights.get(id) {
                    flight.at = Stage::Link(link);
                }
                self.send(link, id);
            }
            _ => self.serve_here(now, id, lane.client(first_client)),
        }
    }

    fn first_client(&mut self) -> Option<ClientId> {
        if self.gateway.first_client.is_none() {
            let drawn = self.draw_nonce().ok()?;
            self.gateway.first_client = Some(ClientId(drawn.0));
        }
        self.gateway.first_client
    }

    /// Lets a request wait until `at`, or until a change after it.
    fn put_back(&mut self, id: RequestId, at: Time) {
        if let Some(flight) = self.gateway.flights.get(id) {
            flight.at = Stage::Waiting(at);
            self.gateway.waiting.push_back(id);
        }
    }

    /// Returns the destination of the requests for a place.
    fn route(&self, (group, shard): Place) -> Route {
        let Some(map) = &self.map else { return Route::None };
        let Some(mut view) = map.views.get(usize::from(group.0)) else { return Route::None };
        if let Some(newer) = self.replica(group).and_then(|replica| replica.view())
            && newer.version > view.version
        {
            view = newer;
        }
        match view.primary {
            None if view.version == ViewVersion(0) => Route::None,
            None => Route::Lost,
            Some(member) if member == self.identity.me && shard == self.identity.shard => {
                Route::Here(view.version)
            }
            Some(member) => match address_of(map, member) {
                Some(address) => Route::Server(member.server, address, view.version),
                None => Route::None,
            },
        }
    }

    /// Passes a request to this shard's replica.
    fn serve_here(&mut self, now: Time, id: RequestId, client: ClientId) {
        let loopback = self.loopback(now);
        let starts = self.session_starts();
        if !self.set_session(id, &starts) {
            return self.put_back(id, now);
        }
        let Some(flight) = self.gateway.flights.get(id) else { return };
        (flight.at, flight.doubts) = (Stage::Here, flight.doubts + 1);
        // The service is passed to the replica, so the request is taken out meanwhile.
        let ask = std::mem::take(&mut flight.ask);
        match self.read_here(now, &ask, encoded) {
            Some(response) => self.end(id, Outcome::Response(response)),
            None => {
                let request = ask.request();
                let hash = self.hash_secret.of_key(request.digest, request.key);
                let hashed = Hashed { request, hash };
                self.handle_request(now, loopback, (client, Address::UNKNOWN), &hashed);
                self.gateway.work += self.work_of(&hashed.request);
                if let Some(flight) = self.gateway.flights.get(id) {
                    flight.ask = ask;
                }
            }
        }
    }

    fn loopback(&mut self, now: Time) -> ConnectionId {
        match self.gateway.loopback {
            Some(id) => id,
            None => {
                let id = self.outputs.open_loopback(now);
                self.gateway.loopback = Some(id);
                id
            }
        }
    }

    /// Sets the session fields of a write. Returns false if its session no longer exists.
    fn set_session(&mut self, id: RequestId, starts: &[SessionStart]) -> bool {
        let Gateway { flights, lanes, .. } = &mut self.gateway;
        let Some(flight) = flights.get(id) else { return false };
        let Some((lane, seq)) = flight.number else { return true };
        let Some(session) = lanes.session(flight.place, lane) else { return false };
        let start = starts.iter().find(|start| start.group == flight.place.0);
        let begun = session.begun(|| start.map_or(SequenceNumber::ZERO, |start| start.committed));
        flight.ask.set_session(seq, session.first_incomplete(), begun);
        true
    }

    // --- Links -----------------------------------------------------------------------------------

    fn link_to(&mut self, name: LinkName, address: SocketAddr, now: Time) -> LinkId {
        if let Some(link) = self.gateway.links.get(&name) {
            return *link;
        }
        let link = LinkId(self.gateway.links_made);
        self.gateway.links_made += 1;
        let stage = LinkStage::Due(now);
        let state = LinkState { name, address, stage, starts: Vec::new(), queue: Vec::new() };
        self.gateway.links.insert(name, link);
        self.gateway.link_states.insert(link, state);
        // The engine then asks for dials.
        self.note_news();
        link
    }

    /// Appends a request to the output of its link, or to the queue of the link if that is not ready.
    fn send(&mut self, link: LinkId, id: RequestId) {
        let Some(state) = self.gateway.link_states.get_mut(&link) else { return };
        let LinkStage::Ready(connection) = state.stage else { return state.queue.push(id) };
        let starts = std::mem::take(&mut state.starts);
        if self.set_session(id, &starts)
            && let Some(flight) = self.gateway.flights.get(id)
        {
            flight.doubts += 1;
            self.outputs.append(connection, |bytes| bytes.extend_from_slice(flight.ask.frame()));
        }
        if let Some(state) = self.gateway.link_states.get_mut(&link) {
            state.starts = starts;
        }
    }

    /// Adds the links to dial now.
    pub(crate) fn add_due_links(&mut self, now: Time, due: &mut Vec<(DialTarget, SocketAddr)>) {
        for (link, state) in &mut self.gateway.link_states {
            if matches!(state.stage, LinkStage::Due(at) if at <= now) {
                state.stage = LinkStage::Dialling;
                due.push((DialTarget::Link(*link), state.address));
            }
        }
    }

    /// Returns when the next link is to be dialled.
    pub(crate) fn poll_link_dial(&self) -> Option<Time> {
        let due = self.gateway.link_states.values().filter_map(|state| match state.stage {
            LinkStage::Due(at) => Some(at),
            _ => None,
        });
        due.min()
    }

    /// Records that a link is connected, and sends its HELLO. Returns its input.
    pub(crate) fn handle_link_dialled(
        &mut self,
        now: Time,
        link: LinkId,
        id: ConnectionId,
    ) -> Link {
        let cluster = self.identity.cluster;
        let first = self.first_client();
        match (self.gateway.link_states.get_mut(&link), first) {
            (Some(state), Some(first)) => {
                let (_, shard, lane) = state.name;
                state.stage = LinkStage::Connected(id);
                let hello = Hello::new(cluster, lane.client(first), shard);
                self.outputs.append(id, |bytes| hello.write(bytes));
            }
            _ => self.outputs.kill(id),
        }
        Link::new(now, id, link)
    }

    /// Records that a link is ready, and sends its requests.
    pub(crate) fn handle_link_welcome(&mut self, link: LinkId, welcome: &Welcome) {
        let Some(state) = self.gateway.link_states.get_mut(&link) else { return };
        let LinkStage::Connected(id) = state.stage else { return };
        if welcome.server.map(|member| member.server) != Some(state.name.0) {
            return self.outputs.kill(id);
        }
        state.stage = LinkStage::Ready(id);
        state.starts = welcome.starts.to_vec();
        for request in std::mem::take(&mut state.queue) {
            let is_here = |flight: &mut Flight| flight.at == Stage::Link(link);
            if self.gateway.flights.get(request).is_some_and(is_here) {
                self.send(link, request);
            }
        }
    }

    /// Records that a link could not be connected, or is lost. Its requests wait for a new one.
    pub(crate) fn handle_link_failed(&mut self, now: Time, link: LinkId) {
        self.drop_link(link, now + REDIAL);
    }

    /// Forgets a link. Its requests wait until `retry`.
    fn drop_link(&mut self, link: LinkId, retry: Time) {
        let Some(state) = self.gateway.link_states.remove(&link) else { return };
        self.gateway.links.remove(&state.name);
        if let LinkStage::Connected(id) | LinkStage::Ready(id) = state.stage {
            self.outputs.kill(id);
        }
        let of_link = self.gateway.flights.iter_mut().filter(|(_, f)| f.at == Stage::Link(link));
        let lost: Vec<RequestId> = of_link.map(|(id, _)| id).collect();
        if !lost.is_empty() {
            self.gateway.try_again_at(retry);
        }
        lost.into_iter().for_each(|id| self.put_back(id, retry));
    }

    // --- Responses -------------------------------------------------------------------------------

    /// Processes the response to a request.
    pub(crate) fn handle_answer(&mut self, now: Time, id: RequestId, response: &Response<'_>) {
        let Some(flight) = self.gateway.flights.get(id) else { return };
        match response.status {
            Status::WrongView | Status::Unavailable | Status::Busy => {
                if response.status != Status::WrongView {
                    flight.doubts = flight.doubts.saturating_sub(1);
                }
                let pause = flight.pause;
                flight.pause = (pause * 2).min(PAUSE_LAST);
                self.put_back(id, now + pause);
                self.gateway.try_again_at(now + pause);
            }
            // This was the only copy of the request, so it was not executed. Its session began at a position that is too
            // old, so it gets a new one.
            Status::SessionExpired if flight.doubts == 1 => {
                flight.doubts = 0;
                let (number, place, at) = (flight.number.take(), flight.place, flight.at);
                if let Some(number) = number {
                    self.gateway.lanes.end(place, number, false);
                }
                self.put_back(id, now);
                if let Stage::Link(link) = at {
                    self.drop_link(link, now);
                }
                self.gateway.has_news = true;
            }
            Status::SessionExpired => self.end(id, Outcome::InDoubt),
            // This copy was not executed and will not be, but an earlier one may be.
            Status::OutOfSpace => {
                flight.doubts = flight.doubts.saturating_sub(1);
                match flight.may_take_effect() {
                    true => self.end(id, Outcome::InDoubt),
                    false => self.end_with(id, response),
                }
            }
            _ => self.end_with(id, response),
        }
    }

    /// Ends a request without a response: with this outcome, unless it may take effect.
    fn give_up(&mut self, id: RequestId, outcome: Outcome) {
        let Some(flight) = self.gateway.flights.get(id) else { return };
        let is_in_doubt =
            flight.may_take_effect() && !mutations::is_open(Mutation::DoubtReportedAsNotDone);
        self.end(id, if is_in_doubt { Outcome::InDoubt } else { outcome });
    }

    /// Ends a request with its response, which gets the buffer of the request.
    fn end_with(&mut self, id: RequestId, response: &Response<'_>) {
        let Some(flight) = self.gateway.remove(id, true) else { return };
        let mut frame = flight.ask.into_buffer();
        frame.clear();
        frame.shrink_to(SHORT_FRAME.max(response.value.len()));
        response.write(&mut frame);
        let (owner, outcome) = (flight.owner, Outcome::Response(frame));
        self.gateway.answers.push_back(Delivery { owner, outcome });
    }

    /// Ends a request.
    fn end(&mut self, id: RequestId, outcome: Outcome) {
        let is_settled = !matches!(outcome, Outcome::InDoubt);
        let Some(Flight { owner, .. }) = self.gateway.remove(id, is_settled) else { return };
        self.gateway.answers.push_back(Delivery { owner, outcome });
    }

    /// Takes the next ended request. First processes the responses of this shard's replicas.
    pub(crate) fn next_delivery(&mut self, now: Time) -> Option<Delivery> {
        self.take_loopback(now);
        if std::mem::take(&mut self.gateway.has_new_views) {
            self.follow_views(now);
        }
        if std::mem::take(&mut self.gateway.has_news) {
            self.retry_waiting(now);
            self.take_loopback(now);
        }
        if self.gateway.has_costly_reply && !self.gateway.answers.is_empty() {
            // The next wake-up, which follows at once, takes the others.
            self.gateway.try_again_at(now);
            return None;
        }
        self.gateway.answers.pop_front()
    }

    fn take_loopback(&mut self, now: Time) {
        let Some(loopback) = self.gateway.loopback else { return };
        while let Some((bytes, start)) = self.outputs.get(loopback).and_then(|output| output.take())
        {
            let mut rest = &bytes[start..];
            let length = rest.len();
            while let Some(frame) = super::link::next_response(&mut rest) {
                self.handle_answer(now, frame.id, &frame);
            }
            self.outputs.handle_sent(now, loopback, length);
            self.outputs.recycle(bytes);
        }
    }

    /// Takes back the requests that were sent by older views than those known now.
    fn follow_views(&mut self, now: Time) {
        let stale: Vec<LinkId> = self
            .gateway
            .link_states
            .iter()
            .filter(|(_, state)| self.address_of_server(state.name.0) != Some(state.address))
            .map(|(link, _)| *link)
            .collect();
        stale.into_iter().for_each(|link| self.drop_link(link, now));
        let on_links: Vec<(RequestId, Place, LinkId)> = self
            .gateway
            .flights
            .iter_mut()
            .filter_map(|(id, flight)| match flight.at {
                Stage::Link(link) => Some((id, flight.place, link)),
                _ => None,
            })
            .collect();
        for (id, place, link) in on_links {
            let server = self.gateway.link_states.get(&link).map(|state| state.name.0);
            let is_there = match self.route(place) {
                Route::Server(wanted, ..) => Some(wanted) == server,
                _ => false,
            };
            if !is_there {
                self.put_back(id, now);
            }
        }
        self.gateway.has_news = true;
    }

    /// Returns the address at which a server accepts clients, if its process is known.
    fn address_of_server(&self, server: ServerId) -> Option<SocketAddr> {
        self.map.as_ref()?.servers.get(usize::from(server.0))?.clients
    }

    /// Tries all waiting requests whose time has come.
    fn retry_waiting(&mut self, now: Time) {
        self.gateway.retry_at = None;
        self.gateway.full.clear();
        for _ in 0..self.gateway.waiting.len() {
            if self.is_gateway_busy() {
                // The next wake-up, which follows at once, tries the others.
                return self.gateway.try_again_at(now);
            }
            let Some(id) = self.gateway.waiting.pop_front() else { return };
            match self.gateway.flights.get(id).map(|flight| flight.at) {
                Some(Stage::Waiting(at)) if at <= now => match self.needs_full_lane(id) {
                    true => self.gateway.waiting.push_back(id),
                    false => {
                        self.gateway.count_command();
                        self.dispatch(now, id);
                    }
                },
                Some(Stage::Waiting(at)) => {
                    self.gateway.waiting.push_back(id);
                    self.gateway.try_again_at(at);
                }
                _ => {}
            }
        }
    }

    /// Returns whether a request is a new write to a place that has no room for it.
    fn needs_full_lane(&mut self, id: RequestId) -> bool {
        let Gateway { flights, full, .. } = &mut self.gateway;
        flights.get(id).is_some_and(|flight| {
            flight.is_write && flight.number.is_none() && full.contains(&flight.place)
        })
    }

    /// Gives up the requests whose deadline has passed, and tries the waiting ones.
    pub(crate) fn handle_gateway_tick(&mut self, now: Time) {
        while let Some((deadline, id)) = self.gateway.deadlines.front().copied() {
            match self.gateway.flights.get(id) {
                Some(_) if deadline <= now => self.give_up(id, Outcome::NotServed),
                Some(_) => break,
                None => {}
            }
            self.gateway.deadlines.pop_front();
        }
        self.gateway.has_news |= !self.gateway.waiting.is_empty();
    }

    /// Returns when [`Service::handle_gateway_tick`] has work next.
    pub(crate) fn poll_gateway(&self) -> Option<Time> {
        let deadline = self.gateway.deadlines.front().map(|(deadline, _)| *deadline);
        deadline.into_iter().chain(self.gateway.retry_at).min()
    }

    /// Records that the views may have changed.
    pub(crate) fn note_new_views(&mut self) {
        self.gateway.has_new_views = true;
    }
}

/// Returns the address at which a process accepts clients, if it is the current one of its server.
fn address_of(map: &Arc<Map>, member: Member) -> Option<SocketAddr> {
    let server = map.servers.get(usize::from(member.server.0))?;
    server.clients.filter(|_| server.incarnation == member.incarnation)
}

fn encoded(response: &Response<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    response.write(&mut bytes);
    bytes
}
