//! One server process: its link to the coordinator, and an executor for each shard with the replicas
//! of its two groups, driven as the real server drives them.
//!
//! ```text
//!   a wake-up of a shard:  reap what has come -> read the clock -> (a pause may strike here)
//!                          -> serve -> timeouts -> pump every stream -> dial what is wanted
//! ```

use std::collections::VecDeque;
use std::net::SocketAddr;

use kv_core::arena::HeapChunks;
use kv_core::hash::HashSecret;
use kv_core::node::{Node, NodeConfig};
use kv_core::replica::{
    Answers, ConnectionId, InstallError, NoFullCopy, Pumped, Replica, ReplicaConfig, StreamError,
};
use kv_protocol::client_message::{Answer, Hello, Operation, Request, Status};
use kv_protocol::control_message::{ReplicaReport, ReplicaState};
use kv_protocol::frame::{FrameBuffer, FrameRules};
use kv_protocol::ids::{
    ClientId, ClusterId, GroupId, Member, OrderId, RequestId, SequenceNumber, ServerId, ShardId,
    Time, ViewVersion,
};
use kv_protocol::limits::{MAX_CLIENT_BODY, MAX_PEER_BODY};
use kv_protocol::peer_message::{
    BatchReader, BatchWriter, PeerHello, PeerRefusal, PeerRefusalReason, PeerWelcome,
    opcode as peer_opcode,
};
use kv_protocol::placement::Placement;
use kv_protocol::view::View;

use crate::dump::Part;
use crate::invariants::{
    Violation, copy_is_equal, lease_is_checked, nothing_old, only_primaries_answer,
};
use crate::network::ConnectionNumber;

/// Bytes that a table may take before writes are refused.
pub const MEMORY_LIMIT: u64 = 64 << 20;
/// Small chunks: a run makes many tables.
const CHUNK_BYTES: usize = 64 << 10;
/// Pauses between two tries to dial, in nanoseconds of true time.
const REDIAL_FIRST: u64 = 1_000_000;
const REDIAL_LAST: u64 = 100_000_000;

/// What comes to a shard.
#[derive(Debug)]
pub enum Input {
    /// Bytes on a connection that was accepted or dialled.
    Bytes(ConnectionNumber, Vec<u8>),
    /// The end of one.
    Closed(ConnectionNumber),
    /// A stream that was dialled for this group stands.
    Dialled(ConnectionNumber, GroupId),
    /// It could not be dialled.
    DialFailed(GroupId),
    /// An order.
    Install(OrderId, View, Option<SocketAddr>),
    /// A probe to echo.
    Probe(OrderId),
    /// A proof of death.
    Exited(Member),
    /// No new writes; or none at all, and no acks.
    Drain,
    /// The dump of this number begins, or goes on at this shard.
    Dump(GroupId, u64),
}

/// What a shard wants done after a wake-up.
#[derive(Debug)]
pub enum Output {
    /// Send.
    Send(ConnectionNumber, Vec<u8>),
    /// Close.
    Close(ConnectionNumber),
    /// Dial this address for this group's stream.
    Dial(GroupId, SocketAddr),
    /// A view of this order could not be installed.
    Refused(OrderId, String),
    /// A probe was echoed.
    Probed(OrderId),
    /// What the replicas are now, for the node.
    Published(Vec<ReplicaReport>),
    /// A request was answered.
    Answered(Answered),
    /// A shard's part of the dump of this number, or why there must be none.
    Dumped(u64, Result<Box<Part>, NoFullCopy>),
    /// A promise was broken.
    Broken(Violation),
}

/// What a client was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// The group that answered.
    pub group: GroupId,
    /// Over which connection.
    pub to: ConnectionNumber,
    /// Which request.
    pub request: RequestId,
    /// What.
    pub status: Status,
    /// Copies claimed.
    pub copies: u8,
    /// The place in the log, of a write that was done.
    pub version: SequenceNumber,
}

impl Answered {
    /// Whether it is a promise to keep a write. Only answers to writes name copies.
    pub fn is_acked(&self) -> bool {
        self.copies > 0 && self.status == Status::Ok
    }
}

