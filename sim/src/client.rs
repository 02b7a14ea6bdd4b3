//! A client: operations with deadlines, retried under their first sequence number.
//!
//! ```text
//!   begin -> request to the primary of the key's group -> response: ended
//!              ^ |  WRONG_VIEW, UNAVAILABLE, BUSY, a lost connection: back-off, map, retry
//!              | +- 150 ms without a response: map; retry if the group's view is newer; map every 100 ms
//!              |
//!              +--- deadline: in doubt if any request may have been executed; then it is settled
//!              +--- the map has no primary for the group: LOST, or in doubt, as above
//!              +--- SESSION_EXPIRED to its only request: retry in a new session
//!              +--- SESSION_MISMATCH: not done; the session is left to the other client
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kv_protocol::client_message::{Response, Status, Welcome};
use kv_protocol::ids::{ClientId, GroupId, RequestSeq, SequenceNumber, ShardId, ViewVersion};
use kv_protocol::map::Map;
use kv_protocol::placement::Digest;
use kv_protocol::view::View;

use crate::network::ConnectionNumber;
use crate::object::{Mixed, ObjectAsk};
use crate::workload::{Plan, value_of};
use kv_history::object::{Answer, Outcome, Shown};
use kv_history::{Asked, Returned, Value};
use kv_testkit::objects::Known;

mod doubt;
mod flight;
#[cfg(test)]
mod tests;

pub use flight::Flight;
use flight::{Session, Stage};

/// The deadline of an operation, in nanoseconds.
pub const DEADLINE: u64 = 5_000_000_000;
/// The time without a response after which a client requests the map, in nanoseconds.
const SILENCE: u64 = 150_000_000;
/// The interval between further requests for the map, in nanoseconds.
const ASK_AGAIN: u64 = 100_000_000;
const FIRST_PAUSE: u64 = 1_000_000;
const LAST_PAUSE: u64 = 50_000_000;

/// A version that a client has read, with its value.
pub type Seen = Option<(SequenceNumber, Value)>;

/// A client.
#[derive(Debug)]
pub struct Client {
    /// The name of the client.
    pub id: ClientId,
    /// The client's copy of the cluster's map.
    pub map: Option<Map>,
    /// The newest known view, by group.
    views: Vec<View>,
    sessions: BTreeMap<(GroupId, ShardId), Session>,
    /// The log positions at which sessions may begin, from the newest WELCOMEs.
    starts: BTreeMap<(GroupId, ShardId), SequenceNumber>,
    /// True if this client is a clone of another one and uses its name.
    pub is_clone: bool,
    /// Operations in flight, by request id.
    pub flights: BTreeMap<u64, Flight>,
    /// Writes in doubt that are not being settled yet, by request id.
    doubts: BTreeMap<u64, Flight>,
    next_request: u64,
    /// Connections by the address of the process, the shard, and the client name.
    pub connections: BTreeMap<(SocketAddr, ShardId, ClientId), ConnectionNumber>,
    /// The last value read, by key.
    pub seen: BTreeMap<Vec<u8>, Seen>,
    /// The last entry read, by key of an object.
    pub known: BTreeMap<Vec<u8>, Known>,
    /// The client's process number in the history; a new one after every operation in doubt.
    pub process: u32,
    /// The time until which the client waits for the response to its last map request.
    pub asks_map_until: u64,
    /// True if the client only reads, many keys at the same time, and requests no map when a response is late. So it
    /// would continue to read from an old primary that serves by mistake.
    pub is_reader: bool,
    /// The time before which the client begins no operation.
    pub rests_until: u64,
    /// The number of sessions that replaced expired or shared ones. A clone starts at 1,000.
    pub fresh_sessions: u64,
    /// The offset of the numbers in the names of these sessions.
    first_session: u64,
}

