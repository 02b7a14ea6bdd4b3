//! Clients: their wake-ups and effects.

use crate::server::Reader;
use kv_protocol::client_message::{Condition, Operation, Request, WriteHeader};
use kv_protocol::frame::split_frame;
use kv_protocol::ids::{ClientId, RequestId};
use kv_protocol::limits::MAX_CLIENT_BODY;
use kv_shard::Port;

use super::*;
use crate::invariants::{groups, messages, slowness, writes};
use kv_history::{Asked, Returned};

/// The probability, per mille, that a client's write is followed by one with the digest of another key.
const FORGED_PER_MILLE: u64 = 5;
/// The probability, per mille, that a client closes its connection before a request.
const RESET_PER_MILLE: u64 = 2;
/// The probability, per mille, that a client shuts down its sending direction after a request.
const HALF_CLOSE_PER_MILLE: u64 = 2;
/// The probability, per mille, that a read is repeated by a client that receives slowly, in runs with waves.
const PIN_PER_MILLE: u64 = 50;
/// The connection number of a failed dial.
const NO_CONNECTION: ConnectionNumber = ConnectionNumber(usize::MAX);

impl World {
    pub(super) fn on_wake_client(&mut self, client: usize) {
        self.client_wakes[client] = self.client_wakes[client].filter(|at| *at > self.now);
        let now = self.now;
        if self.clients[client].map.is_none() {
            self.ask_map(client);
            return self.after(20_000_000, Happening::WakeClient(client));
        }
        let mut wishes = Vec::new();
        self.clients[client].wake(now, &mut wishes);
        if self.may_begin(client) && now >= self.clients[client].rests_until {
            let plan = match self.is_looking_back {
                true => self.workload.plan_last(),
                false => {
                    let known = &self.clients[client];
                    Some(self.workload.plan(&mut self.random, now, known))
                }
            };
            if let Some(plan) = plan {
                self.clients[client].begin(now, plan);
                self.clients[client].wake(now, &mut wishes);
            }
            self.let_rest(client);
        }
        self.grant(client, wishes);
        self.wake_client(client);
    }

    fn may_begin(&self, client: usize) -> bool {
        let wants = if self.is_looking_back { self.workload.has_more() } else { !self.is_healing };
        wants && self.clients[client].flights.len() < self.clients[client].depth()
    }

    /// Makes every second client rest periodically, in runs with a short idle timeout of sessions. A rest lasts until a
    /// session has expired even by the slowest clock.
    fn let_rest(&mut self, client: usize) {
        let idle = self.config.bounds.session_idle;
        if idle == SESSION_IDLE || self.is_looking_back || client.is_multiple_of(2) {
            return;
        }
        let rest = u64::try_from(idle.as_nanos()).expect("the timeout is short") * 13 / 10;
        let cycle = rest * 3;
        let turn = self.now + cycle * client as u64 / self.config.clients as u64;
        if turn % cycle > cycle - rest {
            self.clients[client].rests_until = self.now + cycle - turn % cycle;
        }
    }

    /// Schedules a client's next wake-up, for a timer or for the start of its next operation.
    pub(super) fn wake_client(&mut self, client: usize) {
        let due = self.clients[client].next_wake();
        let begin = self.may_begin(client).then(|| {
            let known = &self.clients[client];
            let think = match known.is_reader {
                true => READER_THINKS,
                false if self.is_looking_back => LOOKING_BACK_THINK,
                false => self.config.think,
            };
            let thought = self.now + self.random.between(think / 2, think * 3 / 2);
            thought.max(known.rests_until)
        });
        let Some(at) = due.into_iter().chain(begin).min() else { return };
        let at = at.max(self.now + 10_000);
        if self.client_wakes[client].is_none_or(|known| at < known) {
            self.client_wakes[client] = Some(at);
            self.at(at, Happening::WakeClient(client));
        }
    }

