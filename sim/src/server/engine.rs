//! The sockets of an executor, served in the shipped order ([`kv_shard::turn`]). Work takes virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};

use kv_core::replica::ConnectionId;
use kv_protocol::ids::{GroupId, Time, ViewVersion};
use kv_shard::turn::{self, Engine as _, Waiting};
use kv_shard::{Address, Fate, Port, Shard, Transmit};

use super::executor::{Input, Output};
use super::socket::{Reader, Socket, Sockets};
use super::tap::{Asked, SentResponse};
use crate::clock::Clock;
use crate::invariants::messages;
use crate::network::ConnectionNumber;

/// The fixed work of a wake-up, in nanoseconds.
pub(super) const WORK_A_WAKE: u64 = 1_000;
/// The fixed work of an input, in nanoseconds.
const WORK_AN_INPUT: u64 = 500;
/// The work of a request, in nanoseconds.
const WORK_A_REQUEST: u64 = 10_000;
/// The work of each byte received or sent, in nanoseconds.
const WORK_A_BYTE: u64 = 3;
/// The maximum number of bytes of one receive from a client, as in the engine over io_uring.
const RECEIVED_AT_ONCE: usize = 8 << 10;

/// A message of a stream that the shard must reject by closing the stream.
struct Suspect {
    id: ConnectionId,
    group: GroupId,
    view: ViewVersion,
    installed: ViewVersion,
}

/// The sockets, and the received inputs that are not served yet.
pub(super) struct Engine {
    pub(super) sockets: Sockets,
    streams: VecDeque<Input>,
    strangers: VecDeque<Input>,
    clients: VecDeque<Input>,
    /// Inputs of connections that must not be read now. They model bytes in the kernel's buffers.
    unread: BTreeMap<ConnectionNumber, VecDeque<Input>>,
    /// The number of wake-ups.
    pub(super) wakes: u64,
    /// The work of this wake-up so far, in nanoseconds.
    pub(super) work: u64,
    pub(super) output: Vec<Output>,
    suspects: Vec<Suspect>,
    /// Responses to requests of this wake-up.
    pub(super) fresh: Vec<(SentResponse, Asked)>,
    /// The sockets that were closed in this wake-up, for the checks of its events.
    pub(super) closed: Vec<(ConnectionId, Socket)>,
    /// Streams whose other ends have closed them in this wake-up.
    pub(super) ended: Vec<ConnectionNumber>,
}

impl Engine {
    /// Creates an engine without sockets.
    pub(super) fn new() -> Engine {
        Engine {
            sockets: Sockets::default(),
            streams: VecDeque::new(),
            strangers: VecDeque::new(),
            clients: VecDeque::new(),
            unread: BTreeMap::new(),
            wakes: 0,
            work: 0,
            output: Vec::new(),
            suspects: Vec::new(),
            fresh: Vec::new(),
            closed: Vec::new(),
            ended: Vec::new(),
        }
    }

    /// Queues an input of a connection.
    pub(super) fn queue(&mut self, shard: &mut Shard, input: Input) {
        let Some(number) = input.connection() else { return self.streams.push_back(input) };
        // A connection that has just become a stream keeps its inputs in order.
        let waits =
            |queue: &VecDeque<Input>| queue.iter().any(|input| input.connection() == Some(number));
        let id = self.sockets.id(number);
        let port = match &input {
            Input::Accepted(_, port, _) | Input::Adopted(_, port, ..) => Some(*port),
            _ => id.and_then(|id| self.sockets.get(id)).map(|socket| socket.port),
        };
        let is_stream =
            matches!(input, Input::Dialled(..)) || id.is_some_and(|id| shard.is_stream(id));
        match port {
            _ if self.unread.contains_key(&number) => {
                self.unread.entry(number).or_default().push_back(input);
            }
            _ if waits(&self.streams) => self.streams.push_back(input),
            Some(Port::Servers) | None if waits(&self.strangers) => self.strangers.push_back(input),
            _ if is_stream => self.streams.push_back(input),
            Some(Port::Servers) => self.strangers.push_back(input),
            Some(Port::Clients | Port::Redis) | None => self.queue_of_client(input),
        }
    }