/// One executor.
#[derive(Debug)]
pub struct Shard {
    /// Its replicas: of its own group, and of its predecessor's.
    pub hosted: Vec<Hosted>,
    /// What has come since the last wake-up.
    pub inbox: VecDeque<Input>,
    /// What a wake-up had reaped, and the clock it had read, when a pause struck.
    pub stalled: Option<(Time, VecDeque<Input>)>,
    /// Until when this executor alone does nothing, as true time: by a fault, or because it works.
    pub stopped_until: u64,
    /// As above.
    pub busy_until: u64,
    /// Whether a wake-up is due at some time already.
    pub wake_at: Option<u64>,
    connections: Vec<(ConnectionNumber, Peer)>,
    identity: Identity,
    published_at: u64,
    batch: BatchWriter,
}

/// A replica and its stream.
#[derive(Debug)]
pub struct Hosted {
    /// The machine that ships.
    pub replica: Replica,
    stream: Option<ConnectionNumber>,
    dialled: Option<PeerHello>,
    partner: Option<(ViewVersion, SocketAddr)>,
    dial: Option<Dial>,
    shown: Option<(ReplicaState, ViewVersion, bool)>,
    noted: Option<(ReplicaState, ViewVersion)>,
}

impl Hosted {
    /// What it is, if that is not what it was when it was asked last.
    pub fn role_if_new(&mut self) -> Option<(ReplicaState, ViewVersion)> {
        let role = (self.replica.state(), self.replica.view_version());
        (self.noted.replace(role) != Some(role)).then_some(role)
    }
}

#[derive(Debug)]
struct Dial {
    address: SocketAddr,
    view: ViewVersion,
    /// `None`: under way, or connected.
    due: Option<u64>,
    pause: u64,
}

/// What is known of the other side of a connection.
#[derive(Debug)]
enum Peer {
    /// Accepted; nothing said yet.
    Unknown(FrameBuffer),
    Client(FrameBuffer, ClientId),
    /// Accepted or dialled for a group's stream; dialled ones wait for the welcome first.
    Stream(FrameBuffer, GroupId, bool),
}

#[derive(Clone, Copy, Debug)]
struct Identity {
    cluster: ClusterId,
    shard: ShardId,
    placement: Placement,
}

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Who it is, and of which cluster.
    pub member: Member,
    /// As above.
    pub cluster: ClusterId,
    /// Its place.
    pub place: usize,
    /// Its address; the port is its own.
    pub address: SocketAddr,
    /// Whether it runs.
    pub alive: bool,
    /// Until when it does nothing, while time passes.
    pub paused_until: u64,
    /// The next wake-up of a shard is struck by a pause of this length, after the clock was read.
    pub stall_next: Option<u64>,
    /// The machine towards the coordinator.
    pub node: Node,
    /// Its executors.
    pub shards: Vec<Shard>,
    /// The link for heartbeats, and whether it is admitted.
    pub link: Option<(ConnectionNumber, bool)>,
    /// Numbers its dials of the coordinator, so that an old answer is not taken for a new one.
    pub link_tries: u64,
}

impl Process {
    /// A process that has just been started, with an empty table.
    pub fn new(
        cluster: ClusterId,
        member: Member,
        address: SocketAddr,
        placement: Placement,
        seed: u64,
    ) -> Process {
        let servers = placement.servers();
        let own = member.server.home_group();
        let before = ServerId((member.server.0 + servers - 1) % servers).home_group();
        let shards = (0..placement.shards()).map(|shard| {
            let shard = ShardId(shard);
            let hosted = [own, before].map(|group| {
                let config = ReplicaConfig {
                    me: member,
                    group,
                    shard,
                    placement,
                    memory_limit: Some(MEMORY_LIMIT),
                    hash_secret: HashSecret::new(seed),
                };
                let chunks = Box::new(HeapChunks::new(CHUNK_BYTES));
                Hosted {
                    replica: Replica::new(config, chunks),
                    stream: None,
                    dialled: None,
                    partner: None,
                    dial: None,
                    shown: None,
                    noted: None,
                }
            });
            Shard {
                hosted: hosted.into(),
                inbox: VecDeque::new(),
                stalled: None,
                stopped_until: 0,
                busy_until: 0,
                wake_at: None,
                connections: Vec::new(),
                identity: Identity { cluster, shard, placement },
                published_at: 0,
                batch: BatchWriter::new(),
            }
        });
        Process {
            member,
            cluster,
            place: usize::from(member.server.0),
            address,
            alive: true,
            paused_until: 0,
            stall_next: None,
            node: Node::new(NodeConfig { cluster, me: member, shards: placement.shards() }),
            shards: shards.collect(),
            link: None,
            link_tries: 0,
        }
    }