/// An effect that a client requests.
#[derive(Debug)]
pub enum Wish {
    /// Send this request to the shard at this address, under this client name.
    Send(SocketAddr, ShardId, ClientId, u64, Vec<u8>),
    /// Request the map.
    Map,
    /// The servers have expired the session with this name, although one of its writes is in flight.
    Expired((GroupId, ShardId), ClientId),
    /// A response from this group contains bytes that are not those of one written value.
    Mixed(GroupId),
    /// The client has given up a write, or an attempt to settle one.
    GivenUp(Box<Flight>),
    /// An operation has ended.
    Ended(Box<Flight>, Returned, Option<SequenceNumber>),
}

impl Client {
    /// Creates a client without a map.
    pub fn new(id: u128) -> Client {
        Client {
            id: ClientId(id),
            map: None,
            views: Vec::new(),
            sessions: BTreeMap::new(),
            starts: BTreeMap::new(),
            is_clone: false,
            flights: BTreeMap::new(),
            doubts: BTreeMap::new(),
            next_request: 1,
            connections: BTreeMap::new(),
            seen: BTreeMap::new(),
            known: BTreeMap::new(),
            process: u32::try_from(id).expect("clients are few") << 16,
            asks_map_until: 0,
            is_reader: false,
            rests_until: 0,
            fresh_sessions: 0,
            first_session: 0,
        }
    }

    /// Returns the maximum number of operations in flight.
    pub fn depth(&self) -> usize {
        if self.is_reader { 40 } else { 4 }
    }

    /// Begins an operation. Does nothing if the client has no map.
    pub fn begin(&mut self, now: u64, plan: Plan) {
        let Plan { slot, key, floor, mut asked, mut object, condition, value, timeout, settling } =
            plan;
        if self.is_clone && (asked == Asked::Delete || object.is_some()) {
            // A clone does not delete: the servers cannot distinguish two deletes of one key with the same sequence
            // number. The same applies to updates.
            asked = Asked::Read;
            object = object.map(|ask| {
                let key = ask.updates[0].key;
                Box::new(ObjectAsk::read(ask.keys, key, true))
            });
        }
        let Some(map) = &self.map else { return };
        let digest = Digest::of(&key);
        let place = map.placement().locate_digested(digest, &key);
        let (client, seq, begun) = match asked {
            Asked::Read => (self.id, RequestSeq(0), SequenceNumber::ZERO),
            _ => {
                let start = self.starts.get(&place).copied().unwrap_or_default();
                let new = || Session::new(self.id, start);
                let session = self.sessions.entry(place).or_insert_with(new);
                (session.client, session.begin(), session.begun)
            }
        };
        let flight = Flight {
            key,
            slot,
            digest,
            place,
            asked,
            object,
            answer: None,
            condition,
            value,
            client,
            seq,
            first_incomplete: seq,
            begun,
            start: now,
            slept: 0,
            floor,
            copies: 0,
            sent: None,
            was_sent: false,
            doubtful: 0,
            connection: None,
            due: now,
            pause: FIRST_PAUSE,
            timeout,
            settling,
            stage: Stage::Asked,
        };
        self.flights.insert(self.next_request, flight);
        self.next_request += 1;
    }

    /// Handles everything that is due.
    pub fn wake(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        self.settle(now, |doubt| doubt.due <= now);
        let due: Vec<u64> =
            self.flights.iter().filter(|(_, f)| f.due <= now).map(|(id, _)| *id).collect();
        for id in due {
            let flight = &self.flights[&id];
            if now >= flight.deadline() {
                let responded = match flight.asked {
                    Asked::Read => Returned::InDoubt,
                    _ => flight.unless_in_doubt(Returned::Refused),
                };
                self.end_or_give_up(now, id, responded, wishes);
                continue;
            }
            self.send(now, id, wishes);
        }
    }