    /// Queues an input of a client, in pieces of the size of one receive.
    fn queue_of_client(&mut self, input: Input) {
        let queue = &mut self.clients;
        match input {
            Input::Bytes(number, bytes) if bytes.len() > RECEIVED_AT_ONCE => {
                let pieces = bytes.chunks(RECEIVED_AT_ONCE);
                queue.extend(pieces.map(|piece| Input::Bytes(number, piece.to_vec())));
            }
            input => queue.push_back(input),
        }
    }

    /// Leaves an input of a connection unread, and all later ones.
    fn leave_unread(&mut self, number: ConnectionNumber, input: Input) {
        let later = self.take_inputs(number);
        self.unread.entry(number).or_default().extend([input].into_iter().chain(later));
    }

    /// Resumes reading a connection.
    fn read_again(&mut self, number: ConnectionNumber, port: Port) {
        for input in self.unread.remove(&number).unwrap_or_default() {
            match port {
                Port::Servers => self.strangers.push_back(input),
                Port::Clients | Port::Redis => self.queue_of_client(input),
            }
        }
    }

    /// Returns whether inputs other than those of streams are left for the next wake-up.
    pub(super) fn has_work(&self) -> bool {
        !self.strangers.is_empty() || !self.clients.is_empty()
    }

    /// Returns whether streams have received inputs that are not served yet.
    pub(super) fn has_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Takes the inputs of a connection that are not served yet.
    fn take_inputs(&mut self, number: ConnectionNumber) -> Vec<Input> {
        let mut its = Vec::from(self.unread.remove(&number).unwrap_or_default());
        for queue in [&mut self.strangers, &mut self.clients] {
            let inputs = std::mem::take(queue).into_iter();
            let (taken, others): (VecDeque<Input>, VecDeque<Input>) =
                inputs.partition(|input| input.connection() == Some(number));
            *queue = others;
            its.extend(taken);
        }
        its
    }
}

/// A turn in progress.
pub(super) struct Turn<'a> {
    pub(super) engine: &'a mut Engine,
    pub(super) true_now: u64,
    pub(super) clock: Clock,
    /// True if the executor receives nothing from other servers.
    pub(super) is_deaf: bool,
}