    /// Whether nothing keeps it or one of its executors from working.
    pub fn is_at_work(&self, now: u64) -> bool {
        self.paused_until <= now
            && self.stall_next.is_none()
            && self.shards.iter().all(|shard| shard.stopped_until <= now)
    }

    /// The replica of a group's shard.
    pub fn replica(&self, group: GroupId, shard: usize) -> Option<&Replica> {
        let hosted = self.shards[shard].hosted.iter();
        hosted.map(|hosted| &hosted.replica).find(|replica| replica.group() == group)
    }
}

/// Collects the answers of one input.
struct Collected<'a> {
    output: &'a mut Vec<Output>,
    group: GroupId,
}

impl Answers for Collected<'_> {
    fn answer(&mut self, to: ConnectionId, answer: &Answer<'_>) {
        let mut bytes = Vec::new();
        answer.write(&mut bytes);
        let number = usize::try_from(to.0).expect("it was one");
        self.output.push(Output::Answered(Answered {
            group: self.group,
            to: ConnectionNumber(number),
            request: answer.id,
            status: answer.status,
            copies: answer.copies,
            version: answer.version,
        }));
        self.output.push(Output::Send(ConnectionNumber(number), bytes));
    }
}

fn collected(output: &mut Vec<Output>, group: GroupId) -> Collected<'_> {
    Collected { output, group }
}

impl Shard {
    /// One wake-up: serves what was reaped, with one reading of the clock.
    pub fn wake(&mut self, true_now: u64, now: Time, inputs: VecDeque<Input>) -> Vec<Output> {
        let mut output = Vec::new();
        for input in inputs {
            self.take(true_now, now, input, &mut output);
        }
        for hosted in &mut self.hosted {
            if hosted.replica.next_timeout().is_some_and(|due| due <= now) {
                let group = hosted.replica.group();
                hosted.replica.on_timeout(now, &mut collected(&mut output, group));
            }
        }
        self.pump(now, &mut output);
        self.keep_streams(true_now, now, &mut output);
        self.publish(true_now, now, &mut output);
        output
    }

    fn take(&mut self, true_now: u64, now: Time, input: Input, output: &mut Vec<Output>) {
        match input {
            Input::Bytes(number, bytes) => self.on_bytes(now, number, &bytes, output),
            Input::Closed(number) => {
                self.connections.retain(|(known, _)| *known != number);
                self.drop_stream(now, number, output);
            }
            Input::Dialled(number, group) => self.on_dialled(now, number, group, output),
            Input::DialFailed(group) => {
                let hosted = self.hosted.iter_mut().find(|h| h.replica.group() == group);
                if let Some(dial) = hosted.and_then(|hosted| hosted.dial.as_mut()) {
                    dial.retry(true_now);
                }
            }
            Input::Install(order, view, other) => {
                let hosted = self.hosted.iter_mut().find(|h| h.replica.group() == view.group);
                let Some(hosted) = hosted else { return };
                let answers = &mut collected(output, view.group);
                match hosted.replica.install(now, view, answers) {
                    Ok(()) | Err(InstallError::Old { .. }) => {}
                    Err(error) => output.push(Output::Refused(order, error.to_string())),
                }
                if let Some(address) = other
                    && hosted.partner.is_none_or(|(version, _)| version <= view.version)
                {
                    hosted.partner = Some((view.version, address));
                }
            }
            Input::Probe(order) => output.push(Output::Probed(order)),
            Input::Exited(member) => {
                for hosted in &mut self.hosted {
                    hosted.replica.on_exited(now, member);
                }
            }
            Input::Drain => self.hosted.iter_mut().for_each(|hosted| hosted.replica.drain()),
            Input::Dump(group, number) => {
                self.hosted.iter_mut().for_each(|hosted| hosted.replica.freeze());
                let hosted = self.hosted.iter().find(|hosted| hosted.replica.group() == group);
                let part = hosted.map(|hosted| Part::of(&hosted.replica));
                output.extend(part.map(|part| Output::Dumped(number, part)));
            }
        }
    }

