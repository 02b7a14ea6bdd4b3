//! A store in memory that executes requests with the evaluation of the real one, and a connection to it.

use std::collections::BTreeMap;

use kv_core::update::{Current, evaluate};
use kv_protocol::RedisMulti;
use kv_protocol::change::RetainedResponse;
use kv_protocol::client_message::{
    Condition, Operation, PageWriter, Request, Response, Scan, ScanItem, Status,
};
use kv_protocol::eviction::Eviction;
use kv_protocol::glob::{self, Steps};
use kv_protocol::ids::{
    ClusterId, GroupId, RequestId, RequestSeq, SequenceNumber, ShardId, ViewVersion, WallTime,
};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::update::{Action, Precondition, Update, Updates};

use crate::answer::Answer;
use crate::ask::{Ask, FreeFrames};
use crate::client::{Client, Facts, Load, Server};
use crate::command::{Context, find, perform};
use crate::error::Error;
use crate::plan::Plan;
use crate::resp::Reply;
use crate::transaction::go_on;

/// An entry of the store.
struct Entry {
    value: Vec<u8>,
    version: SequenceNumber,
    deadline: Option<WallTime>,
}

/// A store with the placement and the pages of the real one.
pub(crate) struct Store {
    placement: Placement,
    entries: BTreeMap<Vec<u8>, Entry>,
    version: SequenceNumber,
    /// The clock.
    pub(crate) wall: WallTime,
    /// The number of entries after which a page ends.
    pub(crate) page: usize,
    /// The number of requests so far.
    pub(crate) requests: usize,
    /// The treatment of transactions with keys of several shards.
    pub(crate) multi: RedisMulti,
    /// A key whose requests are not served, but have this error.
    pub(crate) fault: Option<(Vec<u8>, Error)>,
    random: u64,
}

impl Store {
    fn new(placement: Placement) -> Store {
        let wall = WallTime::from_millis(1_700_000_000_000);
        let (entries, version) = (BTreeMap::new(), SequenceNumber(0));
        let multi = RedisMulti::default();
        let (requests, fault) = (0, None);
        Store { placement, entries, version, wall, page: 3, requests, multi, fault, random: 1 }
    }

    /// Returns the error of a step with these requests.
    fn fault_of(&self, asks: &[Ask]) -> Option<Error> {
        let (key, error) = self.fault.as_ref()?;
        asks.iter().any(|ask| ask.request().key == key).then(|| error.clone())
    }