impl turn::Engine for Turn<'_> {
    const SENDS_AT_ONCE: bool = true;

    fn now(&mut self) -> Time {
        self.clock.read(self.true_now + self.engine.work)
    }

    /// Does nothing: all inputs are queued before the turn begins.
    fn look_again(&mut self, _: &mut Shard) {}

    fn serve_streams(&mut self, shard: &mut Shard) -> bool {
        if self.is_deaf {
            return false;
        }
        let inputs = std::mem::take(&mut self.engine.streams);
        let had_any = !inputs.is_empty();
        for input in inputs {
            self.receive(shard, input);
        }
        had_any
    }

    fn waiting(&mut self) -> Waiting {
        let (strangers, clients) = (self.engine.strangers.len(), self.engine.clients.len());
        Waiting { strangers, clients }
    }

    fn serve_stranger(&mut self, shard: &mut Shard) {
        if let Some(input) = self.engine.strangers.pop_front() {
            self.receive_if_wanted(shard, input);
        }
    }

    fn serve_client(&mut self, shard: &mut Shard) -> Option<Time> {
        let input = self.engine.clients.pop_front()?;
        self.receive_if_wanted(shard, input).then(|| self.now())
    }

    fn see_to(&mut self, shard: &mut Shard, now: Time, id: ConnectionId) -> usize {
        let Some(socket) = self.engine.sockets.get(id) else { return 0 };
        let (number, port, reader) = (socket.number, socket.port, socket.reader());
        let mut sent = 0;
        if !socket.is_blocked() {
            let taken = socket.offer(self.true_now, shard.unsent(id).len());
            if taken > 0 {
                let bytes = shard.unsent(id)[..taken].to_vec();
                shard.handle_sent(now, id, taken);
                if !shard.is_stream(id) {
                    sent = taken;
                }
                self.note_sent(id, bytes);
            }
        }
        let fate = shard.fate(id);
        self.judge_suspects(id, fate);
        match fate {
            Fate::Read => self.engine.read_again(number, port),
            Fate::Wait => {}
            Fate::Shut => {
                let socket = self.engine.sockets.get(id);
                if socket.is_some_and(|socket| !std::mem::replace(&mut socket.is_shut, true)) {
                    self.engine.output.push(Output::ShutDown(number));
                }
                self.engine.read_again(number, port);
            }
            Fate::Close => {
                shard.close(now, id);
                let closed = self.engine.sockets.remove(id);
                self.engine.closed.extend(closed.map(|socket| (id, socket)));
                self.engine.unread.remove(&number);
                self.engine.output.push(Output::Close(number));
            }
            Fate::HandOver(wanted) if wanted == shard.service.identity.shard => {
                shard.adopt_accepted(now, id);
                shard.mark_dirty(id);
            }
            Fate::HandOver(wanted) => {
                let handshake = shard.take_handshake(id);
                shard.close(now, id);
                self.engine.sockets.remove(id);
                // The first byte may have moved the connection to another port.
                let (port, received) = handshake.unwrap_or((port, Vec::new()));
                let mut inputs = vec![Input::Adopted(number, port, reader, received)];
                inputs.extend(self.engine.take_inputs(number));
                self.engine.output.push(Output::HandOver(number, wanted, inputs));
            }
        }
        sent
    }

    fn send(&mut self, transmit: &Transmit<'_>) -> usize {
        let bytes: Vec<u8> = transmit.parts.iter().flat_map(|part| part.iter()).copied().collect();
        let Some(socket) = self.engine.sockets.get(transmit.id) else { return 0 };
        let taken = socket.offer(self.true_now, bytes.len());
        self.note_sent(transmit.id, bytes[..taken].to_vec());
        taken
    }
}