    fn on_bytes(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        bytes: &[u8],
        output: &mut Vec<Output>,
    ) {
        let at = match self.connections.iter().position(|(known, _)| *known == number) {
            Some(at) => at,
            None => {
                let input = FrameBuffer::new(FrameRules::unchecked(MAX_CLIENT_BODY));
                self.connections.push((number, Peer::Unknown(input)));
                self.connections.len() - 1
            }
        };
        let (_, mut peer) = self.connections.swap_remove(at);
        if let Peer::Unknown(input) = &mut peer {
            input.extend(bytes);
            // The first byte of an opcode tells a client from a server.
            let is_client = input.waiting().get(5).is_some_and(|opcode| *opcode < 0x40);
            let waiting = std::mem::replace(input, FrameBuffer::new(STREAM_RULES)).into_waiting();
            let mut input = FrameBuffer::new(if is_client { CLIENT_RULES } else { STREAM_RULES });
            input.extend(&waiting);
            peer = match is_client {
                true => Peer::Client(input, ClientId(0)),
                false => Peer::Stream(input, GroupId(u16::MAX), false),
            };
        } else if let Peer::Client(input, _) | Peer::Stream(input, ..) = &mut peer {
            input.extend(bytes);
        }
        let stays = match &mut peer {
            Peer::Client(input, client) => self.serve(now, number, input, client, output),
            Peer::Stream(input, group, welcomed) => {
                self.stream(now, number, input, group, welcomed, output)
            }
            Peer::Unknown(_) => true,
        };
        if stays {
            self.connections.push((number, peer));
        } else {
            self.drop_stream(now, number, output);
            output.push(Output::Close(number));
        }
    }

    /// Serves the requests of a client; `false` ends its connection.
    fn serve(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        input: &mut FrameBuffer,
        client: &mut ClientId,
        output: &mut Vec<Output>,
    ) -> bool {
        while let Ok(Some(frame)) = input.next_frame() {
            if *client == ClientId(0) {
                let Ok(hello) = Hello::read(frame.body) else { return false };
                *client = hello.client;
                continue;
            }
            let Ok(request) = Request::read(frame.opcode, frame.body) else { return false };
            let (group, shard) = self.identity.placement.locate(request.digest);
            let hosted = self.hosted.iter_mut().find(|h| h.replica.group() == group);
            let Some(hosted) = hosted.filter(|_| shard == self.identity.shard) else {
                let answer = wrong_view(&request);
                output.push(Output::Send(number, answer));
                continue;
            };
            let id = ConnectionId(number.0 as u64);
            let answers = &mut collected(output, group);
            hosted.replica.on_request(now, id, *client, &request, answers);
            look_at_answer(now, &hosted.replica, &request, output);
        }
        true
    }

    /// Takes the frames of a stream; `false` ends it.
    fn stream(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        input: &mut FrameBuffer,
        group: &mut GroupId,
        is_welcomed: &mut bool,
        output: &mut Vec<Output>,
    ) -> bool {
        while let Ok(Some(frame)) = input.next_frame() {
            let taken = match (frame.opcode, *group == GroupId(u16::MAX)) {
                (peer_opcode::PEER_HELLO, true) => {
                    let hello = PeerHello::read(frame.body).expect("it was written so");
                    match self.on_hello(now, number, &hello, output) {
                        Ok(welcome) => {
                            let mut bytes = Vec::new();
                            welcome.write(&mut bytes);
                            output.push(Output::Send(number, bytes));
                            (*group, *is_welcomed) = (hello.group(), true);
                            Ok(())
                        }
                        Err(refusal) => Err(Some(refusal)),
                    }
                }
                (peer_opcode::PEER_WELCOME, false) => {
                    let welcome = PeerWelcome::read(frame.body).expect("it was written so");
                    *is_welcomed = true;
                    self.on_welcome(now, number, *group, &welcome, output)
                }
                (peer_opcode::PEER_REFUSAL, false) => {
                    let refusal = PeerRefusal::read(frame.body).expect("it was written so");
                    if let Some(hosted) = self.stream_of(number, *group) {
                        let answers = &mut collected(output, *group);
                        hosted.replica.on_peer_refusal(now, &refusal, answers);
                    }
                    Err(None)
                }
                (peer_opcode::BATCH, false) => {
                    self.on_batch(now, number, *group, frame.body, output)
                }
                _ => Err(None),
            };
            if let Err(refusal) = taken {
                if let Some(refusal) = refusal {
                    let mut bytes = Vec::new();
                    refusal.write(&mut bytes);
                    output.push(Output::Send(number, bytes));
                }
                return false;
            }
        }
        true
    }

    fn stream_of(&mut self, number: ConnectionNumber, group: GroupId) -> Option<&mut Hosted> {
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        hosted.filter(|hosted| hosted.stream == Some(number))
    }

