//! An in-process cluster that implements the wire protocol, with fault injection: one coordinator and any number of
//! servers, one thread per connection, one table for all.
//!
//! Tests set a script ([`Fake::script`]). It receives every request before it is served, and returns how to handle it.

#![allow(dead_code, unreachable_pub)] // Each test program uses a different part.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kv_client::{Client, OpOptions, Options};
use kv_core::update::{Current, evaluate};
use kv_protocol::change::RetainedResponse;
use kv_protocol::client_message::{
    Condition, Hello, Operation, PageWriter, Question, Refusal, ReplicaRole, Request, Response,
    SCAN_VALUE_BYTES_MAX, Scan, ScanItem, SessionStart, Status, Welcome, WriteHeader, opcode,
    write_map_response,
};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::glob::{self, Steps};
use kv_protocol::ids::*;
use kv_protocol::limits::{MAX_CLIENT_BODY, PROTOCOL_VERSION};
use kv_protocol::map::{Map, MapServer, ServerState};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::update::Updates;
use kv_protocol::view::{Peer, View};

/// One request as received by a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub server: u16,
    pub client: ClientId,
    pub opcode: u8,
    pub key: Vec<u8>,
    pub view: ViewVersion,
    pub seq: u64,
    pub first_incomplete: u64,
    /// The hash of a write, or the hash in a RESOLVE.
    pub hash: Option<RequestHash>,
    /// The encoded updates of an UPDATE.
    pub updates: Vec<u8>,
}

/// The handling of a request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Serves it normally.
    Serve,
    /// Executes it, but cuts the connection instead of responding.
    ServeThenCut,
    /// Cuts the connection without executing it.
    Cut,
    /// Neither executes it nor responds.
    Ignore,
    /// Responds with this status without executing it.
    Response(Status),
    /// Executes it, and responds after the next request of this connection.
    ResponseLater,
    /// Does not execute it, and responds with this status after the next request of this connection.
    ResponseStatusLater(Status),
    /// Sends these bytes without executing it.
    Send(Vec<u8>),
    /// Executes it, and sends half of the response; sends the rest once the flag is true.
    Halve(Arc<AtomicBool>),
    /// Sends the whole value for a part, like a server without support for parts.
    ServeWhole,
    /// Sends the whole value as if it were the requested part.
    ServeTooMuch,
}

/// A deadline short enough for a test to wait for.
pub const SOON: Duration = Duration::from_millis(400);

/// Opens a client with the default options.
pub fn open(fake: &Fake) -> Client {
    Client::open(&fake.endpoint(), Options::default()).unwrap()
}

/// Returns options with this deadline.
pub fn within(deadline: Duration) -> OpOptions {
    OpOptions { deadline: Some(deadline), ..OpOptions::default() }
}

/// Returns options with the default deadline.
pub fn anytime() -> OpOptions {
    OpOptions::default()
}

/// Returns a key of this group in a ring of three servers.
pub fn key_of(group: u16) -> Vec<u8> {
    (0..)
        .map(|n| format!("key-{n}").into_bytes())
        .find(|key| Placement::new(3, 1).locate(key).0.0 == group)
        .unwrap()
}

