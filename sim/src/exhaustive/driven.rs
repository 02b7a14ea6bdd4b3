//! The shipped shard with a driver in place of an engine, as a machine of the search. Each wake-up has one input,
//! sockets accept all output, and every frame arrives whole.
//!
//! ```text
//!   Input::Dialled   due_dials, open_stream, CHALLENGE out, PROOF in   -> Done::Connect(PEER-HELLO)
//!   Input::Hello     open_accepted, CHALLENGE in, PROOF out, PEER-HELLO in -> Done::Accept or Done::Refuse
//!   Input::Frame     bytes of the stream                               -> Done::Send, Done::Close
//!   Input::Ask       bytes of a client's connection                    -> Done::Response
//! ```
//!
//! The handshake with the cluster's key is not a step of the search, because neither end of a stream affects a
//! replica before the hello. The driver performs the other end's part of the handshake.

use std::cell::Cell;
use std::rc::Rc;

use kv_core::arena::{CHUNK_BYTES_MIN, HeapChunks};
use kv_core::hash::HashSecret;
use kv_core::replica::{ConnectionId, Replica, StreamError};
use kv_protocol::FailureTimeout;
use kv_protocol::client_message::{
    Condition, Hello, Operation, Request, Response, Status, WriteHeader, opcode as client_opcode,
};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::frame::{Frame, FrameRules, split_frame};
use kv_protocol::ids::{
    ClientId, ClusterKey, Member, RequestId, RequestSeq, SequenceNumber, ShardId, Time,
    ViewVersion, WallTime,
};
use kv_protocol::key::{Challenge, Nonce};
use kv_protocol::limits::{FRAGMENT_BYTES, MAX_PEER_BODY, MAX_RESPONSE_BODY, SESSION_IDLE};
use kv_protocol::peer_message::{BatchReader, opcode as peer_opcode};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::View;
use kv_shard::{
    ConnectionMemory, EventKind, Fate, HelloBounds, Identity, InstallRefused, Port, Service, Shard,
};

use super::machine::Machine;
use super::replica::{
    Asked, CLUSTER, Done, FrameId, Frames, GROUP, Given, Input, Kind, Sight, TICK, What, body_of,
    reading,
};
use crate::invariants::{Violation, copies, leases, messages};
use crate::world::SEAL;

/// The key of the cluster, the same as in [`SEAL`].
const KEY: ClusterKey = ClusterKey(0x51);
/// The nonce of the dialling end of every stream, the same as in [`SEAL`].
const DIALLER: Nonce = Nonce(1);
/// The nonce of the accepting end of every stream, the same as in [`SEAL`].
const ACCEPTOR: Nonce = Nonce(2);
/// The number of clients of a search. Client 0 only reads.
const CLIENTS: u8 = 3;

const CLIENT_RULES: FrameRules = FrameRules::unchecked(MAX_RESPONSE_BODY);

/// A shard with the state of its driver.
pub struct Driven {
    shard: Shard,
    /// The nonce that the shard draws next.
    nonce: Rc<Cell<Nonce>>,
    /// The connection that carries the replica's stream in the search.
    stream: Option<ConnectionId>,
    /// True if the shard has requested a stream that is not connected yet.
    is_dialling: bool,
    clients: Vec<ConnectionId>,
    now: Time,
}

impl Machine for Driven {
    type Origin = (Member, ShardId, Placement);
    type Input = (u8, Input);
    type Output = Vec<Done>;
    type Sight = Sight;
    type Shared = Frames;

    fn make(&(me, shard, placement): &Self::Origin) -> Driven {
        let identity = Identity {
            cluster: CLUSTER,
            key: KEY,
            me,
            shard,
            placement,
            failure_timeout: FailureTimeout::DEFAULT,
            session_idle: SESSION_IDLE,
            long_value: kv_shard::LONG_VALUE,
        };
        let nonce = Rc::new(Cell::new(DIALLER));
        let drawn = Rc::clone(&nonce);
        let service = Service::new(
            identity,
            Box::new(move || Ok(drawn.get())),
            ConnectionMemory::new(None, None, 2),
            HashSecret::new(1),
            || Box::new(HeapChunks::new(CHUNK_BYTES_MIN)),
        );
        let shard = Shard::new(service, HelloBounds::WIDEST);
        let (clients, now) = (Vec::new(), reading(0));
        let mut driven = Driven { shard, nonce, stream: None, is_dialling: false, clients, now };
        driven.clients = (0..CLIENTS).map(|client| driven.open_client(client)).collect();
        driven
    }