    fn execute(&mut self, ask: &mut Ask) -> Vec<u8> {
        self.requests += 1;
        ask.set_route(RequestId(1), ViewVersion(1));
        if ask.request().operation.write_header().is_some() {
            ask.set_session(RequestSeq(1), RequestSeq(1), SequenceNumber(1));
        }
        let request = ask.request();
        let mut frame = Vec::new();
        let reject = |status, reason: &'static str| Response {
            id: request.id,
            status,
            copies: 0,
            view: request.view,
            version: SequenceNumber(0),
            value: reason.as_bytes(),
            whole: 0,
            has_value: false,
            deadline: None,
        };
        match request.validate() {
            Err((status, reason)) => reject(status, reason).write(&mut frame),
            Ok(()) => self.answer(&request, reject(Status::Ok, ""), &mut frame),
        }
        frame
    }

    fn answer(&mut self, request: &Request<'_>, response: Response<'_>, frame: &mut Vec<u8>) {
        let key = request.key;
        match request.operation {
            Operation::Get | Operation::GetPart(_) => {
                let wall = self.wall;
                let is_alive = |entry: &&Entry| entry.deadline.is_none_or(|time| time > wall);
                let Some(entry) = self.entries.get(key).filter(is_alive) else {
                    return Response { status: Status::NotFound, ..response }.write(frame);
                };
                let is_part = matches!(request.operation, Operation::GetPart(_));
                let value = &entry.value[request.operation.range_of(entry.value.len())];
                let whole = if is_part { u32::try_from(entry.value.len()).unwrap() } else { 0 };
                let status = if is_part { Status::Part } else { Status::Ok };
                let deadline = entry.deadline.filter(|_| request.operation.wants_deadline());
                let version = entry.version;
                let response = Response { status, value, whole, version, deadline, ..response };
                let head = response.head();
                frame.extend_from_slice(&head);
                frame.extend_from_slice(value);
            }
            Operation::Put(header, value) => {
                let condition = match header.condition {
                    Condition::Always => Precondition::None,
                    Condition::IfAbsent => Precondition::Absent,
                    Condition::IfVersion(version) => Precondition::Version(version),
                };
                let update = Update { condition, ..Update::new(Action::Put(value)) };
                self.update(key, &[update], response, frame);
            }
            Operation::Delete(_) => {
                self.update(key, &[Update::new(Action::Delete)], response, frame);
            }
            Operation::Update(_, updates) => {
                let updates: Vec<_> = updates.iter().collect();
                self.update(key, &updates, response, frame);
            }
            Operation::Scan(scan) => {
                let place = self.placement.place_of(request.digest);
                let page = self.scan(place, key, scan);
                Response { value: &page, ..response }.write(frame);
            }
            other => panic!("no command asks for {other:?}"),
        }
    }

    fn update(
        &mut self,
        key: &[u8],
        updates: &[Update<'_>],
        response: Response<'_>,
        frame: &mut Vec<u8>,
    ) {
        let place = self.placement.locate(key);
        let keys = updates.iter().flat_map(|update| [update.key, update.second_key()]);
        if keys.flatten().any(|key| self.placement.locate(key) != place) {
            return Response { status: Status::CrossShard, ..response }.write(frame);
        }
        let mut bytes = Vec::new();
        updates.iter().for_each(|update| update.write(&mut bytes));
        let updates = Updates::read(&bytes).unwrap();
        let newest = |key: &[u8]| {
            self.entries.get(key).map(|Entry { value, version, deadline }| Current {
                value,
                version: *version,
                deadline: *deadline,
            })
        };
        let outcome = evaluate(key, &updates, self.wall, newest);
        let changes: Vec<_> = outcome
            .changes
            .iter()
            .map(|change| {
                let stored = change.stored.as_ref();
                (change.key.to_vec(), stored.map(|stored| (stored.value.to_vec(), stored.deadline)))
            })
            .collect();
        self.version.0 += 1;
        for (key, stored) in changes {
            match stored {
                Some((value, deadline)) => {
                    let entry = Entry { value, version: self.version, deadline };
                    self.entries.insert(key, entry);
                }
                None => drop(self.entries.remove(&key)),
            }
        }
        let retained = outcome.response.unwrap_or_default();
        let RetainedResponse { value, deadline } =
            RetainedResponse::read(&retained).unwrap_or_default();
        let (status, has_value) = (outcome.status, value.is_some());
        let value = value.unwrap_or(&[]);
        let response = Response { status, value, has_value, deadline, copies: 2, ..response };
        frame.extend_from_slice(&response.head());
        frame.extend_from_slice(value);
    }

    /// Returns a page of the entries in the order of their digests, whose upper half is the cursor.
    fn scan(&self, place: (GroupId, ShardId), pattern: &[u8], scan: Scan) -> Vec<u8> {
        let position =
            |key: &[u8]| u64::from(u32::try_from(Digest::of(key).number() >> 96).unwrap());
        let is_here = |key: &&Vec<u8>| self.placement.locate(key) == place;
        let mut keys: Vec<&Vec<u8>> = self.entries.keys().filter(is_here).collect();
        let mut page = PageWriter::new(keys.len() as u64);
        keys.sort_by_key(|key| position(key));
        keys.retain(|key| position(key) >= scan.cursor);
        for key in keys.iter().take(self.page) {
            let entry = &self.entries[*key];
            let is_alive = entry.deadline.is_none_or(|time| time > self.wall);
            let steps = &mut Steps::UNLIMITED.clone();
            let is_match = pattern.is_empty() || glob::matches(pattern, key, steps) == Some(true);
            // Some keys are not compared.
            let is_unmatched = key.ends_with(b"?");
            if is_alive && (is_match || is_unmatched) {
                page.push(&ScanItem {
                    key,
                    value_length: u32::try_from(entry.value.len()).unwrap(),
                    value: None,
                    version: entry.version,
                    deadline: None,
                    is_unmatched,
                });
            }
        }
        page.finish(keys.get(self.page).map_or(0, |key| position(key)))
    }
}