    /// Sends an operation, or retries it, to the primary of its group in the newest view.
    fn send(&mut self, now: u64, id: u64, wishes: &mut Vec<Wish>) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let (group, shard) = flight.place;
        let view = self.views.get(usize::from(group.0)).copied();
        flight.due = now + ASK_AGAIN;
        let waits_long = flight.sent.is_some_and(|(at, _)| now >= at + SILENCE);
        let is_same = flight.sent.is_some_and(|(_, sent)| Some(sent) == view);
        if !self.is_reader && (waits_long || flight.sent.is_none()) {
            wishes.push(Wish::Map);
        }
        if is_same {
            return;
        }
        if view.is_some_and(|view| view.primary.is_none() && view.version > ViewVersion(0)) {
            let responded = flight.unless_in_doubt(Returned::Lost);
            return self.end_or_give_up(now, id, responded, wishes);
        }
        if self.waits_for_doubts(now, id) {
            return;
        }
        let known = view.zip(self.map.as_ref()).and_then(|(view, map)| {
            let primary = view.primary?;
            let server = &map.servers[usize::from(primary.server.0)];
            let address = server.clients.filter(|_| server.incarnation == primary.incarnation)?;
            Some((view, address))
        });
        let Some((view, address)) = known else {
            return wishes.push(Wish::Map);
        };
        let flight = self.flights.get_mut(&id).expect("the flight was found");
        if let Some(session) = self.sessions.get(&flight.place)
            && session.client == flight.client
        {
            flight.first_incomplete = session.first_incomplete();
        }
        let bytes = flight.request(id, &view);
        flight.sent = Some((now, view));
        flight.was_sent = true;
        flight.doubtful += 1;
        flight.due = (now + SILENCE).min(flight.deadline());
        wishes.push(Wish::Send(address, shard, flight.client, id, bytes));
    }

    /// Records the connection on which an operation was sent.
    pub fn note_connection(&mut self, id: u64, number: ConnectionNumber) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.connection = Some(number);
        }
    }

    /// Handles a server's response.
    pub fn on_response(
        &mut self,
        now: u64,
        jitter: u64,
        response: &Response<'_>,
        wishes: &mut Vec<Wish>,
    ) {
        let id = response.id.0;
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let changed = |changed| Returned::Done { changed };
        flight.copies = response.copies;
        if flight.was_given_up() {
            return self.on_settled(now, jitter, response, wishes);
        }
        // With these statuses the server has not logged this request and never will.
        if let Status::Unavailable | Status::Busy | Status::OutOfSpace = response.status {
            flight.doubtful = flight.doubtful.saturating_sub(1);
        }
        match flight.object.as_ref().map(|ask| ask.answer(response)) {
            Some(Err(Mixed)) => return wishes.push(Wish::Mixed(flight.place.0)),
            Some(Ok(Some(answer))) => return self.on_answer(id, answer, wishes),
            Some(Ok(None)) | None => {}
        }
        let responded = match (response.status, flight.asked) {
            (Status::Ok, Asked::Read) => {
                let Some(value) = value_of(response.value) else {
                    return wishes.push(Wish::Mixed(flight.place.0));
                };
                self.seen.insert(flight.key.clone(), Some((response.version, value)));
                Returned::Value(Some(value))
            }
            (Status::NotFound, Asked::Read) => {
                self.seen.insert(flight.key.clone(), None);
                Returned::Value(None)
            }
            (Status::Ok, Asked::Write(value) | Asked::Swap { new: value, .. }) => {
                self.seen.insert(flight.key.clone(), Some((response.version, value)));
                changed(true)
            }
            (Status::Ok, Asked::Delete) => changed(true),
            (Status::NotFound, Asked::Delete) | (Status::Conflict, Asked::Swap { .. }) => {
                self.seen.remove(&flight.key);
                changed(false)
            }
            (Status::SessionExpired, _) => {
                wishes.push(Wish::Expired(flight.place, flight.client));
                if flight.doubtful == 1 {
                    return self.begin_session_anew(now, id);
                }
                Returned::Undecided
            }
            (Status::SessionMismatch, _) => {
                let (place, name) = (flight.place, flight.client);
                self.leave_session(place, name);
                Returned::Refused
            }
            (Status::OutOfSpace, _) => {
                let responded = flight.unless_in_doubt(Returned::Refused);
                return self.end_or_give_up(now, id, responded, wishes);
            }
            (status, _) => return self.try_again(now, jitter, id, status, wishes),
        };
        let version = (response.status == Status::Ok).then_some(response.version);
        self.end(id, responded, version, wishes);
    }

    /// Handles a definite response to an operation on an object.
    fn on_answer(&mut self, id: u64, answer: Answer, wishes: &mut Vec<Wish>) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let responded = match flight.is_write() {
            true => Returned::Done { changed: true },
            false => Returned::Value(None),
        };
        if let Answer::Shown { version, updates } = &answer
            && let [Shown { outcome: Outcome::Done, value: Some(value), .. }] = &updates[..]
            && !flight.is_write()
        {
            let known = Known { version: *version, value: value.clone() };
            self.known.insert(flight.key.clone(), known);
        }
        flight.answer = Some(answer);
        self.end(id, responded, None, wishes);
    }

    /// Schedules a retry with the same sequence number, after a back-off.
    fn try_again(
        &mut self,
        now: u64,
        jitter: u64,
        id: u64,
        status: Status,
        wishes: &mut Vec<Wish>,
    ) {
        if status == Status::WrongView {
            wishes.push(Wish::Map);
        }
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.sent = None;
        flight.due = now + flight.pause / 2 + jitter % flight.pause;
        flight.pause = (flight.pause * 2).min(LAST_PAUSE);
    }

    fn end(
        &mut self,
        id: u64,
        responded: Returned,
        version: Option<SequenceNumber>,
        wishes: &mut Vec<Wish>,
    ) {
        let Some(flight) = self.flights.remove(&id) else { return };
        if flight.seq != RequestSeq(0)
            && let Some(session) = self.sessions.get_mut(&flight.place)
            && session.client == flight.client
        {
            session.end(flight.seq);
        }
        if matches!(responded, Returned::InDoubt | Returned::Undecided) {
            self.seen.remove(&flight.key);
        }
        if flight.was_given_up() {
            self.on_no_doubt(&flight);
        }
        wishes.push(Wish::Ended(Box::new(flight), responded, version));
    }

    /// Moves a write to a new session with another name. The servers had expired its session, and they
    /// executed none of its requests, so the write was not done.
    fn begin_session_anew(&mut self, now: u64, id: u64) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let (place, name) = (flight.place, flight.client);
        self.leave_session(place, name);
        let (Some(flight), Some(session)) =
            (self.flights.get_mut(&id), self.sessions.get_mut(&place))
        else {
            return;
        };
        (flight.client, flight.seq) = (session.client, session.begin());
        (flight.begun, flight.first_incomplete) = (session.begun, session.first_incomplete());
        (flight.sent, flight.doubtful, flight.due) = (None, 0, now + flight.pause);
    }

    /// Begins a new session at a place, if the current one has this name.
    fn leave_session(&mut self, place: (GroupId, ShardId), name: ClientId) {
        let Some(session) = self.sessions.get_mut(&place) else { return };
        if session.client == name {
            self.fresh_sessions += 1;
            let name = self.id.0 + (u128::from(self.first_session + self.fresh_sessions) << 32);
            let start = self.starts.get(&place).copied().unwrap_or_default();
            *session = Session::new(ClientId(name), start);
        }
    }

    /// Handles the WELCOME of a shard.
    pub fn on_welcome(&mut self, number: ConnectionNumber, welcome: &Welcome) {
        let known = self.connections.iter().find(|(_, known)| **known == number);
        let Some((&(_, shard, _), _)) = known else { return };
        for start in welcome.starts {
            let newest = self.starts.entry((start.group, shard)).or_default();
            *newest = (*newest).max(start.committed);
        }
    }

    /// Makes this client a copy of another one in its current state, like the clone of a virtual machine. Both then
    /// have the same client id and continue the same sessions.
    pub fn become_clone_of(&mut self, other: &Client, wishes: &mut Vec<Wish>) {
        self.end_all(wishes);
        self.id = other.id;
        self.sessions = other.sessions.clone();
        self.starts = other.starts.clone();
        self.is_clone = true;
        // New session names and request ids differ from those of the original client.
        self.first_session = 1_000;
        self.next_request = 1 << 40;
        self.connections.clear();
    }

    /// Gives the client a new name that no other client has, and new sessions.
    pub fn take_new_name(&mut self) {
        self.id.0 += 1 << if self.is_clone { 97 } else { 98 };
        self.sessions.clear();
        self.is_clone = false;
    }

    /// Returns the names under which the client writes.
    pub fn names(&self) -> impl Iterator<Item = ClientId> {
        self.sessions.values().map(|session| session.client).chain([self.id])
    }

    /// Handles the end of a suspension of the client's machine. The clock of the machine did not advance meanwhile, so
    /// all deadlines are postponed.
    pub fn on_slept(&mut self, slept: u64) {
        for flight in self.flights.values_mut().chain(self.doubts.values_mut()) {
            flight.slept += slept;
            flight.due += slept;
            if let Stage::Asking(until) = &mut flight.stage {
                *until += slept;
            }
            if let Some((at, _)) = &mut flight.sent {
                *at += slept;
            }
        }
    }

    /// Returns whether the client still uses this connection.
    pub fn keeps(&self, number: ConnectionNumber) -> bool {
        let waits = |flight: &Flight| flight.connection == Some(number);
        self.connections.values().any(|known| *known == number) || self.flights.values().any(waits)
    }

    /// Handles the end of a connection: operations that wait for a response on it are retried after a back-off.
    pub fn on_closed(&mut self, now: u64, number: ConnectionNumber) {
        self.connections.retain(|_, known| *known != number);
        for flight in self.flights.values_mut() {
            if flight.connection == Some(number) {
                (flight.connection, flight.sent) = (None, None);
                flight.due = now + flight.pause;
                flight.pause = (flight.pause * 2).min(LAST_PAUSE);
            }
        }
    }

    /// Handles a restore of the client's cluster: operations in flight are sent to the restored cluster.
    pub fn follow(&mut self, now: u64) {
        self.views.clear();
        self.connections.clear();
        for flight in self.flights.values_mut() {
            (flight.connection, flight.sent) = (None, None);
            flight.due = flight.due.min(now + flight.pause);
        }
    }

    /// Handles a new cluster without the data of the old one: every operation in flight ends in doubt, and all
    /// sessions are new.
    pub fn enter(&mut self, wishes: &mut Vec<Wish>) {
        self.end_all(wishes);
        self.id.0 += 1 << if self.is_clone { 96 } else { 64 };
        self.sessions.clear();
        self.views.clear();
        self.connections.clear();
    }

    /// Handles a map. A view is replaced only by a newer one.
    pub fn on_map(&mut self, now: u64, map: Map) {
        if self.views.is_empty() {
            self.views.clone_from(&map.views);
        }
        for (known, view) in self.views.iter_mut().zip(&map.views) {
            if view.version > known.version {
                *known = *view;
            }
        }
        for flight in self.flights.values_mut() {
            let view = self.views[usize::from(flight.place.0.0)];
            if flight.sent.is_some_and(|(_, sent)| sent != view) || flight.sent.is_none() {
                flight.due = flight.due.min(now + 1);
            }
        }
        (self.map, self.asks_map_until) = (Some(map), 0);
    }

    /// Returns the time of the next wake-up, if any.
    pub fn next_wake(&self) -> Option<u64> {
        self.flights.values().chain(self.doubts.values()).map(|flight| flight.due).min()
    }
}