impl Turn<'_> {
    /// Serves an input of a connection, unless the connection must not be read now, as in the engine over epoll.
    /// Returns whether the input was served.
    fn receive_if_wanted(&mut self, shard: &mut Shard, input: Input) -> bool {
        if let Input::Bytes(number, _) | Input::EndOfInput(number) | Input::Closed(number) = input
            && let Some(id) = self.engine.sockets.id(number)
        {
            match shard.fate(id) {
                Fate::Read | Fate::Shut => {}
                fate @ (Fate::Wait | Fate::Close | Fate::HandOver(_)) => {
                    if fate != Fate::Wait {
                        shard.mark_dirty(id);
                    }
                    self.engine.leave_unread(number, input);
                    return false;
                }
            }
        }
        self.receive(shard, input);
        true
    }

    /// Serves an input of a connection.
    fn receive(&mut self, shard: &mut Shard, input: Input) {
        self.engine.work += WORK_AN_INPUT;
        // The clock is read after the receive, as in the engine over epoll.
        let now = self.now();
        match input {
            Input::Accepted(number, port, reader) => {
                let id = shard.open_accepted(now, port);
                self.open(shard, number, id, port, reader);
            }
            Input::Adopted(number, port, reader, received) => {
                let id = shard.adopt(now, port, &[]);
                self.open(shard, number, id, port, reader);
                self.handle_bytes(shard, now, id, &received);
            }
            Input::Dialled(number, target) => {
                let id = shard.open_dialled(now, target);
                self.engine.sockets.open_dialled(id, number, target);
                shard.mark_dirty(id);
            }
            Input::DialFailed(target) => {
                shard.handle_dial_failed(now, target, "nothing listens there");
            }
            Input::Bytes(number, bytes) => {
                if let Some(id) = self.engine.sockets.id(number) {
                    self.handle_bytes(shard, now, id, &bytes);
                }
            }
            Input::EndOfInput(number) => {
                let Some(id) = self.engine.sockets.id(number) else { return };
                shard.handle_end_of_input(now, id);
                shard.mark_dirty(id);
            }
            Input::Closed(number) => {
                let Some(id) = self.engine.sockets.id(number) else { return };
                let is_stream = shard.is_stream(id);
                match !is_stream && number.0 % 2 == 1 {
                    // Half of these connections end with a reset instead of an end of input.
                    true => shard.handle_failure(id),
                    false => shard.handle_end_of_input(now, id),
                }
                shard.mark_dirty(id);
                if is_stream {
                    self.engine.ended.push(number);
                }
            }
            _ => unreachable!("it is an order"),
        }
    }

    fn open(
        &mut self,
        shard: &mut Shard,
        number: ConnectionNumber,
        id: ConnectionId,
        port: Port,
        reader: Reader,
    ) {
        shard.set_address(id, Address::of(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        self.engine.sockets.open(id, number, port, reader);
        shard.mark_dirty(id);
    }

    fn handle_bytes(&mut self, shard: &mut Shard, now: Time, id: ConnectionId, bytes: &[u8]) {
        let placement = shard.service.identity.placement;
        let wakes = self.engine.wakes;
        let Some(socket) = self.engine.sockets.get(id) else { return };
        let (requests, views) = socket.tap.received(wakes, now, placement, bytes);
        self.engine.work += bytes.len() as u64 * WORK_A_BYTE + requests * WORK_A_REQUEST;
        if views.is_empty() {
            shard.handle_bytes(now, id, bytes);
            return shard.mark_dirty(id);
        }
        let replicas = shard.service.replicas();
        let installed: Vec<(GroupId, ViewVersion)> =
            replicas.map(|replica| (replica.group(), replica.view_version())).collect();
        shard.handle_bytes(now, id, bytes);
        shard.mark_dirty(id);
        let service = &shard.service;
        let stream = installed.into_iter().find(|(group, _)| service.stream(*group) == Some(id));
        if let Some((group, installed)) = stream.filter(|_| !service.is_frozen()) {
            let views = views.into_iter().filter(|view| *view != installed);
            let suspects = views.map(|view| Suspect { id, group, view, installed });
            self.engine.suspects.extend(suspects);
        }
    }

    /// Checks that a stream with a message of another view is closed, once the fate of the stream is known.
    fn judge_suspects(&mut self, id: ConnectionId, fate: Fate) {
        let Engine { suspects, output, .. } = &mut *self.engine;
        let suspects = suspects.extract_if(.., |suspect| suspect.id == id);
        let is_kept = matches!(fate, Fate::Read | Fate::Wait);
        for Suspect { group, view, installed, .. } in suspects {
            let checked = messages::message_is_of_this_view(group, view, installed);
            output.extend(checked.err().filter(|_| is_kept).map(Output::Broken));
        }
    }

    /// Records bytes that a connection sends. The responses to requests of this wake-up are checked at the end of
    /// the wake-up. Other responses may belong to an earlier state of the replica.
    fn note_sent(&mut self, id: ConnectionId, bytes: Vec<u8>) {
        self.engine.work += bytes.len() as u64 * WORK_A_BYTE;
        let Some(socket) = self.engine.sockets.get(id) else { return };
        let number = socket.number;
        let sent = socket.tap.sent(self.engine.wakes, number, &bytes).unwrap_or_else(|violation| {
            self.engine.output.push(Output::Broken(violation));
            Vec::new()
        });
        for (responded, asked) in sent {
            if responded.is_fresh {
                self.engine.fresh.push((responded, asked));
            }
            self.engine.output.push(Output::SentResponse(responded));
        }
        self.engine.output.push(Output::Send(number, bytes, self.engine.work));
    }
}