    fn take(&mut self, frames: &mut Frames, (tick, input): &Self::Input) -> Vec<Done> {
        self.now = reading(*tick);
        let now = self.now;
        let mut done = Vec::new();
        self.shard.begin_wake_up(now);
        self.serve(frames, input, &mut done);
        if self.shard.service.poll_timeout().is_some_and(|due| due <= now) {
            self.shard.handle_tick(now, WallTime::default());
        }
        self.shard.finish_wake_up(now);
        self.take_responses(&mut done);
        self.take_stream_output(frames, &mut done);
        self.is_dialling |=
            self.shard.due_dials(now).iter().any(|(target, _)| *target == GROUP.into());
        self.take_stream_output(frames, &mut done);
        done
    }

    fn describe(&self) -> String {
        let shard = self.shard.describe(GROUP);
        let Identity { me, shard: number, .. } = self.shard.service.identity;
        format!("{me:?} {number:?} {} {} {shard}", self.stream.is_some(), self.is_dialling)
    }

    fn sight(&self) -> Sight {
        let replica = self.replica();
        let report = replica.report(self.now);
        let heard = report.map(|_| replica.heard());
        let zero = SequenceNumber::ZERO;
        let report = report.map(|report| ReplicaReport {
            last: zero,
            committed: zero,
            entries: 0,
            bytes: 0,
            silent_ms: 0,
            following: Default::default(),
            longest_gap_ms: 0,
            used_bytes: 0,
            content_bytes: 0,
            copied: 0,
            copied_bytes: 0,
            flush: Default::default(),
            ..report
        });
        let is_wanted = self.is_dialling || self.shard.service.poll_dial().is_some();
        Sight {
            inside: replica.inspect(),
            wants: replica.peer_hello(CLUSTER).filter(|_| is_wanted),
            due: replica.next_timeout(),
            report,
            heard,
        }
    }
}

impl Driven {
    fn replica(&self) -> &Replica {
        self.shard.service.replica(GROUP).expect("both servers hold the group")
    }

    /// Opens the connection of a client. It stays open as long as the shard exists.
    fn open_client(&mut self, client: u8) -> ConnectionId {
        let (now, shard) = (self.now, self.shard.service.identity.shard);
        let id = self.shard.open_accepted(now, Port::Clients);
        let mut hello = Vec::new();
        Hello::new(CLUSTER, client_id(client), shard).write(&mut hello);
        self.receive_first(id, &hello);
        let welcome = self.take_output(id);
        let opcode = frames_of(&welcome, &CLIENT_RULES)[0].opcode;
        assert_eq!(opcode, client_opcode::WELCOME, "a client's welcome");
        id
    }

    /// Receives the first frame of an accepted connection, which names this shard.
    fn receive_first(&mut self, id: ConnectionId, frame: &[u8]) {
        self.shard.handle_bytes(self.now, id, frame);
        assert_eq!(self.shard.fate(id), Fate::HandOver(self.shard.service.identity.shard));
        self.shard.adopt_accepted(self.now, id);
    }

