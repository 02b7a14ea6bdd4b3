//! A replica with a driver of its own, without connections and with one input per wake-up.

use std::time::Duration;

use crate::world::SEAL;
use kv_core::arena::{CHUNK_BYTES_MIN, HeapChunks};
use kv_core::hash::HashSecret;
use kv_core::replica::{
    ConnectionId, Inspection, InstallError, Pumped, Replica, ReplicaConfig, Responses, StreamError,
};
use kv_protocol::client_message::{Condition, Operation, Request, Response, Status, WriteHeader};
use kv_protocol::control_message::ReplicaReport;
use kv_protocol::frame::{FrameRules, split_frame};
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, Member, RequestId, RequestSeq, SequenceNumber, ShardId, Time,
    ViewVersion,
};
use kv_protocol::limits::{FRAGMENT_BYTES, MAX_PEER_BODY, SESSION_IDLE};
use kv_protocol::peer_message::{
    BatchReader, PeerHello, PeerRefusal, PeerRefusalReason, PeerWelcome, opcode,
};
use kv_protocol::placement::{Digest, Placement};
use kv_protocol::view::View;

use super::machine::{Machine, Numbered};
use crate::invariants::{
    Violation, copy_is_equal, lease_is_checked, nothing_old, only_primaries_respond,
};

/// The cluster of every search.
pub const CLUSTER: ClusterId = ClusterId(9);
/// The searched group.
pub const GROUP: GroupId = GroupId(0);
/// The number of servers in the ring; a stub plays the other group.
pub const SERVERS: u16 = 2;

/// The length of a tick. One tick is longer than the candidate timeout and than "heard within" (250 ms each).
/// Two are longer than a lease (500 ms) and shorter than a grace (625 ms); three are longer than a grace. So
/// ticks can produce every possible order of the deadlines.
pub const TICK: Duration = Duration::from_millis(300);

/// Returns the reading of every clock at a tick.
pub fn reading(tick: u8) -> Time {
    Time::from_nanos(1_000_000_000) + TICK * u32::from(tick)
}

/// The number of a frame.
pub type FrameId = u32;

/// An input of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Input {
    /// The view of an order.
    Install(ViewKey),
    /// A proof of death.
    Exited(Member),
    /// A client's request.
    Ask(Asked),
    /// The requested stream was connected.
    Dialled,
    /// A hello on a new connection.
    Hello(FrameId),
    /// A frame on the current stream.
    Frame(FrameId),
    /// The end of the current stream.
    Closed,
    /// A wake-up by time alone.
    Wake,
}

/// A view as a hash key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViewKey(pub View);

impl std::hash::Hash for ViewKey {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.0.version, self.0.primary, self.0.handover).hash(state);
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Asked {
    /// The number of the write or read.
    pub id: u64,
    /// The key.
    pub key: &'static str,
    /// The operation on the key.
    pub what: What,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A read.
    Get,
    /// A write of a client's session.
    Write {
        /// The client.
        client: u8,
        /// Its sequence number in the session.
        seq: u8,
        /// The lowest sequence number that has not ended.
        first_incomplete: u8,
        /// The kind of write.
        kind: Kind,
        /// True if the value fills a batch of a copy. The value identifies its write.
        large: bool,
    },
}

/// The kind of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Sets the value.
    Put,
    /// Sets the value if the key is absent.
    PutIfAbsent,
    /// Deletes the key.
    Delete,
}

/// An effect of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Sends on the current stream.
    Send(FrameId),
    /// Closes the current stream.
    Close,
    /// Accepts the connection of the hello as its stream.
    Accept,
    /// Rejects the hello with this frame, and closes that connection.
    Refuse(FrameId),
    /// Connects, with this hello.
    Connect(FrameId),
    /// Responds to a client.
    Response(Given),
    /// Rejects a view.
    NotInstalled(String),
    /// Rejects a message of its stream.
    Misunderstood(StreamError),
    /// Breaks a promise.
    Broken(Violation),
}

/// A response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The request's number.
    pub id: u64,
    /// The status.
    pub status: Status,
    /// The number of copies that it reports.
    pub copies: u8,
    /// The version that it carries.
    pub version: u64,
    /// The write whose value a read returned.
    pub writer: Option<u8>,
}

/// The observable state of a replica.
#[derive(Debug)]
pub struct Sight {
    /// The replica's inspection.
    pub inside: Inspection,
    /// The hello of the stream that it needs and does not have.
    pub wants: Option<PeerHello>,
    /// The time of its next timer.
    pub due: Option<Time>,
    /// Its report in the heartbeat, without growing counters.
    pub report: Option<ReplicaReport>,
    /// The time at which it last received a message from the other holder.
    pub heard: Option<Time>,
}