    pub(super) fn grant(&mut self, client: usize, wishes: Vec<Wish>) {
        for wish in wishes {
            match wish {
                Wish::Map => self.ask_map(client),
                Wish::Expired(place, name) => {
                    self.check(|checks, world| checks.on_expired(world, place, name));
                }
                Wish::Send(address, shard, name, id, bytes) => {
                    self.send_request(client, (address, shard, name), id, bytes);
                }
                Wish::Mixed(group) => self.check(|_, _| Err(messages::value_is_mixed(group))),
                Wish::GivenUp(flight) => {
                    self.counts.in_doubt += u64::from(!flight.was_given_up());
                    // Bytes in transit still arrive after the connection is closed.
                    if let Some(number) = flight.connection()
                        && number != NO_CONNECTION
                        && !self.clients[client].keeps(number)
                    {
                        self.close(number, 0);
                    }
                    let responded = Returned::InDoubt;
                    self.check(|_, world| slowness::slow_still_serve(world, &flight, responded));
                    if self.is_looking_back {
                        self.check(|_, world| groups::served_at_rest(world, &flight, responded));
                    }
                }
                Wish::Ended(flight, responded, version) => {
                    let responded = self.as_known(&flight, responded);
                    self.counts.note_operation(&flight, responded);
                    if responded == Returned::Lost {
                        let knows = self.clients[client].map.as_ref().map(|map| map.cluster);
                        self.check(|_, world| {
                            groups::response_of_lost_is_true(world, knows, flight.place.0)
                        });
                    }
                    if !flight.was_given_up() {
                        self.check(|_, world| {
                            slowness::slow_still_serve(world, &flight, responded)
                        });
                    }
                    if self.is_looking_back && !flight.was_given_up() {
                        self.check(|_, world| groups::served_at_rest(world, &flight, responded));
                    }
                    if let Some(version) = version {
                        self.check(|_, _| writes::newest_wins(&flight, version.0));
                        self.workload.note_version(&flight.key, version.0);
                    }
                    let process = self.clients[client].process;
                    // An operation that was never sent has no entry in the history.
                    let was_sent = flight.was_sent();
                    match &flight.object {
                        Some(ask) => {
                            let entry = flight.object_entry(process, self.now, responded);
                            let entry = entry.filter(|_| was_sent);
                            self.workload.note_object(flight.slot, ask, entry);
                        }
                        None => {
                            let entry =
                                was_sent.then(|| flight.entry(process, self.now, responded));
                            self.workload.note(flight.slot, flight.key, entry);
                        }
                    }
                    if responded == Returned::InDoubt {
                        self.clients[client].process += 1;
                    }
                }
            }
        }
    }

    /// Returns the result, or "in doubt" if it is not certain: an expired session does not settle a write if two
    /// clients share the session's name.
    fn as_known(&self, flight: &Flight, responded: Returned) -> Returned {
        let is_shared = self.checks.shared.contains(&flight.name());
        if is_shared && responded == Returned::Undecided { Returned::InDoubt } else { responded }
    }

    pub(super) fn send_request(
        &mut self,
        client: usize,
        to: (SocketAddr, ShardId, ClientId),
        id: u64,
        bytes: Vec<u8>,
    ) {
        let (address, shard, name) = to;
        let flight = self.clients[client].flights.get(&id);
        let may_lag = !(self.config.stands || self.config.slow || self.is_healing);
        let lag = flight.filter(|_| may_lag).map_or(0, Flight::lag);
        self.reset_at_times(client, to);
        let known = self.clients[client].connections.get(&to).copied().filter(|_| lag == 0);
        let number = match known.filter(|number| self.network.is_open(*number, 0)) {
            Some(number) => number,
            None => {
                let process = self.processes.iter().rposition(|p| p.alive && p.address == address);
                let Some(process) = process else {
                    // No process listens at the address, so the client retries after a back-off.
                    let now = self.now;
                    self.clients[client].note_connection(id, NO_CONNECTION);
                    return self.clients[client].on_closed(now, NO_CONNECTION);
                };
                let ends = [Actor::Client { client }, self.any_executor(process)];
                let hosts = ends.map(|end| self.host_of(end));
                let number = self.network.connect(&mut self.random, ends, hosts);
                // Runs with waves have long values, and some clients read them slowly.
                let is_slow = self.config.has_waves && number.0.is_multiple_of(3);
                let reader = if is_slow { Reader::Slow } else { Reader::Fast };
                if let Actor::Shard { process, shard } = ends[1] {
                    self.give(process, shard, Input::Accepted(number, Port::Clients, reader));
                }
                if lag > 0 {
                    // The client abandons this connection together with the write.
                    self.network.delay(number, lag);
                } else {
                    self.clients[client].connections.insert(to, number);
                }
                let mut hello = Vec::new();
                let cluster = self.processes[process].cluster;
                Hello::new(cluster, name, shard).write(&mut hello);
                self.send(number, 0, hello);
                number
            }
        };
        self.clients[client].note_connection(id, number);
        let bytes = self.with_forgery(client, bytes);
        self.pin_at_times(client, id, to, &bytes);
        self.send(number, 0, bytes);
        if lag == 0 {
            self.half_close_at_times(client, to, number);
        }
    }

    /// Repeats a read from another client, which receives slowly, with some probability in runs with waves.
    fn pin_at_times(
        &mut self,
        client: usize,
        id: u64,
        to: (SocketAddr, ShardId, ClientId),
        bytes: &[u8],
    ) {
        let flight = self.clients[client].flights.get(&id);
        let is_read = flight.is_some_and(|flight| flight.asked == Asked::Read);
        if !is_read || !self.config.has_waves || self.is_healing {
            return;
        }
        let process = self.processes.iter().rposition(|p| p.alive && p.address == to.0);
        if let Some(process) = process.filter(|_| self.random.per_mille(PIN_PER_MILLE)) {
            let rules = FrameRules::unchecked(MAX_CLIENT_BODY);
            let frame = split_frame(bytes, &rules).ok().flatten().expect("it is well formed");
            let request = Request::read(frame.opcode, frame.body).expect("it is well formed");
            self.pin_for_a_while(process, to.1, &request);
        }
    }

