//! A client: operations with deadlines, retried under the number they got first.
//!
//! ```text
//!   begin -> request to the primary of the key's group -> answer: ended
//!              ^ |  WRONG_VIEW, UNAVAILABLE, BUSY, a lost connection: a pause, the map, again
//!              | +- 150 ms of silence: the map; if the group's view is newer, again; every 100 ms
//!              |
//!              +--- the deadline: in doubt, if any sending may have been executed; then it is settled
//!              +--- the map says that nobody holds the group: LOST, or in doubt, as above
//!              +--- SESSION_EXPIRED to its only sending: again, in a session begun anew
//!              +--- SESSION_MISMATCH: not done, and the session is left to the other client
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kv_protocol::client_message::{Answer, Status, Welcome};
use kv_protocol::ids::{ClientId, GroupId, RequestSeq, SequenceNumber, ShardId, ViewVersion};
use kv_protocol::map::Map;
use kv_protocol::placement::Digest;
use kv_protocol::view::View;

use crate::network::ConnectionNumber;
use crate::workload::Plan;
use kv_history::{Answered, Asked, Value};

mod doubt;
mod flight;
mod session;
#[cfg(test)]
mod tests;

pub use flight::Flight;
use flight::Stage;
use session::Session;

/// How long an operation may take, in nanoseconds.
pub const DEADLINE: u64 = 5_000_000_000;
/// A client that has waited so long asks for the map.
const SILENCE: u64 = 150_000_000;
/// And again every so often.
const ASK_AGAIN: u64 = 100_000_000;
const FIRST_PAUSE: u64 = 1_000_000;
const LAST_PAUSE: u64 = 50_000_000;

/// A version that a client has read, and the value that came with it.
pub type Seen = Option<(SequenceNumber, Value)>;

/// A client.
#[derive(Debug)]
pub struct Client {
    /// Its name.
    pub id: ClientId,
    /// Where it believes everything to be.
    pub map: Option<Map>,
    /// The newest view of each group that it ever saw.
    views: Vec<View>,
    sessions: BTreeMap<(GroupId, ShardId), Session>,
    /// The places in the log at which sessions may begin, by the newest WELCOMEs.
    starts: BTreeMap<(GroupId, ShardId), SequenceNumber>,
    /// True if it was made as a copy of another client, whose name it keeps using.
    pub is_clone: bool,
    /// What is under way, by request id.
    pub flights: BTreeMap<u64, Flight>,
    /// Writes in doubt that are not asked about yet, by request id.
    doubts: BTreeMap<u64, Flight>,
    next_request: u64,
    /// Connections by process (its address), shard and the name that they go under.
    pub connections: BTreeMap<(SocketAddr, ShardId, ClientId), ConnectionNumber>,
    /// What it last read of the keys of each slot.
    pub seen: BTreeMap<Vec<u8>, Seen>,
    /// The process number of the history; a new one after every end in doubt.
    pub process: u32,
    /// Until when it waits for the answer to its last question for the map.
    pub asks_map_until: u64,
    /// It only reads, many keys at the same time, and asks for the map only when it is told that its
    /// own is old: whoever serves it though he should not is not found out by its writes.
    pub is_reader: bool,
    /// Until when it begins nothing new.
    pub rests_until: u64,
    /// Sessions that it has begun anew, because the servers had forgotten them.
    pub fresh_sessions: u64,
}

/// What a client wants done.
#[derive(Debug)]
pub enum Wish {
    /// Send the request of this id to that address's shard, under this name.
    Send(SocketAddr, ShardId, ClientId, u64, Vec<u8>),
    /// Ask for the map.
    Map,
    /// The servers do not know the session of this name, although a write of it is under way there.
    Expired((GroupId, ShardId), ClientId),
    /// A write is given up, or a question about it.
    GivenUp(Box<Flight>),
    /// An operation has ended.
    Ended(Box<Flight>, Answered, Option<SequenceNumber>),
}