    fn on_hello(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        hello: &PeerHello,
        output: &mut Vec<Output>,
    ) -> Result<PeerWelcome, PeerRefusal> {
        let stranger = PeerRefusal { reason: PeerRefusalReason::Stranger, view: None };
        let hosted = self.hosted.iter_mut().find(|h| h.replica.group() == hello.group());
        let hosted = hosted.ok_or(stranger)?;
        hosted.replica.judge_hello(hello)?;
        if let Some(old) = hosted.stream.take() {
            hosted.replica.on_stream_down(now, &mut collected(output, hello.group()));
            output.push(Output::Close(old));
            self.connections.retain(|(known, _)| *known != old);
        }
        let hosted = self.hosted.iter_mut().find(|h| h.replica.group() == hello.group());
        let hosted = hosted.ok_or(stranger)?;
        let answers = &mut collected(output, hello.group());
        let welcome = hosted.replica.on_peer_hello(now, hello, answers)?;
        (hosted.stream, hosted.dialled) = (Some(number), None);
        Ok(welcome)
    }

    fn on_welcome(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        group: GroupId,
        welcome: &PeerWelcome,
        output: &mut Vec<Output>,
    ) -> Result<(), Option<PeerRefusal>> {
        let hosted = self.stream_of(number, group).ok_or(None)?;
        let answers = &mut collected(output, group);
        hosted.replica.on_peer_welcome(now, welcome, answers).map_err(|_| None)
    }

    fn on_batch(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        group: GroupId,
        body: &[u8],
        output: &mut Vec<Output>,
    ) -> Result<(), Option<PeerRefusal>> {
        for message in BatchReader::new(body).expect("it was written so") {
            let message = message.expect("it was written so");
            let Some(hosted) = self.stream_of(number, group) else { return Err(None) };
            let installed = hosted.replica.view_version();
            let answers = &mut collected(output, group);
            match hosted.replica.on_peer_message(now, &message, answers) {
                Ok(()) => {
                    let result = nothing_old::message(group, message.view(), installed);
                    output.extend(result.err().map(Output::Broken));
                }
                Err(StreamError::Frozen) => {}
                Err(error) => {
                    let view = hosted.replica.view().copied();
                    if let StreamError::Diverged { sn } = error {
                        output.push(Output::Broken(copy_is_equal::differs(group, sn)));
                    }
                    let reason = match error {
                        StreamError::View { .. } => PeerRefusalReason::OldView,
                        _ => PeerRefusalReason::BrokenStream,
                    };
                    return Err(Some(PeerRefusal { reason, view }));
                }
            }
            if let Some(hosted) = self.stream_of(number, group)
                && let Some(dial) = &mut hosted.dial
            {
                dial.pause = REDIAL_FIRST;
            }
        }
        Ok(())
    }

    fn on_dialled(
        &mut self,
        now: Time,
        number: ConnectionNumber,
        group: GroupId,
        output: &mut Vec<Output>,
    ) {
        let cluster = self.identity.cluster;
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        let Some(hosted) = hosted else { return output.push(Output::Close(number)) };
        let Some(hello) = hosted.replica.peer_hello(cluster) else {
            return output.push(Output::Close(number));
        };
        if let Some(old) = hosted.stream.replace(number) {
            hosted.replica.on_stream_down(now, &mut collected(output, group));
            output.push(Output::Close(old));
            self.connections.retain(|(known, _)| *known != old);
        }
        let hosted = self.hosted.iter_mut().find(|hosted| hosted.replica.group() == group);
        hosted.expect("it was there").dialled = Some(hello);
        let mut bytes = Vec::new();
        hello.write(&mut bytes);
        output.push(Output::Send(number, bytes));
        let input = FrameBuffer::new(STREAM_RULES);
        self.connections.push((number, Peer::Stream(input, group, false)));
    }

    /// A stream's connection is over.
    fn drop_stream(&mut self, now: Time, number: ConnectionNumber, output: &mut Vec<Output>) {
        for hosted in &mut self.hosted {
            if hosted.stream == Some(number) {
                (hosted.stream, hosted.dialled) = (None, None);
                if let Some(dial) = &mut hosted.dial {
                    dial.due.get_or_insert(0);
                }
                let group = hosted.replica.group();
                hosted.replica.on_stream_down(now, &mut collected(output, group));
            }
        }
    }