    /// Shuts down a client's sending direction with some probability. The client still receives the responses to its
    /// requests; it sends the next request on a new connection.
    fn half_close_at_times(
        &mut self,
        client: usize,
        to: (SocketAddr, ShardId, ClientId),
        number: ConnectionNumber,
    ) {
        if !self.is_healing && self.random.per_mille(HALF_CLOSE_PER_MILLE) {
            self.counts.half_closes += 1;
            self.clients[client].connections.remove(&to);
            self.shut_down(number, 0);
        }
    }

    /// Closes a connection of a client with some probability, even with requests in flight.
    fn reset_at_times(&mut self, client: usize, to: (SocketAddr, ShardId, ClientId)) {
        let known = self.clients[client].connections.get(&to).copied();
        if let Some(number) = known.filter(|number| self.network.is_open(*number, 0))
            && !self.is_healing
            && self.random.per_mille(RESET_PER_MILLE)
        {
            self.counts.resets += 1;
            self.close(number, 0);
            let now = self.now;
            self.clients[client].on_closed(now, number);
        }
    }

    /// Appends a write with the digest of another key to a few PUT requests. Servers must reject this write, because a
    /// read would not find the entry in the table of the wrong place.
    fn with_forgery(&mut self, client: usize, bytes: Vec<u8>) -> Vec<u8> {
        let placement = self.config.placement();
        if self.is_healing || !self.random.per_mille(FORGED_PER_MILLE) {
            return bytes;
        }
        let frame = split_frame(&bytes, &FrameRules::unchecked(MAX_CLIENT_BODY));
        let frame = frame.ok().flatten().expect("it is well formed");
        let request = Request::read(frame.opcode, frame.body).expect("it is well formed");
        let Operation::Put(header, _) = request.operation else { return bytes };
        let mut others = (0u32..).map(|n| format!("forged.{client}.{n}").into_bytes());
        let home = request.place(&placement);
        let key = others.find(|key| placement.locate(key) != home).expect("a key");
        let header = WriteHeader { condition: Condition::Always, ..header };
        self.forged += 1;
        self.counts.forged += 1;
        let id = RequestId(u64::MAX - self.forged);
        let forged =
            Request { id, key: &key, operation: Operation::Put(header, b"forged"), ..request };
        let mut both = bytes.clone();
        forged.write(&mut both);
        both
    }

    pub(super) fn ask_map(&mut self, client: usize) {
        // One map request is in flight at a time. It is repeated if there is no response.
        if self.now < self.clients[client].asks_map_until {
            return;
        }
        self.clients[client].asks_map_until = self.now + 20_000_000;
        let delay = self.random.between(50_000, 300_000);
        self.after(delay, Happening::AskMap(client));
    }

    pub(super) fn on_ask_map(&mut self, client: usize) {
        // Clients get no map before the cluster serves for the first time.
        let cluster = self.coordinator.cluster.as_ref().filter(|cluster| cluster.has_served());
        let Some(cluster) = cluster else { return };
        let map = Box::new(cluster.map());
        self.check(|checks, _| {
            map.views.iter().try_for_each(|view| checks.on_view_told(map.cluster, view))
        });
        let delay = self.random.between(50_000, 300_000);
        self.after(delay, Happening::Map(client, map));
    }

    pub(super) fn on_client_bytes(
        &mut self,
        client: usize,
        number: ConnectionNumber,
        end: usize,
        bytes: &[u8],
    ) {
        let mut wishes = Vec::new();
        let (now, jitter) = (self.now, self.random.any());
        let rules = FrameRules::unchecked(MAX_RESPONSE_BODY);
        let input = self.inputs.entry((number, end)).or_insert_with(|| FrameBuffer::new(rules));
        input.extend(bytes);
        while let Some(frame) = input.next_frame().expect("it is well formed") {
            if frame.opcode == client_opcode::WELCOME {
                let welcome = Welcome::read(frame.body).expect("it is well formed");
                self.clients[client].on_welcome(number, &welcome);
            }
            if frame.opcode == client_opcode::RESPONSE {
                let response = Response::read(frame.body).expect("it is well formed");
                self.counts.long_values +=
                    u64::from(response.value.len() > self.config.bounds.long_value);
                self.clients[client].on_response(now, jitter, &response, &mut wishes);
            }
        }
        self.grant(client, wishes);
        self.wake_client(client);
    }

    /// Returns the whole frames that have arrived at one side of a control connection.
    pub(super) fn frames(
        &mut self,
        number: ConnectionNumber,
        end: usize,
        bytes: &[u8],
    ) -> Vec<(u8, Vec<u8>)> {
        let rules = FrameRules::checked(MAX_CONTROL_BODY);
        let input = self.inputs.entry((number, end)).or_insert_with(|| FrameBuffer::new(rules));
        input.extend(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = input.next_frame().expect("it is well formed") {
            frames.push((frame.opcode, frame.body.to_vec()));
        }
        frames
    }

    /// Iterates over the server places of the ring.
    pub fn places(&self) -> impl Iterator<Item = ServerId> {
        (0..self.config.servers).map(ServerId)
    }
}