/// Waits until the condition holds.
pub fn wait_until(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "the condition does not hold within 10 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the writes among the requests so far.
pub fn writes(fake: &Fake) -> Vec<Seen> {
    fake.seen().into_iter().filter(|seen| seen.seq > 0).collect()
}

/// Returns a script that applies `act` to the first request and serves the others.
pub fn first(act: Act) -> impl FnMut(&Seen) -> Act + Send {
    let mut act = Some(act);
    move |_| act.take().unwrap_or(Act::Serve)
}

type Script = Box<dyn FnMut(&Seen) -> Act + Send>;

/// The servers' records of a session.
#[derive(Default)]
struct Session {
    first_incomplete: u64,
    records: HashMap<u64, Record>,
}

/// The response to a write, kept for retries.
#[derive(Clone, Default)]
struct Record {
    status: Option<Status>,
    version: u64,
    /// An encoded [`RetainedResponse`].
    rest: Vec<u8>,
}

impl Record {
    fn new(status: Status, version: u64) -> Record {
        Record { status: Some(status), version, rest: Vec::new() }
    }
}

struct State {
    map: Map,
    table: HashMap<Vec<u8>, (Vec<u8>, u64)>,
    /// The deadlines of entries of the table.
    deadlines: HashMap<Vec<u8>, WallTime>,
    /// The version of the protocol that the servers support.
    version: u16,
    sessions: HashMap<(ClientId, GroupId, ShardId), Session>,
    last_sn: u64,
    /// The horizon: unknown sessions that began below this position in the log are reported as expired.
    forgotten: u64,
    /// The writes that took effect, in order: key and value.
    executed: Vec<(Vec<u8>, Vec<u8>)>,
    seen: Vec<Seen>,
    /// The number of responses of [`Act::Halve`] whose second half was sent.
    finished_halves: usize,
    script: Script,
    maps_served: u64,
    /// The servers that sent the map, in order.
    maps_of_servers: Vec<u16>,
    /// The servers that reject requests for the map.
    without_map: Vec<u16>,
    is_coordinator_mute: bool,
    /// The servers that currently withhold WELCOME.
    without_welcome: Vec<u16>,
    /// The number of connections still to be closed right after WELCOME.
    cuts_after_welcome: usize,
    connections: HashMap<SocketAddr, Vec<TcpStream>>,
    /// The number of open connections to servers.
    open_to_servers: usize,
}

struct Listener {
    address: SocketAddr,
    is_closed: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// An in-process cluster; see the module documentation.
pub struct Fake {
    state: Arc<Mutex<State>>,
    coordinator: Listener,
    servers: Vec<Listener>,
}

fn member(server: u16) -> Member {
    Member { server: ServerId(server), incarnation: Incarnation(1_000 + u64::from(server)) }
}

impl Fake {
    /// Starts a coordinator and `servers` servers with `shards` shards per group. Every group is at home.
    pub fn start(servers: u16, shards: u16) -> Fake {
        Fake::start_placing(Placement::new(servers, shards))
    }

    /// Does the same as [`Fake::start`], for a cluster with this placement.
    pub fn start_placing(placement: Placement) -> Fake {
        let (servers, shards) = (placement.servers(), placement.shards());
        let listeners: Vec<TcpListener> =
            (0..servers).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let map = Map {
            hash_tags: placement.hash_tags(),
            cluster: ClusterId(0xfa4e),
            ancestors: Vec::new(),
            epoch: Epoch { number: 1, boot: BootId(1) },
            revision: MapRevision(1),
            shards,
            servers: (0..)
                .zip(&listeners)
                .map(|(id, listener)| MapServer {
                    id: ServerId(id),
                    incarnation: member(id).incarnation,
                    state: ServerState::Up,
                    clients: Some(listener.local_addr().unwrap()),
                })
                .collect(),
            views: (0..servers)
                .map(|g| View {
                    group: GroupId(g),
                    version: ViewVersion(1),
                    primary: Some(member(g)),
                    peer: Peer::Secondary(member((g + 1) % servers)),
                    handover: false,
                })
                .collect(),
        };
        let state = Arc::new(Mutex::new(State {
            map,
            table: HashMap::new(),
            deadlines: HashMap::new(),
            version: PROTOCOL_VERSION,
            sessions: HashMap::new(),
            last_sn: 0,
            forgotten: 0,
            executed: Vec::new(),
            seen: Vec::new(),
            finished_halves: 0,
            script: Box::new(|_| Act::Serve),
            maps_served: 0,
            maps_of_servers: Vec::new(),
            without_map: Vec::new(),
            is_coordinator_mute: false,
            without_welcome: Vec::new(),
            cuts_after_welcome: 0,
            connections: HashMap::new(),
            open_to_servers: 0,
        }));
        let servers = (0..)
            .zip(listeners)
            .map(|(id, listener)| listen(listener, Some(id), Arc::clone(&state)))
            .collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let coordinator = listen(listener, None, Arc::clone(&state));
        Fake { state, coordinator, servers }
    }

    /// Returns the address of the coordinator, for `Client::open`.
    pub fn endpoint(&self) -> String {
        self.coordinator.address.to_string()
    }

    /// Sets the script for all requests from now on.
    pub fn script(&self, script: impl FnMut(&Seen) -> Act + Send + 'static) {
        self.state().script = Box::new(script);
    }

    /// Returns all requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.state().seen.clone()
    }

    /// Returns the writes that took effect: key and value (empty for a delete).
    pub fn executed(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.state().executed.clone()
    }

    /// Returns the number of halved responses whose second half was sent.
    pub fn finished_halves(&self) -> usize {
        self.state().finished_halves
    }

    /// Overwrites a key, like a write of another client.
    pub fn replace(&self, key: &[u8], value: &[u8]) {
        let state = &mut *self.state();
        state.last_sn += 1;
        state.table.insert(key.to_vec(), (value.to_vec(), state.last_sn));
    }

    /// Sets the version of the protocol that the servers support from now on.
    pub fn support_version(&self, version: u16) {
        self.state().version = version;
    }

    /// Returns the number of times that the coordinator has sent the map.
    pub fn maps_served(&self) -> u64 {
        self.state().maps_served
    }

    /// Returns the servers that sent the map, in order.
    pub fn maps_of_servers(&self) -> Vec<u16> {
        self.state().maps_of_servers.clone()
    }

    /// Returns the address of a server.
    pub fn server(&self, server: u16) -> SocketAddr {
        self.servers[usize::from(server)].address
    }

    /// Makes a server reject requests for the map.
    pub fn withhold_map(&self, server: u16) {
        self.state().without_map.push(server);
    }

    /// Returns the number of open connections to servers, which is the number of descriptors that clients hold for
    /// them.
    pub fn open_to_servers(&self) -> usize {
        self.state().open_to_servers
    }

    /// Changes the map that is sent from now on.
    pub fn change_map(&self, change: impl FnOnce(&mut Map)) {
        change(&mut self.state().map);
    }

    /// Makes a new view of a group: `server` becomes its sole holder.
    pub fn promote(&self, group: u16, server: u16) {
        self.change_map(|map| {
            let view = &mut map.views[usize::from(group)];
            view.version.0 += 1;
            view.primary = Some(member(server));
            view.peer = Peer::None;
        });
    }

    /// Kills a server: its port and all its connections are closed when this returns.
    pub fn kill(&mut self, server: u16) {
        let state = Arc::clone(&self.state);
        close(&mut self.servers[usize::from(server)], &state);
    }

    /// Cuts all connections of a server, which keeps running.
    pub fn cut(&self, server: u16) {
        cut(self.servers[usize::from(server)].address, &self.state);
    }

    /// Makes the coordinator send WELCOME and nothing else, or respond normally again.
    pub fn mute_coordinator(&self, is_mute: bool) {
        self.state().is_coordinator_mute = is_mute;
    }

    /// Makes a server withhold or send its WELCOMEs.
    pub fn withhold_welcome(&self, server: u16, is_withheld: bool) {
        let withholding = &mut self.state().without_welcome;
        withholding.retain(|id| *id != server);
        withholding.extend(is_withheld.then_some(server));
    }

    /// Closes the next `count` connections to servers right after WELCOME.
    pub fn cut_after_welcome(&self, count: usize) {
        self.state().cuts_after_welcome = count;
    }

    /// Kills the coordinator.
    pub fn kill_coordinator(&mut self) {
        let state = Arc::clone(&self.state);
        close(&mut self.coordinator, &state);
    }

    /// Expires all sessions on the servers, as after ten idle minutes.
    pub fn forget_sessions(&self) {
        let state = &mut *self.state();
        state.sessions.clear();
        state.forgotten = state.last_sn;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let state = Arc::clone(&self.state);
        for listener in self.servers.iter_mut().chain([&mut self.coordinator]) {
            close(listener, &state);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn cut(address: SocketAddr, state: &Mutex<State>) {
    for stream in lock(state).connections.remove(&address).unwrap_or_default() {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn close(listener: &mut Listener, state: &Mutex<State>) {
    let Some(thread) = listener.thread.take() else { return };
    listener.is_closed.store(true, Ordering::SeqCst);
    let _ = TcpStream::connect(listener.address);
    thread.join().expect("the fake's listener ends");
    cut(listener.address, state);
}

fn listen(listener: TcpListener, server: Option<u16>, state: Arc<Mutex<State>>) -> Listener {
    let address = listener.local_addr().unwrap();
    let is_closed = Arc::new(AtomicBool::new(false));
    let closed = Arc::clone(&is_closed);
    let thread = std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            if closed.load(Ordering::SeqCst) {
                return;
            }
            let kept = stream.try_clone().unwrap();
            let to_servers = usize::from(server.is_some());
            {
                let mut state = lock(&state);
                state.connections.entry(address).or_default().push(kept);
                state.open_to_servers += to_servers;
            }
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                serve(stream, server, &state);
                lock(&state).open_to_servers -= to_servers;
            });
        }
    });
    Listener { address, is_closed, thread: Some(thread) }
}

/// Serves one connection until either side closes it.
fn serve(mut stream: TcpStream, server: Option<u16>, state: &Mutex<State>) {
    let mut input = FrameBuffer::new(FrameRules::unchecked(MAX_CLIENT_BODY));
    let mut buffer = vec![0; 64 << 10];
    let mut hello = None;
    let mut later = Vec::new();
    let mut held = None;
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        input.extend(&buffer[..count]);
        let mut output = Vec::new();
        let mut goes_on = true;
        while goes_on && let Some(frame) = input.next_frame().expect("the client sends frames") {
            match (hello, frame.opcode) {
                (None, opcode::HELLO) => {
                    hello = Some(Hello::read(frame.body).expect("a hello"));
                    goes_on = say_welcome(server, state, &mut output);
                }
                (Some(_), opcode::MAP) => {
                    assert_eq!(Question::read(frame.opcode, frame.body), Ok(Question::Map));
                    give_map(server, &mut lock(state), &mut output);
                }
                (Some(hello), opcode) => {
                    let request = Request::read(opcode, frame.body).expect("a request");
                    let server = server.expect("requests go to servers");
                    goes_on =
                        act(server, hello, &request, state, &mut output, &mut later, &mut held);
                }
                (None, opcode) => panic!("opcode {opcode:#x} before the hello"),
            }
        }
        if stream.write_all(&output).is_err() || !goes_on {
            break;
        }
        if let Some((is_open, rest)) = held.take() {
            let is_open: Arc<AtomicBool> = is_open;
            while !is_open.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            if stream.write_all(&rest).is_err() {
                break;
            }
            lock(state).finished_halves += 1;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// Sends WELCOME as soon as it is not withheld. Returns false if the connection is to be cut after it.
fn say_welcome(server: Option<u16>, state: &Mutex<State>, output: &mut Vec<u8>) -> bool {
    let is_withheld = || server.is_some_and(|id| lock(state).without_welcome.contains(&id));
    while is_withheld() {
        std::thread::yield_now();
    }
    let state = &mut *lock(state);
    welcome(server, state).write(output);
    let is_cut = server.is_some() && state.cuts_after_welcome > 0;
    state.cuts_after_welcome -= usize::from(is_cut);
    !is_cut
}

fn give_map(server: Option<u16>, state: &mut State, output: &mut Vec<u8>) {
    match server {
        None if state.is_coordinator_mute => return,
        None => state.maps_served += 1,
        Some(server) if state.without_map.contains(&server) => {
            return Refusal { status: Status::Unavailable, reason: "no map yet" }.write(output);
        }
        Some(server) => state.maps_of_servers.push(server),
    }
    write_map_response(output, &state.map);
}

fn welcome(server: Option<u16>, state: &State) -> Welcome {
    let State { ref map, last_sn, version, .. } = *state;
    let servers = map.placement().servers();
    let start = |group| SessionStart { group, committed: SequenceNumber(last_sn) };
    let starts = server.map_or([SessionStart::default(); 2], |at| {
        [start(GroupId(at)), start(GroupId((at + servers - 1) % servers))]
    });
    Welcome {
        cluster: map.cluster,
        server: server.map(member),
        servers,
        shards: map.shards,
        max_value: 16 << 20,
        starts,
        version,
    }
}

/// Handles a request in the way that the script returns. Returns false if the connection is to be cut.
fn act(
    server: u16,
    hello: Hello,
    request: &Request<'_>,
    state: &Mutex<State>,
    output: &mut Vec<u8>,
    later: &mut Vec<u8>,
    held: &mut Option<(Arc<AtomicBool>, Vec<u8>)>,
) -> bool {
    let mut state = lock(state);
    let state = &mut *state;
    let (opcode, header) = match request.operation {
        Operation::Get | Operation::GetPart(_) => (opcode::GET, None),
        Operation::Put(header, _) => (opcode::PUT, Some(header)),
        Operation::Delete(header) => (opcode::DELETE, Some(header)),
        Operation::Noop => (opcode::NOOP, None),
        Operation::Verify(_) => (opcode::VERIFY, None),
        Operation::Resolve(header, _) => (opcode::RESOLVE, Some(header)),
        Operation::Update(header, _) => (opcode::UPDATE, Some(header)),
        Operation::Scan(_) => (opcode::SCAN, None),
    };
    let updates = match request.operation {
        Operation::Update(_, updates) => updates.bytes().to_vec(),
        _ => Vec::new(),
    };
    let seen = Seen {
        server,
        client: hello.client,
        opcode,
        key: request.key.to_vec(),
        view: request.view,
        seq: header.map_or(0, |h| h.seq.0),
        first_incomplete: header.map_or(0, |h| h.first_incomplete.0),
        hash: RequestHash::of(request.digest, &request.operation),
        updates,
    };
    let act = (state.script)(&seen);
    state.seen.push(seen);
    match act {
        Act::Serve => {
            execute(state, server, hello, request, output);
            output.append(later);
        }
        Act::ResponseLater => execute(state, server, hello, request, later),
        Act::ServeThenCut => {
            execute(state, server, hello, request, &mut Vec::new());
            return false;
        }
        Act::Cut => return false,
        Act::Ignore => {}
        Act::Response(status) => response(request, status, 0, b"on purpose", output),
        Act::ResponseStatusLater(status) => response(request, status, 0, b"on purpose", later),
        Act::Send(bytes) => output.extend_from_slice(&bytes),
        Act::Halve(is_open) => {
            let mut response = Vec::new();
            execute(state, server, hello, request, &mut response);
            let rest = response.split_off(response.len() / 2);
            output.append(&mut response);
            *held = Some((is_open, rest));
        }
        Act::ServeTooMuch => {
            let (value, version) = &state.table[request.key];
            let whole = u32::try_from(value.len()).unwrap() + 1;
            let (status, version) = (Status::Part, SequenceNumber(*version));
            Response {
                id: request.id,
                status,
                copies: 0,
                view: request.view,
                version,
                value,
                whole,
                has_value: false,
                deadline: None,
            }
            .write(output);
        }
        Act::ServeWhole => {
            let whole = Request { operation: Operation::Get, ..*request };
            execute(state, server, hello, &whole, output);
        }
    }
    true
}

fn response(request: &Request<'_>, status: Status, version: u64, value: &[u8], to: &mut Vec<u8>) {
    let copies = if status == Status::Ok { 2 } else { 0 };
    response_to_read(request, status, copies, version, value, None, to);
}

fn response_to_read(
    request: &Request<'_>,
    status: Status,
    copies: u8,
    version: u64,
    value: &[u8],
    deadline: Option<WallTime>,
    to: &mut Vec<u8>,
) {
    let version = SequenceNumber(version);
    let whole = match request.operation {
        Operation::GetPart(_) if status == Status::Ok => value.len(),
        _ => 0,
    };
    let (value, status) = match request.operation.range_of(value.len()) {
        part if part.len() < value.len() => (&value[part], Status::Part),
        _ => (value, status),
    };
    let whole = if status == Status::Part { u32::try_from(whole).unwrap() } else { 0 };
    Response {
        id: request.id,
        status,
        copies,
        view: request.view,
        version,
        value,
        whole,
        has_value: false,
        deadline: deadline.filter(|_| request.operation.wants_deadline()),
    }
    .write(to);
}

/// Executes a request like a primary, or like a secondary for VERIFY of a secondary.
fn execute(state: &mut State, server: u16, hello: Hello, request: &Request<'_>, to: &mut Vec<u8>) {
    let (group, shard) = request.place(&state.map.placement());
    let view = &state.map.views[usize::from(group.0)];
    let holder = match request.operation {
        Operation::Verify(ReplicaRole::Secondary) => view.secondary(),
        _ => view.primary,
    };
    if holder != Some(member(server)) {
        return response(request, Status::WrongView, 0, b"", to);
    }
    assert_eq!(hello.shard, shard, "the client asks the executor of the key's shard");
    let header = match request.operation {
        Operation::Put(header, _)
        | Operation::Delete(header)
        | Operation::Resolve(header, _)
        | Operation::Update(header, _) => header,
        Operation::Noop => return response(request, Status::Ok, 0, b"", to),
        Operation::Scan(scan) => return give_page(state, (group, shard), request, scan, to),
        Operation::Get | Operation::GetPart(_) | Operation::Verify(_) => {
            return match state.table.get(request.key) {
                Some((value, version)) => {
                    let deadline = state.deadlines.get(request.key).copied();
                    response_to_read(request, Status::Ok, 2, *version, value, deadline, to);
                }
                None => response(request, Status::NotFound, 0, b"", to),
            };
        }
    };
    let is_whole = view.secondary().is_some();
    let record = write(state, (hello.client, group, shard), request, header);
    let status = record.status.expect("a status");
    let is_logged = status != Status::SessionExpired;
    let rest = RetainedResponse::read(&record.rest).unwrap();
    Response {
        id: request.id,
        status,
        copies: if is_logged { 1 + u8::from(is_whole) } else { 0 },
        view: request.view,
        version: SequenceNumber(record.version),
        value: rest.value.unwrap_or(&[]),
        whole: 0,
        has_value: rest.value.is_some(),
        deadline: rest.deadline,
    }
    .write(to);
}

/// Responds with a page of at most 10 entries, in an order of the keys that does not depend on the server.
fn give_page(
    state: &State,
    place: (GroupId, ShardId),
    request: &Request<'_>,
    scan: Scan,
    to: &mut Vec<u8>,
) {
    let placement = state.map.placement();
    let order = |key: &[u8]| {
        let [a, b, c, d, ..] = Digest::of(key).0;
        u64::from(u32::from_be_bytes([a, b, c, d]))
    };
    let mut keys: Vec<&Vec<u8>> =
        state.table.keys().filter(|key| placement.locate(key) == place).collect();
    keys.sort_by_key(|key| order(key));
    let mut page = PageWriter::new(keys.len() as u64);
    let mut rest = keys.into_iter().filter(|key| order(key) >= scan.cursor);
    for key in rest.by_ref().take(10) {
        let (value, version) = &state.table[key];
        let matched = match request.key {
            [] => Some(true),
            pattern => glob::matches(pattern, key, &mut Steps(1_000)),
        };
        if matched != Some(false) {
            let has_value = scan.values && value.len() <= SCAN_VALUE_BYTES_MAX;
            page.push(&ScanItem {
                key,
                value_length: u32::try_from(value.len()).unwrap(),
                value: has_value.then_some(value),
                version: SequenceNumber(*version),
                deadline: state.deadlines.get(key).copied().filter(|_| scan.deadlines),
                is_unmatched: matched.is_none(),
            });
        }
    }
    let next = rest.next().map_or(0, |key| order(key));
    response(request, Status::Ok, 0, &page.finish(next), to);
}

fn write(
    state: &mut State,
    session: (ClientId, GroupId, ShardId),
    request: &Request<'_>,
    header: WriteHeader,
) -> Record {
    let known = state.sessions.contains_key(&session);
    if !known && header.begun.0 < state.forgotten {
        return Record::new(Status::SessionExpired, 0);
    }
    let remembered = state.sessions.entry(session).or_default();
    let first = remembered.first_incomplete.max(header.first_incomplete.0);
    remembered.first_incomplete = first;
    remembered.records.retain(|&seq, _| seq >= first);
    if header.seq.0 < first {
        return Record::new(Status::SessionExpired, 0);
    }
    assert!(header.seq.0 < first + 64, "beyond the window");
    if let Some(record) = remembered.records.get(&header.seq.0) {
        return record.clone();
    }
    state.last_sn += 1;
    let found = state.table.get(request.key).map_or(0, |(_, version)| *version);
    let holds = match header.condition {
        Condition::Always => true,
        Condition::IfVersion(version) => version.0 == found,
        Condition::IfAbsent => found == 0,
    };
    let record = match request.operation {
        Operation::Resolve(..) => Record::new(Status::NotDone, 0),
        Operation::Update(_, updates) => update(state, request.key, &updates),
        _ if !holds => Record::new(Status::Conflict, found),
        Operation::Put(_, value) => {
            state.table.insert(request.key.to_vec(), (value.to_vec(), state.last_sn));
            state.executed.push((request.key.to_vec(), value.to_vec()));
            Record::new(Status::Ok, state.last_sn)
        }
        _ if found == 0 => Record::new(Status::NotFound, 0),
        _ => {
            state.table.remove(request.key);
            state.executed.push((request.key.to_vec(), Vec::new()));
            Record::new(Status::Ok, state.last_sn)
        }
    };
    state.sessions.entry(session).or_default().records.insert(header.seq.0, record.clone());
    record
}

/// Executes updates like a primary, at the current time.
fn update(state: &mut State, key: &[u8], updates: &Updates<'_>) -> Record {
    let State { table, deadlines, .. } = &*state;
    let newest = |key: &[u8]| {
        let (value, version) = table.get(key)?;
        let (version, deadline) = (SequenceNumber(*version), deadlines.get(key).copied());
        Some(Current { value, version, deadline })
    };
    let evaluation = evaluate(key, updates, now(), newest);
    for change in evaluation.changes {
        let stored = change.stored;
        let value = stored.as_ref().map_or(&[][..], |stored| &stored.value);
        state.executed.push((change.key.to_vec(), value.to_vec()));
        state.table.remove(change.key);
        state.deadlines.remove(change.key);
        if let Some(stored) = stored {
            state.table.insert(change.key.to_vec(), (stored.value.to_vec(), state.last_sn));
            state.deadlines.extend(stored.deadline.map(|at| (change.key.to_vec(), at)));
        }
    }
    let version = if evaluation.is_done { state.last_sn } else { evaluation.found.0 };
    Record {
        status: Some(evaluation.status),
        version,
        rest: evaluation.response.unwrap_or_default().to_vec(),
    }
}

/// Returns the current wall time.
pub fn now() -> WallTime {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    WallTime::from_millis(u64::try_from(since.as_millis()).unwrap())
}