    fn serve(&mut self, frames: &mut Frames, input: &Input, done: &mut Vec<Done>) {
        let now = self.now;
        match input {
            Input::Install(view) => {
                let address = self.address_of_the_other(&view.0);
                match self.shard.service.install(now, view.0, address) {
                    Ok(()) => {}
                    Err(InstallRefused::Replica(error)) => {
                        done.push(Done::NotInstalled(error.to_string()));
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Input::Exited(member) => self.shard.service.handle_exited(now, *member),
            Input::Ask(asked) => self.ask(asked, done),
            Input::Dialled => self.handle_dialled(frames, done),
            Input::Hello(frame) => self.on_hello(frames, *frame, done),
            Input::Frame(frame) => {
                let bytes = frames.get(*frame).clone();
                self.on_frame(frames, &bytes, done);
            }
            Input::Closed => {
                if let Some(id) = self.stream.take() {
                    self.shard.handle_end_of_input(now, id);
                    self.shard.close(now, id);
                }
            }
            Input::Wake => {}
        }
        self.take_stream_output(frames, done);
    }

    /// Returns an address for the other member of a view, as an order contains it; `None` if there is no other member.
    /// The search ignores the address and connects to the member.
    fn address_of_the_other(&self, view: &View) -> Option<std::net::SocketAddr> {
        let me = self.shard.service.identity.me;
        let is_other =
            [view.primary, view.other()].into_iter().flatten().any(|member| member != me);
        is_other.then(|| ([127, 0, 0, 1], 1_000).into())
    }

    fn handle_dialled(&mut self, frames: &mut Frames, done: &mut Vec<Done>) {
        let now = self.now;
        if !std::mem::take(&mut self.is_dialling) {
            // The search explores dials at any time, so it skips the back-off.
            let due = self.shard.due_dials(now + TICK);
            assert!(due.iter().any(|(target, _)| *target == GROUP.into()), "a stream is required");
        }
        self.nonce.set(DIALLER);
        let id = self.shard.open_dialled(now, GROUP);
        self.take_stream_output(frames, done);
        self.take_output(id);
        let mut proof = Vec::new();
        SEAL.write_proof(&mut proof);
        self.shard.handle_bytes(now, id, &proof);
        let hello = self.take_output(id);
        if self.shard.is_over(id) {
            return self.shard.close(now, id);
        }
        self.stream = Some(id);
        done.push(Done::Connect(frames.number(hello)));
    }

    fn on_hello(&mut self, frames: &mut Frames, frame: FrameId, done: &mut Vec<Done>) {
        let (now, shard) = (self.now, self.shard.service.identity.shard);
        let id = self.shard.open_accepted(now, Port::Servers);
        let mut challenge = Vec::new();
        Challenge { nonce: DIALLER, shard }.write(&mut challenge);
        self.nonce.set(ACCEPTOR);
        self.receive_first(id, &challenge);
        self.take_output(id);
        let hello = frames.get(frame).clone();
        self.shard.handle_bytes(now, id, &hello);
        self.take_stream_output(frames, done);
        let said = self.take_output(id);
        if self.is_ending(id) {
            done.extend(numbered(frames, &said).into_iter().map(Done::Refuse));
            return self.shard.close(now, id);
        }
        self.stream = Some(id);
        done.push(Done::Accept);
        done.extend(numbered(frames, &said).into_iter().map(Done::Send));
    }

    /// Passes a frame of the stream to the shard, and checks how the shard has handled the messages.
    fn on_frame(&mut self, frames: &mut Frames, bytes: &[u8], done: &mut Vec<Done>) {
        let Some(id) = self.stream else { return };
        let installed = self.replica().view_version();
        self.shard.handle_bytes(self.now, id, bytes);
        let events = self.shard.service.take_events();
        let (opcode, body) = body_of(bytes);
        if opcode != peer_opcode::BATCH {
            return;
        }
        let error = events.iter().find_map(|event| match event.kind {
            EventKind::StreamBroken { group: GROUP, error } => Some(error),
            _ => None,
        });
        if let Some(error) = error {
            if let StreamError::Diverged { sn } = error {
                done.push(Done::Broken(copies::copy_differs(GROUP, sn)));
            }
            done.push(Done::Misunderstood(error));
        }
        self.take_stream_output(frames, done);
        if self.stream != Some(id) {
            return;
        }
        for message in BatchReader::new(body).expect("it is well formed") {
            let message = message.expect("it is well formed");
            let result = messages::message_is_of_this_view(GROUP, message.view(), installed);
            done.extend(result.err().map(Done::Broken));
        }
    }

    /// Takes the output of the stream, and closes the stream if the shard ends it.
    fn take_stream_output(&mut self, frames: &mut Frames, done: &mut Vec<Done>) {
        let Some(id) = self.stream else { return };
        let said = self.take_output(id);
        done.extend(numbered(frames, &said).into_iter().map(Done::Send));
        if self.is_ending(id) {
            done.push(Done::Close);
            self.stream = None;
            self.shard.close(self.now, id);
        }
    }

    /// Returns whether the shard closes a connection after its output is sent.
    fn is_ending(&mut self, id: ConnectionId) -> bool {
        matches!(self.shard.fate(id), Fate::Close | Fate::Shut)
    }

    /// Takes all output of a connection, as if the socket had room for everything.
    fn take_output(&mut self, id: ConnectionId) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let unsent = self.shard.unsent(id).to_vec();
            self.shard.handle_sent(self.now, id, unsent.len());
            let mut sent = unsent.len();
            all.extend(unsent);
            while let Some(transmit) = self.shard.poll_transmit(self.now) {
                assert_eq!(transmit.id, id, "one long value at a time");
                sent = transmit.parts.iter().map(|part| part.len()).sum();
                transmit.parts.iter().for_each(|part| all.extend_from_slice(part));
                self.shard.handle_transmitted(self.now, sent);
            }
            if sent == 0 && !self.shard.has_readers() {
                return all;
            }
        }
    }

    fn take_responses(&mut self, done: &mut Vec<Done>) {
        for at in 0..self.clients.len() {
            let said = self.take_output(self.clients[at]);
            done.extend(responses_of(&said).into_iter().map(Done::Response));
        }
    }

    fn ask(&mut self, asked: &Asked, done: &mut Vec<Done>) {
        let (client, bytes) = request_of(asked);
        let id = self.clients[usize::from(client)];
        self.shard.handle_bytes(self.now, id, &bytes);
        let given = responses_of(&self.take_output(id));
        done.extend(given.iter().copied().map(Done::Response));
        let Some(given) = given.into_iter().find(|given| given.id == asked.id) else { return };
        let sight = self.replica().inspect();
        let result =
            messages::only_primaries_respond(GROUP, &sight, given.status).and_then(
                |()| match asked.what {
                    What::Get => leases::lease_is_checked(GROUP, &sight, self.now, given.status),
                    What::Write { .. } => Ok(()),
                },
            );
        done.extend(result.err().map(Done::Broken));
        if asked.what == What::Get && given.version > sight.committed.0 {
            let words = format_args!(
                "a read returned write {}, but only writes up to {} are committed",
                given.version, sight.committed
            );
            done.push(Done::Broken(Violation::of(GROUP, 14, words)));
        }
    }
}

fn client_id(client: u8) -> ClientId {
    ClientId(u128::from(client) + 1)
}

/// Returns the client of a request, and the request's frame.
fn request_of(asked: &Asked) -> (u8, Vec<u8>) {
    let mut value = Vec::new();
    let (client, operation) = match asked.what {
        What::Get => (0, Operation::Get),
        What::Write { client, seq, first_incomplete, kind, large } => {
            let number = u8::try_from(asked.id).expect("writes are few");
            value.resize(if large { FRAGMENT_BYTES } else { 1 }, number);
            let condition = match kind {
                Kind::PutIfAbsent => Condition::IfAbsent,
                Kind::Put | Kind::Delete => Condition::Always,
            };
            let header = WriteHeader {
                seq: RequestSeq(seq.into()),
                first_incomplete: RequestSeq(first_incomplete.into()),
                begun: Default::default(),
                condition,
            };
            let operation = match kind {
                Kind::Delete => Operation::Delete(header),
                Kind::Put | Kind::PutIfAbsent => Operation::Put(header, &value),
            };
            (client, operation)
        }
    };
    let request = Request {
        id: RequestId(asked.id),
        view: ViewVersion(0),
        digest: Digest::of(asked.key.as_bytes()),
        key: asked.key.as_bytes(),
        operation,
    };
    let mut bytes = Vec::new();
    request.write(&mut bytes);
    (client, bytes)
}

/// Splits output into frames.
fn frames_of<'a>(mut bytes: &'a [u8], rules: &FrameRules) -> Vec<Frame<'a>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let frame = split_frame(bytes, rules).expect("it is well formed").expect("it is whole");
        bytes = &bytes[frame.consumed..];
        frames.push(frame);
    }
    frames
}

/// Numbers the frames in the output of a stream.
fn numbered(frames: &mut Frames, said: &[u8]) -> Vec<FrameId> {
    let mut rest = said;
    let number = |frame: Frame<'_>| {
        let (this, behind) = rest.split_at(frame.consumed);
        rest = behind;
        frames.number(this.to_vec())
    };
    frames_of(said, &FrameRules::checked(MAX_PEER_BODY)).into_iter().map(number).collect()
}

fn responses_of(bytes: &[u8]) -> Vec<Given> {
    let given = |frame: Frame<'_>| {
        assert_eq!(frame.opcode, client_opcode::RESPONSE, "nothing but responses");
        let response = Response::read(frame.body).expect("it is well formed");
        let is_value = response.status == Status::Ok && !response.value.is_empty();
        Given {
            id: response.id.0,
            status: response.status,
            copies: response.copies,
            version: response.version.0,
            writer: is_value.then(|| response.value[0]),
        }
    };
    frames_of(bytes, &CLIENT_RULES).into_iter().map(given).collect()
}