impl Client {
    /// A client that knows nothing.
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
            process: u32::try_from(id).expect("clients are few") << 16,
            asks_map_until: 0,
            is_reader: false,
            rests_until: 0,
            fresh_sessions: 0,
        }
    }

    /// Operations that it has under way at most.
    pub fn depth(&self) -> usize {
        if self.is_reader { 40 } else { 4 }
    }

    /// Begins an operation.
    pub fn begin(&mut self, now: u64, plan: Plan) {
        let Plan { slot, key, floor, mut asked, condition, value, patience, settling } = plan;
        if self.is_clone && asked == Asked::Delete {
            // Two removals of one key under one number are the same request.
            asked = Asked::Read;
        }
        let Some(map) = &self.map else { return };
        let digest = Digest::of(&key);
        let place = map.placement().locate(digest);
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
            patience,
            settling,
            stage: Stage::Asked,
        };
        self.flights.insert(self.next_request, flight);
        self.next_request += 1;
    }

    /// Does what is due.
    pub fn wake(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        self.settle(now, |doubt| doubt.due <= now);
        let due: Vec<u64> =
            self.flights.iter().filter(|(_, f)| f.due <= now).map(|(id, _)| *id).collect();
        for id in due {
            let flight = &self.flights[&id];
            if now >= flight.deadline() {
                let answered = match flight.asked {
                    Asked::Read => Answered::InDoubt,
                    _ => flight.unless_in_doubt(Answered::Refused),
                };
                self.end_or_give_up(now, id, answered, wishes);
                continue;
            }
            self.send(now, id, wishes);
        }
    }

    /// Sends an operation, for the first time or again, where its group's primary is believed.
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
            let answered = flight.unless_in_doubt(Answered::Lost);
            return self.end_or_give_up(now, id, answered, wishes);
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
        let flight = self.flights.get_mut(&id).expect("it was there");
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

    /// The connection that an operation travels on.
    pub fn note_connection(&mut self, id: u64, number: ConnectionNumber) {
        if let Some(flight) = self.flights.get_mut(&id) {
            flight.connection = Some(number);
        }
    }

    /// An answer of a server.
    pub fn on_answer(
        &mut self,
        now: u64,
        jitter: u64,
        answer: &Answer<'_>,
        wishes: &mut Vec<Wish>,
    ) {
        let id = answer.id.0;
        let Some(flight) = self.flights.get_mut(&id) else { return };
        let value = || {
            let bytes = answer.value.get(..8)?;
            Some(Value::from_le_bytes(bytes.try_into().ok()?))
        };
        let changed = |changed| Answered::Done { changed };
        flight.copies = answer.copies;
        if flight.was_given_up() {
            return self.on_settled(now, jitter, answer, wishes);
        }
        // Said by a server that has not logged this sending, and will not.
        if let Status::Unavailable | Status::Busy | Status::OutOfSpace = answer.status {
            flight.doubtful = flight.doubtful.saturating_sub(1);
        }
        let answered = match (answer.status, flight.asked) {
            (Status::Ok, Asked::Read) => {
                let value = value().expect("values have eight bytes at least");
                self.seen.insert(flight.key.clone(), Some((answer.version, value)));
                Answered::Value(Some(value))
            }
            (Status::NotFound, Asked::Read) => {
                self.seen.insert(flight.key.clone(), None);
                Answered::Value(None)
            }
            (Status::Ok, Asked::Write(value) | Asked::Swap { new: value, .. }) => {
                self.seen.insert(flight.key.clone(), Some((answer.version, value)));
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
                Answered::Undecided
            }
            (Status::SessionMismatch, _) => {
                let (place, name) = (flight.place, flight.client);
                self.leave_session(place, name);
                Answered::Refused
            }
            (Status::OutOfSpace, _) => {
                let answered = flight.unless_in_doubt(Answered::Refused);
                return self.end_or_give_up(now, id, answered, wishes);
            }
            (status, _) => return self.try_again(now, jitter, id, status, wishes),
        };
        let version = (answer.status == Status::Ok).then_some(answer.version);
        self.end(id, answered, version, wishes);
    }

    /// Not now, or not there: asks again after a pause, with the same number.
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
        answered: Answered,
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
        if matches!(answered, Answered::InDoubt | Answered::Undecided) {
            self.seen.remove(&flight.key);
        }
        if flight.was_given_up() {
            self.on_no_doubt(&flight);
        }
        wishes.push(Wish::Ended(Box::new(flight), answered, version));
    }

    /// The servers had forgotten the session of a write that was sent once, and so was not executed: it
    /// goes into another session, of another name.
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
        flight.begun = session.begun;
        (flight.sent, flight.doubtful, flight.due) = (None, 0, now + flight.pause);
    }

    /// Begins another session at a place, if the current one has this name.
    fn leave_session(&mut self, place: (GroupId, ShardId), name: ClientId) {
        let Some(session) = self.sessions.get_mut(&place) else { return };
        if session.client == name {
            self.fresh_sessions += 1;
            let name = self.id.0 + (u128::from(self.fresh_sessions) << 32);
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

    /// Becomes a copy of another client in its current state, like the clone of a virtual machine: it has the same
    /// names, and uses the same numbers next.
    pub fn become_clone_of(&mut self, other: &Client, wishes: &mut Vec<Wish>) {
        self.end_all(wishes);
        self.id = other.id;
        self.sessions = other.sessions.clone();
        self.starts = other.starts.clone();
        self.is_clone = true;
        // The names that it makes itself, and its request ids, are its own.
        self.fresh_sessions = 1_000;
        self.next_request = 1 << 40;
        self.connections.clear();
    }

    /// Takes a name that no other client has, with new sessions.
    pub fn take_new_name(&mut self) {
        self.id.0 += 1 << if self.is_clone { 97 } else { 98 };
        self.sessions.clear();
        self.is_clone = false;
    }

    /// The names under which it writes.
    pub fn names(&self) -> impl Iterator<Item = ClientId> {
        self.sessions.values().map(|session| session.client).chain([self.id])
    }

    /// Handles the end of a sleep of its machine. Its clock stood meanwhile, so its deadlines move as well.
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

    /// Returns whether it goes on using this connection.
    pub fn keeps(&self, number: ConnectionNumber) -> bool {
        let waits = |flight: &Flight| flight.connection == Some(number);
        self.connections.values().any(|known| *known == number) || self.flights.values().any(waits)
    }

    /// A connection is gone: whatever waits on it is sent again soon.
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

    /// Handles the restore of its cluster under another name.
    pub fn follow(&mut self, now: u64) {
        self.views.clear();
        self.connections.clear();
        for flight in self.flights.values_mut() {
            (flight.connection, flight.sent) = (None, None);
            flight.due = flight.due.min(now + flight.pause);
        }
    }

    /// Handles a cluster that has nothing of the one it knew: every operation under way there is in doubt, and its
    /// sessions are new ones.
    pub fn enter(&mut self, wishes: &mut Vec<Wish>) {
        self.end_all(wishes);
        self.id.0 += 1 << if self.is_clone { 96 } else { 64 };
        self.sessions.clear();
        self.views.clear();
        self.connections.clear();
    }

    /// A map came: views only grow.
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

    /// When it wants to be woken.
    pub fn next_wake(&self) -> Option<u64> {
        self.flights.values().chain(self.doubts.values()).map(|flight| flight.due).min()
    }
}