/// A replica with the state that the server keeps for it.
#[derive(Debug)]
pub struct Driven {
    replica: Replica,
    config: ReplicaConfig,
    stream: bool,
    dialled: Option<PeerHello>,
    now: Time,
}

/// Frames by number.
pub type Frames = Numbered<Vec<u8>>;

struct Collected<'a>(&'a mut Vec<Done>);

impl Responses for Collected<'_> {
    fn respond(&mut self, _: ConnectionId, response: &Response<'_>) {
        let is_value = response.status == Status::Ok && !response.value.is_empty();
        self.0.push(Done::Response(Given {
            id: response.id.0,
            status: response.status,
            copies: response.copies,
            version: response.version.0,
            writer: is_value.then(|| response.value[0]),
        }));
    }
}

impl Machine for Driven {
    type Origin = (Member, ShardId, Placement);
    type Input = (u8, Input);
    type Output = Vec<Done>;
    type Sight = Sight;
    type Shared = Frames;

    fn make(&(me, shard, placement): &Self::Origin) -> Driven {
        let config = ReplicaConfig {
            me,
            group: GROUP,
            shard,
            placement,
            memory_limit: None,
            session_idle: SESSION_IDLE,
            hash_secret: HashSecret::new(1),
            failure_timeout: kv_protocol::FailureTimeout::DEFAULT,
        };
        Driven {
            replica: Replica::new(config, Box::new(HeapChunks::new(CHUNK_BYTES_MIN))),
            config,
            stream: false,
            dialled: None,
            now: reading(0),
        }
    }

    fn take(&mut self, frames: &mut Frames, (tick, input): &Self::Input) -> Vec<Done> {
        self.now = reading(*tick);
        let now = self.now;
        let mut done = Vec::new();
        self.serve(frames, input, &mut done);
        if self.replica.next_timeout().is_some_and(|due| due <= now) {
            self.replica.on_timeout(now, &mut Collected(&mut done));
        }
        self.pump(frames, &mut done);
        if self.dialled.is_some() && self.dialled != self.replica.peer_hello(CLUSTER) {
            self.close(&mut done);
        }
        done
    }

    fn describe(&self) -> String {
        let (me, shard) = (self.config.me, self.config.shard);
        let replica = self.replica.describe();
        format!("{me:?} {shard:?} {} {:?} {replica}", self.stream, self.dialled)
    }

    fn sight(&self) -> Sight {
        let report = self.replica.report(self.now);
        let heard = report.map(|_| self.replica.heard());
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
            ..report
        });
        Sight {
            inside: self.replica.inspect(),
            wants: self.replica.peer_hello(CLUSTER).filter(|_| self.dialled.is_none()),
            due: self.replica.next_timeout(),
            report,
            heard,
        }
    }
}

impl Driven {
    fn serve(&mut self, frames: &mut Frames, input: &Input, done: &mut Vec<Done>) {
        let now = self.now;
        match input {
            Input::Install(view) => match self.replica.install(now, view.0, &mut Collected(done)) {
                Ok(()) | Err(InstallError::Old { .. }) => {}
                Err(error) => done.push(Done::NotInstalled(error.to_string())),
            },
            Input::Exited(member) => self.replica.on_exited(now, *member),
            Input::Ask(asked) => self.ask(asked, done),
            Input::Dialled => {
                let Some(hello) = self.replica.peer_hello(CLUSTER) else { return };
                if self.stream {
                    self.close(done);
                }
                (self.stream, self.dialled) = (true, Some(hello));
                let mut bytes = Vec::new();
                hello.write(&SEAL, &mut bytes);
                done.push(Done::Connect(frames.number(bytes)));
            }
            Input::Hello(frame) => self.on_hello(frames, *frame, done),
            Input::Frame(frame) => {
                let bytes = frames.get(*frame).clone();
                if let Err(refusal) = self.on_frame(&bytes, done) {
                    if let Some(refusal) = refusal {
                        let mut bytes = Vec::new();
                        refusal.write(&mut bytes);
                        done.push(Done::Send(frames.number(bytes)));
                    }
                    self.close(done);
                }
            }
            Input::Closed => {
                (self.stream, self.dialled) = (false, None);
                self.replica.on_stream_down(now, &mut Collected(done));
            }
            Input::Wake => {}
        }
    }

    fn close(&mut self, done: &mut Vec<Done>) {
        (self.stream, self.dialled) = (false, None);
        done.push(Done::Close);
        self.replica.on_stream_down(self.now, &mut Collected(done));
    }

