//! A client: operations with deadlines, retried under the number they got first.
//!
//! ```text
//!   begin -> request to the primary of the key's group -> answer: ended
//!              ^ |  WRONG_VIEW, UNAVAILABLE, BUSY, a lost connection: a pause, the map, again
//!              | +- 150 ms of silence: the map; if the group's view is newer, again; every 100 ms
//!              |
//!              +--- the deadline: in doubt, if it was ever sent
//! ```

use std::collections::BTreeMap;

use kv_protocol::client_message::{Answer, Condition, Operation, Request, Status, WriteHeader};
use kv_protocol::ids::{ClientId, GroupId, RequestId, RequestSeq, SequenceNumber, ShardId};
use kv_protocol::map::Map;
use kv_protocol::placement::Digest;
use kv_protocol::view::View;

use crate::network::ConnectionNumber;
use crate::workload::Plan;
use kv_history::{Answered, Asked, Entry, Value};

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

/// An operation under way.
#[derive(Clone, Debug)]
pub struct Flight {
    /// Its key.
    pub key: Vec<u8>,
    /// The slot of the workload that it belongs to.
    pub slot: usize,
    digest: Digest,
    /// Where its key lives.
    pub place: (GroupId, ShardId),
    /// What is asked.
    pub asked: Asked,
    condition: Condition,
    /// The whole value.
    pub value: Vec<u8>,
    seq: RequestSeq,
    /// When it began.
    pub start: u64,
    /// The newest version of its key that anyone was told of by then.
    pub floor: u64,
    /// When it was sent last, and under which view.
    sent: Option<(u64, View)>,
    was_sent: bool,
    connection: Option<ConnectionNumber>,
    /// When something is to be done about it.
    pub due: u64,
    pause: u64,
}

#[derive(Debug, Default)]
struct Session {
    next: u64,
    incomplete: Vec<u64>,
}

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
    /// What is under way, by request id.
    pub flights: BTreeMap<u64, Flight>,
    next_request: u64,
    /// Connections by process (its address) and shard.
    pub connections: BTreeMap<(std::net::SocketAddr, ShardId), ConnectionNumber>,
    /// What it last read of the keys of each slot.
    pub seen: BTreeMap<Vec<u8>, Seen>,
    /// The process number of the history; a new one after every end in doubt.
    pub process: u32,
    /// Until when it waits for the answer to its last question for the map.
    pub asks_map_until: u64,
    /// It only reads, many keys at the same time, and asks for the map only when it is told that its
    /// own is old: whoever serves it though he should not is not found out by its writes.
    pub is_reader: bool,
}

/// What a client wants done.
#[derive(Debug)]
pub enum Wish {
    /// Send this to that address's shard.
    Send(std::net::SocketAddr, ShardId, u64, Vec<u8>),
    /// Ask for the map.
    Map,
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
            flights: BTreeMap::new(),
            next_request: 1,
            connections: BTreeMap::new(),
            seen: BTreeMap::new(),
            process: u32::try_from(id).expect("clients are few") << 16,
            asks_map_until: 0,
            is_reader: false,
        }
    }

    /// Operations that it has under way at most.
    pub fn depth(&self) -> usize {
        if self.is_reader { 40 } else { 4 }
    }

    /// Begins an operation.
    pub fn begin(&mut self, now: u64, plan: Plan) {
        let Plan { slot, key, floor, asked, condition, value } = plan;
        let Some(map) = &self.map else { return };
        let digest = Digest::of(&key);
        let place = map.placement().locate(digest);
        let seq = match asked {
            Asked::Read => RequestSeq(0),
            _ => {
                let session = self.sessions.entry(place).or_default();
                session.next += 1;
                session.incomplete.push(session.next);
                RequestSeq(session.next)
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
            seq,
            start: now,
            floor,
            sent: None,
            was_sent: false,
            connection: None,
            due: now,
            pause: FIRST_PAUSE,
        };
        self.flights.insert(self.next_request, flight);
        self.next_request += 1;
    }

    /// Does what is due.
    pub fn wake(&mut self, now: u64, wishes: &mut Vec<Wish>) {
        let due: Vec<u64> =
            self.flights.iter().filter(|(_, f)| f.due <= now).map(|(id, _)| *id).collect();
        for id in due {
            let flight = &self.flights[&id];
            if now >= flight.start + DEADLINE {
                self.end(id, Answered::InDoubt, None, wishes);
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
        let session = self.sessions.get(&flight.place);
        let first = session.and_then(|session| session.incomplete.iter().min().copied());
        let header = WriteHeader {
            seq: flight.seq,
            first_incomplete: RequestSeq(first.unwrap_or(flight.seq.0)),
            condition: flight.condition,
        };
        let operation = match flight.asked {
            Asked::Read => Operation::Get,
            Asked::Delete => Operation::Delete(header),
            Asked::Write(_) | Asked::Swap { .. } => Operation::Put(header, &flight.value),
        };
        let request = Request {
            id: RequestId(id),
            view: view.version,
            digest: flight.digest,
            key: &flight.key,
            operation,
        };
        let mut bytes = Vec::new();
        request.write(&mut bytes);
        flight.sent = Some((now, view));
        flight.was_sent = true;
        flight.due = (now + SILENCE).min(flight.start + DEADLINE);
        wishes.push(Wish::Send(address, shard, id, bytes));
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
            (Status::SessionExpired, _) => Answered::InDoubt,
            (status, _) => {
                if status == Status::WrongView {
                    wishes.push(Wish::Map);
                }
                // Not now, or not there: again after a pause, with the same number.
                flight.sent = None;
                flight.due = now + flight.pause / 2 + jitter % flight.pause;
                flight.pause = (flight.pause * 2).min(LAST_PAUSE);
                return;
            }
        };
        let version = (answer.status == Status::Ok).then_some(answer.version);
        self.end(id, answered, version, wishes);
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
        {
            session.incomplete.retain(|seq| *seq != flight.seq.0);
        }
        if answered == Answered::InDoubt {
            self.seen.remove(&flight.key);
        }
        wishes.push(Wish::Ended(Box::new(flight), answered, version));
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

    /// It hears of another cluster, which has followed the one that it knew: whatever is under way there
    /// is in doubt, and its sessions are new ones.
    pub fn enter(&mut self, wishes: &mut Vec<Wish>) {
        let flights: Vec<u64> = self.flights.keys().copied().collect();
        for id in flights {
            self.end(id, Answered::InDoubt, None, wishes);
        }
        self.id.0 += 1 << 64;
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
        self.flights.values().map(|flight| flight.due).min()
    }
}

impl Flight {
    /// Whether it may have reached a server.
    pub fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// Its line of the key's history.
    pub fn entry(&self, process: u32, end: u64, answered: Answered) -> Entry {
        let time = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
        let end = if answered == Answered::InDoubt { i64::MAX } else { time(end) };
        Entry { client: process, start: time(self.start), end, asked: self.asked, answered }
    }
}