impl Server for Store {
    fn placement(&self) -> Placement {
        self.placement
    }

    fn wall(&self) -> WallTime {
        self.wall
    }

    fn cluster(&self) -> ClusterId {
        ClusterId(7)
    }

    fn random(&self) -> u64 {
        let mixed = (self.random ^ (self.random >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }

    fn load(&self) -> Load {
        Load { memory: 5_000, ..Load::default() }
    }

    fn facts(&self) -> Facts {
        Facts {
            memory_limit: 1 << 30,
            eviction: Eviction::None,
            connections: 10_000,
            port: 6_379,
            started: WallTime::from_millis(1_600_000_000_000),
            multi: self.multi,
        }
    }
}

/// A connection to a store.
pub(crate) struct Door {
    /// The store.
    pub(crate) store: Store,
    /// The connection.
    pub(crate) client: Client,
    /// True after the connection was closed.
    pub(crate) is_closed: bool,
    /// The requests of each step of the last command.
    pub(crate) steps: Vec<Vec<Ask>>,
}

impl Door {
    /// Creates a connection to an empty store in which all keys are of one shard.
    pub(crate) fn new() -> Door {
        Door::with(Placement::new(1, 1))
    }

    /// Creates a connection to an empty store with this placement.
    pub(crate) fn with(placement: Placement) -> Door {
        let client = Client { id: 7, ..Client::default() };
        Door { store: Store::new(placement), client, is_closed: false, steps: Vec::new() }
    }

    /// Executes a command, and returns the reply.
    pub(crate) fn run(&mut self, args: &[&[u8]]) -> Vec<u8> {
        self.store.random =
            self.store.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut out = Vec::new();
        let version = self.client.version;
        self.steps.clear();
        self.client.begin_command();
        let frames = &mut FreeFrames::default();
        let mut context =
            Context { args, client: &mut self.client, server: &self.store, digest: None, frames };
        let mut step = perform(&mut context, find(args[0]), &mut Reply::new(&mut out, version));
        let is_silent = self.client.is_silent();
        let version = self.client.version;
        loop {
            match step {
                Ok(Plan::Replied) => break,
                Ok(Plan::Watched(keys)) => {
                    self.client.watched.extend(keys);
                    break;
                }
                Ok(Plan::Close) => {
                    self.is_closed = true;
                    break;
                }
                Err(error) => {
                    out.clear();
                    Reply::new(&mut out, version).error(&error);
                    break;
                }
                Ok(Plan::GoOn(ended)) => {
                    let mut context = Context {
                        args: &[],
                        client: &mut self.client,
                        server: &self.store,
                        digest: None,
                        frames,
                    };
                    step = go_on(&mut context, ended, &mut Reply::new(&mut out, version));
                }
                Ok(Plan::Ask { mut asks, finish }) => {
                    assert!(out.is_empty(), "a step that asks the store has written something");
                    assert!(!asks.is_empty(), "a step asks nothing");
                    if let Some(error) = self.store.fault_of(&asks) {
                        step = finish(Err(error), &mut Reply::new(&mut out, version));
                        continue;
                    }
                    let frames: Vec<_> =
                        asks.iter_mut().map(|ask| self.store.execute(ask)).collect();
                    let answers: Result<Vec<_>, _> = asks
                        .iter()
                        .zip(&frames)
                        .map(|(ask, frame)| {
                            let body = &frame[kv_protocol::frame::HEADER_BYTES..];
                            let response = Response::read(body).unwrap();
                            let is_read = !ask.is_write();
                            self.client.copies = match is_read {
                                true => self.client.copies,
                                false => response.copies,
                            };
                            Answer::of(&response, is_read)
                        })
                        .collect();
                    self.steps.push(asks.to_vec());
                    step = finish(
                        answers.as_deref().map_err(Clone::clone),
                        &mut Reply::new(&mut out, version),
                    );
                }
            }
        }
        if is_silent { Vec::new() } else { out }
    }

    /// Executes a command whose arguments are separated by spaces, and returns the reply in one line: `\r\n` is a
    /// space.
    pub(crate) fn say(&mut self, line: &str) -> String {
        let args: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let reply = String::from_utf8(self.run(&args)).unwrap();
        reply.trim_end().replace("\r\n", " ")
    }
}