    fn on_hello(&mut self, frames: &mut Frames, frame: FrameId, done: &mut Vec<Done>) {
        let now = self.now;
        let bytes = frames.get(frame).clone();
        let hello = PeerHello::read(body_of(&bytes).1, &SEAL).expect("it was written so");
        let mut refuse = |refusal: PeerRefusal, done: &mut Vec<Done>| {
            let mut bytes = Vec::new();
            refusal.write(&mut bytes);
            done.push(Done::Refuse(frames.number(bytes)));
        };
        if let Err(refusal) = self.replica.judge_hello(&hello) {
            return refuse(refusal, done);
        }
        if self.stream {
            self.close(done);
        }
        match self.replica.on_peer_hello(now, &hello, &mut Collected(done)) {
            Ok(welcome) => {
                self.stream = true;
                let mut bytes = Vec::new();
                welcome.write(&mut bytes);
                done.push(Done::Accept);
                done.push(Done::Send(frames.number(bytes)));
            }
            Err(refusal) => refuse(refusal, done),
        }
    }

    /// Handles a frame of the stream. An error ends the stream, with a refusal if one is to be sent.
    fn on_frame(&mut self, bytes: &[u8], done: &mut Vec<Done>) -> Result<(), Option<PeerRefusal>> {
        let now = self.now;
        let (opcode, body) = body_of(bytes);
        match opcode {
            opcode::PEER_WELCOME => {
                let welcome = PeerWelcome::read(body).expect("it was written so");
                let taken = self.replica.on_peer_welcome(now, &welcome, &mut Collected(done));
                taken.map_err(|_| None)
            }
            opcode::PEER_REFUSAL => {
                let refusal = PeerRefusal::read(body).expect("it was written so");
                self.replica.on_peer_refusal(now, &refusal, &mut Collected(done));
                Err(None)
            }
            _ => self.on_batch(body, done),
        }
    }

    fn on_batch(&mut self, body: &[u8], done: &mut Vec<Done>) -> Result<(), Option<PeerRefusal>> {
        for message in BatchReader::new(body).expect("it was written so") {
            let message = message.expect("it was written so");
            let installed = self.replica.view_version();
            match self.replica.on_peer_message(self.now, &message, &mut Collected(done)) {
                Ok(()) => {
                    let result = nothing_old::message(GROUP, message.view(), installed);
                    done.extend(result.err().map(Done::Broken));
                }
                Err(error) => {
                    if let StreamError::Diverged { sn } = error {
                        done.push(Done::Broken(copy_is_equal::differs(GROUP, sn)));
                    }
                    done.push(Done::Misunderstood(error));
                    let reason = match error {
                        StreamError::View { .. } => PeerRefusalReason::OldView,
                        _ => PeerRefusalReason::BrokenStream,
                    };
                    return Err(Some(PeerRefusal { reason, view: self.replica.view().copied() }));
                }
            }
        }
        Ok(())
    }

    fn pump(&mut self, frames: &mut Frames, done: &mut Vec<Done>) {
        while self.stream {
            let mut bytes = Vec::new();
            let pumped = self.replica.pump(self.now, &mut bytes);
            if !bytes.is_empty() {
                done.push(Done::Send(frames.number(bytes)));
            }
            if pumped == Pumped::Done {
                return;
            }
        }
    }

    fn ask(&mut self, asked: &Asked, done: &mut Vec<Done>) {
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
        let client = ClientId(u128::from(client) + 1);
        let before = done.len();
        let connection = ConnectionId(1);
        let hash = self.replica.hash_of(request.digest, request.key);
        self.replica.on_request(self.now, (connection, client), &request, hash, &mut Collected(done));
        let responded = done[before..].iter().find_map(|done| match done {
            Done::Response(given) if given.id == asked.id => Some(*given),
            _ => None,
        });
        let Some(given) = responded else { return };
        let sight = self.replica.inspect();
        let result = only_primaries_respond::check(GROUP, &sight, given.status).and_then(|()| {
            match asked.what {
                What::Get => lease_is_checked::check(GROUP, &sight, self.now, given.status),
                What::Write { .. } => Ok(()),
            }
        });
        done.extend(result.err().map(Done::Broken));
        if asked.what == What::Get && given.version > sight.committed.0 {
            let words = format_args!(
                "a read tells of write {}, but only {} are committed",
                given.version, sight.committed
            );
            done.push(Done::Broken(Violation::of(GROUP, 14, words)));
        }
    }
}

/// Returns opcode and body of a frame.
pub fn body_of(bytes: &[u8]) -> (u8, &[u8]) {
    let frame = split_frame(bytes, &FrameRules::checked(MAX_PEER_BODY));
    let frame = frame.expect("it was written so").expect("it is whole");
    (frame.opcode, frame.body)
}