    fn pump(&mut self, now: Time, output: &mut Vec<Output>) {
        for hosted in &mut self.hosted {
            let Some(number) = hosted.stream else { continue };
            loop {
                let pumped = hosted.replica.pump(now, &mut self.batch);
                let mut bytes = Vec::new();
                self.batch.finish(&mut bytes);
                if !bytes.is_empty() {
                    output.push(Output::Send(number, bytes));
                }
                if pumped == Pumped::Done {
                    break;
                }
            }
        }
    }

    /// Lets every replica have the stream that it wants, and no other that it has dialled.
    fn keep_streams(&mut self, true_now: u64, now: Time, output: &mut Vec<Output>) {
        let cluster = self.identity.cluster;
        for at in 0..self.hosted.len() {
            let hosted = &mut self.hosted[at];
            let group = hosted.replica.group();
            let wanted = hosted.replica.peer_hello(cluster);
            if hosted.dialled.is_some() && hosted.dialled != wanted {
                hosted.dialled = None;
                hosted.dial = None;
                if let Some(old) = hosted.stream.take() {
                    hosted.replica.on_stream_down(now, &mut collected(output, group));
                    output.push(Output::Close(old));
                    self.connections.retain(|(known, _)| *known != old);
                }
            }
            let hosted = &mut self.hosted[at];
            match (wanted, hosted.partner) {
                (Some(hello), Some((_, address))) => {
                    let is_new = hosted.dial.as_ref().is_none_or(|dial| {
                        dial.address != address || dial.view != hello.view.version
                    });
                    if is_new {
                        let view = hello.view.version;
                        let due = Some(true_now);
                        hosted.dial = Some(Dial { address, view, due, pause: REDIAL_FIRST });
                    }
                }
                _ => hosted.dial = None,
            }
            if let Some(dial) = &mut hosted.dial {
                if dial.due == Some(0) {
                    dial.retry(true_now);
                }
                if dial.due.is_some_and(|due| due <= true_now) {
                    dial.due = None;
                    output.push(Output::Dial(group, dial.address));
                }
            }
        }
    }

    fn publish(&mut self, true_now: u64, now: Time, output: &mut Vec<Output>) {
        let mut is_news = true_now >= self.published_at + 100_000_000;
        for hosted in &mut self.hosted {
            let shown = hosted.replica.report(now).map(|r| (r.state, r.view, r.connected));
            is_news |= std::mem::replace(&mut hosted.shown, shown) != shown;
        }
        if is_news {
            self.published_at = true_now;
            let reports = self.hosted.iter().filter_map(|hosted| hosted.replica.report(now));
            output.push(Output::Published(reports.collect()));
        }
    }

    /// When it wants to be woken next, as true time; `clock` turns a reading into that.
    pub fn next_wake(&self, clock: impl Fn(Time) -> u64) -> u64 {
        let timeouts = self.hosted.iter().filter_map(|hosted| hosted.replica.next_timeout());
        let dials = self.hosted.iter().filter_map(|hosted| hosted.dial.as_ref()?.due);
        let publish = self.published_at + 100_000_000;
        timeouts.map(clock).chain(dials).chain([publish]).min().unwrap_or(publish)
    }
}

impl Dial {
    fn retry(&mut self, true_now: u64) {
        self.due = Some(true_now + self.pause);
        self.pause = (self.pause * 2).min(REDIAL_LAST);
    }
}

/// Sees whether a replica may answer as it just has.
fn look_at_answer(now: Time, replica: &Replica, request: &Request<'_>, output: &mut Vec<Output>) {
    let answered = output.iter().rev().find_map(|output| match output {
        Output::Answered(answered) if answered.request == request.id => Some(*answered),
        _ => None,
    });
    let Some(Answered { status, group, .. }) = answered else { return };
    let sight = replica.inspect();
    let result = only_primaries_answer::check(group, &sight, status).and_then(|()| {
        match request.operation {
            Operation::Get => lease_is_checked::check(group, &sight, now, status),
            _ => Ok(()),
        }
    });
    output.extend(result.err().map(Output::Broken));
}

const CLIENT_RULES: FrameRules = FrameRules::unchecked(MAX_CLIENT_BODY);
const STREAM_RULES: FrameRules = FrameRules::checked(MAX_PEER_BODY);

fn wrong_view(request: &Request<'_>) -> Vec<u8> {
    let answer = Answer {
        id: request.id,
        status: Status::WrongView,
        copies: 0,
        view: ViewVersion(0),
        version: kv_protocol::SequenceNumber::ZERO,
        value: &[],
    };
    let mut bytes = Vec::new();
    answer.write(&mut bytes);
    bytes
}
